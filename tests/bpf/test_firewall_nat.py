"""Network address translation: what packets of both directions become, and which address and port a flow gets."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from random import Random

import pytest
from firewall_kit import DMZ, FAR, LAN, SEED, VLAN, WAN, Port, Result, World, zones
from firewall_packets import (
    assert_sound,
    changed,
    described,
    echo,
    flow_of,
    ip_layer,
    other,
    partial,
    pseudo_sum,
    routed,
    tcp,
    udp,
)
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_Router_Alert
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, PadN
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from ipsec_gw.model.firewall import (
    Action,
    Blocks,
    DestinationNat,
    Policy,
    Pool,
    Ruleset,
    Service,
    SourceNat,
    StaticNat,
    Translation,
)
from xdp_steer import flow_layout as fl
from xdp_steer.flow_layout import NameKind, SessionFlag
from xdp_steer.prog_run import TcAction, XdpAction
from xdp_steer.reasons import Reason
from xdp_steer.sessions import Session
from xdp_steer.tables import Count

pytestmark = pytest.mark.root

OPEN = (Policy("all", Action.PERMIT),)
HIDE = SourceNat("hide", Translation.INTERFACE, to_zone="wan")
VERSIONS = (4, 6)
PORTS = (LAN, VLAN)


@pytest.fixture
def random() -> Random:
    seed = Random().getrandbits(32)
    print("seed", seed)
    return Random(seed)


def rules(**nat: object) -> Ruleset:
    return Ruleset(zones=zones(), policies=OPEN, **nat)


def next_to(address: str, steps: int = 1) -> str:
    return str(ip_address(address) + steps)


def forward(world: World, port: Port, packet: Packet, out: Port, **fields: object) -> None:
    """The packet leaves at once, with these fields changed."""
    result = world.send(port, packet)
    assert (result.action, result.reason) == (XdpAction.REDIRECT, Reason.FORWARDED)
    assert described(result.frame) == described(routed(packet, out, **fields))


def session_to(world: World, destination: str) -> Session:
    """The session whose first packet was for that address."""
    (found,) = (session for session in world.sessions() if str(session.flow.destination) == destination)
    return found


def candidates(packet: Packet, zone: int, low: int, high: int) -> list[int]:
    """Ports in the order in which they are tried."""
    flow = flow_of(packet, zone)
    hashed = fl.flow_hash(flow.leaf(), SEED)
    own = [flow.source_port] if low <= flow.source_port <= high else []
    tries = range(fl.NAT_TRIES - len(own))
    return own + [low + ((hashed + n * fl.NAT_STEP) & 0xFFFFFFFF) % (high - low + 1) for n in tries]


def reply_to(result: Result, flags: str = "SA") -> Packet:
    """What the far side answers to a packet that left."""
    seen = result.ip
    layer = ip_layer(4 if IP in seen else 6, src=seen.dst, dst=seen.src)
    if TCP in seen:
        return layer / TCP(sport=seen[TCP].dport, dport=seen[TCP].sport, flags=flags, ack=1001)
    if UDP in seen:
        return layer / UDP(sport=seen[UDP].dport, dport=seen[UDP].sport) / Raw(b"answer.")
    return layer


@pytest.mark.parametrize("port", PORTS, ids=lambda port: port.name)
@pytest.mark.parametrize("v", VERSIONS)
def test_interface_nat_there_and_back(world: World, port: Port, v: int) -> None:
    world.apply(rules(source_nat=(HIDE,)))
    here, there, outside = port.host(v), WAN.host(v), WAN.own(v)
    back = tcp(there, outside, 40000, "SA", ack=1001)
    back[TCP].sport = 80
    datagram = udp(there, outside, 40000)
    datagram[UDP].sport = 5000
    for ask, answer in (
        (tcp(here, there), back),
        (udp(here, there), datagram),
        (echo(here, there), echo(there, outside, reply=True)),
        (other(here, there), other(there, outside)),
    ):
        forward(world, port, ask, WAN, src=outside)
        forward(world, WAN, answer, port, dst=here)
        forward(world, port, changed(ask), WAN, src=outside)
    assert [session.reverse.packets for session in world.sessions()] == [1] * 4
    assert world.rule_counts()[NameKind.SOURCE_NAT, "hide"].packets >= 4


def test_interface_nat_takes_the_address_of_the_egress_port(world: World) -> None:
    everywhere = SourceNat("hide", Translation.INTERFACE)
    world.apply(rules(source_nat=(everywhere,)))
    for v in VERSIONS:
        for out in (VLAN, DMZ, WAN):
            forward(world, LAN, tcp(LAN.host(v), out.host(v)), out, src=out.own(v))
        forward(world, LAN, tcp(LAN.host(v), FAR[v]), WAN, src=WAN.own(v))


@pytest.mark.parametrize("v", VERSIONS)
def test_a_source_port_below_1024_moves_into_the_range(world: World, v: int) -> None:
    world.apply(rules(source_nat=(HIDE,)))
    packet = udp(LAN.host(v), WAN.host(v))
    packet[UDP].sport = 123
    wanted = candidates(packet, world.zone("lan"), 1024, 65535)[0]
    forward(world, LAN, packet, WAN, src=WAN.own(v), sport=wanted)
    session = world.session()
    assert session.translated.source_port == wanted
    assert session.flags & SessionFlag.NAT


@pytest.mark.parametrize("v", VERSIONS)
def test_the_next_candidate_when_a_port_is_taken(world: World, v: int) -> None:
    world.apply(rules(source_nat=(HIDE,)))
    there = WAN.host(v)
    forward(world, LAN, tcp(LAN.host(v), there), WAN, src=WAN.own(v))
    second = tcp(next_to(LAN.host(v)), there)
    wanted = candidates(second, world.zone("lan"), 1024, 65535)[1]
    forward(world, LAN, second, WAN, src=WAN.own(v), sport=wanted)
    elsewhere = tcp(next_to(LAN.host(v), 2), FAR[v])
    forward(world, LAN, elsewhere, WAN, src=WAN.own(v))


def pool(v: int, name: str = "pool", addresses: int = 4, first: int = 16, **rest: object) -> Pool:
    base = ip_address({4: "203.0.113.0", 6: "2001:db8:f::"}[v])
    return Pool(name, base + first, base + first + addresses - 1, **rest)


def pooled(*pools: Pool) -> Ruleset:
    """Everything to the WAN through the first pool."""
    return rules(source_nat=(SourceNat("pooled", Translation.POOL, to_zone="wan", pool=pools[0].name),), pools=pools)


@pytest.mark.parametrize("v", VERSIONS)
def test_a_pool_chooses_address_and_port_by_the_hash_of_the_flow(world: World, v: int) -> None:
    made = pool(v, ports=(2000, 2999))
    world.apply(pooled(made))
    seen = set()
    for number in range(16):
        packet = udp(LAN.host(v), WAN.host(v), 7000 + number)
        hashed = fl.flow_hash(flow_of(packet, world.zone("lan")).leaf(), SEED)
        address = str(made.first + hashed % 4)
        seen.add(address)
        wanted = candidates(packet, world.zone("lan"), 2000, 2999)[0]
        forward(world, LAN, packet, WAN, src=address, sport=wanted)
    assert len(seen) > 1


@pytest.mark.parametrize("v", VERSIONS)
def test_a_persistent_pool_keeps_the_address_of_a_source(world: World, v: int) -> None:
    made = pool(v, persistent=True)
    world.apply(pooled(made))
    seen = set()
    for host in range(8):
        source = next_to(LAN.host(v), host)
        for dport in (7000, 7001):
            packet = udp(source, WAN.host(v), dport)
            packet[UDP].sport += host
            leaf = flow_of(packet, world.zone("lan")).leaf()
            address = str(made.first + fl.source_hash(leaf.saddr, SEED) % 4)
            seen.add(address)
            forward(world, LAN, packet, WAN, src=address)
    assert len(seen) > 1


@pytest.mark.parametrize("v", VERSIONS)
def test_overflow_is_asked_once_and_does_not_chain(world: World, v: int) -> None:
    one = pool(v, "one", 1, ports=(3000, 3000), overflow="two")
    two = pool(v, "two", 1, 20, ports=(4000, 4000), overflow="three")
    three = pool(v, "three", 1, 24, ports=(5000, 5000))
    world.apply(pooled(one, two, three))
    sources = [udp(next_to(LAN.host(v), host), WAN.host(v)) for host in range(3)]
    forward(world, LAN, sources[0], WAN, src=str(one.first), sport=3000)
    forward(world, LAN, sources[1], WAN, src=str(two.first), sport=4000)
    result = world.send(LAN, sources[2])
    assert (result.action, result.reason) == (XdpAction.DROP, Reason.NAT_EXHAUSTED)
    assert len(world.sessions()) == 2
    assert len(world.entries()) == 4


@pytest.mark.parametrize("v", VERSIONS)
def test_a_pool_runs_out_exactly_when_sixteen_candidates_are_taken(world: World, v: int) -> None:
    made = pool(v, addresses=1, ports=(2000, 2007))
    world.apply(pooled(made))
    taken: set[int] = set()
    refused = 0
    for host in range(24):
        packet = udp(next_to(LAN.host(v), host), WAN.host(v))
        free = [port for port in candidates(packet, world.zone("lan"), 2000, 2007) if port not in taken]
        if free:
            taken.add(free[0])
            forward(world, LAN, packet, WAN, src=str(made.first), sport=free[0])
        else:
            refused += 1
            assert world.send(LAN, packet).reason is Reason.NAT_EXHAUSTED
    assert refused
    assert len(world.sessions()) == len(taken)
    packet = udp(LAN.host(v), FAR[v])  # the same ports again, towards another destination
    wanted = candidates(packet, world.zone("lan"), 2000, 2007)[0]
    forward(world, LAN, packet, WAN, src=str(made.first), sport=wanted)


@pytest.mark.parametrize("v", VERSIONS)
def test_what_is_expired_still_holds_its_port(world: World, v: int) -> None:
    made = pool(v, addresses=1, ports=(2000, 2000))
    world.apply(pooled(made))
    forward(world, LAN, udp(LAN.host(v), WAN.host(v)), WAN, src=str(made.first), sport=2000)
    world.age(61)
    assert world.send(LAN, udp(next_to(LAN.host(v)), WAN.host(v))).reason is Reason.NAT_EXHAUSTED
    forward(world, LAN, udp(LAN.host(v), WAN.host(v)), WAN, src=str(made.first), sport=2000)


@pytest.mark.parametrize("v", VERSIONS)
def test_the_first_rule_decides_and_off_translates_nothing(world: World, v: int) -> None:
    exempt = SourceNat("exempt", Translation.OFF, destinations=(ip_network(f"{WAN.host(v)}"),))
    world.apply(rules(source_nat=(exempt, HIDE)))
    forward(world, LAN, tcp(LAN.host(v), WAN.host(v)), WAN)
    forward(world, LAN, tcp(LAN.host(v), FAR[v]), WAN, src=WAN.own(v))
    direct, hidden = session_to(world, WAN.host(v)), session_to(world, FAR[v])
    number = world.ids.rules
    assert direct.snat_rule == number[NameKind.SOURCE_NAT, "exempt"]
    assert hidden.snat_rule == number[NameKind.SOURCE_NAT, "hide"]
    assert (bool(direct.flags & SessionFlag.NAT), bool(hidden.flags & SessionFlag.NAT)) == (False, True)


def test_a_pool_of_the_other_family_is_passed_over(world: World) -> None:
    six = SourceNat("six", Translation.POOL, to_zone="wan", pool="pool")
    world.apply(rules(source_nat=(six, HIDE), pools=(pool(6),)))
    forward(world, LAN, tcp(LAN.host4, WAN.host4), WAN, src=WAN.address4)


BLOCKS = Blocks(4, ip_network("10.1.0.8/30"))
"""Of 10.1.0.9, the host of lan0, and three others."""


def with_blocks(addresses: int = 2) -> Pool:
    """Two subscribers share an address."""
    return pool(4, addresses=addresses, ports=(2000, 2008), blocks=BLOCKS)


@pytest.mark.parametrize(("number", "address", "low"), [(0, 16, 2000), (1, 16, 2004), (2, 17, 2000), (3, 17, 2004)])
def test_each_subscriber_has_its_block_of_ports(world: World, number: int, address: int, low: int) -> None:
    """Deterministic NAT (RFC 7422): one ninth port is nobody's."""
    made = with_blocks()
    world.apply(pooled(made))
    source = f"10.1.0.{8 + number}"
    seen = set()
    for dport in range(5000, 5012):
        result = world.send(LAN, udp(source, WAN.host4, dport))
        assert result.reason is Reason.FORWARDED
        assert result.ip.src == f"203.0.113.{address}"
        seen.add(result.ip[UDP].sport)
    assert seen <= set(range(low, low + 4))
    assert made.block_of(ip_address(source)) == (ip_address(f"203.0.113.{address}"), (low, low + 3))
    own = udp(source, FAR[4])
    own[UDP].sport = low + 1
    forward(world, LAN, own, WAN, src=f"203.0.113.{address}")


