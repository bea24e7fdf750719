"""NAT64: packets, and ICMP errors with what they quote, made anew in the other family (RFC 7915)."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace

from tests.reference.checksums import add, addresses_of, checksum, has_checksum, moved, pseudo_header
from tests.reference.packets import (
    FRAGMENT,
    ICMP,
    ICMP6,
    ROUTING,
    TCP,
    UDP,
    V4_MAPPED,
    Inner,
    Malformed,
    Packet,
)
from tests.reference.rewrite import Becomes, lower_mss
from xdp_steer.reasons import Reason

ECHO = {128: 8, 129: 0, 8: 128, 0: 129}
MAY_FRAGMENT = 1260
LEAST_MTU6 = 1280
LARGEST_SUM = 9216
PLATEAUS = (32000, 17914, 8166, 4352, 2002, 1492)
SAME = dict.fromkeys(range(256))

UNREACHABLE_6 = {0: (1, 0), 1: (1, 0), 2: (4, 1), 3: (1, 4), 5: (1, 0), 6: (1, 0), 7: (1, 0), 8: (1, 0), 9: (1, 1)}
UNREACHABLE_6 |= {10: (1, 1), 11: (1, 0), 12: (1, 0), 13: (1, 1), 15: (1, 1)}
"""Codes of ICMP type 3 as type and code of ICMPv6; 4 is fragmentation needed."""
UNREACHABLE_4 = {0: 1, 1: 10, 2: 1, 3: 1, 4: 3}
"""Codes of ICMPv6 type 1 as those of ICMP type 3."""
POINTERS_6 = {0: 0, 1: 1, 2: 4, 3: 4, 8: 7, 9: 6, **dict.fromkeys(range(12, 16), 8), **dict.fromkeys(range(16, 20), 24)}
POINTERS_4 = {0: 0, 1: 1, 4: 2, 5: 2, 6: 9, 7: 8, **dict.fromkeys(range(8, 24), 12), **dict.fromkeys(range(24, 40), 16)}


class Untranslatable(Exception):
    """There is no such packet in the other family."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.name)
        self.reason = reason


class SourceRouted(Exception):
    """A source route that is not at its end; ``pointer`` is where an IPv6 header says so."""

    def __init__(self, pointer: int) -> None:
        super().__init__(pointer)
        self.pointer = pointer


@dataclass(frozen=True, slots=True)
class Crossed:
    """A frame in the other family and the length of its IP packet. ``may_fragment``: IPv4 without DF, or a fragment.

    ``any_identification``: that of the IPv4 header may be anything.
    """

    frame: bytes
    length: int
    may_fragment: bool = True
    any_identification: bool = False


@dataclass(frozen=True, slots=True)
class Carried:
    """What IP headers say, in terms of either family; ``offset`` in bytes. ``fragment``: there is a fragment header."""

    traffic_class: int
    hops: int
    protocol: int
    fragment: bool
    offset: int
    more: bool
    identification: int
    payload: int


