"""What every engine does with packets."""

from __future__ import annotations

from dataclasses import replace

import pytest
from scapy.layers.inet import IP, UDP, defragment
from scapy.layers.ipsec import ESP
from scapy.packet import Raw

from ipsec_gw.engines.port import Capabilities, Engine
from ipsec_gw.model.algorithms import ALGORITHMS, EspAlgorithm
from ipsec_gw.model.ids import Direction, EngineName
from ipsec_gw.model.objects import HeaderCopies, Tunnel
from tests.contract.values import (
    GATEWAY_MAC,
    HERE,
    HOP,
    LOCAL,
    PEER,
    SELECTORS,
    THERE,
    TUNNEL_ID,
    inbound_packet,
    inner,
    make_sa,
    make_site,
    oracle,
    outbound_packet,
)
from tests.contract.world import World

pytestmark = [pytest.mark.root, pytest.mark.asyncio(loop_scope="module")]
EACH_ALGORITHM = pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda algorithm: algorithm.name)


@EACH_ALGORITHM
async def test_esp_becomes_plaintext(
    engine: Engine, world: World, capabilities: Capabilities, algorithm: EspAlgorithm
) -> None:
    if algorithm not in capabilities.algorithms:
        pytest.skip(f"this installation has no {algorithm.name}")
    site = await make_site(engine, algorithm)
    peer = oracle(site.inbound)
    for ident in (1, 2, 3):
        sent = inbound_packet(ident, ttl=64)
        world.to_engine_wan(peer.encrypt(sent))
        frame = world.plaintext(lambda ip, ident=ident: ip.id == ident)
        assert inner(frame) == bytes(sent)  # the TTL included
        assert frame.dst == world.context.up_kernel.mac
        assert frame.src == world.context.up_engine.mac


@EACH_ALGORITHM
async def test_plaintext_becomes_esp(
    engine: Engine, world: World, capabilities: Capabilities, algorithm: EspAlgorithm
) -> None:
    if algorithm not in capabilities.algorithms:
        pytest.skip(f"this installation has no {algorithm.name}")
    site = await make_site(engine, algorithm)
    peer = oracle(site.outbound)
    for number in (1, 2, 3):
        sent = outbound_packet(number, ttl=64)
        world.to_engine_up(sent)
        frame = world.ciphertext(site.outbound.key.spi)
        assert (frame.src, frame.dst) == (world.context.wan[0].mac, GATEWAY_MAC)
        assert (frame[IP].src, frame[IP].dst) == (str(LOCAL), str(PEER))
        assert ESP(bytes(frame[IP].payload)).seq == number
        assert inner(peer.decrypt(IP(inner(frame)))) == bytes(sent)  # the TTL included


async def test_a_packet_with_ttl_1_passes_both_ways(engine: Engine, world: World) -> None:
    site = await make_site(engine)
    world.to_engine_wan(oracle(site.inbound).encrypt(inbound_packet(1, ttl=1)))
    assert world.plaintext(lambda ip: ip.id == 1)[IP].ttl == 1
    world.to_engine_up(outbound_packet(2, ttl=1))
    frame = world.ciphertext(site.outbound.key.spi)
    assert oracle(site.outbound).decrypt(IP(inner(frame)))[IP].ttl == 1


async def test_a_replayed_packet_is_dropped(engine: Engine, world: World) -> None:
    site = await make_site(engine)
    peer = oracle(site.inbound)
    first, second = peer.encrypt(inbound_packet(1)), peer.encrypt(inbound_packet(2))
    for packet in (first, first, second):
        world.to_engine_wan(packet)
    seen = [world.plaintext(lambda ip: True)[IP].id for _ in range(2)]
    assert seen == [1, 2]


async def test_without_a_window_replays_pass(engine: Engine, world: World) -> None:
    site = await make_site(engine, window=0)
    packet = oracle(site.inbound).encrypt(inbound_packet(1))
    for _ in range(2):
        world.to_engine_wan(packet)
        world.plaintext(lambda ip: ip.id == 1)


