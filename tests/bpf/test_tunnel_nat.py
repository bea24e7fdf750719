"""NAT of what goes into tunnels and comes out of them: policies (XFRM) name addresses as they are in the tunnel."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from firewall_kit import FAR, LAN, SEED, WAN, Result, zones
from firewall_packets import about, assert_sound, changed, described, echo, flow_of, ip_layer, routed, tcp, udp
from scapy.layers.inet import IP, TCP, UDP, fragment
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment, fragment6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw
from tunnel_kit import IN, NEAR, OUT, REMOTE, Tunnels, policy, tunnels_world

from ipsec_gw.model.firewall import (
    Action,
    DestinationNat,
    Nat64,
    Policy,
    Pool,
    Ruleset,
    Service,
    SourceNat,
    StaticNat,
    Translation,
    Zone,
)
from ipsec_gw.model.objects import PortMatch
from xdp_steer import flow_layout as fl
from xdp_steer.prog_run import TcAction, XdpAction
from xdp_steer.reasons import Reason

pytestmark = pytest.mark.root

VERSIONS = (4, 6)
SHOWN = {4: "10.101.0.0/24", 6: "2001:db8:101::/64"}
"""What the LAN is to the far side."""
POOL = {4: "10.102.0.5", 6: "2001:db8:102::5"}
VPN = Zone("vpn", tunnels=True)
STATICS = tuple(StaticNat(f"shown{v}", "vpn", ip_network(SHOWN[v]), ip_network(NEAR[v])) for v in VERSIONS)
HIDE = SourceNat("hide", Translation.INTERFACE, to_zone="wan")
POLICIES = (
    Policy("into", Action.PERMIT, from_zone="lan", to_zone="vpn"),
    Policy("out", Action.PERMIT, from_zone="vpn", to_zone="lan"),
)
CLEAR = Policy("clear", Action.PERMIT, from_zone="lan", to_zone="wan")


def rules(*policies: Policy, vpn: Zone = VPN, **nat: object) -> Ruleset:
    return Ruleset(zones=(*zones(), vpn), policies=(*POLICIES, *policies), **nat)


def shown(version: int) -> str:
    """The LAN's host as the far side knows it."""
    return str(ip_network(SHOWN[version])[9])


def pool(version: int, ports: tuple[int, int] = (2000, 2000)) -> Pool:
    return Pool("pool", ip_address(POOL[version]), ip_address(POOL[version]), ports)


def near(version: int, network: str, **more: object):
    """Policies between an address of ours, as it is in the tunnel, and the far side."""
    return [policy(direction, network, REMOTE[version], **more) for direction in (OUT, IN)]


@pytest.fixture(scope="module")
def arena(pins: Path) -> Iterator[Tunnels]:
    with tunnels_world(pins) as made:
        yield made


@pytest.fixture
def tunnels(arena: Tunnels) -> Tunnels:
    """Overlapping sites: the LAN is shown to the far side by other addresses, and hidden from the WAN."""
    arena.world.clear()
    arena.apply(rules(CLEAR, static_nat=STATICS, source_nat=(HIDE,)), *(p for v in VERSIONS for p in near(v, SHOWN[v])))
    return arena


def enters(tunnels: Tunnels, packet: Packet, **fields: object) -> None:
    """The kernel gets it for its tunnel, with these fields changed."""
    result = tunnels.lan(packet)
    assert (result.action, result.reason) == (XdpAction.PASS, Reason.TO_KERNEL)
    assert described(result.frame) == described(LAN.frame(changed(packet, **fields)))


def arrives(tunnels: Tunnels, packet: Packet, **fields: object) -> None:
    """It comes out of the tunnel and goes to the LAN, with these fields changed."""
    result = tunnels.out(packet)
    assert (result.action, result.reason) == (XdpAction.REDIRECT, Reason.FORWARDED)
    assert described(result.frame) == described(routed(packet, LAN, **fields))


def reply(packet: Packet, **fields: object) -> Packet:
    """What answers a packet, with these fields in place of its own."""
    layer = packet[IP] if IP in packet else packet[IPv6]
    back = {"src": layer.dst, "dst": layer.src} | fields
    if TCP in packet:
        back |= {"sport": packet[TCP].dport, "dport": packet[TCP].sport} | fields
    elif UDP in packet:
        back |= {"sport": packet[UDP].dport, "dport": packet[UDP].sport} | fields
    else:
        return echo(str(back["src"]), str(back["dst"]), reply=True)
    made = changed(packet, **back)
    if TCP in made:
        made[TCP].flags, made[TCP].ack = "SA", 1001
    return made


