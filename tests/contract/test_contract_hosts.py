"""Tunnel mode between the gateway's own address and its peer: what is inside has the addresses of what is outside."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, defragment, fragment
from scapy.layers.l2 import GRE
from scapy.packet import Packet

from ipsec_gw.engines.port import Engine
from ipsec_gw.model.ids import Direction, SaKey, TunnelId
from ipsec_gw.model.objects import NextHop, PortMatch, Selector, Tunnel
from tests.contract.conftest import clear, make_engine
from tests.contract.test_contract_transport import (
    FROM,
    HOST_ID,
    HOSTS,
    OTHER_ID,
    TO,
    Hosts,
    arrives,
    leaves,
    peer_of,
    received,
    sent,
    stand,
)
from tests.contract.test_contract_vxlan import PORT, VXLAN1, comes, gives, inside, outside, over, packet_with, tagged
from tests.contract.values import (
    GATEWAY,
    GATEWAY_MAC,
    LOCAL,
    PEER,
    SELECTORS,
    inbound_packet,
    inner,
    make_sa,
    make_site,
    oracle,
    outbound_packet,
)
from tests.contract.world import WAN, World

pytestmark = [pytest.mark.root, pytest.mark.asyncio(loop_scope="module")]

ALL_UDP = replace(HOSTS, protocol=17)


async def up(engine: Engine, *selectors: Selector, key: TunnelId = HOST_ID, rank: int = 0, port: int = 0) -> Hosts:
    return await stand(engine, *selectors, key=key, rank=rank, transport=False, port=port)


async def test_packets_have_the_same_addresses_outside_and_are_encrypted_once(engine: Engine, world: World) -> None:
    hosts = await up(engine)
    assert dict(await engine.retrieve()) == hosts.objects
    for ttl in (1, 64):
        packet = sent(TCP(sport=1000, dport=179), ttl, ttl=ttl, tos=0xB8)
        wire = leaves(world, hosts, packet)
        assert (wire.src, wire.dst, wire.proto) == (str(LOCAL), str(PEER), 50)
        assert wire.ttl >= 64
        arrives(world, hosts, received(TCP(sport=179, dport=1000), ttl, ttl=ttl, tos=0xB8))
    counted = await engine.counters()
    assert (counted[hosts.outbound.key].packets, counted[hosts.inbound.key].packets) == (2, 2)


UPPERS: dict[str, Packet] = {
    "a ping": ICMP(),
    "IKE": UDP(sport=500, dport=500),
    "ESP in UDP": UDP(sport=4500, dport=4500),
    "TCP": TCP(),
    "GRE with a key": GRE(key_present=1, key=7) / IP(src="10.1.0.5", dst="10.2.0.9"),
    "IPIP": IP(src="10.1.0.5", dst="10.2.0.9") / UDP(),
}


@pytest.mark.parametrize("upper", UPPERS.values(), ids=UPPERS.keys())
async def test_every_protocol_passes(engine: Engine, world: World, upper: Packet) -> None:
    """What the engine would answer or take for itself, too, and what a device of the kernel's has made."""
    hosts = await up(engine)
    leaves(world, hosts, sent(upper, 1))
    arrives(world, hosts, received(upper, 2))


async def test_behind_nat(engine: Engine, world: World) -> None:
    for port in (4500, 12345):
        hosts = await up(engine, port=port)
        packet = sent(UDP(sport=7, dport=9), 1)
        world.to_engine_up(packet)
        wire = IP(inner(world.datagram(hosts.outbound.key.spi)))
        assert (wire.src, wire.dst, wire[UDP].dport) == (str(LOCAL), str(PEER), port)
        assert bytes(peer_of(hosts.outbound).decrypt(wire)) == bytes(packet)
        arrives(world, hosts, received(UDP(sport=9, dport=7), 2))
        await clear(engine)


