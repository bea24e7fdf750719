"""Screens that count: what is counted, exactly how much is allowed, windows, and what goes on all the same.

A window of 60 seconds may end while a test runs: what it sends within one window is sent again then.
"""

from __future__ import annotations

import ctypes
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from firewall_kit import DMZ, FAR, LAN, PATIENCE, SESSION_ENTRIES, VLAN, WAN, Port, Result, World, zones
from firewall_packets import echo, ip_layer, later, other, partial, tcp, udp
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6ND_NS, IPv6, IPv6ExtHdrFragment
from scapy.layers.ipsec import AH, ESP
from scapy.packet import Packet, Raw

from ipsec_gw.firewall.ageing import CloseReason, Filter
from ipsec_gw.firewall.collector import Collector
from ipsec_gw.model.firewall import Action, Policy, Ruleset, Service, Sessions, SourceNat, Translation
from ipsec_gw.model.screens import Screens
from xdp_steer import libbpf
from xdp_steer import screen_layout as sl
from xdp_steer.events import EventReader
from xdp_steer.flow_layout import SESSIONS, EventKind, SessionLeaf, State
from xdp_steer.layout import AddressLeaf, MapSpec
from xdp_steer.prog_run import XdpAction
from xdp_steer.reasons import Reason
from xdp_steer.screen_layout import OF_SESSIONS, SCREEN_EVENTS, Screen, ScreenKeyLeaf
from xdp_steer.session_counts import SessionCounts
from xdp_steer.sessions import Flow

pytestmark = pytest.mark.root

COUNTING = tuple(screen for screen in Screen if Screen.PING_OF_DEATH < screen < Screen.SYN_COOKIE)
OF_ZONES = (Screen.SYN_FLOOD, Screen.ICMP_FLOOD, Screen.UDP_FLOOD)
LIMIT, WINDOW = 3, 60


def screened(*wanted: Screen, limit: int = LIMIT, window: int = WINDOW, alarm_only: bool = False) -> Ruleset:
    """Everything is permitted; lan, vlan and wan have these screens."""
    thresholds = {screen.name.lower(): limit for screen in wanted}
    profile = Screens("these", **thresholds, window=window, alarm_only=alarm_only)
    fields = {"screen": "these", "syn_check": False}
    return Ruleset(zones=zones(lan=fields, vlan=fields, wan=fields), default=Action.PERMIT, screens=(profile,))


def reason_of(screen: Screen) -> Reason:
    return Reason(Reason.SCREEN_LAND + screen)


def source(port: Port, v: int, n: int) -> str:
    """The n-th address behind a port: its neighbour is the first."""
    return str(ip_address(port.host(v)) + n)


def target(v: int, n: int) -> str:
    """The n-th destination by wan."""
    return str(ip_address(FAR[v]) + n)


Nth = Callable[[Port, int, int], Packet]
"""Makes the n-th packet that comes in by a port, of an IP version."""

COUNTED: dict[Screen, Nth] = {
    Screen.SYN_FLOOD: lambda port, v, n: tcp(source(port, v, n), target(v, n), 80 + n),
    Screen.ICMP_FLOOD: lambda port, v, n: echo(source(port, v, n), target(v, n)),
    Screen.UDP_FLOOD: lambda port, v, n: udp(source(port, v, n), target(v, n), 5000 + n),
    Screen.SYN_SOURCE: lambda port, v, n: tcp(source(port, v, 0), target(v, n), 80 + n),
    Screen.SYN_DESTINATION: lambda port, v, n: tcp(source(port, v, n), target(v, 0), 80 + n),
    Screen.PORT_SCAN: lambda port, v, n: tcp(source(port, v, 0), target(v, n), 80 + n),
    Screen.IP_SWEEP: lambda port, v, n: udp(source(port, v, 0), target(v, n)),
    Screen.SESSIONS_SOURCE: lambda port, v, n: udp(source(port, v, 0), target(v, n), 5000 + n),
    Screen.SESSIONS_DESTINATION: lambda port, v, n: tcp(source(port, v, n), target(v, 0), 80 + n),
}
"""What each of them counts, as different as it may be otherwise."""

