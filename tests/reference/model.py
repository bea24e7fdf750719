"""The firewall's pipeline in plain Python: slow, and made to be read beside its specification.

One packet at a time, on a ruleset's values and not on what the compiler makes of them. Where the datapath changes
checksums, this computes them from all that they cover.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ipsec_gw.model.firewall import SELF, Action, Ruleset
from tests.reference import nat, rewrite
from tests.reference.checksums import is_partial
from tests.reference.fib import Fib, Found, Kind
from tests.reference.packets import (
    ACK,
    AH,
    ESP,
    FIN,
    ICMP6,
    REQUESTS,
    RST,
    SYN,
    TCP,
    UDP,
    Ethernet,
    Key,
    Malformed,
    Packet,
    Verdict,
    drop,
    is_multicast,
    is_unspecified,
    parse_ethernet,
    parse_inner,
    parse_ip,
    parse_l4,
)
from tests.reference.rewrite import Becomes
from tests.reference.rules import Asked, Decision, Ids, Port, decide
from tests.reference.sessions import Entry, Fragments, Sessions, is_reopening, tcp_step
from xdp_steer.flow_layout import SessionFlag, State
from xdp_steer.reasons import Reason

IKE_PORTS = (500, 4500)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a packet: PASS, DROP, TX or REDIRECT, why, the frame, and the port to go out by if known."""

    action: str
    reason: Reason
    frame: bytes
    egress: tuple[int, int] | None = None


@dataclass(slots=True)
class Way:
    """A packet on its way through: where it came in, and what is known of where it goes."""

    packet: Packet
    ethernet: Ethernet
    port: Port
    now: int
    egress: Port | None = None
    is_error: bool = False


