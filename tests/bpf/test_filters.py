"""Filters: what terms ask for, where they look, what they do with a packet, what is told of it."""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from ipaddress import ip_network

import pytest
from firewall_kit import LAN, VLAN, WAN, WILD, Port, Result, World, port_info, zones
from firewall_packets import (
    about,
    answer,
    assert_sound,
    changed,
    described,
    echo,
    ip_layer,
    later,
    other,
    reset,
    tcp,
    udp,
)
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6ND_NS, IPv6, IPv6ExtHdrFragment
from scapy.layers.ipsec import ESP
from scapy.packet import Packet, Raw

from ipsec_gw.model.filters import Filter, FilterAction, FilterTerm
from ipsec_gw.model.firewall import (
    ANY_SERVICE,
    Action,
    DestinationNat,
    Nat64,
    Policy,
    Ruleset,
    Service,
    SourceNat,
    Translation,
)
from ipsec_gw.model.screens import Screens
from xdp_steer import libbpf
from xdp_steer.events import EventReader
from xdp_steer.filter_layout import COPY_OCTETS, COPY_RING_BYTES, CopyLeaf
from xdp_steer.flow_layout import EgressStage, EventKind, NameKind, Stage
from xdp_steer.mirror import Mirror
from xdp_steer.prog_run import TcAction, XdpAction
from xdp_steer.reasons import Reason
from xdp_steer.screen_layout import SCREEN_EVENTS
from xdp_steer.tables import Count

pytestmark = pytest.mark.root

VERSIONS = (4, 6)
EF, AF21 = 46, 18
SOL_PACKET, PACKET_AUXDATA = 263, 8
PERMISSIVE = zones(
    **{name: {"syn_check": False, "host_inbound": ANY_SERVICE} for name in ("lan", "vlan", "wan", "dmz")}
)
OPEN = Ruleset(zones=PERMISSIVE, default=Action.PERMIT)
IN_LAN = Filter("edge", input=("lan0",))
OUT_WAN = Filter("edge", output=("wan0",))
HOST = Filter("edge", host=True)


def term(name: str = "these", action: FilterAction = FilterAction.DISCARD, **fields: object) -> FilterTerm:
    return FilterTerm(f"edge/{name}", "edge", action, **fields)  # type: ignore[arg-type]


def filtered(where: Filter, *terms: FilterTerm, rules: Ruleset = OPEN) -> Ruleset:
    return replace(rules, filters=(where,), filter_terms=terms)


def with_dscp(packet: Packet, dscp: int, ecn: int = 0) -> Packet:
    made = packet.copy()
    if IP in made:
        made[IP].tos, made[IP].chksum = dscp << 2 | ecn, None
    else:
        made[IPv6].tc = dscp << 2 | ecn
    return made


def dscp_of(frame: bytes) -> tuple[int, int]:
    """DSCP and ECN."""
    layer = Result(XdpAction.PASS, Reason.HOST, frame).ip
    octet = layer.tos if isinstance(layer, IP) else layer.tc
    return octet >> 2, octet & 3


@dataclass(frozen=True)
class Match:
    """What a term asks for, a packet (of lan's host to wan's) and whether they match."""

    name: str
    term: FilterTerm
    packet: Packet
    matches: bool

    def __str__(self) -> str:
        return f"{self.name}: {'yes' if self.matches else 'no'}"


def of_services(v: int, here: str, there: str) -> Iterator[tuple[str, FilterTerm, Packet, bool]]:
    web, dns, range_ = Service(6, (80, 80)), Service(17, (53, 53)), Service(17, (5000, 5009))
    yield "any", term(), udp(here, there), True
    yield "port", term(services=(web,)), tcp(here, there, 80), True
    yield "another port", term(services=(web,)), tcp(here, there, 81), False
    yield "of UDP", term(services=(web,)), udp(here, there, 80), False
    yield "second service", term(services=(web, dns)), udp(here, there, 53), True
    yield "last of a range", term(services=(range_,)), udp(here, there, 5009), True
    yield "behind a range", term(services=(range_,)), udp(here, there, 5010), False
    source = term(services=(Service(17, source=(1000, 1010)),))
    yield "source port", source, changed(udp(here, there), sport=1010), True
    yield "another source port", source, changed(udp(here, there), sport=1011), False
    yield "protocol", term(services=(Service(47),)), other(here, there, 47), True
    yield "another protocol", term(services=(Service(47),)), other(here, there, 132), False
    protocol, kind = (1, 0x0800) if v == 4 else (58, 0x8000)
    ping = term(services=(Service(protocol, (kind, kind | 0xFF)),))
    yield "echo", ping, echo(here, there), True
    yield "echo reply", ping, echo(here, there, reply=True), False