APART: dict[Screen, Nth] = {
    Screen.SYN_SOURCE: lambda port, v, n: tcp(source(port, v, 1 + n), target(v, 0), 80),
    Screen.SYN_DESTINATION: lambda port, v, n: tcp(source(port, v, 0), target(v, 1 + n), 80),
    Screen.PORT_SCAN: lambda port, v, n: tcp(source(port, v, 1 + n), target(v, 0), 80),
    Screen.IP_SWEEP: lambda port, v, n: udp(source(port, v, 1 + n), target(v, 0)),
    Screen.SESSIONS_SOURCE: lambda port, v, n: udp(source(port, v, 1 + n), target(v, 0)),
    Screen.SESSIONS_DESTINATION: lambda port, v, n: tcp(source(port, v, 0), target(v, 1 + n)),
}
"""Packets of sources or to destinations that have counts of their own."""


def sent(world: World, port: Port, packets: Sequence[Packet]) -> list[Reason]:
    return [world.send(port, packet).reason for packet in packets]


def nth(make: Nth, port: Port, v: int, *numbers: int) -> list[Packet]:
    return [make(port, v, n) for n in numbers]


def test_every_screen_that_counts_has_a_case() -> None:
    assert set(COUNTED) == set(COUNTING)
    assert set(APART) == {*COUNTING} - {*OF_ZONES}


@pytest.mark.parametrize("v", [4, 6])
@pytest.mark.parametrize("port", [LAN, VLAN], ids=["untagged", "tagged"])
@pytest.mark.parametrize("screen", COUNTING, ids=lambda screen: screen.label)
def test_as_many_as_allowed_and_not_one_more(world: World, screen: Screen, port: Port, v: int) -> None:
    world.apply(screened(screen))
    allowed, more = nth(COUNTED[screen], port, v, *range(LIMIT)), nth(COUNTED[screen], port, v, LIMIT, LIMIT + 1)

    def work() -> tuple[list[Reason], int, list[Result]]:
        return sent(world, port, allowed), len(world.sessions()), [world.send(port, packet) for packet in more]

    reasons, sessions, refused = world.in_one_window(work)
    assert reasons == [Reason.FORWARDED] * LIMIT
    assert sessions == LIMIT
    assert {(result.action, result.reason) for result in refused} == {(XdpAction.DROP, reason_of(screen))}
    assert len(world.sessions()) == LIMIT


@pytest.mark.parametrize("v", [4, 6])
@pytest.mark.parametrize("screen", [s for s in COUNTING if s is not Screen.ICMP_FLOOD], ids=lambda s: s.label)
def test_checksums_that_are_left_to_hardware_make_no_difference(world: World, screen: Screen, v: int) -> None:
    world.apply(screened(screen), lan={"partial": True})
    packets = [partial(packet) for packet in nth(COUNTED[screen], LAN, v, *range(LIMIT + 1))]
    reasons = world.in_one_window(lambda: sent(world, LAN, packets))
    assert reasons == [*[Reason.TO_KERNEL] * LIMIT, reason_of(screen)]


@pytest.mark.parametrize("v", [4, 6])
@pytest.mark.parametrize("screen", APART, ids=lambda screen: screen.label)
def test_each_source_or_destination_has_its_own_count(world: World, screen: Screen, v: int) -> None:
    world.apply(screened(screen))
    packets = [*nth(COUNTED[screen], LAN, v, *range(LIMIT + 1)), *nth(APART[screen], LAN, v, 1, 2)]
    reasons = world.in_one_window(lambda: sent(world, LAN, packets))
    assert reasons[LIMIT:] == [reason_of(screen), Reason.FORWARDED, Reason.FORWARDED]


@pytest.mark.parametrize("screen", COUNTING, ids=lambda screen: screen.label)
def test_each_zone_has_its_own_count(world: World, screen: Screen) -> None:
    """The same packets, by another port."""
    world.apply(screened(screen))
    packets = nth(COUNTED[screen], LAN, 4, *range(LIMIT + 1))

    def work() -> tuple[list[Reason], list[Reason]]:
        first = sent(world, LAN, packets)
        world.forget(SESSIONS)  # the packets of the other zone would find their replies in the way
        return first, sent(world, VLAN, [VLAN.frame(packet) for packet in packets])

    expected = [*[Reason.FORWARDED] * LIMIT, reason_of(screen)]
    assert world.in_one_window(work) == (expected, expected)


def test_a_zone_without_screens_counts_nothing(world: World) -> None:
    world.apply(screened(*COUNTING, limit=1))
    assert sent(world, DMZ, nth(COUNTED[Screen.PORT_SCAN], DMZ, 4, *range(5))) == [Reason.FORWARDED] * 5
    assert world.session_counts() == {}


