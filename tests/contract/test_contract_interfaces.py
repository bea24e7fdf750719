"""Route-based tunnels: a VLAN ID on the veth pair stands for the XFRM interface, whatever the selectors are."""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet, Raw

from ipsec_gw.engines.port import Engine
from ipsec_gw.errors import EngineError
from ipsec_gw.model.ids import Direction, IpAddress, TunnelId
from ipsec_gw.model.objects import EngineSa, NextHop, Selector, Tunnel, XfrmInterface
from tests.contract.conftest import make_engine
from tests.contract.values import (
    GATEWAY,
    HERE,
    HOP,
    LOCAL,
    PEER,
    THERE,
    inbound_packet,
    inner,
    make_sa,
    make_site,
    oracle,
    outbound_packet,
)
from tests.contract.world import GATEWAY_MAC, WAN, World

pytestmark = [pytest.mark.root, pytest.mark.asyncio(loop_scope="module")]

OTHER_PEER = ip_address("198.51.100.8")
ANY4, ANY6 = (Selector(ip_network(net), ip_network(net)) for net in ("0.0.0.0/0", "::/0"))
FIRST, SECOND = XfrmInterface(41, "ipsec0"), XfrmInterface(4000, "ipsec1")


@dataclass(frozen=True)
class Routed:
    """A route-based tunnel that stands in an engine."""

    inbound: EngineSa
    outbound: EngineSa
    tunnel: Tunnel
    hop: NextHop

    @property
    def objects(self) -> tuple[NextHop | EngineSa | Tunnel, ...]:
        return self.hop, self.inbound, self.outbound, self.tunnel


async def make_routed(
    engine: Engine,
    interface: XfrmInterface = FIRST,
    peer: IpAddress = PEER,
    reqid: int = 21,
    selectors: tuple[Selector, ...] = (ANY4,),
) -> Routed:
    incoming = replace(make_sa(Direction.IN), source=peer)
    bare = make_sa(Direction.OUT)
    outgoing = replace(bare, key=replace(bare.key, destination=peer))
    hop = HOP if peer == PEER else NextHop(peer, LOCAL, WAN, GATEWAY, GATEWAY_MAC)
    tunnel = Tunnel(TunnelId(reqid, peer), LOCAL, peer, (incoming.key,), outgoing.key, selectors, (), interface)
    made = Routed(incoming, outgoing, tunnel, hop)
    there = await engine.retrieve()
    for obj in made.objects:
        if obj.key not in there:
            await engine.create(obj)
    return made


def send_tagged(world: World, packet: Packet, vlan: int) -> None:
    header = Ether(src=world.up.mac, dst=world.context.up_engine.mac) / Dot1Q(vlan=vlan)
    world.up.send_raw(bytes(header / packet))


def vlan_of(frame: Ether) -> int:
    return int(frame[Dot1Q].vlan) if Dot1Q in frame else 0


async def test_a_tunnel_with_an_interface_is_held_as_it_was_given(engine: Engine) -> None:
    made = await make_routed(engine)
    assert dict(await engine.retrieve()) == {obj.key: obj for obj in made.objects}


async def test_what_is_tagged_is_encrypted_and_what_is_decrypted_is_tagged(engine: Engine, world: World) -> None:
    made = await make_routed(engine)
    send_tagged(world, outbound_packet(1, ttl=1), FIRST.vlan)
    frame = world.ciphertext(made.outbound.key.spi)
    assert oracle(made.outbound).decrypt(IP(bytes(frame[IP])))[IP] == outbound_packet(1, ttl=1)
    world.to_engine_wan(oracle(made.inbound).encrypt(inbound_packet(2, ttl=1)))
    frame = world.plaintext(lambda ip: ip.id == 2)
    assert vlan_of(frame) == FIRST.vlan
    assert (frame.src, frame.dst) == (world.context.up_engine.mac, world.up.mac)
    assert frame[IP] == inbound_packet(2, ttl=1)


