"""IP packets: what captured ones say, as far as a firewall's checks ask, and forged ones. Pure."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from ipsec_gw.lab.capture import ETHERNET_BYTES, IPPROTO_ICMP, IPPROTO_TCP, IPPROTO_UDP, Frame
from ipsec_gw.lab.traffic import checksum

IPPROTO_FRAGMENT, IPPROTO_ICMPV6 = 44, 58
IPV6_BYTES = 40


@dataclass(frozen=True, slots=True)
class Packet:
    """An IP packet; ``payload`` follows its header (for a later fragment: data). ``fragment`` is true for any."""

    source: IPv4Address | IPv6Address
    destination: IPv4Address | IPv6Address
    protocol: int
    fragment: bool
    payload: bytes

    @property
    def destination_port(self) -> int | None:
        """Of TCP and UDP, if it is there."""
        if self.protocol not in (IPPROTO_TCP, IPPROTO_UDP) or self.fragment or len(self.payload) < 4:
            return None
        (port,) = struct.unpack_from(">H", self.payload, 2)
        return int(port)


@dataclass(frozen=True, slots=True)
class TooBig:
    """An ICMP error that tells a smaller MTU: who told it, and about a packet from whom to whom."""

    teller: IPv4Address | IPv6Address
    mtu: int
    source: IPv4Address | IPv6Address
    destination: IPv4Address | IPv6Address

    def __str__(self) -> str:
        return f"{self.mtu} from {self.teller}, about {self.source} -> {self.destination}"


def packet_of(frame: Frame) -> Packet | None:
    """The IP packet of a frame, or None."""
    kind = frame.data[12:14]
    return ip_packet(frame.data[ETHERNET_BYTES:]) if kind in (b"\x08\x00", b"\x86\xdd") else None


def ip_packet(data: bytes) -> Packet | None:
    """Parse an IP packet, which may be cut short behind its header, or None."""
    if len(data) >= 20 and data[0] >> 4 == 4:
        (offset_flags,) = struct.unpack_from(">H", data, 6)
        payload = data[(data[0] & 0xF) * 4 :]
        return Packet(ip_address(data[12:16]), ip_address(data[16:20]), data[9], bool(offset_flags & 0x3FFF), payload)
    if len(data) >= IPV6_BYTES and data[0] >> 4 == 6:
        fragment = data[6] == IPPROTO_FRAGMENT
        protocol, payload = (data[40], data[48:]) if fragment and len(data) >= 48 else (data[6], data[40:])
        return Packet(ip_address(data[8:24]), ip_address(data[24:40]), protocol, fragment, payload)
    return None


def too_big(packet: Packet) -> TooBig | None:
    """Fragmentation needed (RFC 1191) or Packet Too Big (RFC 4443), or None for anything else."""
    kind = packet.payload[:2]
    if packet.protocol == IPPROTO_ICMP and kind == b"\x03\x04":
        (mtu,) = struct.unpack_from(">H", packet.payload, 6)
    elif packet.protocol == IPPROTO_ICMPV6 and kind == b"\x02\x00":
        (mtu,) = struct.unpack_from(">I", packet.payload, 4)
    else:
        return None
    about = ip_packet(packet.payload[8:])
    return TooBig(packet.source, mtu, about.source, about.destination) if about else None


Address = IPv4Address | IPv6Address
IPV4, IPV6 = struct.Struct(">BBHHHBBH4s4s"), struct.Struct(">IHBB16s16s")
DONT_FRAGMENT = 0x4000


def ipv4(source: Address, destination: Address, protocol: int, payload: bytes, fragment: int = DONT_FRAGMENT) -> bytes:
    """An IPv4 packet; ``fragment`` holds flags and offset (in units of 8 bytes)."""
    length, ends = IPV4.size + len(payload), (source.packed, destination.packed)
    bare = IPV4.pack(0x45, 0, length, 1, fragment, 64, protocol, 0, *ends)
    return IPV4.pack(0x45, 0, length, 1, fragment, 64, protocol, checksum(bare), *ends) + payload


def ipv6(source: Address, destination: Address, protocol: int, payload: bytes) -> bytes:
    """An IPv6 packet."""
    return IPV6.pack(6 << 28, len(payload), protocol, 64, source.packed, destination.packed) + payload


def udp4(source: Address, source_port: int, destination: Address, destination_port: int, data: bytes) -> bytes:
    """A UDP packet in IPv4, with its checksum."""
    bare = struct.pack(">HHHH", source_port, destination_port, 8 + len(data), 0) + data
    return ipv4(source, destination, IPPROTO_UDP, _summed(source, destination, IPPROTO_UDP, bare, 6))


def tcp4(source: Address, source_port: int, destination: Address, destination_port: int, flags: int) -> bytes:
    """A TCP segment without data in IPv4, with its checksum."""
    return ipv4(source, destination, IPPROTO_TCP, _segment(source, source_port, destination, destination_port, flags))


def tcp6(source: Address, source_port: int, destination: Address, destination_port: int, flags: int) -> bytes:
    """The same in IPv6."""
    return ipv6(source, destination, IPPROTO_TCP, _segment(source, source_port, destination, destination_port, flags))


def icmp4(source: Address, destination: Address, kind: int, code: int, rest: bytes) -> bytes:
    """An ICMP message in IPv4; ``rest`` follows its checksum."""
    head = struct.pack(">BB", kind, code)
    total = checksum(head + b"\0\0" + rest)
    return ipv4(source, destination, IPPROTO_ICMP, head + struct.pack(">H", total) + rest)


def is_syn(packet: Packet, port: int) -> bool:
    """Whether it asks for a TCP connection to a port."""
    return packet.protocol == IPPROTO_TCP and packet.destination_port == port and packet.payload[13] & 0x17 == 0x02


def intact(packet: Packet) -> bool:
    """Whether the checksum of a whole TCP, UDP or ICMPv6 packet is right."""
    return checksum(_pseudo(packet.source, packet.destination, packet.protocol, packet.payload) + packet.payload) == 0


def _segment(source: Address, source_port: int, destination: Address, destination_port: int, flags: int) -> bytes:
    bare = struct.pack(">HHIIBBHHH", source_port, destination_port, 1, 1, 0x50, flags, 65535, 0, 0)
    return _summed(source, destination, IPPROTO_TCP, bare, 16)


def _pseudo(source: Address, destination: Address, protocol: int, payload: bytes) -> bytes:
    """What the pseudo headers of both families sum up to (RFC 9293 3.1, RFC 8200 8.1)."""
    return source.packed + destination.packed + struct.pack(">HH", protocol, len(payload))


def _summed(source: Address, destination: Address, protocol: int, bare: bytes, at: int) -> bytes:
    total = checksum(_pseudo(source, destination, protocol, bare) + bare) or 0xFFFF
    return bare[:at] + struct.pack(">H", total) + bare[at + 2 :]