MAKERS = pytest.mark.parametrize("make", [tcp, udp, echo], ids=["tcp", "udp", "icmp"])


@MAKERS
@pytest.mark.parametrize("v", VERSIONS)
def test_overlapping_sites_begun_here(tunnels: Tunnels, v: int, make) -> None:
    packet = make(LAN.host(v), FAR[v])
    for _ in range(2):  # by the policies, then by the session
        enters(tunnels, packet, src=shown(v))
        arrives(tunnels, reply(packet, dst=shown(v)), dst=LAN.host(v))
    session = tunnels.world.session()
    assert (session.translated.zone, session.forward.packets) == (tunnels.world.zone("vpn"), 2)


@MAKERS
@pytest.mark.parametrize("v", VERSIONS)
def test_overlapping_sites_begun_there(tunnels: Tunnels, v: int, make) -> None:
    packet = make(FAR[v], shown(v))
    for _ in range(2):
        arrives(tunnels, packet, dst=LAN.host(v))
        enters(tunnels, reply(packet, src=LAN.host(v)), src=shown(v))
    assert tunnels.world.session().flow.zone == tunnels.world.zone("vpn")


@pytest.mark.parametrize("v", VERSIONS)
def test_one_gateway_translates_both_sides(tunnels: Tunnels, v: int) -> None:
    """Both sites have the same network, and the other gateway does nothing about it."""
    theirs = {4: "10.103.0.0/24", 6: "2001:db8:103::/64"}[v]
    known = str(ip_network(theirs)[9])
    static = (STATICS[VERSIONS.index(v)], StaticNat("theirs", "lan", ip_network(theirs), ip_network(NEAR[v])))
    ours = [policy(direction, SHOWN[v], NEAR[v]) for direction in (OUT, IN)]
    tunnels.apply(rules(static_nat=static), *ours)
    packet = tcp(LAN.host(v), known)
    enters(tunnels, packet, src=shown(v), dst=LAN.host(v))
    arrives(tunnels, reply(packet, src=LAN.host(v), dst=shown(v)), src=known, dst=LAN.host(v))
    begun_there = udp(LAN.host(v), shown(v))
    arrives(tunnels, begun_there, src=known, dst=LAN.host(v))
    enters(tunnels, reply(begun_there, src=LAN.host(v), dst=known), src=shown(v), dst=LAN.host(v))


@pytest.mark.parametrize("v", VERSIONS)
def test_source_nat_to_a_pool(tunnels: Tunnels, v: int) -> None:
    pooled = SourceNat("pooled", Translation.POOL, to_zone="vpn", pool="pool")
    tunnels.apply(rules(source_nat=(pooled, HIDE), pools=(pool(v),)), *near(v, POOL[v]))
    packet = tcp(LAN.host(v), FAR[v])
    for _ in range(2):
        enters(tunnels, packet, src=POOL[v], sport=2000)
        arrives(tunnels, reply(packet, dst=POOL[v], dport=2000), dst=LAN.host(v), dport=40000)
    assert tunnels.lan(changed(packet, sport=40001)).reason is Reason.NAT_EXHAUSTED


@pytest.mark.parametrize("v", VERSIONS)
def test_source_nat_to_the_address_of_the_interface(tunnels: Tunnels, v: int) -> None:
    own = SourceNat("own", Translation.INTERFACE, to_zone="vpn")
    tunnels.apply(rules(source_nat=(own,)), *near(v, WAN.own(v)))
    packet = udp(LAN.host(v), FAR[v])
    for _ in range(2):
        enters(tunnels, packet, src=WAN.own(v))
        arrives(tunnels, reply(packet, dst=WAN.own(v)), dst=LAN.host(v))


@pytest.mark.parametrize("v", VERSIONS)
def test_destination_nat_of_what_comes_out(tunnels: Tunnels, v: int) -> None:
    host = {4: 32, 6: 128}[v]
    to = DestinationNat(
        "service",
        ip_network(f"{POOL[v]}/{host}"),
        ip_network(f"{LAN.host(v)}/{host}"),
        "vpn",
        services=(Service(6, (80, 80)),),
        to_port=8080,
    )
    tunnels.apply(rules(destination_nat=(to,)), *near(v, POOL[v]))
    packet = tcp(FAR[v], POOL[v])
    for _ in range(2):
        arrives(tunnels, packet, dst=LAN.host(v), dport=8080)
        enters(tunnels, reply(packet, src=LAN.host(v), sport=8080), src=POOL[v], sport=80)


