"""Routes of tunnels that share remote networks in a real VPP: adoption, leftovers, and failures half-way."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from ipaddress import ip_network
from itertools import starmap
from pathlib import Path
from typing import Any

import pytest

from ipsec_gw.engines.vpp import VppEngine
from ipsec_gw.errors import EngineError
from ipsec_gw.model.objects import Selector
from tests.contract.test_contract_shared import SELECTORS, Tunnels, check
from tests.contract.values import HOP
from tests.contract.world import World
from tests.integration.vpp_world import api_of, opened, running_world
from vpp_conf.descriptors.route import (
    ENCAP_TABLE,
    SHARED_TABLES,
    Route,
    RouteDescriptor,
    Table,
    TableDescriptor,
)

pytestmark = [pytest.mark.root, pytest.mark.vpp, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with running_world(tmp_path, "vpps") as built:
        yield built


async def routes_of(world: World) -> tuple[frozenset[Route], frozenset[Table]]:
    """What is in the encap table and those that are shared, as VPP itself tells."""
    api = await api_of(world)
    found = frozenset(
        route
        for route in await RouteDescriptor(api).retrieve()
        if route.table == ENCAP_TABLE or route.table in SHARED_TABLES
    )
    tables = frozenset(await TableDescriptor(api).retrieve())
    await api.close()
    return found, tables


async def stand(engine: VppEngine, *names: str) -> Tunnels:
    await engine.create(HOP)
    tunnels = Tunnels(engine)
    for name in names:
        await tunnels.add(name, SELECTORS[name])
    return tunnels


async def test_a_new_daemon_adopts_them_as_they_are_and_the_last_one_leaves_nothing(world: World) -> None:
    engine = await opened(world)
    bare = await routes_of(world)
    tunnels = await stand(engine, *SELECTORS)
    before = await routes_of(world)
    assert len(before[1]) == len(SELECTORS) - 1 - 1, "the branch has two tunnels, everywhere needs none of its own"
    await engine.close()
    again = await opened(world)
    assert await routes_of(world) == before
    check(tunnels, world)
    tunnels._engine = again
    for name in list(tunnels.objects):
        await tunnels.remove(name)
        check(tunnels, world)
    assert await routes_of(world) == bare
    await again.close()


async def test_what_a_crash_left_is_swept_and_what_it_left_out_is_put_in(world: World) -> None:
    engine = await opened(world)
    tunnels = await stand(engine, *SELECTORS)
    before = await routes_of(world)
    await engine.close()
    api = await api_of(world)
    stray = Table(SHARED_TABLES[-1], 4)
    some = next(route for route in before[0] if route.table in SHARED_TABLES)
    await TableDescriptor(api).create(stray)
    await RouteDescriptor(api).create(Route(stray.table, ip_network("10.77.0.0/16"), some.sw_if_index))
    await RouteDescriptor(api).create(Route(ENCAP_TABLE, ip_network("10.88.0.0/16"), by_source=stray.table))
    await RouteDescriptor(api).create(Route(ENCAP_TABLE, ip_network("10.99.0.0/16"), some.sw_if_index))
    await RouteDescriptor(api).delete(some)
    await api.close()
    again = await opened(world)
    assert await routes_of(world) == before
    check(tunnels, world)
    await again.close()


MOVES = {
    "between shared ones": (("branch", "a part of the branch", "other lan, same branch"), "everywhere"),
    "to a shared one": (("branch", "elsewhere"), "other lan, same branch"),
    "from a shared one": (("branch", "other lan, same branch"), "elsewhere"),
}
"""Tunnels that stand, the last of which gets the selector of another; each takes five steps."""


@pytest.mark.parametrize("step", range(5))
@pytest.mark.parametrize("move", MOVES)
async def test_a_change_that_fails_half_way_changes_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch, move: str, step: int
) -> None:
    names, target = MOVES[move]
    engine = await opened(world)
    tunnels = await stand(engine, *names)
    before = await routes_of(world)
    old = tunnels.objects[names[-1]]
    moved = replace(old, selectors=tuple(starmap(Selector, [map(ip_network, SELECTORS[target])])))
    calls = 0

    def counted(original: Callable[[Any, Any], Awaitable[Any]]) -> Callable[[Any, Any], Awaitable[Any]]:
        async def call(self: Any, value: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == step + 1:
                raise EngineError("refused for once")
            return await original(self, value)

        return call

    with monkeypatch.context() as patch:
        for kind in (RouteDescriptor, TableDescriptor):
            for name in ("create", "delete"):
                patch.setattr(kind, name, counted(getattr(kind, name)))
        with pytest.raises(EngineError, match="refused for once"):
            await engine.update(moved)
        assert await routes_of(world) == before
        check(tunnels, world)
        assert (await engine.retrieve())[old.key] == old
        calls = 10
        await engine.update(moved)
        assert calls == 15, "and no step was left out of the test"
    assert (await engine.retrieve())[old.key] == moved
    await engine.close()