@pytest.mark.parametrize("screen", COUNTING, ids=lambda screen: screen.label)
def test_alarm_counts_and_tells_and_lets_go(world: World, screen: Screen) -> None:
    world.apply(screened(screen, alarm_only=True))
    packets = nth(COUNTED[screen], LAN, 4, *range(LIMIT + 2))
    reader = EventReader(world.maps["events"])

    def work() -> tuple[list[Reason], int, list[tuple[EventKind, int]]]:
        reader.read(1 << 20)
        before = world.screen_count("lan", screen)
        reasons = sent(world, LAN, packets)
        hits = world.screen_count("lan", screen).packets - before.packets
        return reasons, hits, [(event.kind, event.reason) for event in reader.read().events]

    try:
        reasons, hits, told = world.in_one_window(work)
    finally:
        reader.close()
    assert reasons == [Reason.FORWARDED] * (LIMIT + 2)
    assert hits == 2
    assert told == [(EventKind.ALARM, reason_of(screen))] * 2


def test_a_flood_is_told_of_no_more_than_ten_times_a_second(world: World) -> None:
    world.apply(screened(Screen.UDP_FLOOD, limit=1))
    reader = EventReader(world.maps["events"])
    packet = udp(LAN.host4, WAN.host4)
    try:
        reader.read(1 << 20)
        begun, before = world.seconds(), world.screen_count("lan", Screen.UDP_FLOOD)
        for _ in range(5 * SCREEN_EVENTS):
            world.send(LAN, packet)
        seconds = world.seconds() - begun + 1
        told = reader.read().events
        hits = world.screen_count("lan", Screen.UDP_FLOOD).packets - before.packets
    finally:
        reader.close()
    assert SCREEN_EVENTS <= len(told) <= seconds * SCREEN_EVENTS
    assert {(event.kind, event.reason) for event in told} == {(EventKind.SCREEN, Reason.SCREEN_UDP_FLOOD)}
    assert hits >= 5 * SCREEN_EVENTS - 2, "all but the first of each window, of which there are two at most"


WINDOWED = [screen for screen in COUNTING if screen not in OF_SESSIONS]


@pytest.mark.parametrize("screen", WINDOWED, ids=lambda screen: screen.label)
def test_a_window_begins_at_nothing(world: World, screen: Screen) -> None:
    """New flows, and the very same ports and destinations as in the window before."""
    world.apply(screened(screen))
    packets, more = nth(COUNTED[screen], LAN, 4, *range(LIMIT + 1)), nth(COUNTED[screen], LAN, 4, *range(LIMIT, 9))

    def work() -> tuple[list[Reason], list[Reason]]:
        first = sent(world, LAN, packets)
        world.next_window(WINDOW)
        world.forget(SESSIONS)
        return first, sent(world, LAN, [*packets, *more])

    first, second = world.in_one_window(work)
    assert first == [*[Reason.FORWARDED] * LIMIT, reason_of(screen)]
    assert second == [*first, *[reason_of(screen)] * len(more)]


@pytest.mark.parametrize("screen", [Screen.SYN_FLOOD, Screen.PORT_SCAN], ids=lambda s: s.label)
def test_the_clock_ends_a_window(world: World, screen: Screen) -> None:
    """Of one second, by the real clock: the threshold holds until the second is over, and no longer."""
    world.apply(screened(screen, limit=2, window=1))
    deadline = time.monotonic() + PATIENCE
    by_second: dict[int, list[Reason]] = {}
    edges: set[int] = set()
    """Seconds that may have counted a packet sent at the end of the one before."""
    port = 1000
    while len(by_second) < 4:
        assert time.monotonic() < deadline
        begun, reason, port = world.seconds(), world.send(LAN, tcp(LAN.host4, WAN.host4, port)).reason, port + 1
        if world.seconds() == begun:
            by_second.setdefault(begun, []).append(reason)
        else:
            edges.add(world.seconds())
    for second in sorted(by_second)[1:-1]:  # the first and the last were seen in part
        reasons = by_second[second]
        let_go = reasons.index(reason_of(screen))
        assert let_go in {2, 1 if second in edges else 2}
        assert set(reasons[let_go:]) == {reason_of(screen)}


