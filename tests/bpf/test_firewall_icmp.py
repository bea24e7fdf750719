"""ICMP errors about sessions, both ways and through translation, and the answers that the firewall gives itself."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from firewall_kit import (
    DMZ,
    FAR,
    LAN,
    NARROW,
    NARROW_MTU,
    PROHIBIT,
    SILENT,
    UNREACHABLE,
    VLAN,
    WAN,
    Port,
    Result,
    World,
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
    later,
    other,
    reset,
    routed,
    tcp,
    udp,
)
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_Router_Alert, UDPerror
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoRequest,
    ICMPv6PacketTooBig,
    ICMPv6ParamProblem,
    ICMPv6TimeExceeded,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PadN,
)
from scapy.layers.ipsec import AH, ESP
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet, Raw

from ipsec_gw.model.firewall import (
    Action,
    DestinationNat,
    Policy,
    Ruleset,
    Service,
    SourceNat,
    Translation,
)
from xdp_steer.layout import Control
from xdp_steer.prog_run import XdpAction
from xdp_steer.reasons import Reason

pytestmark = pytest.mark.root

OPEN = Ruleset(zones=zones(), policies=(Policy("all", Action.PERMIT),))
HIDE = replace(OPEN, source_nat=(SourceNat("hide", Translation.INTERFACE, to_zone="wan"),))
VERSIONS = (4, 6)
PORTS = (LAN, VLAN)


def router(port: Port, v: int) -> str:
    """Another address on the port's network."""
    return str(ip_address(port.host(v)) + 1)


def errors(v: int) -> dict[str, Packet]:
    if v == 4:
        return {
            "unreachable": ICMP(type=3, code=1),
            "port": ICMP(type=3, code=3),
            "too big": ICMP(type=3, code=4, nexthopmtu=1300),
            "quench": ICMP(type=4),
            "redirect": ICMP(type=5, gw="192.0.2.77"),
            "ttl": ICMP(type=11),
            "parameter": ICMP(type=12, ptr=20),
        }
    return {
        "unreachable": ICMPv6DestUnreach(code=0),
        "port": ICMPv6DestUnreach(code=4),
        "too big": ICMPv6PacketTooBig(mtu=1300),
        "ttl": ICMPv6TimeExceeded(),
        "parameter": ICMPv6ParamProblem(ptr=40),
    }


ERRORS = [(v, name) for v in VERSIONS for name in errors(v)]


def error(v: int, name: str, source: str, destination: str, quoted: bytes) -> Packet:
    return ip_layer(v, src=source, dst=destination) / errors(v)[name] / Raw(quoted)


def quote(result: Result, octets: int = 8, **fields: object) -> bytes:
    """The packet that left, with fields changed back; its L4 checksum stays as it is. ``octets`` of L4 are quoted."""
    layer = result.ip.copy()
    for name in ("src", "dst"):
        if name in fields:
            setattr(layer, name, fields[name])
    if isinstance(layer, IP):
        layer.chksum = None
        layer = IP(bytes(layer))
    head = layer.ihl * 4 if isinstance(layer, IP) else 40
    raw = bytearray(bytes(layer)[: head + octets])
    for name, at in (("sport", 0), ("dport", 2), ("id", 4)):
        if name in fields:
            raw[head + at : head + at + 2] = int(str(fields[name])).to_bytes(2)
    return bytes(raw)


def sent(world: World, port: Port, packet: Packet) -> Result:
    result = world.send(port, packet)
    assert result.reason is Reason.FORWARDED
    return result


def becomes(world: World, ingress: Port, packet: Packet, egress: Port, after: Packet) -> bytes:
    """An error is forwarded as ``after``, and no session notices."""
    before = {flow: bytes(row) for flow, row in world.entries().items()}
    result = world.send(ingress, packet)
    assert (result.action, result.reason) == (XdpAction.REDIRECT, Reason.FORWARDED)
    assert described(result.frame) == described(routed(after, egress))
    assert {flow: bytes(row) for flow, row in world.entries().items()} == before
    return result.frame


def passes(world: World, ingress: Port, packet: Packet, egress: Port, after: Packet) -> None:
    """The same, and all checksums are what scapy makes of the frame."""
    assert_sound(becomes(world, ingress, packet, egress, after))


