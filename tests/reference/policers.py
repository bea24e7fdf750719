"""Policers as RFC 2697 and 2698 write them down: buckets of tokens, one for each byte."""

from __future__ import annotations

from dataclasses import dataclass, field

from ipsec_gw.model.filters import Policer

GREEN, YELLOW, RED = "green", "yellow", "red"


@dataclass
class Bucket:
    """Bytes per second, and how many there is room for; full at first."""

    rate: float
    size: int
    tokens: float = field(init=False)

    def __post_init__(self) -> None:
        self.tokens = self.size


class Marker:
    """The buckets of a policer: committed, and excess or peak."""

    def __init__(self, policer: Policer) -> None:
        self.policer = policer
        self.committed = Bucket(policer.rate / 8, policer.burst)
        other = (policer.peak_rate / 8, policer.peak_burst) if policer.peak_rate else (0, policer.excess_burst)
        self.other = Bucket(other[0], other[1] or 0)

    def pass_time(self, seconds: float) -> None:
        """RFC 2697: the excess bucket gets what the committed one has no room for."""
        filled = self.committed.tokens + self.committed.rate * seconds
        spare = max(filled - self.committed.size, 0)
        self.committed.tokens = min(self.committed.size, filled)
        more = self.other.rate * seconds if self.policer.peak_rate else spare
        self.other.tokens = min(self.other.size, self.other.tokens + more)

    def is_close(self, octets: int, margin: float) -> bool:
        """Could some bytes more or less make a difference?"""
        return any(abs(bucket.tokens - octets) < margin for bucket in (self.committed, self.other))

    def colour(self, octets: int, before: str = GREEN) -> str:
        """Of a packet that has one already, if the policer is to look at it."""
        if not self.policer.aware:
            before = GREEN
        if self.policer.peak_rate:
            return self._two_rates(octets, before)
        if before == GREEN and self.committed.tokens >= octets:
            self.committed.tokens -= octets
            return GREEN
        if self.policer.excess_burst and before != RED and self.other.tokens >= octets:
            self.other.tokens -= octets
            return YELLOW
        return RED

    def _two_rates(self, octets: int, before: str) -> str:
        if before == RED or self.other.tokens < octets:
            return RED
        self.other.tokens -= octets
        if before == YELLOW or self.committed.tokens < octets:
            return YELLOW
        self.committed.tokens -= octets
        return GREEN


def colour_of(dscp: int) -> str:
    """The drop precedence of assured forwarding (RFC 2597); all else is green."""
    precedences = {1: GREEN, 2: YELLOW, 3: RED}
    marks = {8 * group + 2 * drop: colour for group in range(1, 5) for drop, colour in precedences.items()}
    return marks.get(dscp, GREEN)
