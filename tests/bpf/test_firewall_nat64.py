"""NAT64: packets of both directions and ICMP errors, against what scapy makes of RFC 7915."""

from __future__ import annotations

import subprocess
import time
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from firewall_kit import DMZ, FAR, LAN, NARROW, NARROW_MTU, SEED, VLAN, WAN, Port, Result, World, zones
from firewall_packets import assert_sound, described, flow_of, partial
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_LSRR, IPOption_NOP, IPOption_Router_Alert
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6PacketTooBig,
    ICMPv6ParamProblem,
    ICMPv6TimeExceeded,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrRouting,
)
from scapy.packet import Packet, Raw

from ipsec_gw.firewall.collector import Collector
from ipsec_gw.model.firewall import Action, Nat64, Policy, Pool, Ruleset, Sessions, SourceNat, Translation
from xdp_steer import flow_layout as fl
from xdp_steer.flow_layout import NameKind, SessionFlag
from xdp_steer.prog_run import TcAction, XdpAction
from xdp_steer.reasons import Reason

pytestmark = pytest.mark.root

OPEN = (Policy("all", Action.PERMIT),)
PREFIX = ip_network("2001:db8:6464::/96")
POOL = Pool("four", IPv4Address("192.0.2.64"), IPv4Address("192.0.2.64"), (2000, 65000))
SENT_FROM = "192.0.2.64"
CLIENT, SERVER = LAN.host6, WAN.host4
TOS = 0xB9
"""DSCP and ECN."""


def rules(*nat64: Nat64, **rest: object) -> Ruleset:
    return Ruleset(zones=zones(), policies=OPEN, pools=(POOL,), nat64=nat64 or (RULE,), **rest)


RULE = Nat64("n", PREFIX, pool="four")
RULES = rules()


def behind(address: str, prefix: str = "2001:db8:6464::") -> str:
    return str(IPv6Address(int(ip_address(prefix)) + int(IPv4Address(address))))


THERE = behind(SERVER)


@pytest.fixture
def world(arena: World) -> World:
    arena.clear()
    arena.apply(RULES)
    return arena


def six(src: str = CLIENT, dst: str = THERE, hops: int = 64) -> IPv6:
    return IPv6(src=src, dst=dst, hlim=hops, tc=TOS)


def four(src: str = SENT_FROM, dst: str = SERVER, ttl: int = 63, **fields: object) -> IP:
    return IP(**{"src": src, "dst": dst, "ttl": ttl, "tos": TOS, "id": 0} | fields)


def leaves(world: World, port: Port, packet: Packet, out: Port, wanted: Packet) -> Result:
    """At once, and exactly so. Without DF the identification is anything."""
    result = world.send(port, packet)
    assert (result.action, result.reason) == (XdpAction.REDIRECT, Reason.FORWARDED)
    assert_sound(result.frame)
    same(result, wanted)
    assert described(result.frame) == described(out.sent(wanted))
    return result


def same(result: Result, wanted: Packet) -> None:
    """Let the wanted packet have the identification of the real one, where that is free."""
    if IP in wanted and not wanted[IP].flags & "DF" and wanted[IP].id == 0:
        wanted[IP].id = result.ip.id


def opened(world: World, packet: Packet | None = None, port: Port = LAN) -> Result:
    result = world.send(port, packet or six() / UDP(sport=4000, dport=53) / Raw(b"ask"))
    assert result.reason is Reason.FORWARDED
    return result


UDP6 = UDP(sport=4000, dport=53)
BACK = UDP(sport=53, dport=4000)


@pytest.mark.parametrize("port", [LAN, VLAN, DMZ], ids=lambda port: port.name)
def test_udp_there_and_back(world: World, port: Port) -> None:
    host = port.host6
    leaves(world, port, six(host) / UDP6 / Raw(b"ask"), WAN, four() / UDP6 / Raw(b"ask"))
    answer = four(SERVER, SENT_FROM, 60, id=77, flags="DF") / BACK / Raw(b"answer!")
    leaves(world, WAN, answer, port, six(THERE, host, 59) / BACK / Raw(b"answer!"))
    session = world.session()
    assert session.flags & SessionFlag.NAT64
    assert session.flow == flow_of(six(host) / UDP6, world.zone({LAN: "lan", VLAN: "vlan", DMZ: "dmz"}[port]))
    assert (str(session.translated.source), str(session.translated.destination)) == (SENT_FROM, SERVER)
    assert (session.forward.packets, session.reverse.packets) == (1, 1)
    assert world.rule_counts()[NameKind.NAT64, "n"].packets >= 1