async def test_ipv6_inside_is_tagged_too(engine: Engine, world: World) -> None:
    made = await make_routed(engine, selectors=(ANY4, ANY6))
    there, here = "2001:db8:2::9", "2001:db8:1::5"
    send_tagged(world, IPv6(src=here, dst=there, hlim=1) / UDP(sport=7) / Raw(b"six"), FIRST.vlan)
    frame = world.ciphertext(made.outbound.key.spi)
    opened = oracle(made.outbound).decrypt(IP(bytes(frame[IP])))
    assert (opened[IPv6].hlim, bytes(opened[Raw])) == (1, b"six")
    sealed = oracle(made.inbound).encrypt(IPv6(src=there, dst=here, hlim=1) / UDP(dport=8) / Raw(b"back"))
    world.to_engine_wan(sealed)
    frame = world.up.receive(lambda one: IPv6 in one and UDP in one and one[UDP].dport == 8)
    assert (vlan_of(frame), frame[IPv6].hlim) == (FIRST.vlan, 1)


@pytest.mark.parametrize("protocol", [89, 17, 103, 2])
async def test_multicast_of_routing_protocols_passes_both_ways(engine: Engine, world: World, protocol: int) -> None:
    """OSPF, RIP, PIM and IGMP, with the TTL that they have."""
    made = await make_routed(engine)
    group = "224.0.0.5"
    payload = UDP(sport=520, dport=520) / Raw(b"rip") if protocol == 17 else Raw(bytes(range(44)))
    out = IP(bytes(IP(src=HERE, dst=group, id=1, ttl=1, proto=protocol) / payload))
    send_tagged(world, out, FIRST.vlan)
    frame = world.ciphertext(made.outbound.key.spi)
    assert inner(oracle(made.outbound).decrypt(IP(bytes(frame[IP])))) == bytes(out)
    back = IP(bytes(IP(src=THERE, dst=group, id=2, ttl=1, proto=protocol) / payload))
    world.to_engine_wan(oracle(made.inbound).encrypt(back))
    frame = world.plaintext(lambda ip: ip.id == 2)
    assert (vlan_of(frame), inner(frame)) == (FIRST.vlan, bytes(back))


async def test_multicast_of_ipv6_passes_both_ways(engine: Engine, world: World) -> None:
    made = await make_routed(engine, selectors=(ANY4, ANY6))
    for protocol in (89, 17):
        payload = UDP(sport=6696, dport=6696) / Raw(b"babel") if protocol == 17 else Raw(bytes(range(44)))
        out = IPv6(bytes(IPv6(src="fe80::1", dst="ff02::5", hlim=1, nh=protocol) / payload))
        send_tagged(world, out, FIRST.vlan)
        frame = world.ciphertext(made.outbound.key.spi)
        assert bytes(oracle(made.outbound).decrypt(IP(bytes(frame[IP])))[IPv6]) == bytes(out)
    peer = oracle(made.inbound)
    back = IPv6(bytes(IPv6(src="fe80::2", dst="ff02::5", hlim=1, nh=89) / Raw(bytes(range(44)))))
    world.to_engine_wan(peer.encrypt(back))
    frame = world.up.receive(lambda one: IPv6 in one and one[IPv6].dst == "ff02::5")
    assert (vlan_of(frame), bytes(frame[IPv6])[: len(back)]) == (FIRST.vlan, bytes(back))


async def test_two_tunnels_for_anything_are_told_apart(engine: Engine, world: World) -> None:
    """And a policy-based one for the same networks beside them."""
    plain = await make_site(engine)
    first = await make_routed(engine, FIRST, OTHER_PEER, 22)
    second = await make_routed(engine, SECOND, OTHER_PEER, 23)
    for number, (vlan, spi) in enumerate(
        [
            (FIRST.vlan, first.outbound.key.spi),
            (SECOND.vlan, second.outbound.key.spi),
            (FIRST.vlan, first.outbound.key.spi),
        ],
        1,
    ):
        send_tagged(world, outbound_packet(number), vlan)
        world.ciphertext(spi)
    world.to_engine_up(outbound_packet(9))
    world.ciphertext(plain.outbound.key.spi)
    for number, (sa, vlan) in enumerate(
        [(first.inbound, FIRST.vlan), (second.inbound, SECOND.vlan), (plain.inbound, 0)], 20
    ):
        world.to_engine_wan(oracle(sa).encrypt(inbound_packet(number)))
        assert vlan_of(world.plaintext(lambda ip, number=number: ip.id == number)) == vlan