def test_windows_begin_at_multiples_of_their_length(world: World) -> None:
    world.apply(screened(Screen.SYN_SOURCE, window=7))
    key = ScreenKeyLeaf(AddressLeaf.of(ip_address(LAN.host4)), world.zone("lan"), Screen.SYN_SOURCE)

    def work() -> tuple[int, int]:
        now = world.seconds()
        world.send(LAN, tcp(LAN.host4, WAN.host4))
        return now - now % 7, libbpf.map_lookup(world.maps[sl.SCREEN_WORDS.name], key, ctypes.c_uint64()).value

    begun, word = world.in_one_window(work, 7)
    assert (word >> 32, word & 0xFFFFFFFF) == (begun, 1)


NOT_COUNTED: dict[Screen, Sequence[Packet]] = {
    screen: (
        *(tcp(LAN.host4, WAN.host4, 80 + n, flags="SA") for n in range(3)),
        *(tcp(LAN.host6, WAN.host6, 80 + n, flags="A") for n in range(3)),
        *(udp(LAN.host4, WAN.host4, 80 + n) for n in range(3)),
        echo(LAN.host4, WAN.host4),
        later(LAN.host4, WAN.host4),
        IP(src=LAN.host4, dst=WAN.host4, frag=3, proto=6) / Raw(bytes(TCP(dport=80, flags="S"))),
    )
    for screen in (Screen.SYN_FLOOD, Screen.SYN_SOURCE, Screen.SYN_DESTINATION, Screen.PORT_SCAN)
} | {
    Screen.ICMP_FLOOD: (
        *(udp(LAN.host4, WAN.host4) for _ in range(3)),
        *(tcp(LAN.host4, WAN.host4) for _ in range(3)),
        *(IPv6(src=LAN.host6, dst=LAN.address6, hlim=255) / ICMPv6ND_NS(tgt=LAN.address6) for _ in range(3)),
        ip_layer(6, src=LAN.host6, dst=WAN.host6, proto=1) / Raw(bytes(20)),
        ip_layer(4, src=LAN.host4, dst=WAN.host4, proto=58) / Raw(bytes(20)),
    ),
    Screen.UDP_FLOOD: (
        *(tcp(LAN.host4, WAN.host4) for _ in range(3)),
        *(echo(LAN.host6, WAN.host6) for _ in range(3)),
        *(other(LAN.host4, WAN.host4) for _ in range(3)),
    ),
    Screen.IP_SWEEP: (
        *(udp(LAN.host4, WAN.host4, 80 + n) for n in range(3)),
        *(tcp(LAN.host4, WAN.host4, 80 + n) for n in range(3)),
        echo(LAN.host4, WAN.host4),
    ),
}
"""More than one of each, with a threshold of 1."""


@pytest.mark.parametrize("screen", NOT_COUNTED, ids=lambda screen: screen.label)
def test_what_is_not_counted(world: World, screen: Screen) -> None:
    """Then the first that counts is within the threshold, the second is not."""
    world.apply(screened(screen, limit=1))
    counted = [1] if screen is Screen.IP_SWEEP else [1, 2]  # the first destination is the one of all these
    packets = [*NOT_COUNTED[screen], *nth(COUNTED[screen], LAN, 4, *counted)]
    reasons = world.in_one_window(lambda: sent(world, LAN, packets))
    assert reason_of(screen) not in reasons[:-1]
    assert reasons[-1] is reason_of(screen)


def test_the_same_port_again_is_no_scan(world: World) -> None:
    world.apply(screened(Screen.PORT_SCAN, limit=1))
    again = [tcp(LAN.host4, target(4, n)) for n in range(5)]
    reasons = world.in_one_window(lambda: sent(world, LAN, [*again, tcp(LAN.host4, target(4, 0), 81), again[0]]))
    assert reasons == [*[Reason.FORWARDED] * 5, Reason.SCREEN_PORT_SCAN, Reason.FORWARDED], "the last has a session"


def test_a_sweep_with_bare_acks_is_one(world: World) -> None:
    world.apply(screened(Screen.IP_SWEEP, limit=2))
    packets = [tcp(LAN.host4, target(4, n), flags="A") for n in range(3)]
    reasons = world.in_one_window(lambda: sent(world, LAN, packets))
    assert reasons == [Reason.FORWARDED, Reason.FORWARDED, Reason.SCREEN_IP_SWEEP]


