"""Pools of VPP: what XDP gives to VPP and takes from it, and what becomes of flows without VPP. The tests are VPP."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from firewall_kit import DMZ, FAR, LAN, NARROW, NARROW_MTU, SILENT, WAN, Result, zones
from firewall_packets import (
    about,
    answer,
    changed,
    described,
    echo,
    later,
    other,
    partial,
    routed,
    tcp,
    udp,
)
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_Router_Alert
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw
from translator_kit import LIFE, OPEN, OURS, POOL, RESERVED, RULE, TAG, Translator, given, translator_world
from tunnel_kit import OUT, policy

from ipsec_gw.model.firewall import Action, DestinationNat, Policy, PoolEngine, Ruleset, Service
from xdp_steer.compile.tunnels import tunnel_lists
from xdp_steer.events import EventReader
from xdp_steer.flow_layout import TRANSLATOR_MTU, TRANSLATOR_OUTSIDE, SessionFlag, Stage
from xdp_steer.prog_run import TcAction, XdpAction
from xdp_steer.reasons import Reason
from xdp_steer.tunnels import TunnelTable

pytestmark = pytest.mark.root

HOST, SERVER = LAN.host4, FAR[4]
SEVERAL = ("tcp", "udp", "echo")
PORT = {"tcp": "sport", "udp": "sport", "echo": "id"}


@pytest.fixture(scope="module")
def arena(pins: Path) -> Iterator[Translator]:
    with translator_world(pins) as made:
        yield made


@pytest.fixture
def nat(arena: Translator) -> Translator:
    arena.world.clear()
    arena.apply()
    return arena


def asked(kind: str, source: str = HOST, destination: str = SERVER) -> Packet:
    return {"tcp": tcp, "udp": udp, "echo": echo}[kind](source, destination)


def answered(packet: Packet, **fields: object) -> Packet:
    """What the other side says to a packet."""
    layer = IP(src=packet.dst, dst=packet.src, ttl=50)
    if TCP in packet:
        made = layer / TCP(sport=packet[TCP].dport, dport=packet[TCP].sport, flags="SA", ack=1001)
    elif UDP in packet:
        made = layer / UDP(sport=packet[UDP].dport, dport=packet[UDP].sport) / Raw(b"answer.")
    else:
        made = layer / ICMP(type=0, id=packet[ICMP].id) / Raw(b"ping")
    return changed(made, **fields) if fields else made


def is_given(result: Result, packet: Packet, tag: int) -> None:
    assert (result.action, result.reason) == (XdpAction.REDIRECT, Reason.TRANSLATE)
    assert described(result.frame) == described(given(packet, tag))


def is_sent(result: Result, frame: Packet) -> None:
    assert (result.action, result.reason) == (XdpAction.REDIRECT, Reason.FORWARDED)
    assert described(result.frame) == described(frame)


def is_dropped(result: Result, reason: Reason) -> None:
    assert (result.action, result.reason) == (XdpAction.DROP, reason)


@pytest.mark.parametrize("kind", SEVERAL)
def test_a_flow_goes_to_vpp_and_back_and_loses_one_hop_in_all(nat: Translator, kind: str) -> None:
    ask = asked(kind)
    for _ in range(2):  # the first packet, and one of the session
        is_given(nat.lan(ask), ask, TAG)
        is_sent(nat.out(changed(ask, src=OURS)), routed(ask, WAN, src=OURS))
    reply = answered(changed(ask, src=OURS))
    is_given(nat.wan(reply), reply, TRANSLATOR_OUTSIDE)
    is_sent(nat.vpp(TAG, changed(reply, dst=HOST)), routed(reply, LAN, dst=HOST))


def test_the_session_is_as_without_nat_and_counted_as_any_other(nat: Translator) -> None:
    ask = asked("tcp")
    nat.lan(ask)
    nat.wan(answered(changed(ask, src=OURS)))
    nat.vpp(TAG, answered(ask))
    nat.lan(tcp(HOST, SERVER, flags="A"))
    session = nat.world.session()
    assert (str(session.flow.source), str(session.flow.destination)) == (HOST, SERVER)
    assert (session.forward.packets, session.reverse.packets) == (2, 1)
    flags = {
        SessionFlag(row.flags) & ~(SessionFlag.ACKED | SessionFlag.LOG_CLOSE) for row in nat.world.entries().values()
    }
    assert flags == {SessionFlag.TRANSLATOR, SessionFlag.TRANSLATOR | SessionFlag.REVERSE}


def test_a_handshake_is_followed(nat: Translator) -> None:
    nat.lan(tcp(HOST, SERVER))
    is_sent(nat.vpp(TAG, answered(tcp(HOST, SERVER))), routed(answered(tcp(HOST, SERVER)), LAN))
    ack = tcp(HOST, SERVER, flags="A", ack=1)
    is_given(nat.lan(ack), ack, TAG)
    assert nat.world.session().state.name == "ESTABLISHED"


AUTO = replace(POOL, engine=PoolEngine.AUTO)


@pytest.fixture
def moving(nat: Translator) -> Translator:
    """With a pool that is VPP's at times, and XDP's just now."""
    nat.apply(pools=(AUTO,))
    nat.world.steering.pools.give(TAG, to_vpp=False)
    return nat


@pytest.mark.parametrize("kind", SEVERAL)
def test_new_flows_go_where_the_pool_is_and_no_flow_changes(moving: Translator, kind: str) -> None:
    pools = moving.world.steering.pools
    first, second, third = (changed(asked(kind), **{PORT[kind]: 50_000 + number}) for number in range(3))
    is_sent(moving.lan(first), routed(first, WAN, src=RESERVED))
    pools.give(TAG, to_vpp=True)
    is_given(moving.lan(second), second, TAG)
    is_sent(moving.lan(first), routed(first, WAN, src=RESERVED))
    pools.give(TAG, to_vpp=False)
    for _ in range(2):
        is_sent(moving.lan(third), routed(third, WAN, src=RESERVED))
        is_given(moving.lan(second), second, TAG)
    back = answered(changed(second, src=OURS))
    is_given(moving.wan(back), back, TRANSLATOR_OUTSIDE)
    is_sent(moving.vpp(TAG, answered(second)), routed(answered(second), LAN))
    back = answered(changed(first, src=RESERVED))
    is_sent(moving.wan(back), routed(back, LAN, dst=HOST))


@pytest.mark.parametrize("kind", SEVERAL)
def test_a_flow_that_was_vpps_and_begins_anew_is_whose_the_pool_is(moving: Translator, kind: str) -> None:
    again, pools = asked(kind), moving.world.steering.pools
    pools.give(TAG, to_vpp=True)
    is_given(moving.lan(again), again, TAG)
    pools.give(TAG, to_vpp=False)
    moving.world.age(100_000)
    for _ in range(2):
        is_sent(moving.lan(again), routed(again, WAN, src=RESERVED))
    back = answered(changed(again, src=RESERVED))
    is_sent(moving.wan(back), routed(back, LAN, dst=HOST))


def test_a_pool_of_vpps_alone_asks_nobody(nat: Translator) -> None:
    nat.world.steering.pools.give(TAG, to_vpp=False)
    is_given(nat.lan(asked("udp")), asked("udp"), TAG)


def test_without_vpp_a_pool_that_is_vpps_just_now_is_xdps(moving: Translator) -> None:
    moving.world.steering.pools.give(TAG, to_vpp=True)
    moving.world.steering.end_translation()
    is_sent(moving.lan(asked("udp")), routed(asked("udp"), WAN, src=RESERVED))


@pytest.mark.parametrize("to_vpp", [False, True])
def test_what_a_pool_is_asked_for_is_counted_whoever_translates(moving: Translator, to_vpp: bool) -> None:
    pools = moving.world.steering.pools
    pools.give(TAG, to_vpp=to_vpp)
    before = pools.count(TAG)
    ask = asked("udp")
    moving.lan(ask)
    moving.lan(ask)
    if to_vpp:
        moving.out(changed(ask, src=OURS))  # the same packet once more
        moving.wan(answered(changed(ask, src=OURS)))  # the answer, before VPP has it
        moving.vpp(TAG, answered(ask))
    else:
        moving.wan(answered(changed(ask, src=RESERVED)))
    moving.lan(asked("tcp"))
    moving.world.send(DMZ, udp(DMZ.host4, SERVER))  # of no pool
    after = pools.count(TAG)
    assert (after.flows - before.flows, after.packets - before.packets) == (2, 4)


def test_flows_that_xdp_has_no_port_for_are_counted(moving: Translator) -> None:
    moving.apply(pools=(replace(AUTO, ports=(2000, 2000)),))
    pools = moving.world.steering.pools
    before = pools.count(TAG)
    first, second = asked("udp"), changed(asked("udp"), sport=50_001)
    is_sent(moving.lan(first), routed(first, WAN, src=RESERVED, sport=2000))
    is_dropped(moving.lan(second), Reason.NAT_EXHAUSTED)
    is_sent(moving.lan(other(HOST, SERVER)), routed(other(HOST, SERVER), WAN, src=RESERVED))
    neighbour = str(ip_address(HOST) + 1)
    is_dropped(moving.lan(other(neighbour, SERVER)), Reason.NAT_EXHAUSTED)  # VPP has no port for it either
    pools.give(TAG, to_vpp=True)
    is_given(moving.lan(second), second, TAG)
    after = pools.count(TAG)
    assert (after.flows - before.flows, after.refused - before.refused) == (5, 1)


@pytest.mark.parametrize("kind", SEVERAL)
def test_without_vpp_its_flows_are_dropped_and_new_ones_are_xdps(nat: Translator, kind: str) -> None:
    old, new = asked(kind), asked(kind, destination=WAN.host4)
    nat.lan(old)
    nat.world.steering.end_translation()
    seen = {flow: row.last_seen_ns for flow, row in nat.world.entries().items()}
    nat.world.age(10)
    is_dropped(nat.lan(old), Reason.TRANSLATOR_AWAY)
    is_dropped(nat.wan(answered(changed(old, src=OURS))), Reason.TRANSLATOR_AWAY)
    is_dropped(nat.vpp(TAG, answered(old)), Reason.TRANSLATOR_AWAY)
    assert all(row.last_seen_ns < seen[flow] for flow, row in nat.world.entries().items())  # nothing kept it alive
    is_sent(nat.lan(new), routed(new, WAN, src=RESERVED))
    back = answered(changed(new, src=RESERVED))
    is_sent(nat.wan(back), routed(back, LAN, dst=HOST))


def test_what_xdp_has_begun_stays_xdps(nat: Translator) -> None:
    ask = asked("udp")
    nat.world.steering.end_translation()
    is_sent(nat.lan(ask), routed(ask, WAN, src=RESERVED))
    nat.world.steering.begin_translation(LIFE + 1, anew=False)
    is_sent(nat.lan(ask), routed(ask, WAN, src=RESERVED))
    is_given(nat.lan(asked("echo")), asked("echo"), TAG)


def test_in_another_life_of_vpp_flows_begin_anew(nat: Translator) -> None:
    nat.lan(udp(HOST, SERVER))
    nat.lan(tcp(HOST, SERVER))
    first = {session.flow.protocol: session.id for session in nat.world.sessions()}
    nat.world.steering.end_translation()
    nat.world.age(0.01)
    for flow, row in nat.world.entries().items():
        nat.world.change(flow, created_ns=row.created_ns - 10_000_000)
    nat.world.steering.begin_translation(LIFE + 1, anew=False)
    is_given(nat.lan(udp(HOST, SERVER)), udp(HOST, SERVER), TAG)
    is_dropped(nat.lan(tcp(HOST, SERVER, flags="A")), Reason.TCP_NOT_SYN)
    (now,) = nat.world.sessions()
    assert now.flow.protocol == 17
    assert now.id != first[17]


def test_the_same_life_goes_on(nat: Translator) -> None:
    """A daemon that was started again."""
    since = nat.since()
    nat.world.steering.begin_translation(LIFE, anew=False)
    assert nat.since() == since
    nat.world.steering.begin_translation(LIFE, anew=True)
    assert nat.since() >= since
    assert nat.world.steering.translates()


def test_what_vpp_sends_for_nobody_is_dropped(nat: Translator) -> None:
    is_dropped(nat.vpp(TAG, udp(SERVER, HOST)), Reason.TRANSLATOR_UNKNOWN)
    is_dropped(nat.vpp(TAG, tcp(SERVER, HOST, flags="SA")), Reason.TRANSLATOR_UNKNOWN)
    is_dropped(nat.out(udp(HOST, SERVER)), Reason.TRANSLATOR_UNKNOWN)  # not translated
    is_dropped(nat.out(udp(RESERVED, SERVER)), Reason.TRANSLATOR_UNKNOWN)  # XDP's
    is_dropped(nat.vpp(TAG + 1, udp(SERVER, HOST)), Reason.NO_ZONE)
    assert not nat.world.sessions()


def test_the_untranslated_side_comes_by_vpp_alone(nat: Translator) -> None:
    """Who knows the addresses inside gets in no packet of a flow."""
    nat.lan(udp(HOST, SERVER))
    is_dropped(nat.wan(answered(udp(HOST, SERVER))), Reason.TRANSLATOR_PASSED)
    is_dropped(nat.wan(about(udp(HOST, SERVER), SERVER, HOST)), Reason.TRANSLATOR_PASSED)


def test_what_goes_out_stays_in_the_zone_that_was_permitted(nat: Translator) -> None:
    is_dropped(nat.out(udp(OURS, DMZ.host4)), Reason.ZONE_CHANGED)
    is_dropped(nat.out(udp(OURS, WAN.own(4))), Reason.ZONE_CHANGED)


@pytest.mark.parametrize("frame", ["gre", "options", "own"])
def test_what_vpp_does_not_translate_is_xdps(nat: Translator, frame: str) -> None:
    ask = {
        "gre": other(HOST, SERVER),
        "options": IP(src=HOST, dst=SERVER, options=[IPOption_Router_Alert()]) / UDP(sport=40000, dport=5000),
        "own": udp(HOST, OURS),  # from one of VPP's addresses to another: where the route leads, as with XDP's
    }[frame]
    is_sent(nat.lan(ask), routed(ask, WAN, src=RESERVED))


def test_options_do_not_reach_vpp(nat: Translator) -> None:
    nat.lan(udp(HOST, SERVER))
    with_options = IP(src=HOST, dst=SERVER, options=[IPOption_Router_Alert()]) / UDP(sport=40000, dport=5000)
    is_dropped(nat.lan(with_options), Reason.TRANSLATOR_UNFIT)


def test_addresses_of_vpp_are_for_the_zone_of_the_pool(nat: Translator) -> None:
    ask = udp(DMZ.host4, OURS)
    is_sent(nat.world.send(DMZ, ask), routed(ask, WAN))
    nat.world.clear()
    for probe in (tcp(SERVER, OURS), udp(SERVER, OURS), echo(SERVER, OURS), other(SERVER, OURS)):
        is_given(nat.wan(probe), probe, TRANSLATOR_OUTSIDE)
    assert not nat.world.sessions()
    reserved = udp(SERVER, RESERVED)
    is_sent(nat.wan(reserved), routed(reserved, WAN))  # XDP's are addresses like any other


def test_the_last_hop_is_told_before_vpp(nat: Translator) -> None:
    last = udp(HOST, SERVER, ttl=1)
    result = nat.lan(last)
    assert (result.action, result.reason) == (XdpAction.TX, Reason.TTL_EXPIRED)
    assert described(result.frame) == described(answer(last, LAN, LAN.own(4), "ttl"))
    inward = udp(SERVER, OURS, ttl=1)
    result = nat.wan(inward)
    assert (result.action, result.reason) == (XdpAction.TX, Reason.TTL_EXPIRED)
    assert described(result.frame) == described(answer(inward, WAN, WAN.own(4), "ttl"))


def test_what_is_too_long_outside_is_told_inside(nat: Translator) -> None:
    long = udp(HOST, NARROW[4], octets=1300)
    long.flags = "DF"
    result = nat.lan(long)
    assert (result.action, result.reason) == (XdpAction.TX, Reason.TOO_BIG)
    assert described(result.frame) == described(answer(long, LAN, LAN.own(4), "big", NARROW_MTU))
    long.flags = 0
    is_given(nat.lan(long), long, TAG)
    jumbo = udp(HOST, SERVER, octets=TRANSLATOR_MTU)
    is_dropped(nat.lan(jumbo), Reason.TOO_BIG)
    jumbo.flags = "DF"
    assert nat.lan(jumbo).ip[ICMP].nexthopmtu == TRANSLATOR_MTU


def test_errors_from_outside_come_by_vpp(nat: Translator) -> None:
    ask = udp(HOST, SERVER)
    nat.lan(ask)
    outside = about(changed(ask, src=OURS), WAN.host4, OURS)
    is_given(nat.wan(outside), outside, TRANSLATOR_OUTSIDE)
    inside = about(ask, WAN.host4, HOST)
    is_sent(nat.vpp(TAG, inside), routed(inside, LAN))
    is_dropped(nat.vpp(TAG, about(udp(HOST, SERVER, dport=9), WAN.host4, HOST)), Reason.ICMP_NO_SESSION)


def test_errors_from_inside_go_by_vpp(nat: Translator) -> None:
    ask = udp(HOST, SERVER)
    nat.lan(ask)
    error = about(answered(ask), HOST, SERVER)
    is_given(nat.lan(error), error, TAG)
    outside = about(changed(answered(ask), dst=OURS), OURS, SERVER)
    is_sent(nat.out(outside), routed(outside, WAN))
    nat.world.steering.end_translation()
    is_dropped(nat.lan(error), Reason.TRANSLATOR_AWAY)


def test_fragments_follow_the_first_one_both_ways(nat: Translator) -> None:
    first = IP(src=HOST, dst=SERVER, id=9, flags="MF") / UDP(sport=40000, dport=5000, len=48) / Raw(b"\x11" * 16)
    second = later(HOST, SERVER)
    is_given(nat.lan(first), first, TAG)
    is_given(nat.lan(second), second, TAG)
    is_sent(nat.out(changed(second, src=OURS)), routed(second, WAN, src=OURS))

    back = later(SERVER, OURS)
    is_given(nat.wan(back), back, TRANSLATOR_OUTSIDE)
    opening = IP(src=SERVER, dst=HOST, id=9, flags="MF") / UDP(sport=5000, dport=40000, len=48) / Raw(b"\x11" * 16)
    is_dropped(nat.vpp(TAG, later(SERVER, HOST)), Reason.FRAGMENT_UNKNOWN)
    is_sent(nat.vpp(TAG, opening), routed(opening, LAN))
    is_sent(nat.vpp(TAG, later(SERVER, HOST)), routed(later(SERVER, HOST), LAN))


@pytest.mark.parametrize("kind", ["tcp", "udp"])
@pytest.mark.parametrize("octets", [0, 1, 64, 1379])
def test_checksums_are_finished_for_vpp(nat: Translator, kind: str, octets: int) -> None:
    ruleset = Ruleset(zones=zones(), policies=OPEN, pools=(POOL,), source_nat=(RULE,))
    nat.world.apply(ruleset, nat.more, lan={"partial": True})
    header = TCP(sport=40000, dport=80, flags="S", seq=1000) if kind == "tcp" else UDP(sport=40000, dport=5000)
    packet = IP(bytes(IP(src=HOST, dst=SERVER) / header / Raw(b"\xa5" * octets)))
    is_given(nat.lan(partial(packet)), packet, TAG)
    is_given(nat.lan(packet), packet, TAG)  # one that is finished stays as it is


def test_destination_nat_comes_before_vpp(nat: Translator) -> None:
    shown = "10.9.9.9"
    nat.apply(destination_nat=(DestinationNat("there", *nets(f"{shown}/32", f"{SERVER}/32"), from_zone="lan"),))
    ask = udp(HOST, shown)
    for _ in range(2):
        is_given(nat.lan(ask), changed(ask, dst=SERVER), TAG)
    back = answered(changed(ask, dst=SERVER))
    is_sent(nat.vpp(TAG, back), routed(back, LAN, src=shown))


def nets(*texts: str) -> list[object]:
    return [ip_network(text) for text in texts]


def test_the_kernel_gets_what_xdp_cannot_send_without_vpps_tag(nat: Translator) -> None:
    """No neighbour yet: as from any other interface."""
    result = nat.out(udp(OURS, SILENT[4]))
    assert (result.action, result.reason) == (XdpAction.PASS, Reason.TO_KERNEL)
    assert described(result.frame) == described(Ether(src=nat.port.host_mac, dst=nat.port.mac) / udp(OURS, SILENT[4]))


def test_the_kernel_may_send_what_vpp_translated_and_nothing_else(nat: Translator) -> None:
    def emitted(port, packet, came_in_by):
        result = nat.world.emit(port, packet, came_in_by)
        return result.action, result.reason

    passed, dropped = (TcAction.UNSPEC, Reason.EGRESS_SESSION), (TcAction.SHOT, Reason.EGRESS_UNPOLICED)
    assert emitted(WAN, udp(OURS, SERVER), nat.port) == passed
    assert emitted(WAN, later(OURS, SERVER), nat.port) == passed
    assert emitted(WAN, about(udp(SERVER, OURS), OURS, SERVER), nat.port) == passed
    assert emitted(WAN, udp(OURS, SERVER), LAN) == dropped
    assert emitted(WAN, udp(HOST, SERVER), nat.port) == dropped
    assert emitted(DMZ, udp(OURS, DMZ.host4), nat.port) == dropped
    nat.lan(udp(HOST, SERVER))
    assert emitted(LAN, answered(udp(HOST, SERVER)), nat.port) == passed
    assert emitted(WAN, udp(HOST, SERVER), LAN) == dropped  # of a flow of VPP's, and past VPP
    assert emitted(WAN, about(answered(udp(HOST, SERVER)), HOST, SERVER), LAN) == dropped


def test_what_would_be_encrypted_after_vpp_is_dropped(nat: Translator) -> None:
    """VPP's pools lead into no tunnel; nothing that a policy protects leaves in clear."""
    table = TunnelTable(nat.world.maps)
    protects = (policy(OUT, "203.0.113.128/29", "203.0.113.0/24"),)
    vpn = replace(zones()[3], name="vpn", interfaces=(), tunnels=True)
    try:
        nat.apply(zones=(*zones(), vpn))
        table.replace(tunnel_lists(protects).lists)
        result = nat.out(udp(OURS, SERVER))
        assert result.action is XdpAction.DROP
        assert result.reason in {Reason.TUNNEL_NAT, Reason.NO_EGRESS_ZONE}
    finally:
        table.replace({})


