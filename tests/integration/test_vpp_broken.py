"""Pieces of a real VPP's surroundings are broken on purpose: the check, or the start, says which."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ipsec_gw.engines.vpp import VppEngine
from ipsec_gw.errors import EngineError, EngineUnavailable
from tests.contract.world import UP_ENGINE, WAN, World
from tests.integration.vpp_world import docked_world
from vpp_conf import lifecycle
from vpp_conf.api import VppApi
from vpp_conf.locate import BINARY_VARIABLE, VppInstallation, locate_vpp
from vpp_conf.paths import VppPaths
from vpp_conf.reality import check_startup, observe, read_expectation
from vpp_conf.startup.expectation import Check, compare, expectation_to_json
from vpp_conf.startup.files import Files
from vpp_conf.startup.machine import HugePool, Machine
from vpp_conf.startup.probe import ROOT, probe_machine
from vpp_conf.startup.values import MEGABYTE, InterfacePlan, Needs, PlanRefused, RxMode

pytestmark = [pytest.mark.root, pytest.mark.vpp, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]


@pytest.fixture
def run_dir(tmp_path: Path, vpp: None) -> Iterator[Path]:
    folder = tmp_path / "run"
    folder.mkdir()
    yield folder
    lifecycle.down(folder)


def failing(run_dir: Path) -> dict[str, Check]:
    """What of the running VPP is not as planned."""
    checks = asyncio.run(check_startup(VppPaths(run_dir), locate_vpp(), patience=5.0))
    return {check.name: check for check in checks if not check.holds}


def test_an_engine_that_does_not_load_is_named(run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is there, so it is planned; what is in it is no engine."""
    installed = locate_vpp()
    if installed.crypto_engine_dir is None or "ipsecmb" not in installed.crypto_engines():
        pytest.skip("this VPP has no ipsecmb in a folder of its own")
    prefix = tmp_path / "vpp"
    shutil.copytree(installed.prefix, prefix, symlinks=True, copy_function=_link_or_copy)
    binary = prefix / installed.binary.relative_to(installed.prefix)
    engine = next((prefix / installed.crypto_engine_dir.relative_to(installed.prefix)).glob("*ipsecmb*.so"))
    engine.unlink()
    engine.write_bytes(b"no engine")
    monkeypatch.setenv(BINARY_VARIABLE, str(binary))
    lifecycle.up(run_dir)
    found = failing(run_dir)
    assert found["crypto-engines ipsecmb"].actual == "missing"
    assert "VPP's log" in found["crypto-engines ipsecmb"].way_out
    assert {name for name in found if not name.startswith("crypto")} == set()


def _link_or_copy(source: str, target: str) -> None:
    """Programs find their libraries and engines by where they really are; what is large is not copied twice."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def test_hugepages_that_went_between_plan_and_start_are_named(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = probe_machine(locate_vpp())
    if any(pool.free for pool in real.pools):
        pytest.skip("this machine has free hugepages")

    def promised(installation: VppInstallation, root: Path = ROOT) -> Machine:
        pool = HugePool(0, 2 * MEGABYTE, 600, 600, "sys/kernel/mm/hugepages/hugepages-2048kB")
        return replace(probe_machine(installation, root), pools=(pool,), hugepage_bytes=2 * MEGABYTE)

    monkeypatch.setattr(lifecycle, "probe_machine", promised)
    with pytest.raises(
        EngineUnavailable, match=r"was to have \d+ MB of hugepages, and 0 MB are free: ipsec-gw vpp pre"
    ):
        lifecycle.up(run_dir)
    assert not lifecycle.status(run_dir).running


async def test_a_core_of_a_worker_that_goes_offline_is_named(run_dir: Path, tmp_path: Path) -> None:
    """The kernel lets the thread run anywhere then; here somebody else does that, and the machine's files say why."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two CPUs")
    await asyncio.to_thread(lifecycle.up, run_dir, needs=Needs(workers=1))
    paths = VppPaths(run_dir)
    planned = read_expectation(paths)
    online = tmp_path / "machine/sys/devices/system/cpu/online"
    online.parent.mkdir(parents=True)
    online.write_text(f"{planned.main_core}\n")
    api = VppApi(paths.api_socket, locate_vpp().api_dir)
    await api.connect()
    try:
        threads = (await api.call("show_threads")).thread_data
        worker = next(int(thread.pid) for thread in threads if str(thread.name).startswith("vpp_wk"))
        os.sched_setaffinity(worker, os.sched_getaffinity(0))
        actual = await observe(api, paths, Files(tmp_path / "machine"))
    finally:
        await api.close()
    found = {check.name: check for check in compare(planned, actual) if not check.holds}
    assert set(found) == {"cpu corelist-workers"}
    assert found["cpu corelist-workers"].actual == "-"
    assert f"CPU {planned.workers[0]} is offline" in found["cpu corelist-workers"].way_out


