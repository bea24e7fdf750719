"""VXLAN devices over transport mode: ESP, UDP and VXLAN, then a frame that a VLAN ID on the veth pair stands for."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet, Raw

from ipsec_gw.engines.port import Capabilities, Engine
from ipsec_gw.errors import EngineError
from ipsec_gw.model.ids import Direction
from ipsec_gw.model.objects import EngineObject, InterfaceKind, Overlay, OverlayKey, Selector, XfrmInterface
from tests.contract.conftest import clear, make_engine
from tests.contract.test_contract_interfaces import make_routed, send_tagged, vlan_of
from tests.contract.test_contract_transport import (
    FROM,
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
from tests.contract.values import LOCAL, PEER, inbound_packet, inner, make_sa, make_site, oracle, outbound_packet
from tests.contract.world import World

pytestmark = [pytest.mark.root, pytest.mark.asyncio(loop_scope="module")]

VXLAN1 = XfrmInterface(61, "vxlan1", InterfaceKind.VXLAN)
VXLAN2 = XfrmInterface(62, "vxlan2", InterfaceKind.VXLAN)
VNI, PORT = 42, 4789
ALL_UDP = replace(HOSTS, protocol=17)
MINE, THEIRS = "02:00:00:00:00:11", "02:00:00:00:00:22"
OUT = IP(src="192.168.48.1", dst="192.168.48.2", ttl=1) / UDP(sport=5, dport=6)
BACK = IP(src="192.168.48.2", dst="192.168.48.1", ttl=1) / UDP(sport=6, dport=5)


@dataclass(frozen=True)
class Laid:
    """An overlay and the tunnel that carries it."""

    hosts: Hosts
    overlay: Overlay

    @property
    def objects(self) -> dict[object, EngineObject]:
        return {**self.hosts.objects, self.overlay.key: self.overlay}


def over(*hosts: Hosts, interface: XfrmInterface = VXLAN1, vni: int = VNI) -> Overlay:
    return Overlay(OverlayKey(interface), vni, LOCAL, PEER, PORT, frozenset(one.tunnel.key for one in hosts))


async def lay(engine: Engine, *selectors: Selector) -> Laid:
    hosts = await stand(engine, *(selectors or (ALL_UDP,)))
    overlay = over(hosts)
    await engine.create(overlay)
    return Laid(hosts, overlay)


def outside(payload: Packet | bytes = OUT, **fields: object) -> Ether:
    """What the device sends."""
    return Ether(bytes(Ether(**{"src": MINE, "dst": THEIRS, **fields}) / payload))


def inside(payload: Packet | bytes = BACK, **fields: object) -> Ether:
    """What comes for it."""
    return Ether(bytes(Ether(**{"src": THEIRS, "dst": MINE, **fields}) / payload))


def tagged(frame: Ether, interface: XfrmInterface = VXLAN1) -> bytes:
    whole = bytes(frame)
    return whole[:12] + b"\x81\x00" + interface.vlan.to_bytes(2, "big") + whole[12:]


def packet_with(frame: Packet, vni: int = VNI, sport: int = 40000, flags: int = 8, **fields: object) -> IP:
    """What the peer's device makes of a frame."""
    vxlan = VXLAN(flags=flags, vni=vni) if flags else VXLAN(flags=0)
    return IP(
        bytes(
            IP(src=str(PEER), dst=str(LOCAL), id=1, **fields) / UDP(sport=sport, dport=PORT, chksum=0) / vxlan / frame
        )
    )


def gives(world: World, hosts: Hosts, packet: IP) -> None:
    """The peer sends a packet by the SA."""
    world.to_engine_wan(peer_of(hosts.inbound).encrypt(packet))


def carried(world: World, hosts: Hosts, frame: Ether, interface: XfrmInterface = VXLAN1) -> IP:
    """A frame on its way out, opened by the peer."""
    world.up.send_raw(tagged(frame, interface))
    wire = IP(inner(world.ciphertext(hosts.outbound.key.spi)))
    return IP(bytes(peer_of(hosts.outbound).decrypt(wire)))