@pytest.mark.parametrize("v", VERSIONS)
def test_source_nat_for_the_wan_leaves_alone_what_goes_into_a_tunnel(tunnels: Tunnels, v: int) -> None:
    tunnels.apply(rules(CLEAR, source_nat=(HIDE,)), *near(v, NEAR[v]))
    enters(tunnels, tcp(LAN.host(v), FAR[v]))
    assert tunnels.lan(tcp(LAN.host(v), WAN.host(v))).ip.src == WAN.own(v)


@pytest.mark.parametrize("v", VERSIONS)
def test_exemption_by_a_rule(tunnels: Tunnels, v: int) -> None:
    """A rule for all zones translates into tunnels too, and what no policy protects then does not leave."""
    every = SourceNat("every", Translation.INTERFACE)
    off = SourceNat("off", Translation.OFF, destinations=(ip_network(REMOTE[v]),))
    tunnels.apply(rules(source_nat=(off, every)), *near(v, NEAR[v]))
    enters(tunnels, tcp(LAN.host(v), FAR[v]))
    tunnels.world.clear()
    tunnels.apply(rules(source_nat=(every,)), *near(v, NEAR[v]))
    assert tunnels.lan(tcp(LAN.host(v), FAR[v])).reason is Reason.TUNNEL_NAT
    assert tunnels.world.entries() == {}


@pytest.mark.parametrize("v", VERSIONS)
def test_what_fits_no_policy_translated_or_not_leaves_in_clear(tunnels: Tunnels, v: int) -> None:
    part = {4: "10.101.0.0/29", 6: "2001:db8:101::/125"}[v]
    tunnels.apply(rules(CLEAR, static_nat=STATICS, source_nat=(HIDE,)), *near(v, part))
    result = tunnels.lan(tcp(LAN.host(v), FAR[v]))
    assert (result.reason, result.ip.src) == (Reason.FORWARDED, WAN.own(v))
    assert tunnels.world.session().translated.zone == tunnels.world.zone("wan")


@pytest.mark.parametrize("v", VERSIONS)
def test_zone_policies_are_those_of_the_tunnels(tunnels: Tunnels, v: int) -> None:
    every = [p for version in VERSIONS for p in near(version, SHOWN[version])]
    tunnels.apply(Ruleset(zones=(*zones(), VPN), policies=(CLEAR,), static_nat=STATICS, default=Action.DENY), *every)
    assert tunnels.lan(tcp(LAN.host(v), FAR[v])).reason is Reason.DEFAULT_DENY
    assert tunnels.lan(tcp(LAN.host(v), WAN.host(v))).reason is Reason.FORWARDED


@pytest.mark.parametrize("v", VERSIONS)
def test_nothing_gets_into_a_tunnel_past_its_policies(tunnels: Tunnels, v: int) -> None:
    """The translation for the WAN makes an address that a tunnel protects: the kernel would encrypt it."""
    tunnels.apply(rules(CLEAR, source_nat=(HIDE,)), *near(v, WAN.own(v)))
    assert tunnels.lan(tcp(LAN.host(v), FAR[v])).reason is Reason.TUNNEL_NAT
    assert tunnels.world.entries() == {}


def test_ports_of_selectors_are_those_after_translation(tunnels: Tunnels) -> None:
    """The port that is tried first decides where a flow goes; if another one is left, that has to fit too."""
    pooled = SourceNat("pooled", Translation.POOL, to_zone="vpn", pool="pool")
    ruleset = rules(source_nat=(pooled,), pools=(pool(4, (2000, 2001)),))
    flows = [changed(tcp(LAN.host4, FAR[4]), sport=sport) for sport in range(40000, 40064)]
    hashes = [fl.flow_hash(flow_of(flow, tunnels.world.zone("lan")).leaf(), SEED) for flow in flows]
    first, second = [flow for flow, hashed in zip(flows, hashes, strict=True) if hashed % 2 == 0][:2]
    tunnels.apply(ruleset, *near(4, POOL[4], upper=6, source_port=PortMatch(2000, 0xFFFF)))
    enters(tunnels, first, src=POOL[4], sport=2000)
    assert tunnels.lan(second).reason is Reason.TUNNEL_NAT
    (other,) = [flow for flow, hashed in zip(flows, hashes, strict=True) if hashed % 2][:1]
    assert tunnels.lan(other).reason is Reason.DEFAULT_DENY


