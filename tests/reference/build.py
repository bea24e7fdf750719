"""Frames from fields, fast and with right checksums. Addresses have sixteen bytes, as in keys."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from tests.reference.checksums import add, checksum, pseudo_header
from tests.reference.packets import ICMP, ICMP6, TCP, UDP

MACS = bytes.fromhex("020000000001") + bytes.fromhex("0200000000ff")


@dataclass(frozen=True, slots=True)
class Tcp:
    """Header fields of a segment."""

    sport: int
    dport: int
    flags: int
    seq: int = 0
    ack: int = 0
    options: bytes = b""
    payload: bytes = b""


@dataclass(frozen=True, slots=True)
class Ip:
    """Header fields, IPv4 options and IPv6 extension headers (of ``first_extension``) included."""

    family: int
    src: bytes
    dst: bytes
    ttl: int = 64
    dont_fragment: bool = False
    identification: int = 0
    options: bytes = b""
    extensions: bytes = b""
    first_extension: int = 0
    dscp: int = 0


def tcp(ip: Ip, segment: Tcp) -> bytes:
    """The header is in whole words: options are padded with zeros."""
    options = segment.options + bytes(-len(segment.options) % 4)
    words = 5 + len(options) // 4
    fields = (segment.sport, segment.dport, segment.seq, segment.ack, words << 4, segment.flags, 0xFFFF, 0, 0)
    return finish(ip, TCP, struct.pack("!HHIIBBHHH", *fields) + options + segment.payload)


def udp(ip: Ip, sport: int, dport: int, payload: bytes = b"") -> bytes:
    return finish(ip, UDP, struct.pack("!HHHH", sport, dport, 8 + len(payload), 0) + payload)


def icmp(ip: Ip, kind: int, code: int, rest: int, payload: bytes = b"") -> bytes:
    """``rest`` is the word behind the checksum."""
    return finish(ip, ICMP if ip.family == 4 else ICMP6, struct.pack("!BBHI", kind, code, 0, rest) + payload)


def finish(ip: Ip, protocol: int, l4: bytes) -> bytes:
    """The L4 header with its checksum."""
    at = {TCP: 16, UDP: 6}.get(protocol, 2)
    pseudo = b"" if protocol == ICMP else pseudo_header(ip.family, ip.src, ip.dst, protocol, len(l4))
    value = checksum(pseudo + l4)
    if protocol == UDP and not value:
        value = 0xFFFF
    return l4[:at] + struct.pack("!H", value) + l4[at + 2 :]


def with_partial(ip: Ip, protocol: int, l4: bytes) -> bytes:
    """The same with the sum of the pseudo-header alone, as the kernel leaves it to hardware."""
    at = 16 if protocol == TCP else 6
    value = add(pseudo_header(ip.family, ip.src, ip.dst, protocol, len(l4)))
    return l4[:at] + struct.pack("!H", value) + l4[at + 2 :]


def packet(ip: Ip, protocol: int, l4: bytes, *, more: bool = False, offset: int = 0) -> bytes:
    """The IP packet; ``more`` and ``offset`` (bytes) make it an IPv4 fragment."""
    if ip.family == 6:
        first = ip.first_extension if ip.extensions else protocol
        payload = ip.extensions + l4
        return (
            struct.pack("!IHBB16s16s", 6 << 28 | ip.dscp << 22, len(payload), first, ip.ttl, ip.src, ip.dst) + payload
        )
    options = ip.options + bytes(-len(ip.options) % 4)
    length = 20 + len(options) + len(l4)
    place = ip.dont_fragment << 14 | more << 13 | offset // 8
    head = struct.pack(
        "!BBHHHBBH", 0x45 + len(options) // 4, ip.dscp << 2, length, ip.identification, place, ip.ttl, protocol, 0
    )
    rest = ip.src[12:] + ip.dst[12:] + options
    return head[:10] + struct.pack("!H", checksum(head + rest)) + rest + l4


def extension(following: int, units: int = 0) -> bytes:
    """An IPv6 extension header of 8 bytes and ``units`` more of that size, padded (PadN)."""
    return struct.pack("!BBBB", following, units, 1, 4 + units * 8) + bytes(4 + units * 8)


def fragment_header(following: int, offset: int, more: bool, identification: int) -> bytes:
    return struct.pack("!BBHI", following, 0, offset | more, identification)


def frame(family: int, ip_packet: bytes, vid: int | None = None, tpid: int = 0x8100) -> bytes:
    """Ethernet; ``vid`` 0 makes a priority tag."""
    ethertype = struct.pack("!H", 0x0800 if family == 4 else 0x86DD)
    tag = b"" if vid is None else struct.pack("!HH", tpid, vid | 5 << 13)
    return MACS + tag + ethertype + ip_packet