@pytest.mark.parametrize("port", PORTS, ids=lambda port: port.name)
@pytest.mark.parametrize(("v", "name"), ERRORS)
@pytest.mark.parametrize("made", [tcp, udp, echo, other], ids=["tcp", "udp", "echo", "gre"])
def test_an_error_from_afar_reaches_the_host_behind_nat(world: World, port: Port, v: int, name: str, made) -> None:
    world.apply(HIDE)
    packet = made(port.host(v), WAN.host(v))
    if made in {tcp, udp}:
        packet[TCP if made is tcp else UDP].sport = 777  # below the range: it is translated
    if made is echo:
        packet = changed(packet, id=777)
    left = sent(world, port, packet)
    back = {"src": port.host(v)}
    back |= {"sport": 777} if made in {tcp, udp} else {"id": 777} if made is echo else {}
    arriving = error(v, name, router(WAN, v), WAN.own(v), quote(left))
    passes(world, WAN, arriving, port, error(v, name, router(WAN, v), port.host(v), quote(left, **back)))


@pytest.mark.parametrize("v", VERSIONS)
def test_nothing_changes_in_an_error_about_an_untranslated_session(world: World, v: int) -> None:
    world.apply(OPEN)
    left = sent(world, LAN, tcp(LAN.host(v), WAN.host(v)))
    from_router = error(v, "too big", router(WAN, v), LAN.host(v), quote(left))
    passes(world, WAN, from_router, LAN, from_router)
    reply = tcp(WAN.host(v), LAN.host(v), 40000, "SA")
    reply[TCP].sport = 80
    back = sent(world, WAN, reply)
    from_inside = error(v, "port", LAN.host(v), WAN.host(v), quote(back))
    passes(world, LAN, from_inside, WAN, from_inside)


@pytest.mark.parametrize("v", VERSIONS)
@pytest.mark.parametrize("octets", [8, 20, 28])
def test_an_error_of_the_server_itself_behind_nat_of_its_address(world: World, v: int, octets: int) -> None:
    published = DestinationNat(
        "web", ip_network(FAR[v]), ip_network(DMZ.host(v)), "wan", services=(Service(17, (8080, 8080)),), to_port=5000
    )
    world.apply(replace(OPEN, destination_nat=(published,)))
    left = sent(world, WAN, udp(WAN.host(v), FAR[v], 8080))
    seen = {"dst": FAR[v], "dport": 8080}
    own = error(v, "port", DMZ.host(v), WAN.host(v), quote(left, octets))
    passes(world, DMZ, own, WAN, error(v, "port", FAR[v], WAN.host(v), quote(left, octets, **seen)))
    on_the_way = error(v, "ttl", router(DMZ, v), WAN.host(v), quote(left, octets))
    passes(world, DMZ, on_the_way, WAN, error(v, "ttl", router(DMZ, v), WAN.host(v), quote(left, octets, **seen)))
    reply = udp(DMZ.host(v), WAN.host(v), 40000)
    reply[UDP].sport = 5000
    back = sent(world, DMZ, reply)
    assert (back.ip.src, back.ip[UDP].sport) == (FAR[v], 8080)
    of_client = error(v, "too big", WAN.host(v), FAR[v], quote(back, octets))
    inside = quote(back, octets, src=DMZ.host(v), sport=5000)
    passes(world, WAN, of_client, DMZ, error(v, "too big", WAN.host(v), DMZ.host(v), inside))


@pytest.mark.parametrize("v", VERSIONS)
def test_both_ends_are_restored_after_twice_nat(world: World, v: int) -> None:
    published = DestinationNat("web", ip_network(FAR[v]), ip_network(DMZ.host(v)), "wan")
    world.apply(
        replace(OPEN, destination_nat=(published,), source_nat=(SourceNat("in", Translation.INTERFACE, "wan", "dmz"),))
    )
    packet = tcp(WAN.host(v), FAR[v])
    packet[TCP].sport = 777
    left = sent(world, WAN, packet)
    own = error(v, "port", DMZ.host(v), DMZ.own(v), quote(left))
    seen = quote(left, src=WAN.host(v), dst=FAR[v], sport=777)
    passes(world, DMZ, own, WAN, error(v, "port", FAR[v], WAN.host(v), seen))


def test_options_in_the_quoted_header(world: World) -> None:
    world.apply(HIDE)
    packet = IP(src=LAN.host4, dst=WAN.host4, options=[IPOption_Router_Alert()]) / UDP(sport=777, dport=9) / Raw(b"x")
    left = sent(world, LAN, packet)
    arriving = error(4, "too big", router(WAN, 4), WAN.address4, quote(left))
    after = error(4, "too big", router(WAN, 4), LAN.host4, quote(left, src=LAN.host4, sport=777))
    passes(world, WAN, arriving, LAN, after)