def test_first_fragments_and_later_ones_are_part_of_a_flood(world: World) -> None:
    world.apply(screened(Screen.UDP_FLOOD, limit=4))
    first4 = IP(src=LAN.host4, dst=WAN.host4, id=9, flags="MF") / UDP(dport=53, len=32) / Raw(bytes(16))
    first6 = IPv6(src=LAN.host6, dst=WAN.host6) / IPv6ExtHdrFragment(id=9, m=1) / UDP(dport=53, len=32) / Raw(bytes(16))
    packets = [first4, later(LAN.host4, WAN.host4), first6, later(LAN.host6, WAN.host6)]
    reasons = world.in_one_window(lambda: sent(world, LAN, [*packets, *packets]))
    assert not {*reasons[:4]} & {Reason.SCREEN_UDP_FLOOD}
    assert reasons[4:] == [Reason.SCREEN_UDP_FLOOD] * 4


def ipsec(v: int) -> list[Packet]:
    """What peers send to this machine."""
    layer = ip_layer(v, src=WAN.host(v), dst=WAN.own(v))
    ike, nat_t = UDP(sport=500, dport=500), UDP(sport=4500, dport=4500)
    return [
        layer / ike / Raw(bytes(28)),
        layer / nat_t / Raw(bytes(28)),
        layer / nat_t / Raw(b"\x00\x00\x00\x4d" + bytes(60)),
        layer / nat_t / Raw(b"\xff"),
        layer / ESP(spi=77, seq=1, data=bytes(60)),
        layer / AH(spi=77, seq=1),
        later(WAN.host(v), WAN.own(v)),
    ]


@pytest.mark.parametrize("v", [4, 6])
def test_ipsec_to_this_machine_is_never_held_up(world: World, v: int) -> None:
    """Not counted, and not stopped when its source floods, scans and sweeps."""
    world.apply(screened(*COUNTING, limit=1))
    here, there = WAN.host(v), LAN.host(v)
    loud = [udp(here, there), udp(here, str(ip_address(there) + 1)), tcp(here, there, 81), tcp(here, there, 82)]

    def work() -> tuple[list[Reason], list[Reason], list[Reason]]:
        before = sent(world, WAN, ipsec(v) * 2)
        return before, sent(world, WAN, loud), sent(world, WAN, ipsec(v) * 2)

    before, during, after = world.in_one_window(work)
    assert before == after == [*[Reason.HOST_IKE] * 6, Reason.LOCAL_FRAGMENT] * 2
    assert during[0] is Reason.FORWARDED, "it was the first that counts"
    assert set(during[1:]) <= {reason_of(screen) for screen in COUNTING}


def test_ike_of_others_is_part_of_a_flood(world: World) -> None:
    world.apply(screened(Screen.UDP_FLOOD, limit=1))
    reasons = world.in_one_window(lambda: sent(world, LAN, [udp(LAN.host4, WAN.host4, 500) for _ in range(2)]))
    assert reasons == [Reason.FORWARDED, Reason.SCREEN_UDP_FLOOD]


@pytest.mark.parametrize("screen", [Screen.PORT_SCAN, Screen.IP_SWEEP, *sorted(OF_SESSIONS)], ids=lambda s: s.label)
def test_established_flows_go_on_whatever_their_source_is_up_to(world: World, screen: Screen) -> None:
    world.apply(screened(screen, limit=1))
    here, there = LAN.host4, target(4, 0)
    answer = tcp(there, here, 40000, "SA")
    answer[TCP].sport = 80
    fragment = IP(src=here, dst=there, id=9, flags="MF") / TCP(sport=40000, dport=80, flags="A") / Raw(bytes(12))
    going_on = [
        (LAN, tcp(here, there)),
        (WAN, answer),
        (LAN, tcp(here, there, flags="A")),
        (LAN, fragment),
        (LAN, IP(src=here, dst=there, id=9, frag=4, proto=6) / Raw(bytes(24))),
        (LAN, tcp(here, there, flags="FA")),
    ]

    refused = nth(COUNTED[screen], LAN, 4, 1, 2)
    if screen is Screen.SESSIONS_DESTINATION:
        refused = [tcp(source(LAN, 4, n), there) for n in (1, 2)]

    def work() -> tuple[list[Reason], list[Reason]]:
        world.send(LAN, tcp(here, there))
        return sent(world, LAN, refused), [world.send(port, packet).reason for port, packet in going_on]

    first, rest = world.in_one_window(work)
    assert first == [reason_of(screen)] * 2
    assert rest == [Reason.FORWARDED] * len(going_on)


