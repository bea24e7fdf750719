"""Filters: terms one by one, the first that matches decides."""

from __future__ import annotations

import struct

from ipsec_gw.model.filters import Colour, FilterAction, FilterTerm
from ipsec_gw.model.firewall import ANY_PORT, Service
from tests.reference import rewrite
from tests.reference.checksums import header_checksum
from tests.reference.machine import Machine, Way, answer, is_ipsec
from tests.reference.packets import RST, TCP, Packet, drop
from tests.reference.policers import GREEN, RED, Marker, colour_of
from tests.reference.rules import Asked, matches_any, matching_service
from tests.reference.sessions import SECOND
from xdp_steer.reasons import Reason

UNSURE = 1.0
"""Bytes: more than the slow buckets of random rulesets get while a sequence runs."""
_IKE = 500


class Unsure(Exception):
    """A bucket has just about as many tokens as a packet has bytes: time decides."""


def at_arrival(machine: Machine, way: Way) -> None:
    """The filter of the port. Raises Verdict for what it does not let pass."""
    if way.port.in_filter and not is_ipsec_to_us(machine, way.packet):
        _in_pipeline(machine, way, way.port.in_filter, way.packet.dst, way.packet.dport)


def to_self(machine: Machine, way: Way, dst: bytes, dport: int) -> None:
    """The host filter, of a packet that is delivered to `dst`."""
    name = next((one.name for one in machine.ruleset.filters if one.host), None)
    if name is not None:
        _in_pipeline(machine, way, name, dst, dport)


def is_ipsec_to_us(machine: Machine, packet: Packet) -> bool:
    """IPsec, or a fragment of what may be."""
    return is_ipsec(packet.protocol, _IKE if packet.later_fragment else packet.dport) and packet.dst in machine.own


def _in_pipeline(machine: Machine, way: Way, name: str, dst: bytes, dport: int) -> None:
    packet = way.packet
    reason, mark = decide(machine, name, packet, dst, dport, packet.length, way.now)
    if reason is Reason.FILTER_REJECT:
        if packet.later_fragment or (packet.protocol == TCP and packet.flags & RST):
            raise drop(reason)
        if packet.protocol == TCP:
            raise answer(way, reason, rewrite.reset(packet))
        kind, code = (3, 13) if packet.family == 4 else (1, 1)
        raise answer(way, reason, rewrite.icmp_error(packet, _source_of_errors(way), kind, code))
    if reason is not None:
        raise drop(reason)
    if mark is not None:
        packet.frame = with_dscp(packet, mark)


def _source_of_errors(way: Way) -> bytes:
    own = way.port.addr4 if way.packet.family == 4 else way.port.addr6
    return own if any(own) else way.packet.dst


def decide(
    machine: Machine, name: str, packet: Packet, dst: bytes, dport: int, octets: int, now: int
) -> tuple[Reason | None, int | None]:
    """Why a packet does not pass, and its new DSCP. Raises Unsure."""
    terms = [term for term in machine.ruleset.filter_terms if term.filter == name]
    term = next((term for term in terms if matches(term, packet, dst, dport)), None)
    if term is None:
        return None, None
    machine.count_octets(machine.ids.rule("filter-term", term.name), octets)
    mark = term.mark
    if term.policer is not None:
        fate = _police(machine, term.policer, packet, octets, now)
        if fate is Colour.DISCARD:
            return Reason.FILTER_POLICED, None
        mark = fate if isinstance(fate, int) else mark
    reasons = {FilterAction.DISCARD: Reason.FILTER_DISCARD, FilterAction.REJECT: Reason.FILTER_REJECT}
    return reasons.get(term.action), mark


def matches(term: FilterTerm, packet: Packet, dst: bytes, dport: int) -> bool:
    """All that a term asks for."""
    fragment = packet.first_fragment or packet.later_fragment
    if term.fragment not in (None, fragment) or (term.dscp and dscp_of(packet) not in term.dscp):
        return False
    if (term.flags_set or term.flags_clear) and not packet.is_tcp:
        return False
    if packet.flags & term.flags_set != term.flags_set or packet.flags & term.flags_clear:
        return False
    if not matches_any(term.sources, packet.src) or not matches_any(term.destinations, dst):
        return False
    if packet.later_fragment:
        return any(_serves_without_ports(service, packet.protocol) for service in term.services)
    code = packet.code16 if packet.is_icmp else dport
    asked = Asked(packet.family, packet.src, dst, packet.protocol, packet.sport, code)
    return matching_service(term.services, asked) is not None


def _serves_without_ports(service: Service, protocol: int) -> bool:
    if service.protocol is None:
        return True
    return service.protocol == protocol and service.destination == service.source == ANY_PORT


def _police(machine: Machine, name: str, packet: Packet, octets: int, now: int) -> Colour | int:
    policer = next(policer for policer in machine.ruleset.policers if policer.name == name)
    if name not in machine.markers:
        machine.markers[name] = (Marker(policer), now)
    marker, before = machine.markers[name]
    marker.pass_time((now - before) / SECOND)
    machine.markers[name] = (marker, now)
    if marker.is_close(octets, UNSURE):
        raise Unsure
    colour = marker.colour(octets, colour_of(dscp_of(packet)))
    if colour == GREEN:
        return Colour.ACCEPT
    machine.count_octets(machine.ids.rule("policer" if colour == RED else "policer-yellow", name), octets)
    return policer.red if colour == RED else policer.yellow


def dscp_of(packet: Packet) -> int:
    (word,) = struct.unpack_from("!H", packet.frame, packet.l3)
    return word >> (2 if packet.family == 4 else 6) & 63


def with_dscp(packet: Packet, dscp: int) -> bytes:
    """The frame with another codepoint; ECN stays."""
    shift = 2 if packet.family == 4 else 6
    (word,) = struct.unpack_from("!H", packet.frame, packet.l3)
    made = bytearray(packet.frame)
    struct.pack_into("!H", made, packet.l3, word & ~(63 << shift) & 0xFFFF | dscp << shift)
    if packet.family == 4:
        header_checksum(packet.frame, made, packet.l3)
    return bytes(made)
