"""Selectors of a protocol and of ports, exceptions from them, and tunnels inside others: what may come out of each."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP
from scapy.layers.ipsec import SecurityAssociation
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from ipsec_gw.engines.port import Engine
from ipsec_gw.model.ids import Direction, TunnelId
from ipsec_gw.model.objects import EngineSa, PortMatch, Selector, Tunnel
from tests.contract.values import HERE, HOP, LAN, LOCAL, PEER, REMOTE, TUNNEL_ID, inner, make_sa, oracle
from tests.contract.world import World

pytestmark = [pytest.mark.root, pytest.mark.asyncio(loop_scope="module")]

ALL = Selector(LAN, REMOTE)
PORT = PortMatch(5000, 0xFFFF)
MARKER = 9999
"""IP identification of the packet that follows, which may pass: what has not come before it has been dropped."""


def packet(upper: Packet, ident: int, source: str = "10.2.0.9", **fields: object) -> IP:
    """From the peer's network to ours."""
    return IP(bytes(IP(src=source, dst=HERE, id=ident, **fields) / upper / Raw(b"selector" * 4)))


FROM_PORT, TO_PORT, OTHER = UDP(sport=5000, dport=7), UDP(sport=7, dport=5000), UDP(sport=5001, dport=7)
CASES = {
    "protocol": (replace(ALL, protocol=17), [packet(OTHER, 1)], [packet(TCP(), 2), packet(ICMP(), 3)]),
    "remote port": (
        replace(ALL, protocol=17, destination_port=PORT),
        [packet(FROM_PORT, 1)],
        [packet(TO_PORT, 2), packet(OTHER, 3), packet(TCP(sport=5000, dport=7), 4)],
    ),
    "local port": (
        replace(ALL, protocol=17, source_port=PORT),
        [packet(TO_PORT, 1)],
        [packet(FROM_PORT, 2), packet(TCP(sport=7, dport=5000), 3)],
    ),
    "both ports": (
        replace(ALL, protocol=6, source_port=PORT, destination_port=PortMatch(7, 0xFFFF)),
        [packet(TCP(sport=7, dport=5000), 1)],
        [packet(TCP(sport=8, dport=5000), 2), packet(TCP(sport=5000, dport=7), 3)],
    ),
    "ports alike in their first bits": (
        replace(ALL, protocol=17, destination_port=PortMatch(5000, 0xFFF8)),
        [packet(FROM_PORT, 1), packet(OTHER, 2), packet(UDP(sport=5007, dport=1), 3)],
        [packet(UDP(sport=5008, dport=1), 4), packet(UDP(sport=4999, dport=1), 5)],
    ),
    "a fragment has a protocol": (replace(ALL, protocol=17), [packet(OTHER, 1, flags="MF")], [packet(TCP(), 2)]),
    "a fragment has no port": (
        replace(ALL, protocol=17, destination_port=PORT),
        [packet(FROM_PORT, 1)],
        [packet(FROM_PORT, 2, flags="MF"), packet(FROM_PORT, 3, frag=5)],
    ),
}


async def stand(
    engine: Engine, *selectors: Selector, exceptions: tuple[Selector, ...] = ()
) -> tuple[SecurityAssociation, Tunnel]:
    """A tunnel with these, and its peer."""
    incoming, outgoing = make_sa(Direction.IN), make_sa(Direction.OUT)
    tunnel = Tunnel(TUNNEL_ID, LOCAL, PEER, (incoming.key,), outgoing.key, selectors, exceptions)
    for obj in (HOP, incoming, outgoing, tunnel):
        await engine.create(obj)
    return oracle(incoming), tunnel


def arrive(world: World, peer: SecurityAssociation, packets: list[IP], last: IP) -> list[int]:
    """The identifications of those that come out, in order; ``last`` has to."""
    for one in (*packets, last):
        world.to_engine_wan(peer.encrypt(one))
    found: list[int] = []
    while not found or found[-1] != last.id:
        frame: Ether = world.plaintext(lambda ip: True)
        found.append(frame[IP].id)
    return found[:-1]


