"""Internet checksums, always over everything they cover.

A checksum that was right stays right; one that was wrong stays wrong by as much. A *partial* checksum is what a kernel
leaves to hardware: the sum of the pseudo-header alone, not complemented.
"""

from __future__ import annotations

import struct

from tests.reference.packets import ICMP, ICMP6, TCP, UDP, Packet

CHECKSUM_AT = {TCP: 16, UDP: 6, ICMP: 2, ICMP6: 2}
"""Where the checksum is in the L4 header."""


def add(data: bytes) -> int:
    """One's complement sum of 16-bit words, 0 to 0xffff."""
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def checksum(data: bytes) -> int:
    return ~add(data) & 0xFFFF


def moved(field: int, before: int, after: int) -> int:
    """A checksum field after the sum of what it covers went from ``before`` to ``after``."""
    total = (~field & 0xFFFF) + (~before & 0xFFFF) + after
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def pseudo_header(family: int, src: bytes, dst: bytes, protocol: int, length: int) -> bytes:
    """What L4 checksums cover of IP. Addresses have 16 bytes."""
    if family == 4:
        return struct.pack("!4s4sBBH", src[12:], dst[12:], 0, protocol, length)
    return struct.pack("!16s16sIHBB", src, dst, length, 0, 0, protocol)


def covered(packet: Packet, frame: bytes) -> bytes:
    """What the L4 checksum of a packet covers, if ``frame`` has the same shape as the packet's own."""
    at = packet.l4 + CHECKSUM_AT[packet.protocol]
    payload = frame[packet.l4 : at] + b"\0\0" + frame[at + 2 : packet.end]
    if packet.protocol == ICMP:
        return payload
    return addresses_of(packet, frame) + payload


def addresses_of(packet: Packet, frame: bytes) -> bytes:
    """The pseudo-header."""
    if packet.family == 4:
        src, dst = (bytes(12) + frame[packet.l3 + at : packet.l3 + at + 4] for at in (12, 16))
    else:
        src, dst = (frame[packet.l3 + at : packet.l3 + at + 16] for at in (8, 24))
    return pseudo_header(packet.family, src, dst, packet.protocol, packet.end - packet.l4)


def has_checksum(packet: Packet) -> bool:
    """TCP, UDP with one (zero is none, RFC 6936 for IPv6), ICMP of the packet's family."""
    if packet.later_fragment:
        return False
    if packet.protocol == UDP:
        return packet.frame[packet.l4 + 6 : packet.l4 + 8] != b"\0\0"
    return packet.protocol in (TCP, UDP) or packet.is_icmp


def is_partial(packet: Packet) -> bool:
    """The field holds the sum of the pseudo-header, as transmit offload leaves it."""
    if packet.later_fragment or packet.protocol not in (TCP, UDP):
        return False
    at = packet.l4 + CHECKSUM_AT[packet.protocol]
    field: int = struct.unpack_from("!H", packet.frame, at)[0]
    return field == add(addresses_of(packet, packet.frame))


def finish(packet: Packet, frame: bytearray, *, partial: bool) -> None:
    """Bring the L4 checksum and the IPv4 header checksum of a rewritten frame up to date."""
    if has_checksum(packet) and covered(packet, packet.frame) != covered(packet, bytes(frame)):
        at = packet.l4 + CHECKSUM_AT[packet.protocol]
        field = struct.unpack_from("!H", packet.frame, at)[0]
        if partial:
            field = add(addresses_of(packet, bytes(frame)))
        else:
            field = moved(field, add(covered(packet, packet.frame)), add(covered(packet, bytes(frame))))
            if packet.protocol == UDP and field == 0:
                field = 0xFFFF
        struct.pack_into("!H", frame, at, field)
    if packet.family == 4:
        header_checksum(packet.frame, frame, packet.l3)


def header_checksum(before: bytes, frame: bytearray, l3: int) -> None:
    """Bring the checksum of the IPv4 header at ``l3`` up to date."""
    end = l3 + (before[l3] & 15) * 4
    field = struct.unpack_from("!H", before, l3 + 10)[0]
    old = before[l3 : l3 + 10] + before[l3 + 12 : end]
    new = bytes(frame[l3 : l3 + 10] + frame[l3 + 12 : end])
    struct.pack_into("!H", frame, l3 + 10, moved(field, add(old), add(new)))
