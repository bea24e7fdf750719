"""NPTv6 (RFC 6296): prefixes change both ways, and no checksum does."""

from __future__ import annotations

from ipaddress import ip_network

import pytest
from firewall_kit import DMZ, LAN, WAN, World, zones
from firewall_packets import assert_sound, changed, described, echo, flow_of, routed, tcp, udp
from scapy.layers.inet import TCP, UDP
from scapy.layers.inet6 import ICMPv6PacketTooBig, IPv6, IPv6ExtHdrFragment
from scapy.packet import Packet, Raw

from ipsec_gw.model.firewall import Action, Nptv6, Policy, Ruleset, SourceNat, StaticNat, Translation
from xdp_steer.flow_layout import NameKind, SessionFlag
from xdp_steer.prog_run import XdpAction
from xdp_steer.reasons import Reason
from xdp_steer.tables import Count

pytestmark = pytest.mark.root

OPEN = (Policy("all", Action.PERMIT),)
HIDE = SourceNat("hide", Translation.INTERFACE, to_zone="wan")
THERE = WAN.host6
RFC = ("fd01:203:405::/48", "2001:db8:1::/48")
"""The example of RFC 6296, 3.6."""


def rules(internal: str, external: str, zone: str = "wan", **rest: object) -> Ruleset:
    rule = Nptv6("net", zone, ip_network(external), ip_network(internal))
    return Ruleset(zones=zones(), policies=OPEN, nptv6=(rule,), **rest)


def leaves(world: World, packet: Packet) -> Packet:
    """The packet that goes on."""
    result = world.send(LAN, packet)
    assert (result.action, result.reason) == (XdpAction.REDIRECT, Reason.FORWARDED)
    assert_sound(result.frame)
    return result.ip


def checksum(packet: Packet) -> int:
    layer = IPv6(bytes(packet))
    return int(layer[TCP].chksum if TCP in layer else layer[UDP].chksum)


@pytest.mark.parametrize(
    ("internal", "external", "source", "becomes"),
    [
        (*RFC, "fd01:203:405:1::1234", "2001:db8:1:d550::1234"),
        ("fd00::/8", "2000::/8", "fd01:203:405:1::1234", "2001:203:405:dd01::1234"),
        ("2001:db8:7:40::/60", "2001:db8:8:50::/60", "2001:db8:7:4f::1", "2001:db8:8:5f:ffee::1"),
        ("2001:db8:7::/64", "2001:db8:8::/64", "2001:db8:7:0:ffff:2::1", "2001:db8:8:0:ffff:1:0:1"),
        ("2001:db8:7::/64", "2001:db8:8::/64", "2001:db8:7:0:ffff:ffff:ffff:5", "2001:db8:8:0:ffff:ffff:ffff:4"),
        ("2001:db8:7::/48", "2001:db8:8::/48", "2001:db8:7:1::1", "2001:db8:8::1"),
        ("2001:db8:8::/48", "2001:db8:7::/48", "2001:db8:8:fffe::1", "2001:db8:7::1"),
    ],
    ids=["rfc-6296", "8", "60", "second-word", "fourth-word", "to-zero", "minus-zero-is-zero"],
)
def test_addresses_change_and_checksums_stay(
    world: World, internal: str, external: str, source: str, becomes: str
) -> None:
    world.apply(rules(internal, external, source_nat=(HIDE,)))
    for packet in (tcp(source, THERE), udp(source, THERE)):
        out = leaves(world, packet)
        assert (out.src, out.dst) == (becomes, THERE)
        assert checksum(out) == checksum(packet)
        assert (out.payload.sport, out.payload.dport) == (40000, packet.payload.dport)
    number = world.ids.rules[NameKind.NPTV6, "net"]
    assert [session.snat_rule for session in world.sessions()] == [number] * 2
    assert world.rule_counts()[NameKind.NPTV6, "net"].packets >= 2


INNER = ("2001:db8:3::/64", "2001:db8:77::/64")
"""The network of dmz0."""
HOST = DMZ.host6
OUTSIDE = "2001:db8:77:0:ff8b::9"


@pytest.mark.parametrize("packet", [tcp(HOST, THERE), udp(HOST, THERE), echo(HOST, THERE)], ids=["tcp", "udp", "echo"])
def test_out_and_back(world: World, packet: Packet) -> None:
    """Also P10 and N13: what is translated one way is translated the other way, whatever the session's flags."""
    world.apply(rules(*INNER))
    result = world.send(DMZ, packet)
    assert described(result.frame) == described(routed(packet, WAN, src=OUTSIDE))
    back = changed(packet, src=THERE, dst=OUTSIDE)
    if TCP in back or UDP in back:
        back = changed(back, sport=packet.payload.dport, dport=40000)
    else:
        back = echo(THERE, OUTSIDE, reply=True)
    if TCP in back:
        back[TCP].flags = "SA"
    result = world.send(WAN, back)
    assert described(result.frame) == described(routed(back, DMZ, dst=HOST))
    session = world.session()
    assert session.flags & SessionFlag.NAT
    assert (session.forward.packets, session.reverse.packets) == (1, 1)