@pytest.mark.parametrize("name", ["api.sock", "cli.sock", "stats.sock"])
def test_a_socket_that_is_taken_is_named_with_its_owner(run_dir: Path, name: str) -> None:
    folder = VppPaths(run_dir).folder
    folder.mkdir()
    kind = socket.SOCK_SEQPACKET if name == "stats.sock" else socket.SOCK_STREAM
    with socket.socket(socket.AF_UNIX, kind) as taken:
        taken.bind(str(folder / name))
        taken.listen()
        with pytest.raises(EngineError, match=rf"{name} is taken: process {os.getpid()} listens on it"):
            lifecycle.up(run_dir)
    assert (folder / name).exists(), "it is left alone"
    assert lifecycle.up(run_dir).answering, "one that nobody listens on is a leftover"


def test_sockets_have_their_permissions_and_a_change_is_named(run_dir: Path) -> None:
    paths = VppPaths(run_dir)
    lifecycle.up(run_dir)
    modes = {path.name: path.stat().st_mode & 0o777 for path in paths.sockets}
    assert modes == {"api.sock": 0o600, "cli.sock": 0o600, "stats.sock": 0o600}
    assert paths.folder.stat().st_mode & 0o777 == 0o700
    assert failing(run_dir) == {}
    paths.api_socket.chmod(0o666)
    os.chown(paths.stats_socket, 0, 1)
    paths.cli_socket.unlink()
    found = failing(run_dir)
    assert found["socket api.sock"].actual == "0666 root"
    assert found["socket stats.sock"].actual.startswith("0600 ")
    assert found["socket cli.sock"].actual == "missing"


def test_a_group_reads_counters_and_nothing_else(run_dir: Path) -> None:
    groups = [line.split(":")[0] for line in Path("/etc/group").read_text().splitlines()]
    group = next(name for name in ("nogroup", "users", "daemon") if name in groups)
    paths = VppPaths(run_dir)
    lifecycle.up(run_dir, needs=Needs(stats_group=group))
    assert f"  gid {group}\n" in paths.startup.read_text()
    assert failing(run_dir) == {}
    assert {path.name: path.group() for path in paths.sockets} == {
        "api.sock": "root",
        "cli.sock": "root",
        "stats.sock": group,
    }
    assert (paths.stats_socket.stat().st_mode & 0o777, paths.folder.stat().st_mode & 0o777) == (0o660, 0o710)
    lifecycle.down(run_dir)
    with pytest.raises(PlanRefused, match="no group nobody-has-this"):
        lifecycle.up(run_dir, needs=Needs(stats_group="nobody-has-this"))


@pytest.fixture
def world(tmp_path: Path, vpp: None) -> Iterator[World]:
    with docked_world(tmp_path, "vppb") as built:
        yield built


async def test_queues_are_with_the_workers_that_were_planned_and_a_change_is_named(world: World) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two CPUs")
    await asyncio.to_thread(lifecycle.up, world.run_dir, needs=Needs(workers=1))
    paths = VppPaths(world.run_dir.resolve())
    # The plan sees the interfaces that /sys shows, which are not those of this namespace: here its file does.
    known = {WAN: InterfacePlan(WAN, 1, zero_copy=False, placement=(0,))}
    paths.plan.write_text(expectation_to_json(replace(read_expectation(paths), interfaces=known)))
    engine = VppEngine(world.context)
    await engine.open()
    checks = {check.name: check for check in await check_startup(paths, locate_vpp(), patience=0.0)}
    assert checks[f"af_xdp {WAN}"].actual == "1 queue, interrupt, copies, by workers 0"
    assert [name for name, check in checks.items() if not check.holds] == []
    api = VppApi(paths.api_socket, locate_vpp().api_dir)
    await api.connect()
    await api.cli(f"set interface rx-placement xdp-{WAN} queue 0 main")
    await api.close()
    changed = {check.name: check for check in await check_startup(paths, locate_vpp(), patience=0.0) if not check.holds}
    assert set(changed) == {f"af_xdp {WAN}"}
    assert changed[f"af_xdp {WAN}"].actual == "1 queue, interrupt, copies"
    await engine.close()


@pytest.mark.parametrize("mode", RxMode)
async def test_af_xdp_interfaces_are_as_planned_and_a_change_is_named(world: World, mode: RxMode) -> None:
    """The plan of a machine with isolated cores asks for polling: here only its file does."""
    await asyncio.to_thread(lifecycle.up, world.run_dir)
    paths = VppPaths(world.run_dir.resolve())
    paths.plan.write_text(expectation_to_json(replace(read_expectation(paths), rx_mode=mode)))
    engine = VppEngine(world.context)
    await engine.open()

    async def found() -> dict[str, Check]:
        checks = await check_startup(paths, locate_vpp(), patience=0.0)
        assert {f"af_xdp {WAN}", f"af_xdp {UP_ENGINE}"} <= {check.name for check in checks}
        return {check.name: check for check in checks if not check.holds}

    assert await found() == {}
    api = VppApi(paths.api_socket, locate_vpp().api_dir)
    await api.connect()
    other = next(one for one in RxMode if one is not mode)
    assert (await api.cli(f"set interface rx-mode xdp-{WAN} {other}")).strip() == ""
    await api.close()
    changed = await found()
    assert set(changed) == {f"af_xdp {WAN}"}
    assert changed[f"af_xdp {WAN}"].actual == f"1 queue, {other}, copies"
    await engine.close()
