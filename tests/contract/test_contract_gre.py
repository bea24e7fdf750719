"""GRE devices over transport mode: ESP, then a GRE header, then what a VLAN ID on the veth pair stands for."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.ipsec import SecurityAssociation
from scapy.layers.l2 import GRE
from scapy.packet import Packet, Raw

from ipsec_gw.engines.port import Capabilities, Engine
from ipsec_gw.errors import EngineError
from ipsec_gw.model.ids import Direction, IpAddress, TunnelId
from ipsec_gw.model.objects import EngineSa, HeaderCopies, InterfaceKind, NextHop, Tunnel, XfrmInterface
from tests.contract.conftest import clear, make_engine
from tests.contract.test_contract_interfaces import ANY4, ANY6, Routed, make_routed, send_tagged, vlan_of
from tests.contract.values import (
    GATEWAY,
    HERE,
    HOP,
    LOCAL,
    PEER,
    THERE,
    inbound_packet,
    make_sa,
    make_site,
    oracle,
    outbound_packet,
)
from tests.contract.world import GATEWAY_MAC, WAN, World

pytestmark = [pytest.mark.root, pytest.mark.asyncio(loop_scope="module")]

OTHER_PEER = ip_address("198.51.100.8")
GRE1 = XfrmInterface(41, "gre1", InterfaceKind.GRE)
GRE2 = XfrmInterface(4000, "gre2", InterfaceKind.GRE)
PADDING = 3
"""Bytes for each packet that VPP cannot tell from the packet (:func:`vpp_conf.traffic.inner_traffic`)."""


def gre_sa(direction: Direction, peer: IpAddress = PEER, copies: HeaderCopies = HeaderCopies()) -> EngineSa:  # noqa: B008 - a value
    """In transport mode."""
    bare = replace(make_sa(direction), gre=True, copies=copies)
    if direction is Direction.IN:
        return replace(bare, source=peer)
    return replace(bare, key=replace(bare.key, destination=peer))


async def make_gre(
    engine: Engine,
    interface: XfrmInterface = GRE1,
    peer: IpAddress = PEER,
    reqid: int = 31,
    copies: HeaderCopies = HeaderCopies(),  # noqa: B008 - a value
) -> Routed:
    incoming, outgoing = gre_sa(Direction.IN, peer), gre_sa(Direction.OUT, peer, copies)
    hop = HOP if peer == PEER else NextHop(peer, LOCAL, WAN, GATEWAY, GATEWAY_MAC)
    tunnel = Tunnel(TunnelId(reqid, peer), LOCAL, peer, (incoming.key,), outgoing.key, (ANY4, ANY6), (), interface)
    made = Routed(incoming, outgoing, tunnel, hop)
    there = await engine.retrieve()
    for obj in made.objects:
        if obj.key not in there:
            await engine.create(obj)
    return made


def transport(sa: EngineSa) -> SecurityAssociation:
    """The peer's side of an SA."""
    whole = oracle(sa)
    whole.tunnel_header = None
    return whole


def sealed(sa: EngineSa, behind: Packet) -> Packet:
    """What the peer sends: anything in transport mode."""
    return transport(sa).encrypt(IP(bytes(IP(src=str(sa.source), dst=str(sa.key.destination)) / behind)))


def opened(sa: EngineSa, world: World) -> IP:
    """The next packet of an outbound SA, as the peer takes it out of ESP."""
    return transport(sa).decrypt(IP(bytes(world.ciphertext(sa.key.spi)[IP])))


async def test_it_is_offered(capabilities: Capabilities) -> None:
    assert capabilities.gre


async def test_a_tunnel_of_a_gre_device_is_held_as_it_was_given(engine: Engine) -> None:
    made = await make_gre(engine, copies=HeaderCopies(dscp=False))
    assert dict(await engine.retrieve()) == {obj.key: obj for obj in made.objects}


async def test_what_is_tagged_goes_behind_a_gre_header_and_what_comes_behind_one_is_tagged(
    engine: Engine, world: World
) -> None:
    made = await make_gre(engine)
    send_tagged(world, outbound_packet(1, ttl=1), GRE1.vlan)
    packet = opened(made.outbound, world)
    assert (packet.src, packet.dst, packet.proto) == (str(LOCAL), str(PEER), 47)
    assert bytes(packet[GRE]) == bytes(GRE() / outbound_packet(1, ttl=1))
    assert packet.ttl >= 64
    world.to_engine_wan(sealed(made.inbound, GRE() / inbound_packet(2, ttl=1)))
    frame = world.plaintext(lambda ip: ip.id == 2)
    assert vlan_of(frame) == GRE1.vlan
    assert (frame.src, frame.dst) == (world.context.up_engine.mac, world.up.mac)
    assert frame[IP] == inbound_packet(2, ttl=1)


