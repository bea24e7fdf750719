"""IPv4 and IPv6, outside and inside, in all combinations: what every engine does with packets."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6
from scapy.layers.ipsec import ESP
from scapy.packet import Packet

from ipsec_gw.engines.port import Engine
from ipsec_gw.errors import EngineError
from ipsec_gw.model.ids import TunnelId
from ipsec_gw.model.objects import Selector
from tests.contract.families import INSIDES, OUTSIDES, Site, bytes_of, ident_of, make_site, oracle, packet
from tests.contract.values import GATEWAY_MAC
from tests.contract.world import World

pytestmark = [pytest.mark.root, pytest.mark.asyncio(loop_scope="module")]

SHAPES = [(4, 4), (4, 6), (6, 4), (6, 6)]
EACH_SHAPE = pytest.mark.parametrize(("outer", "inner"), SHAPES, ids=[f"{i}in{o}" for o, i in SHAPES])


def arrives(world: World, site: Site, sent: Packet) -> None:
    """The packet comes out of the tunnel as it went in."""
    world.to_engine_wan(site.entering.encrypt(sent))
    frame = world.up.receive(lambda frame: ident_of(frame) == sent[UDP].sport)
    assert bytes_of(frame.payload) == bytes(sent)
    assert (frame.dst, frame.src) == (world.context.up_kernel.mac, world.context.up_engine.mac)


def leaves(world: World, site: Site, sent: Packet) -> Packet:
    """The packet goes into the tunnel as it is; returns the outer one."""
    world.to_engine_up(sent)
    frame = world.ciphertext(site.outbound.key.spi)
    outer = frame.payload
    assert (frame.src, frame.dst) == (world.context.wan[0].mac, GATEWAY_MAC)
    assert (outer.src, outer.dst) == (str(site.outside.local), str(site.outside.peer))
    clear = site.leaving.decrypt(type(outer)(bytes_of(outer)))
    assert bytes_of(clear) == bytes(sent)
    return outer


@EACH_SHAPE
async def test_packets_pass_both_ways_unchanged(engine: Engine, world: World, outer: int, inner: int) -> None:
    site = await make_site(engine, outer, inner)
    inside = INSIDES[inner]
    for number, ttl in ((1, 64), (2, 1), (3, 255)):
        arrives(world, site, packet(inside.there, inside.here, number, ttl=ttl))
        out = leaves(world, site, packet(inside.here, inside.there, number, ttl=ttl))
        assert ESP(bytes(out.payload)).seq == number
    assert dict(await engine.retrieve()) == site.objects()


@EACH_SHAPE
async def test_the_traffic_class_is_copied_out(engine: Engine, world: World, outer: int, inner: int) -> None:
    """DSCP and ECN, as the kernel's own ESP does it (RFC 6040 for ECN)."""
    site = await make_site(engine, outer, inner)
    inside = INSIDES[inner]
    out = leaves(world, site, packet(inside.here, inside.there, 1, tos=0xB9))
    assert (out.tos if isinstance(out, IP) else out.tc) == 0xB9


@EACH_SHAPE
async def test_what_does_not_fit_the_selectors_is_dropped(engine: Engine, world: World, outer: int, inner: int) -> None:
    """Also the other IP version, the gateway itself, and what nodes of an engine's own might take for theirs."""
    site = await make_site(engine, outer, inner)
    inside, other, peer = INSIDES[inner], INSIDES[10 - inner], site.entering
    pairs = [
        (inside.stray, inside.here),
        (inside.there, inside.stray),
        (inside.here, inside.here),
        (inside.there, str(OUTSIDES[inner].local)),
        (other.there, other.here),
        *(("fe80::1", to) for to in ("ff02::1", "fe80::2", "100::3")),
        ("169.254.254.9", "169.254.254.3"),
        *((INSIDES[4].there, to) for to in ("224.0.0.5", "239.1.1.1", "255.255.255.255")),
    ]
    for number, (source, destination) in enumerate(pairs, 1):
        world.to_engine_wan(peer.encrypt(packet(source, destination, number)))
    world.to_engine_wan(peer.encrypt(packet(inside.there, inside.here, 1000)))
    assert ident_of(world.up.receive(lambda frame: ident_of(frame) is not None)) == 1000


async def test_both_versions_in_one_tunnel(engine: Engine, world: World) -> None:
    for outer in OUTSIDES:
        site = await make_site(engine, outer, 4, 6)
        for number, inside in enumerate((*INSIDES.values(), *INSIDES.values()), 1):
            arrives(world, site, packet(inside.there, inside.here, number))
            leaves(world, site, packet(inside.here, inside.there, number))
        assert dict(await engine.retrieve()) == site.objects()
        for key in (site.tunnel.key, *site.tunnel.inbound, site.tunnel.outbound, site.outside.peer):
            await engine.delete(key)


