"""What the WAN really carried: captured ESP judged by the oracle, and looked through for clear packets. Pure."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from ipsec_gw.lab.capture import IPPROTO_ESP, IPPROTO_UDP, Frame, Header, esp_of, header, without_hops
from ipsec_gw.lab.kernel_sas import KernelSa
from ipsec_gw.lab.oracle import EspPacket, NotGenuine, Oracle
from ipsec_gw.model.ids import IpAddress, IpNetwork

IKE_PORTS = {500, 4500}

SaIndex = tuple[IpAddress, int]
"""Destination and SPI."""


@dataclass(frozen=True, slots=True)
class Numbers:
    """The sequence numbers and IVs of one SA, in the order of the wire."""

    name: str
    packets: int
    first: int
    last: int
    missing: int
    repeated: int
    backwards: int
    repeated_ivs: int

    @property
    def unique(self) -> bool:
        """No number and no nonce was used twice."""
        return (self.repeated, self.repeated_ivs) == (0, 0)

    @property
    def gapless(self) -> bool:
        """1, 2, 3, ... up to the last number: nothing that was numbered got lost before the wire."""
        return (self.first, self.missing) == (1, 0)

    @property
    def increasing(self) -> bool:
        """Each packet had a higher number than the one before."""
        return self.backwards == 0 and self.repeated == 0

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.packets} packets {self.first}..{self.last}, {self.missing} missing, "
            f"{self.repeated} repeated, {self.backwards} out of order, {self.repeated_ivs} IVs repeated"
        )


@dataclass(frozen=True, slots=True)
class Decrypted:
    """A captured ESP packet, its whole sequence number known, and the IP packet inside."""

    esp: EspPacket
    inner: bytes


@dataclass(frozen=True, slots=True)
class Opening:
    """What the oracle made of a capture: what opened, and what did not, in words."""

    opened: tuple[Decrypted, ...]
    unknown: tuple[str, ...]
    forged: tuple[str, ...]


def esp_packets(frames: Iterable[Frame]) -> list[EspPacket]:
    """The ESP among the frames that came in."""
    packets = (esp_of(frame) for frame in frames if not frame.outgoing)
    return [packet for packet in packets if packet is not None]


def without_returned(first: Sequence[EspPacket], second: Sequence[EspPacket]) -> tuple[list[EspPacket], ...]:
    """What each of two gateways has sent, without the other one's packets: a gateway that has moved away forwards what
    still comes for the address that it had.
    """
    return _without(first, second), _without(second, first)


def _without(own: Sequence[EspPacket], other: Sequence[EspPacket]) -> list[EspPacket]:
    here, there = (Counter(packet.source for packet in one) for one in (own, other))
    seen = {(packet.source, packet.payload) for packet in other}
    return [p for p in own if (p.source, p.payload) not in seen or here[p.source] >= there[p.source]]


def numbers(packets: Sequence[EspPacket]) -> list[Numbers]:
    """Sequence numbers by SA."""
    by_sa: dict[SaIndex, list[EspPacket]] = {}
    for packet in packets:
        by_sa.setdefault((packet.destination, packet.spi), []).append(packet)
    return [_numbers(f"{destination}/{spi:08x}", carried) for (destination, spi), carried in by_sa.items()]


def furthest_back(packets: Iterable[EspPacket]) -> int:
    """How far below an earlier one any sequence number of the same SA is, at most."""
    return max((back for _, back in _steps_back(packets)), default=0)


def stragglers(packets: Iterable[EspPacket], reordering: int) -> int:
    """How many packets of one SA are further below an earlier one than that, at most."""
    late = Counter(index for index, back in _steps_back(packets) if back > reordering)
    return max(late.values(), default=0)


def _steps_back(packets: Iterable[EspPacket]) -> Iterator[tuple[SaIndex, int]]:
    """How far each packet's number is below the highest one of its SA so far."""
    highest: dict[SaIndex, int] = {}
    for packet in packets:
        index = (packet.destination, packet.spi)
        highest[index] = max(highest.get(index, 0), packet.sequence)
        yield index, highest[index] - packet.sequence


def _numbers(name: str, carried: Sequence[EspPacket]) -> Numbers:
    used = [packet.sequence for packet in carried]
    distinct = set(used)
    return Numbers(
        name=name,
        packets=len(used),
        first=min(used),
        last=max(used),
        missing=max(used) - min(used) + 1 - len(distinct),
        repeated=len(used) - len(distinct),
        backwards=sum(1 for before, after in pairwise(used) if after < before),
        repeated_ivs=len(carried) - len({packet.iv for packet in carried}),
    )


def open_all(packets: Iterable[EspPacket], sas: Mapping[SaIndex, KernelSa]) -> Opening:
    """Open every packet with the keys that the kernels gave."""
    oracle = Oracle()
    opened: list[Decrypted] = []
    unknown: list[str] = []
    forged: list[str] = []
    for packet in packets:
        sa = sas.get((packet.destination, packet.spi))
        if sa is None:
            unknown.append(f"{packet.destination}/{packet.spi:08x}")
            continue
        try:
            found = oracle.open(packet, sa)
        except NotGenuine as error:
            forged.append(str(error))
            continue
        opened.append(Decrypted(replace(packet, high=found.high), found.inner))
    return Opening(tuple(opened), tuple(unknown), tuple(forged))


def together(openings: Sequence[Opening]) -> Opening:
    """Of several captures."""
    return Opening(
        tuple(item for opening in openings for item in opening.opened),
        tuple(item for opening in openings for item in opening.unknown),
        tuple(item for opening in openings for item in opening.forged),
    )


def is_ike(packet: bytes, parsed: Header) -> bool:
    """By its ports, which no fragment has. ESP in UDP is taken for it."""
    if parsed.protocol != IPPROTO_UDP or parsed.fragment:
        return False
    ports = struct.unpack_from(">HH", packet, parsed.header_bytes)
    return set(ports) <= IKE_PORTS


def clear_packets(frames: Iterable[Frame], protected: Sequence[IpNetwork]) -> list[str]:
    """IP packets from or to the protected networks that are not inside ESP, in words. IKE is no such: MOBIKE tries it
    from every address of a gateway.
    """
    found = []
    for frame in frames:
        packet = frame.ip
        if frame.outgoing or packet is None:
            continue
        parsed = header(packet)
        if parsed.protocol == IPPROTO_ESP or is_ike(packet, parsed):
            continue
        if any(address in network for network in protected for address in (parsed.source, parsed.destination)):
            found.append(f"{parsed.source} -> {parsed.destination} protocol {parsed.protocol}")
    return found


def ip_packets(frames: Iterable[Frame], *, outgoing: bool) -> Counter[bytes]:
    """The IP packets that left (or came in by) an interface, hop counts blanked."""
    return Counter(
        without_hops(packet) for frame in frames if frame.outgoing is outgoing and (packet := frame.ip) is not None
    )


def not_among(inner: Iterable[bytes], reference: Counter[bytes]) -> list[str]:
    """Inner packets that the reference does not have (as often), in words."""
    excess = Counter(without_hops(packet) for packet in inner)
    excess.subtract(reference)
    return [
        f"{header(packet).source} -> {header(packet).destination} {len(packet)} bytes"
        for packet, count in excess.items()
        for _ in range(max(count, 0))
    ]


def count_by_sa(packets: Iterable[EspPacket]) -> Counter[str]:
    """Packets by "destination/spi", as the gateway's counters name an SA."""
    return Counter(f"{packet.destination}/{packet.spi:08x}" for packet in packets)