def of_addresses(here: str, there: str, elsewhere: str) -> Iterator[tuple[str, FilterTerm, Packet, bool]]:
    bits = 24 if "." in here else 64
    near, far = (ip_network((address, bits), strict=False) for address in (here, there))
    yield "source", term(sources=(near,)), udp(here, there), True
    yield "another source", term(sources=(far,)), udp(here, there), False
    yield "destination", term(destinations=(far,)), udp(here, there), True
    yield "another destination", term(destinations=(far,)), udp(here, elsewhere), False
    yield "both", term(sources=(near,), destinations=(far,)), udp(here, there), True


def of_marks(here: str, there: str) -> Iterator[tuple[str, FilterTerm, Packet, bool]]:
    marked = term(dscp=frozenset({EF, AF21}))
    for dscp in (EF, AF21):
        yield f"dscp {dscp}", marked, with_dscp(udp(here, there), dscp, ecn=1), True
    yield "dscp 0", marked, udp(here, there), False
    yield "dscp 47", marked, with_dscp(udp(here, there), 47), False
    syn = term(flags_set=2, flags_clear=16)
    yield "SYN without ACK", syn, tcp(here, there, flags="S"), True
    yield "SYN and more", syn, tcp(here, there, flags="SFE"), True
    yield "SYN and ACK", syn, tcp(here, there, flags="SA"), False
    yield "ACK", syn, tcp(here, there, flags="A"), False
    yield "flags of UDP", syn, udp(here, there), False
    yield "no SYN, of UDP", term(flags_clear=2), udp(here, there), False
    yield "no SYN", term(flags_clear=2), tcp(here, there, flags="A"), True


def of_fragments(v: int, here: str, there: str) -> Iterator[tuple[str, FilterTerm, Packet, bool]]:
    pieces, whole = term(fragment=True), term(fragment=False)
    if v == 4:
        first = IP(src=here, dst=there, flags="MF", id=7) / UDP(sport=1, dport=0) / Raw(bytes(24))
    else:
        first = IPv6(src=here, dst=there) / IPv6ExtHdrFragment(m=1, id=7, nh=17) / UDP(sport=1, dport=0, len=32)
        first = first / Raw(bytes(24))
    yield "first fragment", pieces, first, True
    yield "later fragment", pieces, later(here, there), True
    yield "whole", pieces, udp(here, there), False
    yield "first fragment is no whole", whole, first, False
    yield "later fragment is no whole", whole, later(here, there), False
    yield "whole one", whole, udp(here, there), True
    yield "protocol of a later fragment", term(services=(Service(17),)), later(here, there), True
    yield "another protocol of it", term(services=(Service(6),)), later(here, there), False
    # A later fragment has no ports: those of zero must not match it.
    yield "port 0 of a first fragment", term(services=(Service(17, (0, 100)),)), first, True
    yield "port 0 of a later fragment", term(services=(Service(17, (0, 100)),)), later(here, there), False
    yield "source port 0 of it", term(services=(Service(17, source=(0, 100)),)), later(here, there), False
    yield "flags of a later fragment", term(flags_clear=2), later(here, there), False


def matches() -> Iterator[Match]:
    for v in VERSIONS:
        here, there = LAN.host(v), WAN.host(v)
        found = [*of_services(v, here, there), *of_addresses(here, there, VLAN.host(v)), *of_marks(here, there)]
        for name, asked, packet, matching in (*found, *of_fragments(v, here, there)):
            yield Match(f"{name} v{v}", asked, packet, matching)
    four, six = ip_network("0.0.0.0/0"), ip_network("::/0")
    yield Match("IPv6 of IPv4", term(sources=(six,)), udp(LAN.host4, WAN.host4), False)
    yield Match("IPv4 of IPv6", term(sources=(four,)), udp(LAN.host6, WAN.host6), False)