def comes(world: World, frame: Ether, interface: XfrmInterface = VXLAN1) -> Ether:
    """The next frame for the kernel is that one, tagged."""
    return world.up.receive(lambda one: bytes(one) == tagged(frame, interface))


async def test_it_is_offered(capabilities: Capabilities) -> None:
    assert capabilities.vxlan


async def test_it_is_held_as_it_was_given(engine: Engine) -> None:
    laid = await lay(engine)
    assert dict(await engine.retrieve()) == laid.objects


async def test_frames_go_out_in_vxlan_and_come_in_out_of_it(engine: Engine, world: World) -> None:
    laid = await lay(engine)
    packet = carried(world, laid.hosts, outside())
    assert (packet.src, packet.dst, packet[UDP].dport, packet[UDP].chksum) == (str(LOCAL), str(PEER), PORT, 0)
    assert packet.ttl >= 64
    assert "DF" not in str(packet.flags)
    assert (packet[UDP].len, packet.len) == (16 + len(outside()), 36 + len(outside()))
    assert bytes(packet[UDP].payload) == b"\x08\0\0\0" + VNI.to_bytes(3, "big") + b"\0" + bytes(outside())
    gives(world, laid.hosts, packet_with(inside()))
    comes(world, inside())


FRAMES = {
    "ARP to all": Ether(src=MINE, dst="ff:ff:ff:ff:ff:ff") / ARP(psrc="192.168.48.1", pdst="192.168.48.2"),
    "IPv6 multicast": Ether(src=MINE, dst="33:33:00:00:00:01") / IPv6(src="fe80::1", dst="ff02::1") / UDP(dport=9),
    "spanning tree": Ether(src=MINE, dst="01:80:c2:00:00:00", type=0x0027) / Raw(bytes(39)),
    "long": Ether(src=MINE, dst=THEIRS) / IP(src="192.168.48.1", dst="192.168.48.2") / ICMP() / Raw(bytes(1388)),
    "of others": Ether(src="06:00:00:00:00:01", dst="06:00:00:00:00:02") / OUT,
}


@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES.keys())
async def test_whatever_a_frame_is(engine: Engine, world: World, frame: Ether) -> None:
    laid, whole = await lay(engine), Ether(bytes(frame))
    packet = carried(world, laid.hosts, whole)
    assert bytes(packet[UDP].payload)[8:] == bytes(whole)
    gives(world, laid.hosts, packet_with(whole))
    comes(world, whole)


async def test_a_burst_loses_nothing_and_keeps_its_order(engine: Engine, world: World) -> None:
    """Of frames among other packets of the same SAs, both ways."""
    laid, rounds = await lay(engine), range(48)
    plain = sent(UDP(sport=40000, dport=9), 1)
    for n in rounds:
        world.up.send_raw(tagged(outside(OUT / Raw(bytes((n,))))))
        world.to_engine_up(plain)
    seen: list[int] = []
    while len(seen) < len(rounds):
        packet = peer_of(laid.hosts.outbound).decrypt(IP(inner(world.ciphertext(laid.hosts.outbound.key.spi))))
        if packet[UDP].dport == PORT:
            seen.append(bytes(packet)[-1])
    assert seen == list(rounds)
    back = received(UDP(sport=9, dport=40000), 2)
    for n in rounds:
        gives(world, laid.hosts, packet_with(inside(BACK / Raw(bytes((n,))))))
        gives(world, laid.hosts, back)
    frames = [world.plaintext(lambda ip: True) for _ in range(2 * len(rounds))]
    assert [bytes(one)[-1] for one in frames if Dot1Q in one] == list(rounds)
    assert [inner(one) for one in frames if Dot1Q not in one] == [bytes(back)] * len(rounds)


