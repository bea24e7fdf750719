"""Flows of the traffic generator: who talks to whom, and the packets of both directions.

The server's side is learnt from what came out, so replies go to what NAT made of the client.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from random import Random

from tests.reference import build
from tests.reference.build import Ip, Tcp
from tests.reference.checksums import checksum, pseudo_header
from tests.reference.packets import (
    ACK,
    FIN,
    ICMP,
    ICMP6,
    RST,
    SYN,
    TCP,
    UDP,
    V4_MAPPED,
    Packet,
    parse_ethernet,
    parse_ip,
    parse_l4,
)

Place = tuple[int, int]
"""A port: physical interface and VLAN id."""

CODEPOINTS = (10, 12, 14, 46, 63)
"""Of differentiated services: three colours of assured forwarding, and others."""

OPTIONS = (
    b"\x02\x04\x05\xb4",
    b"\x02\x04\x05\xb4\x01\x03\x03\x07\x04\x02\x08\x0a" + bytes(8),
    b"\x01\x02\x04\x05\xb4\x04\x02",
    b"\x01\x01\x04\x02\x02\x04\x02\x18",
    b"\x03\x00\x02\x04\x05\xb4",
    b"\x00\x02\x04\x05\xb4",
    b"\x08\x0a" + bytes(8) + b"\x01\x02\x04\x23\x28",
    b"",
)


@dataclass(slots=True)
class End:
    """One side as the other addresses it: source and destination of what it sends, and where that comes in."""

    place: Place
    src: bytes
    dst: bytes
    sport: int
    dport: int
    seq: int = 0
    ack: int = 0

    @property
    def family(self) -> int:
        """Of what it sends: NAT64 makes the two ends differ."""
        return 4 if self.src.startswith(V4_MAPPED) else 6


def protocol_of(kind: int, family: int) -> int:
    """On the wire."""
    return ICMP6 if kind == ICMP and family == 6 else kind


@dataclass(slots=True)
class Flow:
    """``server`` is None until a packet of the client came out. ``kind`` is an IP protocol; ICMP means echo."""

    family: int
    kind: int
    client: End
    server: End | None = None
    stage: int = 0

    def learn(self, frame: bytes, egress: Place, random: Random) -> None:
        """The client's packet as it left: the server answers to that."""
        packet = parse(frame)
        if packet is None or packet.later_fragment or packet.protocol != protocol_of(self.kind, packet.family):
            return
        if self.server is None or (self.server.dst, self.server.dport) != (packet.src, packet.sport):
            seq = random.getrandbits(32)
            self.server = End(egress, packet.dst, packet.src, packet.dport, packet.sport, seq)


def parse(frame: bytes) -> Packet | None:
    """A frame that came out."""
    ethernet = parse_ethernet(frame)
    if ethernet is None:
        return None
    packet = parse_ip(frame, ethernet)
    if not packet.later_fragment:
        parse_l4(packet)
    return packet


@dataclass(frozen=True, slots=True)
class Shape:
    """How a packet is dressed. ``size`` is of the payload; ``flags`` None lets the flow's stage decide.

    ``zero_checksum`` is UDP without one, ``becomes_zero`` UDP whose sum is zero after translation: 0xffff on the wire.
    """

    ttl: int = 64
    size: int = 10
    dont_fragment: bool = False
    flags: int | None = None
    options: bytes = b""
    extensions: bytes = b""
    first_extension: int = 0
    exact_seq: bool = True
    zero_checksum: bool = False
    becomes_zero: bool = False
    partial: bool = False
    priority: bool = False
    identification: int = 0
    dscp: int = 0


def _size_about_mtu(random: Random) -> int:
    """Of a payload, so that many packets are as long as a route takes, or one byte longer."""
    return (
        random.choice((1280, 1400, 1500)) - random.choice((20, 40)) - random.choice((8, 20)) + random.choice((0, 0, 1))
    )