def test_in_from_the_zone_alone(world: World) -> None:
    world.apply(rules(*INNER))
    before = world.rule_counts()[NameKind.NPTV6, "net"]
    ask = tcp(THERE, OUTSIDE)
    result = world.send(WAN, ask)
    assert described(result.frame) == described(routed(ask, DMZ, dst=HOST))
    assert world.session().dnat_rule == world.ids.rules[NameKind.NPTV6, "net"]
    after = world.rule_counts()[NameKind.NPTV6, "net"]
    assert after == Count(before.packets + 1, before.octets + len(ask))
    assert world.send(LAN, tcp(LAN.host6, OUTSIDE)).ip.dst == OUTSIDE, "not from that zone"
    assert world.send(DMZ, tcp(HOST, LAN.host6)).ip.src == HOST, "not into that zone"


def test_static_nat_comes_first(world: World) -> None:
    static = StaticNat("one", "wan", ip_network("2001:db8:f::7/128"), ip_network(f"{HOST}/128"))
    world.apply(rules(*INNER, static_nat=(static,)))
    assert world.send(DMZ, tcp(HOST, THERE)).ip.src == "2001:db8:f::7"


def test_later_fragments_and_quotes(world: World) -> None:
    world.apply(rules(*INNER))
    whole = bytes(udp(HOST, THERE, octets=64))[40:]
    header = IPv6(src=HOST, dst=THERE)
    first = header / IPv6ExtHdrFragment(id=7, m=1, nh=17) / Raw(whole[:40])
    last = header / IPv6ExtHdrFragment(id=7, offset=5, nh=17) / Raw(whole[40:])
    for piece in (first, last):
        result = world.send(DMZ, piece)
        wanted = bytearray(bytes(WAN.sent(piece)))
        wanted[21] -= 1
        wanted[22:38] = IPv6(src=OUTSIDE).build()[8:24]
        assert result.frame.hex() == bytes(wanted).hex(), "the checksum is as it was"
    quoted = IPv6(bytes(result.frame)[14:])
    error = IPv6(src="2001:db8:a::5", dst=OUTSIDE) / ICMPv6PacketTooBig(mtu=1280) / Raw(bytes(quoted))
    found = world.send(WAN, error)
    assert found.reason is Reason.FORWARDED
    assert (found.ip.dst, found.ip[ICMPv6PacketTooBig].payload.src) == (HOST, HOST)
    assert_sound(found.frame)


def test_sessions_are_found_by_what_arrives(world: World) -> None:
    world.apply(rules(*INNER))
    packet = tcp(HOST, THERE)
    world.send(DMZ, packet)
    assert world.session().flow == flow_of(packet, world.zone("dmz"))


def test_hairpin(world: World) -> None:
    """RFC 6296, 4.3: a host reaches its neighbour by the address that the world knows it by, and is known so itself."""
    pair = tuple(map(ip_network, INNER))
    both = tuple(Nptv6(name, zone, pair[1], pair[0]) for name, zone in (("net", "wan"), ("loop", "dmz")))
    world.apply(Ruleset(zones=zones(), policies=OPEN, nptv6=both))
    neighbour = str(ip_network(INNER[0])[0x77])
    ask = tcp(neighbour, OUTSIDE)
    there = world.send(DMZ, ask)
    assert (there.action, there.reason) == (XdpAction.REDIRECT, Reason.FORWARDED)
    assert_sound(there.frame)
    assert (there.ip.src, there.ip.dst) == ("2001:db8:77:0:ff8b::77", HOST)
    assert checksum(there.ip) == checksum(ask)
    back = changed(tcp(HOST, there.ip.src, 40000, "SA"), sport=80)
    result = world.send(DMZ, back)
    assert result.reason is Reason.TO_KERNEL, "nobody knows the client's MAC"
    assert described(result.frame) == described(DMZ.frame(changed(back, src=OUTSIDE, dst=neighbour)))
    rules_of = world.ids.rules
    session = world.session()
    assert (session.dnat_rule, session.snat_rule) == (rules_of[NameKind.NPTV6, "loop"],) * 2