def test_a_block_is_all_that_a_subscriber_gets(world: World) -> None:
    """Four ports to one destination, whatever room there is beside them."""
    world.apply(pooled(with_blocks()))
    reasons = []
    for sport in range(40000, 40016):
        packet = udp(LAN.host4, WAN.host4)
        packet[UDP].sport = sport
        reasons.append(world.send(LAN, packet).reason)
    assert reasons.count(Reason.FORWARDED) == 4
    assert set(reasons) == {Reason.FORWARDED, Reason.NAT_EXHAUSTED}
    neighbour = udp("10.1.0.8", WAN.host4)
    assert world.send(LAN, neighbour).reason is Reason.FORWARDED


@pytest.mark.parametrize("source", ["10.1.0.7", "10.1.0.12", "10.2.0.9"])
def test_who_is_no_subscriber_has_no_block(world: World, source: str) -> None:
    world.apply(pooled(with_blocks()))
    assert world.send(LAN, udp(source, WAN.host4)).reason is Reason.NAT_EXHAUSTED


STATIC = {
    4: StaticNat("static", "wan", ip_network("203.0.113.64/28"), ip_network("10.3.0.0/28")),
    6: StaticNat("static", "wan", ip_network("2001:db8:f::40/124"), ip_network("2001:db8:3::/124")),
}


