"""Defects that another XDP firewall had (P: found and fixed there, N: found by reading), each one impossible here.

The whole list, with the tests that are elsewhere and what cannot occur here, is in tests/unit/test_known_defects.py.
"""

from __future__ import annotations

import ctypes
import os
import time
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from firewall_kit import (
    DMZ,
    FAR,
    LAN,
    NARROW,
    NARROW_MTU,
    SILENT,
    VLAN,
    WAN,
    Port,
    World,
    interface,
    port_info,
    zones,
)
from firewall_packets import (
    about,
    answer,
    assert_sound,
    changed,
    described,
    echo,
    ip_layer,
    other,
    partial,
    reset,
    routed,
    tcp,
    udp,
)
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6ND_NS, ICMPv6PacketTooBig, IPv6, IPv6ExtHdrFragment
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet, Raw

from ipsec_gw.firewall.collector import Collector
from ipsec_gw.model.firewall import (
    Action,
    DestinationNat,
    Policy,
    Ruleset,
    Service,
    Sessions,
    SourceNat,
    Translation,
    Zone,
)
from ipsec_gw.model.screens import Screens
from xdp_steer import libbpf
from xdp_steer.compile.ids import Ids, assign
from xdp_steer.flow_layout import EgressStage, NameKind, Stage, State
from xdp_steer.prog_run import TcAction, XdpAction
from xdp_steer.reasons import Reason
from xdp_steer.screen_layout import SESSION_COUNTS, Screen
from xdp_steer.session_counts import SessionCounts

pytestmark = pytest.mark.root

OPEN = Ruleset(zones=zones(), policies=(Policy("all", Action.PERMIT),))
HIDE = replace(OPEN, source_nat=(SourceNat("hide", Translation.INTERFACE, to_zone="wan"),))
HIGH = Port("high0", "10.9.0.1", "2001:db8:9::1", "02:00:00:00:00:90", "02:00:00:00:90:09")
VERSIONS = (4, 6)
both = pytest.mark.parametrize("v", VERSIONS)


def handshake(world: World, v: int) -> tuple[Packet, Packet]:
    """An established session from lan to wan: the client's last segment, and a segment of the server."""
    here, there = LAN.host(v), WAN.host(v)
    server = tcp(there, here, 40000, "SA", ack=1001)
    server[TCP].sport, server[TCP].seq = 80, 5000
    client = tcp(here, there, flags="A", ack=5001)
    client[TCP].seq = 1001
    world.send(LAN, tcp(here, there))
    world.send(WAN, server)
    world.send(LAN, client)
    assert world.session().state is State.ESTABLISHED
    return client, server


def pieces(v: int, payload: bytes) -> tuple[Packet, Packet]:
    """A UDP datagram from lan to wan in two fragments."""
    whole = udp(LAN.host(v), WAN.host(v))
    whole[Raw].load = payload
    layer = whole.__class__(bytes(whole))
    data = bytes(layer.payload)
    if v == 4:
        base = {"src": layer.src, "dst": layer.dst, "id": 3, "proto": 17}
        return IP(flags="MF", **base) / Raw(data[:24]), IP(frag=3, **base) / Raw(data[24:])
    head = IPv6(src=layer.src, dst=layer.dst)
    first = head / IPv6ExtHdrFragment(nh=17, id=3, m=1) / Raw(data[:24])
    return first, head / IPv6ExtHdrFragment(nh=17, id=3, offset=3) / Raw(data[24:])


@both
def test_p1_partial_checksum_survives_translation_and_is_never_redirected(world: World, v: int) -> None:
    world.apply(HIDE, lan={"partial": True})
    packet = tcp(LAN.host(v), WAN.host(v))
    result = world.send(LAN, partial(packet))
    assert result.reason is Reason.TO_KERNEL
    assert described(result.frame) == described(LAN.frame(partial(changed(packet, src=WAN.own(v)))))


@both
def test_p1_a_port_that_can_be_redirected_to_may_still_be_fed_by_hardware(world: World, v: int) -> None:
    """Partial is a fact of the ingress port, not of the way out."""
    world.apply(OPEN, wan={"partial": True})
    packet = tcp(LAN.host(v), WAN.host(v))
    assert world.send(LAN, partial(packet)).reason is Reason.FORWARDED


