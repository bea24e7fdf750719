"""What the kernel forwards, on its way out: only what the pipeline has judged goes, so its session must be there."""

from __future__ import annotations

from tests.reference import filters
from tests.reference.model import Pipeline
from tests.reference.packets import Key, Malformed, parse_ethernet, parse_inner, parse_ip, parse_l4
from tests.reference.rules import Port
from tests.reference.sessions import FRAGMENT_SECONDS, SECOND, FragmentKey, Fragments
from tests.reference.translator import pool_with
from xdp_steer.flow_layout import SessionFlag
from xdp_steer.reasons import Reason


class Egress:
    """Beside a pipeline. Source addresses are none of this machine, and packets no ESP.

    ``let_out``: when the first fragment of a datagram left.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self.let_out: dict[FragmentKey, int] = {}

    def forwarded(self, port: Port, frame: bytes, now_ns: int, *, from_vpp: bool = False) -> tuple[Reason, bytes]:
        """Whether a frame may leave by a port, and as what."""
        try:
            known = self._is_known(self._pipeline.number(port.zone), frame, now_ns)
            known = known or (from_vpp and self._is_translated(port, frame))
        except Malformed:
            known = False
        if not known:
            return Reason.EGRESS_UNPOLICED, frame
        return self._filtered(port, frame, now_ns) if port.out_filter else (Reason.EGRESS_SESSION, frame)

    def _filtered(self, port: Port, frame: bytes, now: int) -> tuple[Reason, bytes]:
        ethernet = parse_ethernet(frame)
        assert ethernet is not None
        packet = parse_ip(frame, ethernet)
        if not packet.later_fragment:
            parse_l4(packet)
        octets = len(frame) - ethernet.l3
        args = (packet, packet.dst, packet.dport, octets, now)
        reason, mark = filters.decide(self._pipeline, port.out_filter, *args)
        if reason is Reason.FILTER_POLICED:
            return Reason.EGRESS_POLICED, frame
        if reason is not None:
            return Reason.EGRESS_FILTER, frame
        return Reason.EGRESS_SESSION, frame if mark is None else filters.with_dscp(packet, mark)

    def _is_known(self, zone: int, frame: bytes, now: int) -> bool:
        ethernet = parse_ethernet(frame)
        assert ethernet is not None
        packet = parse_ip(frame, ethernet)
        pieces = Fragments.key(packet, zone)
        if packet.later_fragment:
            return pieces in self.let_out and now <= self.let_out[pieces] + FRAGMENT_SECONDS * SECOND
        parse_l4(packet)
        if packet.is_error:
            inner = parse_inner(packet)
            flow: Key | None = Key(inner.src, inner.dst, inner.sport, inner.dport, inner.protocol, zone)
            if inner.later:
                flow = self._pipeline.fragments.of_quoted(inner, zone, now, left=False)
            return flow is not None and self._is_live(flow, now)
        known = self._is_live(Key(packet.dst, packet.src, packet.dport, packet.sport, packet.protocol, zone), now)
        if known and packet.first_fragment:
            self.let_out[pieces] = now
        return known

    def _is_translated(self, port: Port, frame: bytes) -> bool:
        ethernet = parse_ethernet(frame)
        assert ethernet is not None
        ruleset = self._pipeline.ruleset
        found = pool_with(ruleset, parse_ip(frame, ethernet).src)
        return found is not None and ruleset.zone_of_pool(found[1].name) == port.zone

    def _is_live(self, key: Key, now: int) -> bool:
        """What VPP has to translate does not leave without."""
        sessions = self._pipeline.sessions
        entry = sessions.find(key)
        untranslated = SessionFlag.TRANSLATOR | SessionFlag.REVERSE
        if entry is None or entry.flags & untranslated == untranslated:
            return False
        return not sessions.expired(key, entry, now)
