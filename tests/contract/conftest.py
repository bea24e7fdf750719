"""One world per engine: starting VPP costs seconds, and it cannot open an interface twice in its life."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from ipsec_gw.engines.port import Capabilities, Engine, EngineContext
from ipsec_gw.engines.soft.engine import SoftEngine
from ipsec_gw.engines.vpp import VppEngine
from ipsec_gw.errors import EnvironmentMissing
from ipsec_gw.model.choices import PolicyMode
from ipsec_gw.model.ids import TunnelId
from ipsec_gw.model.objects import OverlayKey
from tests.contract.world import World
from vpp_conf import lifecycle
from vpp_conf.locate import locate_vpp
from vpp_conf.startup.values import Needs

ENGINES = [*(pytest.param(name, marks=pytest.mark.vpp) for name in ("vpp", "vpp-spd")), "soft"]
"""``vpp-spd`` is VPP with ``policy_mode = "spd"``, by its fast path."""

POLICIES = 1000


@pytest.fixture(scope="module", params=ENGINES)
def engine_name(request: pytest.FixtureRequest) -> str:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    if request.param != "soft":
        try:
            locate_vpp()
        except EnvironmentMissing as missing:
            pytest.skip(str(missing))
    return str(request.param)


@pytest.fixture(scope="module")
def world(engine_name: str) -> Iterator[World]:
    with tempfile.TemporaryDirectory(prefix="ipsec-gw-contract-") as folder, World(Path(folder), engine_name) as built:
        yield built


def make_engine(name: str, context: EngineContext) -> Engine:
    if name == "soft":
        return SoftEngine(context)
    return VppEngine(context, PolicyMode.SPD if name == "vpp-spd" else PolicyMode.AUTO)


@pytest.fixture(scope="module")
def running(engine_name: str, world: World) -> Iterator[None]:
    """VPP, if that is the engine, in the gateway's namespace."""
    if engine_name != "soft":
        lifecycle.up(world.run_dir, needs=Needs(policies=POLICIES if engine_name == "vpp-spd" else 0))
        try:
            yield
        finally:
            lifecycle.down(world.run_dir)
    else:
        yield


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def opened(engine_name: str, world: World, running: None) -> AsyncIterator[tuple[Engine, Capabilities]]:
    engine = make_engine(engine_name, world.context)
    capabilities = await engine.open()
    yield engine, capabilities
    await engine.close()


@pytest_asyncio.fixture(loop_scope="module")
async def engine(opened: tuple[Engine, Capabilities], world: World) -> AsyncIterator[Engine]:
    """The engine with nothing in it, and everything that a test left removed after it."""
    held = opened[0]
    world.wan.flush()
    world.up.flush()
    yield held
    await clear(held)
    assert await held.retrieve() == {}


async def clear(engine: Engine) -> None:
    keys = list(await engine.retrieve())
    for key in sorted(keys, key=lambda key: (not isinstance(key, OverlayKey), not isinstance(key, TunnelId))):
        await engine.delete(key)


@pytest.fixture
def told_apart(engine_name: str) -> bool:
    """What comes out of a tunnel is held to its own selectors. An SPD holds it to those of all tunnels."""
    return engine_name != "vpp-spd"


@pytest.fixture
def capabilities(opened: tuple[Engine, Capabilities]) -> Capabilities:
    return opened[1]