@pytest.mark.parametrize("match", tuple(matches()), ids=str)
def test_a_term_matches_what_it_asks_for(world: World, match: Match) -> None:
    world.apply(filtered(IN_LAN, match.term))
    before = counted(world)
    result = world.send(LAN, match.packet)
    assert (result.reason is Reason.FILTER_DISCARD) == match.matches, result
    length = len(bytes(match.packet)) * match.matches
    assert counted(world) == Count(before.packets + match.matches, before.octets + length)


def counted(world: World) -> Count:
    return world.rule_counts()[NameKind.FILTER_TERM, "edge/these"]


def test_the_first_term_that_matches_decides(world: World) -> None:
    web = (Service(6, (80, 80)),)
    terms = [
        term("web", FilterAction.ACCEPT, services=web),
        term("fillers", services=tuple(Service(6, (port, port)) for port in range(1000, 1100))),
        term("tcp", services=(Service(6),)),
        term("rest", FilterAction.ACCEPT),
    ]
    world.apply(filtered(IN_LAN, *terms))
    for packet, reason, name in (
        (tcp(LAN.host4, WAN.host4, 80), Reason.FORWARDED, "web"),
        (tcp(LAN.host4, WAN.host4, 1099), Reason.FILTER_DISCARD, "fillers"),
        (tcp(LAN.host4, WAN.host4, 81), Reason.FILTER_DISCARD, "tcp"),
        (udp(LAN.host4, WAN.host4), Reason.FORWARDED, "rest"),
    ):
        before = world.rule_counts()
        assert world.send(LAN, packet).reason is reason
        moved = {rule for rule, count in world.rule_counts().items() if count != before[rule]}
        assert moved == {(NameKind.FILTER_TERM, f"edge/{name}")}


def test_a_filter_looks_at_its_own_interface_alone(world: World) -> None:
    """The VLAN is an interface of its own, and what a filter of another interface says is nothing to it."""
    two = (Filter("edge", input=("lan0",)), Filter("other", input=("wan0",)))
    terms = (term(services=(Service(17),)), FilterTerm("other/these", "other", FilterAction.REJECT))
    world.apply(replace(OPEN, filters=two, filter_terms=terms))
    assert world.send(LAN, udp(LAN.host4, WAN.host4)).reason is Reason.FILTER_DISCARD
    assert world.send(LAN, tcp(LAN.host4, WAN.host4)).reason is Reason.FORWARDED
    assert world.send(VLAN, udp(VLAN.host4, WAN.host4)).reason is Reason.FORWARDED
    assert world.send(WAN, tcp(WAN.host4, LAN.host4)).reason is Reason.FILTER_REJECT


@pytest.mark.parametrize("v", VERSIONS)
def test_packets_of_a_session_are_filtered_too(world: World, v: int) -> None:
    world.apply(OPEN)
    packet = udp(LAN.host(v), WAN.host(v))
    for _ in range(2):
        assert world.send(LAN, packet).reason is Reason.FORWARDED
    world.apply(filtered(IN_LAN, term()))
    assert world.send(LAN, packet).reason is Reason.FILTER_DISCARD
    assert world.session().forward.packets == 2, "it never came to its session"


@pytest.mark.parametrize("v", VERSIONS)
def test_what_is_rejected_is_answered(world: World, v: int) -> None:
    world.apply(filtered(IN_LAN, term(action=FilterAction.REJECT)))
    for packet, expected in (
        (tcp(LAN.host(v), WAN.host(v)), reset),
        (udp(LAN.host(v), WAN.host(v)), lambda packet, port: answer(packet, port, LAN.own(v), "prohibited")),
    ):
        result = world.send(LAN, packet)
        assert (result.action, result.reason) == (XdpAction.TX, Reason.FILTER_REJECT)
        assert described(result.frame) == described(expected(packet, LAN))
    error = about(udp(WAN.host(v), LAN.host(v)), LAN.host(v), WAN.host(v))
    for packet in (tcp(LAN.host(v), WAN.host(v), flags="R"), later(LAN.host(v), WAN.host(v)), error):
        assert world.send(LAN, packet).action is XdpAction.DROP