@both
def test_p3_a_missing_stage_drops(world: World, v: int) -> None:
    world.apply(OPEN)
    for stage in (Stage.FLOW, Stage.NEW, Stage.CREATE):
        world.clear()
        with world.without("stages", stage):
            result = world.send(LAN, tcp(LAN.host(v), WAN.host(v)))
        assert (result.action, result.reason) == (XdpAction.DROP, Reason.NO_STAGE)


@both
@pytest.mark.parametrize("cached", [True, False])
def test_p4_a_forged_rst_ends_no_session_whichever_way_it_is_found(world: World, v: int, cached: bool) -> None:
    world.apply(OPEN)
    _, server = handshake(world, v)
    if not cached:
        world.age(6)  # the route is looked up anew
    forged = changed(server)
    forged[TCP].flags, forged[TCP].seq = "R", 4999
    world.send(WAN, forged)
    assert world.session().state is State.ESTABLISHED
    forged[TCP].seq = 5001
    world.send(WAN, forged)
    assert world.session().state is State.CLOSED


@both
def test_p5_packets_do_not_keep_a_closed_session_alive(world: World, v: int) -> None:
    world.apply(OPEN)
    client, server = handshake(world, v)
    end = changed(server)
    end[TCP].flags, end[TCP].seq = "R", 5001
    world.send(WAN, end)
    for _ in range(3):
        world.age(4)
        world.send(LAN, client)
        world.send(WAN, end)
    assert world.send(LAN, client).reason is Reason.TCP_NOT_SYN, "10 s of silence are over"
    assert world.entries() == {}


@both
def test_p6_a_packet_without_neighbour_is_judged_and_translated(world: World, v: int) -> None:
    deny = Policy("no telnet", Action.DENY, "lan", "wan", services=(Service(6, (23, 23)),))
    world.apply(replace(HIDE, policies=(deny, *OPEN.policies)))
    assert world.send(LAN, tcp(LAN.host(v), SILENT[v], 23)).action is XdpAction.DROP
    packet = tcp(LAN.host(v), SILENT[v])
    result = world.send(LAN, packet)
    assert result.reason is Reason.TO_KERNEL
    assert result.ip.src == WAN.own(v)
    stray = udp(LAN.host(v), SILENT[v])
    assert world.emit(WAN, stray, LAN).reason is Reason.EGRESS_UNPOLICED


@both
@pytest.mark.parametrize("rules", [OPEN, HIDE], ids=["plain", "nat"])
def test_p7_ttl_is_looked_at_before_translation(world: World, v: int, rules: Ruleset) -> None:
    world.apply(rules)
    packet = tcp(LAN.host(v), WAN.host(v), ttl=1)
    for _ in range(2):  # of a new flow and of a known one
        result = world.send(LAN, packet)
        assert result.reason is Reason.TTL_EXPIRED
        assert described(result.frame) == described(answer(packet, LAN, LAN.own(v), "ttl"))


@both
def test_p8_interface_nat_uses_the_vlan_that_the_packet_leaves_by(world: World, v: int) -> None:
    hide = SourceNat("hide", Translation.INTERFACE)
    world.apply(replace(OPEN, source_nat=(hide,)))
    packet = tcp(DMZ.host(v), VLAN.host(v))
    assert described(world.send(DMZ, packet).frame) == described(routed(packet, VLAN, src=VLAN.own(v)))
    world.clear()
    world.apply(replace(OPEN, source_nat=(hide,)), vlan={"address4": None, "address6": None})
    assert world.send(DMZ, packet).reason is Reason.NAT_NO_ADDRESS, "and of no other interface"


