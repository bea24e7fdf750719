"""Transport mode between the gateway's own address and its peer: packets keep their header (RFC 4303 §3.1.1)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from ipaddress import ip_address, ip_network

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, defragment, fragment
from scapy.layers.ipsec import ESP, SecurityAssociation
from scapy.packet import Packet, Raw

from ipsec_gw.engines.port import Capabilities, Engine
from ipsec_gw.errors import EngineError
from ipsec_gw.model.algorithms import ALGORITHMS, CHACHA20_POLY1305, EspAlgorithm
from ipsec_gw.model.ids import Direction, TunnelId
from ipsec_gw.model.objects import EngineObject, EngineSa, PortMatch, Selector, Tunnel
from tests.contract.conftest import make_engine
from tests.contract.values import (
    GATEWAY_MAC,
    HOP,
    LOCAL,
    PEER,
    SELECTORS,
    TUNNEL_ID,
    encapsulated,
    inbound_packet,
    inner,
    make_sa,
    make_site,
    oracle,
    outbound_packet,
)
from tests.contract.world import World

pytestmark = [pytest.mark.root, pytest.mark.asyncio(loop_scope="module")]

HOSTS = Selector(ip_network(LOCAL), ip_network(PEER))
HOST_ID = TunnelId(55, PEER)

EITHER_MODE = pytest.mark.parametrize("transport", [True, False], ids=["transport mode", "tunnel mode"])
"""Of what holds in both: the rest of tunnel mode between hosts is in ``test_contract_hosts.py``."""


@cache
def peer_of(sa: EngineSa) -> SecurityAssociation:
    """The peer's side of an SA, which counts its packets."""
    if not sa.transport:
        return oracle(sa)
    name = "CHACHA20-POLY1305" if sa.algorithm == CHACHA20_POLY1305 else "AES-GCM"
    key = sa.secret.reveal() + sa.salt.reveal()
    return SecurityAssociation(ESP, spi=sa.key.spi, crypt_algo=name, crypt_key=key, esn_en=sa.esn)


def sent(upper: Packet, ident: int, length: int = 40, **fields: object) -> IP:
    """From this gateway to its peer."""
    return IP(bytes(IP(src=str(LOCAL), dst=str(PEER), id=ident, **fields) / upper / Raw(bytes(length))))


def received(upper: Packet, ident: int, length: int = 40, **fields: object) -> IP:
    """From the peer to this gateway."""
    return IP(bytes(IP(src=str(PEER), dst=str(LOCAL), id=ident, **fields) / upper / Raw(bytes(length))))


@dataclass(frozen=True)
class Hosts:
    """A pair of SAs that stands in an engine."""

    inbound: EngineSa
    outbound: EngineSa
    tunnel: Tunnel

    @property
    def objects(self) -> dict[object, EngineObject]:
        return {obj.key: obj for obj in (HOP, self.inbound, self.outbound, self.tunnel)}


async def stand(
    engine: Engine,
    *selectors: Selector,
    key: TunnelId = HOST_ID,
    rank: int = 0,
    transport: bool = True,
    port: int = 0,
    **of_sas: object,
) -> Hosts:
    """With a ``port`` of the peer in UDP."""
    incoming, outgoing = (replace(make_sa(way, **of_sas), transport=transport) for way in (Direction.IN, Direction.OUT))  # type: ignore[arg-type]
    if port:
        incoming, outgoing = encapsulated(incoming, port), encapsulated(outgoing, port)
    tunnel = Tunnel(key, LOCAL, PEER, (incoming.key,), outgoing.key, selectors or (HOSTS,), hosts=True, rank=rank)
    there = await engine.retrieve()
    for obj in (HOP, incoming, outgoing, tunnel):
        if obj.key not in there:
            await engine.create(obj)
    return Hosts(incoming, outgoing, tunnel)


def leaves(world: World, hosts: Hosts, packet: IP) -> IP:
    """The packet as it is on the wire, opened by the peer and found unchanged."""
    world.to_engine_up(packet)
    frame = world.ciphertext(hosts.outbound.key.spi)
    wire = IP(inner(frame))
    assert (frame.src, frame.dst) == (world.context.wan[0].mac, GATEWAY_MAC)
    assert bytes(peer_of(hosts.outbound).decrypt(IP(bytes(wire)))) == bytes(packet)
    return wire