@pytest.mark.parametrize("ecn", [0, 1, 3])
@pytest.mark.parametrize("v", VERSIONS)
def test_the_dscp_is_rewritten_and_ecn_stays(world: World, v: int, ecn: int) -> None:
    world.apply(filtered(IN_LAN, term(action=FilterAction.ACCEPT, mark=EF)))
    for dscp in (0, AF21, 63):
        packet = with_dscp(tcp(LAN.host(v), WAN.host(v)), dscp, ecn)
        result = world.send(LAN, packet)
        assert result.reason is Reason.FORWARDED
        assert dscp_of(result.frame) == (EF, ecn)
        assert_sound(result.frame)
        assert described(result.frame) == described(WAN.sent(changed(with_dscp(packet, EF, ecn), lower_ttl=True)))


def test_the_dscp_goes_into_the_other_family(world: World) -> None:
    nat64 = replace(OPEN, nat64=(Nat64("four", ip_network("2001:db8:6464::/96")),))
    world.apply(filtered(IN_LAN, term(action=FilterAction.ACCEPT, mark=EF), rules=nat64))
    result = world.send(LAN, udp(LAN.host6, "2001:db8:6464::c000:209"))
    assert result.reason is Reason.FORWARDED
    assert dscp_of(result.frame) == (EF, 0)
    assert_sound(result.frame)


def test_the_host_filter_looks_at_what_is_delivered(world: World) -> None:
    """After destination NAT, of new flows and of known ones; what is forwarded is nothing to it."""
    here = ip_network(f"{LAN.address4}/32")
    service = DestinationNat("in", ip_network("203.0.113.1/32"), here, services=(Service(17, (99, 99)),), to_port=100)
    rules = replace(OPEN, destination_nat=(service,))
    packet = udp(WAN.host4, "203.0.113.1", 99)
    world.apply(rules)
    assert world.send(WAN, packet).reason is Reason.HOST
    inside = term(destinations=(here,), services=(Service(17, (100, 100)),))
    world.apply(filtered(HOST, inside, rules=rules))
    assert world.send(WAN, packet).reason is Reason.FILTER_DISCARD, "of a session"
    world.clear()
    assert world.send(WAN, packet).reason is Reason.FILTER_DISCARD, "the first one"
    result = world.send(WAN, udp(WAN.host4, LAN.address4, 101))
    assert result.reason is Reason.HOST
    assert world.send(WAN, udp(WAN.host4, LAN.host4, 100)).reason is Reason.FORWARDED
    world.apply(filtered(HOST, term(action=FilterAction.ACCEPT, mark=EF), rules=rules))
    world.clear()
    result = world.send(WAN, packet)
    assert (result.reason, dscp_of(result.frame)) == (Reason.HOST, (EF, 0))
    assert (result.ip.dst, result.ip[UDP].dport) == (LAN.address4, 100)
    assert_sound(result.frame)


def test_the_host_filter_sees_multicast_and_answers_as_it_came(world: World) -> None:
    world.apply(filtered(HOST, term(action=FilterAction.REJECT)))
    assert world.send(LAN, udp(LAN.host4, "224.0.0.251", 5353)).action is XdpAction.DROP
    packet = udp(LAN.host4, LAN.address4)
    result = world.send(LAN, packet)
    assert (result.action, result.reason) == (XdpAction.TX, Reason.FILTER_REJECT)
    assert described(result.frame) == described(answer(packet, LAN, LAN.address4, "prohibited"))


