"""The state of a firewall, a packet's record, and the ways out: routes, answers, counters."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from ipsec_gw.model.firewall import SELF, Ruleset
from tests.reference import nat64, rewrite
from tests.reference.checksums import is_partial
from tests.reference.fib import Fib, Found, Kind
from tests.reference.ipsec import Policies
from tests.reference.packets import (
    AH,
    ESP,
    UDP,
    Ethernet,
    Packet,
    Verdict,
    drop,
    is_multicast,
    is_unspecified,
)
from tests.reference.policers import Marker
from tests.reference.rules import Ids, Port
from tests.reference.sessions import Entry, Fragments, Sessions
from xdp_steer.reasons import Reason
from xdp_steer.screen_layout import Screen

IKE_PORTS = (500, 4500)


@dataclass(slots=True)
class Way:
    """A packet on its way through: where it came in, and what is known of where it goes."""

    packet: Packet
    ethernet: Ethernet
    port: Port
    now: int
    egress: Port | None = None

    @property
    def partial(self) -> bool:
        """Its L4 checksum was left to hardware."""
        return self.port.partial and is_partial(self.packet)


@dataclass(slots=True)
class Window:
    """Packets since its first second, and different things that they asked for."""

    begun: int
    packets: int = 0
    asked: set[bytes] = field(default_factory=set)


class Machine:
    """A firewall and what it remembers: ``counters`` are packets and octets by rule number, ``screened`` those that hit
    a screen, by the number of the zone and screen. ``windows`` are what screens count in, for a zone or an address of
    it. ``own`` are addresses that are known as this machine's. ``markers`` are policers by name, and the time of each.
    ``tunnels`` are the IPsec policies, and ``generation`` how often they were replaced. ``vpp``: VPP is there for its
    pools, ``vpp_at_times``: also for those that are its own at times. ``asked`` are new flows, packets and
    flows that got no port by the tag of the pool.
    """

    def __init__(
        self, ruleset: Ruleset, ids: Ids, ports: Iterable[Port], fib: Fib, seed: int, tunnels: Policies = ()
    ) -> None:
        self.ruleset = ruleset
        self.ids = ids
        self.ports = {(port.ifindex, port.vid): port for port in ports}
        self.fib = fib
        self.seed = seed
        self.sessions = Sessions(ruleset.sessions.timeouts)
        self.fragments = Fragments()
        self.counters: dict[int, tuple[int, int]] = {}
        self.screened: dict[tuple[int, Screen], tuple[int, int]] = {}
        self.windows: dict[tuple[int, Screen, bytes], Window] = {}
        self.own: frozenset[bytes] = frozenset()
        self.markers: dict[str, tuple[Marker, int]] = {}
        self.tunnels = tunnels
        self.generation = 0
        self.vpp = True
        self.vpp_at_times = False
        self.asked: dict[int, tuple[int, int, int]] = {}
        self.zones = {zone.name: zone for zone in ruleset.zones}

    @property
    def tunnel_port(self) -> Port | None:
        """Where clear packets of tunnels come from and go to."""
        return next((port for port in self.ports.values() if port.tunnel), None)

    def number(self, zone: str) -> int:
        """The number of a zone; this machine's is 0."""
        return 0 if zone == SELF else self.ids.zones[zone]

    def count(self, rule: int, packet: Packet) -> None:
        """A packet decided by a rule; 0 is none."""
        self.count_octets(rule, packet.length)

    def count_octets(self, rule: int, length: int) -> None:
        """The same of so many bytes."""
        if rule:
            packets, octets = self.counters.get(rule, (0, 0))
            self.counters[rule] = (packets + 1, octets + length)

    def count_pool(self, tag: int, flows: int = 0, packets: int = 0, refused: int = 0) -> None:
        """Of a pool that has addresses of VPP's; 0 is none."""
        if tag:
            before = self.asked.get(tag, (0, 0, 0))
            self.asked[tag] = (before[0] + flows, before[1] + packets, before[2] + refused)

    def is_local(self, way: Way, destination: bytes) -> bool:
        found = self.fib.lookup(way.packet.src, destination, way.port.l3_ifindex)
        return found is not None and found.kind is Kind.LOCAL

    def route(self, way: Way, destination: bytes, source: bytes | None = None) -> Found:
        """Sets the egress port, None for this machine. Raises Verdict for what cannot go on."""
        found = self.fib.lookup(way.packet.src if source is None else source, destination, way.port.l3_ifindex)
        way.egress = None
        if found is None:
            raise drop(Reason.ROUTE_UNSUPPORTED)
        if found.kind is Kind.BLACKHOLE:
            raise drop(Reason.ROUTE_BLACKHOLE)
        if found.kind in (Kind.UNREACHABLE, Kind.PROHIBIT):
            prohibited = found.kind is Kind.PROHIBIT
            kind, code = (3, 13 if prohibited else 1) if way.packet.family == 4 else (1, int(prohibited))
            raise answer_icmp(way, Reason.ROUTE_UNREACHABLE, kind, code)
        if found.kind is Kind.UNICAST:
            way.egress = self.ports.get(found.port)
            if way.egress is None:
                raise drop(Reason.NO_EGRESS_ZONE)
        return found

    def enter_tunnel(self, way: Way) -> None:
        """The kernel encrypts it, so it leaves into the zone of the tunnels. The addresses of the interface stay."""
        port, by = self.tunnel_port, way.egress
        assert by is not None
        if port is None:
            raise drop(Reason.NO_EGRESS_ZONE)
        way.egress = replace(port, addr4=by.addr4, addr6=by.addr6, redirect=False)