def test_tcp_is_followed(world: World) -> None:
    """A session is established, and a lower MSS holds both ways."""
    world.apply(Ruleset(zones=zones(lan={"tcp_mss": 1200}), policies=OPEN, pools=(POOL,), nat64=(RULE,)))

    def segment(flags: str, mss: int = 0, *, reply: bool = False) -> TCP:
        ports = (80, 4000) if reply else (4000, 80)
        return TCP(sport=ports[0], dport=ports[1], flags=flags, seq=9, ack=8, options=[("MSS", mss)] if mss else [])

    leaves(world, LAN, six() / segment("S", 1440), WAN, four() / segment("S", 1200))
    answer = segment("SA", 1460, reply=True)
    leaves(world, WAN, four(SERVER, SENT_FROM) / answer, LAN, six(THERE, CLIENT, 62) / segment("SA", 1200, reply=True))
    leaves(world, LAN, six() / segment("A"), WAN, four() / segment("A"))
    assert world.session().state is fl.State.ESTABLISHED


def test_echo_there_and_back(world: World) -> None:
    """Two pings of the same identifier: the second one gets another. The keys of both directions differ in protocol."""
    for port in (LAN, VLAN):
        host = port.host6
        ask = six(host) / ICMPv6EchoRequest(id=7700, seq=3, data=b"ping")
        hashed = fl.flow_hash(flow_of(ask, world.zone("vlan")).leaf(), SEED)
        chosen = 7700 if port is LAN else 2000 + hashed % 63001
        leaves(world, port, ask, WAN, four() / ICMP(type=8, id=chosen, seq=3) / Raw(b"ping"))
        answer = four(SERVER, SENT_FROM) / ICMP(type=0, id=chosen, seq=3) / Raw(b"ping")
        leaves(world, WAN, answer, port, six(THERE, host, 62) / ICMPv6EchoReply(id=7700, seq=3, data=b"ping"))
    assert len(world.sessions()) == 2
    assert all(session.reverse.packets == 1 for session in world.sessions())


