"""The firewall's pipeline in plain Python: slow, and made to be read beside its specification.

One packet at a time, on a ruleset's values and not on what the compiler makes of them. Where the datapath changes
checksums, this computes them from all that they cover.
"""

from __future__ import annotations

from dataclasses import dataclass

from ipsec_gw.model.firewall import SELF
from ipsec_gw.model.snapshot import PolicyDirection
from tests.reference import filters, nat64, rewrite, translator
from tests.reference.fib import Found, Kind
from tests.reference.ipsec import Fields, fields_of, protecting
from tests.reference.machine import Machine, Way, is_ipsec, leave, leave_crossed, send_crossed
from tests.reference.opening import NOBODY, open_session, permit
from tests.reference.packets import (
    RST,
    SYN,
    Inner,
    Key,
    Malformed,
    Verdict,
    drop,
    is_multicast,
    parse_ethernet,
    parse_inner,
    parse_ip,
    parse_l4,
)
from tests.reference.rewrite import Becomes
from tests.reference.screens import screen
from tests.reference.sessions import ROUTE_SECONDS, SECOND, Entry, is_reopening
from xdp_steer.flow_layout import SessionFlag, State
from xdp_steer.reasons import Reason

NDP = range(133, 138)
"""ICMPv6 types."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a packet: PASS, DROP, TX or REDIRECT, why, the frame, and the port to go out by if known.

    ``any_identification``: that of its IPv4 header may be another one.
    """

    action: str
    reason: Reason
    frame: bytes
    egress: tuple[int, int] | None = None
    any_identification: bool = False