async def test_a_tag_that_nobody_has_and_one_that_is_missing_lead_nowhere(engine: Engine, world: World) -> None:
    made = await make_routed(engine)
    send_tagged(world, outbound_packet(1), FIRST.vlan + 1)
    world.to_engine_up(outbound_packet(2))
    send_tagged(world, outbound_packet(3), FIRST.vlan)
    frame = world.wan.receive(lambda frame: IP in frame and frame[IP].proto == 50)
    assert oracle(made.outbound).decrypt(IP(bytes(frame[IP])))[IP].id == 3


async def test_selectors_hold_for_both_ways(engine: Engine, world: World) -> None:
    """IPv6 has none here."""
    made = await make_routed(engine)
    send_tagged(world, IPv6(dst="2001:db8::1") / UDP() / Raw(b"none"), FIRST.vlan)
    send_tagged(world, outbound_packet(4), FIRST.vlan)
    frame = world.ciphertext(made.outbound.key.spi)
    assert oracle(made.outbound).decrypt(IP(bytes(frame[IP])))[IP].id == 4
    peer = oracle(made.inbound)
    world.to_engine_wan(peer.encrypt(IPv6(dst="2001:db8::1") / UDP() / Raw(b"none")))
    world.to_engine_wan(peer.encrypt(inbound_packet(5)))
    frame = world.up.receive(lambda frame: UDP in frame)  # and no multicast of the interface's own
    assert frame[IP].id == 5


async def test_a_rekey_keeps_the_interface(engine: Engine, world: World) -> None:
    old = await make_routed(engine)
    incoming, outgoing = make_sa(Direction.IN), make_sa(Direction.OUT)
    for sa in (incoming, outgoing):
        await engine.create(sa)
    await engine.update(replace(old.tunnel, inbound=(old.inbound.key, incoming.key), outbound=outgoing.key))
    send_tagged(world, outbound_packet(1), FIRST.vlan)
    world.ciphertext(outgoing.key.spi)
    for number, sa in ((2, old.inbound), (3, incoming)):
        world.to_engine_wan(oracle(sa).encrypt(inbound_packet(number)))
        assert vlan_of(world.plaintext(lambda ip, number=number: ip.id == number)) == FIRST.vlan


async def test_an_interface_that_was_made_anew_has_another_tag(engine: Engine, world: World) -> None:
    made = await make_routed(engine)
    moved = replace(made.tunnel, interface=SECOND)
    await engine.update(moved)
    assert (await engine.retrieve())[moved.key] == moved
    send_tagged(world, outbound_packet(1), FIRST.vlan)
    send_tagged(world, outbound_packet(2), SECOND.vlan)
    frame = world.ciphertext(made.outbound.key.spi)
    assert oracle(made.outbound).decrypt(IP(bytes(frame[IP])))[IP].id == 2


async def test_one_interface_has_one_tunnel(engine: Engine) -> None:
    made = await make_routed(engine)
    with pytest.raises(EngineError, match="ipsec0"):
        await make_routed(engine, FIRST, OTHER_PEER, 22)
    assert (await engine.retrieve())[made.tunnel.key] == made.tunnel


async def test_another_life_finds_the_tunnel_and_goes_on(engine: Engine, engine_name: str, world: World) -> None:
    if engine_name == "soft":
        pytest.skip("its objects end with it")
    made = await make_routed(engine)
    another = make_engine(engine_name, world.context)
    await another.open()
    try:
        assert dict(await another.retrieve()) == {obj.key: obj for obj in made.objects}
        await another.delete(made.tunnel.key)
        await another.create(made.tunnel)
    finally:
        await another.close()
    await engine.retrieve()
    send_tagged(world, outbound_packet(1), FIRST.vlan)
    world.ciphertext(made.outbound.key.spi)