def arrives(world: World, hosts: Hosts, packet: IP) -> None:
    world.to_engine_wan(peer_of(hosts.inbound).encrypt(packet))
    assert inner(world.plaintext(lambda ip: ip.id == packet.id)) == bytes(packet)


@pytest.mark.parametrize("esn", [False, True], ids=["plain", "esn"])
@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda algorithm: algorithm.name)
async def test_packets_keep_their_header(
    engine: Engine, world: World, capabilities: Capabilities, algorithm: EspAlgorithm, esn: bool
) -> None:
    if algorithm not in capabilities.algorithms:
        pytest.skip(f"this installation has no {algorithm.name}")
    hosts = await stand(engine, algorithm=algorithm, esn=esn)
    assert dict(await engine.retrieve()) == hosts.objects
    for ttl in (1, 64):
        packet = sent(TCP(sport=1000, dport=179), ttl, ttl=ttl, tos=0xB9, flags="DF")
        wire = leaves(world, hosts, packet)
        assert (wire.src, wire.dst, wire.ttl, wire.tos, wire.id, str(wire.flags)) == (
            str(LOCAL),
            str(PEER),
            ttl,
            0xB9,
            ttl,
            "DF",
        )
        arrives(world, hosts, received(TCP(sport=179, dport=1000), ttl, ttl=ttl, tos=0xB9, flags="DF"))


@pytest.mark.parametrize("upper", [ICMP(), UDP(sport=7, dport=9), UDP(sport=500, dport=500), TCP()], ids=str)
async def test_every_protocol_passes(engine: Engine, world: World, upper: Packet) -> None:
    """What the engine would answer or take for itself, too: pings, and the ports of IKE."""
    hosts = await stand(engine)
    leaves(world, hosts, sent(upper, 1))
    arrives(world, hosts, received(upper, 2))


async def test_selectors_hold_both_ways(engine: Engine, world: World) -> None:
    web = replace(HOSTS, protocol=6, destination_port=PortMatch(443, 0xFFFF))
    hosts = await stand(engine, web)
    for stray in (TCP(sport=1, dport=80), UDP(sport=1, dport=443), ICMP()):
        world.to_engine_up(sent(stray, 1))
        world.to_engine_wan(peer_of(hosts.inbound).encrypt(received(stray, 2)))
    foreign = received(TCP(sport=443, dport=1), 3)
    foreign.src = "198.51.100.8"  # the header is the ESP packet's: what comes from elsewhere is of no SA
    del foreign.chksum
    world.to_engine_wan(peer_of(hosts.inbound).encrypt(IP(bytes(foreign))))
    world.to_engine_up(sent(TCP(sport=1, dport=443), 4))
    wire = IP(inner(world.wan.receive(lambda frame: IP in frame)))
    assert wire.proto == 50, "nothing leaves in clear"
    assert peer_of(hosts.outbound).decrypt(wire)[IP].id == 4
    world.to_engine_wan(peer_of(hosts.inbound).encrypt(received(TCP(sport=443, dport=1), 5)))
    assert world.plaintext(lambda ip: True)[IP].id == 5
    counted = await engine.counters()
    assert counted[hosts.outbound.key].packets == 1


@pytest.mark.parametrize("length", [1500, 4000, 20000])
async def test_fragments_of_a_datagram_are_protected_as_one_packet(engine: Engine, world: World, length: int) -> None:
    """The kernel takes apart what is longer than the route's MTU, and the peer puts ESP together before it opens it."""
    hosts = await stand(engine, replace(HOSTS, protocol=17, destination_port=PortMatch(9, 0xFFFF)))
    packet = sent(UDP(sport=7, dport=9), 1, length)
    for piece in fragment(packet, 1400):
        world.to_engine_up(piece)
    spi = hosts.outbound.key.spi.to_bytes(4, "big")
    pieces: list[IP] = []
    while not pieces or pieces[-1].flags.MF:
        frame = world.wan.receive(lambda frame: IP in frame and frame[IP].proto == 50)
        pieces.append(IP(inner(frame)))
        assert pieces[-1].len <= 1500
    (whole,) = defragment(pieces)
    assert bytes(whole.payload)[:4] == spi
    opened = peer_of(hosts.outbound).decrypt(IP(bytes(whole)))
    assert packet.ttl - 1 <= opened.ttl <= packet.ttl, "VPP takes one hop where it takes a packet apart"
    opened.id, opened.ttl = packet.id, packet.ttl  # who takes packets apart may number them
    del opened.chksum
    assert bytes(opened) == bytes(packet)