@both
def test_p9_unknown_services_of_this_machine_are_denied(world: World, v: int) -> None:
    world.apply(replace(OPEN, zones=zones(lan={"host_inbound": (Service(6, (22, 22)),)})))
    own = LAN.own(v)
    assert world.send(LAN, tcp(LAN.host(v), own, 22)).reason is Reason.HOST
    for packet in (
        tcp(LAN.host(v), own, 23),
        udp(LAN.host(v), own, 22),
        other(LAN.host(v), own),
        echo(LAN.host(v), own),
    ):
        assert world.send(LAN, packet).reason is Reason.DEFAULT_DENY
    assert world.send(LAN, echo(LAN.host(v), own, reply=True)).reason is Reason.ICMP_UNSOLICITED


def test_p9_neighbour_discovery_needs_no_service(world: World) -> None:
    world.apply(Ruleset(zones=zones()))
    packet = IPv6(src=LAN.host6, dst="ff02::1:ff00:1", hlim=255) / ICMPv6ND_NS(tgt=LAN.address6)
    assert world.send(LAN, packet).reason is Reason.NDP


def test_p9_broadcasts_are_not_routed(world: World) -> None:
    dhcp = (Service(17, (67, 67)),)
    world.apply(replace(OPEN, zones=zones(lan={"host_inbound": dhcp})))
    for destination in ("255.255.255.255", "10.1.0.255"):
        assert world.send(LAN, udp("10.1.0.9", destination, 67)).reason is Reason.HOST
        assert world.send(LAN, udp("10.1.0.9", destination, 68)).reason is Reason.DEFAULT_DENY
    result = world.send(LAN, udp("0.0.0.0", "255.255.255.255", 67))
    assert (result.action, result.reason) == (XdpAction.PASS, Reason.HOST)


@both
def test_p10_replies_are_translated_back_when_only_one_side_was(world: World, v: int) -> None:
    published = DestinationNat("web", ip_network(FAR[v]), ip_network(DMZ.host(v)), "wan")
    world.apply(replace(HIDE, destination_nat=(published,)))
    for port, out, packet, fields in (
        (LAN, WAN, udp(LAN.host(v), WAN.host(v)), {"src": WAN.own(v)}),
        (WAN, DMZ, udp(WAN.host(v), FAR[v]), {"dst": DMZ.host(v)}),
    ):
        left = world.send(port, packet)
        assert described(left.frame) == described(routed(packet, out, **fields))
        back = udp(left.ip.dst, left.ip.src, left.ip[UDP].sport)
        back[UDP].sport = left.ip[UDP].dport
        wanted = routed(back, port, src=packet.dst, dst=packet.src)
        assert described(world.send(out, back).frame) == described(wanted)


@both
def test_p11_sessions_and_numbers_outlive_a_changed_ruleset(world: World, v: int) -> None:
    world.apply(OPEN)
    client, _ = handshake(world, v)
    before = world.session()
    world.apply(replace(OPEN, zones=zones(dmz={"tcp_reset": True}), default=Action.REJECT))
    assert world.send(LAN, client).reason is Reason.FORWARDED
    after = world.session()
    assert (after.id, after.rule, after.forward.packets) == (before.id, before.rule, before.forward.packets + 1)


def test_p11_numbers_do_not_depend_on_the_order() -> None:
    ids = assign(Ids(), OPEN)
    turned = replace(OPEN, zones=OPEN.zones[::-1], policies=(Policy("new", Action.DENY), *OPEN.policies))
    again = assign(ids, turned)
    assert again.zones == ids.zones
    assert again.rules[NameKind.POLICY, "all"] == ids.rules[NameKind.POLICY, "all"]


@both
def test_p12_byte_order_of_ports_and_addresses(world: World, v: int) -> None:
    """0x1234 is allowed, 0x3412 is not; the same for the network and its mirror image."""
    only = Policy("only", Action.PERMIT, "lan", "wan", (ip_network(LAN.host(v)),), (), (Service(17, (0x1234, 0x1234)),))
    world.apply(Ruleset(zones=zones(), policies=(only,)))
    assert world.send(LAN, udp(LAN.host(v), WAN.host(v), 0x1234)).reason is Reason.FORWARDED
    assert world.send(LAN, udp(LAN.host(v), WAN.host(v), 0x3412)).reason is Reason.DEFAULT_DENY
    session = world.session()
    assert (session.flow.source_port, session.flow.destination_port) == (40000, 0x1234)