async def test_selectors_of_a_version_come_and_go(engine: Engine, world: World) -> None:
    site = await make_site(engine, 4, 4)
    four, six = INSIDES[4], INSIDES[6]
    peer = site.entering
    world.to_engine_wan(peer.encrypt(packet(six.there, six.here, 1)))
    both = replace(site.tunnel, selectors=(four.selector, six.selector))
    await engine.update(both)
    assert (await engine.retrieve())[both.key] == both
    arrives(world, site, packet(six.there, six.here, 2))
    leaves(world, site, packet(six.here, six.there, 3))
    arrives(world, site, packet(four.there, four.here, 4))
    only6 = replace(both, selectors=(six.selector, Selector(six.selector.source, ip_network("fd03::1/128"))))
    await engine.update(only6)
    world.to_engine_wan(peer.encrypt(packet(four.there, four.here, 5)))
    arrives(world, site, packet("fd03::1", six.here, 6))
    leaves(world, site, packet(six.here, "fd03::1", 7))
    await engine.update(site.tunnel)
    world.to_engine_wan(peer.encrypt(packet(six.there, six.here, 8)))
    arrives(world, site, packet(four.there, four.here, 9))


async def test_two_tunnels_with_one_end_point_each_version(engine: Engine, world: World) -> None:
    """One remote network per version, each in a tunnel of the other version: nothing is mixed up."""
    first, second = await make_site(engine, 4, 6), await make_site(engine, 6, 4, reqid=8)
    leaves(world, first, packet(INSIDES[6].here, INSIDES[6].there, 1))
    leaves(world, second, packet(INSIDES[4].here, INSIDES[4].there, 2))
    arrives(world, first, packet(INSIDES[6].there, INSIDES[6].here, 3))
    arrives(world, second, packet(INSIDES[4].there, INSIDES[4].here, 4))
    # The SPI of one under the address of the other is nobody's.
    stranger = replace(first.inbound, key=replace(first.inbound.key, destination=second.outside.local))
    stranger = replace(stranger, source=second.outside.peer)
    world.to_engine_wan(oracle(stranger).encrypt(packet(INSIDES[6].there, INSIDES[6].here, 5)))
    arrives(world, first, packet(INSIDES[6].there, INSIDES[6].here, 6))


@pytest.mark.parametrize("length", [40, 41, 42, 43, 1280, 1406])
async def test_packets_of_all_lengths_pass_inside_ipv6(engine: Engine, world: World, length: int) -> None:
    """From nothing but a header (all four paddings) to what just fits a WAN of 1500 bytes."""
    site = await make_site(engine, 6, 6)
    inside = INSIDES[6]
    sent = IPv6(bytes(IPv6(src=inside.here, dst=inside.there, nh=59, hlim=64) / bytes(length - 40)))
    world.to_engine_up(sent)
    outer = world.ciphertext(site.outbound.key.spi).payload
    assert bytes_of(site.leaving.decrypt(IPv6(bytes_of(outer)))) == bytes(sent)
    back = IPv6(bytes(IPv6(src=inside.there, dst=inside.here, nh=59, hlim=7) / bytes(length - 40)))
    world.to_engine_wan(site.entering.encrypt(back))
    frame = world.up.receive(lambda frame: IPv6 in frame and frame[IPv6].hlim == 7)
    assert bytes_of(frame[IPv6]) == bytes(back)


async def test_icmpv6_and_extension_headers_pass(engine: Engine, world: World) -> None:
    site = await make_site(engine, 6, 6)
    inside = INSIDES[6]
    for body in (ICMPv6EchoRequest(id=7, data=b"ping"), b"\x11\0\x01\x04" + bytes(4) + b"\0\1\0\2\0\x08\0\0"):
        fields = {"nh": 0} if isinstance(body, bytes) else {}
        sent = IPv6(bytes(IPv6(src=inside.there, dst=inside.here, hlim=9, **fields) / body))
        world.to_engine_wan(site.entering.encrypt(sent))
        frame = world.up.receive(lambda frame: IPv6 in frame and frame[IPv6].hlim == 9)
        assert bytes_of(frame[IPv6]) == bytes(sent)


async def test_rekey_and_replay_in_ipv6(engine: Engine, world: World) -> None:
    old = await make_site(engine, 6, 6)
    inside = INSIDES[6]
    arrives(world, old, packet(inside.there, inside.here, 1))
    new = await _successor(engine, old)
    arrives(world, old, packet(inside.there, inside.here, 2))
    arrives(world, new, packet(inside.there, inside.here, 3))
    leaves(world, new, packet(inside.here, inside.there, 4))
    await engine.update(new.tunnel)
    for key in (old.outbound.key, old.inbound.key):
        await engine.delete(key)
    again = new.entering.encrypt(packet(inside.there, inside.here, 5), seq_num=77)
    late = packet(inside.there, inside.here, 6)
    for sent in (again, again, old.entering.encrypt(late), new.entering.encrypt(late, seq_num=78)):
        world.to_engine_wan(sent)
    seen = [ident_of(world.up.receive(lambda frame: ident_of(frame) is not None)) for _ in range(2)]
    assert seen == [5, 6]