@EITHER_MODE
async def test_replays_and_forgeries_are_dropped(engine: Engine, world: World, transport: bool) -> None:
    hosts = await stand(engine, transport=transport)
    peer = peer_of(hosts.inbound)
    first = peer.encrypt(received(ICMP(), 1))
    forged = bytearray(bytes(peer.encrypt(received(ICMP(), 2))))
    forged[-1] ^= 1
    for packet in (first, first, IP(bytes(forged)), peer.encrypt(received(ICMP(), 3))):
        world.to_engine_wan(packet)
    assert [world.plaintext(lambda ip: True)[IP].id for _ in range(2)] == [1, 3]


async def test_rekey_loses_nothing(engine: Engine, world: World) -> None:
    hosts = await stand(engine)
    arrives(world, hosts, received(ICMP(), 1))
    leaves(world, hosts, sent(ICMP(), 2))
    incoming, outgoing = (replace(make_sa(way), transport=True) for way in (Direction.IN, Direction.OUT))
    await engine.create(incoming)
    both = replace(hosts.tunnel, inbound=(incoming.key, hosts.inbound.key))
    await engine.update(both)
    new = Hosts(incoming, outgoing, both)
    for one, ident in ((hosts, 3), (new, 4), (hosts, 5)):
        arrives(world, one, received(ICMP(), ident))
    await engine.create(outgoing)
    switched = replace(both, outbound=outgoing.key)
    await engine.update(switched)
    leaves(world, new, sent(ICMP(), 6))
    await engine.delete(hosts.outbound.key)
    await engine.update(replace(switched, inbound=(incoming.key,)))
    await engine.delete(hosts.inbound.key)
    world.to_engine_wan(peer_of(hosts.inbound).encrypt(received(ICMP(), 7)))
    arrives(world, new, received(ICMP(), 8))
    leaves(world, new, sent(ICMP(), 9))


ANYWHERE = Selector(SELECTORS[0].source, ip_network("0.0.0.0/0"))


@EITHER_MODE
@pytest.mark.parametrize("selector", [SELECTORS[0], ANYWHERE], ids=["networks", "anywhere"])
async def test_it_stands_beside_a_tunnel_to_the_same_peer(
    engine: Engine, world: World, selector: Selector, transport: bool
) -> None:
    site = await make_site(engine)
    await engine.update(replace(site.tunnel, selectors=(selector,)))
    hosts = await stand(engine, transport=transport)
    arrives(world, hosts, received(ICMP(), 1))
    leaves(world, hosts, sent(ICMP(), 2))
    world.to_engine_wan(oracle(site.inbound).encrypt(inbound_packet(3)))
    assert inner(world.plaintext(lambda ip: ip.id == 3)) == bytes(inbound_packet(3))
    world.to_engine_up(outbound_packet(4))
    frame = world.ciphertext(site.outbound.key.spi)
    assert inner(oracle(site.outbound).decrypt(IP(inner(frame)))) == bytes(outbound_packet(4))
    for key in (TUNNEL_ID, site.inbound.key, site.outbound.key):
        await engine.delete(key)
    arrives(world, hosts, received(ICMP(), 5))
    leaves(world, hosts, sent(ICMP(), 6))


OTHER_ID = TunnelId(56, PEER)
VXLAN = PortMatch(4789, 0xFFFF)
TO = replace(HOSTS, protocol=17, destination_port=VXLAN)
FROM = replace(HOSTS, protocol=17, source_port=VXLAN)


def taken(world: World, packet: IP) -> int:
    """The SPI that a packet leaves with."""
    world.to_engine_up(packet)
    frame = world.wan.receive(lambda frame: IP in frame and frame[IP].proto == 50)
    return int.from_bytes(inner(frame)[20:24], "big")


async def test_two_of_the_same_hosts_are_told_apart_by_ports(engine: Engine, world: World) -> None:
    """As the two children of a VXLAN device are."""
    to, back = await stand(engine, TO), await stand(engine, FROM, key=OTHER_ID)
    assert dict(await engine.retrieve()) == to.objects | back.objects
    for ident in (1, 2):
        leaves(world, to, sent(UDP(sport=40000, dport=4789), ident))
        leaves(world, back, sent(UDP(sport=4789, dport=40000), ident))
    arrives(world, to, received(UDP(sport=4789, dport=40000), 3))
    arrives(world, back, received(UDP(sport=40000, dport=4789), 4))
    world.to_engine_up(sent(UDP(sport=7, dport=9), 5))
    leaves(world, to, sent(UDP(sport=40000, dport=4789), 6))


