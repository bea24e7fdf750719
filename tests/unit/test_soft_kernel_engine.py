"""The kernel engine holds nothing and says so."""

from __future__ import annotations

import pytest

from ipsec_gw.engines.kernel import KernelEngine
from ipsec_gw.engines.port import Engine
from ipsec_gw.errors import EngineError
from ipsec_gw.model.ids import Direction, EngineName
from tests.unit.soft_kit import context, next_hop, sa, tunnel

SA = sa(Direction.IN, 0x1001)


async def test_it_offers_nothing():
    engine: Engine = KernelEngine(context())
    capabilities = await engine.open()
    assert engine.name is EngineName.KERNEL
    assert not capabilities.steers
    assert capabilities.algorithms == frozenset()
    assert "kernel" in capabilities.note
    assert (dict(await engine.retrieve()), dict(await engine.counters())) == ({}, {})
    await engine.close()


@pytest.mark.parametrize("obj", [SA, next_hop(), tunnel([SA], SA)], ids=["sa", "hop", "tunnel"])
async def test_it_takes_nothing(obj):
    engine = KernelEngine(context())
    for act in (engine.create(obj), engine.update(obj), engine.delete(obj.key)):
        with pytest.raises(EngineError, match="the kernel engine holds nothing"):
            await act