@pytest.mark.parametrize("v", VERSIONS)
def test_a_flow_in_clear_ends_when_a_tunnel_takes_it(tunnels: Tunnels, v: int) -> None:
    """As it came in, or as what it became: its next packet is judged anew."""
    packet = udp(LAN.host(v), FAR[v])
    for protected in (NEAR[v], WAN.own(v)):
        tunnels.world.clear()
        own = SourceNat("own", Translation.INTERFACE, to_zone="vpn", destinations=(ip_network(REMOTE[v]),))
        nat = (HIDE,) if protected == NEAR[v] else (own, HIDE)
        tunnels.apply(rules(CLEAR, source_nat=nat))
        assert tunnels.lan(packet).ip.src == WAN.own(v)
        tunnels.world.age(6)
        tunnels.apply(rules(CLEAR, source_nat=nat), *near(v, protected))
        assert tunnels.lan(packet).reason is Reason.ZONE_CHANGED
        assert tunnels.world.entries() == {}
        enters(tunnels, packet, **({} if protected == NEAR[v] else {"src": WAN.own(v)}))


@pytest.mark.parametrize("v", VERSIONS)
def test_a_translated_session_waits_for_its_tunnel(tunnels: Tunnels, v: int) -> None:
    packet = udp(LAN.host(v), FAR[v])
    ruleset = rules(CLEAR, static_nat=STATICS, source_nat=(HIDE,))
    enters(tunnels, packet, src=shown(v))
    other = {4: "10.104.0.0/24", 6: "2001:db8:104::/64"}[v]
    for policies in ([], near(v, other)):
        tunnels.apply(ruleset, *policies)
        assert tunnels.lan(packet).reason is Reason.ZONE_CHANGED
        assert len(tunnels.world.entries()) == 2
    tunnels.apply(ruleset, *near(v, SHOWN[v]))
    enters(tunnels, packet, src=shown(v))


@pytest.mark.parametrize("v", VERSIONS)
def test_the_shown_addresses_do_not_come_in_clear(tunnels: Tunnels, v: int) -> None:
    assert tunnels.world.send(WAN, tcp(FAR[v], shown(v))).reason is Reason.CLEAR_OF_PROTECTED


@pytest.mark.parametrize("v", VERSIONS)
def test_icmp_errors_both_ways(tunnels: Tunnels, v: int) -> None:
    packet = udp(LAN.host(v), FAR[v])
    packet[UDP].chksum = 0  # what is quoted keeps its checksum
    enters(tunnels, packet, src=shown(v))
    seen = changed(packet, src=shown(v))
    error = tunnels.out(about(seen, FAR[v], shown(v)))
    assert (error.action, error.reason) == (XdpAction.REDIRECT, Reason.FORWARDED)
    assert described(error.frame) == described(routed(about(packet, FAR[v], LAN.host(v)), LAN))
    begun_there = udp(FAR[v], shown(v), dport=5001)
    begun_there[UDP].chksum = 0
    arrives(tunnels, begun_there, dst=LAN.host(v))
    back = tunnels.lan(about(changed(begun_there, dst=LAN.host(v)), LAN.host(v), FAR[v]))
    assert back.reason is Reason.TO_KERNEL
    assert described(back.frame) == described(LAN.frame(about(begun_there, shown(v), FAR[v])))


@pytest.mark.parametrize("v", VERSIONS)
def test_fragments(tunnels: Tunnels, v: int) -> None:
    packet = udp(LAN.host(v), FAR[v], octets=64)
    if v == 4:
        pieces = fragment(packet, 32)
    else:
        whole = IPv6(src=LAN.host6, dst=FAR[6]) / IPv6ExtHdrFragment(id=9) / packet[UDP]
        pieces = fragment6(IPv6(bytes(whole)), 40 + 8 + 40)
    assert len(pieces) > 1
    for piece in pieces:
        result = tunnels.lan(piece)
        assert (result.reason, result.ip.src) == (Reason.TO_KERNEL, shown(v))


@pytest.mark.parametrize("v", VERSIONS)
def test_the_mss_is_that_of_the_tunnels_zone(tunnels: Tunnels, v: int) -> None:
    vpn = Zone("vpn", tunnels=True, tcp_mss=1300)
    tunnels.apply(rules(CLEAR, vpn=vpn, static_nat=STATICS), *near(v, SHOWN[v]))
    packet = tcp(LAN.host(v), FAR[v], options=[("MSS", 1460)])
    result = tunnels.lan(packet)
    wanted = changed(packet, src=shown(v))
    wanted[TCP].options = [("MSS", 1300)]
    assert described(result.frame) == described(LAN.frame(wanted))
    assert_sound(result.frame)