async def test_selectors_hold_both_ways(engine: Engine, world: World) -> None:
    """What the peer puts inside may have any addresses, other than in transport mode."""
    web = replace(HOSTS, protocol=6, destination_port=PortMatch(443, 0xFFFF))
    hosts = await up(engine, web)
    for stray in (TCP(sport=1, dport=80), UDP(sport=1, dport=443), ICMP()):
        world.to_engine_up(sent(stray, 1))
        gives(world, hosts, received(stray, 2))
    for fields in ({"src": "198.51.100.8"}, {"dst": "192.0.2.9"}):
        foreign = received(TCP(sport=443, dport=1), 3)
        for name, address in fields.items():
            setattr(foreign, name, address)
        del foreign.chksum
        gives(world, hosts, IP(bytes(foreign)))
    world.to_engine_up(sent(TCP(sport=1, dport=443), 4))
    wire = IP(inner(world.wan.receive(lambda frame: IP in frame)))
    assert wire.proto == 50, "nothing leaves in clear"
    assert peer_of(hosts.outbound).decrypt(wire)[IP].id == 4
    gives(world, hosts, received(TCP(sport=443, dport=1), 5))
    assert world.plaintext(lambda ip: True)[IP].id == 5
    assert (await engine.counters())[hosts.outbound.key].packets == 1


async def test_one_peer_does_not_speak_for_another(engine: Engine, world: World, told_apart: bool) -> None:
    """Each has such a tunnel, and the addresses inside are its own to choose (DESIGN.md, invariant 8)."""
    if not told_apart:
        pytest.skip("an SPD holds what comes out to the selectors of all tunnels")
    site = await make_site(engine)
    hosts = await up(engine)
    far = await up_to(engine, ip_address("198.51.100.9"))
    gives(world, far, received(ICMP(), 1))
    gives(world, far, inbound_packet(2))
    world.to_engine_wan(oracle(site.inbound).encrypt(received(ICMP(), 3)))
    gives(world, hosts, received(ICMP(), 4))
    assert world.plaintext(lambda ip: True)[IP].id == 4


async def up_to(engine: Engine, peer: object) -> Hosts:
    """The same to another peer."""
    there = ip_address(str(peer))
    incoming, outgoing = make_sa(Direction.IN), make_sa(Direction.OUT)
    incoming = replace(incoming, source=there)
    outgoing = replace(outgoing, key=SaKey(there, outgoing.key.spi))
    selector = Selector(ip_network(LOCAL), ip_network(there))
    tunnel = Tunnel(TunnelId(57, there), LOCAL, there, (incoming.key,), outgoing.key, (selector,), hosts=True)
    for obj in (NextHop(there, LOCAL, WAN, GATEWAY, GATEWAY_MAC), incoming, outgoing, tunnel):
        await engine.create(obj)
    return Hosts(incoming, outgoing, tunnel)


async def test_an_exception_does_not_come_out(engine: Engine, world: World) -> None:
    hosts = await up(engine)
    await engine.update(replace(hosts.tunnel, exceptions=(replace(HOSTS, protocol=132),)))
    gives(world, hosts, IP(bytes(IP(src=str(PEER), dst=str(LOCAL), id=1, proto=132) / bytes(40))))
    arrives(world, hosts, received(ICMP(), 2))


@pytest.mark.parametrize("length", [1500, 4000, 20000])
async def test_fragments_of_a_datagram_are_protected_as_one_packet(engine: Engine, world: World, length: int) -> None:
    """They have no ports, by which a tunnel may be chosen, here and by the peer."""
    hosts = await up(engine, replace(HOSTS, protocol=17, destination_port=PortMatch(9, 0xFFFF)))
    packet = sent(UDP(sport=7, dport=9), 1, length)
    for piece in fragment(packet, 1400):
        world.to_engine_up(piece)
    pieces: list[IP] = []
    while not pieces or pieces[-1].flags.MF:
        frame = world.wan.receive(lambda frame: IP in frame and frame[IP].proto == 50)
        pieces.append(IP(inner(frame)))
        assert pieces[-1].len <= 1500
    (whole,) = defragment(pieces)
    assert bytes(peer_of(hosts.outbound).decrypt(IP(bytes(whole)))) == bytes(packet)


