"""Ethernet, IPv4 and IPv6 headers: just enough to take ESP apart and put it together.

Addresses are packed bytes (4 or 16, network order), which makes them hashable keys for both families.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

from ipsec_gw.engines.soft.drops import Dropped, DropReason

ETHERTYPE_IPV4 = 0x0800
ETHERTYPE_IPV6 = 0x86DD
ETHERTYPE_VLAN = 0x8100
_ETHERTYPES_VLAN = frozenset((ETHERTYPE_VLAN, 0x88A8))  # 802.1Q, 802.1ad
_VLAN_ID_MASK = 0x0FFF
_ETHERNET_BYTES = 14
_VLAN_BYTES = 4
TAGGED_BYTES = _ETHERNET_BYTES + _VLAN_BYTES
"""The header of a frame with one VLAN tag."""

PROTOCOL_IPIP = 4
PROTOCOL_UDP = 17
PROTOCOL_IPV6 = 41
PROTOCOL_GRE = 47
PROTOCOL_ESP = 50
PROTOCOL_NONE = 59
_PROTOCOL_IPV6_FRAGMENT = 44

_IPV4_BYTES = 20
_IPV6_BYTES = 40
UDP_BYTES = 8
_IPV4_DF = 0x4000
_IPV4_MF = 0x2000
_FRAGMENT_UNIT = 8  # bytes: what offsets are counted in
_IPV4_FRAGMENT = 0x3FFF  # more-fragments flag and offset
_OUTER_TTL = 64

_IPV4 = struct.Struct("!BBHHHBBH4s4s")
_IPV6 = struct.Struct("!IHBB16s16s")
_PORTS = struct.Struct("!HH")
_UDP = struct.Struct("!HHHH")

DSCP_MASK, ECN_MASK = 0xFC, 0x03
"""The parts of a traffic class (RFC 2474 §3, RFC 3168 §5)."""

_NOT_ECT, _ECT1, _ECT0, _CE = 0, 1, 2, 3


@dataclass(frozen=True, slots=True)
class IpPacket:
    """An IP packet whose header holds; ``data`` is the whole packet and nothing behind it.

    ``protocol`` is what follows the (fixed, for IPv6) header, ``traffic_class`` DSCP and ECN. ``dont_fragment`` is
    always true of IPv6. ``fragment`` is true of first fragments too.
    """

    data: bytes
    header_bytes: int
    protocol: int
    source: bytes
    destination: bytes
    traffic_class: int
    dont_fragment: bool
    fragment: bool

    @property
    def payload(self) -> bytes:
        """What follows the header."""
        return self.data[self.header_bytes :]

    @property
    def ports(self) -> tuple[int, int]:
        """Source and destination port of what has ports; 0 and 0 of a fragment."""
        if self.fragment or len(self.data) < self.header_bytes + _PORTS.size:
            return 0, 0
        source, destination = _PORTS.unpack_from(self.data, self.header_bytes)
        return source, destination

    @property
    def encapsulated_as(self) -> int:
        """The protocol number under which this packet travels inside ESP."""
        return PROTOCOL_IPIP if len(self.source) == 4 else PROTOCOL_IPV6


@dataclass(frozen=True, slots=True)
class OuterHeader:
    """What an outer IP header is built from: packed addresses, traffic class, DF (IPv4 only), IPv4 identification."""

    source: bytes
    destination: bytes
    protocol: int
    traffic_class: int
    dont_fragment: bool
    identification: int


def parse_mac(text: str) -> bytes:
    """Six bytes of a MAC in colon notation. Raises ValueError."""
    if not re.fullmatch(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}", text):
        raise ValueError(f"not a MAC address: {text!r}")
    return bytes.fromhex(text.replace(":", ""))


def parse_frame(frame: bytes) -> IpPacket:
    """The IP packet in an Ethernet frame with at most one VLAN tag. Raises Dropped (malformed, not_ip)."""
    if len(frame) < _ETHERNET_BYTES:
        raise Dropped(DropReason.MALFORMED)
    start = _ETHERNET_BYTES
    ethertype = int.from_bytes(frame[12:14], "big")
    if ethertype in _ETHERTYPES_VLAN:
        start += _VLAN_BYTES
        ethertype = int.from_bytes(frame[16:18], "big")  # a frame cut short gives 0, which is no IP
    if ethertype == ETHERTYPE_IPV4:
        return parse_ipv4(frame[start:])
    if ethertype == ETHERTYPE_IPV6:
        return parse_ipv6(frame[start:])
    raise Dropped(DropReason.NOT_IP)


def vlan_of(frame: bytes) -> int:
    """The VLAN ID of a frame's tag, 0 without one."""
    if int.from_bytes(frame[12:14], "big") not in _ETHERTYPES_VLAN:
        return 0
    return int.from_bytes(frame[14:16], "big") & _VLAN_ID_MASK