def test_nat64_into_a_tunnel(tunnels: Tunnels) -> None:
    rule = Nat64("n", ip_network("2001:db8:6f::/96"), pool="pool")
    tunnels.apply(rules(nat64=(rule,), pools=(pool(4, (2000, 2000)),)), *near(4, POOL[4]))
    packet = udp(LAN.host6, f"2001:db8:6f::{FAR[4]}")
    for _ in range(2):
        result = tunnels.lan(packet)
        assert (result.reason, result.ip.src, result.ip.dst) == (Reason.TO_KERNEL, POOL[4], FAR[4])
    assert tunnels.world.session().translated.zone == tunnels.world.zone("vpn")
    back = tunnels.out(ip_layer(4, src=FAR[4], dst=POOL[4]) / UDP(sport=5000, dport=2000) / Raw(b"back"))
    assert (back.reason, back.ip.dst) == (Reason.FORWARDED, LAN.host6)


@pytest.mark.parametrize("v", VERSIONS)
def test_what_the_kernel_forwards_translated_is_let_out_by_the_tunnels_port_alone(tunnels: Tunnels, v: int) -> None:
    """An engine's lead brings it there; by the WAN it would go in clear."""
    packet = udp(LAN.host(v), FAR[v])
    enters(tunnels, packet, src=shown(v))
    sent = changed(packet, src=shown(v))
    up = tunnels.port.__class__("ipsecgw-up", "", "", tunnels.port.mac, tunnels.port.host_mac)
    let: Result = tunnels.world.emit(up, sent, LAN)
    assert (let.action, let.reason) == (TcAction.UNSPEC, Reason.EGRESS_SESSION)
    assert tunnels.world.emit(WAN, sent, LAN).reason is Reason.EGRESS_UNPOLICED


@pytest.mark.parametrize("v", VERSIONS)
def test_errors_of_the_kernel_about_what_it_cannot_encrypt_come_back(tunnels: Tunnels, v: int) -> None:
    """It sends them to the address that it knows, which is not there: they take the way of those out of the tunnel."""
    packet = udp(LAN.host(v), FAR[v])
    packet[UDP].chksum = 0
    enters(tunnels, packet, src=shown(v))
    seen = changed(packet, src=shown(v))
    error = about(seen, WAN.own(v), shown(v))
    turned = tunnels.world.emit(WAN, error)
    assert (turned.action, turned.reason) == (TcAction.REDIRECT, Reason.EGRESS_TURNED)
    assert bytes(turned.packet.payload) == bytes(error)
    back = tunnels.world.send(tunnels.port, Ether(turned.frame))
    assert (back.action, back.reason) == (XdpAction.REDIRECT, Reason.FORWARDED)
    assert described(back.frame) == described(routed(about(packet, WAN.own(v), LAN.host(v)), LAN))
    others = about(changed(seen, sport=1), WAN.own(v), shown(v)), about(seen, WAN.own(v), WAN.host(v))
    assert [tunnels.world.emit(WAN, other).reason for other in others] == [Reason.EGRESS_EXEMPT] * 2


@pytest.mark.parametrize("v", VERSIONS)
def test_without_its_stage_nothing_passes(tunnels: Tunnels, v: int) -> None:
    with tunnels.world.without("stages", fl.Stage.TUNNEL_NAT):
        result = tunnels.lan(tcp(LAN.host(v), FAR[v]))
    assert (result.action, result.reason) == (XdpAction.DROP, Reason.NO_STAGE)


def test_a_wan_that_is_the_tunnels_zone_too_redirects_nothing_that_is_protected(tunnels: Tunnels) -> None:
    """The first port that is tried leads past the tunnel, and the one that is left into it."""
    pooled = SourceNat("pooled", Translation.POOL, to_zone="wan", pool="pool")
    both = Ruleset(
        zones=zones(wan={"tunnels": True}), policies=(CLEAR,), source_nat=(pooled,), pools=(pool(4, (2000, 2001)),)
    )
    tunnels.apply(both, *near(4, POOL[4], upper=6, source_port=PortMatch(2000, 0xFFFF)))
    flows = [changed(tcp(LAN.host4, FAR[4]), sport=sport) for sport in range(40000, 40064)]
    hashes = [fl.flow_hash(flow_of(flow, tunnels.world.zone("lan")).leaf(), SEED) for flow in flows]
    first, second = [flow for flow, hashed in zip(flows, hashes, strict=True) if hashed % 2][:2]
    assert tunnels.lan(first).reason is Reason.FORWARDED
    assert tunnels.lan(second).reason is Reason.TUNNEL_NAT