@both
def test_p13_answers_keep_their_tag(world: World, v: int) -> None:
    world.apply(Ruleset(zones=zones(), default=Action.REJECT))
    packet = tcp(VLAN.host(v), WAN.host(v))
    assert described(world.send(VLAN, packet).frame) == described(reset(packet, VLAN))
    packet = udp(VLAN.host(v), WAN.host(v))
    assert described(world.send(VLAN, packet).frame) == described(answer(packet, VLAN, WAN.host(v), "prohibited"))


@both
def test_p13_a_priority_tag_is_no_vlan(world: World, v: int) -> None:
    world.apply(OPEN)
    packet = udp(LAN.host(v), WAN.host(v))
    frame = Ether(src=LAN.host_mac, dst=LAN.mac) / Dot1Q(vlan=0, prio=7) / packet
    assert described(world.send(LAN, frame).frame) == described(routed(packet, WAN))
    silent = Ether(src=LAN.host_mac, dst=LAN.mac) / Dot1Q(vlan=0, prio=7) / udp(LAN.host(v), SILENT[v])
    result = world.send(LAN, silent)
    assert result.reason is Reason.TO_KERNEL
    assert result.frame == bytes(silent), "the kernel gets it with its tag"


@both
def test_p13_the_zone_on_egress_is_that_of_the_tag(world: World, v: int) -> None:
    world.apply(Ruleset(zones=zones(), policies=(Policy("no", Action.DENY, "self", "vlan"),)))
    assert world.emit(VLAN, udp(VLAN.own(v), VLAN.host(v))).action is TcAction.SHOT
    assert world.emit(LAN, udp(LAN.own(v), LAN.host(v))).action is TcAction.UNSPEC


@both
def test_p14_fragments_without_flags_are_no_bad_segments(world: World, v: int) -> None:
    world.apply(OPEN)
    whole = tcp(LAN.host(v), WAN.host(v)) / Raw(bytes(40))
    data = bytes(whole.__class__(bytes(whole)).payload)
    if v == 4:
        base = {"src": LAN.host4, "dst": WAN.host4, "id": 4, "proto": 6}
        first, rest = IP(flags="MF", **base) / Raw(data[:24]), IP(frag=3, **base) / Raw(b"\x04" * 36)
    else:
        head = IPv6(src=LAN.host6, dst=WAN.host6)
        first = head / IPv6ExtHdrFragment(nh=6, id=4, m=1) / Raw(data[:24])
        rest = head / IPv6ExtHdrFragment(nh=6, id=4, offset=3) / Raw(b"\x04" * 36)
    for piece in (first, rest):
        assert world.send(LAN, piece).reason is Reason.FORWARDED
    assert (world.session().state, world.session().forward.packets) == (State.OPENING, 2)


def screened(**screens: int | bool) -> Ruleset:
    """Everything is permitted, without a SYN as well, and lan has screens."""
    profile = Screens("these", **screens)
    fields = {"lan": {"screen": "these", "syn_check": False}, "wan": {"syn_check": False}}
    return replace(OPEN, zones=zones(**fields), screens=(profile,))


@both
def test_p14_fragments_without_flags_hit_no_screen_for_flags(world: World, v: int) -> None:
    world.apply(screened(no_flag=True, fin_no_ack=True, syn_fin=True))
    base = {"src": LAN.host(v), "dst": WAN.host(v)}
    if v == 4:
        first = IP(flags="MF", id=4, proto=6, **base) / TCP(flags="A") / Raw(bytes(4))
        rest = IP(frag=3, id=4, proto=6, **base) / Raw(bytes(36))
    else:
        first = IPv6(**base) / IPv6ExtHdrFragment(nh=6, id=4, m=1) / TCP(flags="A") / Raw(bytes(4))
        rest = IPv6(**base) / IPv6ExtHdrFragment(nh=6, id=4, offset=3) / Raw(bytes(36))
    assert [world.send(LAN, piece).reason for piece in (first, rest)] == [Reason.FORWARDED] * 2