@pytest.mark.parametrize("v", VERSIONS)
def test_static_nat_both_ways_before_source_nat(world: World, v: int) -> None:
    static = STATIC[v]
    world.apply(rules(static_nat=(static,), source_nat=(HIDE,)))
    outside = str(static.external.network_address + 9)
    inside, there = DMZ.host(v), WAN.host(v)
    out = tcp(inside, there)
    forward(world, DMZ, out, WAN, src=outside)
    back = tcp(there, outside, 40000, "SA")
    back[TCP].sport = 80
    forward(world, WAN, back, DMZ, dst=inside)
    forward(world, WAN, tcp(there, outside, 22), DMZ, dst=inside)
    reply = tcp(inside, there, 40000, "SA")
    reply[TCP].sport = 22
    forward(world, DMZ, reply, WAN, src=outside)
    ping = echo(there, outside)
    forward(world, WAN, ping, DMZ, dst=inside)
    forward(world, DMZ, echo(inside, there, reply=True), WAN, src=outside)
    number = world.ids.rules[NameKind.STATIC_NAT, "static"]
    outward = session_to(world, there)
    assert (outward.snat_rule, outward.dnat_rule) == (number, 0)
    inward = [session for session in world.sessions() if session != outward]
    assert [(session.snat_rule, session.dnat_rule) for session in inward] == [(0, number)] * 2
    forward(world, LAN, tcp(LAN.host(v), inside), DMZ)  # towards another zone nothing is translated


