"""The daemon dies at any message of a rekey: VPP goes on with old or new SAs, and the next daemon finishes it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.ipsec import ESP, SecurityAssociation

from ipsec_gw.engines.vpp import VppEngine
from ipsec_gw.errors import EngineError
from ipsec_gw.model.choices import PolicyMode
from ipsec_gw.model.ids import Direction
from ipsec_gw.model.objects import EngineSa, ManagedObject, ObjectKey
from ipsec_gw.reconcile.plan import Action, plan
from tests.contract.values import HOP, Site, inbound_packet, inner, make_sa, make_site, oracle, outbound_packet
from tests.contract.world import World
from tests.integration.vpp_world import opened, running_world
from vpp_conf.api import VppApi

pytestmark = [
    pytest.mark.root,
    pytest.mark.vpp,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.asyncio(loop_scope="module"),
]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with running_world(tmp_path, "vppc") as built:
        yield built


Objects = Mapping[ObjectKey, ManagedObject]


def objects_of(site: Site) -> Objects:
    return {obj.key: obj for obj in (HOP, site.inbound, site.outbound, site.tunnel)}


async def held_by(engine: VppEngine) -> Objects:
    return {obj.key: obj for obj in (await engine.retrieve()).values()}


def die(patch: pytest.MonkeyPatch, number: int) -> list[str]:
    """After so many messages the client's socket is gone in the middle of things. What comes back tells whether it came
    so far; nothing is taken back, as nobody is left to do it.
    """
    sent, cut = 0, list[str]()
    send = VppApi._send

    def counted(client: Any, message: str, fields: dict[str, Any]) -> Any:
        nonlocal sent
        sent += 1
        if sent > number:
            cut.append(message)
            client.transport.socket.close()
            raise OSError("the daemon is dead")
        return send(client, message, fields)

    patch.setattr(VppApi, "_send", staticmethod(counted))
    return cut


async def carry_out(engine: VppEngine, wanted: Objects, in_place: Objects) -> None:
    """As the executor does."""
    for op in plan(wanted, in_place):
        obj: Any = op.obj
        match op.action:
            case Action.CREATE:
                await engine.create(obj)
            case Action.UPDATE:
                await engine.update(obj)
            case Action.DELETE:
                await engine.delete(obj.key)


class Peer:
    """Both sides' view of the SAs: what arrives with any of those that it knows is opened."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._oracles: dict[int, SecurityAssociation] = {}
        self._idents = count(1)

    def know(self, *sas: EngineSa) -> None:
        """From now on."""
        self._oracles |= {sa.key.spi: oracle(sa) for sa in sas}

    def is_reached(self) -> int:
        """By a packet of our LAN. The SPI of the SA that carried it."""
        sent = outbound_packet(next(self._idents))
        self._world.to_engine_up(sent)
        frame = self._world.wan.receive(lambda frame: IP in frame and frame[IP].proto == 50 and UDP not in frame)
        spi = int(ESP(bytes(frame[IP].payload)).spi)
        assert inner(self._oracles[spi].decrypt(IP(inner(frame)))) == bytes(sent)
        return spi

    def reaches(self, sa: EngineSa) -> None:
        """Our LAN, with a packet in this SA."""
        sent = inbound_packet(next(self._idents))
        self._world.to_engine_wan(self._oracles[sa.key.spi].encrypt(sent))
        assert inner(self._world.plaintext(lambda ip: ip.id == sent.id)) == bytes(sent)


@pytest.mark.parametrize("mode", [PolicyMode.AUTO, PolicyMode.SPD])
async def test_traffic_goes_on_where_the_daemon_dies_in_a_rekey(
    world: World, monkeypatch: pytest.MonkeyPatch, mode: PolicyMode
) -> None:
    """charon adds SAs, and deletes the old ones when the peer has done so."""
    engine = await opened(world, mode)
    site, peer = await make_site(engine), Peer(world)
    peer.know(site.inbound, site.outbound)
    for number in count():
        incoming, outgoing = make_sa(Direction.IN), make_sa(Direction.OUT)
        both = replace(site.tunnel, inbound=(site.inbound.key, incoming.key), outbound=outgoing.key)
        renewed = Site(incoming, outgoing, replace(both, inbound=(incoming.key,)))
        peer.know(incoming, outgoing)
        old, final = objects_of(site), objects_of(renewed)
        overlapping = {**old, **final, both.key: both}
        with monkeypatch.context() as patch:
            cut, reached = die(patch, number), [old]
            with suppress(EngineError):
                for before, after in ((old, overlapping), (overlapping, final)):
                    await carry_out(engine, after, before)
                    reached.append(after)
            with suppress(EngineError):
                await engine.close()
        assert peer.is_reached() in {site.outbound.key.spi, outgoing.key.spi}, cut
        if len(reached) == 1:
            peer.reaches(site.inbound)
        else:
            peer.reaches(incoming)
        engine = await opened(world, mode)
        await carry_out(engine, final, await held_by(engine))
        assert await held_by(engine) == final
        assert peer.is_reached() == outgoing.key.spi
        peer.reaches(incoming)
        site = renewed
        if not cut:
            break
    assert number >= 6, "two SAs come, the tunnel gets them and loses the old ones, two SAs go"
    await engine.close()