@pytest.mark.parametrize("screen", COUNTING, ids=lambda screen: screen.label)
def test_a_reload_keeps_what_was_counted(world: World, screen: Screen) -> None:
    rules = screened(screen)
    more = replace(rules, policies=(Policy("more", Action.DENY, "dmz", "off"),))
    packets = nth(COUNTED[screen], LAN, 4, *range(LIMIT + 1))

    def work() -> list[Reason]:
        world.apply(rules)
        first = sent(world, LAN, packets[:-1])
        world.apply(more)
        return [*first, *sent(world, LAN, packets[-1:])]

    assert world.in_one_window(work) == [*[Reason.FORWARDED] * LIMIT, reason_of(screen)]


@pytest.mark.parametrize("screen", COUNTING, ids=lambda screen: screen.label)
def test_a_reload_changes_thresholds(world: World, screen: Screen) -> None:
    """Up, down, and away."""
    packets = nth(COUNTED[screen], LAN, 4, *range(9))

    def work() -> list[Reason]:
        world.apply(screened(screen, limit=1))
        found = sent(world, LAN, packets[:2])
        world.apply(screened(screen, limit=LIMIT))
        found += sent(world, LAN, packets[2:4])
        world.apply(screened(screen, limit=1))
        found += sent(world, LAN, packets[4:5])
        world.apply(screened())
        return found + sent(world, LAN, packets[5:])

    hit, gone_by = reason_of(screen), Reason.FORWARDED
    found = world.in_one_window(work)
    # More than enough is counted once: the one that was too much before.
    third = gone_by if screen in OF_SESSIONS else hit
    assert found == [gone_by, hit, gone_by, third, hit, *[gone_by] * 4]


def test_another_length_of_the_window_takes_over(world: World) -> None:
    """A count goes on until a window of the new length begins."""

    def work() -> list[Reason]:
        world.apply(screened(Screen.SYN_FLOOD, limit=1, window=1))
        world.send(LAN, tcp(LAN.host4, WAN.host4, 81))
        world.apply(screened(Screen.SYN_FLOOD, limit=2, window=WINDOW))
        before = sent(world, LAN, nth(COUNTED[Screen.SYN_FLOOD], LAN, 4, 0, 1))
        world.next_window(WINDOW)
        return before + sent(world, LAN, nth(COUNTED[Screen.SYN_FLOOD], LAN, 4, 2, 3, 4))

    hit = Reason.SCREEN_SYN_FLOOD
    assert world.in_one_window(work) == [Reason.FORWARDED, hit, Reason.FORWARDED, Reason.FORWARDED, hit]


def fill(world: World, spec: MapSpec, keys: Sequence[bytes], value: int) -> None:
    packed = (spec.key * len(keys)).from_buffer_copy(b"".join(keys))
    values = (ctypes.c_uint64 * len(keys))(*[value] * len(keys))
    libbpf.map_update_batch(world.maps[spec.name], packed, values, len(keys))


@pytest.mark.parametrize("screen", [Screen.SYN_SOURCE, Screen.PORT_SCAN, Screen.SESSIONS_SOURCE], ids=lambda s: s.label)
def test_more_addresses_than_room_are_harmless(world: World, screen: Screen) -> None:
    """Those of others are forgotten; the threshold of who comes now is exact, and nobody else is dropped."""
    world.apply(screened(screen))
    nobody = ip_address("2001:db8:ffff::").packed
    crowd = [nobody[:12] + n.to_bytes(4, "big") for n in range(sl.MAX_SCREEN_ITEMS + 1000)]
    place = struct.pack("=HH", world.zone("lan"), screen)
    spec = sl.SESSION_COUNTS if screen in OF_SESSIONS else sl.SCREEN_WORDS
    packets = nth(COUNTED[screen], LAN, 4, *range(LIMIT + 1))

    def work() -> tuple[list[Reason], list[Reason]]:
        fill(world, spec, [address + place for address in crowd[: spec.entries + 1000]], LIMIT)
        if screen is Screen.PORT_SCAN:
            fill(world, sl.SCREEN_ITEMS, [address + nobody + place for address in crowd], 1)
        return sent(world, LAN, packets), sent(world, LAN, nth(APART[screen], LAN, 4, 1))

    assert world.in_one_window(work) == ([*[Reason.FORWARDED] * LIMIT, reason_of(screen)], [Reason.FORWARDED])
    assert len(list(libbpf.map_keys(world.maps[spec.name], spec.key))) > spec.entries // 2, "it was full"