PREFIX = {4: ("203.0.113.32/28", "10.3.0.0/28"), 6: ("2001:db8:f::20/124", "2001:db8:3::/124")}


def published(v: int, **rest: object) -> DestinationNat:
    external, internal = PREFIX[v]
    return DestinationNat("published", ip_network(external), ip_network(internal), **rest)


@pytest.mark.parametrize("v", VERSIONS)
def test_destination_prefix(world: World, v: int) -> None:
    world.apply(rules(destination_nat=(published(v, from_zone="wan"),)))
    outside = next_to(PREFIX[v][0].split("/")[0], 9)
    ask = tcp(WAN.host(v), outside)
    forward(world, WAN, ask, DMZ, dst=DMZ.host(v))
    back = tcp(DMZ.host(v), WAN.host(v), 40000, "SA")
    back[TCP].sport = 80
    forward(world, DMZ, back, WAN, src=outside)
    assert world.session().dnat_rule == world.ids.rules[NameKind.DESTINATION_NAT, "published"]
    assert world.send(LAN, tcp(LAN.host(v), outside)).ip.dst == outside, "not from that zone"


@pytest.mark.parametrize("v", VERSIONS)
def test_ports_are_shifted_in_step_and_the_policy_sees_the_new_ones(world: World, v: int) -> None:
    shifted = published(v, services=(Service(6, (8000, 8010)), Service(17, (9000, 9001))), to_port=80)
    inside = (ip_network(DMZ.host(v)),)
    only = Policy("shifted", Action.PERMIT, "wan", "dmz", (), inside, (Service(6, (83, 83)), Service(17)))
    world.apply(Ruleset(zones=zones(), policies=(only,), destination_nat=(shifted,)))
    outside = next_to(PREFIX[v][0].split("/")[0], 9)
    forward(world, WAN, tcp(WAN.host(v), outside, 8003), DMZ, dst=DMZ.host(v), dport=83)
    assert world.send(WAN, tcp(WAN.host(v), outside, 8004)).reason is Reason.DEFAULT_DENY
    forward(world, WAN, udp(WAN.host(v), outside, 9001), DMZ, dst=DMZ.host(v), dport=81)
    back = udp(DMZ.host(v), WAN.host(v), 40000)
    back[UDP].sport = 81
    forward(world, DMZ, back, WAN, src=outside, sport=9001)