def test_options_before_the_error(world: World) -> None:
    world.apply(HIDE)
    left = sent(world, LAN, udp(LAN.host4, WAN.host4))
    outer = IP(src=router(WAN, 4), dst=WAN.address4, options=[IPOption_Router_Alert()]) / ICMP(type=3, code=4)
    passes(
        world,
        WAN,
        outer / Raw(quote(left)),
        LAN,
        changed(outer / Raw(quote(left, src=LAN.host4)), dst=LAN.host4),
    )


CHAINS = {
    "fragment": IPv6ExtHdrFragment(id=9, m=1),
    "whole": IPv6ExtHdrFragment(id=9),
    "hop-by-hop": IPv6ExtHdrHopByHop(),
    "destination": IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(20))]),
    "routing": IPv6ExtHdrRouting(addresses=["2001:db8::7"]),
    "all": IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / IPv6ExtHdrRouting() / IPv6ExtHdrFragment(id=9, m=1),
    "six": IPv6ExtHdrDestOpt() / IPv6ExtHdrDestOpt() / IPv6ExtHdrDestOpt() / IPv6ExtHdrDestOpt()
    / IPv6ExtHdrDestOpt() / IPv6ExtHdrFragment(id=9),
}  # fmt: skip


def extended(quoted: bytes, chain: Packet) -> bytes:
    """A quoted IPv6 packet with extension headers."""
    carrier = IPv6() / chain
    carrier.lastlayer().nh = quoted[6]
    raw = bytes(carrier)
    return quoted[:6] + raw[6:7] + quoted[7:40] + raw[40:] + quoted[40:]


@pytest.mark.parametrize("name", errors(6))
@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS.keys())
@pytest.mark.parametrize("made", [tcp, udp, echo, other], ids=["tcp", "udp", "echo", "gre"])
def test_extension_headers_in_the_quoted_packet(world: World, name: str, chain: Packet, made) -> None:
    world.apply(HIDE)
    packet = made(LAN.host6, WAN.host6)
    back: dict[str, object] = {"src": LAN.host6}
    if made in {tcp, udp}:
        packet[TCP if made is tcp else UDP].sport = 777
        back["sport"] = 777
    if made is echo:
        packet, back["id"] = changed(packet, id=777), 777
    left = sent(world, LAN, packet)
    arriving = error(6, name, router(WAN, 6), WAN.own(6), extended(quote(left), chain))
    after = error(6, name, router(WAN, 6), LAN.host6, extended(quote(left, **back), chain))
    becomes(world, WAN, arriving, LAN, after)  # whose checksum is scapy's; it does not read such a quote itself
    assert world.emit(LAN, after, came_in_by=WAN).reason is Reason.EGRESS_SESSION


def test_a_chain_that_is_too_long_or_cut_short(world: World) -> None:
    world.apply(HIDE)
    quoted = quote(sent(world, LAN, udp(LAN.host6, WAN.host6)))
    seven = extended(quoted, CHAINS["six"] / IPv6ExtHdrDestOpt())
    six = extended(quoted, CHAINS["six"])
    long = extended(quoted, CHAINS["destination"])
    for wrong in (seven, six[:-5], six[:-9], long[:42], long[:50], long[: len(long) - 8]):
        arriving = error(6, "too big", router(WAN, 6), WAN.own(6), wrong)
        assert world.send(WAN, arriving).reason is Reason.MALFORMED
        padded = Ether(bytes(WAN.frame(arriving)) + bytes(60))
        assert world.send(WAN, padded).reason is Reason.MALFORMED, "padding is no part of the quote"


@pytest.mark.parametrize("octets", range(9))
@pytest.mark.parametrize("v", VERSIONS)
@pytest.mark.parametrize(("made", "needed"), [(tcp, 4), (udp, 4), (echo, 6), (other, 0)])
def test_a_quote_has_to_tell_the_flow_and_no_more(world: World, v: int, octets: int, made, needed: int) -> None:
    world.apply(HIDE)
    left = sent(world, LAN, made(LAN.host(v), WAN.host(v)))
    arriving = error(v, "too big", router(WAN, v), WAN.own(v), quote(left, octets))
    if octets < needed:
        assert world.send(WAN, arriving).reason is Reason.MALFORMED
        return
    after = error(v, "too big", router(WAN, v), LAN.host(v), quote(left, octets, src=LAN.host(v)))
    passes(world, WAN, arriving, LAN, after)


