"""SYN cookies: what a flood is answered with, who is believed afterwards, and for how long."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from ipaddress import ip_address

import pytest
from firewall_kit import LAN, VLAN, WAN, Port, Result, World, zones
from firewall_packets import assert_sound, described, tcp, udp
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q
from scapy.packet import Packet, Raw

from ipsec_gw.model.firewall import Action, Ruleset
from ipsec_gw.model.screens import Screens
from xdp_steer import libbpf
from xdp_steer import screen_layout as sl
from xdp_steer.events import EventReader
from xdp_steer.flow_layout import EventKind, Stage
from xdp_steer.layout import AddressLeaf
from xdp_steer.prog_run import XdpAction
from xdp_steer.reasons import Reason
from xdp_steer.screen_layout import SCREEN_EVENTS, Screen

pytestmark = pytest.mark.root

VERSIONS = (4, 6)
THRESHOLD = 2
WINDOW = 60
COOKIES = Screens("these", syn_flood=THRESHOLD, syn_cookie=True, window=WINDOW)
BELIEVED_SECONDS = 600
SEQ = 0xFFFFFFFF
"""The acknowledgement of it is 0."""


def screened(profile: Screens = COOKIES) -> Ruleset:
    places = zones(lan={"screen": profile.name}, vlan={"screen": profile.name})
    return Ruleset(zones=places, default=Action.PERMIT, screens=(profile,))


@pytest.fixture
def world(arena: World) -> World:
    arena.clear()
    arena.apply(screened())
    return arena


def syn(port: Port, v: int, sport: int = 40000, ttl: int = 64) -> Packet:
    made = tcp(port.host(v), WAN.host(v), flags="S", ttl=ttl)
    made[TCP].sport, made[TCP].seq = sport, SEQ
    return made


def ack(packet: Packet, cookie: int, **fields: object) -> Packet:
    """The client's answer to a SYN+ACK with that number."""
    made = packet.copy()
    made[TCP].flags = "A"
    made[TCP].seq = (packet[TCP].seq + 1) & 0xFFFFFFFF
    made[TCP].ack = (cookie + 1) & 0xFFFFFFFF
    for name, value in fields.items():
        setattr(made[TCP], name, value)
    return made


def flood(world: World, port: Port, v: int) -> None:
    """As many SYNs as are allowed, of sources that are never heard of again."""
    for number in range(THRESHOLD):
        packet = syn(port, v)
        layer = packet.getlayer(0)
        layer.src = str(ip_address(port.host(v)) + 10 + number)
        assert world.send(port, packet).reason is Reason.FORWARDED


def asked(world: World, port: Port, packet: Packet) -> Result:
    result = world.send(port, packet)
    assert (result.action, result.reason) == (XdpAction.TX, Reason.SCREEN_SYN_COOKIE)
    return result


@pytest.mark.parametrize("port", [LAN, VLAN], ids=["lan0", "lan0.100"])
@pytest.mark.parametrize("v", VERSIONS)
def test_a_syn_too_many_is_answered_and_nothing_kept_of_it(world: World, v: int, port: Port) -> None:
    def attempt() -> tuple[Result, Packet]:
        flood(world, port, v)
        packet = syn(port, v, ttl=3) / Raw(b"fast open")
        return asked(world, port, packet), packet

    result, packet = world.in_one_window(attempt, WINDOW)
    answer = result.packet
    assert (Dot1Q in answer) == (port is VLAN)
    layer, asking = answer[TCP], packet[TCP]
    assert (result.ip.src, result.ip.dst) == (WAN.host(v), port.host(v))
    assert (layer.sport, layer.dport, layer.flags, layer.ack) == (asking.dport, asking.sport, "SA", 0)
    assert (layer.window, layer.dataofs, bytes(layer.payload)) == (0, 5, b"")
    assert (answer.src, answer.dst) == (port.mac, port.host_mac)
    assert_sound(result.frame)
    assert len(world.sessions()) == THRESHOLD