async def test_a_forged_packet_is_dropped(engine: Engine, world: World) -> None:
    site = await make_site(engine)
    peer = oracle(site.inbound)
    forged = bytearray(bytes(peer.encrypt(inbound_packet(1))))
    forged[-1] ^= 1
    world.to_engine_wan(IP(bytes(forged)))
    world.to_engine_wan(peer.encrypt(inbound_packet(2)))
    assert world.plaintext(lambda ip: True)[IP].id == 2


@pytest.mark.parametrize(
    ("source", "destination"),
    [("10.9.0.1", HERE), (HERE, HERE), ("10.2.0.9", "10.9.0.1"), ("10.2.0.9", str(LOCAL))],
    ids=["foreign source", "our own source", "foreign destination", "the gateway itself"],
)
async def test_what_does_not_fit_the_selectors_is_dropped(
    engine: Engine, world: World, source: str, destination: str
) -> None:
    site = await make_site(engine)
    peer = oracle(site.inbound)
    stray = inbound_packet(1)
    stray.src, stray.dst = source, destination
    del stray.chksum
    world.to_engine_wan(peer.encrypt(IP(bytes(stray))))
    world.to_engine_wan(peer.encrypt(inbound_packet(2)))
    assert world.plaintext(lambda ip: True)[IP].id == 2


async def test_extended_sequence_numbers(engine: Engine, world: World, capabilities: Capabilities) -> None:
    if not capabilities.esn:
        pytest.skip("this engine has no ESN")
    site = await make_site(engine, esn=True)
    sent = inbound_packet(1)
    world.to_engine_wan(oracle(site.inbound).encrypt(sent))
    assert inner(world.plaintext(lambda ip: ip.id == 1)) == bytes(sent)
    world.to_engine_up(outbound_packet(2))
    frame = world.ciphertext(site.outbound.key.spi)
    assert inner(oracle(site.outbound).decrypt(IP(inner(frame)))) == bytes(outbound_packet(2))


async def test_counters_count_packets_and_inner_bytes(engine: Engine, world: World) -> None:
    site = await make_site(engine)
    peer = oracle(site.inbound)
    length = len(bytes(inbound_packet(1)))
    for ident in (1, 2, 3):
        world.to_engine_wan(peer.encrypt(inbound_packet(ident)))
        world.plaintext(lambda ip, ident=ident: ip.id == ident)
    for ident in (4, 5):
        world.to_engine_up(outbound_packet(ident))
        world.ciphertext(site.outbound.key.spi)
    forged = bytearray(bytes(peer.encrypt(inbound_packet(6))))
    forged[-1] ^= 1
    world.to_engine_wan(IP(bytes(forged)))
    world.to_engine_wan(peer.encrypt(inbound_packet(7)))
    world.plaintext(lambda ip: ip.id == 7)
    counted = await engine.counters()
    into, out = counted[site.inbound.key], counted[site.outbound.key]
    assert (into.packets, out.packets) == (4, 2)
    assert 4 * length <= into.octets <= 4 * (length + 3)
    assert 2 * len(bytes(outbound_packet(1))) <= out.octets <= 2 * (len(bytes(outbound_packet(1))) + 3)


@pytest.mark.parametrize("length", [28, 29, 30, 31, 1400, 1430])
async def test_packets_of_all_lengths_pass(engine: Engine, world: World, length: int) -> None:
    """From nothing but headers (all four paddings) to what just fits a WAN of 1500 bytes."""
    site = await make_site(engine)
    sent = IP(bytes(IP(src=THERE, dst=HERE, id=1) / UDP(sport=1, dport=2) / Raw(bytes(length - 28))))
    world.to_engine_wan(oracle(site.inbound).encrypt(sent))
    assert inner(world.plaintext(lambda ip: ip.id == 1)) == bytes(sent)
    back = IP(bytes(IP(src=HERE, dst=THERE, id=2) / UDP(sport=1, dport=2) / Raw(bytes(length - 28))))
    world.to_engine_up(back)
    frame = world.ciphertext(site.outbound.key.spi)
    assert inner(oracle(site.outbound).decrypt(IP(inner(frame)))) == bytes(back)