@both
def test_p14_no_flag_is_seen_in_an_established_session(world: World, v: int) -> None:
    world.apply(screened(no_flag=True))
    client, _ = handshake(world, v)
    null = changed(client)
    null[TCP].flags = 0
    assert world.send(LAN, client).reason is Reason.FORWARDED
    assert world.send(LAN, null).reason is Reason.SCREEN_NO_FLAG


@both
def test_p14_a_syn_in_fragments_is_dropped(world: World, v: int) -> None:
    world.apply(screened(syn_fragment=True))
    base = {"src": LAN.host(v), "dst": WAN.host(v)}
    layer = IP(flags="MF", proto=6, **base) if v == 4 else IPv6(**base) / IPv6ExtHdrFragment(nh=6, m=1)
    assert world.send(LAN, layer / TCP(flags="S") / Raw(bytes(4))).reason is Reason.SCREEN_SYN_FRAGMENT


def test_p14_a_ping_of_death_is_more_than_16_bits_hold(world: World) -> None:
    world.apply(screened(ping_of_death=True))
    last = IP(src=LAN.host4, dst=WAN.host4, proto=1, frag=8189) / Raw(bytes(40))
    assert 8189 * 8 + 60 > 0xFFFF
    assert world.send(LAN, last).reason is Reason.SCREEN_PING_OF_DEATH


@both
def test_p14_a_sweep_with_acks_alone_is_one(world: World, v: int) -> None:
    world.apply(screened(ip_sweep=2, window=60))
    packets = [tcp(LAN.host(v), str(ip_address(FAR[v]) + n), flags="A") for n in range(3)]
    reasons = world.in_one_window(lambda: [world.send(LAN, packet).reason for packet in packets])
    assert reasons == [Reason.FORWARDED, Reason.FORWARDED, Reason.SCREEN_IP_SWEEP]


@both
def test_p15_no_two_flows_get_the_same_translated_tuple(world: World, v: int) -> None:
    world.apply(HIDE)
    seen = set()
    for host in range(20):
        source = str(ip_network(f"{LAN.host(v)}").network_address + host)
        left = world.send(LAN, tcp(source, WAN.host(v)))
        assert left.reason is Reason.FORWARDED
        seen.add(left.ip[TCP].sport)
    assert len(seen) == 20


@both
def test_p15_what_looks_like_a_dns_reply_needs_a_session(world: World, v: int) -> None:
    only = Policy("dns", Action.PERMIT, "lan", "wan", services=(Service(17, (53, 53)),))
    world.apply(Ruleset(zones=zones(), policies=(only,)))
    forged = udp(WAN.host(v), LAN.host(v), 40000)
    forged[UDP].sport = 53
    assert world.send(WAN, forged).reason is Reason.DEFAULT_DENY
    world.send(LAN, udp(LAN.host(v), WAN.host(v), 53))
    assert world.send(WAN, forged).reason is Reason.FORWARDED


@both
@pytest.mark.parametrize("protocol", [47, 51])
def test_p16_no_protocol_is_forwarded_without_xdp_having_seen_it(world: World, v: int, protocol: int) -> None:
    world.apply(OPEN, wan={"redirect": False})
    packet = other(LAN.host(v), WAN.host(v), protocol)
    assert world.emit(WAN, packet, LAN).reason is Reason.EGRESS_UNPOLICED
    assert world.send(LAN, packet).reason is Reason.TO_KERNEL
    assert world.emit(WAN, packet, LAN).reason is Reason.EGRESS_SESSION


@both
def test_p17_the_syn_ack_is_clamped_too(world: World, v: int) -> None:
    world.apply(replace(OPEN, zones=zones(wan={"tcp_mss": 1200})))
    world.send(LAN, tcp(LAN.host(v), WAN.host(v)))
    server = tcp(WAN.host(v), LAN.host(v), 40000, "SA", options=[("MSS", 1460)])
    server[TCP].sport = 80
    result = world.send(WAN, server)
    assert result.ip[TCP].options == [("MSS", 1200)]
    assert_sound(result.frame)