@pytest.mark.parametrize("case", CASES)
async def test_what_comes_out_fits_protocol_and_ports(engine: Engine, world: World, case: str) -> None:
    selector, fitting, others = CASES[case]
    peer, tunnel = await stand(engine, selector)
    assert (await engine.retrieve())[TUNNEL_ID] == tunnel
    mixed = [*others, *fitting, *others]
    last = packet(fitting[0].payload.copy(), MARKER)
    assert arrive(world, peer, mixed, last) == [one.id for one in fitting]


@pytest.mark.parametrize("case", CASES)
async def test_an_exception_does_not_come_out(engine: Engine, world: World, case: str) -> None:
    exception, fitting, others = CASES[case]
    peer, tunnel = await stand(engine, ALL, exceptions=(exception,))
    assert (await engine.retrieve())[TUNNEL_ID] == tunnel
    last = packet(ICMP(), MARKER) if exception.protocol != 1 else packet(TCP(), MARKER)
    assert arrive(world, peer, [*fitting, *others], last) == [one.id for one in others]


async def test_ports_behind_ip_options_do_not_slip_past_an_exception(engine: Engine, world: World) -> None:
    exception = replace(ALL, protocol=17, destination_port=PORT)
    peer, _ = await stand(engine, ALL, exceptions=(exception,))
    hidden = [packet(FROM_PORT, n, options=[IPOption_NOP()] * (4 * n)) for n in (1, 2, 3, 10)]
    assert [one.ihl for one in hidden] == [6, 7, 8, 15]
    assert arrive(world, peer, hidden, packet(OTHER, MARKER)) == []


async def test_ip_options_do_not_lead_past_the_selectors(engine: Engine, world: World) -> None:
    """VPP takes packets with options out of the way before its interfaces look at them."""
    peer, _ = await stand(engine, ALL)
    foreign = [packet(OTHER, n, source="10.66.0.9", options=[IPOption_NOP()] * (4 * n)) for n in (1, 2, 3, 10)]
    assert arrive(world, peer, foreign, packet(OTHER, MARKER)) == []


async def test_exceptions_come_and_go(engine: Engine, world: World) -> None:
    peer, tunnel = await stand(engine, ALL)
    one = packet(FROM_PORT, 1)
    assert arrive(world, peer, [one], packet(OTHER, MARKER)) == [1]
    changed = replace(tunnel, exceptions=(replace(ALL, destination=ip_network("10.2.0.0/24")),))
    await engine.update(changed)
    assert (await engine.retrieve())[TUNNEL_ID] == changed
    assert arrive(world, peer, [packet(FROM_PORT, 2)], packet(OTHER, MARKER, source="10.2.1.9")) == []
    await engine.update(tunnel)
    assert arrive(world, peer, [packet(FROM_PORT, 3)], packet(OTHER, MARKER)) == [3]


async def test_a_tunnel_may_stand_inside_another(engine: Engine, world: World) -> None:
    """Whichever comes first; the narrower one has the packets of both, and only while it stands."""
    wide = Selector(ip_network("10.0.0.0/12"), ip_network("10.0.0.0/8"))
    pairs = {"wide": (wide, 20), "narrow": (ALL, 21)}
    await engine.create(HOP)
    for order in (("wide", "narrow"), ("narrow", "wide")):
        outbound: dict[str, EngineSa] = {}
        tunnels: dict[str, Tunnel] = {}
        for name in order:
            selector, reqid = pairs[name]
            incoming, outgoing = make_sa(Direction.IN), make_sa(Direction.OUT)
            key = TunnelId(reqid, PEER)
            tunnels[name] = Tunnel(key, LOCAL, PEER, (incoming.key,), outgoing.key, (selector,))
            outbound[name] = outgoing
            for obj in (incoming, outgoing, tunnels[name]):
                await engine.create(obj)
        for source, destination, name in (
            (HERE, "10.2.0.9", "narrow"),
            (HERE, "10.9.0.9", "wide"),
            ("10.3.0.5", "10.2.0.9", "wide"),
        ):
            sent = IP(bytes(IP(src=source, dst=destination) / UDP(sport=1, dport=2) / Raw(b"nested")))
            world.to_engine_up(sent)
            frame = world.ciphertext(outbound[name].key.spi)
            assert inner(oracle(outbound[name]).decrypt(IP(inner(frame)))) == bytes(sent)
        for tunnel in tunnels.values():
            for gone in (tunnel.key, *tunnel.inbound, tunnel.outbound):
                await engine.delete(gone)
