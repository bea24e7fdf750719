"""Screens that look at one packet alone: what each of them drops, what it lets go, alarm, counters and events."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
from firewall_kit import LAN, WAN, World, zones
from firewall_packets import echo, later, other, tcp, udp
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6ND_NS,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.packet import Packet, Padding, Raw

from ipsec_gw.model.firewall import Action, Ruleset
from ipsec_gw.model.screens import Screens
from xdp_steer.events import Event, EventReader
from xdp_steer.flow_layout import EventKind
from xdp_steer.prog_run import XdpAction
from xdp_steer.reasons import Reason
from xdp_steer.screen_layout import SCREEN_EVENTS, Screen

pytestmark = pytest.mark.root

STATELESS = tuple(screen for screen in Screen if screen <= Screen.PING_OF_DEATH)
HERE4, HERE6, THERE4, THERE6 = LAN.host4, LAN.host6, WAN.host4, WAN.host6


def screened(*wanted: Screen, alarm_only: bool = False) -> Ruleset:
    """Everything is permitted, and lan has these screens."""
    profile = Screens("these", **{screen.name.lower(): True for screen in wanted}, alarm_only=alarm_only)
    permissive = zones(lan={"screen": "these", "syn_check": False}, wan={"syn_check": False})
    return Ruleset(zones=permissive, default=Action.PERMIT, screens=(profile,))


@dataclass(frozen=True)
class Case:
    """A packet that comes in by lan, and the only one of the screens that it hits, if any."""

    name: str
    packet: Packet
    screen: Screen | None

    def __str__(self) -> str:
        return f"{self.screen.label if self.screen is not None else 'none'}: {self.name}"


def fragment(octets: int, offset: int, *, more: bool = False, protocol: int = 17, **fields: object) -> Packet:
    """An IPv4 fragment; ``offset`` in units of 8 bytes."""
    flags = "MF" if more else 0
    return IP(src=HERE4, dst=THERE4, frag=offset, flags=flags, proto=protocol, **fields) / Raw(bytes(octets))


def of_flags(here: str, there: str) -> Iterator[tuple[str, Packet, Screen | None]]:
    for flags in ("S", "SA", "A", "FA", "R", "RA", "PA", "FPUA", "UA"):
        yield f"flags {flags}", tcp(here, there, flags=flags), None
    yield "flags SFA", tcp(here, there, flags="SFA"), Screen.SYN_FIN
    yield "all flags", tcp(here, there, flags=0xFF), Screen.SYN_FIN
    yield "flags 0", tcp(here, there, flags=0), Screen.NO_FLAG
    yield "flags E", tcp(here, there, flags="E"), None
    yield "flags F", tcp(here, there, flags="F"), Screen.FIN_NO_ACK
    yield "flags FPU", tcp(here, there, flags="FPU"), Screen.FIN_NO_ACK
    yield "urgent to 139", tcp(here, there, 139, flags="UA"), Screen.WINNUKE
    yield "urgent to 138", tcp(here, there, 138, flags="UA"), None
    yield "139", tcp(here, there, 139, flags="PA"), None


def of_both_families() -> Iterator[tuple[str, Packet, Screen | None]]:
    for v, here, there in ((4, HERE4, THERE4), (6, HERE6, THERE6)):
        for name, packet, screen in of_flags(here, there):
            yield f"{name} v{v}", packet, screen
        for name, packet in (("tcp", tcp(here, here)), ("udp", udp(here, here)), ("echo", echo(here, here))):
            yield f"{name} v{v}", packet, Screen.LAND
        yield f"gre v{v}", other(here, here), Screen.LAND
        yield f"established v{v}", tcp(here, here, flags="A"), Screen.LAND
        yield f"later fragment v{v}", later(here, here), Screen.LAND
        yield f"gre v{v}", other(here, there), None
        yield f"later fragment v{v}", later(here, there), None
        yield f"echo v{v}", echo(here, there), None


def of_ipv4() -> Iterator[tuple[str, Packet, Screen | None]]:
    first = bytes(TCP(sport=1, dport=80, flags="S"))
    for flags, screen in (("S", Screen.SYN_FRAGMENT), ("SA", Screen.SYN_FRAGMENT), ("A", None)):
        data = bytes(TCP(sport=1, dport=80, flags=flags))
        packet = IP(src=HERE4, dst=THERE4, flags="MF", proto=6, id=8) / Raw(data)
        yield f"first fragment with {flags}", packet, screen
    yield "what looks like a SYN in a later fragment", fragment(0, 3, protocol=6) / Raw(first), None
    yield "null fragment", fragment(24, 3, protocol=6), None
    for octets, screen in ((0, Screen.TEAR_DROP), (7, Screen.TEAR_DROP), (8, None)):
        yield f"{octets} bytes", fragment(octets, 3), screen
        yield f"{octets} bytes, more to come", fragment(octets, 3, more=True), screen
    yield "padded", fragment(5, 3) / Padding(bytes(20)), Screen.TEAR_DROP
    yield "first fragment of 8 bytes", IP(src=HERE4, dst=THERE4, flags="MF") / UDP(len=8), None
    udp_in = UDP(sport=1, dport=5000)
    yield "strict", IP(src=HERE4, dst=THERE4, options=b"\x89\x03\x04\x00") / udp_in, Screen.SOURCE_ROUTE
    yield "any option", IP(src=HERE4, dst=THERE4, options=b"\x94\x04\x00\x00") / udp_in, Screen.SOURCE_ROUTE
    for octets, screen in ((27, None), (28, Screen.PING_OF_DEATH)):
        yield f"reaches {8186 * 8 + 20 + octets}", fragment(octets, 8186), screen
    yield "udp", fragment(40, 8191), Screen.PING_OF_DEATH
    yield "icmp", fragment(40, 8191, protocol=1), Screen.PING_OF_DEATH


def of_ipv6() -> Iterator[tuple[str, Packet, Screen | None]]:
    six, last = IPv6(src=HERE6, dst=THERE6), UDP(sport=1, dport=5000)
    route = IPv6ExtHdrRouting(type=0, addresses=["2001:db8::7"], segleft=0)
    yield "routing type 0", six / route / last, Screen.SOURCE_ROUTE
    yield "behind options", six / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / route / last, Screen.SOURCE_ROUTE
    yield "before a fragment", six / route / IPv6ExtHdrFragment(offset=3, nh=17) / Raw(bytes(24)), Screen.SOURCE_ROUTE
    yield "routing type 2", six / IPv6ExtHdrRouting(type=2, addresses=["2001:db8::7"]) / last, None
    yield "options v6", six / IPv6ExtHdrHopByHop() / last, None
    yield "small fragment v6", six / IPv6ExtHdrFragment(offset=3, nh=17) / Raw(bytes(4)), None
    syn = six / IPv6ExtHdrFragment(m=1, id=5) / TCP(sport=1, dport=80, flags="S")
    yield "syn v6", syn, Screen.SYN_FRAGMENT
    solicit = IPv6(src=HERE6, dst=LAN.address6, hlim=255) / ICMPv6ND_NS(tgt=LAN.address6)
    yield "neighbour discovery", solicit, None


CASES = tuple(Case(*found) for found in (*of_both_families(), *of_ipv4(), *of_ipv6()))


def reason_of(screen: Screen) -> Reason:
    return Reason(Reason.SCREEN_LAND + screen)


def test_every_screen_has_the_reason_of_its_name() -> None:
    for screen in Screen:
        assert reason_of(screen).name.endswith(screen.name)


def test_every_screen_of_one_packet_has_a_case() -> None:
    assert {case.screen for case in CASES} == {*STATELESS, None}


def test_no_case_twice() -> None:
    assert len({str(case) for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_exactly_what_a_screen_is_for_is_dropped(world: World, case: Case) -> None:
    """With its screen it drops; with all the others, and without any, it does not drop for a screen."""
    world.apply(replace(screened(*STATELESS), zones=zones()))
    assert world.send(LAN, case.packet).reason < Reason.SCREEN_LAND
    world.apply(screened(*(screen for screen in STATELESS if screen is not case.screen)))
    assert world.send(LAN, case.packet).reason < Reason.SCREEN_LAND
    if case.screen is None:
        return
    world.clear()
    world.apply(screened(case.screen))
    result = world.send(LAN, case.packet)
    assert (result.action, result.reason) == (XdpAction.DROP, reason_of(case.screen))
    assert world.sessions() == []


def test_the_first_screen_that_is_hit_decides(world: World) -> None:
    world.apply(screened(*STATELESS))
    assert world.send(LAN, tcp(HERE4, HERE4, flags="SF")).reason is Reason.SCREEN_LAND
    assert world.send(LAN, tcp(HERE4, THERE4, flags="SF")).reason is Reason.SCREEN_SYN_FIN
    assert world.send(LAN, tcp(HERE4, THERE4, 139, flags="FU")).reason is Reason.SCREEN_FIN_NO_ACK


def test_screens_look_at_packets_of_sessions_too(world: World) -> None:
    world.apply(screened(Screen.FIN_NO_ACK))
    assert world.send(LAN, tcp(HERE4, THERE4)).reason is Reason.FORWARDED
    before = world.session()
    assert world.send(LAN, tcp(HERE4, THERE4, flags="F")).reason is Reason.SCREEN_FIN_NO_ACK
    assert world.session() == before


def test_what_comes_in_from_other_zones_is_not_screened(world: World) -> None:
    world.apply(screened(*STATELESS))
    assert world.send(WAN, tcp(THERE4, HERE4, flags="SF")).reason is Reason.FORWARDED


@pytest.mark.parametrize("alarm_only", [False, True], ids=["drop", "alarm"])
def test_hits_are_counted_and_told(world: World, alarm_only: bool) -> None:
    world.apply(screened(Screen.SYN_FIN, alarm_only=alarm_only))
    reader = EventReader(world.maps["events"])
    try:
        reader.read(1 << 20)
        packet, before = tcp(HERE4, THERE4, flags="SF"), world.screen_count("lan", Screen.SYN_FIN)
        result = world.send(LAN, packet)
        after = world.screen_count("lan", Screen.SYN_FIN)
        events = reader.read().events
    finally:
        reader.close()
    assert (after.packets - before.packets, after.octets - before.octets) == (1, len(packet))
    assert result.reason is (Reason.FORWARDED if alarm_only else Reason.SCREEN_SYN_FIN)
    assert len(world.sessions()) == alarm_only
    check_event(world, events, EventKind.ALARM if alarm_only else EventKind.SCREEN)


def check_event(world: World, events: tuple[Event, ...], kind: EventKind) -> None:
    (event,) = events
    assert (event.kind, event.reason, event.session, event.rule) == (kind, Reason.SCREEN_SYN_FIN, 0, 0)
    assert (str(event.flow.source), event.flow.destination_port, event.flow.protocol) == (HERE4, 80, 6)
    assert event.flow.zone == world.zone("lan")


def test_events_are_limited_for_each_screen(world: World) -> None:
    """A second may begin meanwhile."""
    world.apply(screened(Screen.SYN_FIN, Screen.NO_FLAG))
    reader = EventReader(world.maps["events"])
    try:
        reader.read(1 << 20)
        begun = world.seconds()
        for _ in range(5 * SCREEN_EVENTS):
            world.send(LAN, tcp(HERE4, THERE4, flags="SF"))
        world.send(LAN, tcp(HERE4, THERE4, flags=0))
        seconds = world.seconds() - begun + 1
        told = [Reason(event.reason) for event in reader.read().events]
    finally:
        reader.close()
    assert SCREEN_EVENTS <= told.count(Reason.SCREEN_SYN_FIN) <= seconds * SCREEN_EVENTS
    assert told.count(Reason.SCREEN_NO_FLAG) == 1


def test_a_reload_takes_screens_away(world: World) -> None:
    world.apply(screened(Screen.LAND))
    assert world.send(LAN, udp(HERE4, HERE4)).reason is Reason.SCREEN_LAND
    world.apply(replace(screened(Screen.LAND), zones=zones()))
    assert world.send(LAN, udp(HERE4, HERE4)).reason is not Reason.SCREEN_LAND