@both
def test_p18_interface_numbers_may_be_high(world: World, v: int) -> None:
    """No table ends before the number of an interface: in and out by one with 21 bits."""
    with interface(HIGH, 1_048_579):
        listed = (*zones(), Zone("high", (HIGH.name,)))
        world.apply(replace(OPEN, zones=listed), {HIGH.name: port_info(HIGH)})
        out = tcp(HIGH.host(v), LAN.host(v))
        assert described(world.send(HIGH, out).frame) == described(routed(out, LAN))
        back = tcp(LAN.host(v), HIGH.host(v), 40000, "SA", ack=1001)
        back[TCP].sport = 80
        assert described(world.send(LAN, back).frame) == described(routed(back, HIGH))
        assert world.session().reverse.packets == 1


def test_p20_no_program_is_near_what_the_verifier_looks_at(world: World) -> None:
    """A million instructions over all paths; other kernels and compilers need more of them than this one."""
    (directory,) = world.pins.glob("programs/*")
    walked = {name: libbpf.verified_instructions(fd) for name, fd in world.steering._programs.named().items()}
    for name, stages in (("stages", Stage), ("egress_stages", EgressStage)):
        array = libbpf.open_pin(directory / name)
        for stage in stages:
            program = libbpf.prog_by_id(libbpf.map_lookup(array, ctypes.c_uint32(stage), ctypes.c_uint32()).value)
            walked[stage.name] = libbpf.verified_instructions(program)
            os.close(program)
        os.close(array)
    if None in walked.values():
        pytest.skip("this kernel does not say what its verifier did")
    assert {name: count for name, count in walked.items() if not 0 < count < 750_000} == {}


@pytest.mark.parametrize(
    ("network", "inside", "mirrored"),
    [
        ("10.1.2.0/24", "10.1.2.3", "2.1.10.3"),
        ("10.1.0.0/17", "10.1.127.3", "10.1.128.3"),
        ("2001:db8:1:2::/64", "2001:db8:1:2::3", "2001:db8:2:1::3"),
        ("2001:db8:1::/49", "2001:db8:1:7fff::3", "2001:db8:1:8000::3"),
    ],
)
def test_n1_prefixes_that_are_no_palindromes_match(world: World, network: str, inside: str, mirrored: str) -> None:
    only = Policy("only", Action.PERMIT, "lan", "wan", sources=(ip_network(network),))
    world.apply(Ruleset(zones=zones(), policies=(only,)))
    v = ip_network(network).version
    assert world.send(LAN, udp(inside, WAN.host(v))).reason is Reason.FORWARDED
    assert world.send(LAN, udp(mirrored, WAN.host(v))).reason is Reason.DEFAULT_DENY


def test_n3_every_rule_of_every_zone_pair_counts_for_itself(world: World) -> None:
    pairs = [(a, b) for a in ("lan", "vlan", "wan", "dmz") for b in ("lan", "vlan", "wan", "dmz")]
    rules = tuple(
        Policy(f"{a} {b} {n}", Action.PERMIT, a, b, services=(Service(17, (5000 + n, 5000 + n)),))
        for a, b in pairs
        for n in range(20)
    )
    world.apply(Ruleset(zones=zones(), policies=rules))
    ports = {"lan": LAN, "vlan": VLAN, "wan": WAN, "dmz": DMZ}
    before = world.rule_counts()
    for a, b in pairs:
        world.clear()
        packet = udp(ports[a].host4, FAR[4] if b == "wan" else ports[b].host4, 5019)
        if a == b == "wan":
            packet.src = "192.0.2.10"
        assert world.send(ports[a], packet).action in {XdpAction.REDIRECT, XdpAction.PASS}
    after = world.rule_counts()
    moved = {rule[1] for rule in after if after[rule].packets - before[rule].packets == 1}
    assert moved == {f"{a} {b} 19" for a, b in pairs}


def test_n4_sources_of_ipv6_are_told_apart_by_all_of_their_address(world: World) -> None:
    """The words of these, and their bytes, come to the same when they are folded."""
    world.apply(screened(sessions_source=1))
    sources = ["2001:db8:1:0:1:2:3:4", "2001:db8:1:0:2:1:3:4", "2001:db8:1:0:3:4:1:2", "2001:db8:0:1:1:2:3:4"]
    for port, expected in ((5000, Reason.FORWARDED), (5001, Reason.SCREEN_SESSIONS_SOURCE)):
        reasons = [world.send(LAN, udp(source, WAN.host6, port)).reason for source in sources]
        assert reasons == [expected] * len(sources)


