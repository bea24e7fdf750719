"""VXLAN devices over tunnel mode, between addresses of their own: ESP around whole packets of the device's."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from ipaddress import ip_address, ip_network

import pytest
from scapy.layers.inet import IP, UDP, fragment
from scapy.layers.l2 import Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet, Raw

from ipsec_gw.engines.port import Engine
from ipsec_gw.model.ids import Direction, TunnelId
from ipsec_gw.model.objects import EngineObject, EngineSa, Overlay, OverlayKey, Selector, Tunnel, XfrmInterface
from tests.contract.conftest import clear, make_engine
from tests.contract.test_contract_interfaces import vlan_of
from tests.contract.test_contract_vxlan import PORT, VNI, VXLAN1, VXLAN2, comes, inside, outside, tagged
from tests.contract.test_contract_vxlan import lay as lay_over_transport
from tests.contract.values import HOP, LOCAL, PEER, encapsulated, inner, make_sa, make_site, oracle
from tests.contract.world import World

pytestmark = [pytest.mark.root, pytest.mark.asyncio(loop_scope="module")]

OURS, THEIRS = ip_address("203.0.113.1"), ip_address("203.0.113.2")
ALL_UDP = Selector(ip_network(OURS), ip_network(THEIRS), 17)
KEY = TunnelId(71, PEER)

peer_of = cache(oracle)
"""The peer's side of an SA, which counts its packets."""


@dataclass(frozen=True)
class Laid:
    """An overlay and the tunnel that carries it."""

    inbound: EngineSa
    outbound: EngineSa
    tunnel: Tunnel
    overlay: Overlay

    @property
    def objects(self) -> dict[object, EngineObject]:
        return {obj.key: obj for obj in (HOP, self.inbound, self.outbound, self.tunnel, self.overlay)}


async def lay(engine: Engine, *, port: int = 0, exceptions: tuple[Selector, ...] = ()) -> Laid:
    """With a ``port`` of the peer in UDP."""
    incoming, outgoing = (make_sa(way) for way in (Direction.IN, Direction.OUT))
    if port:
        incoming, outgoing = encapsulated(incoming, port), encapsulated(outgoing, port)
    tunnel = Tunnel(KEY, LOCAL, PEER, (incoming.key,), outgoing.key, (ALL_UDP,), exceptions)
    laid = Laid(incoming, outgoing, tunnel, over())
    there = await engine.retrieve()
    for obj in laid.objects.values():
        if obj.key not in there:
            await engine.create(obj)
    return laid


def over(interface: XfrmInterface = VXLAN1, vni: int = VNI) -> Overlay:
    return Overlay(OverlayKey(interface), vni, OURS, THEIRS, PORT, frozenset({KEY}))


def packet_with(frame: Packet, vni: int = VNI, flags: int = 8, **fields: object) -> IP:
    """What the peer's device makes of a frame."""
    ends = {"src": str(THEIRS), "dst": str(OURS), "id": 1}
    vxlan = VXLAN(flags=flags, vni=vni) if flags else VXLAN(flags=0)
    return IP(bytes(IP(**{**ends, **fields}) / UDP(sport=40000, dport=PORT, chksum=0) / vxlan / frame))


def carried(world: World, laid: Laid, frame: Ether, interface: XfrmInterface = VXLAN1) -> IP:
    """A frame on its way out, opened by the peer."""
    world.up.send_raw(tagged(frame, interface))
    return opened(world, laid)


def opened(world: World, laid: Laid) -> IP:
    wire = IP(inner(world.ciphertext(laid.outbound.key.spi)))
    return IP(bytes(peer_of(laid.outbound).decrypt(wire)))


def gives(world: World, laid: Laid, packet: IP) -> None:
    """The peer sends a packet by the SA."""
    world.to_engine_wan(peer_of(laid.inbound).encrypt(packet))


def goes_both_ways(world: World, laid: Laid) -> None:
    packet = carried(world, laid, outside())
    assert (packet.src, packet.dst, packet[UDP].dport) == (str(OURS), str(THEIRS), PORT)
    assert bytes(packet[UDP].payload) == b"\x08\0\0\0" + VNI.to_bytes(3, "big") + b"\0" + bytes(outside())
    gives(world, laid, packet_with(inside()))
    comes(world, inside())


async def test_it_is_held_as_it_was_given(engine: Engine) -> None:
    laid = await lay(engine)
    assert dict(await engine.retrieve()) == laid.objects


async def test_frames_go_out_in_vxlan_in_esp_and_come_in_out_of_it(engine: Engine, world: World) -> None:
    laid = await lay(engine)
    world.up.send_raw(tagged(outside()))
    wire = IP(inner(world.ciphertext(laid.outbound.key.spi)))
    assert (wire.src, wire.dst, wire.proto) == (str(LOCAL), str(PEER), 50)
    assert peer_of(laid.outbound).decrypt(wire).ttl >= 64
    goes_both_ways(world, laid)


async def test_behind_nat(engine: Engine, world: World) -> None:
    laid = await lay(engine, port=12345)
    world.up.send_raw(tagged(outside()))
    wire = IP(inner(world.wan.receive(lambda one: UDP in one and one[UDP].dport == 12345)))
    assert bytes(peer_of(laid.outbound).decrypt(wire)[UDP].payload).endswith(bytes(outside()))
    gives(world, laid, packet_with(inside()))
    comes(world, inside())


async def test_the_longest_frame_that_fits(engine: Engine, world: World) -> None:
    laid = await lay(engine)
    frame = outside(IP(src="192.168.48.1", dst="192.168.48.2") / UDP(dport=9) / Raw(bytes(1396 - 28)))
    assert carried(world, laid, frame)[IP].len == 1396 + 50
    back = inside(IP(src="192.168.48.2", dst="192.168.48.1") / UDP(dport=9) / Raw(bytes(1396 - 28)))
    gives(world, laid, packet_with(back))
    comes(world, back)