def test_a_missing_stage_lets_nothing_by(nat: Translator) -> None:
    with nat.world.without("stages", Stage.TRANSLATE):
        is_dropped(nat.lan(udp(HOST, SERVER)), Reason.NO_STAGE)
        is_dropped(nat.lan(udp(HOST, SERVER)), Reason.NO_STAGE)
        is_dropped(nat.wan(udp(SERVER, OURS)), Reason.NO_STAGE)
    with nat.world.without("stages", Stage.TRANSLATED):
        is_dropped(nat.out(udp(OURS, SERVER)), Reason.NO_STAGE)
        is_dropped(nat.vpp(TAG, answered(udp(HOST, SERVER))), Reason.NO_STAGE)


VERDICTS = (
    Policy("web", Action.PERMIT, "lan", "wan", services=(Service(6, (80, 80)),), log_open=True, log_close=True),
    Policy("no-mail", Action.REJECT, "lan", "wan", services=(Service(6, (25, 25)),), log_open=True),
    Policy("quiet", Action.DENY, "lan", "wan", services=(Service(17, (9, 9)),), log_close=True),
    Policy("rest", Action.PERMIT, "lan", "wan", services=(Service(17), Service(1), Service(47)), log_open=True),
)


@pytest.mark.parametrize(
    "packet",
    [
        tcp(HOST, SERVER, 80),
        tcp(HOST, SERVER, 80, "A"),
        tcp(HOST, SERVER, 25),
        tcp(HOST, SERVER, 443),
        udp(HOST, SERVER, 9),
        udp(HOST, SERVER, 53),
        udp(HOST, SERVER, 53, ttl=1),
        echo(HOST, SERVER),
        echo(HOST, SERVER, reply=True),
        other(HOST, SERVER),
        udp("127.0.0.1", SERVER),
        later(HOST, SERVER),
    ],
    ids=lambda packet: packet.summary(),
)
def test_verdicts_logs_and_counters_are_those_of_a_pool_of_xdp(nat: Translator, packet: Packet) -> None:
    told = []
    for engine in PoolEngine:
        nat.world.clear()
        nat.apply(policies=VERDICTS, pools=(replace(POOL, engine=engine),))
        events = EventReader(nat.world.maps["events"], lambda: 0)
        events.read()
        before = nat.world.rule_counts()
        results = [nat.lan(packet) for _ in range(2)]
        after = nat.world.rule_counts()
        counted = {
            name: (after[name].packets - before[name].packets, after[name].octets - before[name].octets)
            for name in after
        }
        logged = [
            (event.kind, event.flow, event.rule, event.reason, event.translated.zone) for event in events.read().events
        ]
        events.close()
        reasons = [result.reason for result in results]
        actions = [result.action for result in results]
        reasons = [Reason.FORWARDED if reason is Reason.TRANSLATE else reason for reason in reasons]
        sessions = [
            (one.flow, one.state, one.timeout, one.forward, one.reverse, one.rule, one.snat_rule)
            for one in nat.world.sessions()
        ]
        told.append((actions, reasons, counted, logged, sessions))
    assert told[0] == told[1]
