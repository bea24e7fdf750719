"""The firewall on TC egress: sessions of this machine, and what the kernel forwards."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network

import pytest
from firewall_kit import (
    DMZ,
    LAN,
    NARROW,
    VLAN,
    WAN,
    WILD,
    Port,
    Result,
    World,
    ifindex,
    zones,
)
from firewall_packets import about, changed, described, echo, ip_layer, later, other, tcp, udp
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6MLReport2, IPv6, IPv6ExtHdrFragment
from scapy.layers.ipsec import ESP
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Packet, Raw

from ipsec_gw.errors import SteeringError
from ipsec_gw.model.firewall import (
    Action,
    Policy,
    Ruleset,
    Service,
    Sessions,
    SourceNat,
    Timeouts,
    Translation,
)
from xdp_steer.flow_layout import NameKind, SessionFlag, State
from xdp_steer.prog_run import TcAction, XdpAction, prog_run_egress
from xdp_steer.reasons import Reason

pytestmark = pytest.mark.root

OPEN = Ruleset(zones=zones(), policies=(Policy("all", Action.PERMIT),))
CLOSED = Ruleset(zones=zones())
HIDE = replace(OPEN, source_nat=(SourceNat("hide", Translation.INTERFACE, to_zone="wan"),))
KERNEL = {"wan": {"redirect": False}, "lan": {"redirect": False}, "vlan": {"redirect": False}}
VERSIONS = (4, 6)
PORTS = (WAN, VLAN)


def passed(result: Result, reason: Reason) -> None:
    assert (result.action, result.reason) == (TcAction.UNSPEC, reason)


def dropped(result: Result, reason: Reason) -> None:
    assert (result.action, result.reason) == (TcAction.SHOT, reason)


def reply_of(packet: Packet) -> Packet:
    """The other direction, SYN+ACK if it is TCP."""
    made = changed(packet, src=packet.dst, dst=packet.src)
    layer = made[TCP] if TCP in made else made[UDP]
    layer.sport, layer.dport = layer.dport, layer.sport
    if TCP in made:
        layer.flags, layer.ack = "SA", 1001
    return made


@pytest.mark.parametrize("port", PORTS, ids=lambda port: port.name)
@pytest.mark.parametrize("v", VERSIONS)
@pytest.mark.parametrize("made", [tcp, udp], ids=["tcp", "udp"])
def test_answers_to_this_machine_are_let_in(world: World, port: Port, v: int, made) -> None:
    world.apply(CLOSED)
    ask = made(port.own(v), port.host(v))
    assert world.send(port, reply_of(ask)).action is XdpAction.DROP
    passed(world.emit(port, ask), Reason.EGRESS_NEW)
    passed(world.emit(port, changed(ask)), Reason.EGRESS_SESSION)
    result = world.send(port, reply_of(ask))
    assert (result.action, result.reason) == (XdpAction.PASS, Reason.HOST)
    assert described(result.frame) == described(port.frame(reply_of(ask)))
    session = world.session()
    assert (session.flow.zone, session.forward.packets, session.reverse.packets) == (0, 2, 1)
    assert session.rule == 0


@pytest.mark.parametrize("v", VERSIONS)
def test_a_ping_of_this_machine(world: World, v: int) -> None:
    world.apply(CLOSED)
    passed(world.emit(WAN, echo(WAN.own(v), WAN.host(v))), Reason.EGRESS_NEW)
    assert world.send(WAN, echo(WAN.host(v), WAN.own(v), reply=True)).reason is Reason.HOST


@pytest.mark.parametrize("v", VERSIONS)
def test_states_move_on_egress_too(world: World, v: int) -> None:
    world.apply(CLOSED)
    ask = tcp(WAN.own(v), WAN.host(v))

    def ours(flags: str, seq: int, ack: int) -> Result:
        segment = ask.copy()
        segment[TCP].flags, segment[TCP].seq, segment[TCP].ack = flags, seq, ack
        return world.emit(WAN, segment)

    def theirs(flags: str, seq: int, ack: int) -> Result:
        segment = reply_of(ask)
        segment[TCP].flags, segment[TCP].seq, segment[TCP].ack = flags, seq, ack
        return world.send(WAN, segment)

    states = []
    for step in (
        lambda: ours("S", 100, 0),
        lambda: theirs("SA", 500, 101),
        lambda: ours("A", 101, 501),
        lambda: theirs("R", 500, 0),
        lambda: ours("FA", 101, 501),
        lambda: theirs("FA", 501, 102),
    ):
        step()
        states.append(world.session().state)
    assert states == [
        State.OPENING,
        State.ANSWERED,
        State.ESTABLISHED,
        State.ESTABLISHED,
        State.CLOSING,
        State.TIME_WAIT,
    ]
    old = world.session().id
    passed(ours("S", 900, 0), Reason.EGRESS_NEW)
    assert world.session().id != old
    theirs("RA", 0, 901)
    assert world.session().state is State.CLOSED
    dropped(ours("A", 901, 1), Reason.SESSION_CLOSED)


@pytest.mark.parametrize("flags", ["A", "PA", "FA", "SA"])
@pytest.mark.parametrize("v", VERSIONS)
def test_a_connection_older_than_the_firewall_lives_on(world: World, flags: str, v: int) -> None:
    world.apply(CLOSED)
    ask = tcp(WAN.own(v), WAN.host(v), flags=flags, ack=7)
    passed(world.emit(WAN, ask), Reason.EGRESS_NEW)
    back = reply_of(ask)
    back[TCP].flags = "A"
    assert world.send(WAN, back).reason is Reason.HOST


@pytest.mark.parametrize("v", VERSIONS)
def test_the_reset_of_a_closed_port_leaves_and_makes_no_session(world: World, v: int) -> None:
    world.apply(CLOSED)
    for flags in ("R", "RA"):
        passed(world.emit(WAN, tcp(WAN.own(v), WAN.host(v), flags=flags)), Reason.EGRESS_EXEMPT)
    assert world.entries() == {}


@pytest.mark.parametrize("v", VERSIONS)
def test_the_policy_from_self(world: World, v: int) -> None:
    rules = (
        Policy("ntp", Action.PERMIT, "self", "wan", services=(Service(17, (123, 123), timeout=17),)),
        Policy("rest", Action.REJECT, "self", "wan", destinations=(ip_network(WAN.host(v)),)),
    )
    world.apply(Ruleset(zones=zones(), policies=rules))
    before = world.rule_counts()
    ntp = udp(WAN.own(v), WAN.host(v), 123)
    passed(world.emit(WAN, ntp), Reason.EGRESS_NEW)
    session = world.session()
    assert session.rule == world.ids.rules[NameKind.POLICY, "ntp"]
    assert session.timeout == 17
    for packet in (udp(WAN.own(v), WAN.host(v), 53), tcp(WAN.own(v), WAN.host(v)), echo(WAN.own(v), WAN.host(v))):
        dropped(world.emit(WAN, packet), Reason.EGRESS_DENY)
    passed(world.emit(VLAN, tcp(VLAN.own(v), VLAN.host(v))), Reason.EGRESS_NEW)
    after = world.rule_counts()
    moved = {rule[1]: after[rule].packets - before[rule].packets for rule in before}
    assert moved == {"ntp": 1, "rest": 3}


def test_global_policies_do_not_stop_this_machine(world: World) -> None:
    world.apply(Ruleset(zones=zones(), policies=(Policy("nothing", Action.DENY),)))
    passed(world.emit(WAN, tcp(WAN.address4, WAN.host4)), Reason.EGRESS_NEW)


@pytest.mark.parametrize("v", VERSIONS)
def test_a_session_of_this_machine_expires(world: World, v: int) -> None:
    world.apply(replace(CLOSED, sessions=Sessions(timeouts=Timeouts(udp=6))))
    ask = udp(WAN.own(v), WAN.host(v))
    passed(world.emit(WAN, ask), Reason.EGRESS_NEW)
    world.age(7)
    assert world.send(WAN, reply_of(ask)).reason is Reason.DEFAULT_DENY
    passed(world.emit(WAN, ask), Reason.EGRESS_NEW)


@pytest.mark.parametrize("port", PORTS, ids=lambda port: port.name)
@pytest.mark.parametrize("v", VERSIONS)
@pytest.mark.parametrize("made", [tcp, udp, echo, other], ids=["tcp", "udp", "echo", "gre"])
def test_what_xdp_left_to_the_kernel_leaves(world: World, port: Port, v: int, made) -> None:
    world.apply(HIDE, **KERNEL)
    packet = made(DMZ.host(v), port.host(v))
    dropped(world.emit(port, packet, DMZ), Reason.EGRESS_UNPOLICED)
    left = world.send(DMZ, packet)
    assert (left.action, left.reason) == (XdpAction.PASS, Reason.TO_KERNEL)
    if port is WAN:
        assert left.ip.src == WAN.own(v)
    passed(world.emit(port, left.ip, DMZ), Reason.EGRESS_SESSION)
    if port is VLAN:
        dropped(world.emit(WAN, left.ip, DMZ), Reason.EGRESS_UNPOLICED)
        dropped(world.emit(port, changed(left.ip, src=LAN.host(v)), DMZ), Reason.EGRESS_UNPOLICED)


@pytest.mark.parametrize("v", VERSIONS)
def test_replies_that_the_kernel_forwards(world: World, v: int) -> None:
    world.apply(OPEN, **KERNEL)
    ask = udp(LAN.host(v), WAN.host(v))
    world.send(LAN, ask)
    back = world.send(WAN, reply_of(ask))
    assert back.reason is Reason.TO_KERNEL
    passed(world.emit(LAN, back.ip, WAN), Reason.EGRESS_SESSION)


@pytest.mark.parametrize("v", VERSIONS)
def test_an_expired_session_lets_nothing_out(world: World, v: int) -> None:
    world.apply(replace(OPEN, sessions=Sessions(timeouts=Timeouts(udp=6))), **KERNEL)
    packet = udp(LAN.host(v), VLAN.host(v))
    world.send(LAN, packet)
    world.age(5)
    passed(world.emit(VLAN, packet, LAN), Reason.EGRESS_SESSION)
    world.age(2)
    dropped(world.emit(VLAN, packet, LAN), Reason.EGRESS_UNPOLICED)


def test_fragments_that_the_kernel_makes(world: World) -> None:
    world.apply(OPEN)
    big = udp(LAN.host4, NARROW[4], octets=1300)
    assert world.send(LAN, big).reason is Reason.TO_KERNEL
    whole = bytes(IP(bytes(big)).payload)
    base = {"src": LAN.host4, "dst": NARROW[4], "id": 5, "proto": 17}
    first = IP(flags="MF", **base) / Raw(whole[:1256])
    rest = IP(frag=1256 // 8, **base) / Raw(whole[1256:])
    dropped(world.emit(WAN, rest, LAN), Reason.EGRESS_UNPOLICED)
    passed(world.emit(WAN, first, LAN), Reason.EGRESS_SESSION)
    passed(world.emit(WAN, rest, LAN), Reason.EGRESS_SESSION)
    dropped(world.emit(DMZ, rest, LAN), Reason.EGRESS_UNPOLICED)
    for port in (LAN, WAN):
        assert world.send(port, rest).reason is Reason.FRAGMENT_UNKNOWN, "what was let out is not let in"
    world.age(31)
    dropped(world.emit(WAN, rest, LAN), Reason.EGRESS_UNPOLICED)


def test_fragments_of_hosts_v6(world: World) -> None:
    world.apply(OPEN, **KERNEL)
    base = IPv6(src=LAN.host6, dst=VLAN.host6)
    first = base / IPv6ExtHdrFragment(id=5, m=1, nh=17) / UDP(sport=1, dport=2) / Raw(bytes(24))
    rest = base / IPv6ExtHdrFragment(id=5, offset=4, nh=17) / Raw(bytes(24))
    for piece in (first, rest):
        assert world.send(LAN, piece).reason is Reason.TO_KERNEL
        passed(world.emit(VLAN, piece, LAN), Reason.EGRESS_SESSION)


@pytest.mark.parametrize("v", VERSIONS)
def test_an_error_that_the_kernel_forwards(world: World, v: int) -> None:
    world.apply(HIDE, **KERNEL)
    packet = udp(LAN.host(v), WAN.host(v))
    left = world.send(LAN, packet)
    arriving = about(left.ip, WAN.host(v), WAN.own(v))
    result = world.send(WAN, arriving)
    assert (result.action, result.reason) == (XdpAction.PASS, Reason.TO_KERNEL)
    passed(world.emit(LAN, result.ip, WAN), Reason.EGRESS_SESSION)
    dropped(world.emit(DMZ, result.ip, WAN), Reason.EGRESS_UNPOLICED)
    cut = bytes(LAN.sent(result.ip))[:-5]  # within the ports
    shorter = Ether(cut)
    dropped(world.emit(LAN, shorter, WAN), Reason.EGRESS_UNPOLICED)


@pytest.mark.parametrize("v", VERSIONS)
def test_what_this_machine_may_always_send(world: World, v: int) -> None:
    nothing = (Policy("nothing", Action.DENY, "self", "wan"),)
    world.apply(Ruleset(zones=zones(), policies=nothing))
    own, there = WAN.own(v), WAN.host(v)
    layer = ip_layer(v, src=own, dst=there)
    packets = [
        layer / UDP(sport=500, dport=500) / Raw(bytes(28)),
        layer / UDP(sport=4500, dport=1024) / Raw(bytes(32)),
        udp(own, {4: "224.0.0.251", 6: "ff02::fb"}[v], 5353),
        about(udp(there, own), own, there),
        later(own, there),
    ]
    if v == 6:
        packets.append(IPv6(src=own, dst="ff02::16", hlim=1) / ICMPv6MLReport2())
    else:
        packets.append(IP(src=own, dst=there) / ICMP(type=14, id=3))
    for packet in packets:
        passed(world.emit(WAN, packet), Reason.EGRESS_EXEMPT)
    assert world.entries() == {}


@pytest.mark.parametrize("v", VERSIONS)
def test_esp_is_the_guards(world: World, v: int) -> None:
    world.apply(CLOSED)
    packet = ip_layer(v, src=WAN.own(v), dst=WAN.host(v)) / ESP(spi=0x7777 + v, seq=1, data=bytes(40))
    assert world.emit(WAN, packet).reason is Reason.GUARD_NEWBORN
    through = ip_layer(v, src=DMZ.host(v), dst=WAN.host(v)) / ESP(spi=0x8888 + v, seq=1, data=bytes(40))
    assert world.emit(WAN, through, DMZ).reason is Reason.GUARD_TRANSIT


@pytest.mark.parametrize("v", VERSIONS)
def test_an_address_of_this_machine_is_local_wherever_it_came_in(world: World, v: int) -> None:
    world.apply(CLOSED)
    passed(world.emit(WAN, udp(LAN.own(v), WAN.host(v)), DMZ), Reason.EGRESS_NEW)


def test_what_is_not_policed_is_not_counted(world: World) -> None:
    world.apply(CLOSED)
    guard = world.steering._programs.guard
    before = world.steering.verdicts()
    for port, packet in (
        (WILD, WILD.sent(udp(WILD.address4, WILD.host4))),
        (WAN, Ether(src=WAN.mac, dst=WAN.host_mac) / ARP(psrc=WAN.address4, pdst=WAN.host4) / Raw(bytes(20))),
        (WAN, Ether(src=WAN.mac, dst=WAN.host_mac) / Dot1Q(vlan=9) / udp(WAN.address4, WAN.host4)),
    ):
        result = prog_run_egress(guard, bytes(packet), ifindex(port))
        assert (TcAction(result.retval), result.packet) == (TcAction.UNSPEC, bytes(packet))
    assert world.steering.verdicts() == before


@pytest.mark.parametrize("v", VERSIONS)
def test_headers_cut_short_do_not_leave(world: World, v: int) -> None:
    world.apply(CLOSED)
    for protocol, octets in ((6, 19), (17, 7), (1 if v == 4 else 58, 7)):
        packet = ip_layer(v, src=WAN.own(v), dst=WAN.host(v), proto=protocol) / Raw(bytes(octets))
        dropped(world.emit(WAN, packet), Reason.EGRESS_UNPOLICED)


@pytest.mark.parametrize("v", VERSIONS)
def test_flags_of_the_two_entries(world: World, v: int) -> None:
    world.apply(CLOSED)
    world.emit(WAN, udp(WAN.own(v), WAN.host(v)))
    flags = {flow.zone: SessionFlag(row.flags) for flow, row in world.entries().items()}
    assert flags == {0: SessionFlag(0), world.zone("wan"): SessionFlag.REVERSE | SessionFlag.TO_SELF}


def test_an_unknown_interface_is_an_error_with_a_way_out(world: World) -> None:
    with pytest.raises(SteeringError, match="interfaces of this network namespace"):
        prog_run_egress(world.steering._programs.guard, bytes(WAN.sent(udp(WAN.address4, WAN.host4))), 9999)