def vlan_tag(vlan: int) -> bytes:
    """The tag as it stands between addresses and EtherType; nothing for 0."""
    return struct.pack("!HH", ETHERTYPE_VLAN, vlan) if vlan else b""


def parse_ipv4(data: bytes) -> IpPacket:
    """An IPv4 packet, trailing bytes cut off. Raises Dropped (malformed), also for a wrong header checksum."""
    if len(data) < _IPV4_BYTES:
        raise Dropped(DropReason.MALFORMED)
    first, tos, total, _, fragmentation, _, protocol, _, source, destination = _IPV4.unpack_from(data)
    header_bytes = (first & 0x0F) * 4
    if first >> 4 != 4 or not _IPV4_BYTES <= header_bytes <= total <= len(data):
        raise Dropped(DropReason.MALFORMED)
    if checksum(data[:header_bytes]) != 0:
        raise Dropped(DropReason.MALFORMED)
    return IpPacket(
        data=data[:total],
        header_bytes=header_bytes,
        protocol=protocol,
        source=source,
        destination=destination,
        traffic_class=tos,
        dont_fragment=bool(fragmentation & _IPV4_DF),
        fragment=bool(fragmentation & _IPV4_FRAGMENT),
    )


def parse_ipv6(data: bytes) -> IpPacket:
    """An IPv6 packet, trailing bytes cut off. Raises Dropped (malformed). Extension headers stay in the payload."""
    if len(data) < _IPV6_BYTES:
        raise Dropped(DropReason.MALFORMED)
    first, payload_length, next_header, _, source, destination = _IPV6.unpack_from(data)
    total = _IPV6_BYTES + payload_length
    if first >> 28 != 6 or total > len(data):
        raise Dropped(DropReason.MALFORMED)
    return IpPacket(
        data=data[:total],
        header_bytes=_IPV6_BYTES,
        protocol=next_header,
        source=source,
        destination=destination,
        traffic_class=first >> 20 & 0xFF,
        dont_fragment=True,
        fragment=next_header == _PROTOCOL_IPV6_FRAGMENT,
    )


def parse_inner(protocol: int, data: bytes) -> IpPacket:
    """The packet inside of another one, whose header names it by this protocol, what trails it cut off. Raises Dropped
    (next_header, inner_malformed).
    """
    parse = _PARSERS.get(protocol)
    if parse is None:
        raise Dropped(DropReason.NEXT_HEADER)
    try:
        return parse(data)
    except Dropped:
        raise Dropped(DropReason.INNER_MALFORMED) from None


_PARSERS = {PROTOCOL_IPIP: parse_ipv4, PROTOCOL_IPV6: parse_ipv6}


def ethertype_of(address: bytes) -> bytes:
    """The EtherType, as on the wire, for packets of this address's family."""
    return (ETHERTYPE_IPV4 if len(address) == 4 else ETHERTYPE_IPV6).to_bytes(2, "big")


def ip_header_bytes(address: bytes) -> int:
    """Length of the header that :func:`build_outer` makes for this address's family."""
    return _IPV4_BYTES if len(address) == 4 else _IPV6_BYTES


def build_outer(outer: OuterHeader, payload_bytes: int) -> bytes:
    """An outer IPv4 or IPv6 header (TTL 64, no options, flow label 0) in front of so many bytes."""
    if len(outer.source) == 16:
        first = 6 << 28 | outer.traffic_class << 20
        return _IPV6.pack(first, payload_bytes, outer.protocol, _OUTER_TTL, outer.source, outer.destination)
    total = _IPV4_BYTES + payload_bytes
    flags = _IPV4_DF if outer.dont_fragment else 0
    fields = (0x45, outer.traffic_class, total, outer.identification, flags, _OUTER_TTL, outer.protocol)
    bare = _IPV4.pack(*fields, 0, outer.source, outer.destination)
    return _IPV4.pack(*fields, checksum(bare), outer.source, outer.destination)