async def test_ipv6_inside(engine: Engine, world: World) -> None:
    made = await make_gre(engine)
    there, here = "2001:db8:2::9", "2001:db8:1::5"
    send_tagged(world, IPv6(src=here, dst=there, hlim=1) / UDP(sport=7) / Raw(b"six"), GRE1.vlan)
    packet = opened(made.outbound, world)
    assert (packet[GRE].proto, packet[IPv6].hlim, bytes(packet[Raw])) == (0x86DD, 1, b"six")
    world.to_engine_wan(sealed(made.inbound, GRE() / IPv6(src=there, dst=here, hlim=1) / UDP(dport=8) / Raw(b"back")))
    frame = world.up.receive(lambda one: IPv6 in one and UDP in one and one[UDP].dport == 8)
    assert (vlan_of(frame), frame[IPv6].hlim) == (GRE1.vlan, 1)


async def test_multicast_of_routing_protocols_passes_both_ways(engine: Engine, world: World) -> None:
    made = await make_gre(engine)
    payload = Raw(bytes(range(44)))
    out = IP(bytes(IP(src=HERE, dst="224.0.0.5", id=1, ttl=1, proto=89) / payload))
    send_tagged(world, out, GRE1.vlan)
    assert bytes(opened(made.outbound, world)[GRE].payload) == bytes(out)
    back = IP(bytes(IP(src=THERE, dst="224.0.0.5", id=2, ttl=1, proto=89) / payload))
    world.to_engine_wan(sealed(made.inbound, GRE() / back))
    frame = world.plaintext(lambda ip: ip.id == 2)
    assert (vlan_of(frame), bytes(frame[IP])[: len(back)]) == (GRE1.vlan, bytes(back))
    out6 = IPv6(bytes(IPv6(src="fe80::1", dst="ff02::5", hlim=1, nh=89) / payload))
    send_tagged(world, out6, GRE1.vlan)
    assert bytes(opened(made.outbound, world)[GRE].payload) == bytes(out6)


@pytest.mark.parametrize(("dscp", "outside"), [(True, 0xB8 | 2), (False, 2)])
async def test_the_outer_header_has_what_the_device_copies(
    engine: Engine, world: World, dscp: bool, outside: int
) -> None:
    made = await make_gre(engine, copies=HeaderCopies(dscp=dscp))
    send_tagged(world, outbound_packet(1, tos=0xB8 | 2), GRE1.vlan)
    assert world.ciphertext(made.outbound.key.spi)[IP].tos == outside


async def test_what_is_no_plain_gre_goes_nowhere(engine: Engine, world: World) -> None:
    made = await make_gre(engine)
    peer = transport(made.inbound)
    for behind in (
        GRE(key_present=1, key=7) / inbound_packet(1),
        GRE(proto=0x8847) / Raw(bytes(inbound_packet(2))),
        GRE(proto=0) / Raw(bytes(inbound_packet(3))),
        GRE() / inbound_packet(4),
    ):
        world.to_engine_wan(peer.encrypt(IP(bytes(IP(src=str(PEER), dst=str(LOCAL)) / behind))))
    assert world.up.receive(lambda frame: IP in frame)[IP].id == 4


async def test_counters_count_what_esp_carries(engine: Engine, world: World) -> None:
    made = await make_gre(engine)
    send_tagged(world, outbound_packet(1), GRE1.vlan)
    world.ciphertext(made.outbound.key.spi)
    world.to_engine_wan(sealed(made.inbound, GRE() / inbound_packet(2)))
    world.plaintext(lambda ip: ip.id == 2)
    counted = await engine.counters()
    for sa, packet in ((made.outbound, outbound_packet(1)), (made.inbound, inbound_packet(2))):
        assert counted[sa.key].packets == 1
        assert 0 <= counted[sa.key].octets - len(GRE() / packet) <= PADDING