def dress(random: Random) -> Shape:
    """A mostly plain shape."""
    roll = random.random()
    return Shape(
        ttl=random.choice((64, 64, 64, 64, 255, 2, 1, 0)) if roll < 0.25 else 64,
        size=random.choice((0, 1, 10, 33, 500)) if roll < 0.9 else _size_about_mtu(random),
        dont_fragment=random.random() < 0.5,
        options=random.choice(OPTIONS) if random.random() < 0.5 else b"",
        zero_checksum=random.random() < 0.1,
        becomes_zero=random.random() < 0.1,
        partial=random.random() < 0.15,
        priority=random.random() < 0.1,
        dscp=random.choice(CODEPOINTS) if random.random() < 0.3 else 0,
    )


def l4_of(flow: Flow, end: End, ip: Ip, shape: Shape, random: Random, *, reverse: bool) -> bytes:
    """L4 header and payload; moves the TCP numbers on."""
    payload = random.randbytes(min(shape.size, 16)) + bytes(max(shape.size - 16, 0))
    if flow.kind == TCP:
        segment = _segment(flow, end, shape, payload, random, reverse=reverse)
        l4 = build.tcp(ip, segment)
        return build.with_partial(ip, TCP, l4) if shape.partial else l4
    if flow.kind == UDP:
        if shape.becomes_zero and flow.server is not None and not reverse:
            payload = _payload_to_zero(flow.server, flow.server.family)
        l4 = build.udp(ip, end.sport, end.dport, payload)
        if shape.zero_checksum and ip.family == 4:
            return l4[:6] + b"\0\0" + l4[8:]
        return build.with_partial(ip, UDP, l4) if shape.partial else l4
    if flow.kind == ICMP:
        kind = (129 if reverse else 128) if ip.family == 6 else 0 if reverse else 8
        return build.icmp(ip, kind, 0, end.sport << 16 | 1, payload)
    return payload + bytes(random.choice((0, 8)))


def _payload_to_zero(server: End, family: int) -> bytes:
    """Two bytes that make the checksum zero of what the server gets."""
    header = struct.pack("!HHHH", server.dport, server.sport, 10, 0)
    return struct.pack("!H", checksum(pseudo_header(family, server.dst, server.src, UDP, 10) + header))


def _segment(flow: Flow, end: End, shape: Shape, payload: bytes, random: Random, *, reverse: bool) -> Tcp:
    flags = shape.flags
    if flags is None:
        flags = _expected_flags(flow, random, reverse=reverse)
    other = flow.client if reverse else flow.server
    ack = 0
    if flags & ACK and other is not None:
        ack = end.ack = other.seq
    data = b"" if flags & (SYN | RST | FIN) else payload
    seq = end.seq if shape.exact_seq else end.seq + random.randrange(1, 9999) & 0xFFFFFFFF
    end.seq = (end.seq + len(data) + bool(flags & SYN) + bool(flags & FIN)) & 0xFFFFFFFF
    options = shape.options if flags & SYN or random.random() < 0.1 else b""
    return Tcp(end.sport, end.dport, flags, seq, ack, options, data)


def _expected_flags(flow: Flow, random: Random, *, reverse: bool) -> int:
    """A handshake first, then data, in the end FIN or RST."""
    if flow.stage == 0 and not reverse:
        return SYN
    if flow.stage <= 1 and reverse:
        flow.stage = 2
        return SYN | ACK
    if flow.stage == 2 and not reverse:
        flow.stage = 3
        return ACK
    roll = random.random()
    if roll < 0.25:
        return FIN | ACK
    if roll < 0.35:
        return RST | (ACK if random.random() < 0.5 else 0)
    return ACK


def ip_of(flow: Flow, end: End, shape: Shape) -> Ip:
    """The IP header of a packet of the flow."""
    return Ip(
        end.family,
        end.src,
        end.dst,
        shape.ttl,
        shape.dont_fragment,
        shape.identification,
        shape.options if flow.kind == UDP and len(shape.options) < 8 else b"",
        shape.extensions,
        shape.first_extension,
        shape.dscp,
    )


def tag_of(place: Place, shape: Shape) -> int | None:
    """The VLAN id on the wire: a priority tag at times, where there is none."""
    return place[1] or (0 if shape.priority else None)