class Pipeline:
    """A firewall and its state: ``sessions``, ``fragments``, ``counters`` (packets and octets by rule number)."""

    def __init__(self, ruleset: Ruleset, ids: Ids, ports: Iterable[Port], fib: Fib, seed: int) -> None:
        self.ruleset = ruleset
        self.ids = ids
        self.ports = {(port.ifindex, port.vid): port for port in ports}
        self.fib = fib
        self.seed = seed
        self.sessions = Sessions(ruleset.sessions.timeouts)
        self.fragments = Fragments()
        self.counters: dict[int, tuple[int, int]] = {}
        self._zones = {zone.name: zone for zone in ruleset.zones}

    def packet(self, ingress: int, frame: bytes, now_ns: int) -> Outcome:
        """Decide a frame that came in by the interface of index ``ingress``."""
        self.sessions.touched.clear()
        way: list[Way] = []
        try:
            self._enter(ingress, frame, now_ns, way)
        except Malformed:
            return Outcome("DROP", Reason.MALFORMED, frame)
        except Verdict as verdict:
            egress = way[0].egress if way else None
            where = (egress.ifindex, egress.vid) if egress else None
            return Outcome(verdict.action, verdict.reason, verdict.frame or frame, where)
        raise AssertionError("a packet without a verdict")

    def _enter(self, ingress: int, frame: bytes, now: int, ways: list[Way]) -> None:
        ethernet = parse_ethernet(frame)
        if ethernet is None:
            raise Verdict("PASS", Reason.NOT_IP)
        port = self.ports.get((ingress, ethernet.vid))
        if port is None:
            raise drop(Reason.NO_ZONE)
        packet = parse_ip(frame, ethernet)
        way = Way(packet, ethernet, port, now)
        ways.append(way)
        zone = self._number(port.zone)
        if packet.later_fragment:
            self._later_fragment(way)
        parse_l4(packet)
        if packet.protocol == ICMP6 and packet.is_icmp and 133 <= packet.icmp_type <= 137 and packet.ttl == 255:
            raise Verdict("PASS", Reason.NDP)
        if packet.is_error:
            self._icmp_error(way)
        if is_multicast(packet.dst):
            self._group(way)
        self._flow(way, packet.key(zone))

    def _number(self, zone: str) -> int:
        return 0 if zone == SELF else self.ids.zones[zone]

    def _later_fragment(self, way: Way) -> None:
        zone = self._number(way.port.zone)
        flow = self.fragments.flow(way.packet, zone, way.now)
        if flow is not None:
            self._flow(way, flow)
        found = self.fib.lookup(way.packet.dst, way.port.l3_ifindex)
        if found is not None and found.kind is Kind.LOCAL:
            raise Verdict("PASS", Reason.LOCAL_FRAGMENT)
        raise drop(Reason.FRAGMENT_UNKNOWN)

    def _group(self, way: Way) -> None:
        decision = self._decide(way, SELF, way.packet.dst, way.packet.dport)
        self._count(decision.rule, way.packet)
        raise Verdict("PASS", Reason.HOST)

    # Packets of a session

    def _flow(self, way: Way, key: Key) -> None:
        packet = way.packet
        entry = self.sessions.find(key)
        if entry is None:
            self._new(way, key)
            return
        own, peer = self.sessions.pair(key, entry)
        if self.sessions.expired(key, entry, way.now) or is_reopening(packet, entry):
            self.sessions.remove(key, entry)
            self._new(way, key)
            return
        fresh = True
        if packet.is_tcp:
            before = own.state
            step = tcp_step(packet, own, peer)
            if own.state != before:
                own.timeout = peer.timeout = self.sessions.seconds(own.state, TCP, own.app_timeout)
            if step.closed_before and not packet.flags & RST:
                raise drop(Reason.SESSION_CLOSED)
            fresh = not step.closed_before
        if fresh:
            own.last_seen_ns = way.now
        own.packets += 1
        own.octets += packet.length
        if packet.first_fragment:
            self.fragments.remember(packet, key.zone, key, way.now)
        self._go_on(way, own)

    def _go_on(self, way: Way, entry: Entry) -> None:
        new = Becomes(entry.src, entry.dst, entry.sport, entry.dport)
        if entry.flags & SessionFlag.TO_SELF:
            raise Verdict("PASS", Reason.HOST, rewrite.translate(way.packet, new, 0, partial=self._partial(way)))
        found = self._session_route(way, entry)
        self._keep_route(way, entry, found)
        self._forward(way, found, new, entry.mss)

    def _session_route(self, way: Way, entry: Entry) -> Found:
        found = self._route(way, entry.dst)
        zone = SELF if found.kind is Kind.LOCAL or way.egress is None else way.egress.zone
        if self._number(zone) != entry.out_zone:
            raise drop(Reason.ZONE_CHANGED)
        return found

    def _keep_route(self, way: Way, entry: Entry, found: Found) -> None:
        assert way.egress is not None
        entry.out_ifindex = 0
        if found.reachable and way.egress.redirect:
            entry.out_ifindex, entry.out_vid = found.port
            entry.mtu, entry.dmac, entry.smac = found.mtu, found.dmac, found.smac

    # New flows

    def _new(self, way: Way, key: Key) -> None:
        packet = way.packet
        if packet.later_fragment:
            raise drop(Reason.FRAGMENT_UNKNOWN)
        zone = self._zones[way.port.zone]
        if packet.is_icmp and packet.icmp_type not in REQUESTS[packet.family]:
            raise drop(Reason.ICMP_UNSOLICITED)
        if packet.is_tcp and zone.syn_check and packet.flags & (SYN | ACK | RST | FIN) != SYN:
            if zone.tcp_reset and not packet.flags & RST:
                self._answer(way, Reason.TCP_NOT_SYN, rewrite.reset(packet))
            raise drop(Reason.TCP_NOT_SYN)
        asked = self._asked(packet, packet.dst, packet.dport)
        destination = nat.destination_nat(self.ruleset, self.ids, way.port.zone, asked, packet.dport)
        found = self._route(way, destination.address)
        to_zone = SELF
        if found.kind is not Kind.LOCAL:
            assert way.egress is not None
            to_zone = way.egress.zone
        elif _is_ipsec(packet.protocol, destination.port):
            raise Verdict("PASS", Reason.HOST_IKE)
        decision = self._decide(way, to_zone, destination.address, destination.port)
        entry = self._create(way, key, to_zone, destination, decision)
        if packet.first_fragment:
            self.fragments.remember(packet, key.zone, key, way.now)
        self._go_on(way, entry)

    def _route(self, way: Way, destination: bytes) -> Found:
        """Sets the egress port. Raises Verdict for what cannot go on."""
        found = self.fib.lookup(destination, way.port.l3_ifindex)
        way.egress = None
        if found is None:
            raise drop(Reason.ROUTE_UNSUPPORTED)
        if found.kind is Kind.BLACKHOLE:
            raise drop(Reason.ROUTE_BLACKHOLE)
        if found.kind in (Kind.UNREACHABLE, Kind.PROHIBIT):
            prohibited = found.kind is Kind.PROHIBIT
            kind, code = (3, 13 if prohibited else 1) if way.packet.family == 4 else (1, int(prohibited))
            self._answer_icmp(way, Reason.ROUTE_UNREACHABLE, kind, code)
        if found.kind is Kind.UNICAST:
            way.egress = self.ports.get(found.port)
            if way.egress is None:
                raise drop(Reason.NO_EGRESS_ZONE)
        return found

    @staticmethod
    def _asked(packet: Packet, dst: bytes, dport: int) -> Asked:
        code = packet.code16 if packet.is_icmp else dport
        return Asked(packet.family, packet.src, dst, packet.protocol, packet.sport, code)

    def _decide(self, way: Way, to_zone: str, dst: bytes, dport: int) -> Decision:
        """The policy that permits. Raises Verdict when none does."""
        packet = way.packet
        asked = self._asked(packet, dst, dport)
        decision = decide(self.ruleset, self.ids, way.port.zone, to_zone, asked)
        if decision.action is Action.PERMIT:
            return decision
        self._count(decision.rule, packet)
        reason = Reason.DEFAULT_DENY
        if decision.by_rule:
            reason = Reason.POLICY_DENY if decision.action is Action.DENY else Reason.POLICY_REJECT
        if decision.action is Action.DENY:
            raise drop(reason)
        if packet.protocol == TCP:
            if packet.flags & RST:
                raise drop(reason)
            self._answer(way, reason, rewrite.reset(packet))
        kind, code = (3, 13) if packet.family == 4 else (1, 1)
        self._answer(way, reason, rewrite.icmp_error(packet, packet.dst, kind, code))
        raise drop(reason)

    def _create(self, way: Way, key: Key, to_zone: str, destination: nat.Destination, decision: Decision) -> Entry:
        packet = way.packet
        choice = nat.SourceChoice((nat.Source(packet.src, packet.sport),))
        if to_zone != SELF:
            assert way.egress is not None
            asked = self._asked(packet, destination.address, destination.port)
            zones = (way.port.zone, to_zone)
            try:
                choice = nat.source_nat(
                    self.ruleset, self.ids, zones, asked, key, packet.has_ports, way.egress, self.seed
                )
            except nat.NoAddress:
                raise drop(Reason.NAT_NO_ADDRESS) from None
        out_zone = self._number(to_zone)
        for source in choice.candidates:
            dport = source.port if packet.is_query else destination.port
            reply = Key(destination.address, source.address, dport, source.port, key.protocol, out_zone)
            if reply not in self.sessions.entries:
                break
        else:
            raise drop(Reason.NAT_EXHAUSTED)
        state = State.OPENING if packet.is_tcp and packet.flags & SYN else State.ESTABLISHED
        timeout = self.sessions.seconds(state, key.protocol, decision.timeout)
        flags = SessionFlag.LOG_CLOSE if decision.log_close else SessionFlag(0)
        if destination.rule or choice.translates:
            flags |= SessionFlag.NAT
        common = {
            "state": state,
            "timeout": timeout,
            "mss": self._mss(way.port.zone, to_zone),
            "app_timeout": decision.timeout,
            "rule": decision.rule,
            "snat_rule": choice.rule,
            "dnat_rule": destination.rule,
            "last_seen_ns": way.now,
        }
        reverse = Entry(
            key.dst, key.src, key.dport, key.sport, flags=flags | SessionFlag.REVERSE, out_zone=key.zone, **common
        )
        forward = Entry(
            source.address, destination.address, source.port, dport, flags=flags, out_zone=out_zone, **common
        )
        forward.packets, forward.octets = 1, packet.length
        if to_zone == SELF:
            forward.flags |= SessionFlag.TO_SELF
        if packet.is_tcp and packet.flags & ACK:
            forward.ack = packet.ack
            forward.flags |= SessionFlag.ACKED
        self.sessions.insert(reply, reverse)
        if not self.sessions.insert(key, forward):
            del self.sessions.entries[reply]
            raise drop(Reason.SESSIONS_FULL)
        for rule in (decision.rule, destination.rule, choice.rule):
            self._count(rule, packet)
        return forward

    def _mss(self, *zones: str) -> int:
        caps = [self._zones[name].tcp_mss for name in zones if name != SELF]
        return min((cap for cap in caps if cap), default=0)

    def _count(self, rule: int, packet: Packet) -> None:
        if rule:
            packets, octets = self.counters.get(rule, (0, 0))
            self.counters[rule] = (packets + 1, octets + packet.length)

    # Out

    def _partial(self, way: Way) -> bool:
        return way.port.partial and is_partial(way.packet)

    def _forward(self, way: Way, found: Found, new: Becomes, mss: int) -> None:
        """The last step of a packet that is not for this machine."""
        frame = rewrite.translate(way.packet, new, mss, partial=self._partial(way))
        self._out(way, found, frame)

    def _out(self, way: Way, found: Found, frame: bytes) -> None:
        packet, egress = way.packet, way.egress
        assert egress is not None
        if packet.ttl <= 1:
            self._answer_icmp(way, Reason.TTL_EXPIRED, *((11, 0) if packet.family == 4 else (3, 0)))
        oversize = found.reachable and packet.length > found.mtu
        if oversize and (packet.dont_fragment or packet.family == 6):
            self._answer_icmp(way, Reason.TOO_BIG, *((3, 4) if packet.family == 4 else (2, 0)), found.mtu)
        if oversize or not found.reachable or not egress.redirect or self._partial(way):
            raise Verdict("PASS", Reason.TO_KERNEL, frame)
        sent = rewrite.send(frame, way.ethernet, egress.vid, found.smac, found.dmac)
        raise Verdict("REDIRECT", Reason.FORWARDED, sent)

    def _icmp_error(self, way: Way) -> None:
        packet = way.packet
        way.is_error = True
        inner = parse_inner(packet)
        zone = self._number(way.port.zone)
        key = Key(inner.dst, inner.src, inner.dport, inner.sport, inner.protocol, zone)
        entry = self.sessions.find(key)
        if entry is None or self.sessions.expired(key, entry, way.now):
            found = self.fib.lookup(packet.dst, way.port.l3_ifindex)
            local = found is not None and found.kind is Kind.LOCAL
            if local and _is_ipsec(inner.protocol, inner.sport):
                raise Verdict("PASS", Reason.HOST_IKE)
            raise drop(Reason.ICMP_NO_SESSION)
        new_src = entry.src if packet.src == inner.dst else packet.src
        quoted = Becomes(entry.dst, entry.src, entry.dport, entry.sport)
        frame = rewrite.translate_error(packet, inner, new_src, entry.dst, quoted)
        if entry.flags & SessionFlag.TO_SELF:
            raise Verdict("PASS", Reason.HOST, frame)
        self._out(way, self._session_route(way, entry), frame)

    # Answers

    def _answer_icmp(self, way: Way, reason: Reason, kind: int, code: int, mtu: int = 0) -> None:
        own = way.port.addr4 if way.packet.family == 4 else way.port.addr6
        source = way.packet.dst if is_unspecified(own) else own
        self._answer(way, reason, rewrite.icmp_error(way.packet, source, kind, code, mtu))

    def _answer(self, way: Way, reason: Reason, frame: bytes) -> None:
        packet = way.packet
        nobody = is_multicast(packet.dst) or is_multicast(packet.src) or is_unspecified(packet.src)
        way.egress = None
        if way.is_error or packet.later_fragment or nobody:
            raise drop(reason)
        raise Verdict("TX", reason, frame)


def _is_ipsec(protocol: int, port: int) -> bool:
    return protocol in (ESP, AH) or (protocol == UDP and port in IKE_PORTS)