@pytest.mark.parametrize("v", VERSIONS)
def test_twice_nat(world: World, v: int) -> None:
    made = pool(v, addresses=1)
    inside = (ip_network(DMZ.host(v)),)
    towards = SourceNat("towards dmz", Translation.POOL, "wan", "dmz", (), inside, pool="pool")
    inbound = published(v, services=(Service(6, (8080, 8080)),), to_port=80)
    world.apply(rules(destination_nat=(inbound,), source_nat=(towards,), pools=(made,)))
    outside = next_to(PREFIX[v][0].split("/")[0], 9)
    ask = tcp(WAN.host(v), outside, 8080)
    forward(world, WAN, ask, DMZ, src=str(made.first), dst=DMZ.host(v), dport=80)
    back = tcp(DMZ.host(v), str(made.first), 40000, "SA")
    back[TCP].sport = 80
    forward(world, DMZ, back, WAN, src=outside, dst=WAN.host(v), sport=8080)
    session = world.session()
    assert session.snat_rule == world.ids.rules[NameKind.SOURCE_NAT, "towards dmz"]
    counts = world.rule_counts()
    assert counts[NameKind.SOURCE_NAT, "towards dmz"].packets >= 1
    assert counts[NameKind.DESTINATION_NAT, "published"].packets >= 1


@pytest.mark.parametrize("port", PORTS, ids=lambda port: port.name)
@pytest.mark.parametrize("v", VERSIONS)
def test_hairpin(world: World, port: Port, v: int) -> None:
    """A host reaches its neighbour by the address that the world knows it by; the neighbour answers the firewall."""
    zone = "lan" if port is LAN else "vlan"
    server = port.host(v)
    outward = DestinationNat("server", ip_network(FAR[v]), ip_network(server))
    loop = SourceNat("loop", Translation.INTERFACE, zone, zone)
    world.apply(rules(destination_nat=(outward,), source_nat=(loop,)))
    client = next_to(server)
    forward(world, port, tcp(client, FAR[v]), port, src=port.own(v), dst=server)
    back = tcp(server, port.own(v), 40000, "SA")
    back[TCP].sport = 80
    result = world.send(port, back)
    assert result.reason is Reason.TO_KERNEL, "nobody knows the client's MAC"
    assert described(result.frame) == described(port.frame(changed(back, src=FAR[v], dst=client)))