def with_payload(packet: IpPacket, protocol: int, payload: bytes) -> bytes:
    """The packet's header in front of another payload: with its protocol and length."""
    header = bytearray(packet.data[: packet.header_bytes])
    if len(packet.source) == 16:
        struct.pack_into("!HB", header, 4, len(payload), protocol)
    else:
        struct.pack_into("!H", header, 2, len(header) + len(payload))
        header[9] = protocol
        header[10:12] = bytes(2)
        header[10:12] = checksum(bytes(header)).to_bytes(2, "big")
    return bytes(header) + payload


def fragments(packet: bytes, mtu: int) -> tuple[bytes, ...]:
    """An IPv4 packet of :func:`build_outer` as it is, or in pieces of at most ``mtu`` bytes (RFC 791, 3.2)."""
    if len(packet) <= mtu:
        return (packet,)
    header, payload = packet[:_IPV4_BYTES], packet[_IPV4_BYTES:]
    room = (mtu - _IPV4_BYTES) // _FRAGMENT_UNIT * _FRAGMENT_UNIT
    made = []
    for offset in range(0, len(payload), room):
        piece = payload[offset : offset + room]
        more = _IPV4_MF if offset + room < len(payload) else 0
        head = bytearray(header)
        struct.pack_into("!H", head, 2, _IPV4_BYTES + len(piece))
        struct.pack_into("!H", head, 6, more | offset // _FRAGMENT_UNIT)
        struct.pack_into("!H", head, 10, 0)
        struct.pack_into("!H", head, 10, checksum(bytes(head)))
        made.append(bytes(head) + piece)
    return tuple(made)


def parse_udp(data: bytes) -> bytes:
    """What a UDP datagram carries, trailing bytes cut off. Raises Dropped (malformed).

    The checksum is not looked at: it says nothing that the ICV of the ESP inside does not say (RFC 3948 §2.1).
    """
    if len(data) < UDP_BYTES:
        raise Dropped(DropReason.MALFORMED)
    length = _UDP.unpack_from(data)[2]
    if not UDP_BYTES <= length <= len(data):
        raise Dropped(DropReason.MALFORMED)
    return data[UDP_BYTES:length]


def build_udp(source_port: int, destination_port: int, payload_bytes: int) -> bytes:
    """A UDP header in front of so many bytes, with checksum 0 as RFC 3948 §2.1 has it over IPv4."""
    return _UDP.pack(source_port, destination_port, UDP_BYTES + payload_bytes, 0)


def checksum(data: bytes) -> int:
    """RFC 1071 over an even number of bytes; 0 over a header whose checksum is right."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def tunnel_mark(packet: IpPacket) -> int:
    """The ECN of a device's header around it, ``INET_ECN_encapsulate``: a mark of the way before is not one of the way
    to come.
    """
    mark = packet.traffic_class & ECN_MASK
    return _ECT0 if mark == _CE else mark


def congestion_mark(packet: IpPacket, outer_traffic_class: int) -> bytes:
    """The inner packet with the outer header's ECN merged in as RFC 6040 §4.2 (figure 4) has it.

    Raises Dropped (congestion) if the outer packet was marked and the inner one cannot carry the mark.
    """
    inner, outer = packet.traffic_class & ECN_MASK, outer_traffic_class & ECN_MASK
    if inner == _NOT_ECT and outer == _CE:
        raise Dropped(DropReason.CONGESTION)
    marked = _CE if outer == _CE else _ECT1 if (inner, outer) == (_ECT0, _ECT1) else inner
    return packet.data if marked == inner else _with_traffic_class(packet, packet.traffic_class ^ inner ^ marked)


def _with_traffic_class(packet: IpPacket, traffic_class: int) -> bytes:
    if len(packet.source) == 16:
        first = 6 << 28 | traffic_class << 20 | int.from_bytes(packet.data[:4], "big") & 0xFFFFF
        return first.to_bytes(4, "big") + packet.data[4:]
    header = bytearray(packet.data[: packet.header_bytes])
    header[1] = traffic_class
    header[10:12] = bytes(2)
    header[10:12] = checksum(bytes(header)).to_bytes(2, "big")
    return bytes(header) + packet.payload
