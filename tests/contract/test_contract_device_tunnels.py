"""GRE and IPIP devices over tunnel mode: ESP around whole packets of the device's, which has addresses of its own."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from ipaddress import ip_address

import pytest
from scapy.layers.inet import IP, UDP, fragment
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import GRE
from scapy.packet import Packet, Raw

from ipsec_gw.engines.port import Engine
from ipsec_gw.errors import EngineError
from ipsec_gw.model.ids import Direction, IpAddress, TunnelId
from ipsec_gw.model.objects import DeviceHeader, EngineSa, HeaderCopies, InterfaceKind, NextHop, Tunnel, XfrmInterface
from tests.contract.conftest import clear, make_engine
from tests.contract.test_contract_gre import GRE1, GRE2, OTHER_PEER, PADDING, make_gre
from tests.contract.test_contract_interfaces import ANY4, ANY6, Routed, send_tagged, vlan_of
from tests.contract.values import (
    GATEWAY,
    HOP,
    LOCAL,
    PEER,
    encapsulated,
    inbound_packet,
    inner,
    make_sa,
    make_site,
    oracle,
    outbound_packet,
)
from tests.contract.world import GATEWAY_MAC, WAN, World

pytestmark = [pytest.mark.root, pytest.mark.asyncio(loop_scope="module")]

OURS, THEIRS = ip_address("203.0.113.1"), ip_address("203.0.113.2")
IPIP1 = XfrmInterface(42, "ipip1", InterfaceKind.IPIP)
BY_GRE, BY_IPIP = DeviceHeader(OURS, THEIRS, gre=True, dscp=True), DeviceHeader(OURS, THEIRS, gre=False, dscp=True)
OF_OUTER_ENDS = DeviceHeader(LOCAL, PEER, gre=True, dscp=True)
DEVICES = [
    pytest.param(GRE1, BY_GRE, id="gre"),
    pytest.param(IPIP1, BY_IPIP, id="ipip"),
    pytest.param(GRE1, OF_OUTER_ENDS, id="gre of the outer ends"),
    pytest.param(IPIP1, replace(OF_OUTER_ENDS, gre=False), id="ipip of the outer ends"),
]


async def make_tunnel(
    engine: Engine,
    interface: XfrmInterface = GRE1,
    header: DeviceHeader = BY_GRE,
    peer: IpAddress = PEER,
    reqid: int = 35,
    *,
    port: int = 0,
    copies: HeaderCopies = HeaderCopies(),  # noqa: B008 - a value
) -> Routed:
    """With a ``port`` of the peer in UDP."""
    incoming, outgoing = (replace(one, copies=copies) for one in pair(peer, port))
    hop = HOP if peer == PEER else NextHop(peer, LOCAL, WAN, GATEWAY, GATEWAY_MAC)
    selectors = (ANY4, ANY6) if header.gre else (ANY4,)
    ends = TunnelId(reqid, peer), LOCAL, peer, (incoming.key,), outgoing.key
    made = Routed(incoming, outgoing, Tunnel(*ends, selectors, (), interface, header=header), hop)
    there = await engine.retrieve()
    for obj in made.objects:
        if obj.key not in there:
            await engine.create(obj)
    return made


def pair(peer: IpAddress = PEER, port: int = 0) -> tuple[EngineSa, EngineSa]:
    incoming, outgoing = replace(make_sa(Direction.IN), source=peer), make_sa(Direction.OUT)
    both = incoming, replace(outgoing, key=replace(outgoing.key, destination=peer))
    return both if not port else (encapsulated(both[0], port), encapsulated(both[1], port))


peer_of = cache(oracle)
"""The peer's side of an SA, which counts its packets."""


def wrapped(header: DeviceHeader, packet: Packet, **fields: object) -> IP:
    """As the peer's device sends it."""
    behind = GRE() / packet if header.gre else packet
    ends = {"src": str(header.remote), "dst": str(header.local), "proto": header.protocol}
    return IP(bytes(IP(**{**ends, **fields}) / behind))


def opened(made: Routed, world: World) -> IP:
    """The next packet of the outbound SA, as the peer takes it out of ESP."""
    return peer_of(made.outbound).decrypt(IP(inner(world.ciphertext(made.outbound.key.spi))))


def behind(packet: IP) -> bytes:
    """What the device at the other end makes of it."""
    return bytes(packet[GRE].payload if GRE in packet else packet.payload)


def sends(world: World, made: Routed, packet: IP) -> None:
    """The peer, by the SA."""
    world.to_engine_wan(peer_of(made.inbound).encrypt(packet))