def extract(address: bytes, bits: int) -> bytes:
    """The IPv4 address behind a prefix (RFC 6052 2.2), as in keys."""
    places = [place for place in range(bits // 8, 16) if place != 8 or bits == 96]
    return V4_MAPPED + bytes(address[place] for place in places[:4])


def embed(prefix: bytes, bits: int, address: bytes) -> bytes:
    """The other way round."""
    made = bytearray(prefix)
    places = [place for place in range(bits // 8, 16) if place != 8 or bits == 96]
    for place, octet in zip(places[:4], address[12:], strict=True):
        made[place] = octet
    return bytes(made)


def other_protocol(protocol: int) -> int:
    return {ICMP: ICMP6, ICMP6: ICMP}.get(protocol, protocol)


def other_identification(identification: int, family: int) -> int:
    """Of a fragment of ``family``, in the other one."""
    return identification & 0xFFFF if family == 6 else identification


def carried(packet: Packet) -> Carried:
    """Of a whole packet. Raises SourceRouted."""
    frame, l3 = packet.frame, packet.l3
    if packet.family == 4:
        if _source_routed(frame[l3 + 20 : packet.l4]):
            raise SourceRouted(0)
        return _carried4(frame, l3, packet.end - packet.l4)
    for kind, at in _chain(frame, l3):
        if kind == ROUTING and frame[at + 3]:
            raise SourceRouted(_last_route(frame, l3) - l3)
    return _carried6(frame, l3, packet.end - packet.l4)


def _last_route(frame: bytes, l3: int) -> int:
    return [at + 3 for kind, at in _chain(frame, l3) if kind == ROUTING and frame[at + 3]][-1]


def _carried4(frame: bytes, l3: int, payload: int) -> Carried:
    _, tos, _, identification, place, ttl, protocol = struct.unpack_from("!BBHHHBB", frame, l3)
    offset, more = (place & 0x1FFF) * 8, bool(place & 0x2000)
    return Carried(tos, ttl, other_protocol(protocol), bool(offset or more), offset, more, identification, payload)


def _carried6(frame: bytes, l3: int, payload: int) -> Carried:
    word, _, following, hops = struct.unpack_from("!IHBB", frame, l3)
    fragment, offset, more, identification, protocol = False, 0, False, 0, following
    for kind, at in _chain(frame, l3):
        protocol = frame[at]
        if kind == FRAGMENT:
            place, identification = struct.unpack_from("!HI", frame, at + 2)
            fragment, offset, more = True, place & 0xFFF8, bool(place & 1)
    return Carried(word >> 20 & 0xFF, hops, other_protocol(protocol), fragment, offset, more, identification, payload)


def _chain(frame: bytes, l3: int) -> list[tuple[int, int]]:
    """Kinds and offsets of extension headers, up to a fragment that is not the first."""
    found, kind, at = [], frame[l3 + 6], l3 + 40
    while kind in (0, ROUTING, FRAGMENT, 60):
        found.append((kind, at))
        later = kind == FRAGMENT and struct.unpack_from("!H", frame, at + 2)[0] & 0xFFF8
        kind, at = frame[at], at + (8 if kind == FRAGMENT else (frame[at + 1] + 1) * 8)
        if later:
            break
    return found


def _source_routed(options: bytes) -> bool:
    at = 0
    while at + 3 <= len(options) and options[at]:
        if options[at] == 1:
            at += 1
            continue
        length = options[at + 1]
        if length < 2:
            return False
        if options[at] in (131, 137):
            return options[at + 2] <= length
        at += length
    return False


def header4(c: Carried, src: bytes, dst: bytes) -> bytes:
    """The identification of what may be fragmented and is none yet is left 0."""
    length = 20 + c.payload
    dont = not c.fragment and length > MAY_FRAGMENT
    place = dont << 14 | c.more << 13 | c.offset // 8
    identification = c.identification & 0xFFFF if c.fragment else 0
    fields = (0x45, c.traffic_class, length & 0xFFFF, identification, place, c.hops, c.protocol, 0, src[12:], dst[12:])
    made = struct.pack("!BBHHHBBH4s4s", *fields)
    return made[:10] + struct.pack("!H", checksum(made)) + made[12:]


def header6(c: Carried, src: bytes, dst: bytes) -> bytes:
    payload = c.payload + 8 * c.fragment
    following = FRAGMENT if c.fragment else c.protocol
    made = struct.pack("!IHBB16s16s", 6 << 28 | c.traffic_class << 20, payload & 0xFFFF, following, c.hops, src, dst)
    if c.fragment:
        made += struct.pack("!BBHI", c.protocol, 0, c.offset | c.more, c.identification)
    return made


def length_of(packet: Packet, c: Carried) -> int:
    """Of the IP packet that it becomes."""
    return c.payload + (20 if packet.family == 6 else 40 + 8 * c.fragment)


def translate(packet: Packet, new: Becomes, mss: int, *, partial: bool) -> Crossed:
    """Raises SourceRouted and Untranslatable."""
    c = carried(packet)
    l4 = _l4(packet, c, new, mss, partial=partial)
    header = header4(c, new.src, new.dst) if packet.family == 6 else header6(c, new.src, new.dst)
    length = len(header) + c.payload
    free = packet.family == 6 and not c.fragment and length <= MAY_FRAGMENT
    may = c.fragment or (packet.family == 6 and length <= MAY_FRAGMENT)
    return Crossed(_framed(packet, header + l4), length, may, free)


def _framed(packet: Packet, ip: bytes) -> bytes:
    """With the link header that came in, and the padding behind the packet."""
    ethertype = b"\x08\x00" if packet.family == 6 else b"\x86\xdd"
    return packet.frame[: packet.l3 - 2] + ethertype + ip + packet.frame[packet.end :]


def _l4(packet: Packet, c: Carried, new: Becomes, mss: int, *, partial: bool) -> bytes:
    """Header and payload, checksum included."""
    piece = bool(c.offset or c.more)
    if packet.is_icmp and piece:
        raise Untranslatable(Reason.NAT64_FRAGMENT)
    if packet.later_fragment:
        return packet.frame[packet.l4 : packet.end]
    frame = bytearray(packet.frame)
    before, after = _pseudo(packet, packet.src, packet.dst), _pseudo_other(packet, new, c.payload)
    if packet.is_icmp:
        if packet.icmp_type not in ECHO:
            raise Untranslatable(Reason.NAT64_PROTOCOL)
        frame[packet.l4] = ECHO[packet.icmp_type]
        struct.pack_into("!H", frame, packet.l4 + 4, new.sport)
    else:
        struct.pack_into("!HH", frame, packet.l4, new.sport, new.dport)
    if mss and packet.is_tcp and packet.flags & 2:
        lower_mss(packet, frame, mss)
    at = packet.l4 + {TCP: 16, UDP: 6}.get(packet.protocol, 2)
    if packet.protocol == UDP and not has_checksum(packet):
        if packet.family == 4:
            if piece or c.payload > LARGEST_SUM:
                raise Untranslatable(Reason.NAT64_CHECKSUM)
            struct.pack_into("!H", frame, at, _udp_sum(packet, bytes(frame), new))
        return bytes(frame[packet.l4 : packet.end])
    field: int = struct.unpack_from("!H", frame, at)[0]
    if partial:
        field = add(after)
    else:
        old = packet.frame[packet.l4 : at] + b"\0\0" + packet.frame[at + 2 : packet.end]
        now = bytes(frame[packet.l4 : at]) + b"\0\0" + bytes(frame[at + 2 : packet.end])
        field = moved(field, add(before + old), add(after + now))
        if packet.protocol == UDP and not field:
            field = 0xFFFF
    struct.pack_into("!H", frame, at, field)
    return bytes(frame[packet.l4 : packet.end])


def _pseudo(packet: Packet, src: bytes, dst: bytes) -> bytes:
    if packet.is_icmp and packet.family == 4:
        return b""
    return addresses_of(packet, packet.frame)


def _pseudo_other(packet: Packet, new: Becomes, length: int) -> bytes:
    """In the other family. The length is that of this piece: what lacks is the same before and after."""
    protocol = other_protocol(packet.protocol)
    if protocol == ICMP:
        return b""
    return pseudo_header(10 - packet.family, new.src, new.dst, protocol, length)


def _udp_sum(packet: Packet, frame: bytes, new: Becomes) -> int:
    payload = packet.end - packet.l4
    said: int = struct.unpack_from("!H", frame, packet.l4 + 4)[0]
    length = said if 8 <= said <= payload else payload
    covered = pseudo_header(6, new.src, new.dst, UDP, length) + frame[packet.l4 : packet.l4 + length]
    return checksum(covered) or 0xFFFF


def translate_error(packet: Packet, inner: Inner, new: Becomes, bits: int, mtu: int) -> Crossed:
    """``new`` is what packets of the other direction of the quoted one become.

    ``mtu`` is that of the way that the error goes, 0 if unknown. Raises Untranslatable.
    """
    if packet.first_fragment:
        raise Untranslatable(Reason.NAT64_FRAGMENT)
    frame = bytearray(packet.frame)
    rest: int = struct.unpack_from("!I", frame, packet.l4 + 4)[0]
    if inner.protocol in (TCP, UDP) and not inner.later:
        struct.pack_into("!HH", frame, inner.l4, new.dport, new.sport)
    elif inner.is_query:
        frame[inner.l4] = ECHO.get(frame[inner.l4], frame[inner.l4])
        struct.pack_into("!H", frame, inner.l4 + 4, new.dport)
    behind = bytes(frame[inner.l4 : packet.end])
    if packet.family == 4:
        total: int = struct.unpack_from("!H", frame, inner.l3 + 2)[0]
        quoted = _carried4(packet.frame, inner.l3, max(total - (inner.l4 - inner.l3), 0))
        kind, code, word = _error6(packet, rest, total, mtu)
        source = new.src if packet.src == inner.dst else embed(new.src, bits, packet.src)
        header = header6(quoted, new.dst, new.src)
        c = replace(_carried4(packet.frame, packet.l3, 0), fragment=False, payload=8 + len(header) + len(behind))
        outer = header6(c, source, new.dst)
        protocol = pseudo_header(6, source, new.dst, ICMP6, c.payload)
    else:
        said: int = 40 + struct.unpack_from("!H", frame, inner.l3 + 4)[0]
        quoted = _carried6(packet.frame, inner.l3, max(said - (inner.l4 - inner.l3), 0))
        kind, code, word = _error4(packet, rest, 20 + 8 * quoted.fragment, mtu)
        header = header4(quoted, new.dst, new.src)
        c = replace(_carried6(packet.frame, packet.l3, 0), fragment=False, payload=8 + len(header) + len(behind))
        outer = header4(replace(c, offset=0, more=False, protocol=ICMP), new.src, new.dst)
        protocol = b""
    length = len(outer) + c.payload
    if mtu and length > mtu:
        raise Untranslatable(Reason.TOO_BIG)
    old = packet.frame[packet.l4 : packet.end]
    old_pseudo = addresses_of(packet, packet.frame) if packet.family == 6 else b""
    made = struct.pack("!BBHI", kind, code, 0, word) + header + behind
    field = moved(
        struct.unpack_from("!H", old, 2)[0], add(old_pseudo + old[:2] + b"\0\0" + old[4:]), add(protocol + made)
    )
    made = made[:2] + struct.pack("!H", field) + made[4:]
    free = packet.family == 6 and length <= MAY_FRAGMENT
    return Crossed(_framed(packet, outer + made), length, may_fragment=True, any_identification=free)


def _error6(packet: Packet, rest: int, quoted: int, mtu: int) -> tuple[int, int, int]:
    kind, code = packet.icmp_type, packet.code16 & 0xFF
    if (kind, code) == (3, 4):
        told = rest & 0xFFFF or next((size for size in PLATEAUS if size < quoted), LEAST_MTU6 - 20)
        return 2, 0, max(min(told + 20, mtu or 1 << 16), LEAST_MTU6)
    if kind == 3 and code in UNREACHABLE_6:
        kind, new_code = UNREACHABLE_6[code]
        return kind, new_code, 6 if kind == 4 else 0
    if kind == 11:
        return 3, code, 0
    if kind == 12 and code in (0, 2) and rest >> 24 in POINTERS_6:
        return 4, 0, POINTERS_6[rest >> 24]
    raise Untranslatable(Reason.NAT64_PROTOCOL)


def _error4(packet: Packet, rest: int, longer: int, mtu: int) -> tuple[int, int, int]:
    kind, code = packet.icmp_type, packet.code16 & 0xFF
    if kind == 1 and code in UNREACHABLE_4:
        return 3, UNREACHABLE_4[code], 0
    if kind == 2:
        return 3, 4, min(max(rest - longer, 68), mtu or 0xFFFF, 0xFFFF)
    if kind == 3:
        return 11, code, 0
    if (kind, code) == (4, 1):
        return 3, 2, 0
    if (kind, code) == (4, 0) and rest in POINTERS_4:
        return 12, 0, POINTERS_4[rest] << 24
    raise Untranslatable(Reason.NAT64_PROTOCOL)


__all__ = ["Crossed", "Malformed", "SourceRouted", "Untranslatable", "translate", "translate_error"]