@pytest.mark.parametrize("port", [LAN, VLAN], ids=["lan0", "lan0.100"])
@pytest.mark.parametrize("v", VERSIONS)
def test_who_acknowledges_a_cookie_is_believed(world: World, v: int, port: Port) -> None:
    def attempt() -> tuple[Result, Packet, Reason, Reason]:
        flood(world, port, v)
        packet = syn(port, v)
        cookie = asked(world, port, packet).packet[TCP].seq
        reply = ack(packet, cookie)
        reset = world.send(port, reply)
        again = world.send(port, syn(port, v, 40001)).reason
        stranger = syn(port, v)
        stranger.getlayer(0).src = str(ip_address(port.host(v)) + 9)
        return reset, reply, again, world.send(port, stranger).reason

    reset, reply, again, stranger = world.in_one_window(attempt, WINDOW)
    assert (reset.action, reset.reason) == (XdpAction.TX, Reason.SCREEN_COOKIE_VALID)
    assert (reset.packet[TCP].flags, reset.packet[TCP].seq) == ("R", reply[TCP].ack)
    assert (Dot1Q in reset.packet) == (port is VLAN)
    assert_sound(reset.frame)
    assert again is Reason.FORWARDED
    assert stranger is Reason.SCREEN_SYN_COOKIE


@pytest.mark.parametrize("v", VERSIONS)
def test_a_cookie_is_good_for_its_connection_alone(world: World, v: int) -> None:
    def attempt() -> None:
        flood(world, LAN, v)
        packet = syn(LAN, v)
        cookie = asked(world, LAN, packet).packet[TCP].seq
        other = packet.copy()
        other.getlayer(0).src = str(ip_address(LAN.host(v)) + 9)
        for wrong in (
            ack(packet, cookie + 64 & 0xFFFFFFFF),  # in the last bits there is an MSS
            ack(packet, cookie ^ 1 << 31),
            ack(packet, cookie, seq=7),
            ack(packet, cookie, sport=40001),
            ack(packet, cookie, dport=81),
            ack(other, cookie),
            ack(packet, cookie, flags="FA"),
            ack(packet, cookie, flags="RA"),
        ):
            assert world.send(LAN, wrong).reason is Reason.TCP_NOT_SYN, wrong.show(dump=True)
        assert world.send(LAN, syn(LAN, v)).reason is Reason.SCREEN_SYN_COOKIE

    world.in_one_window(attempt, WINDOW)


def test_belief_ends(world: World) -> None:
    def attempt(age: int) -> Reason:
        world.clear()
        flood(world, LAN, 4)
        key = sl.ScreenKeyLeaf(AddressLeaf.of(ip_address(LAN.host4)), world.zone("lan"), Screen.SYN_COOKIE)
        libbpf.map_update(world.maps["screen_words"], key, ctypes.c_uint64(world.seconds() - age & 0xFFFFFFFF))
        return world.send(LAN, syn(LAN, 4)).reason

    assert world.in_one_window(lambda: attempt(BELIEVED_SECONDS - 2), WINDOW) is Reason.FORWARDED
    assert world.in_one_window(lambda: attempt(BELIEVED_SECONDS), WINDOW) is Reason.SCREEN_SYN_COOKIE


def test_a_zone_believes_for_itself(world: World) -> None:
    def attempt() -> Reason:
        flood(world, LAN, 4)
        packet = syn(LAN, 4)
        assert world.send(LAN, ack(packet, asked(world, LAN, packet).packet[TCP].seq)).action is XdpAction.TX
        flood(world, VLAN, 4)
        packet.getlayer(0).src = LAN.host4
        return world.send(VLAN, VLAN.frame(packet)).reason

    assert world.in_one_window(attempt, WINDOW) is Reason.SCREEN_SYN_COOKIE


@pytest.mark.parametrize(
    ("profile", "reason"),
    [
        (replace(COOKIES, syn_cookie=False), Reason.SCREEN_SYN_FLOOD),
        (replace(COOKIES, alarm_only=True), Reason.FORWARDED),
    ],
    ids=["no cookies", "alarm only"],
)
def test_without_cookies_a_flood_is_what_it_was(world: World, profile: Screens, reason: Reason) -> None:
    world.apply(screened(profile))

    def attempt() -> Reason:
        flood(world, LAN, 4)
        return world.send(LAN, syn(LAN, 4)).reason

    assert world.in_one_window(attempt, WINDOW) is reason