async def rekeyed(engine: Engine, hosts: Hosts) -> Hosts:
    """A second pair, both inbound SAs in use."""
    incoming, outgoing = make_sa(Direction.IN), make_sa(Direction.OUT)
    for sa in (incoming, outgoing):
        await engine.create(sa)
    tunnel = replace(hosts.tunnel, inbound=(incoming.key, hosts.inbound.key), outbound=outgoing.key)
    await engine.update(tunnel)
    return Hosts(incoming, outgoing, tunnel)


async def test_rekey_loses_nothing(engine: Engine, world: World) -> None:
    hosts = await up(engine)
    leaves(world, hosts, sent(ICMP(), 1))
    new = await rekeyed(engine, hosts)
    for one, ident in ((hosts, 2), (new, 3), (hosts, 4)):
        arrives(world, one, received(ICMP(), ident))
    leaves(world, new, sent(ICMP(), 5))
    await engine.delete(hosts.outbound.key)
    await engine.update(replace(new.tunnel, inbound=(new.inbound.key,)))
    await engine.delete(hosts.inbound.key)
    gives(world, hosts, received(ICMP(), 6))
    arrives(world, new, received(ICMP(), 7))
    leaves(world, new, sent(ICMP(), 8))


@pytest.mark.parametrize("transport", [False, True], ids=["both in tunnel mode", "one in transport mode"])
async def test_two_of_the_same_hosts_are_told_apart_by_ports(engine: Engine, world: World, transport: bool) -> None:
    to, back = await up(engine, TO), await stand(engine, FROM, key=OTHER_ID, transport=transport)
    assert dict(await engine.retrieve()) == to.objects | back.objects
    for ident in (1, 2):
        leaves(world, to, sent(UDP(sport=40000, dport=4789), ident))
        leaves(world, back, sent(UDP(sport=4789, dport=40000), ident))
    arrives(world, to, received(UDP(sport=4789, dport=40000), 3))
    arrives(world, back, received(UDP(sport=40000, dport=4789), 4))
    world.to_engine_up(sent(UDP(sport=7, dport=9), 5))
    leaves(world, to, sent(UDP(sport=40000, dport=4789), 6))
    for gone in (to.tunnel.key, to.inbound.key, to.outbound.key):
        await engine.delete(gone)
    world.to_engine_up(sent(UDP(sport=40000, dport=4789), 7))
    leaves(world, back, sent(UDP(sport=4789, dport=40000), 8))
    arrives(world, back, received(UDP(sport=40000, dport=4789), 9))


async def test_another_life_finds_them_and_goes_on(engine: Engine, engine_name: str, world: World) -> None:
    if engine_name == "soft":
        pytest.skip("its objects live in this process")
    to, back = await up(engine, TO, rank=1), await up(engine, FROM, key=OTHER_ID)
    transport = await stand(engine, replace(HOSTS, protocol=6), key=TunnelId(58, PEER))
    everything = to.objects | back.objects | transport.objects
    leaves(world, to, sent(UDP(sport=40000, dport=4789), 1))
    another = make_engine(engine_name, world.context)
    await another.open()
    try:
        assert dict(await another.retrieve()) == everything
        leaves(world, to, sent(UDP(sport=40000, dport=4789), 2))
        arrives(world, back, received(UDP(sport=40000, dport=4789), 3))
        leaves(world, transport, sent(TCP(), 4))
        await another.delete(back.tunnel.key)
        new = await rekeyed(another, to)
        leaves(world, new, sent(UDP(sport=40000, dport=4789), 5))
        arrives(world, new, received(UDP(sport=4789, dport=40000), 6))
        await clear(another)
    finally:
        await another.close()


