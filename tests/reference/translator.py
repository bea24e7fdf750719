"""Pools of VPP: what the pipeline gives to VPP and what it takes back, and a VPP for the traffic generator."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, replace

from ipsec_gw.model.firewall import Pool, Ruleset
from ipsec_gw.model.snapshot import PolicyDirection
from tests.reference import rewrite
from tests.reference.checksums import checksum, covered, header_checksum
from tests.reference.fib import Kind, key_bytes
from tests.reference.ipsec import fields_of, protecting
from tests.reference.machine import Machine, Way, answer_icmp, leave
from tests.reference.packets import (
    ICMP,
    TCP,
    UDP,
    Malformed,
    Packet,
    Verdict,
    drop,
    parse_ethernet,
    parse_inner,
    parse_ip,
    parse_l4,
)
from tests.reference.rewrite import Becomes
from tests.reference.sessions import Entry
from xdp_steer.flow_layout import SessionFlag
from xdp_steer.reasons import Reason

OUTSIDE = 100
MTU = 1500
ECHO_REQUEST = 8
VPP_MAC, KERNEL_MAC = bytes.fromhex("02697073766e"), bytes.fromhex("026970736b6e")
PLAIN_HEADER = 20
"""Bytes of an IPv4 header without options."""


def pool_with(ruleset: Ruleset, address: bytes) -> tuple[int, Pool] | None:
    """The tag and the pool of an address of VPP's."""
    for tag, pool in enumerate(ruleset.pools, 1):
        if pool.of_vpp is None or ruleset.zone_of_pool(pool.name) is None:
            continue
        first, last = map(key_bytes, pool.of_vpp)
        if first <= address <= last:
            return tag, pool
    return None


def _has_options(packet: Packet) -> bool:
    return packet.family == 4 and (packet.frame[packet.l3] & 15) * 4 > PLAIN_HEADER


def may_translate(machine: Machine, packet: Packet, destination: bytes) -> bool:
    """Whether VPP translates a new flow that its pool is for."""
    asked = packet.protocol in (TCP, UDP) or (packet.protocol == ICMP and packet.icmp_type == ECHO_REQUEST)
    return machine.vpp and asked and not _has_options(packet) and pool_with(machine.ruleset, destination) is None


def is_to_translate(machine: Machine, way: Way) -> bool:
    """Of no session, to an address of VPP's, from the zone that its pool leads to."""
    found = pool_with(machine.ruleset, way.packet.dst)
    return (
        found is not None
        and machine.ruleset.zone_of_pool(found[1].name) == way.port.zone
        and way.packet.dst not in machine.own
    )


def check_session(machine: Machine, way: Way, entry: Entry) -> None:
    """Raises Verdict for a packet that a session of VPP's has nothing to do with."""
    if not entry.flags & SessionFlag.TRANSLATOR:
        return
    if not machine.vpp:
        raise drop(Reason.TRANSLATOR_AWAY)
    if entry.flags & SessionFlag.REVERSE and not way.port.translated:
        raise drop(Reason.TRANSLATOR_PASSED)


def is_for_vpp(entry: Entry) -> bool:
    """What goes out of such a session goes to VPP first."""
    return bool(entry.flags & SessionFlag.TRANSLATOR) and not entry.flags & SessionFlag.REVERSE


def give(machine: Machine, way: Way, frame: bytes, tag: int, mtu: int = 0) -> Verdict:
    """To VPP; ``frame`` is what the packet has become already, ``mtu`` that of the route, 0 if it is not known."""
    packet = way.packet
    way.egress = None
    if not machine.vpp:
        return drop(Reason.TRANSLATOR_AWAY)
    if packet.ttl <= 1:
        return answer_icmp(way, Reason.TTL_EXPIRED, 11, 0)
    if _has_options(packet):
        return drop(Reason.TRANSLATOR_UNFIT)
    if mtu and packet.length > mtu and packet.dont_fragment:
        return answer_icmp(way, Reason.TOO_BIG, 3, 4, mtu)
    if packet.length > MTU:
        return answer_icmp(way, Reason.TOO_BIG, 3, 4, MTU) if packet.dont_fragment else drop(Reason.TOO_BIG)
    if way.partial:
        frame = _finished(packet, frame)
    return Verdict("REDIRECT", Reason.TRANSLATE, _tagged(frame, packet.l3, tag, VPP_MAC, KERNEL_MAC))


def give_in(machine: Machine, way: Way) -> Verdict:
    """What comes from outside, untouched."""
    return give(machine, way, way.packet.frame, OUTSIDE)


def _finished(packet: Packet, frame: bytes) -> bytes:
    """With the whole checksum in place of that of the pseudo-header."""
    at = packet.l4 + {TCP: 16, UDP: 6}[packet.protocol]
    value = checksum(covered(packet, frame)) or 0xFFFF
    return frame[:at] + struct.pack("!H", value) + frame[at + 2 :]