@pytest.mark.parametrize(
    ("prefix", "address"),
    [
        ("2001:db9::/32", "2001:db9:c000:209::"),
        ("2001:db8:100::/40", "2001:db8:1c0:2:9::"),
        ("2001:db8:122::/48", "2001:db8:122:c000:2:900::"),
        ("2001:db8:122:300::/56", "2001:db8:122:3c0:0:209::"),
        ("2001:db8:122:344::/64", "2001:db8:122:344:c0:2:900:0"),
        ("2001:db8:122:344::/96", "2001:db8:122:344::c000:209"),
    ],
    ids=lambda value: value.rpartition("/")[2] if "/" in value else "",
)
def test_prefixes_of_every_length(world: World, prefix: str, address: str) -> None:
    """The places of RFC 6052, 2.4; a router's address is put there too."""
    world.apply(rules(Nat64("n", ip_network(prefix), pool="four")))
    leaves(world, LAN, six(dst=address) / UDP6, WAN, four() / UDP6)
    leaves(world, WAN, four(SERVER, SENT_FROM) / BACK, LAN, six(address, CLIENT, 62) / BACK)
    error = IP(src="192.0.2.5", dst=SENT_FROM, ttl=64) / ICMP(type=11) / Raw(bytes(four() / UDP6))
    made = bytearray(ip_address(address).packed)
    bits = ip_network(prefix).prefixlen
    places = [place for place in range(bits // 8, 16) if place != 8 or bits == 96][:4]
    made[places[3]] = 5
    assert world.send(WAN, error).ip.src == str(IPv6Address(bytes(made)))


def test_by_the_address_of_the_interface(world: World) -> None:
    world.apply(rules(Nat64("n", PREFIX)))
    leaves(world, LAN, six() / UDP6, WAN, four(WAN.address4) / UDP6)
    result = world.send(LAN, six(dst=behind(DMZ.host4)) / UDP6)
    assert result.ip.src == DMZ.address4
    world.apply(rules(Nat64("n", PREFIX)), wan={"address4": None})
    assert world.send(LAN, six(dst=behind(FAR[4])) / UDP6).reason is Reason.NAT_NO_ADDRESS


def test_policies_see_ipv6_sources_and_ipv4_destinations(world: World) -> None:
    wanted = (ip_network(f"{CLIENT}/128"),), (ip_network("192.0.2.9/32"),)
    permit = Policy("only", Action.PERMIT, "lan", "wan", *wanted)
    hide = SourceNat("hide", Translation.INTERFACE, to_zone="wan")
    world.apply(Ruleset(zones=zones(), policies=(permit,), pools=(POOL,), nat64=(RULE,), source_nat=(hide,)))
    leaves(world, LAN, six() / UDP6, WAN, four() / UDP6)
    assert world.send(LAN, six(dst=behind(FAR[4])) / UDP6).reason is Reason.DEFAULT_DENY
    assert world.send(LAN, six("2001:db8:1::8") / UDP6).reason is Reason.DEFAULT_DENY


@pytest.mark.parametrize("octets", [1232, 1233], ids=["may-be-fragmented", "must-not"])
def test_what_may_be_fragmented(world: World, octets: int) -> None:
    """Up to 1260 bytes of IPv4 no sender of IPv6 can do with less, so routers may fragment (RFC 7915 5.1)."""
    data = Raw(bytes(octets))
    seen = set()
    for _ in range(4):
        flags = "DF" if octets > 1232 else 0
        result = leaves(world, LAN, six() / UDP6 / data, WAN, four(flags=flags) / UDP6 / data)
        seen.add(result.ip.id)
    assert seen == {0} if octets > 1232 else len(seen) > 1


def test_extension_headers_are_left_out(world: World) -> None:
    packet = six() / IPv6ExtHdrDestOpt() / IPv6ExtHdrRouting(segleft=0, addresses=["2001:db8::1"]) / UDP6 / Raw(b"x")
    leaves(world, LAN, packet, WAN, four() / UDP6 / Raw(b"x"))


@pytest.mark.parametrize(
    "options", [IPOption_NOP(), [IPOption_Router_Alert()] * 5, [IPOption_NOP()] * 40], ids=["4", "20", "40"]
)
def test_options_are_left_out(world: World, options: object) -> None:
    """The frame grows by 16 bytes, stays as long as it is, or gets 20 shorter."""
    opened(world)
    answer = four(SERVER, SENT_FROM, options=options) / BACK / Raw(b"answer")
    leaves(world, WAN, answer, LAN, six(THERE, CLIENT, 62) / BACK / Raw(b"answer"))


def test_source_routes(world: World) -> None:
    route = IPv6ExtHdrDestOpt() / IPv6ExtHdrRouting(segleft=1, addresses=["2001:db8::1"])
    packet = six() / route / UDP6
    result = world.send(LAN, packet)
    assert (result.reason, result.action) == (Reason.NAT64_SOURCE_ROUTE, XdpAction.TX)
    error = ICMPv6ParamProblem(code=0, ptr=40 + 8 + 3) / Raw(bytes(packet))
    assert described(result.frame) == described(LAN.sent(IPv6(src=LAN.address6, dst=CLIENT) / error))
    opened(world)
    for pointer, reason in ((4, Reason.NAT64_SOURCE_ROUTE), (8, Reason.FORWARDED)):
        used = IPOption_LSRR(pointer=pointer, routers=["192.0.2.1"])
        packet = four(SERVER, SENT_FROM, options=[IPOption_NOP(), used]) / BACK / Raw(b"answer")
        result = world.send(WAN, packet)
        assert result.reason is reason
        if reason is Reason.NAT64_SOURCE_ROUTE:
            assert (result.ip[ICMP].type, result.ip[ICMP].code) == (3, 5)


@pytest.mark.parametrize("octets", [0, 1, 33, 1400])
def test_udp_without_checksum_gets_one(world: World, octets: int) -> None:
    opened(world)
    answer = four(SERVER, SENT_FROM) / UDP(sport=53, dport=4000, chksum=0) / Raw(bytes(range(256)) * 6)[:1]
    answer[UDP].payload = Raw((bytes(range(256)) * 6)[:octets])
    leaves(world, WAN, answer, LAN, six(THERE, CLIENT, 62) / BACK / answer[UDP].payload)


def test_a_checksum_that_comes_out_as_zero_is_written_as_ones(world: World) -> None:
    """Zero would say that there is none."""
    probe = four() / UDP6 / Raw(b"\0\0")
    data = Raw(IP(bytes(probe))[UDP].chksum.to_bytes(2, "big"))
    result = opened(world, six() / UDP6 / data)
    assert result.ip[UDP].chksum == 0xFFFF


@pytest.mark.parametrize("way", ["out", "back"])
def test_p2_partial_checksums_stay_partial(world: World, way: str) -> None:
    """The kernel finishes them, so the packet is left to it; its filter on the way out finds the session."""
    world.apply(RULES, lan={"partial": True}, wan={"partial": True})
    packet = partial(six() / TCP(sport=4000, dport=80, flags="S"))
    result = world.send(LAN, packet)
    wanted = partial(four(ttl=64) / TCP(sport=4000, dport=80, flags="S"))
    if way == "out":
        assert (result.action, result.reason) == (XdpAction.PASS, Reason.TO_KERNEL)
        same(result, wanted)
        assert described(result.frame) == described(LAN.frame(wanted))
        assert world.emit(WAN, result.ip, LAN).reason is Reason.EGRESS_SESSION
        return
    answer = partial(four(SERVER, SENT_FROM, 60) / TCP(sport=80, dport=4000, flags="SA"))
    result = world.send(WAN, answer)
    assert (result.action, result.reason) == (XdpAction.PASS, Reason.TO_KERNEL)
    wanted = partial(six(THERE, CLIENT, 60) / TCP(sport=80, dport=4000, flags="SA"))
    assert described(result.frame) == described(WAN.frame(wanted))
    result = world.emit(LAN, result.ip, WAN)
    assert (result.action, result.reason) == (TcAction.UNSPEC, Reason.EGRESS_SESSION)


@pytest.mark.parametrize("octets", [0, 1, 127, 128, 129, 1200])
def test_p2_an_echo_is_summed_to_its_end(world: World, octets: int) -> None:
    """The checksum of ICMPv6 is over addresses, that of ICMP is not."""
    data = (bytes(range(256)) * 6)[:octets]
    leaves(world, LAN, six() / ICMPv6EchoRequest(id=7700, data=data), WAN, four() / ICMP(id=7700) / Raw(data))
    answer = four(SERVER, SENT_FROM) / ICMP(type=0, id=7700) / Raw(data)
    leaves(world, WAN, answer, LAN, six(THERE, CLIENT, 62) / ICMPv6EchoReply(id=7700, data=data))


def test_n2_every_packet_of_a_flow_passes(world: World) -> None:
    for _ in range(5):
        opened(world)
        assert world.send(WAN, four(SERVER, SENT_FROM) / BACK).reason is Reason.FORWARDED
    assert world.session().forward.packets == 5


def test_n2_nothing_stays_of_a_session_that_has_ended(world: World) -> None:
    """Neither of its entries, which are of different families."""
    opened(world)
    assert len(world.entries()) == 2
    collector = Collector(world.table, Sessions(), lambda _: None)
    collector.sweep(time.monotonic_ns())
    assert len(world.entries()) == 2
    world.age(3600)
    collector.sweep(time.monotonic_ns())
    assert world.entries() == {}


# Fragments


def test_fragments_out(world: World) -> None:
    whole = bytes(six() / UDP6 / Raw(bytes(range(200))))[40:]
    wanted = bytes(four() / UDP6 / Raw(bytes(range(200))))[20:]
    pieces = ((0, 96, 1), (96, 160, 1), (160, len(whole), 0))
    for start, stop, more in pieces:
        header = IPv6ExtHdrFragment(id=0xABCD1234, offset=start // 8, m=more, nh=17)
        made = four(id=0x1234, frag=start // 8, flags="MF" if more else 0, proto=17) / Raw(wanted[start:stop])
        packet = six() / header / Raw(whole[start:stop])
        result = world.send(LAN, packet)
        assert result.reason is Reason.FORWARDED
        assert described(result.frame) == described(WAN.sent(made))


def test_fragments_back(world: World) -> None:
    opened(world)
    whole = bytes(four(SERVER, SENT_FROM) / BACK / Raw(bytes(range(200))))[20:]
    wanted = bytes(six(THERE, CLIENT) / BACK / Raw(bytes(range(200))))[40:]
    for start, stop, more in ((0, 96, 1), (96, len(whole), 0)):
        packet = four(SERVER, SENT_FROM, id=0x77, frag=start // 8, flags="MF" if more else 0, proto=17)
        header = IPv6ExtHdrFragment(id=0x77, offset=start // 8, m=more, nh=17)
        result = world.send(WAN, packet / Raw(whole[start:stop]))
        assert result.reason is Reason.FORWARDED
        assert described(result.frame) == described(LAN.sent(six(THERE, CLIENT, 62) / header / Raw(wanted[start:stop])))


def test_icmp_in_fragments_is_dropped(world: World) -> None:
    ask = bytes(six() / ICMPv6EchoRequest(id=5000, data=bytes(100)))[40:]
    for offset, more, data in ((0, 1, ask[:64]), (8, 0, ask[64:])):
        packet = six() / IPv6ExtHdrFragment(id=3, offset=offset, m=more, nh=58) / Raw(data)
        assert world.send(LAN, packet).reason is Reason.NAT64_FRAGMENT
    opened(world, six() / ICMPv6EchoRequest(id=5000))
    answer = bytes(ICMP(type=0, id=5000) / Raw(bytes(100)))
    packet = four(SERVER, SENT_FROM, id=9, flags="MF", proto=1) / Raw(answer[:64])
    assert world.send(WAN, packet).reason is Reason.NAT64_FRAGMENT


def test_an_atomic_fragment_is_whole(world: World) -> None:
    ask = bytes(six() / ICMPv6EchoRequest(id=5000, data=b"ping"))[40:]
    wanted = four(id=3, proto=1) / ICMP(type=8, id=5000) / Raw(b"ping")
    result = world.send(LAN, six() / IPv6ExtHdrFragment(id=3, nh=58) / Raw(ask))
    assert described(result.frame) == described(WAN.sent(wanted))


def test_the_first_fragment_of_udp_without_checksum_is_dropped(world: World) -> None:
    opened(world)
    data = bytes(UDP(sport=53, dport=4000, len=108, chksum=0) / Raw(bytes(56)))
    packet = four(SERVER, SENT_FROM, id=9, flags="MF", proto=17) / Raw(data)
    assert world.send(WAN, packet).reason is Reason.NAT64_CHECKSUM


# Sizes


def test_too_big_for_ipv4(world: World) -> None:
    """The path takes 1280 bytes of IPv4: 1300 of IPv6."""
    there = behind(NARROW[4])
    assert world.send(LAN, six(dst=there) / UDP6 / Raw(bytes(1300 - 48))).reason is Reason.FORWARDED
    packet = six(dst=there) / UDP6 / Raw(bytes(1301 - 48))
    result = world.send(LAN, packet)
    assert (result.reason, result.action) == (Reason.TOO_BIG, XdpAction.TX)
    error = ICMPv6PacketTooBig(mtu=NARROW_MTU + 20) / Raw(bytes(packet)[:1232])
    assert described(result.frame) == described(LAN.sent(IPv6(src=LAN.address6, dst=CLIENT) / error))


@pytest.mark.parametrize("flags", ["DF", 0], ids=["df", "no-df"])
@pytest.mark.parametrize("more", [0, 1], ids=["whole", "first-fragment"])
def test_too_big_for_ipv6(world: World, flags: str | int, more: int) -> None:
    """1500 bytes of IPv6 are 1480 of IPv4, or 1472 in a fragment. XDP cannot fragment, so DF does not matter."""
    opened(world)
    fits = 1480 - 8 * more
    for octets in (fits, fits + 8):
        bits = "MF" if more else flags
        packet = four(SERVER, SENT_FROM, flags=bits, id=5) / BACK / Raw(bytes(octets - 28))
        result = world.send(WAN, packet)
        if octets == fits:
            assert (result.reason, len(result.ip)) == (Reason.FORWARDED, 1500)
            continue
        assert (result.reason, result.action) == (Reason.TOO_BIG, XdpAction.TX)
        error = ICMP(type=3, code=4, nexthopmtu=fits) / Raw(bytes(packet)[:28])
        answer = IP(src=WAN.address4, dst=SERVER, id=0, flags="DF") / error
        assert described(result.frame) == described(WAN.sent(answer))


@pytest.mark.parametrize("ttl", [0, 1])
def test_hops_end_before_translation(world: World, ttl: int) -> None:
    result = world.send(LAN, six(hops=ttl) / UDP6)
    assert (result.reason, result.ip[ICMPv6TimeExceeded].code) == (Reason.TTL_EXPIRED, 0)
    opened(world)
    result = world.send(WAN, four(SERVER, SENT_FROM, ttl) / BACK)
    assert (result.reason, result.ip[ICMP].type) == (Reason.TTL_EXPIRED, 11)


# Errors

ROUTER4, ROUTER6 = "192.0.2.5", "2001:db8:1::5"
ALSO = four(ttl=1) / UDP6 / Raw(b"ask")
"""What the server's side quotes of the client's packet."""
REPLY = six(THERE, CLIENT, 1) / BACK / Raw(b"answer!")
"""What the client's side quotes of the server's packet."""


@pytest.mark.parametrize(
    ("error", "becomes"),
    [
        *((ICMP(type=3, code=code), ICMPv6DestUnreach(code=0)) for code in (0, 1, 5, 6, 7, 8, 11, 12)),
        *((ICMP(type=3, code=code), ICMPv6DestUnreach(code=1)) for code in (9, 10, 13, 15)),
        (ICMP(type=3, code=2), ICMPv6ParamProblem(code=1, ptr=6)),
        (ICMP(type=3, code=3), ICMPv6DestUnreach(code=4)),
        (ICMP(type=3, code=4, nexthopmtu=1400), ICMPv6PacketTooBig(mtu=1420)),
        (ICMP(type=3, code=4, nexthopmtu=1499), ICMPv6PacketTooBig(mtu=1500)),
        (ICMP(type=3, code=4, nexthopmtu=576), ICMPv6PacketTooBig(mtu=1280)),
        (ICMP(type=3, code=4, nexthopmtu=0), ICMPv6PacketTooBig(mtu=1280)),
        *((ICMP(type=11, code=code), ICMPv6TimeExceeded(code=code)) for code in (0, 1)),
        *(
            (ICMP(type=12, code=code, ptr=old), ICMPv6ParamProblem(code=0, ptr=new))
            for code, old, new in (
                (0, 0, 0),
                (0, 1, 1),
                (2, 2, 4),
                (0, 3, 4),
                (0, 8, 7),
                (0, 9, 6),
                (0, 15, 8),
                (0, 16, 24),
            )
        ),
        *((ICMP(type=kind, code=code), None) for kind, code in ((3, 14), (3, 16), (4, 0), (5, 1), (12, 1))),
        *((ICMP(type=12, code=0, ptr=pointer), None) for pointer in (4, 7, 10, 11, 20)),
    ],
    ids=lambda value: str(value.fields) if isinstance(value, Packet) else "never",
)
def test_errors_to_ipv6(world: World, error: ICMP, becomes: Packet | None) -> None:
    opened(world)
    packet = IP(src=ROUTER4, dst=SENT_FROM, ttl=60, tos=TOS) / error / Raw(bytes(ALSO))
    result = world.send(WAN, packet)
    if becomes is None:
        assert (result.reason, result.action) == (Reason.NAT64_PROTOCOL, XdpAction.DROP)
        return
    quoted = bytearray(bytes(six(CLIENT, THERE, 1) / UDP6 / Raw(b"ask")))
    quoted[46:48] = bytes(ALSO)[26:28]  # the quoted checksum stays as it is
    wanted = IPv6(src=behind(ROUTER4), dst=CLIENT, hlim=59, tc=TOS) / becomes / Raw(bytes(quoted))
    assert (result.action, result.reason) == (XdpAction.REDIRECT, Reason.FORWARDED)
    assert_sound(result.frame)
    assert described(result.frame) == described(LAN.sent(wanted))


@pytest.mark.parametrize(
    ("error", "becomes"),
    [
        *(
            (ICMPv6DestUnreach(code=old), ICMP(type=3, code=new))
            for old, new in ((0, 1), (1, 10), (2, 1), (3, 1), (4, 3))
        ),
        (ICMPv6PacketTooBig(mtu=1400), ICMP(type=3, code=4, nexthopmtu=1380)),
        (ICMPv6PacketTooBig(mtu=1280), ICMP(type=3, code=4, nexthopmtu=1260)),
        (ICMPv6PacketTooBig(mtu=100000), ICMP(type=3, code=4, nexthopmtu=1500)),
        (ICMPv6PacketTooBig(mtu=3), ICMP(type=3, code=4, nexthopmtu=68)),
        *((ICMPv6TimeExceeded(code=code), ICMP(type=11, code=code)) for code in (0, 1)),
        (ICMPv6ParamProblem(code=1, ptr=6), ICMP(type=3, code=2)),
        *(
            (ICMPv6ParamProblem(code=0, ptr=old), ICMP(type=12, code=0, ptr=new))
            for old, new in ((0, 0), (1, 1), (4, 2), (5, 2), (6, 9), (7, 8), (8, 12), (23, 12), (24, 16), (39, 16))
        ),
        (ICMPv6DestUnreach(code=5), None),
        (ICMPv6ParamProblem(code=2), None),
        *((ICMPv6ParamProblem(code=0, ptr=pointer), None) for pointer in (2, 3, 40, 0x01000000)),
    ],
    ids=lambda value: str(value.fields) if isinstance(value, Packet) else "never",
)
def test_errors_to_ipv4(world: World, error: Packet, becomes: ICMP | None) -> None:
    """They come from the address that the client has in IPv4, also those of routers on its side."""
    opened(world)
    packet = IPv6(src=ROUTER6, dst=THERE, hlim=60, tc=TOS) / error / Raw(bytes(REPLY))
    result = world.send(LAN, packet)
    if becomes is None:
        assert (result.reason, result.action) == (Reason.NAT64_PROTOCOL, XdpAction.DROP)
        return
    quoted = bytearray(bytes(four(SERVER, SENT_FROM, 1) / BACK / Raw(b"answer!")))
    quoted[26:28] = bytes(REPLY)[46:48]
    wanted = four(ttl=59) / becomes / Raw(bytes(quoted))
    assert (result.action, result.reason) == (XdpAction.REDIRECT, Reason.FORWARDED)
    assert_sound(result.frame)
    same(result, wanted)
    assert described(result.frame) == described(WAN.sent(wanted))


def test_errors_about_echo_and_about_later_fragments(world: World) -> None:
    ask = six() / ICMPv6EchoRequest(id=5000, data=b"ping")
    sent = opened(world, ask)
    error = IP(src=SERVER, dst=SENT_FROM) / ICMP(type=11) / Raw(bytes(sent.ip))
    result = world.send(WAN, error)
    assert (result.ip.src, result.ip.dst) == (THERE, CLIENT)
    inner = IPv6(bytes(result.ip[ICMPv6TimeExceeded].payload))
    assert (inner.src, inner.dst, inner.nh, inner[ICMPv6EchoRequest].id) == (CLIENT, THERE, 58, 5000)
    whole = bytes(six() / UDP6 / Raw(bytes(100)))[40:]
    pieces = [
        six() / IPv6ExtHdrFragment(id=0x12345, offset=start // 8, m=more, nh=17) / Raw(whole[start:stop])
        for start, stop, more in ((0, 64, 1), (64, 108, 0))
    ]
    for piece in pieces:
        sent = opened(world, piece)
    error = IP(src=ROUTER4, dst=SENT_FROM) / ICMP(type=3, code=4, nexthopmtu=1300) / Raw(bytes(sent.ip))
    result = world.send(WAN, error)
    assert result.reason is Reason.FORWARDED
    assert_sound(result.frame)
    inner = IPv6(bytes(result.ip[ICMPv6PacketTooBig].payload))
    assert (inner.src, inner[IPv6ExtHdrFragment].offset, inner[IPv6ExtHdrFragment].id) == (CLIENT, 8, 0x2345)
    # And back: the client's router about a fragment of the server.
    data = bytes(four(SERVER, SENT_FROM) / BACK / Raw(bytes(60)))[20:]
    first = four(SERVER, SENT_FROM, id=0x99, flags="MF", proto=17) / Raw(data[:32])
    last = four(SERVER, SENT_FROM, id=0x99, frag=4, proto=17) / Raw(data[32:])
    for piece in (first, last):
        sent = world.send(WAN, piece)
        assert sent.reason is Reason.FORWARDED
    error = IPv6(src=ROUTER6, dst=THERE) / ICMPv6PacketTooBig(mtu=1300) / Raw(bytes(sent.ip))
    result = world.send(LAN, error)
    assert (result.reason, result.ip[ICMP].nexthopmtu) == (Reason.FORWARDED, 1300 - 28)
    assert_sound(result.frame)
    inner = IP(bytes(result.ip[ICMP].payload))
    assert (inner.src, inner.dst, inner.frag, inner.id) == (SERVER, SENT_FROM, 4, 0x99)


def test_an_error_that_the_kernel_sends_on_is_let_out(world: World) -> None:
    world.apply(RULES, wan={"redirect": False}, lan={"redirect": False})
    world.send(LAN, six() / UDP6 / Raw(b"ask"))
    error = IP(src=ROUTER4, dst=SENT_FROM) / ICMP(type=11) / Raw(bytes(ALSO))
    result = world.send(WAN, error)
    assert result.reason is Reason.TO_KERNEL
    assert world.emit(LAN, result.ip, WAN).reason is Reason.EGRESS_SESSION


# What must not be


@pytest.mark.parametrize(
    ("source", "destination"),
    [
        (CLIENT, behind("224.0.0.1")),
        (CLIENT, behind("255.255.255.255")),
        (CLIENT, behind("127.0.0.1")),
        (CLIENT, behind("0.0.0.0")),
        (CLIENT, behind(WAN.address4)),
        ("fe80::9", THERE),
        (behind("192.0.2.7"), THERE),
    ],
    ids=["multicast", "broadcast", "loopback", "nobody", "this machine", "from the link", "from behind"],
)
def test_addresses_that_are_not_translated(world: World, source: str, destination: str) -> None:
    result = world.send(LAN, six(source, destination) / UDP6)
    assert (result.reason, result.action) == (Reason.NAT64_ADDRESS, XdpAction.DROP)
    assert world.sessions() == []


def test_the_well_known_prefix_is_not_for_private_addresses(world: World) -> None:
    """RFC 6052, 3.1."""
    known = "64:ff9b::"
    world.apply(rules(Nat64("n", ip_network(f"{known}/96"), pool="four")))
    for address in ("10.3.0.9", "192.168.1.1", "203.0.113.9", "100.64.0.1", "172.31.0.1"):
        assert world.send(LAN, six(dst=behind(address, known)) / UDP6).reason is Reason.NAT64_ADDRESS
    subprocess.run(["ip", "route", "add", "8.8.8.8/32", "via", SERVER], check=True)
    try:
        leaves(world, LAN, six(dst=behind("8.8.8.8", known)) / UDP6, WAN, four(dst="8.8.8.8") / UDP6)
    finally:
        subprocess.run(["ip", "route", "del", "8.8.8.8/32", "via", SERVER], check=True)


def test_other_protocols_are_not_translated(world: World) -> None:
    assert world.send(LAN, IPv6(src=CLIENT, dst=THERE, nh=47) / Raw(bytes(20))).reason is Reason.NAT64_PROTOCOL
    opened(world, six() / ICMPv6EchoRequest(id=5000))
    stamp = four(SERVER, SENT_FROM) / ICMP(type=14, id=5000)
    assert world.send(WAN, stamp).reason is Reason.NAT64_PROTOCOL
    assert world.send(LAN, six() / ICMPv6EchoReply(id=6)).reason is Reason.ICMP_UNSOLICITED


def test_from_a_zone_alone(world: World) -> None:
    world.apply(rules(Nat64("n", PREFIX, "dmz", "four")))
    assert world.send(DMZ, six(DMZ.host6) / UDP6).reason is Reason.FORWARDED
    assert IPv6 in world.send(LAN, six(CLIENT, behind(SERVER)) / UDP6).packet


def test_two_clients_do_not_share_a_port(world: World) -> None:
    seen = set()
    for host in (CLIENT, "2001:db8:1::8", "2001:db8:1::7"):
        result = opened(world, six(host) / UDP6)
        seen.add(result.ip[UDP].sport)
    assert len(seen) == 3