@both
def test_n4_a_limited_source_is_let_in_again(world: World, v: int) -> None:
    world.apply(screened(sessions_source=1))
    first, second = (udp(LAN.host(v), WAN.host(v), port) for port in (5000, 5001))
    collector = Collector(
        world.table, Sessions(), lambda _: None, session_counts=SessionCounts(world.maps[SESSION_COUNTS.name])
    )
    collector.configure(Sessions(), frozenset({(world.zone("lan"), Screen.SESSIONS_SOURCE)}))
    assert [world.send(LAN, packet).reason for packet in (first, second)] == [
        Reason.FORWARDED,
        Reason.SCREEN_SESSIONS_SOURCE,
    ]
    world.age(3600)
    collector.sweep(time.monotonic_ns())
    assert world.send(LAN, second).reason is Reason.FORWARDED


@both
def test_n5_later_fragments_keep_their_payload(world: World, v: int) -> None:
    world.apply(HIDE)
    first, rest = pieces(v, bytes(range(60)))
    left, late = world.send(LAN, first), world.send(LAN, rest)
    assert (left.reason, late.reason) == (Reason.FORWARDED, Reason.FORWARDED)
    assert late.ip.src == WAN.own(v)
    assert bytes(late.packet)[-len(rest[Raw].load) :] == rest[Raw].load
    assert world.send(LAN, rest).frame == late.frame, "any number of times"


@both
def test_n6_packet_too_big_comes_through_and_is_made(world: World, v: int) -> None:
    world.apply(HIDE)
    packet = udp(LAN.host(v), NARROW[v], octets=1300)
    if v == 4:
        packet.flags = "DF"
    result = world.send(LAN, packet)
    assert described(result.frame) == described(answer(packet, LAN, LAN.own(v), "big", NARROW_MTU))
    left = world.send(LAN, udp(LAN.host(v), NARROW[v]))
    result = world.send(WAN, about(left.ip, WAN.host(v), WAN.own(v)))
    assert (result.reason, result.ip.dst) == (Reason.FORWARDED, LAN.host(v))
    error = result.ip[ICMP] if v == 4 else result.ip[ICMPv6PacketTooBig]
    assert (error.nexthopmtu if v == 4 else error.mtu) == 1300
    assert_sound(result.frame)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")
def test_n8_a_threshold_is_one_for_all_cpus(world: World) -> None:
    world.apply(screened(udp_flood=4, window=60))
    cpus = os.sched_getaffinity(0)

    def work() -> list[Reason]:
        reasons = []
        for cpu in sorted(cpus)[:2] * 3:
            os.sched_setaffinity(0, {cpu})
            reasons.append(world.send(LAN, udp(LAN.host4, WAN.host4)).reason)
        return reasons

    try:
        reasons = world.in_one_window(work)
    finally:
        os.sched_setaffinity(0, cpus)
    assert reasons == [*[Reason.FORWARDED] * 4, *[Reason.SCREEN_UDP_FLOOD] * 2]


def test_n8_what_leaves_is_not_counted_with_what_comes_in(world: World) -> None:
    """And ends no window of it."""
    world.apply(screened(udp_flood=2, window=60))

    def work() -> list[Reason]:
        reasons = []
        for number in range(3):
            world.emit(LAN, udp(LAN.own(4), LAN.host4, 6000 + number))
            reasons.append(world.send(LAN, udp(LAN.host4, WAN.host4)).reason)
        return reasons

    assert world.in_one_window(work) == [Reason.FORWARDED, Reason.FORWARDED, Reason.SCREEN_UDP_FLOOD]


