"""Frames as they leave: translated, or as an answer to who sent them."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from tests.reference.checksums import checksum, finish, header_checksum, pseudo_header
from tests.reference.packets import ACK, FIN, ICMP, ICMP6, RST, SYN, TCP, UDP, Ethernet, Inner, Packet

TTL = 64
QUOTED = 8
"""Bytes of a packet behind its IPv4 header that an error quotes (RFC 792)."""
QUOTED6 = 1280 - 40 - 8
"""Bytes of an IPv6 packet: no error exceeds the least MTU (RFC 4443, 2.4)."""
MSS_OPTION = 2


@dataclass(frozen=True, slots=True)
class Becomes:
    """What a packet's addresses and ports turn into."""

    src: bytes
    dst: bytes
    sport: int
    dport: int


def translate(packet: Packet, new: Becomes, mss: int, *, partial: bool) -> bytes:
    """Addresses, ports or identifier, a lower MSS (0: as it is), checksums."""
    frame = bytearray(packet.frame)
    put_addresses(frame, packet.family, packet.l3, new.src, new.dst)
    if not packet.later_fragment:
        if packet.protocol in (TCP, UDP):
            struct.pack_into("!HH", frame, packet.l4, new.sport, new.dport)
        elif packet.is_query:
            struct.pack_into("!H", frame, packet.l4 + 4, new.sport)
        if mss and packet.is_tcp and packet.flags & SYN:
            lower_mss(packet, frame, mss)
    finish(packet, frame, partial=partial)
    return bytes(frame)


def put_addresses(frame: bytearray, family: int, l3: int, src: bytes, dst: bytes) -> None:
    if family == 4:
        frame[l3 + 12 : l3 + 20] = src[12:] + dst[12:]
    else:
        frame[l3 + 8 : l3 + 40] = src + dst


def lower_mss(packet: Packet, frame: bytearray, mss: int) -> None:
    """The first MSS option of a sound list of options."""
    at = packet.l4 + 20
    end = min(packet.l4 + (frame[packet.l4 + 12] >> 4) * 4, packet.end)
    while at < end and frame[at]:
        if frame[at] == 1:
            at += 1
            continue
        length = frame[at + 1] if at + 1 < end else 0
        if length < 2 or at + length > end:
            return
        if frame[at] == MSS_OPTION and length == 4:
            struct.pack_into("!H", frame, at + 2, min(mss, struct.unpack_from("!H", frame, at + 2)[0]))
            return
        at += length


def translate_error(packet: Packet, inner: Inner, new_src: bytes, new_dst: bytes, quoted: Becomes) -> bytes:
    """An ICMP error and what it quotes. The checksum of the quoted L4 header stays as it is."""
    frame = bytearray(packet.frame)
    put_addresses(frame, packet.family, packet.l3, new_src, new_dst)
    put_addresses(frame, packet.family, inner.l3, quoted.src, quoted.dst)
    if inner.protocol in (TCP, UDP) and not inner.later:
        struct.pack_into("!HH", frame, inner.l4, quoted.sport, quoted.dport)
    elif inner.is_query:
        struct.pack_into("!H", frame, inner.l4 + 4, quoted.sport)
    if packet.family == 4:
        header_checksum(packet.frame, frame, inner.l3)
    finish(packet, frame, partial=False)
    return bytes(frame)


def send(frame: bytes, ethernet: Ethernet, vid: int, smac: bytes, dmac: bytes) -> bytes:
    """As it goes out by a port: TTL lowered, MACs, the port's tag or none."""
    packet = bytearray(frame[ethernet.l3 :])
    before = bytes(packet)
    if ethernet.ethertype == 0x0800:
        packet[8] -= 1
        header_checksum(before, packet, 0)
    else:
        packet[7] -= 1
    tag = struct.pack("!HH", 0x8100, vid) if vid else b""
    return dmac + smac + tag + struct.pack("!H", ethernet.ethertype) + bytes(packet)


def _link_header(packet: Packet) -> bytes:
    """Back where it came from, through the same tag."""
    return packet.frame[6:12] + packet.frame[:6] + packet.frame[12 : packet.l3]


def _ip(packet: Packet, src: bytes, protocol: int, payload: bytes) -> bytes:
    if packet.family == 6:
        return struct.pack("!IHBB16s16s", 6 << 28, len(payload), protocol, TTL, src, packet.src) + payload
    addresses = src[12:] + packet.src[12:]
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 0, 0x4000, TTL, protocol, 0)
    check = struct.pack("!H", checksum(head + addresses))
    return head[:10] + check + addresses + payload


def reset(packet: Packet) -> bytes:
    """The TCP RST that answers a segment (RFC 9293, 3.5.2)."""
    flags, seq, ack = RST, packet.ack, 0
    if not packet.flags & ACK:
        header = (packet.frame[packet.l4 + 12] >> 4) * 4
        data = max(packet.end - packet.l4 - header, 0)
        flags, seq = RST | ACK, 0
        ack = (packet.seq + data + bool(packet.flags & SYN) + bool(packet.flags & FIN)) & 0xFFFFFFFF
    tcp = struct.pack("!HHIIBBHHH", packet.dport, packet.sport, seq, ack, 0x50, flags, 0, 0, 0)
    check = checksum(pseudo_header(packet.family, packet.dst, packet.src, TCP, len(tcp)) + tcp)
    tcp = tcp[:16] + struct.pack("!H", check) + tcp[18:]
    return _link_header(packet) + _ip(packet, packet.dst, TCP, tcp)


def icmp_error(packet: Packet, source: bytes, kind: int, code: int, mtu: int = 0) -> bytes:
    """The ICMP error about a packet: its IPv4 header with options and eight bytes, or what fits of an IPv6 packet."""
    length = packet.l4 - packet.l3 + QUOTED if packet.family == 4 else QUOTED6
    quoted = packet.frame[packet.l3 : min(packet.l3 + length, packet.end)]
    body = struct.pack("!BBHI", kind, code, 0, mtu) + quoted
    protocol, covered = ICMP, body
    if packet.family == 6:
        protocol = ICMP6
        covered = pseudo_header(6, source, packet.src, ICMP6, len(body)) + body
    body = body[:2] + struct.pack("!H", checksum(covered)) + body[4:]
    return _link_header(packet) + _ip(packet, source, protocol, body)