@pytest.mark.parametrize("v", VERSIONS)
def test_the_identifier_of_an_echo_is_its_port(world: World, v: int) -> None:
    made = pool(v, addresses=1, ports=(2000, 2009))
    world.apply(pooled(made))
    ping = echo(LAN.host(v), WAN.host(v))
    wanted = candidates(ping, world.zone("lan"), 2000, 2009)[0]
    forward(world, LAN, ping, WAN, src=str(made.first), id=wanted)
    pong = changed(echo(WAN.host(v), str(made.first), reply=True), id=wanted)
    forward(world, WAN, pong, LAN, dst=LAN.host(v), id=7700)
    session = world.session()
    assert (session.translated.source_port, session.translated.destination_port) == (wanted, wanted)


def test_the_identifier_of_a_timestamp_is_its_port(world: World) -> None:
    made = pool(4, addresses=1, ports=(2000, 2009))
    world.apply(pooled(made))
    ask = IP(src=LAN.host4, dst=WAN.host4) / ICMP(type=13, id=7700, ts_ori=1)
    wanted = candidates(ask, world.zone("lan"), 2000, 2009)[0]
    forward(world, LAN, ask, WAN, src=str(made.first), id=wanted)
    reply = IP(src=WAN.host4, dst=str(made.first)) / ICMP(type=14, id=wanted, ts_ori=1)
    forward(world, WAN, reply, LAN, dst=LAN.host4, id=7700)


@pytest.mark.parametrize("v", VERSIONS)
@pytest.mark.parametrize("protocol", [47, 50, 51, 132, 89])
def test_protocols_without_ports_have_one_flow_per_address(world: World, v: int, protocol: int) -> None:
    made = pool(v, addresses=1)
    world.apply(pooled(made))
    packet = other(LAN.host(v), WAN.host(v), protocol)
    forward(world, LAN, packet, WAN, src=str(made.first))
    forward(world, WAN, other(WAN.host(v), str(made.first), protocol), LAN, dst=LAN.host(v))
    second = other(next_to(LAN.host(v)), WAN.host(v), protocol)
    assert world.send(LAN, second).reason is Reason.NAT_EXHAUSTED
    forward(world, LAN, other(next_to(LAN.host(v)), FAR[v], protocol), WAN, src=str(made.first))


def test_a_udp_checksum_of_zero_stays(world: World) -> None:
    world.apply(rules(source_nat=(HIDE,)))
    packet = udp(LAN.host4, WAN.host4)
    packet[UDP].chksum = 0
    result = world.send(LAN, packet)
    assert result.ip[UDP].chksum == 0
    assert described(result.frame) == described(routed(packet, WAN, src=WAN.address4))


def checksum_of(packet: Packet) -> int:
    """What scapy writes into a UDP header."""
    return packet.__class__(bytes(packet))[UDP].chksum


@pytest.mark.parametrize("v", VERSIONS)
def test_a_udp_checksum_never_becomes_zero(world: World, v: int) -> None:
    """The one payload whose sum would be 0 after translation is sent with 0xffff (RFC 768)."""
    world.apply(rules(source_nat=(HIDE,)))
    packet = udp(LAN.host(v), WAN.host(v), octets=2)
    packet[Raw].load = bytes(2)
    packet[Raw].load = checksum_of(changed(packet, src=WAN.own(v))).to_bytes(2)  # now the sum of all is 0xffff
    assert checksum_of(changed(packet, src=WAN.own(v))) == 0xFFFF
    forward(world, LAN, packet, WAN, src=WAN.own(v))