def _tagged(frame: bytes, l3: int, tag: int, dmac: bytes, smac: bytes) -> bytes:
    return dmac + smac + struct.pack("!HHH", 0x8100, tag, 0x0800) + frame[l3:]


def raise_ttl(packet: Packet) -> None:
    """VPP has counted a hop, which the packet gets back."""
    frame = bytearray(packet.frame)
    frame[packet.l3 + 8] = packet.ttl = (packet.ttl + 1) & 0xFF
    header_checksum(packet.frame, frame, packet.l3)
    packet.frame = bytes(frame)


def come_back(machine: Machine, way: Way) -> None:
    """From VPP: raises Verdict for what is on its way out; what came from outside goes on in its session."""
    if way.packet.family == 6:
        raise drop(Reason.MALFORMED)
    raise_ttl(way.packet)
    if way.ethernet.vid == OUTSIDE:
        raise send_out(machine, way)


def send_out(machine: Machine, way: Way) -> Verdict:
    """What VPP has translated, on its way out."""
    packet = way.packet
    pool = pool_with(machine.ruleset, packet.src)
    if pool is None:
        return drop(Reason.TRANSLATOR_UNKNOWN)
    found = machine.route(way, packet.dst)
    if found.kind is Kind.LOCAL or way.egress is None:
        return drop(Reason.ZONE_CHANGED)
    becomes = fields_of(packet, packet.src, packet.dst, packet.protocol, (packet.sport, packet.dport))
    if not way.egress.tunnel and protecting(machine.tunnels, PolicyDirection.OUT, becomes):
        machine.enter_tunnel(way)
        way.egress = None
        return drop(Reason.TUNNEL_NAT)
    if way.egress.zone != machine.ruleset.zone_of_pool(pool[1].name):
        return drop(Reason.ZONE_CHANGED)
    return leave(way, found, rewrite.translate(packet, _same(packet), 0, partial=False))


def _same(packet: Packet) -> Becomes:
    return Becomes(packet.src, packet.dst, packet.sport, packet.dport)


Far = tuple[int, int, bytes, int]
"""Protocol, port outside, address and port of the other side."""


@dataclass
class Vpp:
    """Translates by its own rules: an address by the source, ports as they are."""

    ruleset: Ruleset
    _inside: dict[tuple[bytes, Far], tuple[int, bytes]] = field(default_factory=dict)
    _last: dict[bytes, tuple[int, bytes]] = field(default_factory=dict)

    def answer(self, frame: bytes) -> bytes | None:
        """What VPP sends for a frame that it was given, None for what it drops."""
        ethernet = parse_ethernet(frame)
        assert ethernet is not None
        packet = parse_ip(frame, ethernet)
        try:
            if not packet.later_fragment:
                parse_l4(packet)
            made = self._in(packet) if ethernet.vid == OUTSIDE else self._out(packet, ethernet.vid)
        except Malformed:
            return None
        if made is None:
            return None
        tag, translated = made
        return rewrite.send(translated, ethernet, tag, VPP_MAC, KERNEL_MAC)

    def _out(self, packet: Packet, tag: int) -> tuple[int, bytes] | None:
        span = self.ruleset.pools[tag - 1].of_vpp
        assert span is not None
        count = int(span[1]) - int(span[0]) + 1
        outside = key_bytes(span[0] + packet.src[15] % count)
        self._last[outside] = tag, packet.src
        if packet.is_error:
            inner = parse_inner(packet)
            quoted = Becomes(inner.src, outside, inner.sport, inner.dport)
            return OUTSIDE, rewrite.translate_error(packet, inner, outside, packet.dst, quoted)
        far = packet.protocol, packet.sport, packet.dst, packet.dport
        self._inside[outside, far] = tag, packet.src
        return OUTSIDE, rewrite.translate(packet, replace(_same(packet), src=outside), 0, partial=False)

    def _in(self, packet: Packet) -> tuple[int, bytes] | None:
        if packet.is_error:
            inner = parse_inner(packet)
            known = self._inside.get((inner.src, (inner.protocol, inner.sport, inner.dst, inner.dport)))
            if known is None:
                return None
            quoted = Becomes(known[1], inner.dst, inner.sport, inner.dport)
            return known[0], rewrite.translate_error(packet, inner, packet.src, known[1], quoted)
        far = packet.protocol, packet.dport, packet.src, packet.sport
        known = self._last.get(packet.dst) if packet.later_fragment else self._inside.get((packet.dst, far))
        if known is None:
            return None
        return known[0], rewrite.translate(packet, replace(_same(packet), dst=known[1]), 0, partial=False)