async def _successor(engine: Engine, old: Site) -> Site:
    incoming = replace(old.inbound, key=replace(old.inbound.key, spi=old.inbound.key.spi + 0x1000))
    outgoing = replace(old.outbound, key=replace(old.outbound.key, spi=old.outbound.key.spi + 0x1000))
    outgoing = replace(outgoing, secret=type(outgoing.secret)(bytes(range(16))))
    await engine.create(incoming)
    await engine.create(outgoing)
    both = replace(old.tunnel, inbound=(old.inbound.key, incoming.key), outbound=outgoing.key)
    await engine.update(both)
    return Site.of(old.outside, incoming, outgoing, replace(both, inbound=(incoming.key,)))


async def test_a_next_hop_of_ipv6_can_move(engine: Engine, world: World) -> None:
    site = await make_site(engine, 6, 4)
    moved = replace(site.outside.hop, gateway=ip_address("2001:db8:a::ffff"), mac="02:00:00:00:00:fd")
    await engine.update(moved)
    assert (await engine.retrieve())[site.outside.peer] == moved
    world.to_engine_up(packet(INSIDES[4].here, INSIDES[4].there, 1))
    assert world.ciphertext(site.outbound.key.spi).dst == moved.mac
    arrives(world, site, packet(INSIDES[4].there, INSIDES[4].here, 2))


async def test_what_ipv6_objects_refer_to_is_asked_for(engine: Engine) -> None:
    site = await make_site(engine, 6, 6)
    for key in (*site.tunnel.inbound, site.tunnel.outbound, site.outside.peer):
        with pytest.raises(EngineError, match="used"):
            await engine.delete(key)
    with pytest.raises(EngineError):
        await engine.delete(TunnelId(99, site.outside.peer))
    assert dict(await engine.retrieve()) == site.objects()


async def test_counters_count_ipv6(engine: Engine, world: World) -> None:
    site = await make_site(engine, 6, 6)
    inside = INSIDES[6]
    for number in (1, 2, 3):
        arrives(world, site, packet(inside.there, inside.here, number))
    leaves(world, site, packet(inside.here, inside.there, 4))
    counted = await engine.counters()
    into, out = counted[site.inbound.key], counted[site.outbound.key]
    length = len(bytes(packet(inside.here, inside.there, 1)))
    assert (into.packets, out.packets) == (3, 1)
    assert 3 * length <= into.octets <= 3 * (length + 3)
    assert length <= out.octets <= length + 3


@pytest.mark.parametrize("outer", OUTSIDES)
async def test_our_own_end_can_move(engine: Engine, world: World, outer: int) -> None:
    """MOBIKE as it looks to the outbound SA: the same key from another address."""
    site = await make_site(engine, outer, 6)
    leaves(world, site, packet(INSIDES[6].here, INSIDES[6].there, 1))
    moved = replace(site.outbound, source=OUTSIDES[outer].local + 9)
    await engine.update(moved)
    assert (await engine.retrieve())[moved.key] == moved
    world.to_engine_up(packet(INSIDES[6].here, INSIDES[6].there, 2))
    outside = world.ciphertext(moved.key.spi).payload
    assert outside.src == str(moved.source)
    assert ESP(bytes(outside.payload)).seq == 2, "the numbers go on"
    arrives(world, site, packet(INSIDES[6].there, INSIDES[6].here, 3))
    await engine.delete(site.tunnel.key)
    world.to_engine_wan(site.entering.encrypt(packet(INSIDES[6].there, INSIDES[6].here, 4)))
    await engine.create(site.tunnel)
    arrives(world, site, packet(INSIDES[6].there, INSIDES[6].here, 5))


async def test_tunnels_share_remote_networks_of_both_versions(engine: Engine, world: World) -> None:
    """The source decides, also where one tunnel leads anywhere and the other one into a part of that."""
    anywhere = {4: ip_network("0.0.0.0/0"), 6: ip_network("::/0")}
    others = {4: ip_network("10.8.0.0/16"), 6: ip_network("fd08::/48")}
    everything = tuple(Selector(INSIDES[version].selector.source, anywhere[version]) for version in (4, 6))
    a_part = tuple(Selector(others[version], INSIDES[version].selector.destination) for version in (4, 6))
    wide = await make_site(engine, 6, selectors=everything)
    narrow = await make_site(engine, 4, reqid=9, selectors=a_part)
    for number, (here, version) in enumerate((("10.8.0.1", 4), ("fd08::1", 6))):
        there = INSIDES[version].there
        leaves(world, narrow, packet(here, there, 10 + number))
        arrives(world, narrow, packet(there, here, 20 + number))
        leaves(world, wide, packet(INSIDES[version].here, there, 30 + number))
        arrives(world, wide, packet(there, INSIDES[version].here, 40 + number))