async def test_flows_keep_a_source_port_and_several_have_several(engine: Engine, world: World) -> None:
    laid = await lay(engine)
    ports = [
        carried(world, laid.hosts, outside(IP(src="192.168.48.1", dst="192.168.48.2") / UDP(sport=n % 8, dport=1)))[
            UDP
        ].sport
        for n in range(16)
    ]
    assert ports[:8] == ports[8:]
    assert len(set(ports)) > 2


async def test_all_else_that_comes_out_is_the_kernels(engine: Engine, world: World) -> None:
    """Other VNIs and ports, headers with other flags, fragments, and what only looks like VXLAN."""
    laid = await lay(engine)
    hosts, frame = laid.hosts, inside()
    strangers = [
        packet_with(frame, vni=VNI + 1),
        packet_with(frame, flags=0x88),
        packet_with(frame, flags=0),
        received(UDP(sport=PORT, dport=PORT + 1), 1, 60),
        received(UDP(sport=1, dport=PORT), 1, 4),
    ]
    for packet in strangers:
        gives(world, hosts, packet)
        assert inner(world.plaintext(lambda ip: True)) == bytes(packet)
    gives(world, hosts, packet_with(frame))
    comes(world, frame)


async def test_what_the_kernel_put_into_vxlan_itself_leaves_as_ever(engine: Engine, world: World) -> None:
    laid = await lay(engine)
    leaves(world, laid.hosts, sent(UDP(sport=40000, dport=PORT), 1, 100))
    arrives(world, laid.hosts, received(UDP(sport=PORT, dport=9), 2))


async def test_two_children_carry_one_way_each(engine: Engine, world: World) -> None:
    to, back = await stand(engine, TO, rank=1), await stand(engine, FROM, key=OTHER_ID)
    overlay = over(to, back)
    await engine.create(overlay)
    assert dict(await engine.retrieve()) == {**to.objects, **back.objects, overlay.key: overlay}
    assert carried(world, to, outside())[UDP].dport == PORT
    gives(world, back, packet_with(inside()))
    comes(world, inside())


async def test_several_stand_beside_each_other_and_beside_other_tunnels(engine: Engine, world: World) -> None:
    site = await make_site(engine)
    laid, xfrm = await lay(engine), await make_routed(engine)
    second = over(laid.hosts, interface=VXLAN2, vni=VNI + 1)
    await engine.create(second)
    assert carried(world, laid.hosts, outside(), VXLAN2)[VXLAN].vni == VNI + 1
    assert carried(world, laid.hosts, outside())[VXLAN].vni == VNI
    gives(world, laid.hosts, packet_with(inside(), vni=VNI + 1))
    comes(world, inside(), VXLAN2)
    assert xfrm.tunnel.interface is not None
    send_tagged(world, outbound_packet(1), xfrm.tunnel.interface.vlan)
    world.ciphertext(xfrm.outbound.key.spi)
    world.to_engine_up(outbound_packet(2))
    world.ciphertext(site.outbound.key.spi)
    world.to_engine_wan(oracle(site.inbound).encrypt(inbound_packet(3)))
    assert vlan_of(world.plaintext(lambda ip: ip.id == 3)) == 0
    await engine.delete(laid.overlay.key)
    assert carried(world, laid.hosts, outside(), VXLAN2)[VXLAN].vni == VNI + 1
    gives(world, laid.hosts, packet_with(inside()))
    assert inner(world.plaintext(lambda ip: True)) == bytes(packet_with(inside()))


async def test_when_it_goes_the_tunnel_goes_on(engine: Engine, world: World) -> None:
    laid = await lay(engine)
    carried(world, laid.hosts, outside())
    await engine.delete(laid.overlay.key)
    assert dict(await engine.retrieve()) == laid.hosts.objects
    world.up.send_raw(tagged(outside()))
    leaves(world, laid.hosts, sent(UDP(sport=40000, dport=PORT), 1, 100))
    gives(world, laid.hosts, packet_with(inside()))
    assert inner(world.plaintext(lambda ip: True)) == bytes(packet_with(inside()))
    await engine.create(laid.overlay)
    assert carried(world, laid.hosts, outside())[VXLAN].vni == VNI


