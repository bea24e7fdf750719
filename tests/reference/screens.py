"""Screens: what a zone does not want to see, before sessions and policies; limits of sessions after them.

A window has a count for a whole zone, or a source or destination of it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from ipsec_gw.model.screens import Screens
from tests.reference.machine import Machine, Way, Window, is_ipsec
from tests.reference.packets import ACK, FIN, FRAGMENT, HOP_BY_HOP, OPTIONS, ROUTING, SYN, UDP, Key, Packet, drop
from tests.reference.sessions import SECOND
from xdp_steer.flow_layout import SessionFlag
from xdp_steer.reasons import Reason
from xdp_steer.screen_layout import Screen

URG = 0x20


def screen(machine: Machine, way: Way) -> None:
    """Raises Verdict for the first screen that a packet hits, unless all that they do is give alarm."""
    profile = profile_of(machine, way)
    if profile is None:
        return
    found = next((screen for screen in hits(way.packet) if getattr(profile, screen.name.lower())), None)
    if found is None:
        found = next(
            (kind for kind, place in counted(machine, way) if is_flood(machine, way, profile, kind, place)), None
        )
    if found is not None:
        hit(machine, way, profile, found)


def profile_of(machine: Machine, way: Way) -> Screens | None:
    """The screens of the zone that a packet comes from."""
    name = machine.zones[way.port.zone].screen
    return next((screens for screens in machine.ruleset.screens if screens.name == name), None)


def hit(machine: Machine, way: Way, profile: Screens, screen: Screen) -> None:
    """Count it; raises Verdict if the packet does not go on."""
    place = (machine.number(way.port.zone), screen)
    packets, octets = machine.screened.get(place, (0, 0))
    machine.screened[place] = (packets + 1, octets + way.packet.length)
    if not profile.alarm_only:
        raise drop(Reason(Reason.SCREEN_LAND + screen))


def window_of(machine: Machine, way: Way, profile: Screens, kind: Screen, place: bytes) -> Window:
    """The present one of a zone and an address, no address for the whole zone."""
    second = way.now // SECOND
    begun = second - second % profile.window
    key = (machine.number(way.port.zone), kind, place)
    if key not in machine.windows or machine.windows[key].begun != begun:
        machine.windows[key] = Window(begun)
    return machine.windows[key]


def counted(machine: Machine, way: Way) -> Iterator[tuple[Screen, bytes]]:
    """What a packet is part of, in the order of the screens."""
    packet = way.packet
    if is_syn(packet):
        yield Screen.SYN_FLOOD, b""
        yield Screen.SYN_SOURCE, packet.src
        yield Screen.SYN_DESTINATION, packet.dst
    elif packet.is_icmp:
        yield Screen.ICMP_FLOOD, b""
    elif packet.protocol == UDP and not is_own_ipsec(machine, packet):
        yield Screen.UDP_FLOOD, b""


def is_syn(packet: Packet) -> bool:
    return packet.is_tcp and packet.flags & (SYN | ACK) == SYN


def is_own_ipsec(machine: Machine, packet: Packet) -> bool:
    """To an address of this machine, by what can be told of it."""
    ours = packet.protocol == UDP if packet.later_fragment else is_ipsec(packet.protocol, packet.dport)
    return ours and packet.dst in machine.own


def is_flood(machine: Machine, way: Way, profile: Screens, kind: Screen, place: bytes) -> bool:
    """Count a packet. Are those too many?"""
    allowed = getattr(profile, kind.name.lower())
    if allowed is None:
        return False
    window = window_of(machine, way, profile, kind, place)
    window.packets += 1
    return window.packets > allowed


def search(machine: Machine, way: Way) -> None:
    """Raises Verdict when the source of a packet without a session asks for too many different things."""
    profile = profile_of(machine, way)
    if profile is None:
        return
    packet = way.packet
    if is_syn(packet) and _asks(machine, way, profile, Screen.PORT_SCAN, struct.pack("!H", packet.dport)):
        hit(machine, way, profile, Screen.PORT_SCAN)
    elif not is_own_ipsec(machine, packet) and _asks(machine, way, profile, Screen.IP_SWEEP, packet.dst):
        hit(machine, way, profile, Screen.IP_SWEEP)


def _asks(machine: Machine, way: Way, profile: Screens, kind: Screen, item: bytes) -> bool:
    """One thing more: are those too many? From then on, all packets of the source are."""
    allowed = getattr(profile, kind.name.lower())
    if allowed is None:
        return False
    window = window_of(machine, way, profile, kind, way.packet.src)
    if len(window.asked) <= allowed:
        window.asked.add(item)
    return len(window.asked) > allowed


def limit_sessions(machine: Machine, way: Way, key: Key) -> None:
    """Raises Verdict when a new session would be one too many of its source or its destination."""
    profile = profile_of(machine, way)
    if profile is None:
        return
    forward = [
        k for k, e in machine.sessions.entries.items() if k.zone == key.zone and not e.flags & SessionFlag.REVERSE
    ]
    if profile.sessions_source and sum(k.src == key.src for k in forward) >= profile.sessions_source:
        hit(machine, way, profile, Screen.SESSIONS_SOURCE)
    if profile.sessions_destination and sum(k.dst == key.dst for k in forward) >= profile.sessions_destination:
        hit(machine, way, profile, Screen.SESSIONS_DESTINATION)


def hits(packet: Packet) -> Iterator[Screen]:
    """What one packet alone tells, in the order of the screens."""
    if packet.src == packet.dst:
        yield Screen.LAND
    if packet.is_tcp:
        yield from _hits_of_tcp(packet)
    if packet.family == 4:
        yield from _hits_of_ipv4(packet)
    elif _routing_type_0(packet):
        yield Screen.SOURCE_ROUTE


def _hits_of_tcp(packet: Packet) -> Iterator[Screen]:
    flags = packet.flags
    if flags & SYN and flags & FIN:
        yield Screen.SYN_FIN
    if not flags:
        yield Screen.NO_FLAG
    if flags & FIN and not flags & ACK:
        yield Screen.FIN_NO_ACK
    if flags & URG and packet.dport == 139:
        yield Screen.WINNUKE
    if flags & SYN and packet.first_fragment:
        yield Screen.SYN_FRAGMENT


def _hits_of_ipv4(packet: Packet) -> Iterator[Screen]:
    (place,) = struct.unpack_from("!H", packet.frame, packet.l3 + 6)
    if packet.later_fragment and packet.end - packet.l4 < 8:
        yield Screen.TEAR_DROP
    if packet.l4 - packet.l3 > 20:
        yield Screen.SOURCE_ROUTE
    if packet.later_fragment and (place & 0x1FFF) * 8 + packet.length > 65535:
        yield Screen.PING_OF_DEATH


def _routing_type_0(packet: Packet) -> bool:
    """Is there a routing header of type 0 before the L4 header, or before what a later fragment carries?"""
    protocol, at = packet.frame[packet.l3 + 6], packet.l3 + 40
    while at < packet.l4 and protocol in (HOP_BY_HOP, ROUTING, FRAGMENT, OPTIONS):
        following, units, kind = packet.frame[at : at + 3]
        if protocol == ROUTING and not kind:
            return True
        at += 8 if protocol == FRAGMENT else (units + 1) * 8
        protocol = following
    return False