def first(packet: Packet) -> Packet:
    """The first fragment to go with what :func:`later` makes."""
    made = packet.copy()
    header = bytes(UDP(sport=777, dport=5000, len=48, chksum=0x1234))
    if IP in made:
        made.frag, made.flags = 0, "MF"
    else:
        made[IPv6ExtHdrFragment].offset, made[IPv6ExtHdrFragment].m = 0, 1
    made[Raw].load = header + bytes(16)
    return made


@pytest.mark.parametrize(("v", "name"), ERRORS)
def test_an_error_about_a_later_fragment_finds_the_flow_of_the_first_one(world: World, v: int, name: str) -> None:
    world.apply(HIDE)
    rest = later(LAN.host(v), WAN.host(v))
    sent(world, LAN, first(rest))
    left = sent(world, LAN, rest)
    quoted = bytes(left.ip)
    before = bytes(left.ip.__class__(bytes(changed(left.ip, src=LAN.host(v)))))
    arriving = error(v, name, router(WAN, v), WAN.own(v), quoted)
    after = error(v, name, router(WAN, v), LAN.host(v), before)
    passes(world, WAN, arriving, LAN, after)
    assert world.emit(LAN, after, came_in_by=WAN).reason is Reason.EGRESS_SESSION
    assert world.send(DMZ, arriving).reason is Reason.ICMP_NO_SESSION, "it did not leave there"
    world.age(31)
    assert world.send(WAN, arriving).reason is Reason.ICMP_NO_SESSION, "too late"
    assert world.emit(LAN, after, came_in_by=WAN).reason is Reason.EGRESS_UNPOLICED


@pytest.mark.parametrize("v", VERSIONS)
def test_an_error_about_a_later_fragment_of_nobody(world: World, v: int) -> None:
    world.apply(HIDE)
    left = sent(world, LAN, udp(LAN.host(v), WAN.host(v)))
    rest = later(WAN.own(v), WAN.host(v))
    about_ports = rest.copy()
    about_ports[Raw].load = bytes(left.ip.payload)[:8]  # what would be ports
    for quoted in (rest, about_ports):
        arriving = error(v, "too big", router(WAN, v), WAN.own(v), bytes(quoted))
        assert world.send(WAN, arriving).reason is Reason.ICMP_NO_SESSION


@pytest.mark.parametrize("v", VERSIONS)
def test_an_error_about_a_later_fragment_of_the_other_direction(world: World, v: int) -> None:
    """The server's fragments are translated back: a router behind the LAN complains about them."""
    world.apply(HIDE)
    ask = udp(LAN.host(v), WAN.host(v))
    ask[UDP].sport = 5000
    sent(world, LAN, ask)
    answer_rest = later(WAN.host(v), WAN.own(v))
    answer_first = first(answer_rest)
    answer_first[Raw].load = bytes(UDP(sport=5000, dport=5000, len=48, chksum=0x1234)) + bytes(16)
    sent(world, WAN, answer_first)
    left = sent(world, WAN, answer_rest)
    assert left.ip.dst == LAN.host(v)
    arriving = error(v, "ttl", router(LAN, v), WAN.host(v), bytes(left.ip))
    outside = error(v, "ttl", router(LAN, v), WAN.host(v), bytes(changed(left.ip, dst=WAN.own(v))))
    passes(world, LAN, arriving, WAN, outside)


def test_ipv4_in_disguise_has_no_errors(world: World) -> None:
    """The table has IPv4 as v4-mapped: an ICMPv6 error must not find it."""
    world.apply(OPEN)
    sent(world, LAN, udp(LAN.host4, WAN.host4))
    quoted = IPv6(src=f"::ffff:{LAN.host4}", dst=f"::ffff:{WAN.host4}") / UDP(sport=40000, dport=5000)
    arriving = error(6, "too big", WAN.host6, LAN.host6, bytes(quoted))
    assert world.send(WAN, arriving).reason is Reason.MALFORMED


@pytest.mark.parametrize("v", VERSIONS)
def test_an_error_for_a_host_without_neighbour_entry_goes_by_the_kernel(world: World, v: int) -> None:
    world.apply(HIDE)
    stranger = router(LAN, v)
    left = sent(world, LAN, udp(stranger, WAN.host(v)))
    arriving = error(v, "ttl", WAN.host(v), WAN.own(v), quote(left))
    result = world.send(WAN, arriving)
    assert (result.action, result.reason) == (XdpAction.PASS, Reason.TO_KERNEL)
    after = error(v, "ttl", WAN.host(v), stranger, quote(left, src=stranger))
    assert described(result.frame) == described(WAN.frame(after))