@pytest.mark.parametrize(
    ("source", "destination"),
    [("224.0.0.5", "192.0.2.9"), ("127.0.0.1", "192.0.2.9"), ("10.1.0.9", "224.0.0.5"), ("ff02::1", "2001:db8:a::9")],
)
def test_nobody_is_answered_that_no_host_is(world: World, source: str, destination: str) -> None:
    def attempt() -> Result:
        flood(world, LAN, 4)
        return world.send(LAN, tcp(source, destination, flags="S"))

    result = world.in_one_window(attempt, WINDOW)
    assert (result.action, result.reason) == (XdpAction.DROP, Reason.SCREEN_SYN_FLOOD)


def test_other_screens_look_at_who_is_believed(world: World) -> None:
    world.apply(screened(replace(COOKIES, syn_source=1)))

    def attempt() -> list[Reason]:
        flood(world, LAN, 4)
        packet = syn(LAN, 4)
        assert world.send(LAN, ack(packet, asked(world, LAN, packet).packet[TCP].seq)).action is XdpAction.TX
        return [world.send(LAN, syn(LAN, 4, sport)).reason for sport in (50000, 50001)]

    assert world.in_one_window(attempt, WINDOW) == [Reason.FORWARDED, Reason.SCREEN_SYN_SOURCE]


def test_floods_are_counted_and_told_ten_times_a_second(world: World) -> None:
    reader = EventReader(world.maps["events"], lambda: 0)

    def attempt() -> tuple[int, list[EventKind]]:
        flood(world, LAN, 4)
        reader.read()
        before = world.screen_count("lan", Screen.SYN_COOKIE).packets
        for sport in range(30):
            asked(world, LAN, syn(LAN, 4, 1024 + sport))
        told = [event.kind for event in reader.read().events if event.reason == Reason.SCREEN_SYN_COOKIE]
        return world.screen_count("lan", Screen.SYN_COOKIE).packets - before, told

    try:
        counted, told = world.in_one_window(lambda: world.in_one_window(attempt, 1), WINDOW)
    finally:
        reader.close()
    assert counted == 30
    assert told == [EventKind.SCREEN] * SCREEN_EVENTS


def test_without_its_stage_a_syn_too_many_is_dropped(world: World) -> None:
    def attempt() -> Reason:
        flood(world, LAN, 4)
        with world.without("stages", Stage.COOKIE):
            return world.send(LAN, syn(LAN, 4)).reason

    assert world.in_one_window(attempt, WINDOW) is Reason.NO_STAGE


def test_packets_of_sessions_are_no_cookies(world: World) -> None:
    """An ACK of a session goes its way without a look at its number."""

    def attempt() -> list[Reason]:
        packet = syn(LAN, 4)
        found = [world.send(LAN, packet).reason]
        answer = tcp(WAN.host4, LAN.host4, flags="SA")
        answer[TCP].sport, answer[TCP].dport = packet[TCP].dport, packet[TCP].sport
        found += [world.send(WAN, answer).reason, world.send(LAN, ack(packet, answer[TCP].seq)).reason]
        return [*found, world.send(LAN, udp(LAN.host4, WAN.host4)).reason]

    assert world.in_one_window(attempt, WINDOW) == [Reason.FORWARDED] * 4


def test_answers_are_the_same_for_the_same_syn_and_no_other(world: World) -> None:
    def attempt() -> list[list[str]]:
        flood(world, LAN, 4)
        packets = (syn(LAN, 4), syn(LAN, 4), syn(LAN, 4, 40001))
        return [described(asked(world, LAN, packet).frame) for packet in packets]

    first, same, other = world.in_one_window(attempt, WINDOW)
    assert first == same != other
    assert IP in asked(world, LAN, syn(LAN, 4)).packet
    assert IPv6 in asked(world, LAN, syn(LAN, 6)).packet
