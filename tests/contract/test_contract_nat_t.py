"""What every engine does with ESP in UDP (RFC 3948): peers behind NAT."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.ipsec import ESP
from scapy.packet import Raw

from ipsec_gw.engines.port import Capabilities, Engine
from ipsec_gw.errors import EngineError
from ipsec_gw.model.ids import Direction, SaKey, TunnelId
from ipsec_gw.model.objects import NextHop, Selector, Tunnel, UdpEncap
from tests.contract.values import (
    GATEWAY_MAC,
    HERE,
    HOP,
    LAN,
    LOCAL,
    PEER,
    SELECTORS,
    THERE,
    TUNNEL_ID,
    Site,
    encapsulated,
    inbound_packet,
    inner,
    make_sa,
    oracle,
    outbound_packet,
)
from tests.contract.world import World

pytestmark = [pytest.mark.root, pytest.mark.asyncio(loop_scope="module")]

MAPPED = 31337


@pytest.fixture(autouse=True)
def _can(capabilities: Capabilities) -> None:
    if not capabilities.udp_encap:
        pytest.skip("this engine has no UDP encapsulation")


async def nat_site(engine: Engine, port: int = MAPPED, ours: int = 4500, *, esn: bool = False) -> Site:
    """The usual tunnel, its peer behind a NAT."""
    incoming = encapsulated(make_sa(Direction.IN, esn=esn), port, ours)
    outgoing = encapsulated(make_sa(Direction.OUT, esn=esn), port, ours)
    tunnel = Tunnel(TUNNEL_ID, LOCAL, PEER, (incoming.key,), outgoing.key, SELECTORS)
    for obj in (HOP, incoming, outgoing, tunnel):
        await engine.create(obj)
    return Site(incoming, outgoing, tunnel)


async def roadwarrior(engine: Engine, number: int, port: int) -> Site:
    """A client with a virtual IP of its own, behind the NAT that all others are behind."""
    incoming = encapsulated(make_sa(Direction.IN), port)
    outgoing = encapsulated(make_sa(Direction.OUT), port)
    selector = Selector(ip_network("0.0.0.0/0"), ip_network(virtual_ip(number)))
    tunnel = Tunnel(TunnelId(number, PEER), LOCAL, PEER, (incoming.key,), outgoing.key, (selector,))
    for obj in (incoming, outgoing, tunnel):
        await engine.create(obj)
    return Site(incoming, outgoing, tunnel)


def virtual_ip(number: int) -> str:
    return f"10.99.{number >> 8}.{number & 255}"


def both_ways(world: World, site: Site, ident: int, there: str = THERE) -> UDP:
    """One packet in, one out; the outer UDP header of the latter."""
    sent = IP(bytes(IP(src=there, dst=HERE, id=ident) / UDP(sport=1, dport=2) / Raw(b"in")))
    world.to_engine_wan(oracle(site.inbound).encrypt(sent, seq_num=ident))
    assert inner(world.plaintext(lambda ip: ip.id == ident)) == bytes(sent)
    return out(world, site, ident + 1, there)


def out(world: World, site: Site, ident: int, there: str = THERE) -> UDP:
    back = IP(bytes(IP(src=HERE, dst=there, id=ident) / UDP(sport=2, dport=1) / Raw(b"out")))
    world.to_engine_up(back)
    frame = world.datagram(site.outbound.key.spi)
    assert (frame[IP].src, frame[IP].dst) == (str(LOCAL), str(site.outbound.key.destination))
    assert frame[UDP].len == len(inner(frame)) - 20
    bare = IP(src=frame[IP].src, dst=frame[IP].dst, proto=50) / Raw(inner(frame)[28:])
    plain = oracle(replace(site.outbound, encap=None)).decrypt(IP(bytes(bare)))
    assert inner(plain) == bytes(back)
    return frame[UDP]


def ports(header: UDP) -> tuple[int, int]:
    return header.sport, header.dport


@pytest.mark.parametrize(
    ("peer", "ours"), [(4500, 4500), (MAPPED, 4500), (1, 4500), (65534, 4500), (MAPPED, 4501), (9, 40000)]
)
@pytest.mark.parametrize("esn", [False, True], ids=["", "esn"])
async def test_esp_in_udp_both_ways(engine: Engine, world: World, peer: int, ours: int, esn: bool) -> None:
    site = await nat_site(engine, peer, ours, esn=esn)
    header = both_ways(world, site, 1)
    assert ports(header) == (ours, peer)
    assert header.chksum == 0  # RFC 3948 2.1
    assert dict(await engine.retrieve()) == {obj.key: obj for obj in (HOP, site.inbound, site.outbound, site.tunnel)}


async def test_a_nat_that_maps_anew_changes_ports_and_nothing_else(engine: Engine, world: World) -> None:
    site = await nat_site(engine)
    peer = oracle(site.inbound)
    old = peer.encrypt(inbound_packet(1))
    world.to_engine_wan(old)
    world.plaintext(lambda ip: ip.id == 1)
    assert ports(out(world, site, 2)) == (4500, MAPPED)
    before = await engine.counters()
    for sa in (site.inbound, site.outbound):
        await engine.update(encapsulated(sa, 40001))
    moved = Site(encapsulated(site.inbound, 40001), encapsulated(site.outbound, 40001), site.tunnel)
    assert dict(await engine.retrieve()) == {obj.key: obj for obj in (HOP, moved.inbound, moved.outbound, moved.tunnel)}
    assert await engine.counters() == before
    world.to_engine_up(outbound_packet(3))
    frame = world.datagram(site.outbound.key.spi)
    assert ports(frame[UDP]) == (4500, 40001)
    assert ESP(bytes(frame[UDP].payload)).seq == 2  # the same key goes on with the next number
    again = peer.encrypt(inbound_packet(4))
    again[UDP].sport = 40001
    for packet in (old, again):  # the window has not moved: what was seen is still known
        world.to_engine_wan(packet)
    assert world.plaintext(lambda ip: True)[IP].id == 4
    assert (await engine.numbers())[site.inbound.key] == 2


async def test_the_local_port_can_move_too(engine: Engine, world: World) -> None:
    """MOBIKE: the peer goes on to another UDP port of ours."""
    site = await nat_site(engine)
    moved = Site(encapsulated(site.inbound, MAPPED, 4510), encapsulated(site.outbound, MAPPED, 4510), site.tunnel)
    for sa in (moved.inbound, moved.outbound):
        await engine.update(sa)
    assert ports(both_ways(world, moved, 1)) == (4510, MAPPED)


@pytest.mark.parametrize("port", [1, 40002, 65535])
async def test_another_source_port_is_no_obstacle(engine: Engine, world: World, port: int) -> None:
    """Who sends from where is decided before: by steering and the kernel (RFC 3947 5.1 needs the ICV checked first)."""
    site = await nat_site(engine)
    packet = oracle(site.inbound).encrypt(inbound_packet(1))
    packet[UDP].sport = port
    world.to_engine_wan(packet)
    world.plaintext(lambda ip: ip.id == 1)


async def test_a_udp_checksum_that_is_there_is_no_obstacle(engine: Engine, world: World) -> None:
    site = await nat_site(engine)
    packet = oracle(site.inbound).encrypt(inbound_packet(1))
    del packet[UDP].chksum
    packet = IP(bytes(packet))
    assert packet[UDP].chksum != 0
    world.to_engine_wan(packet)
    world.plaintext(lambda ip: ip.id == 1)


async def test_what_steering_should_not_bring_is_dropped(engine: Engine, world: World) -> None:
    """IKE, keepalives and runts are charon's and the kernel's; an engine that gets them makes nothing of them."""
    site = await nat_site(engine)
    outer = IP(src=str(PEER), dst=str(LOCAL)) / UDP(sport=MAPPED, dport=4500)
    for payload in (b"\xff", bytes(4) + b"ike" * 20, b"", b"\x01\x02\x03", bytes(8)):
        world.to_engine_wan(IP(bytes(outer / Raw(payload))))
    both_ways(world, site, 1)


async def test_many_peers_behind_one_nat(engine: Engine, told_apart: bool, world: World) -> None:
    """One address, one next hop, as many ports as clients; what goes to one never reaches another."""
    await engine.create(HOP)
    clients = {number: await roadwarrior(engine, number, 20000 + number) for number in range(1, 201)}
    for number in (1, 2, 100, 199, 200):
        header = both_ways(world, clients[number], number * 2, virtual_ip(number))
        assert ports(header) == (4500, 20000 + number)
    moved = clients[100]
    for sa in (moved.inbound, moved.outbound):
        await engine.update(encapsulated(sa, 60100))
    assert ports(both_ways(world, moved, 1000, virtual_ip(100))) == (4500, 60100)
    assert ports(both_ways(world, clients[99], 1010, virtual_ip(99))) == (4500, 20099)
    # A client cannot speak with the virtual IP of another one.
    peer = oracle(clients[1].inbound)
    stray = IP(bytes(IP(src=virtual_ip(2), dst=HERE, id=1020) / UDP(sport=1, dport=2)))
    fits = IP(bytes(IP(src=virtual_ip(1), dst=HERE, id=1021) / UDP(sport=1, dport=2)))
    for packet in (stray, fits):
        world.to_engine_wan(peer.encrypt(packet, seq_num=packet.id))
    assert world.plaintext(lambda ip: True)[IP].id == (1021 if told_apart else 1020)


async def test_one_peer_bare_and_one_in_udp(engine: Engine, world: World) -> None:
    bare_in, bare_out = make_sa(Direction.IN), make_sa(Direction.OUT)
    selector = Selector(LAN, ip_network("10.3.0.0/16"))
    site = await nat_site(engine)
    other = Tunnel(TunnelId(8, PEER), LOCAL, PEER, (bare_in.key,), bare_out.key, (selector,))
    for obj in (bare_in, bare_out, other):
        await engine.create(obj)
    both_ways(world, site, 1)
    sent = IP(bytes(IP(src="10.3.0.1", dst=HERE, id=7) / UDP(sport=1, dport=2)))
    world.to_engine_wan(oracle(bare_in).encrypt(sent))
    assert inner(world.plaintext(lambda ip: ip.id == 7)) == bytes(sent)
    world.to_engine_up(IP(bytes(IP(src=HERE, dst="10.3.0.1", id=8) / UDP(sport=1, dport=2))))
    world.ciphertext(bare_out.key.spi)


async def test_a_peer_that_moves_takes_its_inbound_sa_along(engine: Engine, world: World) -> None:
    """MOBIKE: the old tunnel goes, the SA gets its new source, a tunnel with a fresh outbound SA comes."""
    site = await nat_site(engine)
    peer = oracle(site.inbound)
    seen = peer.encrypt(inbound_packet(1))
    world.to_engine_wan(seen)
    world.plaintext(lambda ip: ip.id == 1)
    elsewhere = ip_address("198.51.100.99")
    await engine.delete(site.tunnel.key)
    fresh = make_sa(Direction.OUT)
    fresh = replace(encapsulated(fresh, 7777), key=SaKey(elsewhere, fresh.key.spi))
    moved = replace(encapsulated(site.inbound, 7777), source=elsewhere)
    tunnel = Tunnel(TunnelId(7, elsewhere), LOCAL, elsewhere, (moved.key,), fresh.key, SELECTORS)
    await engine.create(NextHop(elsewhere, LOCAL, HOP.interface, HOP.gateway, GATEWAY_MAC))
    await engine.update(moved)
    for obj in (fresh, tunnel):
        await engine.create(obj)
    packets = [peer.encrypt(inbound_packet(2)), seen.copy(), peer.encrypt(inbound_packet(3))]
    for packet in packets:
        packet[IP].src, packet[UDP].sport = str(elsewhere), 7777
        del packet[IP].chksum
        world.to_engine_wan(IP(bytes(packet)))
    assert [world.plaintext(lambda ip: True)[IP].id for _ in range(2)] == [2, 3]
    assert ports(out(world, Site(moved, fresh, tunnel), 4)) == (4500, 7777)


@pytest.mark.parametrize("ports_of", [UdpEncap(0, 4500), UdpEncap(4500, 0)], ids=["from 0", "to 0"])
@pytest.mark.parametrize("direction", Direction)
async def test_ports_that_are_none_are_refused(engine: Engine, direction: Direction, ports_of: UdpEncap) -> None:
    sa = make_sa(direction)
    with pytest.raises(EngineError, match=r"port 0"):
        await engine.create(replace(sa, encap=ports_of))
    whole = encapsulated(sa, MAPPED)
    await engine.create(whole)
    with pytest.raises(EngineError, match=r"port 0"):
        await engine.update(replace(whole, encap=ports_of))
    assert dict(await engine.retrieve()) == {sa.key: whole}


@pytest.mark.parametrize("direction", Direction)
async def test_an_sa_does_not_begin_or_end_to_be_encapsulated(engine: Engine, direction: Direction) -> None:
    bare = make_sa(direction)
    await engine.create(bare)
    with pytest.raises(EngineError, match="change"):
        await engine.update(encapsulated(bare, MAPPED))
    assert dict(await engine.retrieve()) == {bare.key: bare}