async def goes_both_ways(world: World, made: Routed, number: int) -> None:
    header, interface = made.tunnel.header, made.tunnel.interface
    assert header is not None
    assert interface is not None
    send_tagged(world, outbound_packet(number, ttl=1), interface.vlan)
    packet = opened(made, world)
    assert (packet.src, packet.dst, packet.proto) == (str(header.local), str(header.remote), header.protocol)
    assert behind(packet) == bytes(outbound_packet(number, ttl=1))
    sends(world, made, wrapped(header, inbound_packet(number, ttl=1)))
    frame = world.plaintext(lambda ip: ip.id == number)
    assert vlan_of(frame) == interface.vlan
    assert frame[IP] == inbound_packet(number, ttl=1)


@pytest.mark.parametrize(("interface", "header"), DEVICES)
async def test_it_is_held_as_it_was_given(engine: Engine, interface: XfrmInterface, header: DeviceHeader) -> None:
    made = await make_tunnel(engine, interface, header)
    assert dict(await engine.retrieve()) == {obj.key: obj for obj in made.objects}


@pytest.mark.parametrize(("interface", "header"), DEVICES)
async def test_what_is_tagged_is_put_into_a_packet_of_the_device_and_what_comes_in_one_is_tagged(
    engine: Engine, world: World, interface: XfrmInterface, header: DeviceHeader
) -> None:
    made = await make_tunnel(engine, interface, header)
    send_tagged(world, outbound_packet(1, ttl=1), interface.vlan)
    wire = IP(inner(world.ciphertext(made.outbound.key.spi)))
    assert (wire.src, wire.dst, wire.proto) == (str(LOCAL), str(PEER), 50)
    packet = peer_of(made.outbound).decrypt(wire)
    assert (packet.src, packet.dst, packet.proto) == (str(header.local), str(header.remote), header.protocol)
    assert packet.ttl >= 64
    assert packet.len == len(bytes(packet))
    checksum = packet.chksum
    del packet.chksum
    assert IP(bytes(packet)).chksum == checksum
    await goes_both_ways(world, made, 2)


async def test_ipv6_inside(engine: Engine, world: World) -> None:
    made = await make_tunnel(engine)
    there, here = "2001:db8:2::9", "2001:db8:1::5"
    send_tagged(world, IPv6(src=here, dst=there, hlim=1) / UDP(sport=7) / Raw(b"six"), GRE1.vlan)
    packet = opened(made, world)
    assert (packet[GRE].proto, packet[IPv6].hlim, bytes(packet[Raw])) == (0x86DD, 1, b"six")
    sends(world, made, wrapped(BY_GRE, IPv6(src=there, dst=here, hlim=1) / UDP(dport=8) / Raw(b"back")))
    frame = world.up.receive(lambda one: IPv6 in one and UDP in one and one[UDP].dport == 8)
    assert (vlan_of(frame), frame[IPv6].hlim) == (GRE1.vlan, 1)


@pytest.mark.parametrize(("interface", "header"), DEVICES[:2])
async def test_multicast_of_routing_protocols_passes_both_ways(
    engine: Engine, world: World, interface: XfrmInterface, header: DeviceHeader
) -> None:
    made = await make_tunnel(engine, interface, header)
    payload = Raw(bytes(range(44)))
    out = IP(bytes(IP(src="10.1.0.5", dst="224.0.0.5", id=1, ttl=1, proto=89) / payload))
    send_tagged(world, out, interface.vlan)
    assert behind(opened(made, world)) == bytes(out)
    back = IP(bytes(IP(src="10.2.0.9", dst="224.0.0.5", id=2, ttl=1, proto=89) / payload))
    sends(world, made, wrapped(header, back))
    frame = world.plaintext(lambda ip: ip.id == 2)
    assert (vlan_of(frame), bytes(frame[IP])[: len(back)]) == (interface.vlan, bytes(back))