async def test_a_rekey_keeps_the_device_and_may_change_what_it_copies(engine: Engine, world: World) -> None:
    old = await make_gre(engine)
    incoming, outgoing = gre_sa(Direction.IN), gre_sa(Direction.OUT)
    for sa in (incoming, outgoing):
        await engine.create(sa)
    both = replace(old.tunnel, inbound=(old.inbound.key, incoming.key), outbound=outgoing.key)
    await engine.update(both)
    send_tagged(world, outbound_packet(1), GRE1.vlan)
    assert opened(outgoing, world)[GRE].payload[IP].id == 1
    for number, sa in ((2, old.inbound), (3, incoming)):
        world.to_engine_wan(sealed(sa, GRE() / inbound_packet(number)))
        assert vlan_of(world.plaintext(lambda ip, number=number: ip.id == number)) == GRE1.vlan
    unmarked = gre_sa(Direction.OUT, copies=HeaderCopies(dscp=False))
    await engine.create(unmarked)
    changed = replace(both, inbound=(incoming.key,), outbound=unmarked.key)
    await engine.update(changed)
    assert (await engine.retrieve())[changed.key] == changed
    send_tagged(world, outbound_packet(4, tos=0xB8), GRE1.vlan)
    assert world.ciphertext(unmarked.key.spi)[IP].tos == 0


async def test_several_of_them_beside_other_tunnels(engine: Engine, world: World) -> None:
    """For other peers, an XFRM interface, and policies for networks."""
    plain = await make_site(engine)
    first = await make_gre(engine, GRE1, OTHER_PEER, 32)
    second = await make_gre(engine, GRE2, ip_address("198.51.100.9"), 33)
    xfrm = await make_routed(engine, XfrmInterface(900, "ipsec0"), ip_address("198.51.100.10"), 34)
    for number, made in enumerate((first, second, xfrm, first), 1):
        assert made.tunnel.interface is not None
        send_tagged(world, outbound_packet(number), made.tunnel.interface.vlan)
        world.ciphertext(made.outbound.key.spi)
    world.to_engine_up(outbound_packet(9))
    world.ciphertext(plain.outbound.key.spi)
    for number, made in enumerate((second, first), 20):
        world.to_engine_wan(sealed(made.inbound, GRE() / inbound_packet(number)))
        assert made.tunnel.interface is not None
        tag = vlan_of(world.plaintext(lambda ip, number=number: ip.id == number))
        assert tag == made.tunnel.interface.vlan


async def test_gre_is_of_all_sas_of_a_tunnel_with_an_interface(engine: Engine) -> None:
    made = await make_gre(engine)
    bare = make_sa(Direction.OUT)
    await engine.create(bare)
    with pytest.raises(EngineError, match="GRE is of all SAs"):
        await engine.update(replace(made.tunnel, outbound=bare.key))
    with pytest.raises(EngineError, match="GRE is of all SAs"):
        await engine.update(replace(made.tunnel, interface=None))
    assert (await engine.retrieve())[made.tunnel.key] == made.tunnel


async def test_an_sa_behind_gre_keeps_what_its_device_copies(engine: Engine, world: World) -> None:
    """Another TOS of the device takes a rekey."""
    made = await make_gre(engine)
    with pytest.raises(EngineError, match="change"):
        await engine.update(replace(made.outbound, copies=HeaderCopies(dscp=False)))
    assert (await engine.retrieve())[made.outbound.key] == made.outbound
    send_tagged(world, outbound_packet(1, tos=0xB8), GRE1.vlan)
    assert world.ciphertext(made.outbound.key.spi)[IP].tos == 0xB8


async def test_a_device_that_was_made_anew_has_another_tag(engine: Engine, world: World) -> None:
    made = await make_gre(engine)
    moved = replace(made.tunnel, interface=GRE2)
    await engine.update(moved)
    assert (await engine.retrieve())[moved.key] == moved
    send_tagged(world, outbound_packet(1), GRE1.vlan)
    send_tagged(world, outbound_packet(2), GRE2.vlan)
    assert opened(made.outbound, world)[GRE].payload[IP].id == 2


async def test_another_life_finds_the_tunnel_and_goes_on(engine: Engine, engine_name: str, world: World) -> None:
    if engine_name == "soft":
        pytest.skip("its objects end with it")
    made = await make_gre(engine, copies=HeaderCopies(dscp=False))
    another = make_engine(engine_name, world.context)
    await another.open()
    try:
        assert dict(await another.retrieve()) == {obj.key: obj for obj in made.objects}
        send_tagged(world, outbound_packet(1), GRE1.vlan)
        world.ciphertext(made.outbound.key.spi)
        await another.delete(made.tunnel.key)
        await another.create(made.tunnel)
        send_tagged(world, outbound_packet(2), GRE1.vlan)
        assert opened(made.outbound, world)[GRE].payload[IP].id == 2
        await clear(another)
    finally:
        await another.close()
