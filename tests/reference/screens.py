"""Screens: what a zone does not want to see, before sessions and policies."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from ipsec_gw.model.screens import Screens
from tests.reference.machine import Machine, Way
from tests.reference.packets import ACK, FIN, FRAGMENT, HOP_BY_HOP, OPTIONS, ROUTING, SYN, Key, Packet, drop
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