LIMITED = tuple(sorted(OF_SESSIONS))


def counts_of(world: World, screen: Screen) -> dict[str, int]:
    """Of lan, those that are not nought."""
    found = world.session_counts().items()
    return {address: n for (address, zone, kind), n in found if (zone, kind) == (world.zone("lan"), screen) and n}


def owner(screen: Screen) -> str:
    """The address that has all sessions of the cases."""
    return LAN.host4 if screen is Screen.SESSIONS_SOURCE else FAR[4]


@pytest.mark.parametrize("screen", LIMITED, ids=lambda screen: screen.label)
def test_sessions_are_counted_at_the_sides_that_packets_name(world: World, screen: Screen) -> None:
    """Not at what NAT makes of them."""
    nat = SourceNat("hide", Translation.INTERFACE, "lan", "wan")
    world.apply(replace(screened(screen), source_nat=(nat,)))
    reasons = sent(world, LAN, nth(COUNTED[screen], LAN, 4, *range(LIMIT + 1)))
    assert reasons == [*[Reason.FORWARDED] * LIMIT, reason_of(screen)]
    assert counts_of(world, screen) == {owner(screen): LIMIT}


@pytest.mark.parametrize("screen", LIMITED, ids=lambda screen: screen.label)
def test_a_session_that_ends_in_the_datapath_makes_room(world: World, screen: Screen) -> None:
    world.apply(screened(screen, limit=1))
    syn = tcp(LAN.host4, FAR[4])
    other_flow = tcp(LAN.host4, FAR[4], 81)
    assert sent(world, LAN, [syn, other_flow]) == [Reason.FORWARDED, reason_of(screen)]
    world.age(3600)  # nobody took it away yet
    assert sent(world, LAN, [other_flow]) == [reason_of(screen)]
    assert sent(world, LAN, [syn]) == [Reason.FORWARDED], "the old one is over, and this one takes its place"
    assert counts_of(world, screen) == {owner(screen): 1}
    assert sent(world, LAN, [tcp(LAN.host4, FAR[4], flags="R"), syn]) == [Reason.FORWARDED] * 2, "reopened"
    assert counts_of(world, screen) == {owner(screen): 1}
    assert len(world.sessions()) == 1


@pytest.mark.parametrize("screen", LIMITED, ids=lambda screen: screen.label)
def test_an_ended_reply_makes_room_as_well(world: World, screen: Screen) -> None:
    """A packet of the other direction finds that it is over, and begins a session of its own zone."""
    rules = screened(screen, limit=1)
    world.apply(
        replace(rules, zones=tuple(replace(z, screen=z.screen if z.name == "lan" else None) for z in rules.zones))
    )
    assert sent(world, LAN, [udp(LAN.host4, FAR[4])]) == [Reason.FORWARDED]
    world.age(3600)
    back = udp(FAR[4], LAN.host4, 40000)
    back[UDP].sport = 5000
    assert sent(world, WAN, [back]) == [Reason.FORWARDED]
    assert counts_of(world, screen) == {}
    assert world.session().flow.zone == world.zone("wan")


@pytest.mark.parametrize("screen", LIMITED, ids=lambda screen: screen.label)
def test_a_session_that_cannot_be_made_is_not_counted(world: World, screen: Screen) -> None:
    world.apply(screened(screen))
    for number in range(SESSION_ENTRIES - 1):  # one of two entries finds room
        flow = Flow(ip_address("10.99.0.1"), ip_address("10.99.0.2"), number, number, 6, 63)
        assert world.table.insert(flow.leaf(), SessionLeaf(id=1, state=State.OPENING))
    assert sent(world, LAN, nth(COUNTED[screen], LAN, 4, *range(LIMIT + 2))) == [Reason.SESSIONS_FULL] * (LIMIT + 2)
    assert counts_of(world, screen) == {}


def test_a_flow_that_is_denied_is_not_counted(world: World) -> None:
    no = Policy("no", Action.DENY, "lan", "wan", services=(Service(17, (5000, 5000)),))
    world.apply(replace(screened(*LIMITED), policies=(no,)))
    assert sent(world, LAN, [udp(LAN.host4, FAR[4])] * 5) == [Reason.POLICY_DENY] * 5
    assert world.session_counts() == {}