async def test_a_rekey_is_none_of_its_business(engine: Engine, world: World) -> None:
    laid = await lay(engine)
    fresh = await stand_in(engine, laid.hosts)
    assert carried(world, fresh, outside())[VXLAN].vni == VNI
    for one in (laid.hosts, fresh):
        gives(world, one, packet_with(inside()))
        comes(world, inside())
    assert (await engine.retrieve())[laid.overlay.key] == laid.overlay


async def stand_in(engine: Engine, hosts: Hosts) -> Hosts:
    """Fresh SAs in the same tunnel, which keeps its former inbound one."""
    incoming, outgoing = (replace(make_sa(way), transport=True) for way in (Direction.IN, Direction.OUT))
    for sa in (incoming, outgoing):
        await engine.create(sa)
    tunnel = replace(hosts.tunnel, inbound=(hosts.inbound.key, incoming.key), outbound=outgoing.key)
    await engine.update(tunnel)
    return Hosts(incoming, outgoing, tunnel)


async def test_what_it_is_over_has_to_be_there_and_to_stay(engine: Engine) -> None:
    site = await make_site(engine)
    laid = await lay(engine)
    with pytest.raises(EngineError, match="overlay"):
        await engine.delete(laid.hosts.tunnel.key)
    with pytest.raises(EngineError, match="exists"):
        await engine.create(laid.overlay)
    with pytest.raises(EngineError, match="overlay"):
        await engine.create(replace(laid.overlay, key=OverlayKey(replace(VXLAN1, index=61 + 4094)), vni=7))
    missing = replace(over(), key=OverlayKey(VXLAN2), tunnels=frozenset({OTHER_ID}))
    with pytest.raises(EngineError, match="there is no"):
        await engine.create(missing)
    with pytest.raises(EngineError, match="two ends"):
        await engine.create(replace(missing, tunnels=frozenset({site.tunnel.key})))
    with pytest.raises(EngineError):
        await engine.delete(missing.key)
    assert (await engine.retrieve())[laid.overlay.key] == laid.overlay


async def test_another_vni_in_its_place(engine: Engine, world: World) -> None:
    laid = await lay(engine)
    changed = replace(laid.overlay, vni=VNI + 5)
    await engine.update(changed)
    assert (await engine.retrieve())[changed.key] == changed
    assert carried(world, laid.hosts, outside())[VXLAN].vni == VNI + 5
    gives(world, laid.hosts, packet_with(inside(), vni=VNI + 5))
    comes(world, inside())


async def test_another_life_finds_it_and_goes_on(engine: Engine, engine_name: str, world: World) -> None:
    if engine_name == "soft":
        pytest.skip("its objects end with it")
    laid = await lay(engine)
    carried(world, laid.hosts, outside())
    another = make_engine(engine_name, world.context)
    await another.open()
    try:
        assert dict(await another.retrieve()) == laid.objects
        assert carried(world, laid.hosts, outside())[VXLAN].vni == VNI
        gives(world, laid.hosts, packet_with(inside()))
        comes(world, inside())
        await another.delete(laid.overlay.key)
        assert dict(await another.retrieve()) == laid.hosts.objects
        await another.create(laid.overlay)
        assert carried(world, laid.hosts, outside())[VXLAN].vni == VNI
        await clear(another)
    finally:
        await another.close()


async def test_a_frame_with_a_tag_of_its_own_comes_in(engine: Engine, world: World) -> None:
    """None goes out so: the kernel keeps those."""
    laid = await lay(engine)
    frame = Ether(bytes(Ether(src=THEIRS, dst=MINE) / Dot1Q(vlan=5) / BACK))
    gives(world, laid.hosts, packet_with(frame))
    comes(world, frame)