@pytest.mark.parametrize("transport", [False, True], ids=["from tunnel mode", "from transport mode"])
async def test_the_mode_may_change_with_the_sas(engine: Engine, world: World, transport: bool) -> None:
    """swanctl loads the child anew with another mode, and its reqid stays."""
    hosts = await stand(engine, transport=transport)
    incoming, outgoing = (replace(make_sa(way), transport=not transport) for way in (Direction.IN, Direction.OUT))
    for obj in (incoming, outgoing):
        await engine.create(obj)
    tunnel = replace(hosts.tunnel, inbound=(incoming.key,), outbound=outgoing.key)
    await engine.update(tunnel)
    new = Hosts(incoming, outgoing, tunnel)
    leaves(world, new, sent(ICMP(), 1))
    arrives(world, new, received(ICMP(), 2))


async def test_its_selectors_may_become_networks_and_hosts_again(engine: Engine, world: World) -> None:
    hosts = await up(engine)
    lan = replace(hosts.tunnel, selectors=SELECTORS, hosts=False)
    await engine.update(lan)
    world.to_engine_up(outbound_packet(1))
    frame = world.ciphertext(hosts.outbound.key.spi)
    assert inner(peer_of(hosts.outbound).decrypt(IP(inner(frame)))) == bytes(outbound_packet(1))
    await engine.update(hosts.tunnel)
    leaves(world, hosts, sent(ICMP(), 2))
    arrives(world, hosts, received(ICMP(), 3))


@pytest.mark.parametrize("modes", [(False,), (False, False), (True, False), (False, True)], ids=str)
async def test_frames_of_a_vxlan_device_over_it(engine: Engine, world: World, modes: tuple[bool, ...]) -> None:
    """Over one child for all UDP, or one for each way; in transport mode where that is true."""
    if len(modes) == 1:
        children = [await up(engine, ALL_UDP)] * 2
    else:
        children = [
            await stand(engine, selector, key=key, rank=rank, transport=mode)
            for selector, key, rank, mode in zip((TO, FROM), (HOST_ID, OTHER_ID), (1, 0), modes, strict=True)
        ]
    sends, receives = children
    overlay = over(*children)
    await engine.create(overlay)
    assert (await engine.retrieve())[overlay.key] == overlay
    back = packet_with(inside())
    for _ in range(2):
        world.up.send_raw(tagged(outside(), VXLAN1))
        wire = IP(inner(world.ciphertext(sends.outbound.key.spi)))
        opened = IP(bytes(peer_of(sends.outbound).decrypt(wire)))
        assert (opened.src, opened.dst, opened[UDP].dport) == (str(LOCAL), str(PEER), PORT)
        assert bytes(opened[UDP].payload)[8:] == bytes(outside())
        gives(world, receives, back)
        comes(world, inside())
    await engine.delete(overlay.key)
    gives(world, receives, back)
    assert inner(world.plaintext(lambda ip: True)) == bytes(back)


async def test_another_life_finds_the_overlay_too(engine: Engine, engine_name: str, world: World) -> None:
    if engine_name == "soft":
        pytest.skip("its objects end with it")
    hosts = await up(engine, ALL_UDP)
    overlay = over(hosts)
    await engine.create(overlay)
    another = make_engine(engine_name, world.context)
    await another.open()
    try:
        assert dict(await another.retrieve()) == {**hosts.objects, overlay.key: overlay}
        world.up.send_raw(tagged(outside(), VXLAN1))
        wire = IP(inner(world.ciphertext(hosts.outbound.key.spi)))
        assert bytes(peer_of(hosts.outbound).decrypt(wire)[UDP].payload)[8:] == bytes(outside())
        gives(world, hosts, packet_with(inside()))
        comes(world, inside())
        await clear(another)
    finally:
        await another.close()
