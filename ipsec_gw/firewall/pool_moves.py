"""Whether new flows of a pool with the engine "auto" are VPP's or XDP's: what is measured decides, and nothing else."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace

from ipsec_gw.model.firewall import Moves, PoolEngine

LOOK_SECONDS = 0.5
"""Between two looks at the counters."""

WINDOW_LOOKS = 2
"""Rates are over so many of them: a second, which a burst does not fill; a surge is answered in a second and a half."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a pool was asked for up to ``at`` (seconds): new flows, packets of its flows, and flows that XDP had no port
    for.
    """

    at: float
    flows: int
    packets: int
    refused: int = 0


@dataclass(frozen=True, slots=True)
class Rates:
    """The same in a second."""

    flows: float = 0.0
    packets: float = 0.0
    refused: float = 0.0


class Meter:
    """Rates of one pool over the last second."""

    def __init__(self) -> None:
        self._seen: deque[Asked] = deque(maxlen=WINDOW_LOOKS + 1)

    def add(self, now: Asked) -> Rates | None:
        """The rates up to now; None as long as it is not known for a whole window. A counter that is less than before
        was begun anew.
        """
        last = self._seen[-1] if self._seen else None
        if last is not None and not _follows(now, last):
            self._seen.clear()
        self._seen.append(now)
        first = self._seen[0]
        if len(self._seen) <= WINDOW_LOOKS:
            return None
        seconds = now.at - first.at
        counts = (now.flows - first.flows, now.packets - first.packets, now.refused - first.refused)
        return Rates(*(count / seconds for count in counts))


def _follows(now: Asked, last: Asked) -> bool:
    counts = (now.flows - last.flows, now.packets - last.packets, now.refused - last.refused)
    return now.at > last.at and min(counts) >= 0


@dataclass(frozen=True, slots=True)
class Standing:
    """Who has the new flows of a pool (XDP or VPP), since when, and, if it is VPP, since when little is asked of it
    (None: much is). In seconds of one clock.
    """

    engine: PoolEngine
    since: float
    calm_since: float | None = None


def decide(standing: Standing, rates: Rates, now: float, moves: Moves) -> Standing:
    """What a pool is from now on."""
    if standing.engine is PoolEngine.XDP:
        surge = rates.flows >= moves.promote_flows or rates.packets >= moves.promote_packets
        return Standing(PoolEngine.VPP, now) if surge or rates.refused else standing
    if rates.flows >= moves.demote_flows or rates.packets >= moves.demote_packets:
        return replace(standing, calm_since=None)
    calm_since = now if standing.calm_since is None else standing.calm_since
    if now - calm_since >= moves.dwell:
        return Standing(PoolEngine.XDP, now)
    return replace(standing, calm_since=calm_since)


def seconds_to_move(standing: Standing, now: float, moves: Moves) -> float:
    """The soonest that it can move again: XDP's at any time, VPP's when it has been calm for long enough."""
    if standing.engine is PoolEngine.XDP:
        return 0.0
    begun = now if standing.calm_since is None else standing.calm_since
    return max(0.0, moves.dwell - (now - begun))