@pytest.mark.parametrize("where", [IN_LAN, HOST], ids=["input", "host"])
@pytest.mark.parametrize("v", VERSIONS)
def test_ipsec_and_neighbours_pass_by_all_filters(world: World, v: int, where: Filter) -> None:
    world.apply(filtered(where, term()))
    own, host = LAN.own(v), LAN.host(v)
    for packet, reason in (
        (udp(host, own, 500), Reason.HOST_IKE),
        (udp(host, own, 4500), Reason.HOST_IKE),
        (ip_layer(v, src=host, dst=own) / ESP(spi=7, seq=1, data=bytes(16)), Reason.HOST_IKE),
        (later(host, own), Reason.LOCAL_FRAGMENT),
    ):
        assert world.send(LAN, packet).reason is reason
    assert world.send(LAN, udp(host, own, 501)).reason is Reason.FILTER_DISCARD
    if v == 6:
        assert world.send(LAN, IPv6(src=host, dst=own, hlim=255) / ICMPv6ND_NS(tgt=own)).reason is Reason.NDP
    if where is IN_LAN:
        assert world.send(LAN, udp(host, WAN.host(v), 500)).reason is Reason.FILTER_DISCARD, "IPsec of others"


def emitted(world: World, packet: Packet, came_in_by: Port | None = None) -> Result:
    return world.emit(WAN, packet, came_in_by)


@pytest.mark.parametrize("v", VERSIONS)
def test_an_output_filter_looks_at_what_leaves(world: World, v: int) -> None:
    """The kernel forwards what leaves there, and the packet is matched as it leaves: after source NAT."""
    own = ip_network(WAN.own(v))
    rules = replace(OPEN, source_nat=(SourceNat("hide", Translation.INTERFACE, to_zone="wan"),))
    web = term(action=FilterAction.DISCARD, sources=(own,), services=(Service(6, (80, 80)),))
    mark = term("mark", FilterAction.ACCEPT, mark=AF21)
    world.apply(filtered(OUT_WAN, web, mark, rules=rules))
    for packet, reason in (
        (tcp(LAN.host(v), WAN.host(v), 80), Reason.EGRESS_FILTER),
        (udp(LAN.host(v), WAN.host(v)), None),
    ):
        there = world.send(LAN, packet)
        assert (there.action, there.reason) == (XdpAction.PASS, Reason.TO_KERNEL)
        assert there.ip.src == WAN.own(v)
        sent = emitted(world, there.ip.__class__(bytes(there.ip)), LAN)
        if reason is not None:
            assert (sent.action, sent.reason) == (TcAction.SHOT, reason)
        else:
            assert (sent.action, sent.reason) == (TcAction.UNSPEC, Reason.EGRESS_SESSION)
            assert dscp_of(sent.frame) == (AF21, 0)
            assert_sound(sent.frame)
    assert world.send(WAN, tcp(WAN.host(v), LAN.host(v))).reason is Reason.FORWARDED


@pytest.mark.parametrize("v", VERSIONS)
def test_an_output_filter_looks_at_what_this_machine_sends(world: World, v: int) -> None:
    world.apply(filtered(OUT_WAN, term(services=(Service(17),)), term("mark", FilterAction.ACCEPT, mark=EF)))
    own, host = WAN.own(v), WAN.host(v)
    for _ in range(2):  # the first packet of a flow, and the next one
        assert emitted(world, udp(own, host)).reason is Reason.EGRESS_FILTER
    opened = emitted(world, tcp(own, host))
    assert (opened.reason, dscp_of(opened.frame)) == (Reason.EGRESS_NEW, (EF, 0))
    reply = emitted(world, echo(own, host, reply=True))
    assert (reply.reason, dscp_of(reply.frame)) == (Reason.EGRESS_EXEMPT, (EF, 0))
    ike = emitted(world, changed(udp(own, host, 500), sport=500))
    assert (ike.reason, dscp_of(ike.frame)) == (Reason.EGRESS_EXEMPT, (0, 0))
    if v == 6:
        solicitation = IPv6(src=own, dst=host, hlim=255) / ICMPv6ND_NS(tgt=host)
        found = emitted(world, solicitation)
        assert (found.reason, dscp_of(found.frame)) == (Reason.EGRESS_EXEMPT, (0, 0))


def test_what_is_not_let_out_is_not_filtered(world: World) -> None:
    rules = replace(OPEN, policies=(Policy("no", Action.DENY, "self", "wan"),))
    world.apply(filtered(OUT_WAN, term(action=FilterAction.ACCEPT), rules=rules))
    before = counted(world)
    assert emitted(world, udp(WAN.address4, WAN.host4)).reason is Reason.EGRESS_DENY
    assert counted(world) == before