@pytest.mark.parametrize(
    ("device", "sa", "between", "outside"),
    [
        (True, HeaderCopies(), 0xB8 | 2, 0xB8 | 2),
        (False, HeaderCopies(), 2, 2),
        (True, HeaderCopies(dscp=False), 0xB8 | 2, 2),
        (True, HeaderCopies(ecn=False), 0xB8 | 2, 0xB8),
    ],
)
@pytest.mark.parametrize(("interface", "header"), DEVICES[:2])
async def test_each_header_has_what_the_one_behind_it_copies(
    engine: Engine,
    world: World,
    interface: XfrmInterface,
    header: DeviceHeader,
    device: bool,
    sa: HeaderCopies,
    between: int,
    outside: int,
) -> None:
    made = await make_tunnel(engine, interface, replace(header, dscp=device), copies=sa)
    send_tagged(world, outbound_packet(1, tos=0xB8 | 2), interface.vlan)
    wire = IP(inner(world.ciphertext(made.outbound.key.spi)))
    assert (wire.tos, peer_of(made.outbound).decrypt(wire).tos) == (outside, between)


@pytest.mark.parametrize(("interface", "header"), DEVICES[:2])
async def test_behind_nat(engine: Engine, world: World, interface: XfrmInterface, header: DeviceHeader) -> None:
    made = await make_tunnel(engine, interface, header, port=12345)
    send_tagged(world, outbound_packet(1), interface.vlan)
    frame = world.wan.receive(lambda one: UDP in one and one[UDP].dport == 12345)
    wire = IP(inner(frame))
    assert (wire[UDP].sport, wire.dst) == (4500, str(PEER))
    packet = peer_of(made.outbound).decrypt(wire)
    assert behind(packet) == bytes(outbound_packet(1))
    sends(world, made, wrapped(header, inbound_packet(2)))
    assert vlan_of(world.plaintext(lambda ip: ip.id == 2)) == interface.vlan


STRANGERS = {"src": "203.0.113.9", "dst": "203.0.113.9"}


@pytest.mark.parametrize(("interface", "header"), DEVICES)
async def test_nothing_but_the_devices_packets_comes_out(
    engine: Engine, world: World, interface: XfrmInterface, header: DeviceHeader
) -> None:
    """Of other ends, of another protocol, or without a header of the device's (DESIGN.md, invariant 8)."""
    made = await make_tunnel(engine, interface, header)
    for packet in (
        *(wrapped(header, inbound_packet(1), **{field: value}) for field, value in STRANGERS.items()),
        wrapped(replace(header, gre=not header.gre), inbound_packet(2)),
        IP(bytes(IP(src=str(header.remote), dst=str(header.local), id=3) / UDP(dport=9) / Raw(bytes(40)))),
        inbound_packet(4),
        wrapped(header, inbound_packet(5)),
    ):
        sends(world, made, packet)
    frame = world.up.receive(lambda one: IP in one)
    assert (vlan_of(frame), frame[IP].id) == (interface.vlan, 5)


async def test_what_it_takes_the_kernel_to_unwrap_is_handed_to_it(engine: Engine, world: World) -> None:
    """GRE with more than plain headers, and packets that the peer's kernel has taken apart before ESP."""
    made = await make_tunnel(engine)
    ends = {"src": str(THEIRS), "dst": str(OURS)}
    pieces = fragment(IP(**ends, id=7) / GRE() / IP(src="10.2.0.9", dst="10.1.0.5", id=8) / UDP() / bytes(900), 512)
    for packet in (
        *map(lambda piece: IP(bytes(piece)), pieces),
        IP(bytes(IP(**ends, id=9) / GRE(key_present=1, key=7) / inbound_packet(1))),
        IP(bytes(IP(**ends, id=10) / GRE(proto=0x8847) / Raw(bytes(40)))),
    ):
        sends(world, made, packet)
        frame = world.plaintext(lambda ip: True)
        assert (vlan_of(frame), inner(frame)) == (0, bytes(packet))


async def test_counters_count_what_esp_carries(engine: Engine, world: World) -> None:
    made = await make_tunnel(engine)
    send_tagged(world, outbound_packet(1), GRE1.vlan)
    world.ciphertext(made.outbound.key.spi)
    sends(world, made, wrapped(BY_GRE, inbound_packet(2)))
    world.plaintext(lambda ip: ip.id == 2)
    counted = await engine.counters()
    for sa, packet in ((made.outbound, outbound_packet(1)), (made.inbound, inbound_packet(2))):
        assert counted[sa.key].packets == 1
        assert 0 <= counted[sa.key].octets - len(wrapped(BY_GRE, packet)) <= PADDING


