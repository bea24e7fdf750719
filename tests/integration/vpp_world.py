"""The world of the contract tests with the real VPP beside it, and what tests do with the two."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ipsec_gw.engines.vpp import VppEngine
from ipsec_gw.errors import EngineError, EnvironmentMissing
from ipsec_gw.model.choices import PolicyMode
from tests.contract.world import World
from vpp_conf import lifecycle
from vpp_conf.api import VppApi
from vpp_conf.locate import locate_vpp
from vpp_conf.paths import VppPaths
from vpp_conf.startup.values import Needs

BPFFS = Path("/sys/fs/bpf")


@contextmanager
def docked_world(run_dir: Path, name: str) -> Iterator[World]:
    """No VPP runs yet; none runs afterwards. ``name`` tells the namespaces and pins of a test's file from others."""
    if not BPFFS.is_mount():
        pytest.skip("no bpffs - mount -t bpf bpf /sys/fs/bpf")
    with World(run_dir, name, BPFFS / f"ipsec-gw-{name}-{os.getpid()}") as built:
        try:
            yield built
        finally:
            lifecycle.down(run_dir)


@contextmanager
def running_world(run_dir: Path, name: str, needs: Needs | None = None) -> Iterator[World]:
    """VPP runs in it, with the suite's stand-in for the docks; skipped where none is installed."""
    try:
        locate_vpp()
    except EnvironmentMissing as missing:
        pytest.skip(str(missing))
    with World(run_dir, name) as built:
        lifecycle.up(run_dir, needs=needs)
        try:
            yield built
        finally:
            lifecycle.down(run_dir)


async def opened(world: World, mode: PolicyMode = PolicyMode.AUTO) -> VppEngine:
    """An engine of that VPP."""
    engine = VppEngine(world.context, mode)
    await engine.open()
    return engine


async def api_of(world: World) -> VppApi:
    """Another client of it."""
    api = VppApi(VppPaths(world.run_dir.resolve()).api_socket, locate_vpp().api_dir)
    await api.connect()
    return api


def refuse(patch: pytest.MonkeyPatch, number: int, changing: Mapping[type, tuple[str, ...]]) -> list[str]:
    """Let this call of those that change something in VPP fail. What comes back tells whether it came so far."""
    calls, refused = 0, list[str]()

    def counted(original: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def call(*arguments: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == number + 1:
                refused.append(original.__name__)
                raise EngineError("refused for once")
            return await original(*arguments, **named)

        return call

    for kind, names in changing.items():
        for name in names:
            patch.setattr(kind, name, counted(getattr(kind, name)))
    return refused