@pytest.mark.parametrize("v", VERSIONS)
def test_who_has_no_session_gets_no_error_through(world: World, v: int) -> None:
    world.apply(HIDE)
    left = sent(world, LAN, udp(LAN.host(v), WAN.host(v)))
    arriving = error(v, "too big", router(WAN, v), WAN.own(v), quote(left))
    for wrong in (
        error(v, "too big", router(WAN, v), WAN.own(v), quote(left, sport=40001)),
        error(v, "too big", router(WAN, v), WAN.own(v), quote(left, dport=5001)),
        error(v, "too big", router(WAN, v), WAN.own(v), quote(left, dst=FAR[v])),
    ):
        assert world.send(WAN, wrong).reason is Reason.ICMP_NO_SESSION
    assert world.send(DMZ, arriving).reason is Reason.ICMP_NO_SESSION, "not from that zone"
    world.age(59)
    assert world.send(WAN, arriving).reason is Reason.FORWARDED
    world.age(2)
    assert world.send(WAN, arriving).reason is Reason.ICMP_NO_SESSION, "expired"
    assert len(world.entries()) == 2


@pytest.mark.parametrize("v", VERSIONS)
def test_errors_about_sessions_of_this_machine_reach_it(world: World, v: int) -> None:
    world.apply(OPEN)
    ask = udp(WAN.own(v), WAN.host(v))
    assert world.emit(WAN, ask).reason is Reason.EGRESS_NEW
    arriving = about(ask, router(WAN, v), WAN.own(v))
    result = world.send(WAN, arriving)
    assert (result.action, result.reason) == (XdpAction.PASS, Reason.HOST)
    assert described(result.frame) == described(WAN.frame(arriving))


@pytest.mark.parametrize("v", VERSIONS)
@pytest.mark.parametrize("kind", ["esp", "ah", "ike", "nat-t"])
def test_errors_about_our_tunnels_reach_charon_and_the_kernel(world: World, v: int, kind: str) -> None:
    world.apply(OPEN)
    payload = {
        "esp": ESP(spi=9, seq=1, data=bytes(40)),
        "ah": AH(spi=9, seq=1),
        "ike": UDP(sport=500, dport=500) / Raw(bytes(28)),
        "nat-t": UDP(sport=4500, dport=1024) / Raw(bytes(28)),
    }[kind]
    for name in errors(v):
        ours = bytes(ip_layer(v, src=WAN.own(v), dst=FAR[v]) / payload)[: 28 if v == 4 else 48]
        result = world.send(WAN, error(v, name, router(WAN, v), WAN.own(v), ours))
        assert (result.action, result.reason) == (XdpAction.PASS, Reason.HOST_IKE)
        foreign = bytes(ip_layer(v, src=LAN.host(v), dst=FAR[v]) / payload)[: 28 if v == 4 else 48]
        result = world.send(WAN, error(v, name, router(WAN, v), LAN.host(v), foreign))
        assert (result.action, result.reason) == (XdpAction.DROP, Reason.ICMP_NO_SESSION), "of somebody behind us"
    incoming = bytes(ip_layer(v, src=FAR[v], dst=WAN.own(v)) / UDP(sport=9, dport=500))[: 28 if v == 4 else 48]
    assert world.send(WAN, error(v, "ttl", FAR[v], WAN.own(v), incoming)).reason is Reason.ICMP_NO_SESSION


@pytest.mark.parametrize("v", VERSIONS)
def test_an_error_is_never_answered(world: World, v: int) -> None:
    world.apply(HIDE)
    left = sent(world, LAN, udp(LAN.host(v), WAN.host(v)))
    dying = error(v, "ttl", router(WAN, v), WAN.own(v), quote(left))
    setattr(dying, "ttl" if v == 4 else "hlim", 1)
    result = world.send(WAN, dying)
    assert (result.action, result.reason) == (XdpAction.DROP, Reason.TTL_EXPIRED)


@pytest.mark.parametrize("port", PORTS, ids=lambda port: port.name)
@pytest.mark.parametrize("v", VERSIONS)
@pytest.mark.parametrize("flags", ["S", "A", "FA", "PA", "SF", "F", ""])
@pytest.mark.parametrize("octets", [0, 1, 33])
def test_resets_acknowledge_what_they_refuse(world: World, port: Port, v: int, flags: str, octets: int) -> None:
    lax = {"lan": {"syn_check": False}, "vlan": {"syn_check": False}}
    world.apply(Ruleset(zones=zones(**lax), default=Action.REJECT))
    packet = tcp(port.host(v), WAN.host(v), flags=flags, ack=0xFFFFFFF0, options=[("MSS", 1460)])
    packet[TCP].seq = 0xFFFFFFFE
    packet = packet / Raw(b"p" * octets)
    result = world.send(port, packet)
    assert (result.action, result.reason) == (XdpAction.TX, Reason.DEFAULT_DENY)
    wanted = reset(packet, port)
    if "A" not in flags:
        wanted[TCP].ack = (0xFFFFFFFE + octets + ("S" in flags) + ("F" in flags)) & 0xFFFFFFFF
    assert described(result.frame) == described(wanted)