@pytest.mark.parametrize(("interface", "header"), DEVICES[:2])
async def test_a_rekey_keeps_the_device(
    engine: Engine, world: World, interface: XfrmInterface, header: DeviceHeader
) -> None:
    old = await make_tunnel(engine, interface, header)
    incoming, outgoing = pair()
    for sa in (incoming, outgoing):
        await engine.create(sa)
    both = replace(old.tunnel, inbound=(old.inbound.key, incoming.key), outbound=outgoing.key)
    await engine.update(both)
    await goes_both_ways(world, replace(old, outbound=outgoing), 1)
    await goes_both_ways(world, replace(old, inbound=incoming, outbound=outgoing), 2)
    alone = replace(both, inbound=(incoming.key,))
    await engine.update(alone)
    await engine.delete(old.inbound.key)
    await engine.delete(old.outbound.key)
    assert (await engine.retrieve())[alone.key] == alone
    await goes_both_ways(world, Routed(incoming, outgoing, alone, HOP), 3)


async def test_a_device_that_changes_is_followed_with_the_same_sas(engine: Engine, world: World) -> None:
    """Another TOS, other ends, a device made anew, none at all: the key sends on."""
    made = await make_tunnel(engine)
    for number, tunnel in enumerate(
        (
            replace(made.tunnel, header=replace(BY_GRE, dscp=False)),
            replace(made.tunnel, header=OF_OUTER_ENDS),
            replace(made.tunnel, interface=GRE2),
            replace(made.tunnel, interface=IPIP1, header=BY_IPIP, selectors=(ANY4,)),
        ),
        1,
    ):
        await engine.update(tunnel)
        assert (await engine.retrieve())[tunnel.key] == tunnel
        await goes_both_ways(world, replace(made, tunnel=tunnel), number)
    plain = replace(made.tunnel, interface=None, header=None)
    await engine.update(plain)
    assert (await engine.retrieve())[plain.key] == plain
    world.to_engine_up(outbound_packet(9))
    assert opened(made, world) == outbound_packet(9)


async def test_several_of_them_beside_each_other_and_other_tunnels(engine: Engine, world: World) -> None:
    """Of the same two ends by another protocol and another peer, in transport mode, and policies for networks."""
    plain = await make_site(engine)
    tunnels = [
        await make_tunnel(engine),
        await make_tunnel(engine, IPIP1, BY_IPIP, PEER, 36),
        await make_tunnel(engine, GRE2, BY_GRE, OTHER_PEER, 37),
        await make_gre(engine, XfrmInterface(43, "gre3", InterfaceKind.GRE), ip_address("198.51.100.9"), 38),
    ]
    for number, made in enumerate((*tunnels, *tunnels), 1):
        assert made.tunnel.interface is not None
        if made.tunnel.header is not None:
            await goes_both_ways(world, made, number)
        else:
            send_tagged(world, outbound_packet(number), made.tunnel.interface.vlan)
            world.ciphertext(made.outbound.key.spi)
    world.to_engine_up(outbound_packet(30))
    world.ciphertext(plain.outbound.key.spi)
    world.to_engine_wan(oracle(plain.inbound).encrypt(inbound_packet(31)))
    assert vlan_of(world.plaintext(lambda ip: ip.id == 31)) == 0
    await engine.delete(tunnels[0].tunnel.key)
    for number, made in enumerate(tunnels[1:3], 40):
        await goes_both_ways(world, made, number)


async def test_a_header_is_of_tunnel_mode_with_an_interface(engine: Engine) -> None:
    made = await make_tunnel(engine)
    with pytest.raises(EngineError, match="header"):
        await engine.update(replace(made.tunnel, interface=None))
    other = await make_gre(engine, GRE2, OTHER_PEER)
    with pytest.raises(EngineError, match="header"):
        await engine.update(replace(other.tunnel, header=BY_GRE))
    assert (await engine.retrieve())[made.tunnel.key] == made.tunnel
    assert (await engine.retrieve())[other.tunnel.key] == other.tunnel


async def test_another_life_finds_the_tunnel_and_goes_on(engine: Engine, engine_name: str, world: World) -> None:
    if engine_name == "soft":
        pytest.skip("its objects end with it")
    tunnels = [
        await make_tunnel(engine, header=replace(BY_GRE, dscp=False)),
        await make_tunnel(engine, IPIP1, BY_IPIP, PEER, 36),
    ]
    another = make_engine(engine_name, world.context)
    await another.open()
    try:
        assert dict(await another.retrieve()) == {obj.key: obj for made in tunnels for obj in made.objects}
        for number, made in enumerate(tunnels, 1):
            await goes_both_ways(world, made, number)
            await another.delete(made.tunnel.key)
            await another.create(made.tunnel)
            await goes_both_ways(world, made, number + 10)
        await clear(another)
    finally:
        await another.close()
