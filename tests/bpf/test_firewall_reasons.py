"""Every reason of the firewall: what becomes of the packet, which counters move, which sessions are made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path

import pytest
from firewall_kit import (
    BLACKHOLE,
    DMZ,
    LAN,
    NARROW,
    NARROW_MTU,
    OFF,
    PROHIBIT,
    SESSION_ENTRIES,
    SILENT,
    UNREACHABLE,
    VLAN,
    WAN,
    WILD,
    Port,
    World,
    zones,
)
from firewall_packets import (
    about,
    answer,
    changed,
    described,
    echo,
    flow_of,
    ip_layer,
    later,
    other,
    partial,
    reset,
    routed,
    tcp,
    udp,
)
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6ND_RS,
    ICMPv6ParamProblem,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrRouting,
)
from scapy.layers.ipsec import AH, ESP
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet, Raw

from ipsec_gw.model.filters import Filter, FilterAction, FilterTerm, Policer
from ipsec_gw.model.firewall import Action, Nat64, Nptv6, Policy, Ruleset, Service, SourceNat, Translation
from ipsec_gw.model.screens import Screens
from xdp_steer.flow_layout import NameKind, SessionFlag, SessionLeaf, Stage, State
from xdp_steer.prog_run import TcAction, XdpAction
from xdp_steer.reasons import Reason
from xdp_steer.screen_layout import Screen
from xdp_steer.sessions import Flow
from xdp_steer.tables import Count

pytestmark = pytest.mark.root

DROP, PASS, TX, REDIRECT = XdpAction.DROP, XdpAction.PASS, XdpAction.TX, XdpAction.REDIRECT
OK, SHOT = TcAction.UNSPEC, TcAction.SHOT

PING = (Service(1, (0x0800, 0x0800)), Service(58, (0x8000, 0x8000)))
SERVICES = (Service(6, (22, 22)), Service(17, (5353, 5353)), *PING)
ALL_ZONES = {name: {"host_inbound": SERVICES} for name in ("lan", "vlan", "wan", "dmz", "off")}
BASE = Ruleset(
    zones=zones(**ALL_ZONES),
    policies=(
        Policy("no telnet", Action.DENY, services=(Service(6, (23, 23)),)),
        Policy("no ident", Action.REJECT, services=(Service(6, (113, 113)), Service(17, (113, 113)))),
        Policy("permit", Action.PERMIT, services=(Service(6, (80, 80)), Service(17, (5000, 5000)), Service(47), *PING)),
        Policy("no ntp", Action.DENY, "self", "wan", services=(Service(17, (123, 123)),)),
    ),
)
RESET = replace(BASE, zones=zones(**{name: fields | {"tcp_reset": True} for name, fields in ALL_ZONES.items()}))
REJECT = replace(BASE, default=Action.REJECT)
NAT = replace(BASE, source_nat=(SourceNat("hide", Translation.INTERFACE, to_zone="wan"),))
NPTV6 = replace(BASE, nptv6=(Nptv6("net", "wan", ip_network("2001:db8:70::/48"), ip_network("2001:db8:1::/48")),))
NAT64 = replace(BASE, nat64=(Nat64("into four", ip_network("2001:db8:6464::/96")),))
MOVED = replace(
    BASE,
    zones=tuple(
        replace(zone, interfaces={"wan": (), "dmz": ("dmz0", "wan0")}.get(zone.name, zone.interfaces))
        for zone in BASE.zones
    ),
)


@dataclass(frozen=True)
class Case:
    """``packet`` comes in by ``port``, or with ``egress`` leaves by it (forwarded from ``came_in_by`` if given).

    ``after`` is the frame afterwards, None for the one that came; of a dropped one it means nothing. ``opens`` is the
    zone that a new session leads to; ``counts`` are the rules that count it.
    """

    name: str
    reason: Reason
    port: Port
    packet: Packet
    action: XdpAction | TcAction
    after: Packet | None = None
    opens: str | None = None
    counts: tuple[str, ...] = ()
    rules: Ruleset = BASE
    changes: dict[str, dict[str, object]] = field(default_factory=dict)
    first: tuple[tuple[Port, Packet], ...] = ()
    prepare: Callable[[World], None] | None = None
    egress: bool = False
    came_in_by: Port | None = None
    without: tuple[str, int] | None = None
    of_session: bool = False
    """It is dropped as a packet of the only session, which counts it."""

    def __str__(self) -> str:
        return f"{self.reason.label}: {self.name}"


def fill(entries: int) -> Callable[[World], None]:
    def work(world: World) -> None:
        for number in range(entries):
            flow = Flow(ip_address("10.99.0.1"), ip_address("10.99.0.2"), number, number, 6, 63)
            assert world.table.insert(flow.leaf(), SessionLeaf(id=1, state=State.OPENING))

    return work


def forwarded() -> Iterator[Case]:
    for port in (LAN, VLAN):
        for v in (4, 6):
            where, here, there = f"v{v} {port.name}", port.host(v), WAN.host(v)
            for name, packet in (
                ("tcp", tcp(here, there)),
                ("udp", udp(here, there)),
                ("udp without payload", udp(here, there, octets=0)),
                ("echo", echo(here, there)),
                ("gre", other(here, there)),
            ):
                after = routed(packet, WAN)
                yield Case(f"{name} {where}", Reason.FORWARDED, port, packet, REDIRECT, after, "wan", ("permit",))
            back = tcp(there, here)
            zone = "lan" if port is LAN else "vlan"
            yield Case(f"into {where}", Reason.FORWARDED, WAN, back, REDIRECT, routed(back, port), zone, ("permit",))
            syn, reply = tcp(here, there), tcp(there, here, 40000, "SA")
            reply[TCP].sport = 80
            after = routed(reply, port)
            yield Case(f"reply {where}", Reason.FORWARDED, WAN, reply, REDIRECT, after, first=((port, syn),))
    tag = Ether(src=LAN.host_mac, dst=LAN.mac) / Dot1Q(vlan=0, prio=5)
    for v in (4, 6):
        packet = udp(LAN.host(v), DMZ.host(v))
        yield Case(
            f"priority tag v{v}", Reason.FORWARDED, LAN, tag / packet, REDIRECT, routed(packet, DMZ), "dmz", ("permit",)
        )
        inside = udp(LAN.host(v), VLAN.host(v))
        yield Case(
            f"untagged to tagged v{v}",
            Reason.FORWARDED,
            LAN,
            inside,
            REDIRECT,
            routed(inside, VLAN),
            "vlan",
            ("permit",),
        )


def to_kernel() -> Iterator[Case]:
    for port in (LAN, VLAN):
        for v in (4, 6):
            where, here, there = f"v{v} {port.name}", port.host(v), WAN.host(v)
            packet = udp(here, SILENT[v])
            yield Case(f"no neighbour {where}", Reason.TO_KERNEL, port, packet, PASS, None, "wan", ("permit",))
            packet = tcp(here, there)
            plain = {"wan": {"redirect": False}}
            yield Case(
                f"no redirect {where}", Reason.TO_KERNEL, port, packet, PASS, None, "wan", ("permit",), changes=plain
            )
            yield Case(
                f"partial checksum {where}",
                Reason.TO_KERNEL,
                port,
                partial(packet),
                PASS,
                None,
                "wan",
                ("permit",),
                changes={"lan": {"partial": True}, "vlan": {"partial": True}},
            )
        packet = udp(port.host(4), NARROW[4], octets=1300)
        yield Case(f"to be fragmented {port.name}", Reason.TO_KERNEL, port, packet, PASS, None, "wan", ("permit",))


def to_self() -> Iterator[Case]:
    for port, zone in ((LAN, "lan"), (VLAN, "vlan")):
        for v in (4, 6):
            where, here, own = f"v{v} {port.name}", port.host(v), port.own(v)
            for name, packet in (("ssh", tcp(here, own, 22)), ("echo", echo(here, own))):
                yield Case(f"{name} {where}", Reason.HOST, port, packet, PASS, None, "self", (zone,))
            group = udp(here, {4: "224.0.0.251", 6: "ff02::fb"}[v], 5353, ttl=1)
            yield Case(f"multicast {where}", Reason.HOST, port, group, PASS, None, None, (zone,))
            layer = ip_layer(v, src=here, dst=own)
            for name, packet in (
                ("ike", layer / UDP(sport=500, dport=500) / Raw(bytes(28))),
                ("nat-t", layer / UDP(sport=4500, dport=4500) / Raw(bytes(28))),
                ("esp", layer / ESP(spi=77, seq=1, data=bytes(60))),
                ("ah", layer / AH(spi=77, seq=1)),
            ):
                yield Case(f"{name} {where}", Reason.HOST_IKE, port, packet, PASS)
            tunnel = ip_layer(v, src=own, dst=WAN.host(v)) / ESP(spi=5, seq=1, data=bytes(60))
            yield Case(f"error about esp {where}", Reason.HOST_IKE, port, about(tunnel, WAN.host(v), own), PASS)
            yield Case(f"later fragment {where}", Reason.LOCAL_FRAGMENT, port, later(here, own), PASS)
        here, own = port.host6, port.own(6)
        solicit = ICMPv6ND_NS(tgt=own)
        ndp = (
            ("unicast", own, solicit),
            ("multicast", "ff02::1:ff00:1", solicit),
            ("router", "ff02::2", ICMPv6ND_RS()),
        )
        for name, destination, message in ndp:
            packet = IPv6(src=here, dst=destination, hlim=255) / message
            yield Case(f"{name} {port.name}", Reason.NDP, port, packet, PASS)


def refused_at_the_door() -> Iterator[Case]:
    for v in (4, 6):
        yield Case(f"no such port v{v}", Reason.NO_ZONE, WILD, tcp(WILD.host(v), WAN.host(v)), DROP)
        tagged = Ether(src=LAN.host_mac, dst=LAN.mac) / Dot1Q(vlan=7) / tcp(LAN.host(v), WAN.host(v))
        yield Case(f"no such vlan v{v}", Reason.NO_ZONE, LAN, tagged, DROP)
    for port in (LAN, VLAN):
        for name, packet in malformed(port):
            yield Case(f"{name} {port.name}", Reason.MALFORMED, port, packet, DROP)


def cut(frame: Packet, octets: int) -> Packet:
    """A frame without its last octets."""
    return Ether(bytes(frame)[:-octets])


def malformed(port: Port) -> Iterator[tuple[str, Packet]]:
    four = {"src": port.host4, "dst": WAN.host4}
    six = {"src": port.host6, "dst": WAN.host6}
    yield "version 5", IP(version=5, **four) / UDP()
    yield "header of 16 bytes", IP(ihl=4, **four) / UDP()
    yield "header beyond the frame", IP(ihl=15, **four) / UDP()
    yield "length beyond the frame", IP(len=60, **four) / UDP()
    yield "length less than the header", IP(len=19, **four) / UDP()
    yield "half a header", cut(port.frame(IP(**four)), 8)
    yield "fragment longer than the frame", IP(frag=2, len=60, proto=17, **four) / Raw(bytes(8))
    yield "tcp of 19 bytes", IP(proto=6, **four) / Raw(bytes(TCP())[:19])
    yield "udp of 7 bytes", IP(proto=17, **four) / Raw(bytes(7))
    yield "icmp of 7 bytes", IP(proto=1, **four) / Raw(bytes(7))
    yield "udp behind the ip length", IP(len=24, **four) / UDP() / Raw(bytes(30))
    yield "error about nothing", IP(**four) / ICMP(type=3) / Raw(bytes(10))
    yield "error about ports cut off", IP(**four) / ICMP(type=3) / Raw(bytes(IP() / UDP())[:23])
    yield "error about version 6", IP(**four) / ICMP(type=3) / Raw(bytes(IPv6() / UDP()))
    yield "v6 length beyond the frame", IPv6(plen=60, **six) / UDP()
    yield "v6 half a header", cut(port.frame(IPv6(**six)), 10)
    yield "v6 tcp of 19 bytes", IPv6(nh=6, **six) / Raw(bytes(TCP())[:19])
    yield "v6 udp behind the ip length", IPv6(plen=7, **six) / UDP()
    chain = IPv6(**six)
    for _ in range(7):
        chain = chain / IPv6ExtHdrDestOpt()
    yield "seven extensions", chain / UDP()
    yield "extension cut off", IPv6(nh=60, **six) / Raw(b"\x11")
    yield "extension beyond the frame", IPv6(**six) / IPv6ExtHdrDestOpt(nh=17, len=255)
    yield "v6 error about nothing", IPv6(**six) / ICMPv6DestUnreach() / Raw(bytes(20))
    inner = bytes(IPv6(**six) / IPv6ExtHdrDestOpt() / UDP())
    yield "v6 error about ports cut off", IPv6(**six) / ICMPv6DestUnreach() / Raw(inner[:47])
    yield "mapped source", IPv6(src="::ffff:10.1.0.9", dst=WAN.host6) / UDP(dport=5000)
    yield "mapped destination", IPv6(src=port.host6, dst="::ffff:192.0.2.9") / UDP(dport=5000)


def without_a_session() -> Iterator[Case]:
    for port in (LAN, VLAN):
        for v in (4, 6):
            where, here, there = f"v{v} {port.name}", port.host(v), WAN.host(v)
            yield Case(f"any {where}", Reason.FRAGMENT_UNKNOWN, port, later(here, there), DROP)
            for flags in ("A", "SA", "FA", "PA", "R", "RA", "", "SF", "SR"):
                packet = tcp(here, there, flags=flags, ack=4000)
                yield Case(f"flags {flags} {where}", Reason.TCP_NOT_SYN, port, packet, DROP)
                reason, after = Reason.TCP_NOT_SYN, reset(packet, port)
                action = DROP if "R" in flags else TX
                yield Case(f"reset of {flags} {where}", reason, port, packet, action, after, rules=RESET)
            unasked = echo(here, there, reply=True)
            yield Case(f"echo reply {where}", Reason.ICMP_UNSOLICITED, port, unasked, DROP)
            lost = about(tcp(there, here), WAN.host(v), here)
            yield Case(f"any {where}", Reason.ICMP_NO_SESSION, port, lost, DROP)
            own = about(tcp(port.own(v), there), there, port.own(v))
            yield Case(f"to this machine {where}", Reason.ICMP_NO_SESSION, port, own, DROP)
        for source in ("224.0.0.9", "255.255.255.255", "127.0.0.1", "127.200.0.1", "0.0.0.0"):
            yield Case(f"{source} {port.name}", Reason.MARTIAN_SOURCE, port, tcp(source, WAN.host4), DROP)
        for source in ("ff02::1", "ff0e:db8::1", "::1", "::"):
            yield Case(f"{source} {port.name}", Reason.MARTIAN_SOURCE, port, udp(source, WAN.host6), DROP)
        stamp = IP(src=port.host4, dst=WAN.host4) / ICMP(type=14, id=1)
        yield Case(f"timestamp reply {port.name}", Reason.ICMP_UNSOLICITED, port, stamp, DROP)
        hop = IPv6(src=port.host6, dst=port.own(6), hlim=254)
        yield Case(f"from afar {port.name}", Reason.ICMP_UNSOLICITED, port, hop / ICMPv6ND_NS(tgt=port.own(6)), DROP)
        yield Case(f"router {port.name}", Reason.ICMP_UNSOLICITED, port, hop / ICMPv6ND_RA(), DROP)


def routes() -> Iterator[Case]:
    for port in (LAN, VLAN):
        for v in (4, 6):
            where, here = f"v{v} {port.name}", port.host(v)
            yield Case(f"any {where}", Reason.ROUTE_BLACKHOLE, port, tcp(here, BLACKHOLE[v]), DROP)
            for name, target, kind in (
                ("unreachable", UNREACHABLE[v], "host"),
                ("prohibit", PROHIBIT[v], "prohibited"),
            ):
                packet = tcp(here, target)
                after = answer(packet, port, port.own(v), kind)
                yield Case(f"{name} {where}", Reason.ROUTE_UNREACHABLE, port, packet, TX, after)
            yield Case(f"any {where}", Reason.NO_EGRESS_ZONE, port, tcp(here, WILD.host(v)), DROP)
            packet = tcp(here, WAN.host(v), ttl=1)
            after = answer(packet, port, port.own(v), "ttl")
            yield Case(f"new {where}", Reason.TTL_EXPIRED, port, packet, TX, after, "wan", ("permit",))
            packet = udp(here, NARROW[v], octets=1300)
            if v == 4:
                packet.flags = "DF"
            after = answer(packet, port, port.own(v), "big", NARROW_MTU)
            yield Case(f"new {where}", Reason.TOO_BIG, port, packet, TX, after, "wan", ("permit",))
            packet = tcp(here, WAN.host(v))
            yield Case(
                f"any {where}",
                Reason.ZONE_CHANGED,
                port,
                packet,
                DROP,
                first=((port, packet),),
                prepare=lambda world: world.apply(MOVED),
            )
    for v in (4, 6):
        yield Case(f"v{v}", Reason.ROUTE_UNSUPPORTED, OFF, tcp(OFF.host(v), WAN.host(v)), DROP)


def policies() -> Iterator[Case]:
    for port in (LAN, VLAN):
        for v in (4, 6):
            where, here, there = f"v{v} {port.name}", port.host(v), WAN.host(v)
            yield Case(f"any {where}", Reason.POLICY_DENY, port, tcp(here, there, 23), DROP, counts=("no telnet",))
            ident, ask = tcp(here, there, 113), udp(here, there, 113)
            refused = ("no ident",)
            yield Case(f"tcp {where}", Reason.POLICY_REJECT, port, ident, TX, reset(ident, port), counts=refused)
            after = answer(ask, port, there, "prohibited")
            yield Case(f"udp {where}", Reason.POLICY_REJECT, port, ask, TX, after, counts=refused)
            yield Case(f"any {where}", Reason.DEFAULT_DENY, port, tcp(here, there, 81), DROP)
            yield Case(f"to this machine {where}", Reason.DEFAULT_DENY, port, tcp(here, port.own(v), 81), DROP)
            unknown = udp(here, there, 81)
            after = answer(unknown, port, there, "prohibited")
            yield Case(f"reject {where}", Reason.DEFAULT_DENY, port, unknown, TX, after, rules=REJECT)
            ssh = tcp(here, there, 81)
            yield Case(f"reset {where}", Reason.DEFAULT_DENY, port, ssh, TX, reset(ssh, port), rules=REJECT)
            group = udp(here, {4: "224.0.0.9", 6: "ff02::9"}[v], 520)
            yield Case(f"multicast {where}", Reason.DEFAULT_DENY, port, group, DROP, rules=REJECT)


def full_and_closed() -> Iterator[Case]:
    for port in (LAN, VLAN):
        for v in (4, 6):
            where, here, there = f"v{v} {port.name}", port.host(v), WAN.host(v)
            neighbour = str(ip_address(here) + 1)
            taken = ((port, other(neighbour, there)),)
            yield Case(f"gre {where}", Reason.NAT_EXHAUSTED, port, other(here, there), DROP, rules=NAT, first=taken)
            bare: dict[str, dict[str, object]] = {"wan": {"address4": None, "address6": None}}
            yield Case(f"any {where}", Reason.NAT_NO_ADDRESS, port, tcp(here, there), DROP, rules=NAT, changes=bare)
            packet = tcp(here, there)
            for left in (0, 1):
                prepare = fill(SESSION_ENTRIES - left)
                yield Case(f"{left} left {where}", Reason.SESSIONS_FULL, port, packet, DROP, prepare=prepare)
            first = ((port, packet), (port, tcp(here, there, flags="R")))
            ack = tcp(here, there, flags="A")
            yield Case(f"any {where}", Reason.SESSION_CLOSED, port, ack, DROP, first=first)


def unmappable() -> Iterator[Case]:
    """NPTv6: in with a destination (permitted by nobody), and out with a source."""
    name = Reason.NPTV6_UNMAPPABLE
    packet = tcp(WAN.host6, "2001:db8:70:ffff::9")
    after = answer(packet, WAN, WAN.own(6), "destination")
    yield Case("destination", name, WAN, packet, TX, after, rules=NPTV6)
    packet = udp("2001:db8:1:ffff::9", WAN.host6)
    yield Case("source", name, LAN, packet, TX, answer(packet, LAN, LAN.own(6), "source"), rules=NPTV6)


OF_OTHER_TESTS = {Stage.FILTER, Stage.HOST_FILTER, Stage.COOKIE, Stage.TUNNEL_NAT, Stage.TRANSLATE, Stage.TRANSLATED}
"""test_filters.py, test_syn_cookies.py, test_tunnel_nat.py."""
OF_NAT64 = {Stage.NAT64_TO_IPV4, Stage.NAT64_TO_IPV6, Stage.NAT64_ERROR}
"""Their cases are in :func:`not_for_nat64`."""


def behind(address: str) -> str:
    return str(IPv6Address("2001:db8:6464::") + int(IPv4Address(address)))


def not_for_nat64() -> Iterator[Case]:
    here, there, own = LAN.host6, behind(WAN.host4), WAN.own(4)
    for name, address in (("multicast", "224.0.0.9"), ("own", own), ("loopback", "127.0.0.1")):
        yield Case(name, Reason.NAT64_ADDRESS, LAN, udp(here, behind(address)), DROP, rules=NAT64)
    yield Case("gre", Reason.NAT64_PROTOCOL, LAN, other(here, there), DROP, rules=NAT64)
    ping = ((LAN, echo(here, there)),)
    piece = IPv6(src=here, dst=there) / IPv6ExtHdrFragment(m=1, nh=58) / Raw(bytes(echo(here, there))[40:])
    yield Case("out", Reason.NAT64_FRAGMENT, LAN, piece, DROP, rules=NAT64, first=ping, of_session=True)
    piece = IP(src=WAN.host4, dst=own, flags="MF") / ICMP(type=0, id=7700) / Raw(bytes(8))
    yield Case("back", Reason.NAT64_FRAGMENT, WAN, piece, DROP, rules=NAT64, first=ping, of_session=True)
    asked = ((LAN, udp(here, there)),)
    answer = UDP(sport=5000, dport=40000, chksum=0) / Raw(bytes(16))
    piece = IP(src=WAN.host4, dst=own, flags="MF") / answer
    yield Case("first fragment", Reason.NAT64_CHECKSUM, WAN, piece, DROP, rules=NAT64, first=asked, of_session=True)
    routed_on = (
        IPv6(src=here, dst=there) / IPv6ExtHdrRouting(segleft=1, addresses=["2001:db8::1"]) / udp(here, there)[UDP]
    )
    after = LAN.sent(IPv6(src=LAN.own(6), dst=here) / ICMPv6ParamProblem(code=0, ptr=43) / Raw(bytes(routed_on)))
    name = Reason.NAT64_SOURCE_ROUTE
    yield Case("out", name, LAN, routed_on, TX, after, rules=NAT64, first=asked, of_session=True)
    stages = {
        Stage.NAT64_TO_IPV4: (LAN, udp(here, there)),
        Stage.NAT64_TO_IPV6: (WAN, IP(src=WAN.host4, dst=own) / answer),
    }
    for stage, (port, packet) in stages.items():
        name, without = stage.name.lower(), ("stages", stage)
        yield Case(
            name, Reason.NO_STAGE, port, packet, DROP, rules=NAT64, first=asked, without=without, of_session=True
        )
    about_it = (
        IP(src=WAN.host4, dst=own) / ICMP(type=11) / Raw(bytes(IP(src=own, dst=WAN.host4) / udp(here, there)[UDP]))
    )
    without = ("stages", Stage.NAT64_ERROR)
    yield Case("nat64_error", Reason.NO_STAGE, WAN, about_it, DROP, rules=NAT64, first=asked, without=without)


def no_stage() -> Iterator[Case]:
    for v in (4, 6):
        here, there = LAN.host(v), WAN.host(v)
        screened = {name: fields | {"screen": "some"} for name, fields in ALL_ZONES.items()}
        some = Screens("some", land=True, port_scan=1, sessions_source=1)
        rules = replace(BASE, zones=zones(**screened), screens=(some,))
        packets = {
            Stage.FLOW: tcp(here, there),
            Stage.NEW: tcp(here, there),
            Stage.POLICY: udp(here, {4: "224.0.0.251", 6: "ff02::fb"}[v], 5353),
            Stage.CREATE: tcp(here, there),
            Stage.FORWARD: tcp(here, LAN.own(v), 22),
            Stage.ICMP_ERROR: about(tcp(there, here), there, here),
            Stage.ANSWER: tcp(here, there, 113),
            Stage.FRAGMENT: later(here, there),
            Stage.SCREEN: tcp(here, here),
            Stage.SCREEN_NEW: tcp(here, there),
            Stage.SESSION_LIMIT: tcp(here, there),
        }
        assert packets.keys() == set(Stage) - OF_NAT64 - OF_OTHER_TESTS
        for stage, packet in packets.items():
            name, without = f"{stage.name.lower()} v{v}", ("stages", stage)
            opens, counts = ("self", ("lan",)) if stage is Stage.FORWARD else (None, ())
            if stage is Stage.ANSWER:
                counts = ("no ident",)
            needed = rules if stage in {Stage.SCREEN, Stage.SCREEN_NEW, Stage.SESSION_LIMIT} else BASE
            yield Case(name, Reason.NO_STAGE, LAN, packet, DROP, None, opens, counts, needed, without=without)
        own = udp(WAN.own(v), there)
        yield Case(f"egress v{v}", Reason.NO_STAGE, WAN, own, SHOT, egress=True, without=("egress_stages", 0))


def egress() -> Iterator[Case]:
    for port, zone in ((WAN, "wan"), (VLAN, "vlan")):
        for v in (4, 6):
            where, own, there = f"v{v} {port.name}", port.own(v), port.host(v)
            name = Reason.EGRESS_SESSION
            ask, reply = tcp(there, own, 22), tcp(own, there, 40000, "SA")
            reply[TCP].sport = 22
            yield Case(f"of this machine {where}", name, port, reply, OK, egress=True, first=((port, ask),))
            packet = udp(DMZ.host(v), there)
            passed = {zone: {"redirect": False}}
            yield Case(
                f"forwarded {where}",
                name,
                port,
                changed(packet, lower_ttl=True),
                OK,
                egress=True,
                came_in_by=DMZ,
                first=((DMZ, packet),),
                changes=passed,
            )
            yield Case(f"udp {where}", Reason.EGRESS_NEW, port, udp(own, there), OK, None, zone, egress=True)
            yield Case(f"tcp {where}", Reason.EGRESS_NEW, port, tcp(own, there, 22), OK, None, zone, egress=True)
            layer = ip_layer(v, src=own, dst=there)
            lost = about(udp(there, own), own, there)
            for what, exempt in (
                ("ike", layer / UDP(sport=500, dport=500) / Raw(bytes(28))),
                ("ah", layer / AH(spi=7, seq=1)),
                ("multicast", udp(own, {4: "224.0.0.251", 6: "ff02::fb"}[v], 5353)),
                ("reset", tcp(own, there, flags="RA")),
                ("echo reply", echo(own, there, reply=True)),
                ("icmp error", lost),
            ):
                yield Case(f"{what} {where}", Reason.EGRESS_EXEMPT, port, exempt, OK, egress=True)
            stray = udp(DMZ.host(v), there)
            name = Reason.EGRESS_UNPOLICED
            for what, packet in (
                ("udp", stray),
                ("later fragment", later(DMZ.host(v), there)),
                ("icmp error", about(udp(there, DMZ.host(v)), DMZ.host(v), there)),
            ):
                yield Case(f"{what} {where}", name, port, packet, SHOT, egress=True, came_in_by=DMZ)
            yield Case(
                f"any {where}",
                Reason.EGRESS_FULL,
                port,
                udp(own, there),
                SHOT,
                egress=True,
                prepare=fill(SESSION_ENTRIES - 1),
            )
    for v in (4, 6):
        ntp = udp(WAN.own(v), WAN.host(v), 123)
        yield Case(f"any v{v}", Reason.EGRESS_DENY, WAN, ntp, SHOT, counts=("no ntp",), egress=True)
    packet = IPv6(src=WAN.own(6), dst=WAN.host6, hlim=255) / ICMPv6ND_NS(tgt=WAN.host6)
    yield Case("ndp", Reason.EGRESS_EXEMPT, WAN, packet, OK, egress=True)


def filtering(action: FilterAction, where: Filter, **term: str) -> Ruleset:
    """A packet has more than the burst of the policer."""
    made = FilterTerm("edge/udp", "edge", action, services=(Service(17),), **term)
    return replace(BASE, filters=(where,), filter_terms=(made,), policers=(Policer("few", 64, 40),))


def filtered() -> Iterator[Case]:
    """test_filters.py has the host filter, test_policers.py has colours."""
    arriving, leaving = Filter("edge", input=("lan0", "lan0.100")), Filter("edge", output=("wan0", "lan0.100"))
    discard, reject = (filtering(action, arriving) for action in (FilterAction.DISCARD, FilterAction.REJECT))
    police = filtering(FilterAction.ACCEPT, arriving, policer="few")
    for port in (LAN, VLAN):
        for v in (4, 6):
            packet, name, term = udp(port.host(v), WAN.host(v)), f"udp v{v} {port.name}", "edge/udp"
            yield Case(name, Reason.FILTER_DISCARD, port, packet, DROP, rules=discard, counts=(term,))
            back = answer(packet, port, port.own(v), "prohibited")
            yield Case(name, Reason.FILTER_REJECT, port, packet, TX, back, rules=reject, counts=(term,))
            yield Case(name, Reason.FILTER_POLICED, port, packet, DROP, rules=police, counts=(term, "few"))
    discard = filtering(FilterAction.DISCARD, leaving)
    police = filtering(FilterAction.ACCEPT, leaving, policer="few")
    for port, zone in ((WAN, "wan"), (VLAN, "vlan")):
        for v in (4, 6):
            packet, name = udp(port.own(v), port.host(v)), f"udp v{v} {port.name}"
            fields = {"egress": True, "opens": zone}
            yield Case(name, Reason.EGRESS_FILTER, port, packet, SHOT, rules=discard, counts=("edge/udp",), **fields)
            counts = ("edge/udp", "few")
            yield Case(name, Reason.EGRESS_POLICED, port, packet, SHOT, rules=police, counts=counts, **fields)


CASES = (
    *forwarded(),
    *to_kernel(),
    *to_self(),
    *refused_at_the_door(),
    *without_a_session(),
    *routes(),
    *policies(),
    *full_and_closed(),
    *unmappable(),
    *not_for_nat64(),
    *no_stage(),
    *egress(),
    *filtered(),
)


OF_TUNNELS = {
    Reason.HOST_SOCKET,  # test_tunnels.py
    Reason.CLEAR_OF_PROTECTED,
    Reason.DECRYPTED,  # tests/scenarios/test_firewall.py: a test run has no IPsec state
    Reason.TUNNEL_SELECTOR,
    Reason.TUNNEL_NAT,  # test_tunnel_nat.py
    Reason.EGRESS_TURNED,
}


OF_TRANSLATOR = {
    Reason.TRANSLATE,
    Reason.TRANSLATOR_AWAY,
    Reason.TRANSLATOR_UNFIT,
    Reason.TRANSLATOR_UNKNOWN,
    Reason.TRANSLATOR_PASSED,
}
"""test_firewall_translator.py."""


OF_SCREENS = {Reason(Reason.SCREEN_LAND + screen) for screen in Screen} | {Reason.SCREEN_COOKIE_VALID}
"""test_screens.py, test_screen_thresholds.py, test_syn_cookies.py."""


def test_every_reason_of_the_firewall_has_a_case() -> None:
    missing = {reason for reason in Reason if reason >= Reason.FORWARDED} - {case.reason for case in CASES} - OF_TUNNELS
    assert not missing - OF_SCREENS - OF_TRANSLATOR


def test_no_case_twice() -> None:
    names = [str(case) for case in CASES]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_whole_outcome(world: World, case: Case) -> None:
    world.apply(case.rules, **case.changes)
    for port, packet in case.first:
        world.send(port, packet)
    if case.prepare:
        case.prepare(world)
    frame = bytes(case.packet if isinstance(case.packet, Ether) else framed(case))
    before, counts = rows(world), world.rule_counts()
    if case.without:
        with world.without(*case.without):
            result = run(world, case)
    else:
        result = run(world, case)
    assert (result.reason, result.action) == (case.reason, case.action)
    if result.action not in {DROP, SHOT}:
        assert described(result.frame) == described(case.after if case.after is not None else frame)
    octets = len(ip_of(frame))
    assert moved(world, counts) == {rule: Count(1, octets) for rule in case.counts}
    made = {flow: row for flow, row in world.entries().items() if flow not in before}
    if case.opens is None:
        assert made == {}
    else:
        check_session(world, case, made, octets)
    if result.reason is Reason.ZONE_CHANGED or case.of_session:
        session = world.session()
        assert session.forward.packets + session.reverse.packets == 2, "it belongs to the session all the same"
    elif result.action in {DROP, SHOT}:
        assert before.items() <= rows(world).items(), "a dropped packet leaves sessions alone"


@pytest.mark.parametrize("v", [4, 6])
def test_a_route_is_looked_up_from_the_device_of_the_tag(world: World, v: int) -> None:
    """Forwarding is off on the VLAN alone."""
    world.apply(BASE)
    switch = Path(f"/proc/sys/net/ipv{v}/conf/lan0.100/forwarding")
    switch.write_text("0")
    try:
        assert world.send(VLAN, tcp(VLAN.host(v), WAN.host(v))).reason is Reason.ROUTE_UNSUPPORTED
        assert world.send(LAN, tcp(LAN.host(v), WAN.host(v))).reason is Reason.FORWARDED
    finally:
        switch.write_text("1")


def framed(case: Case) -> Packet:
    return case.port.sent(case.packet) if case.egress else case.port.frame(case.packet)


def run(world: World, case: Case):
    return world.emit(case.port, case.packet, case.came_in_by) if case.egress else world.send(case.port, case.packet)


def ip_of(frame: bytes) -> bytes:
    """From the IP header to the end: no frame here is padded."""
    return frame[18 if frame[12:14] == b"\x81\x00" else 14 :]


def rows(world: World) -> dict[Flow, bytes]:
    return {flow: bytes(row) for flow, row in world.entries().items()}


def moved(world: World, before: dict[tuple[NameKind, str], Count]) -> dict[str, Count]:
    """What rules counted, by name."""
    return {
        rule[1]: Count(count.packets - before[rule].packets, count.octets - before[rule].octets)
        for rule, count in world.rule_counts().items()
        if count != before[rule]
    }


def check_session(world: World, case: Case, made: dict[Flow, SessionLeaf], octets: int) -> None:
    """One session of two entries, the packet counted in the forward one."""
    zone = next(zone.name for zone in BASE.zones if case.port.name in zone.interfaces)
    here, there = ("self", zone) if case.egress else (zone, case.opens)
    assert there is not None
    frame = Ether(bytes(case.packet)) if isinstance(case.packet, Ether) else case.packet
    forward = flow_of(frame, world.zone(here))
    flipped = replace(
        forward,
        source=forward.destination,
        destination=forward.source,
        source_port=forward.destination_port,
        destination_port=forward.source_port,
    )
    reverse = replace(flipped, zone=world.zone(there))
    assert made.keys() == {forward, reverse}
    ahead, back = made[forward], made[reverse]
    state = State.OPENING if forward.protocol == 6 else State.ESTABLISHED
    timeout = {6: 30, 17: 60, 1: 30, 58: 30}.get(forward.protocol, 60)
    assert (ahead.state, back.state, ahead.timeout, back.timeout) == (state, state, timeout, timeout)
    assert (ahead.packets, ahead.octets, back.packets, back.octets) == (1, octets, 0, 0)
    assert SessionFlag(ahead.flags) == (SessionFlag.TO_SELF if there == "self" else SessionFlag(0))
    assert SessionFlag(back.flags) == SessionFlag.REVERSE | (SessionFlag.TO_SELF if here == "self" else SessionFlag(0))
    assert Flow.translated(ahead, forward.leaf()) == replace(forward, zone=world.zone(there))
    assert Flow.translated(back, reverse.leaf()) == replace(flipped, zone=world.zone(here))
    assert ahead.id == back.id != 0
    deciding = {NameKind.POLICY, NameKind.HOST_INBOUND}
    known = world.ids.rules.items()
    rules = {number for (kind, name), number in known if name in case.counts and kind in deciding} or {0}
    assert {ahead.rule} == {back.rule} == rules
    assert world.session().flow == forward