@pytest.mark.parametrize("v", VERSIONS)
def test_a_reset_for_a_segment_behind_options_and_extensions(world: World, v: int) -> None:
    world.apply(Ruleset(zones=zones(), default=Action.REJECT))
    segment = TCP(sport=40000, dport=80, flags="S", seq=1000)
    if v == 4:
        packet = IP(src=LAN.host4, dst=WAN.host4, options=[IPOption_Router_Alert()]) / segment
    else:
        packet = IPv6(src=LAN.host6, dst=WAN.host6) / IPv6ExtHdrDestOpt() / segment
    result = world.send(LAN, packet)
    assert described(result.frame) == described(reset(packet, LAN))


@pytest.mark.parametrize("v", VERSIONS)
def test_an_error_quotes_options_and_extensions(world: World, v: int) -> None:
    world.apply(Ruleset(zones=zones(), default=Action.REJECT))
    datagram = UDP(sport=40000, dport=80) / Raw(b"payload")
    if v == 4:
        packet = IP(src=LAN.host4, dst=WAN.host4, options=[IPOption_Router_Alert()] * 10) / datagram
    else:
        packet = IPv6(src=LAN.host6, dst=WAN.host6) / IPv6ExtHdrDestOpt() / datagram
    result = world.send(LAN, packet)
    assert described(result.frame) == described(answer(packet, LAN, WAN.host(v), "prohibited"))


def test_an_error_about_a_first_fragment_of_ipv6_quotes_its_ports(world: World) -> None:
    world.apply(Ruleset(zones=zones(), default=Action.REJECT))
    fragment = IPv6ExtHdrFragment(id=9, m=1) / UDP(sport=40000, dport=80, len=4008, chksum=1) / Raw(bytes(32))
    result = world.send(LAN, IPv6(src=LAN.host6, dst=WAN.host6) / IPv6ExtHdrDestOpt() / fragment)
    assert result.action is XdpAction.TX
    quoted = result.ip[ICMPv6DestUnreach].payload
    assert (quoted[UDPerror].sport, quoted[UDPerror].dport) == (40000, 80)


@pytest.mark.parametrize("port", PORTS, ids=lambda port: port.name)
@pytest.mark.parametrize("length", [63, 64, 65, 127, 128, 1215, 1216, 1217, 1231, 1232, 1233, 1280, 1400, 1500])
def test_an_ipv6_packet_is_quoted_as_far_as_the_least_mtu_goes(world: World, port: Port, length: int) -> None:
    """Checksums of every length, odd ones too, padded or not. RFC 4443, 2.4."""
    world.apply(Ruleset(zones=zones(), default=Action.REJECT))
    content = bytes((7 * number + 1) % 251 for number in range(length - 48))
    packet = IPv6(src=port.host6, dst=WAN.host6) / UDP(sport=40000, dport=80) / Raw(content)
    assert len(packet) == length
    for padding in (b"", b"p" * 7):
        result = world.send(port, Ether(bytes(port.frame(packet)) + padding))
        assert len(result.ip) == min(length + 48, 1280)
        assert described(result.frame) == described(answer(packet, port, WAN.host6, "prohibited"))


@pytest.mark.parametrize("v", VERSIONS)
def test_a_short_packet_is_quoted_whole(world: World, v: int) -> None:
    world.apply(Ruleset(zones=zones(), default=Action.REJECT))
    packet = ip_layer(v, src=LAN.host(v), dst=WAN.host(v), proto=47) / Raw(b"abc")
    frame = LAN.frame(packet)
    padded = Ether(bytes(frame) + bytes(60 - len(frame))) if len(frame) < 60 else frame
    result = world.send(LAN, padded)
    assert described(result.frame) == described(answer(packet, LAN, WAN.host(v), "prohibited"))


@pytest.mark.parametrize("v", VERSIONS)
def test_a_refused_ping_is_answered(world: World, v: int) -> None:
    world.apply(Ruleset(zones=zones(), default=Action.REJECT))
    packet = echo(LAN.host(v), WAN.host(v))
    result = world.send(LAN, packet)
    assert described(result.frame) == described(answer(packet, LAN, WAN.host(v), "prohibited"))


