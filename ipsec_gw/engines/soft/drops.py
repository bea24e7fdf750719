"""Why the soft engine let a packet go: numbered nowhere, named once, counted always."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType


class DropReason(StrEnum):
    """Reasons in the order in which a packet can meet them."""

    MALFORMED = "malformed"
    """Outer or plaintext headers that do not hold: lengths, version, IPv4 checksum."""
    NOT_IP = "not_ip"
    """Another EtherType (ARP, LLDP, a second VLAN tag): nothing for an ESP engine."""
    NOT_ESP = "not_esp"
    """IP, but not ESP, on a WAN interface: steering sent what it should not have."""
    ENCAPSULATION = "encapsulation"
    """ESP in UDP of an SA that is to be bare, or the other way round, which the kernel refuses as well."""
    FRAGMENT = "fragment"
    """An outer fragment: fragments belong to the kernel."""
    UNKNOWN_SA = "unknown_sa"
    """No tunnel has an inbound SA with this (destination, SPI)."""
    TOO_OLD = "too_old"
    """Left of the replay window (RFC 4303 §3.4.3), or sequence number 0."""
    REPLAYED = "replayed"
    """Inside the replay window and seen before."""
    AUTHENTICATION = "authentication"
    """The integrity check value is wrong (RFC 4303 §3.4.4.1)."""
    PADDING = "padding"
    """Authentic, but the padding is not 1, 2, 3, ... or longer than the packet (RFC 4303 §2.4)."""
    DUMMY = "dummy"
    """Next header 59: traffic-flow confidentiality, discarded as RFC 4303 §2.6 demands."""
    NEXT_HEADER = "next_header"
    """Authentic, but neither IPv4 nor IPv6 is inside: not tunnel mode."""
    INNER_MALFORMED = "inner_malformed"
    """Authentic, but the inner packet's header does not hold."""
    SELECTOR = "selector"
    """The inner packet does not fit the selectors negotiated for its SA (RFC 4301 §5.2 step 4)."""
    CONGESTION = "congestion"
    """Outer header says Congestion Experienced, inner transport cannot hear it (RFC 6040 §4.2)."""
    NO_TUNNEL = "no_tunnel"
    """Plaintext that no tunnel's selectors cover."""
    TOO_BIG = "too_big"
    """Does not fit the MTU of the interface that it would leave by."""
    SEQUENCE_EXHAUSTED = "sequence_exhausted"
    """The SA's sequence numbers are used up (RFC 4303 §3.3.3): only a rekey helps."""
    TRANSMIT = "transmit"
    """The socket did not take the frame: ring full or interface down."""
    INTERNAL = "internal"
    """An error of the engine's own, logged with its place. Should never be anything but 0."""
    CLOSING = "closing"
    """Received, but the engine was told to close before it came to this packet."""


class Dropped(Exception):
    """Ends the processing of one packet. Never leaves the datapath and carries nothing of the packet."""

    def __init__(self, reason: DropReason) -> None:
        super().__init__(reason.value)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Drops:
    """Dropped packets by reason, at one moment. Every reason is present in ``counts``."""

    counts: Mapping[DropReason, int]

    def of(self, reason: DropReason) -> int:
        """Packets dropped for this reason."""
        return self.counts[reason]

    @property
    def total(self) -> int:
        """Packets dropped for any reason."""
        return sum(self.counts.values())


class DropCounter:
    """Counts drops. One thread writes, any thread reads."""

    __slots__ = ("_counts",)

    def __init__(self) -> None:
        self._counts = dict.fromkeys(DropReason, 0)

    def add(self, reason: DropReason, packets: int = 1) -> int:
        """Count some more packets; returns the new total of the reason."""
        self._counts[reason] += packets
        return self._counts[reason]

    def read(self) -> Drops:
        """The counts so far, as a value of its own."""
        return Drops(MappingProxyType(self._counts.copy()))