@pytest.mark.parametrize("hit", LIMITED, ids=lambda screen: screen.label)
def test_what_one_limit_refuses_the_other_does_not_count(world: World, hit: Screen) -> None:
    (spared,) = OF_SESSIONS - {hit}
    limits = {hit.name.lower(): 1, spared.name.lower(): 9}
    world.apply(replace(screened(), screens=(Screens("these", **limits),)))
    packets = nth(COUNTED[hit], LAN, 4, *range(4))
    assert sent(world, LAN, packets) == [Reason.FORWARDED, *[reason_of(hit)] * 3]
    assert counts_of(world, hit) == {owner(hit): 1}
    first = packets[0][IP]
    assert counts_of(world, spared) == {(first.src if spared is Screen.SESSIONS_SOURCE else first.dst): 1}


def collector_of(world: World, *screens: Screen) -> Collector:
    collector = Collector(
        world.table,
        Sessions(),
        lambda closes: None,
        session_counts=SessionCounts(world.maps[sl.SESSION_COUNTS.name]),
    )
    collector.configure(Sessions(), frozenset((world.zone("lan"), screen) for screen in screens))
    return collector


@pytest.mark.parametrize("how", ["sweep", "close"])
@pytest.mark.parametrize("screen", LIMITED, ids=lambda screen: screen.label)
def test_a_session_that_the_collector_ends_makes_room(world: World, screen: Screen, how: str) -> None:
    world.apply(screened(screen, limit=1))
    packets = nth(COUNTED[screen], LAN, 4, 0, 1)
    assert sent(world, LAN, packets) == [Reason.FORWARDED, reason_of(screen)]
    collector = collector_of(world, screen)
    if how == "sweep":
        world.age(3600)
        collector.sweep(time.monotonic_ns())
    else:
        chosen = Filter(prefix=ip_network(f"{LAN.host4}/32"))
        assert collector.close(chosen, CloseReason.CLEARED, time.monotonic_ns()) == 1
    assert world.sessions() == []
    assert counts_of(world, screen) == {}
    assert sent(world, LAN, [packets[1], packets[0]]) == [Reason.FORWARDED, reason_of(screen)]


@pytest.mark.parametrize("wrong", [-5, 0, LIMIT + 5])
@pytest.mark.parametrize("screen", LIMITED, ids=lambda screen: screen.label)
def test_a_sweep_puts_wrong_counts_right(world: World, screen: Screen, wrong: int) -> None:
    world.apply(screened(screen))
    packets = nth(COUNTED[screen], LAN, 4, *range(LIMIT + 1))
    assert sent(world, LAN, packets[: LIMIT - 1]) == [Reason.FORWARDED] * (LIMIT - 1)
    collector = collector_of(world, screen)
    stray = ScreenKeyLeaf(AddressLeaf.of(ip_address("10.1.0.200")), world.zone("lan"), screen)
    key = ScreenKeyLeaf(AddressLeaf.of(ip_address(owner(screen))), world.zone("lan"), screen)
    for leaf in (stray, key):
        libbpf.map_update(world.maps[sl.SESSION_COUNTS.name], leaf, ctypes.c_int64(wrong))
    collector.sweep(time.monotonic_ns())
    assert counts_of(world, screen) == {owner(screen): LIMIT - 1}
    assert sent(world, LAN, packets[LIMIT - 1 :]) == [Reason.FORWARDED, reason_of(screen)]


def test_a_limit_that_comes_with_a_reload_counts_the_sessions_that_are_there(world: World) -> None:
    world.apply(screened())
    packets = nth(COUNTED[Screen.SESSIONS_SOURCE], LAN, 4, *range(LIMIT + 1))
    assert sent(world, LAN, packets[:LIMIT]) == [Reason.FORWARDED] * LIMIT
    world.apply(screened(Screen.SESSIONS_SOURCE))
    assert counts_of(world, Screen.SESSIONS_SOURCE) == {}
    collector_of(world, Screen.SESSIONS_SOURCE)
    assert counts_of(world, Screen.SESSIONS_SOURCE) == {LAN.host4: LIMIT}
    assert sent(world, LAN, packets[LIMIT:]) == [Reason.SCREEN_SESSIONS_SOURCE]