def leave(way: Way, found: Found, frame: bytes) -> Verdict:
    """The end of a packet that is not for this machine; ``frame`` is the translated one."""
    packet, egress = way.packet, way.egress
    assert egress is not None
    if packet.ttl <= 1:
        return answer_icmp(way, Reason.TTL_EXPIRED, *((11, 0) if packet.family == 4 else (3, 0)))
    oversize = found.reachable and packet.length > found.mtu
    if oversize and (packet.dont_fragment or packet.family == 6):
        return answer_icmp(way, Reason.TOO_BIG, *((3, 4) if packet.family == 4 else (2, 0)), found.mtu)
    if oversize or not found.reachable or not egress.redirect or way.partial:
        if way.port.translated:  # the kernel knows nothing of VPP's tags
            frame = frame[:12] + frame[packet.l3 - 2 :]
        return Verdict("PASS", Reason.TO_KERNEL, frame)
    sent = rewrite.send(frame, way.ethernet, egress.vid, found.smac, found.dmac)
    return Verdict("REDIRECT", Reason.FORWARDED, sent)


def leave_crossed(way: Way, found: Found, entry: Entry) -> Verdict:
    """The end of a packet of a NAT64 session."""
    packet, four = way.packet, way.packet.family == 4
    if packet.ttl <= 1:
        return leave(way, found, packet.frame)
    new = rewrite.Becomes(entry.src, entry.dst, entry.sport, entry.dport)
    try:
        c = nat64.carried(packet)
        length = nat64.length_of(packet, c)
        if found.reachable and length > found.mtu:
            if four:
                return answer_icmp(way, Reason.TOO_BIG, 3, 4, found.mtu - 20 - 8 * c.fragment)
            if not c.fragment and length > nat64.MAY_FRAGMENT:
                return answer_icmp(way, Reason.TOO_BIG, 2, 0, max(found.mtu + 20, nat64.LEAST_MTU6))
        return send_crossed(way, found, nat64.translate(packet, new, entry.mss, partial=way.partial))
    except nat64.SourceRouted as routed:
        kind, code = (3, 5) if four else (4, 0)
        return answer_icmp(way, Reason.NAT64_SOURCE_ROUTE, kind, code, 0 if four else routed.pointer)
    except nat64.Untranslatable as never:
        return drop(never.reason)


def send_crossed(way: Way, found: Found, crossed: nat64.Crossed) -> Verdict:
    """What became one of the other family."""
    assert way.egress is not None
    oversize = found.reachable and crossed.length > found.mtu
    if oversize or not found.reachable or not way.egress.redirect or way.partial:
        return Verdict("PASS", Reason.TO_KERNEL, crossed.frame, any_identification=crossed.any_identification)
    ethernet = replace(way.ethernet, ethertype=0x86DD if way.packet.family == 4 else 0x0800)
    sent = rewrite.send(crossed.frame, ethernet, way.egress.vid, found.smac, found.dmac)
    return Verdict("REDIRECT", Reason.FORWARDED, sent, any_identification=crossed.any_identification)


def answer_icmp(way: Way, reason: Reason, kind: int, code: int, mtu: int = 0) -> Verdict:
    """An ICMP error that this machine sends in its own name."""
    own = way.port.addr4 if way.packet.family == 4 else way.port.addr6
    source = way.packet.dst if is_unspecified(own) else own
    return answer(way, reason, rewrite.icmp_error(way.packet, source, kind, code, mtu))


def answer(way: Way, reason: Reason, frame: bytes) -> Verdict:
    """The frame goes back, unless it would answer what nobody may answer."""
    packet = way.packet
    nobody = is_multicast(packet.dst) or is_multicast(packet.src) or is_unspecified(packet.src)
    way.egress = None
    if packet.is_error or packet.later_fragment or nobody:
        return drop(reason)
    return Verdict("TX", reason, frame)


def is_ipsec(protocol: int, port: int) -> bool:
    """IKE, ESP or AH; ``port`` is the one on this machine."""
    return protocol in (ESP, AH) or (protocol == UDP and port in IKE_PORTS)