@pytest.mark.parametrize("length", [1447, 1480, 1500])
async def test_what_is_too_long_for_the_wan_leaves_in_fragments(engine: Engine, world: World, length: int) -> None:
    """Of the ESP packet: the packet inside stays whole, as a selector of ports needs it."""
    site = await make_site(engine)
    sent = IP(bytes(IP(src=HERE, dst=THERE, id=2) / UDP(sport=1, dport=2) / Raw(bytes(length - 28))))
    world.to_engine_up(sent)
    pieces = [world.wan.receive(lambda frame: IP in frame and frame[IP].proto == 50)[IP] for _ in range(2)]
    assert all(piece.len <= 1500 for piece in pieces)
    (whole,) = defragment([IP(inner(piece)) for piece in pieces])
    assert inner(oracle(site.outbound).decrypt(IP(bytes(whole)))) == bytes(sent)


@pytest.mark.parametrize("protocol", [1, 6, 47, 50, 89, 132])
async def test_every_protocol_passes(engine: Engine, world: World, protocol: int) -> None:
    """ESP inside ESP and OSPF included: a tunnel is not choosy."""
    site = await make_site(engine)
    sent = IP(bytes(IP(src=THERE, dst=HERE, id=1, proto=protocol, ttl=1) / Raw(bytes(40))))
    world.to_engine_wan(oracle(site.inbound).encrypt(sent))
    assert inner(world.plaintext(lambda ip: ip.id == 1)) == bytes(sent)
    back = IP(bytes(IP(src=HERE, dst=THERE, id=2, proto=protocol, ttl=1) / Raw(bytes(40))))
    world.to_engine_up(back)
    frame = world.ciphertext(site.outbound.key.spi)
    assert inner(oracle(site.outbound).decrypt(IP(inner(frame)))) == bytes(back)


async def test_fragments_inside_pass_as_they_are(engine: Engine, world: World) -> None:
    site = await make_site(engine)
    peer = oracle(site.inbound)
    for ident, flags, offset in ((1, "MF", 0), (2, 0, 100)):
        sent = IP(bytes(IP(src=THERE, dst=HERE, id=ident, flags=flags, frag=offset, proto=17) / Raw(bytes(800))))
        world.to_engine_wan(peer.encrypt(sent))
        assert inner(world.plaintext(lambda ip, ident=ident: ip.id == ident)) == bytes(sent)


async def test_the_traffic_class_is_copied_out(engine: Engine, world: World) -> None:
    """DSCP and ECN, as the kernel's own ESP does it (RFC 6040 for ECN)."""
    site = await make_site(engine)
    world.to_engine_up(outbound_packet(1, tos=0xB9))  # EF, ECT(1)
    frame = world.ciphertext(site.outbound.key.spi)
    assert frame[IP].tos == 0xB9
    assert oracle(site.outbound).decrypt(IP(inner(frame)))[IP].tos == 0xB9


COPIES = [HeaderCopies(dscp, ecn, df) for dscp in (True, False) for ecn in (True, False) for df in (True, False)]


@pytest.mark.parametrize("copies", COPIES, ids=str)
async def test_what_is_not_to_be_copied_is_not(engine: Engine, world: World, copies: HeaderCopies) -> None:
    incoming, outgoing = (replace(make_sa(way), copies=copies) for way in (Direction.IN, Direction.OUT))
    for obj in (HOP, incoming, outgoing, Tunnel(TUNNEL_ID, LOCAL, PEER, (incoming.key,), outgoing.key, SELECTORS)):
        await engine.create(obj)
    held = await engine.retrieve()
    assert (held[incoming.key], held[outgoing.key]) == (incoming, outgoing)
    world.to_engine_up(outbound_packet(1, tos=0xB9, flags="DF"))
    outer = world.ciphertext(outgoing.key.spi)[IP]
    assert outer.tos == (0xB8 if copies.dscp else 0) | (0x01 if copies.ecn else 0)
    if not copies.df:
        assert "DF" not in str(outer.flags)
    marked = oracle(incoming).encrypt(inbound_packet(2, tos=0x02))  # ECT(0), and congestion on the way
    marked[IP].tos = 0x03
    del marked[IP].chksum
    world.to_engine_wan(marked)
    # VPP has a flag for this, which its ESP does not look at: congestion is not told inwards.
    told = copies.ecn and engine.name is not EngineName.VPP
    assert world.plaintext(lambda ip: ip.id == 2)[IP].tos == (0x03 if told else 0x02)