@both
def test_n9_what_is_always_let_in_leaves_its_zone_as_it_is(world: World, v: int) -> None:
    """IKE is not added to the zone's services, so it takes away neither them, nor the screens, nor the zone."""
    screens = Screens("these", land=True)
    ssh = (Service(6, (22, 22)),)
    lan = {"host_inbound": ssh, "screen": "these"}
    world.apply(
        Ruleset(zones=zones(lan=lan), screens=(screens,), policies=(Policy("all", Action.PERMIT, "lan", "wan"),))
    )
    own = LAN.own(v)
    for packet, reason in (
        (udp(LAN.host(v), own, 500), Reason.HOST_IKE),
        (tcp(LAN.host(v), own, 22), Reason.HOST),
        (tcp(LAN.host(v), own, 23), Reason.DEFAULT_DENY),
        (tcp(LAN.host(v), LAN.host(v), 22), Reason.SCREEN_LAND),
        (tcp(LAN.host(v), WAN.host(v)), Reason.FORWARDED),
    ):
        assert world.send(LAN, packet).reason is reason


@both
def test_n11_a_syn_starts_anew_where_a_session_ended(world: World, v: int) -> None:
    world.apply(OPEN)
    syn = tcp(LAN.host(v), WAN.host(v))
    _, server = handshake(world, v)
    old = world.session().id
    end = changed(server)
    end[TCP].flags, end[TCP].seq = "R", 5001
    world.send(WAN, end)
    assert world.send(LAN, syn).reason is Reason.FORWARDED
    assert (world.session().id != old, world.session().state) == (True, State.OPENING)


@both
def test_n11_an_expired_entry_matches_nothing(world: World, v: int) -> None:
    world.apply(OPEN)
    packet = udp(LAN.host(v), WAN.host(v))
    world.send(LAN, packet)
    world.age(61)
    back = udp(WAN.host(v), LAN.host(v), 40000)
    back[UDP].sport = 5000
    world.apply(Ruleset(zones=zones()))
    assert world.send(WAN, back).reason is Reason.DEFAULT_DENY
    assert world.entries() == {}


@both
def test_n12_icmp_errors_without_a_session_go_nowhere(world: World, v: int) -> None:
    world.apply(OPEN)
    layer = ip_layer(v, src=WAN.host(v), dst=LAN.host(v))
    quoted = bytes(udp(LAN.host(v), WAN.host(v)))[: 28 if v == 4 else 48]
    error = ICMP(type=3, code=1) if v == 4 else ICMPv6DestUnreach()
    result = world.send(WAN, layer / error / Raw(quoted))
    assert (result.action, result.reason) == (XdpAction.DROP, Reason.ICMP_NO_SESSION)
    assert world.emit(LAN, layer / error / Raw(quoted), WAN).reason is Reason.EGRESS_UNPOLICED


def test_n14_many_source_nat_rules_of_a_zone_pair_stay_in_it(world: World) -> None:
    rules = tuple(
        SourceNat(f"r{n}", Translation.INTERFACE, "lan", "wan", (ip_network(f"10.1.0.{n}/32"),)) for n in range(2, 100)
    )
    world.apply(replace(OPEN, source_nat=rules))
    for host in (2, 9, 10, 11, 66, 99):
        world.send(LAN, tcp(f"10.1.0.{host}", WAN.host4))
        rule = next(session.snat_rule for session in world.sessions() if str(session.flow.source) == f"10.1.0.{host}")
        assert rule == world.ids.rules[NameKind.SOURCE_NAT, f"r{host}"]
    world.clear()
    for port, source in ((LAN, "10.1.0.150"), (VLAN, "10.1.0.9"), (DMZ, "10.1.0.66")):
        assert world.send(port, tcp(source, WAN.host4)).ip.src == source


@both
def test_n15_vrrp_is_a_service_like_others(world: World, v: int) -> None:
    group = {4: "224.0.0.18", 6: "ff02::12"}[v]
    packet = other(LAN.host(v), group, 112)
    world.apply(Ruleset(zones=zones()))
    assert world.send(LAN, packet).reason is Reason.DEFAULT_DENY
    world.apply(Ruleset(zones=zones(lan={"host_inbound": (Service(112),)})))
    assert world.send(LAN, packet).reason is Reason.HOST
