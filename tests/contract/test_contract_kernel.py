"""The kernel engine is the port without an engine: it holds nothing and claims nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from ipsec_gw.engines.kernel import KernelEngine
from ipsec_gw.engines.port import Engine, EngineContext, Link
from ipsec_gw.errors import EngineError
from ipsec_gw.model.ids import Direction, EngineName
from tests.contract.values import HOP, make_sa


@pytest.fixture
def kernel(tmp_path: Path) -> Engine:
    link = Link("lo", "00:00:00:00:00:00", 1500)
    return KernelEngine(EngineContext(tmp_path, (link,), link, link, lambda name: -1))


async def test_it_steers_nothing(kernel: Engine) -> None:
    capabilities = await kernel.open()
    assert not capabilities.steers
    assert capabilities.algorithms == frozenset()
    assert kernel.name is EngineName.KERNEL


async def test_it_refuses_objects_and_stays_empty(kernel: Engine) -> None:
    await kernel.open()
    for obj in (HOP, make_sa(Direction.OUT)):
        with pytest.raises(EngineError):
            await kernel.create(obj)
        with pytest.raises(EngineError):
            await kernel.update(obj)
        with pytest.raises(EngineError):
            await kernel.delete(obj.key)
    assert dict(await kernel.retrieve()) == {}
    assert dict(await kernel.counters()) == {}
    await kernel.close()
