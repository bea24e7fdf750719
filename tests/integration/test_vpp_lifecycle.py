"""Starting and stopping a real VPP, and things that only look like one."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipsec_gw.errors import EngineUnavailable, EnvironmentMissing
from vpp_conf import lifecycle
from vpp_conf.api import VppApi
from vpp_conf.locate import BINARY_VARIABLE, locate_vpp
from vpp_conf.paths import VppPaths
from vpp_conf.process import identify
from vpp_conf.reality import check_startup, observe
from vpp_conf.startup.drop_in import DropIn
from vpp_conf.startup.expectation import Observation, expectation_from_json
from vpp_conf.startup.values import Needs

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]


@pytest.fixture
def vpp() -> None:
    try:
        locate_vpp()
    except EnvironmentMissing as missing:
        pytest.skip(str(missing))


@pytest.fixture
def run_dir(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    lifecycle.down(tmp_path)


def left_behind(run_dir: Path) -> list[Path]:
    paths = VppPaths(run_dir)
    return [path for path in (*paths.sockets, paths.pid_file, paths.journal) if path.exists()] + paths.segments()


def fake(tmp_path: Path, body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A "VPP" with the right version and plugins that does as it is told otherwise."""
    prefix = tmp_path / "fake"
    for name in ("vpp_plugins/af_xdp_plugin.so", "vpp_crypto_engines/native.so"):
        path = prefix / "lib/any" / name
        path.parent.mkdir(parents=True)
        path.touch()
    binary = prefix / "bin/vpp"
    binary.parent.mkdir()
    binary.write_text(f'#!/bin/sh\n[ "$1" = --version ] && {{ echo vpp v26.06; exit; }}\n{body}\n')
    binary.chmod(0o755)
    monkeypatch.setenv(BINARY_VARIABLE, str(binary))


@pytest.mark.vpp
def test_up_status_down_and_again(vpp: None, run_dir: Path) -> None:
    first = lifecycle.up(run_dir)
    assert first.running
    assert first.answering
    assert first.pid is not None
    again = lifecycle.up(run_dir)
    assert (again.pid, again.seconds) == (first.pid, 0.0)
    assert lifecycle.status(run_dir).answering
    assert VppPaths(run_dir).folder.stat().st_mode & 0o077 == 0
    limits = Path(f"/proc/{first.pid}/limits").read_text()
    assert next(line for line in limits.splitlines() if line.startswith("Max core")).split()[4] == "0"
    for _ in range(2):
        assert not lifecycle.down(run_dir).running
        assert left_behind(run_dir) == []
    assert identify(first.pid) is None
    assert not lifecycle.status(run_dir).running


def differing(run_dir: Path) -> dict[str, str]:
    """What of the running VPP is not as it was planned."""
    checks = asyncio.run(check_startup(VppPaths(run_dir), locate_vpp()))
    assert len(checks) > 5
    return {check.name: check.actual for check in checks if not check.holds}


@pytest.mark.vpp
def test_the_running_vpp_is_as_planned(vpp: None, run_dir: Path) -> None:
    state = lifecycle.up(run_dir)
    assert differing(run_dir) == {}
    assert state.pid is not None
    os.sched_setaffinity(state.pid, os.sched_getaffinity(0))
    if len(os.sched_getaffinity(0)) > 1:
        assert differing(run_dir) == {"cpu main-core": "-"}


@pytest.mark.vpp
def test_workers_get_the_cpus_that_were_planned(vpp: None, run_dir: Path) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two CPUs")
    lifecycle.up(run_dir, needs=Needs(workers=1))
    assert differing(run_dir) == {}
    assert len(expectation_from_json(VppPaths(run_dir).plan.read_text()).workers) == 1


@pytest.mark.vpp
def test_the_operators_own_settings_hold(vpp: None, run_dir: Path) -> None:
    own = DropIn("own.conf", "buffers {\n  buffers-per-numa 20000\n}\nlogging { default-log-level info }\n")
    state = lifecycle.up(run_dir, drop_in=own)
    assert any("own.conf:2" in note for note in state.notes)
    assert differing(run_dir) == {}
    usual = expectation_from_json(VppPaths(run_dir).plan.read_text()).buffers

    async def running() -> Observation:
        api = VppApi(VppPaths(run_dir).api_socket, locate_vpp().api_dir)
        await api.connect()
        try:
            return await observe(api)
        finally:
            await api.close()

    actual = asyncio.run(running()).buffers
    assert actual is not None
    assert actual > usual


@pytest.mark.vpp
def test_two_instances_do_not_meet(vpp: None, tmp_path: Path) -> None:
    folders = (tmp_path / "a", tmp_path / "b")
    try:
        pids = {lifecycle.up(folder).pid for folder in folders}
        assert len(pids) == 2
        lifecycle.down(folders[0])
        assert lifecycle.status(folders[1]).answering
    finally:
        for folder in folders:
            lifecycle.down(folder)


@pytest.mark.vpp
def test_what_a_killed_vpp_leaves_is_cleaned_at_the_next_start(vpp: None, run_dir: Path) -> None:
    first = lifecycle.up(run_dir)
    assert first.pid is not None
    present = identify(first.pid)
    assert present is not None
    os.kill(first.pid, signal.SIGKILL)
    assert present.stop(5.0, 5.0)
    assert not lifecycle.status(run_dir).running
    assert left_behind(run_dir)
    second = lifecycle.up(run_dir)
    assert second.answering
    assert second.pid != first.pid


def test_a_pid_file_of_a_recycled_pid_harms_nobody(run_dir: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as bystander:
        try:
            present = identify(bystander.pid)
            assert present is not None
            paths = VppPaths(run_dir)
            paths.folder.mkdir()
            paths.pid_file.write_text(f"{present.pid} {present.start - 1}\n")
            assert not lifecycle.status(run_dir).running
            lifecycle.down(run_dir)
            assert present.is_alive()
            assert not paths.pid_file.exists()
        finally:
            bystander.kill()


def test_a_vpp_that_ends_while_it_starts_is_reported_with_its_last_words(
    tmp_path: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(tmp_path, "echo 'no buffers for you' >&2; exit 1", monkeypatch)
    with pytest.raises(EngineUnavailable, match="no buffers for you"):
        lifecycle.up(run_dir, deadline=10.0)
    assert left_behind(run_dir) == []


def test_a_vpp_that_does_not_answer_is_stopped_at_the_deadline(
    tmp_path: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = tmp_path / "pid"
    fake(tmp_path, f"echo $$ >{pid}; exec sleep 60", monkeypatch)
    with pytest.raises(EngineUnavailable, match="does not answer"):
        lifecycle.up(run_dir, deadline=1.0)
    assert identify(int(pid.read_text())) is None
    assert left_behind(run_dir) == []


def test_without_root_it_is_said(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(EnvironmentMissing, match="root"):
        lifecycle.up(run_dir)


def test_down_without_anything_is_fine(tmp_path: Path) -> None:
    assert not lifecycle.down(tmp_path / "never").running
    assert not (tmp_path / "never").exists()
