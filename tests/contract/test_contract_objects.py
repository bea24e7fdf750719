"""What every engine does when it is told to hold things."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from scapy.layers.inet import IP
from scapy.layers.ipsec import ESP

from ipsec_gw.engines.port import Engine
from ipsec_gw.errors import EngineError, UsedKeyError
from ipsec_gw.model.ids import Direction, SaKey, TunnelId
from ipsec_gw.model.objects import EngineObject, NextHop, Selector, Tunnel
from ipsec_gw.model.secret import Secret
from tests.contract.values import (
    GATEWAY_MAC,
    HERE,
    HOP,
    LAN,
    LOCAL,
    PEER,
    REMOTE,
    SELECTORS,
    TUNNEL_ID,
    Site,
    inbound_packet,
    inner,
    make_sa,
    make_site,
    oracle,
    outbound_packet,
    secret,
)
from tests.contract.world import World

pytestmark = [pytest.mark.root, pytest.mark.asyncio(loop_scope="module")]


def held_by(site: Site) -> dict[object, EngineObject]:
    return {obj.key: obj for obj in (HOP, site.inbound, site.outbound, site.tunnel)}


async def test_retrieve_gives_back_what_was_created(engine: Engine) -> None:
    site = await make_site(engine)
    assert dict(await engine.retrieve()) == held_by(site)


async def test_an_odd_window_and_many_selectors_come_back_as_asked_for(engine: Engine) -> None:
    incoming, outgoing = make_sa(Direction.IN, window=32), make_sa(Direction.OUT, window=0)
    selectors = (
        Selector(LAN, REMOTE),
        Selector(ip_network("10.1.3.0/24"), ip_network("10.3.0.0/20")),
        Selector(ip_network("10.1.0.1/32"), ip_network("172.16.0.0/12")),
    )
    tunnel = Tunnel(TUNNEL_ID, LOCAL, PEER, (incoming.key,), outgoing.key, selectors)
    for obj in (HOP, incoming, outgoing, tunnel):
        await engine.create(obj)
    assert dict(await engine.retrieve()) == {obj.key: obj for obj in (HOP, incoming, outgoing, tunnel)}


@pytest.mark.parametrize("way", Direction)
async def test_an_sa_of_transport_mode_comes_back_as_one(engine: Engine, way: Direction) -> None:
    sa = replace(make_sa(way, window=128), transport=True)
    await engine.create(sa)
    assert dict(await engine.retrieve()) == {sa.key: sa}
    await engine.delete(sa.key)
    assert dict(await engine.retrieve()) == {}


async def test_everything_deleted_leaves_nothing(engine: Engine) -> None:
    site = await make_site(engine)
    for key in (TUNNEL_ID, site.inbound.key, site.outbound.key, PEER):
        await engine.delete(key)
    assert dict(await engine.retrieve()) == {}


async def test_creating_twice_is_refused(engine: Engine) -> None:
    site = await make_site(engine)
    for obj in held_by(site).values():
        with pytest.raises(EngineError, match="exists"):
            await engine.create(obj)
    assert dict(await engine.retrieve()) == held_by(site)


@pytest.mark.parametrize(
    "key", [SaKey(LOCAL, 0x1234), SaKey(PEER, 0x1234), ip_address("198.51.100.99"), TunnelId(99, PEER)], ids=str
)
async def test_deleting_what_is_not_there_is_refused(engine: Engine, key: SaKey) -> None:
    with pytest.raises(EngineError):
        await engine.delete(key)


async def test_updating_what_is_not_there_is_refused(engine: Engine) -> None:
    site_tunnel = Tunnel(TUNNEL_ID, LOCAL, PEER, (SaKey(LOCAL, 1),), SaKey(PEER, 2), SELECTORS)
    for obj in (make_sa(Direction.IN), HOP, site_tunnel):
        with pytest.raises(EngineError):
            await engine.update(obj)
    assert dict(await engine.retrieve()) == {}


async def test_what_a_tunnel_uses_cannot_be_deleted(engine: Engine, world: World) -> None:
    site = await make_site(engine)
    for key in (site.inbound.key, site.outbound.key, PEER):
        with pytest.raises(EngineError, match="used"):
            await engine.delete(key)
    assert dict(await engine.retrieve()) == held_by(site)
    world.to_engine_wan(oracle(site.inbound).encrypt(inbound_packet(1)))
    world.plaintext(lambda ip: ip.id == 1)


@pytest.mark.parametrize("missing", ["inbound", "outbound", "next hop"])
async def test_a_tunnel_needs_what_it_refers_to(engine: Engine, missing: str) -> None:
    incoming, outgoing = make_sa(Direction.IN), make_sa(Direction.OUT)
    present = {"inbound": incoming, "outbound": outgoing, "next hop": HOP}
    del present[missing]
    for obj in present.values():
        await engine.create(obj)
    with pytest.raises(EngineError):
        await engine.create(Tunnel(TUNNEL_ID, LOCAL, PEER, (incoming.key,), outgoing.key, SELECTORS))
    assert dict(await engine.retrieve()) == {obj.key: obj for obj in present.values()}


async def test_a_tunnel_does_not_take_sas_of_the_wrong_direction(engine: Engine) -> None:
    incoming, outgoing = make_sa(Direction.IN), make_sa(Direction.OUT)
    for obj in (HOP, incoming, outgoing):
        await engine.create(obj)
    with pytest.raises(EngineError):
        await engine.create(Tunnel(TUNNEL_ID, LOCAL, PEER, (outgoing.key,), incoming.key, SELECTORS))


@pytest.mark.parametrize("length", [0, 15, 17, 32])
async def test_a_key_of_the_wrong_length_leaves_nothing(engine: Engine, length: int) -> None:
    with pytest.raises(EngineError):
        await engine.create(replace(make_sa(Direction.IN), secret=Secret(bytes(length))))
    assert dict(await engine.retrieve()) == {}


@pytest.mark.parametrize("length", [0, 3, 5])
async def test_a_salt_of_the_wrong_length_leaves_nothing(engine: Engine, length: int) -> None:
    with pytest.raises(EngineError):
        await engine.create(replace(make_sa(Direction.IN), salt=Secret(bytes(length))))
    assert dict(await engine.retrieve()) == {}


async def test_a_key_that_never_sent_may_come_again(engine: Engine) -> None:
    site = await make_site(engine)
    for key in (TUNNEL_ID, site.outbound.key):
        await engine.delete(key)
    for obj in (site.outbound, site.tunnel):
        await engine.create(obj)
    assert dict(await engine.retrieve()) == held_by(site)


async def test_a_key_that_sent_is_refused_ever_after(engine: Engine, world: World) -> None:
    site = await make_site(engine)
    world.to_engine_up(outbound_packet(1))
    world.ciphertext(site.outbound.key.spi)
    for key in (TUNNEL_ID, site.outbound.key):
        await engine.delete(key)
    with pytest.raises(UsedKeyError):
        await engine.create(site.outbound)


async def test_no_error_and_no_object_shows_a_key(engine: Engine) -> None:
    sa = replace(make_sa(Direction.IN), secret=secret(15))
    with pytest.raises(EngineError) as caught:
        await engine.create(sa)
    assert sa.secret.reveal().hex() not in repr(caught.value)
    site = await make_site(engine)
    assert site.inbound.secret.reveal().hex() not in repr(await engine.retrieve())


async def test_rekey_loses_nothing(engine: Engine, world: World) -> None:
    """Make before break, as charon does it: new inbound, new outbound, the switch, the end of the old ones."""
    old = await make_site(engine)
    old_in, old_out = oracle(old.inbound), oracle(old.outbound)
    incoming, outgoing = make_sa(Direction.IN), make_sa(Direction.OUT)
    new_in, new_out = oracle(incoming), oracle(outgoing)
    ident = iter(range(1, 1000))

    def arrives(peer: object) -> None:
        number = next(ident)
        world.to_engine_wan(peer.encrypt(inbound_packet(number)))  # type: ignore[attr-defined]
        world.plaintext(lambda ip: ip.id == number)

    def leaves(sa_oracle: object, spi: int, sequence: int) -> None:
        number = next(ident)
        world.to_engine_up(outbound_packet(number))
        frame = world.ciphertext(spi)
        assert ESP(bytes(frame[IP].payload)).seq == sequence
        assert sa_oracle.decrypt(IP(inner(frame)))[IP].id == number  # type: ignore[attr-defined]

    arrives(old_in)
    leaves(old_out, old.outbound.key.spi, 1)
    await engine.create(incoming)
    both = replace(old.tunnel, inbound=(incoming.key, old.inbound.key))
    await engine.update(both)
    for peer in (old_in, new_in, old_in):
        arrives(peer)
    leaves(old_out, old.outbound.key.spi, 2)
    await engine.create(outgoing)
    switched = replace(both, outbound=outgoing.key)
    await engine.update(switched)
    leaves(new_out, outgoing.key.spi, 1)
    for peer in (old_in, new_in):
        arrives(peer)
    await engine.delete(old.outbound.key)
    await engine.update(replace(switched, inbound=(incoming.key,)))
    await engine.delete(old.inbound.key)
    world.to_engine_wan(old_in.encrypt(inbound_packet(next(ident))))
    last = next(ident)
    world.to_engine_wan(new_in.encrypt(inbound_packet(last)))
    assert world.plaintext(lambda ip: True)[IP].id == last, "the deleted SA still decrypts"
    leaves(new_out, outgoing.key.spi, 2)


async def test_more_inbound_sas_than_four_are_refused(engine: Engine, world: World) -> None:
    site = await make_site(engine)
    more = [make_sa(Direction.IN) for _ in range(4)]
    for sa in more:
        await engine.create(sa)
    four = replace(site.tunnel, inbound=(site.inbound.key, *(sa.key for sa in more[:3])))
    await engine.update(four)
    for number, sa in enumerate((site.inbound, *more[:3]), 1):
        world.to_engine_wan(oracle(sa).encrypt(inbound_packet(number)))
        world.plaintext(lambda ip, number=number: ip.id == number)
    with pytest.raises(EngineError):
        await engine.update(replace(four, inbound=(*four.inbound, more[3].key)))
    assert (await engine.retrieve())[TUNNEL_ID] == four


async def test_new_selectors_take_effect(engine: Engine, world: World) -> None:
    site = await make_site(engine)
    other = Selector(ip_network("10.1.0.0/24"), ip_network("172.20.0.0/16"))
    await engine.update(replace(site.tunnel, selectors=(other,)))
    peer = oracle(site.inbound)
    world.to_engine_wan(peer.encrypt(inbound_packet(1)))
    fits = IP(bytes(IP(src="172.20.1.1", dst=HERE, id=2) / b"payload"))
    world.to_engine_wan(peer.encrypt(fits))
    assert world.plaintext(lambda ip: True)[IP].id == 2
    world.to_engine_up(outbound_packet(3))
    world.to_engine_up(IP(bytes(IP(src=HERE, dst="172.20.1.1", id=4) / b"payload")))
    frame = world.ciphertext(site.outbound.key.spi)
    assert oracle(site.outbound).decrypt(IP(inner(frame)))[IP].id == 4


async def test_a_next_hop_can_move(engine: Engine, world: World) -> None:
    site = await make_site(engine)
    moved = replace(HOP, gateway=ip_address("192.0.2.253"), mac="02:00:00:00:00:fd")
    await engine.update(moved)
    assert (await engine.retrieve())[PEER] == moved
    world.to_engine_up(outbound_packet(1))
    assert world.ciphertext(site.outbound.key.spi).dst == moved.mac
    world.to_engine_wan(oracle(site.inbound).encrypt(inbound_packet(2)))
    world.plaintext(lambda ip: ip.id == 2)


async def test_next_hops_share_a_gateway_and_our_address(engine: Engine, world: World) -> None:
    site = await make_site(engine)
    neighbour = NextHop(ip_address("198.51.100.8"), LOCAL, HOP.interface, HOP.gateway, GATEWAY_MAC)
    await engine.create(neighbour)
    await engine.delete(neighbour.key)
    world.to_engine_up(outbound_packet(1))
    assert world.ciphertext(site.outbound.key.spi).dst == GATEWAY_MAC
    world.to_engine_wan(oracle(site.inbound).encrypt(inbound_packet(2)))
    world.plaintext(lambda ip: ip.id == 2)


async def test_two_tunnels_to_different_peers(engine: Engine, told_apart: bool, world: World) -> None:
    first = await make_site(engine)
    peer = ip_address("198.51.100.8")
    incoming = replace(make_sa(Direction.IN), source=peer)
    outgoing = make_sa(Direction.OUT)
    outgoing = replace(outgoing, key=SaKey(peer, outgoing.key.spi))
    selector = Selector(LAN, ip_network("10.3.0.0/16"))
    tunnel = Tunnel(TunnelId(8, peer), LOCAL, peer, (incoming.key,), outgoing.key, (selector,))
    hop = NextHop(peer, LOCAL, HOP.interface, HOP.gateway, GATEWAY_MAC)
    for obj in (hop, incoming, outgoing, tunnel):
        await engine.create(obj)
    world.to_engine_up(IP(bytes(IP(src=HERE, dst="10.3.0.1", id=1) / b"payload")))
    assert world.ciphertext(outgoing.key.spi)[IP].dst == str(peer)
    world.to_engine_up(outbound_packet(2))
    assert world.ciphertext(first.outbound.key.spi)[IP].dst == str(PEER)
    # One tunnel's source does not pass in another tunnel, unless an SPD has both.
    second = oracle(incoming)
    world.to_engine_wan(second.encrypt(inbound_packet(3)))
    world.to_engine_wan(second.encrypt(IP(bytes(IP(src="10.3.0.1", dst=HERE, id=4) / b"payload"))))
    assert world.plaintext(lambda ip: True)[IP].id == (4 if told_apart else 3)


REFUSED: list[Callable[[], EngineObject]] = [
    lambda: NextHop(PEER, LOCAL, "nowhere0", ip_address("192.0.2.254"), GATEWAY_MAC),
    lambda: replace(make_sa(Direction.IN), replay_window=1 << 20),
]


@pytest.mark.parametrize("make", REFUSED, ids=["unknown interface", "gigantic window"])
async def test_what_cannot_be_done_is_refused(engine: Engine, make: Callable[[], EngineObject]) -> None:
    with pytest.raises(EngineError):
        await engine.create(make())
    assert dict(await engine.retrieve()) == {}


async def test_the_epoch_stays(engine: Engine) -> None:
    epoch = engine.epoch
    await make_site(engine)
    assert engine.epoch == epoch != 0


async def test_the_steering_was_told_before_the_interfaces_were_taken(engine: Engine, world: World) -> None:
    """An engine that holds nothing yet must not get what its earlier life held."""
    assert world.takings > 0
