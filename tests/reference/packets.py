"""Bytes to packets: Ethernet, one VLAN tag, IPv4 or IPv6 with extension headers, and what the firewall reads of L4."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import NamedTuple

from xdp_steer.reasons import Reason

ICMP, TCP, UDP, ESP, AH, ICMP6 = 1, 6, 17, 50, 51, 58
FIN, SYN, RST, ACK = 1, 2, 4, 16

ETH_IP, ETH_IP6 = 0x0800, 0x86DD
ETH_TAGS = (0x8100, 0x88A8)
V4_MAPPED = bytes(10) + b"\xff\xff"

HOP_BY_HOP, ROUTING, FRAGMENT, OPTIONS = 0, 43, 44, 60
MAX_EXTENSIONS = 6

QUERIES = {4: (0, 8, 13, 14), 6: (128, 129)}
"""ICMP types whose identifier names a flow."""
REQUESTS = {4: (8, 13), 6: (128,)}
"""Those that may begin one."""
ERRORS = {4: (3, 4, 5, 11, 12), 6: (1, 2, 3, 4)}


class Malformed(Exception):
    """Headers that contradict themselves or end early."""


class Key(NamedTuple):
    """``struct flow_key``: addresses of 16 bytes (IPv4 v4-mapped), ports in host order, the number of the zone."""

    src: bytes
    dst: bytes
    sport: int
    dport: int
    protocol: int
    zone: int


@dataclass(frozen=True, slots=True)
class Ethernet:
    """``l3`` is the offset of the IP header, ``vid`` 0 without a tag or with a priority tag."""

    l3: int
    vid: int
    tagged: bool
    ethertype: int


@dataclass(slots=True)
class Packet:
    """An IP packet. Offsets count from the start of the frame, lengths are in bytes."""

    frame: bytes
    l3: int
    family: int
    src: bytes
    dst: bytes
    ttl: int
    length: int
    protocol: int
    l4: int
    dont_fragment: bool = False
    fragment_id: int = 0
    fragment_protocol: int = 0
    first_fragment: bool = False
    later_fragment: bool = False
    sport: int = 0
    dport: int = 0
    code16: int = 0
    flags: int = 0
    seq: int = 0
    ack: int = 0

    @property
    def end(self) -> int:
        """Where the IP packet ends; Ethernet padding follows."""
        return self.l3 + self.length

    @property
    def is_icmp(self) -> bool:
        return self.protocol == (ICMP if self.family == 4 else ICMP6)

    @property
    def icmp_type(self) -> int:
        return self.code16 >> 8

    @property
    def is_error(self) -> bool:
        return self.is_icmp and not self.later_fragment and self.icmp_type in ERRORS[self.family]

    @property
    def is_query(self) -> bool:
        return self.is_icmp and not self.later_fragment and self.icmp_type in QUERIES[self.family]

    @property
    def has_ports(self) -> bool:
        """A port or an identifier that NAT may choose."""
        return self.protocol in (TCP, UDP) or self.is_query

    @property
    def is_tcp(self) -> bool:
        return self.protocol == TCP and not self.later_fragment

    def key(self, zone: int) -> Key:
        return Key(self.src, self.dst, self.sport, self.dport, self.protocol, zone)


def mapped(packed: bytes) -> bytes:
    """Of four or sixteen bytes: the sixteen that maps hold."""
    return packed if len(packed) == 16 else V4_MAPPED + packed


def is_multicast(address: bytes) -> bool:
    """Multicast, or the limited broadcast address."""
    if address.startswith(V4_MAPPED):
        return address[12] & 0xF0 == 0xE0 or address[12:] == b"\xff\xff\xff\xff"
    return address[0] == 0xFF


def is_martian(address: bytes) -> bool:
    """No source of a packet on a wire."""
    loopback = bytes(15) + b"\1", V4_MAPPED + b"\x7f"
    return is_multicast(address) or is_unspecified(address) or address.startswith(loopback)


def is_unspecified(address: bytes) -> bool:
    return address in (bytes(16), V4_MAPPED + bytes(4))


def parse_ethernet(frame: bytes) -> Ethernet | None:
    """None for what is not IP under at most one tag. A tag that is cut off has no VLAN, and nothing sound behind it."""
    ethertype = struct.unpack_from("!H", frame, 12)[0]
    if ethertype not in ETH_TAGS:
        return Ethernet(14, 0, False, ethertype) if ethertype in (ETH_IP, ETH_IP6) else None
    if len(frame) < 18:
        return Ethernet(len(frame), 0, True, ETH_IP)
    tci, ethertype = struct.unpack_from("!HH", frame, 14)
    return Ethernet(18, tci & 0x0FFF, True, ethertype) if ethertype in (ETH_IP, ETH_IP6) else None


def parse_ip(frame: bytes, ethernet: Ethernet) -> Packet:
    """IP headers, without L4. Raises Malformed."""
    return _ipv4(frame, ethernet.l3) if ethernet.ethertype == ETH_IP else _ipv6(frame, ethernet.l3)


def _ipv4(frame: bytes, l3: int) -> Packet:
    if len(frame) < l3 + 20:
        raise Malformed
    first, _, length, identification, offset, ttl, protocol, _, src, dst = struct.unpack_from(
        "!BBHHHBBH4s4s", frame, l3
    )
    header = (first & 15) * 4
    if first >> 4 != 4 or header < 20 or length < header or l3 + length > len(frame):
        raise Malformed
    later = offset & 0x1FFF != 0
    return Packet(
        frame=frame,
        l3=l3,
        family=4,
        src=mapped(src),
        dst=mapped(dst),
        ttl=ttl,
        length=length,
        protocol=protocol,
        l4=l3 + header,
        dont_fragment=bool(offset & 0x4000),
        fragment_id=identification,
        fragment_protocol=protocol,
        first_fragment=bool(offset & 0x2000) and not later,
        later_fragment=later,
    )


def _ipv6(frame: bytes, l3: int) -> Packet:
    if len(frame) < l3 + 40:
        raise Malformed
    word, payload, protocol, ttl, src, dst = struct.unpack_from("!IHBB16s16s", frame, l3)
    if word >> 28 != 6 or l3 + 40 + payload > len(frame):
        raise Malformed
    if src.startswith(V4_MAPPED) or dst.startswith(V4_MAPPED):
        raise Malformed  # IPv4 in disguise: keys could not tell them apart
    packet = Packet(frame, l3, 6, src, dst, ttl, 40 + payload, protocol, l3 + 40)
    for _ in range(MAX_EXTENSIONS):
        if packet.later_fragment or packet.protocol not in (HOP_BY_HOP, ROUTING, FRAGMENT, OPTIONS):
            return packet
        _extension(packet)
    if not packet.later_fragment and packet.protocol in (HOP_BY_HOP, ROUTING, FRAGMENT, OPTIONS):
        raise Malformed
    return packet


def _extension(packet: Packet) -> None:
    if packet.l4 + 8 > packet.end:
        raise Malformed
    following, units, offset, identification = struct.unpack_from("!BBHI", packet.frame, packet.l4)
    length = 8
    if packet.protocol == FRAGMENT:
        packet.fragment_id = identification
        packet.fragment_protocol = following
        packet.later_fragment = offset & 0xFFF8 != 0
        packet.first_fragment = bool(offset & 1) and not packet.later_fragment
    else:
        length = (units + 1) * 8
    if packet.l4 + length > packet.end:
        raise Malformed
    packet.protocol = following
    packet.l4 += length


def parse_l4(packet: Packet) -> None:
    """Ports, ICMP type and TCP flags of a packet that is no later fragment. Raises Malformed."""
    needed = {TCP: 20, UDP: 8}.get(packet.protocol, 8 if packet.is_icmp else 0)
    if packet.l4 + needed > packet.end:
        raise Malformed
    if packet.protocol in (TCP, UDP):
        packet.sport, packet.dport = struct.unpack_from("!HH", packet.frame, packet.l4)
        packet.code16 = packet.dport
    if packet.protocol == TCP:
        packet.seq, packet.ack, _, packet.flags = struct.unpack_from("!IIBB", packet.frame, packet.l4 + 4)
    if packet.is_icmp:
        packet.code16, _, identifier = struct.unpack_from("!HHH", packet.frame, packet.l4)
        if packet.icmp_type in QUERIES[packet.family]:
            packet.sport = packet.dport = identifier


@dataclass(frozen=True, slots=True)
class Inner:
    """What an ICMP error quotes. ``l3`` and ``l4`` are offsets in the frame of the error.

    ``later``: a fragment that is not the first, whose ports nobody can tell.
    """

    l3: int
    l4: int
    src: bytes
    dst: bytes
    protocol: int
    later: bool
    fragment_id: int
    fragment_protocol: int
    sport: int
    dport: int
    is_query: bool


def parse_inner(packet: Packet) -> Inner:
    """The packet that an ICMP error is about, cut off behind what names its flow or later. Raises Malformed."""
    inner = _quoted_ip(packet)
    if inner.later_fragment:
        pass
    elif inner.protocol in (TCP, UDP):
        inner.sport, inner.dport = struct.unpack("!HH", _beginning(inner, 4))
    elif inner.is_icmp:
        kind, identifier = struct.unpack("!B3xH", _beginning(inner, 6))
        inner.code16 = kind << 8
        inner.sport = inner.dport = identifier if inner.is_query else 0
    return Inner(
        inner.l3,
        inner.l4,
        inner.src,
        inner.dst,
        inner.protocol,
        inner.later_fragment,
        inner.fragment_id,
        inner.fragment_protocol,
        inner.sport,
        inner.dport,
        inner.is_query,
    )


def _quoted_ip(packet: Packet) -> Packet:
    """The IP headers of a quote. It ends where the error ends, whatever its own length says."""
    frame, l3 = packet.frame[: packet.end], packet.l4 + 8
    header = 20 if packet.family == 4 else 40
    if l3 + header > len(frame) or frame[l3] >> 4 != packet.family:
        raise Malformed
    whole = bytearray(frame)
    if packet.family == 4:
        struct.pack_into("!H", whole, l3 + 2, len(frame) - l3)
        return _ipv4(bytes(whole), l3)
    struct.pack_into("!H", whole, l3 + 4, len(frame) - l3 - 40)
    return _ipv6(bytes(whole), l3)


def _beginning(inner: Packet, octets: int) -> bytes:
    """Of the L4 header."""
    if inner.l4 + octets > inner.end:
        raise Malformed
    return inner.frame[inner.l4 : inner.l4 + octets]


class Verdict(Exception):
    """Ends a packet's way: the action, the reason, and the frame if it changed.

    ``any_identification``: that of its IPv4 header may be another one.
    """

    def __init__(
        self, action: str, reason: Reason, frame: bytes | None = None, *, any_identification: bool = False
    ) -> None:
        super().__init__(action, reason.name)
        self.action = action
        self.reason = reason
        self.frame = frame
        self.any_identification = any_identification


def drop(reason: Reason) -> Verdict:
    return Verdict("DROP", reason)