@pytest.mark.parametrize("port", PORTS, ids=lambda port: port.name)
@pytest.mark.parametrize("v", VERSIONS)
@pytest.mark.parametrize("made", [tcp, udp], ids=["tcp", "udp"])
def test_a_partial_checksum_stays_partial_and_goes_by_the_kernel(world: World, port: Port, v: int, made) -> None:
    """Addresses change the seed, ports do not; hardware sums the rest."""
    shift = DestinationNat(
        "shift", ip_network(FAR[v]), ip_network(WAN.host(v)), services=(Service(6, (80, 80)),), to_port=81
    )
    unfinished = {"lan": {"partial": True}, "vlan": {"partial": True}}
    world.apply(rules(source_nat=(HIDE,), destination_nat=(shift,)), **unfinished)
    target = FAR[v] if made is tcp else WAN.host(v)
    packet = made(port.host(v), target)
    result = world.send(port, partial(packet))
    assert (result.action, result.reason) == (XdpAction.PASS, Reason.TO_KERNEL)
    fields = {"src": WAN.own(v), "dst": WAN.host(v)} | ({"dport": 81} if made is tcp else {})
    wanted = changed(packet, **fields)
    wanted = partial(wanted)
    assert described(result.frame) == described(port.frame(wanted))
    assert pseudo_sum(wanted) != pseudo_sum(packet)
    again = world.send(port, changed(packet))  # a finished one of the same flow is forwarded as ever
    assert again.reason is Reason.FORWARDED
    assert described(again.frame) == described(routed(packet, WAN, **fields))


@pytest.mark.parametrize("v", VERSIONS)
def test_without_the_mark_on_the_port_no_checksum_counts_as_partial(world: World, v: int) -> None:
    world.apply(rules(source_nat=(HIDE,)))
    packet = udp(LAN.host(v), WAN.host(v), octets=2)
    packet[Raw].load = bytes(2)
    seed = pseudo_sum(packet)
    # One's complement: choose the payload so that the finished checksum looks like a seed.
    packet[Raw].load = (((~seed & 0xFFFF) - (~checksum_of(packet) & 0xFFFF)) % 0xFFFF).to_bytes(2)
    assert checksum_of(packet) == seed
    forward(world, LAN, packet, WAN, src=WAN.own(v))


def fragments_of(packet: Packet, at: int) -> tuple[Packet, Packet]:
    """The payload of an IP packet in two fragments, cut after ``at`` octets."""
    layer = packet.__class__(bytes(packet))
    whole = bytes(layer.payload)
    if isinstance(layer, IP):
        base = {"src": layer.src, "dst": layer.dst, "id": 99, "proto": layer.proto}
        return IP(flags="MF", **base) / Raw(whole[:at]), IP(frag=at // 8, **base) / Raw(whole[at:])
    base6 = IPv6(src=layer.src, dst=layer.dst)
    first = base6 / IPv6ExtHdrFragment(nh=layer.nh, id=99, m=1) / Raw(whole[:at])
    return first, base6 / IPv6ExtHdrFragment(nh=layer.nh, id=99, offset=at // 8) / Raw(whole[at:])


def data_of(frame: bytes) -> bytes:
    """What a fragment carries."""
    packet = Ether(frame)
    if IP in packet:
        return bytes(packet[IP].payload)
    return bytes(packet[IPv6ExtHdrFragment].payload)


@pytest.mark.parametrize("v", VERSIONS)
@pytest.mark.parametrize("made", [udp, tcp], ids=["udp", "tcp"])
def test_fragments_are_whole_after_translation(world: World, v: int, made) -> None:
    shifted = SourceNat("pooled", Translation.POOL, to_zone="wan", pool="pool")
    world.apply(rules(source_nat=(shifted,), pools=(pool(v, addresses=1, ports=(2000, 2000)),)))
    packet = made(LAN.host(v), WAN.host(v)) / Raw(bytes(range(64)))
    first, rest = fragments_of(packet, 32)
    frames = [world.send(LAN, piece) for piece in (first, rest)]
    assert [result.reason for result in frames] == [Reason.FORWARDED] * 2
    wanted = changed(packet, src=str(pool(v).first), sport=2000)
    wanted = wanted.__class__(bytes(wanted))
    assert b"".join(data_of(result.frame) for result in frames) == bytes(wanted.payload)
    assert data_of(frames[1].frame) == data_of(bytes(LAN.frame(rest))), "no port and no checksum in there"
    for result in frames:
        assert (result.ip.src, result.ip.dst) == (str(pool(v).first), WAN.host(v))
        assert result.packet.src == WAN.mac
    assert world.session().forward.packets == 2


@pytest.mark.parametrize("v", VERSIONS)
def test_behind_options_and_extension_headers(world: World, v: int) -> None:
    world.apply(rules(source_nat=(HIDE,)))
    if v == 4:
        base: Packet = IP(src=LAN.host4, dst=WAN.host4, options=[IPOption_Router_Alert()])
    else:
        base = IPv6(src=LAN.host6, dst=WAN.host6) / IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(12))])
    forward(world, LAN, base / TCP(sport=40000, dport=80, flags="S"), WAN, src=WAN.own(v))
    forward(world, LAN, base / UDP(sport=40000, dport=80) / Raw(b"odd"), WAN, src=WAN.own(v))


