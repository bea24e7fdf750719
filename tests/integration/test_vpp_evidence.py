"""A real VPP that crashes with keys in it: what is kept tells how it ended, and has none of them."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ipsec_gw.engines.vpp import VppEngine
from ipsec_gw.model.objects import EngineSa
from ipsec_gw.ownership.engine_link import EngineLink
from ipsec_gw.ownership.sentry import Sentry
from tests.contract.values import make_site
from tests.contract.world import World
from tests.integration.conftest import until
from tests.integration.vpp_world import docked_world
from vpp_conf import evidence, lifecycle
from vpp_conf.paths import VppPaths
from vpp_conf.process import ProcessId, identify, recorded

pytestmark = [pytest.mark.root, pytest.mark.vpp, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]


@pytest.fixture
def world(tmp_path: Path, vpp: None) -> Iterator[World]:
    with docked_world(tmp_path, "vppe") as built:
        lifecycle.up(tmp_path)
        yield built


def process_of(paths: VppPaths) -> ProcessId:
    found = recorded(paths.pid_file)
    assert found is not None
    return found


def spellings(secret: bytes) -> list[bytes]:
    """A key, and parts of it, as anything could print it."""
    parts = [secret, secret[:8], secret[-8:]]
    spelt = [spelling for part in parts for spelling in (part, part.hex().encode(), part.hex().upper().encode())]
    return [*spelt, base64.b64encode(secret)[:-4], repr(secret).encode()[2:-1]]


async def within(condition: Callable[[], bool]) -> None:
    """A condition that the loop's own tasks bring about."""
    async with asyncio.timeout(30.0):
        while not condition():  # noqa: ASYNC110 - files tell no event
            await asyncio.sleep(0.05)


def dumps_of(pid: int) -> list[Path]:
    """What VPP or the kernel would have left of it, with its memory."""
    return [*Path(tempfile.gettempdir()).glob(f"api_post_mortem.{pid}"), *Path("/").glob(f"core*{pid}*")]


def holding_keys(paths: list[Path], sas: list[EngineSa]) -> list[str]:
    """Files that hold a key of one of the SAs."""
    wanted = [spelling for sa in sas for spelling in spellings(sa.secret.reveal())]
    files = [file for path in paths for file in ([path] if path.is_file() else sorted(path.rglob("*")))]
    return [str(file) for file in files if file.is_file() and any(one in file.read_bytes() for one in wanted)]


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL, signal.SIGSTOP])
async def test_a_crash_leaves_evidence_and_no_key(world: World, number: signal.Signals) -> None:
    paths = VppPaths(world.run_dir.resolve())
    link, told, lost = EngineLink(VppEngine(world.context)), list[str](), asyncio.Event()
    world.steering.set_engine(True)
    sentry = Sentry(link, world.steering, 0.5, lost=lost.set, tell=told.append, look_seconds=0.2)
    await link.open()
    site = await make_site(link.engine)
    sas = [site.outbound, site.inbound]
    process = process_of(paths)
    task = asyncio.create_task(sentry.run())
    await within(lambda: paths.trace.exists() and "ipsec_sad_entry_add" in paths.trace.read_text())
    os.kill(process.pid, number)
    await within(lambda: lost.is_set() and bool(told))
    task.cancel()
    await link.engine.close()
    kept = evidence.last(paths)
    assert kept is not None
    assert told == [f"what is left of the engine that was lost is kept in {kept.path}"]
    told_why = json.loads((kept.path / "why.json").read_text())
    assert told_why["pid"] == process.pid
    assert told_why["why"] == ("its process has ended" if number != signal.SIGSTOP else kept.why)
    names = {path.name for path in kept.path.iterdir()}
    assert {"why.json", "vpp.log", "startup.conf", "plan.json", "show.txt", "api-trace.txt"} <= names
    assert "ipsec_sad_entry_add_v2 sad_id=" in (kept.path / "api-trace.txt").read_text()
    shown = (kept.path / "show.txt").read_text()
    assert "==== show runtime" in shown
    assert "vpp_main" in shown
    if number in (signal.SIGSEGV, signal.SIGABRT):
        assert f"received signal {number.name}" in (kept.path / "vpp.log").read_text()
    if number == signal.SIGSTOP:
        assert "hung" in kept.why
        assert "vpp_main" in (kept.path / "threads.txt").read_text()
    assert dumps_of(process.pid) == []
    assert holding_keys([paths.folder], sas) == []
    assert holding_keys([world.run_dir], sas) == [], "nowhere else either"
    canary = world.run_dir / "canary"
    canary.write_text(f"key {site.outbound.secret.reveal().hex()}")
    assert holding_keys([world.run_dir], sas) == [str(canary)], "one would be found"
    lifecycle.up(world.run_dir)
    assert evidence.last(paths) == kept, "it is kept once"


def test_what_dies_while_nobody_watches_is_found_at_the_next_start(world: World) -> None:
    paths = VppPaths(world.run_dir.resolve())
    process = process_of(paths)
    os.kill(process.pid, signal.SIGSEGV)
    until(lambda: identify(process.pid) != process, "VPP is gone")
    assert evidence.last(paths) is None
    lifecycle.up(world.run_dir)
    kept = evidence.last(paths)
    assert kept is not None
    assert kept.why == "it was found dead"
    assert "received signal SIGSEGV" in (kept.path / "vpp.log").read_text()
    lifecycle.restart(world.run_dir)
    lifecycle.down(world.run_dir)
    assert evidence.last(paths) == kept, "a stop leaves none"