def test_a_term_tells_of_its_packets(world: World) -> None:
    """Of ten in a second at most, and never of those that it does not log."""
    quiet = term("quiet", services=(Service(6),))
    world.apply(
        filtered(
            IN_LAN, quiet, term("loud", log=True, services=(Service(17),)), term("let", FilterAction.ACCEPT, log=True)
        )
    )
    reader = EventReader(world.maps["events"], lambda: 0)
    try:
        reader.read()
        world.send(LAN, tcp(LAN.host4, WAN.host4))
        assert reader.read().events == ()

        def flood() -> int:
            reader.read()
            for _ in range(3 * SCREEN_EVENTS):
                world.send(LAN, udp(LAN.host4, WAN.host4))
            return len(reader.read().events)

        assert world.in_one_window(flood, 1) == SCREEN_EVENTS
        world.clear()
        packet = udp(LAN.host4, WAN.host4)
        world.send(LAN, packet)
        world.send(LAN, echo(LAN.host4, WAN.host4))
        dropped, passed = reader.read().events
        assert (dropped.kind, dropped.reason) == (EventKind.FILTER, Reason.FILTER_DISCARD)
        assert dropped.rule == world.ids.rules[NameKind.FILTER_TERM, "edge/loud"]
        assert str(dropped.flow.source) == LAN.host4
        assert (passed.kind, passed.reason) == (EventKind.FILTER, 0)
        assert passed.rule == world.ids.rules[NameKind.FILTER_TERM, "edge/let"]
    finally:
        reader.close()


@pytest.mark.parametrize(("where", "stage"), [(IN_LAN, Stage.FILTER), (HOST, Stage.HOST_FILTER)], ids=["input", "host"])
def test_without_its_stage_nothing_gets_by(world: World, where: Filter, stage: Stage) -> None:
    world.apply(filtered(where, term(action=FilterAction.ACCEPT)))
    packet = udp(LAN.host4, LAN.address4)
    assert world.send(LAN, packet).reason is Reason.HOST
    with world.without("stages", stage):
        assert world.send(LAN, packet).reason is Reason.NO_STAGE


def test_without_its_stage_nothing_leaves(world: World) -> None:
    world.apply(filtered(OUT_WAN, term(action=FilterAction.ACCEPT)))
    packet = udp(WAN.address4, WAN.host4)
    assert emitted(world, packet).action is TcAction.UNSPEC
    with world.without("egress_stages", EgressStage.FILTER):
        result = emitted(world, packet)
        assert (result.action, result.reason) == (TcAction.SHOT, Reason.NO_STAGE)


def test_screens_see_what_filters_let_pass(world: World) -> None:
    profile = Screens("these", land=True)
    screened = replace(OPEN, zones=zones(lan={"screen": "these", "syn_check": False}), screens=(profile,))
    world.apply(filtered(IN_LAN, term(services=(Service(17),)), rules=screened))
    assert world.send(LAN, udp(LAN.host4, LAN.host4)).reason is Reason.FILTER_DISCARD
    assert world.send(LAN, tcp(LAN.host4, LAN.host4)).reason is Reason.SCREEN_LAND
    assert world.send(LAN, tcp(LAN.host4, WAN.host4)).reason is Reason.FORWARDED


def test_a_reload_takes_filters_off(world: World) -> None:
    world.apply(filtered(IN_LAN, term()))
    packet = tcp(LAN.host4, WAN.host4, flags="S")
    assert world.send(LAN, packet).reason is Reason.FILTER_DISCARD
    world.apply(OPEN)
    assert world.send(LAN, packet).reason is Reason.FORWARDED
    assert TCP in world.send(LAN, packet).packet


def mirrored(world: World, *terms: FilterTerm, rules: Ruleset = OPEN) -> None:
    world.apply(filtered(IN_LAN, *terms, rules=rules), more={WILD.name: port_info(WILD)})