def test_a_destination_that_becomes_this_machine(world: World) -> None:
    to_self = DestinationNat(
        "ssh", ip_network(FAR[4]), ip_network(WAN.address4), services=(Service(6, (2222, 2222)),), to_port=22
    )
    inbound = zones(wan={"host_inbound": (Service(6, (22, 22)),)})
    world.apply(Ruleset(zones=inbound, destination_nat=(to_self,)))
    packet = tcp(WAN.host4, FAR[4], 2222)
    for sent in (packet, tcp(WAN.host4, FAR[4], 2222, "A")):
        result = world.send(WAN, sent)
        assert (result.action, result.reason) == (XdpAction.PASS, Reason.HOST)
        assert described(result.frame) == described(WAN.frame(changed(sent, dst=WAN.address4, dport=22)))
    assert world.session().flags & SessionFlag.TO_SELF
    answer = tcp(WAN.address4, WAN.host4, 40000, "SA")
    answer[TCP].sport = 22
    for whole in (answer, partial(answer)):  # the kernel leaves the checksum to hardware that can do it
        result = world.emit(WAN, whole)
        assert (result.action, result.reason) == (TcAction.UNSPEC, Reason.EGRESS_SESSION)
        wanted = changed(answer, src=FAR[4], sport=2222)
        assert described(result.frame) == described(WAN.sent(partial(wanted) if whole is not answer else wanted))


def test_checksums_of_random_packets(world: World, random: Random) -> None:
    made = {v: pool(v, f"pool{v}", 3, ports=(1024, 65535)) for v in VERSIONS}
    outward = tuple(SourceNat(f"to {p.name}", Translation.POOL, to_zone="wan", pool=p.name) for p in made.values())
    inward = tuple(
        DestinationNat(
            f"in {v}", ip_network(FAR[v]), ip_network(WAN.host(v)), services=(Service(6, (1, 60000)),), to_port=1001
        )
        for v in VERSIONS
    )
    world.apply(rules(source_nat=outward, destination_nat=inward, pools=tuple(made.values())))
    for number in range(300):
        v = random.choice(VERSIONS)
        here = next_to(LAN.host(v), random.randrange(100))
        there = random.choice((FAR[v], WAN.host(v)))
        kind = random.choice((tcp, udp, echo))
        packet = kind(here, there)
        if kind is not echo:
            packet.lastlayer().remove_payload()
            layer = packet[TCP] if TCP in packet else packet[UDP]
            layer.sport, layer.dport = random.randrange(1, 65536), random.randrange(1, 60001)
            layer.remove_payload()
            packet = packet / Raw(random.randbytes(random.randrange(60)))
        else:
            packet = changed(packet, id=random.randrange(65536))
        result = world.send(LAN, packet)
        assert result.action is XdpAction.REDIRECT, (number, result, packet)
        session = world.session()
        now = session.translated
        fields: dict[str, object] = {"src": str(now.source), "dst": str(now.destination)}
        fields |= {"id": now.source_port} if kind is echo else {"sport": now.source_port, "dport": now.destination_port}
        assert described(result.frame) == described(routed(packet, WAN, **fields)), number
        assert_sound(result.frame)
        world.clear()


def test_rules_of_translation_count_the_first_packet_of_a_flow(world: World) -> None:
    world.apply(rules(source_nat=(HIDE,)))
    before = world.rule_counts()
    packet = udp(LAN.host4, WAN.host4)
    for _ in range(3):
        forward(world, LAN, packet, WAN, src=WAN.address4)
    after = world.rule_counts()
    for rule in ((NameKind.SOURCE_NAT, "hide"), (NameKind.POLICY, "all")):
        moved = Count(after[rule].packets - before[rule].packets, after[rule].octets - before[rule].octets)
        assert moved == Count(1, len(packet))