@EITHER_MODE
@pytest.mark.parametrize("ranks", [(0, 1), (1, 0)])
async def test_what_fits_two_belongs_to_the_greater_rank(
    engine: Engine, world: World, ranks: tuple[int, int], transport: bool
) -> None:
    to, back = [
        await stand(engine, selector, key=key, rank=rank, transport=transport)
        for selector, key, rank in zip((TO, FROM), (HOST_ID, OTHER_ID), ranks, strict=True)
    ]
    spis = to.outbound.key.spi, back.outbound.key.spi
    both = UDP(sport=4789, dport=4789)
    assert taken(world, sent(both, 1)) == spis[ranks.index(1)]
    for one, rank in ((to, ranks[1]), (back, ranks[0])):
        await engine.update(replace(one.tunnel, rank=rank))
    assert taken(world, sent(both, 2)) == spis[ranks.index(0)]
    assert taken(world, sent(UDP(sport=1, dport=4789), 3)) == spis[0]
    assert taken(world, sent(UDP(sport=4789, dport=1), 4)) == spis[1]


async def test_one_of_two_goes_and_the_other_stays(engine: Engine, world: World) -> None:
    to, back = await stand(engine, TO), await stand(engine, FROM, key=OTHER_ID)
    leaves(world, to, sent(UDP(sport=40000, dport=4789), 1))
    for gone in (to.tunnel.key, to.inbound.key, to.outbound.key):
        await engine.delete(gone)
    world.to_engine_up(sent(UDP(sport=40000, dport=4789), 2))
    leaves(world, back, sent(UDP(sport=4789, dport=40000), 3))
    arrives(world, back, received(UDP(sport=40000, dport=4789), 4))


async def test_another_life_finds_both_of_the_same_hosts(engine: Engine, engine_name: str, world: World) -> None:
    if engine_name == "soft":
        pytest.skip("its objects live in this process")
    to, back = await stand(engine, TO, rank=1), await stand(engine, FROM, key=OTHER_ID)
    another = make_engine(engine_name, world.context)
    await another.open()
    assert dict(await another.retrieve()) == to.objects | back.objects
    await another.delete(back.tunnel.key)
    leaves(world, to, sent(UDP(sport=40000, dport=4789), 1))
    arrives(world, to, received(UDP(sport=4789, dport=40000), 2))
    await another.close()


async def test_another_life_finds_it_and_goes_on(engine: Engine, engine_name: str, world: World) -> None:
    if engine_name == "soft":
        pytest.skip("its objects live in this process")
    hosts = await stand(engine)
    leaves(world, hosts, sent(ICMP(), 1))
    another = make_engine(engine_name, world.context)
    await another.open()
    assert dict(await another.retrieve()) == hosts.objects
    leaves(world, hosts, sent(ICMP(), 2))
    arrives(world, hosts, received(ICMP(), 3))
    await another.close()


async def test_a_tunnel_has_sas_of_one_mode(engine: Engine) -> None:
    incoming, outgoing = make_sa(Direction.IN), replace(make_sa(Direction.OUT), transport=True)
    for obj in (HOP, incoming, outgoing):
        await engine.create(obj)
    with pytest.raises(EngineError, match="both modes"):
        await engine.create(Tunnel(HOST_ID, LOCAL, PEER, (incoming.key,), outgoing.key, (HOSTS,)))


async def test_the_mode_may_change_with_the_sas(engine: Engine, world: World) -> None:
    """swanctl loads the child anew with another mode, and its reqid stays."""
    hosts = await stand(engine)
    incoming, outgoing = make_sa(Direction.IN), make_sa(Direction.OUT)
    for obj in (incoming, outgoing):
        await engine.create(obj)
    lan = Selector(ip_network("10.1.0.0/16"), ip_network("10.2.0.0/16"))
    tunnel = replace(hosts.tunnel, inbound=(incoming.key,), outbound=outgoing.key, selectors=(lan,), hosts=False)
    await engine.update(tunnel)
    world.to_engine_up(outbound_packet(4))
    frame = world.ciphertext(outgoing.key.spi)
    assert inner(oracle(outgoing).decrypt(IP(inner(frame)))) == bytes(outbound_packet(4))
    assert ip_address(frame[IP].src) == LOCAL