@contextmanager
def watched(world: World) -> Iterator[tuple[Mirror, socket.socket]]:
    """What sends the copies, and the other end of the interface that they leave by."""
    mirror = world.steering.mirror()
    listener = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    listener.bind(("p-" + WILD.name, 3))
    listener.settimeout(10)
    listener.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
    try:
        while mirror.send():
            pass
        yield mirror, listener
    finally:
        mirror.close()
        listener.close()


def received(listener: socket.socket) -> bytes:
    """A frame with its tag, which the kernel tells apart from it."""
    frame, ((_, _, told),), _, _ = listener.recvmsg(4096, 100)
    tci, protocol = struct.unpack("16xHH", told)
    return frame[:12] + struct.pack("!HH", protocol, tci) + frame[12:] if protocol else frame


@pytest.mark.parametrize("port", [LAN, VLAN], ids=["lan0", "lan0.100"])
@pytest.mark.parametrize("action", list(FilterAction))
@pytest.mark.parametrize("v", VERSIONS)
def test_a_copy_is_the_packet_as_it_arrived(world: World, v: int, action: FilterAction, port: Port) -> None:
    """Whatever becomes of it: it is dropped, answered, or marked, translated and forwarded."""
    rules = replace(OPEN, source_nat=(SourceNat("hide", Translation.INTERFACE, to_zone="wan"),))
    mark = EF if action is FilterAction.ACCEPT else None
    where = Filter("edge", input=(port.name,))
    asked = term(action=action, mark=mark, mirror=WILD.name, services=(Service(17),))
    world.apply(filtered(where, asked, rules=rules), more={WILD.name: port_info(WILD)})
    with watched(world) as (mirror, listener):
        frames = [bytes(port.frame(udp(port.host(v), WAN.host(v), octets=octets))) for octets in (20, 1400)]
        for frame in frames:
            result = world.send(port, udp(port.host(v), WAN.host(v), octets=len(frame) - len(frames[0]) + 20))
            assert result.frame != frame or result.action is XdpAction.DROP
        world.send(port, tcp(port.host(v), WAN.host(v)))
        assert mirror.send() == 2
        assert [received(listener) for _ in frames] == frames
        assert mirror.lost() == 0


def test_frames_longer_than_a_copy_are_cut(world: World) -> None:
    mirrored(world, term(mirror=WILD.name))
    ring = libbpf.RingBuffer(world.maps["copies"])
    try:
        frame = bytes(LAN.frame(udp(LAN.host4, WAN.host4, octets=COPY_OCTETS)))
        world.send(LAN, udp(LAN.host4, WAN.host4, octets=COPY_OCTETS))
        (raw,) = ring.consume(10)
    finally:
        ring.close()
    copy = CopyLeaf.from_buffer_copy(raw)
    assert (copy.ifindex, copy.length) == (port_info(WILD).ifindex, COPY_OCTETS)
    assert bytes(copy.frame) == frame[:COPY_OCTETS]


def test_copies_that_nobody_takes_are_counted_and_the_packet_goes_on(world: World) -> None:
    mirrored(world, term(action=FilterAction.ACCEPT, mirror=WILD.name))
    room = COPY_RING_BYTES // ctypes.sizeof(CopyLeaf)
    with watched(world) as (mirror, _):
        before = mirror.lost()
        for _ in range(room + 20):
            assert world.send(LAN, udp(LAN.host4, WAN.host4)).reason is Reason.FORWARDED
        assert mirror.lost() - before >= 20


def test_an_interface_that_is_gone_gets_no_copies(world: World) -> None:
    gone = replace(port_info(WILD), ifindex=60_000, l3_ifindex=60_000)
    asked = filtered(IN_LAN, term(action=FilterAction.ACCEPT, mirror=WILD.name))
    world.apply(asked, more={WILD.name: gone})
    with watched(world) as (mirror, _):
        before = mirror.lost()
        world.send(LAN, udp(LAN.host4, WAN.host4))
        assert (mirror.send(), mirror.lost() - before) == (0, 1)
    world.apply(asked)
    with watched(world) as (mirror, _):
        world.send(LAN, udp(LAN.host4, WAN.host4))
        assert mirror.send() == 0, "it was not there when the rules were compiled"