async def test_what_the_kernel_put_into_vxlan_itself_goes_the_same_way(engine: Engine, world: World) -> None:
    laid = await lay(engine)
    packet = IP(bytes(IP(src=str(OURS), dst=str(THEIRS), id=3) / UDP(sport=5, dport=PORT) / Raw(bytes(80))))
    world.to_engine_up(packet)
    assert bytes(opened(world, laid).payload) == bytes(packet.payload)


async def test_all_else_that_fits_the_selectors_is_the_kernels(engine: Engine, world: World) -> None:
    laid = await lay(engine)
    ends = {"src": str(THEIRS), "dst": str(OURS)}
    for packet in (
        packet_with(inside(), vni=VNI + 1),
        packet_with(inside(), flags=0x88),
        packet_with(inside(), flags=0),
        IP(bytes(IP(**ends, id=4) / UDP(sport=PORT, dport=PORT + 1) / Raw(bytes(60)))),
        *(IP(bytes(piece)) for piece in fragment(packet_with(inside(Raw(bytes(900)))), 512)),
    ):
        gives(world, laid, packet)
        frame = world.plaintext(lambda ip: True)
        assert (vlan_of(frame), inner(frame)) == (0, bytes(packet))
    gives(world, laid, packet_with(inside()))
    comes(world, inside())


async def test_what_does_not_fit_the_selectors_goes_nowhere(engine: Engine, world: World, told_apart: bool) -> None:
    """Another tunnel's peer does not get into the device either (DESIGN.md, invariant 8)."""
    site = await make_site(engine)
    laid = await lay(engine)
    for fields in ({"src": "203.0.113.9"}, {"dst": "203.0.113.9"}):
        gives(world, laid, packet_with(inside(), **fields))
    if told_apart:
        world.to_engine_wan(peer_of(site.inbound).encrypt(packet_with(inside())))
    last = inside(Raw(b"last"))
    gives(world, laid, packet_with(last))
    frame = world.up.receive(lambda one: True)
    assert bytes(frame) == tagged(last)


async def test_several_stand_beside_each_other_and_over_transport_mode(engine: Engine, world: World) -> None:
    transport = await lay_over_transport(engine)
    laid = await lay_second(engine)
    await engine.create(over(XfrmInterface(63, "vxlan3", VXLAN1.kind), VNI + 1))
    for _ in range(2):
        goes = carried(world, laid, outside(), VXLAN2)
        assert (goes[VXLAN].vni, goes.src) == (VNI, str(OURS))
        gives(world, laid, packet_with(inside(), vni=VNI + 1))
        comes(world, inside(), XfrmInterface(63, "vxlan3", VXLAN1.kind))
        gives(world, laid, packet_with(inside()))
        comes(world, inside(), VXLAN2)
    await engine.delete(laid.overlay.key)
    gives(world, laid, packet_with(inside()))
    assert inner(world.plaintext(lambda ip: True)) == bytes(packet_with(inside()))
    gives(world, laid, packet_with(inside(), vni=VNI + 1))
    comes(world, inside(), XfrmInterface(63, "vxlan3", VXLAN1.kind))
    assert (await engine.retrieve())[transport.overlay.key] == transport.overlay


async def lay_second(engine: Engine) -> Laid:
    """By another device than the one over transport mode."""
    incoming, outgoing = (make_sa(way) for way in (Direction.IN, Direction.OUT))
    tunnel = Tunnel(KEY, LOCAL, PEER, (incoming.key,), outgoing.key, (ALL_UDP,))
    laid = Laid(incoming, outgoing, tunnel, over(VXLAN2))
    there = await engine.retrieve()
    for obj in laid.objects.values():
        if obj.key not in there:
            await engine.create(obj)
    return laid


async def test_a_rekey_and_other_exceptions_are_none_of_its_business(engine: Engine, world: World) -> None:
    laid = await lay(engine)
    incoming, outgoing = (make_sa(way) for way in (Direction.IN, Direction.OUT))
    for sa in (incoming, outgoing):
        await engine.create(sa)
    both = replace(laid.tunnel, inbound=(laid.inbound.key, incoming.key), outbound=outgoing.key)
    await engine.update(both)
    goes_both_ways(world, replace(laid, outbound=outgoing))
    excepted = replace(both, exceptions=(Selector(ip_network(OURS), ip_network(THEIRS), 132),), inbound=(incoming.key,))
    await engine.update(excepted)
    goes_both_ways(world, replace(laid, inbound=incoming, outbound=outgoing))
    assert (await engine.retrieve())[laid.overlay.key] == laid.overlay


async def test_when_it_goes_the_tunnel_goes_on(engine: Engine, world: World) -> None:
    laid = await lay(engine)
    goes_both_ways(world, laid)
    await engine.delete(laid.overlay.key)
    gives(world, laid, packet_with(inside()))
    assert inner(world.plaintext(lambda ip: True)) == bytes(packet_with(inside()))
    await engine.create(laid.overlay)
    goes_both_ways(world, laid)


async def test_another_life_finds_it_and_goes_on(engine: Engine, engine_name: str, world: World) -> None:
    if engine_name == "soft":
        pytest.skip("its objects end with it")
    laid = await lay(engine)
    another = make_engine(engine_name, world.context)
    await another.open()
    try:
        assert dict(await another.retrieve()) == laid.objects
        goes_both_ways(world, laid)
        await another.delete(laid.overlay.key)
        await another.create(laid.overlay)
        goes_both_ways(world, laid)
        await clear(another)
    finally:
        await another.close()