@pytest.mark.parametrize("tag", [Dot1Q(vlan=100, prio=6), Dot1Q(vlan=0, prio=3), Dot1Q(vlan=100, dei=1)])
@pytest.mark.parametrize("v", VERSIONS)
@pytest.mark.parametrize("made", [tcp, udp], ids=["reset", "error"])
def test_an_answer_carries_the_very_tag_back(world: World, tag: Packet, v: int, made) -> None:
    world.apply(Ruleset(zones=zones(), default=Action.REJECT))
    port = VLAN if tag.vlan else LAN
    packet = made(port.host(v), WAN.host(v))
    result = world.send(port, Ether(src=port.host_mac, dst=port.mac) / tag / packet)
    assert result.action is XdpAction.TX
    untagged = (reset(packet, port) if made is tcp else answer(packet, port, WAN.host(v), "prohibited")).copy()
    inside = untagged[IP] if v == 4 else untagged[IPv6]
    assert described(result.frame) == described(Ether(src=port.mac, dst=port.host_mac) / tag / inside)


@pytest.mark.parametrize("port", PORTS, ids=lambda port: port.name)
@pytest.mark.parametrize("v", VERSIONS)
def test_ttl_and_mtu_of_an_established_session(world: World, port: Port, v: int) -> None:
    """The answer speaks of the packet as it arrived, not as it would have left."""
    world.apply(HIDE)
    fits = udp(port.host(v), NARROW[v], octets=NARROW_MTU - (28 if v == 4 else 48))
    big = udp(port.host(v), NARROW[v], octets=NARROW_MTU - (27 if v == 4 else 47))
    for packet in (fits, big):
        if v == 4:
            packet.flags = "DF"
    assert len(fits) == NARROW_MTU
    for _ in range(2):  # with a fresh route, with the session's
        assert sent(world, port, fits).ip.src == WAN.own(v)
        result = world.send(port, big)
        assert (result.action, result.reason) == (XdpAction.TX, Reason.TOO_BIG)
        assert described(result.frame) == described(answer(big, port, port.own(v), "big", NARROW_MTU))
        dying = udp(port.host(v), NARROW[v], ttl=1)
        result = world.send(port, dying)
        assert (result.action, result.reason) == (XdpAction.TX, Reason.TTL_EXPIRED)
        assert described(result.frame) == described(answer(dying, port, port.own(v), "ttl"))
    gone = udp(port.host(v), NARROW[v], ttl=0)
    assert world.send(port, gone).reason is Reason.TTL_EXPIRED
    last = udp(port.host(v), NARROW[v], ttl=2)
    assert sent(world, port, last).ip[UDP].sport == 40000


def test_what_may_be_fragmented_is_left_to_the_kernel_translated(world: World) -> None:
    world.apply(HIDE)
    big = udp(LAN.host4, NARROW[4], octets=1300)
    for _ in range(2):
        result = world.send(LAN, big)
        assert (result.action, result.reason) == (XdpAction.PASS, Reason.TO_KERNEL)
        assert described(result.frame) == described(LAN.frame(changed(big, src=WAN.address4)))


@pytest.mark.parametrize("v", VERSIONS)
def test_a_refusal_comes_from_the_address_that_was_asked(world: World, v: int) -> None:
    published = DestinationNat("web", ip_network(FAR[v]), ip_network(DMZ.host(v)), "wan")
    refuse = Policy("refuse", Action.REJECT, "wan", "dmz")
    world.apply(Ruleset(zones=zones(), policies=(refuse,), destination_nat=(published,)))
    packet = udp(WAN.host(v), FAR[v])
    result = world.send(WAN, packet)
    assert described(result.frame) == described(answer(packet, WAN, FAR[v], "prohibited"))
    segment = tcp(WAN.host(v), FAR[v])
    assert described(world.send(WAN, segment).frame) == described(reset(segment, WAN))


@pytest.mark.parametrize("v", VERSIONS)
def test_a_port_without_an_address_answers_by_the_destination(world: World, v: int) -> None:
    world.apply(OPEN, lan={"address4": None, "address6": None})
    packet = tcp(LAN.host(v), UNREACHABLE[v])
    assert described(world.send(LAN, packet).frame) == described(answer(packet, LAN, UNREACHABLE[v], "host"))
    packet = tcp(LAN.host(v), WAN.host(v), ttl=1)
    assert described(world.send(LAN, packet).frame) == described(answer(packet, LAN, WAN.host(v), "ttl"))