class Pipeline(Machine):
    """Give it frames in the order in which they come in."""

    def packet(self, ingress: int, frame: bytes, now_ns: int) -> Outcome:
        """Decide a frame that came in by the interface of index ``ingress``."""
        self.sessions.touched.clear()
        way: Way | None = None
        try:
            way = self._enter(ingress, frame, now_ns)
            verdict = self._classify(way)
        except Malformed:
            return Outcome("DROP", Reason.MALFORMED, frame)
        except Verdict as raised:
            verdict = raised
        egress = way.egress if way else None
        where = (egress.ifindex, egress.vid) if egress else None
        left = way.packet.frame if way else frame
        return Outcome(verdict.action, verdict.reason, verdict.frame or left, where, verdict.any_identification)

    def _enter(self, ingress: int, frame: bytes, now: int) -> Way:
        ethernet = parse_ethernet(frame)
        if ethernet is None:
            raise Verdict("PASS", Reason.NOT_IP)
        port = self.ports.get((ingress, ethernet.vid))
        if port is None:
            raise drop(Reason.NO_ZONE)
        return Way(parse_ip(frame, ethernet), ethernet, port, now)

    def _classify(self, way: Way) -> Verdict:
        packet, zone = way.packet, self.number(way.port.zone)
        if not packet.later_fragment:
            parse_l4(packet)
            if packet.family == 6 and packet.is_icmp and packet.icmp_type in NDP and packet.ttl == 255:
                return Verdict("PASS", Reason.NDP)
        if way.port.translated:
            translator.come_back(self, way)
        else:
            filters.at_arrival(self, way)
            screen(self, way)
        if packet.later_fragment:
            return self._later_fragment(way, zone)
        if packet.is_error:
            return self._icmp_error(way, zone)
        if is_multicast(packet.dst):
            decision = permit(self, way, SELF, packet.dst, packet.dport)
            self.count(decision.rule, packet)
            filters.to_self(self, way, packet.dst, packet.dport)
            return Verdict("PASS", Reason.HOST)
        return self._flow(way, packet.key(zone))

    def _later_fragment(self, way: Way, zone: int) -> Verdict:
        flow = self.fragments.flow(way.packet, zone, way.now)
        if flow is not None:
            return self._flow(way, flow)
        if translator.is_to_translate(self, way):
            return translator.give_in(self, way)
        if self.is_local(way, way.packet.dst):
            if not filters.is_ipsec_to_us(self, way.packet):
                filters.to_self(self, way, way.packet.dst, 0)
            return Verdict("PASS", Reason.LOCAL_FRAGMENT)
        return drop(Reason.FRAGMENT_UNKNOWN)

    def _flow(self, way: Way, key: Key) -> Verdict:
        packet = way.packet
        entry = self.sessions.find(key)
        new = False
        if entry is not None:
            translator.check_session(self, way, entry)
        over = entry is not None and (self.sessions.expired(key, entry, way.now) or is_reopening(packet, entry))
        if entry is not None and over:
            self.sessions.remove(key, entry)
        if entry is None or over:
            if packet.later_fragment:
                return drop(Reason.FRAGMENT_UNKNOWN)
            entry, new = open_session(self, way, key), True
        else:
            self._known(way, key, entry)
        if packet.first_fragment:
            self.fragments.remember(packet, key, entry, way.now)
        return self._go_on(way, entry, None if new else key)

    def _known(self, way: Way, key: Key, entry: Entry) -> None:
        """A packet of a session that is there. Raises Verdict when it may not go on."""
        packet = way.packet
        own, peer = self.sessions.pair(key, entry)
        closed = own.state == State.CLOSED
        if packet.is_tcp:
            if closed and not packet.flags & RST:
                raise drop(Reason.SESSION_CLOSED)
            self.sessions.advance(packet, own, peer, out_of_tunnel=way.port.tunnel)
        if not closed:
            own.last_seen_ns = way.now
        own.packets += 1
        own.octets += packet.length
        if not own.flags & SessionFlag.NAT64:
            self.count_pool(own.embedded, packets=1)

    def _go_on(self, way: Way, entry: Entry, key: Key | None) -> Verdict:
        """``key`` is that of a session that was there before."""
        new = Becomes(entry.src, entry.dst, entry.sport, entry.dport)
        if entry.flags & SessionFlag.TO_SELF:
            filters.to_self(self, way, entry.dst, entry.dport)
            return Verdict("PASS", Reason.HOST, rewrite.translate(way.packet, new, 0, partial=way.partial))
        found = self._kept_route(way, entry)
        if found is None:
            found = self._route(way, entry, key)
            self._keep_route(way, entry, found)
        if entry.flags & SessionFlag.NAT64:
            return leave_crossed(way, found, entry)
        if translator.is_for_vpp(entry):
            return self._to_vpp(way, found, entry, rewrite.translate(way.packet, new, entry.mss, partial=way.partial))
        return leave(way, found, rewrite.translate(way.packet, new, entry.mss, partial=way.partial))

    def _to_vpp(self, way: Way, found: Found, entry: Entry, frame: bytes) -> Verdict:
        return translator.give(self, way, frame, entry.embedded, found.mtu if found.reachable else 0)

    def _kept_route(self, way: Way, entry: Entry) -> Found | None:
        """None when a look-up is due. One is for a SYN whose MSS has a cap too: any time is right for that."""
        stale = way.now > entry.routed_ns + ROUTE_SECONDS * SECOND or entry.generation != self.generation
        if not entry.out_ifindex or stale or (entry.mss and way.packet.flags & SYN):
            return None
        place = (entry.out_ifindex, entry.out_vid)
        way.egress = self.ports[place]
        return Found(Kind.UNICAST, place, entry.smac, entry.dmac, entry.mtu)

    def _keep_route(self, way: Way, entry: Entry, found: Found) -> None:
        assert way.egress is not None
        entry.out_ifindex = 0
        if found.reachable and way.egress.redirect:
            entry.out_ifindex, entry.out_vid = found.port
            entry.mtu, entry.dmac, entry.smac = found.mtu, found.dmac, found.smac
            entry.routed_ns, entry.generation = way.now, self.generation

    def _route(self, way: Way, entry: Entry, key: Key | None) -> Found:
        """Where a packet of a flow goes, looked up once more. Of one that just began it is known already."""
        egress = way.egress
        found = self._look_up(way, entry)
        if key is None:
            way.egress = egress
            return found
        protocol = nat64.other_protocol(key.protocol) if entry.flags & SessionFlag.NAT64 else key.protocol
        becomes = fields_of(way.packet, entry.src, entry.dst, protocol, (entry.sport, entry.dport))
        self._hold(way, entry, key, becomes)
        return found

    def _hold(self, way: Way, entry: Entry, key: Key | None, becomes: Fields) -> None:
        """What a packet becomes against the policies of IPsec: it has to go where its session was judged to go."""
        if way.egress is None:
            raise drop(Reason.ZONE_CHANGED)
        protected = not way.egress.tunnel and protecting(self.tunnels, PolicyDirection.OUT, becomes)
        if protected:
            self.enter_tunnel(way)
        forward = key is not None and not entry.flags & SessionFlag.REVERSE
        overtaken = bool(protected) and self.number(way.egress.zone) != entry.out_zone
        if forward and not protected and entry.flags & SessionFlag.NAT:
            was = fields_of(way.packet, key.src, entry.dst, key.protocol, (key.sport, entry.dport))
            overtaken = bool(protecting(self.tunnels, PolicyDirection.OUT, was))
        if forward and overtaken:
            self.sessions.remove(key, entry)
            raise drop(Reason.ZONE_CHANGED)
        if self.number(way.egress.zone) != entry.out_zone:
            raise drop(Reason.ZONE_CHANGED)

    def _look_up(self, way: Way, entry: Entry) -> Found:
        crossing = entry.flags & SessionFlag.NAT64
        source = NOBODY if crossing and way.packet.family == 6 else entry.src if crossing else None
        return self.route(way, entry.dst, source)

    def _icmp_error(self, way: Way, zone: int) -> Verdict:
        packet = way.packet
        inner = parse_inner(packet)
        key: Key | None = Key(inner.dst, inner.src, inner.dport, inner.sport, inner.protocol, zone)
        if inner.later:
            key = self.fragments.of_quoted(inner, zone, way.now, left=True)
        entry = self.sessions.find(key) if key else None
        if key is None or entry is None or self.sessions.expired(key, entry, way.now):
            return self._error_of_nobody(way, inner)
        translator.check_session(self, way, entry)
        if entry.flags & SessionFlag.NAT64:
            return self._crossing_error(way, inner, entry)
        new_src = entry.src if packet.src == inner.dst else packet.src
        quoted = Becomes(entry.dst, entry.src, entry.dport, entry.sport)
        if entry.flags & SessionFlag.TO_SELF:
            filters.to_self(self, way, entry.dst, packet.dport)
        frame = rewrite.translate_error(packet, inner, new_src, entry.dst, quoted)
        if entry.flags & SessionFlag.TO_SELF:
            return Verdict("PASS", Reason.HOST, frame)
        found = self._look_up(way, entry)
        self._hold(way, entry, None, fields_of(packet, new_src, entry.dst, packet.protocol, (0, 0)))
        if translator.is_for_vpp(entry):
            return self._to_vpp(way, found, entry, frame)
        return leave(way, found, frame)

    def _error_of_nobody(self, way: Way, inner: Inner) -> Verdict:
        if translator.is_to_translate(self, way):
            return translator.give_in(self, way)
        if is_ipsec(inner.protocol, inner.sport) and self.is_local(way, way.packet.dst):
            return Verdict("PASS", Reason.HOST_IKE)
        return drop(Reason.ICMP_NO_SESSION)

    def _crossing_error(self, way: Way, inner: Inner, entry: Entry) -> Verdict:
        found = self._look_up(way, entry)
        protocol = nat64.other_protocol(way.packet.protocol)
        self._hold(way, entry, None, fields_of(way.packet, entry.src, entry.dst, protocol, (0, 0)))
        if way.packet.ttl <= 1:
            return leave(way, found, way.packet.frame)
        new = Becomes(entry.src, entry.dst, entry.sport, entry.dport)
        try:
            crossed = nat64.translate_error(way.packet, inner, new, entry.embedded, found.mtu)
        except nat64.Untranslatable as never:
            return drop(never.reason)
        return send_crossed(way, found, crossed)