def silent_cases() -> Iterator[tuple[str, Port, Packet, Reason]]:
    for v, none, group in ((4, "0.0.0.0", "224.0.0.9"), (6, "::", "ff02::9")):
        yield f"from nobody v{v}", LAN, udp(none, PROHIBIT[v]), Reason.MARTIAN_SOURCE
        yield f"from a group v{v}", VLAN, tcp(group, WAN.host(v), flags="A"), Reason.MARTIAN_SOURCE
        yield f"to a group v{v}", VLAN, tcp(VLAN.host(v), group, flags="S"), Reason.POLICY_REJECT
        yield f"rst v{v}", LAN, tcp(LAN.host(v), WAN.host(v), flags="RA"), Reason.DEFAULT_DENY
    yield "from everybody", VLAN, tcp("255.255.255.255", WAN.host4, flags="A"), Reason.MARTIAN_SOURCE
    yield "to everybody", LAN, udp(LAN.host4, "255.255.255.255"), Reason.POLICY_REJECT


@pytest.mark.parametrize(("port", "packet", "reason"), [pytest.param(*rest, id=name) for name, *rest in silent_cases()])
def test_nobody_to_answer(world: World, port: Port, packet: Packet, reason: Reason) -> None:
    refuse = (Policy("refuse", Action.REJECT, "lan", "self"), Policy("refuse too", Action.REJECT, "vlan", "self"))
    changed_zones = zones(lan={"syn_check": False}, vlan={"tcp_reset": True})
    world.apply(Ruleset(zones=changed_zones, policies=refuse, default=Action.REJECT))
    result = world.send(port, packet)
    assert (result.action, result.reason) == (XdpAction.DROP, reason)


@pytest.mark.parametrize("v", VERSIONS)
def test_a_later_fragment_is_not_answered(world: World, v: int) -> None:
    world.apply(OPEN)
    first = later(LAN.host(v), WAN.host(v))
    if v == 4:
        first.frag, first.flags = 0, "MF"
        first[Raw].load = bytes(UDP(sport=1, dport=2)) + bytes(16)
    else:
        first.payload.offset, first.payload.m = 0, 1
        first[Raw].load = bytes(UDP(sport=1, dport=2)) + bytes(16)
    sent(world, LAN, first)
    rest = later(LAN.host(v), WAN.host(v))
    setattr(rest, "ttl" if v == 4 else "hlim", 1)
    result = world.send(LAN, rest)
    assert (result.action, result.reason) == (XdpAction.DROP, Reason.TTL_EXPIRED)


def test_answers_are_rationed(world: World) -> None:
    """Three in a second, of all kinds together, on this CPU."""
    world.apply(Ruleset(zones=zones(), default=Action.REJECT))
    packets = [made(LAN.host(v), WAN.host(v)) for v in VERSIONS for made in (tcp, udp)] * 15
    everywhere = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(everywhere)})
    world.control(Control.ANSWER_RATE, 3)
    try:
        begun = time.monotonic()
        actions = [world.send(LAN, packet).action for packet in packets]
        seconds = int(time.monotonic() - begun)
    finally:
        world.control(Control.ANSWER_RATE, 0)
        os.sched_setaffinity(0, everywhere)
    assert actions[:3] == [XdpAction.TX] * 3
    assert 3 <= actions.count(XdpAction.TX) <= 3 * (seconds + 2)
    assert world.send(LAN, packets[0]).action is XdpAction.TX


@pytest.mark.parametrize("v", VERSIONS)
def test_requests_and_their_replies_make_one_session(world: World, v: int) -> None:
    world.apply(OPEN)
    sent(world, LAN, echo(LAN.host(v), WAN.host(v)))
    sent(world, WAN, echo(WAN.host(v), LAN.host(v), reply=True))
    assert world.send(WAN, echo(WAN.host(v), SILENT[v], reply=True)).reason is Reason.ICMP_UNSOLICITED
    session = world.session()
    assert (session.forward.packets, session.reverse.packets) == (1, 1)


def test_an_inner_echo_with_another_identifier_has_no_session(world: World) -> None:
    world.apply(OPEN)
    left = sent(world, LAN, echo(LAN.host6, WAN.host6))
    assert isinstance(left.ip.payload, ICMPv6EchoRequest)
    assert world.send(WAN, error(6, "ttl", WAN.host6, LAN.host6, quote(left, id=7))).reason is Reason.ICMP_NO_SESSION
    right = error(6, "ttl", WAN.host6, LAN.host6, quote(left))
    passes(world, WAN, right, LAN, right)
