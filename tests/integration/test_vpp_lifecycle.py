"""Starting and stopping a real VPP, and things that only look like one."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ipsec_gw.errors import ConfigError, EngineError, EngineUnavailable, EnvironmentMissing
from vpp_conf import lifecycle
from vpp_conf.api import VppApi
from vpp_conf.locate import BINARY_VARIABLE, locate_vpp
from vpp_conf.paths import VppPaths
from vpp_conf.process import ProcessId, identify
from vpp_conf.reality import check_startup, observe
from vpp_conf.startup.drop_in import DropIn
from vpp_conf.startup.expectation import Observation, expectation_from_json
from vpp_conf.startup.files import Files
from vpp_conf.startup.machine import Machine
from vpp_conf.startup.relief import without_process
from vpp_conf.startup.values import Needs, PlanRefused

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]


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
    assert next(line for line in limits.splitlines() if line.startswith("Max core")).split()[4] == "1"
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
            return await observe(api, VppPaths(run_dir))
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


def present(pid: int | None) -> ProcessId:
    assert pid is not None
    process = identify(pid)
    assert process is not None
    return process


@pytest.mark.vpp
def test_restart_starts_another_vpp_from_a_new_startup_conf(
    vpp: None, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaving: list[int] = []

    def without(machine: Machine, files: Files, pid: int) -> Machine:
        leaving.append(pid)
        relieved = without_process(machine, files, pid)
        assert relieved.memory_available > machine.memory_available
        return relieved

    monkeypatch.setattr(lifecycle, "without_process", without)
    paths = VppPaths(run_dir)
    first = present(lifecycle.up(run_dir).pid)
    paths.journal.write_text("what the old one held\n")
    before = paths.startup.read_text()
    again = lifecycle.restart(run_dir, drop_in=DropIn("own.conf", "buffers { buffers-per-numa 20000 }\n"))
    assert again.answering
    assert leaving == [first.pid], "planned while it ran, for the machine without it"
    assert not first.is_alive()
    assert present(again.pid) != first
    assert any("own.conf:1" in note for note in again.notes)
    assert "buffers-per-numa 20000" in paths.startup.read_text()
    assert "buffers-per-numa 20000" not in before
    assert not paths.journal.exists()
    assert lifecycle.status(run_dir).pid == again.pid
    assert differing(run_dir) == {}


@pytest.mark.vpp
def test_restart_without_a_running_vpp_starts_one(vpp: None, run_dir: Path) -> None:
    assert lifecycle.restart(run_dir).answering


@pytest.mark.vpp
def test_a_restart_that_is_refused_leaves_the_running_vpp_alone(
    vpp: None, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = VppPaths(run_dir)
    first = present(lifecycle.up(run_dir).pid)
    files = {path: path.read_bytes() for path in (paths.startup, paths.commands, paths.plan, paths.pid_file)}
    with pytest.raises(PlanRefused, match="9999 workers are asked for"):
        lifecycle.restart(run_dir, needs=Needs(workers=9999))
    with pytest.raises(ConfigError, match=r"own\.conf:1"):
        lifecycle.restart(run_dir, drop_in=DropIn("own.conf", "nonsense { x }\n"))
    with monkeypatch.context() as patch:
        patch.setenv(BINARY_VARIABLE, "/nowhere/vpp")
        with pytest.raises(EnvironmentMissing, match="not an executable"):
            lifecycle.restart(run_dir)
    with monkeypatch.context() as patch:
        patch.setattr(lifecycle, "service_of", lambda pid: lifecycle.UNIT if pid == first.pid else None)
        with pytest.raises(EngineError, match=f"systemctl restart {lifecycle.UNIT}"):
            lifecycle.restart(run_dir)
    assert first.is_alive()
    assert lifecycle.status(run_dir).answering
    assert {path: path.read_bytes() for path in files} == files


@contextmanager
def foreground(run_dir: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """`vpp run`, as systemd would start it."""
    command = [sys.executable, "-m", "ipsec_gw.cli.main", "--run-dir", str(run_dir), "vpp", "run", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as child:
        try:
            yield child
        finally:
            child.kill()


@pytest.mark.vpp
def test_run_becomes_vpp_in_the_foreground(vpp: None, run_dir: Path) -> None:
    with foreground(run_dir) as child:
        state = lifecycle.wait(run_dir, child.pid)
        assert (state.pid, state.answering) == (child.pid, True)
        proc = Path(f"/proc/{child.pid}")
        assert (proc / "exe").resolve() == locate_vpp().binary
        core = next(line for line in (proc / "limits").read_text().splitlines() if line.startswith("Max core"))
        assert core.split()[4:6] == ["1", "1"]
        assert {(proc / "fd" / number).resolve() for number in "12"} == {VppPaths(run_dir).log}
        assert differing(run_dir) == {}
        assert lifecycle.up(run_dir).pid == child.pid
        with foreground(run_dir) as second:
            said, _ = second.communicate(timeout=60)
            assert second.returncode == 1
            assert f"VPP runs already as process {child.pid}" in said
        assert lifecycle.status(run_dir).answering
        lifecycle.down(run_dir)
        assert child.wait(60) in (0, -signal.SIGTERM), "systemd takes both for an end that was asked for"
    assert left_behind(run_dir) == []


def test_what_run_hands_on(tmp_path: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real VPP sets signals itself: this one tells with what it was started."""
    fake(tmp_path, 'echo "pid $$"; pwd; grep SigIgn /proc/$$/status; wc -c; cat /proc/$$/limits', monkeypatch)
    with foreground(run_dir) as child:
        assert child.wait(60) == 0
    lines = VppPaths(run_dir).log.read_text().splitlines()
    assert lines[:2] == [f"pid {child.pid}", "/"]
    assert int(lines[2].split()[1], 16) & (1 << (signal.SIGPIPE - 1)) == 0
    assert lines[3] == "0", "nothing on stdin"
    assert next(line for line in lines if line.startswith("Max core")).split()[4:6] == ["1", "1"]
    assert VppPaths(run_dir).pid_file.read_text().split()[0] == str(child.pid)
    assert not lifecycle.status(run_dir).running


@pytest.mark.vpp
def test_run_with_wrong_input_or_without_a_plan_starts_nothing(vpp: None, run_dir: Path) -> None:
    own = run_dir / "own.conf"
    own.write_text("nonsense { x }\n")
    for options, code, says in ((("--drop-in", str(own)), 2, "own.conf:1"), (("--workers", "9999"), 1, "9999 workers")):
        with foreground(run_dir, *options) as child:
            said, _ = child.communicate(timeout=60)
            assert (child.returncode, says in said) == (code, True), said
        assert left_behind(run_dir) == []
        assert not VppPaths(run_dir).startup.exists()


@pytest.mark.vpp
def test_waiting_ends_with_the_process_that_is_waited_for(vpp: None, run_dir: Path) -> None:
    VppPaths(run_dir).folder.mkdir()
    VppPaths(run_dir).log.write_text("no buffers for you\n")
    with subprocess.Popen(["sleep", "60"]) as process:
        try:
            with pytest.raises(EngineUnavailable, match="does not answer"):
                lifecycle.wait(run_dir, process.pid, deadline=0.1)
        finally:
            process.kill()
    began = time.monotonic()
    with pytest.raises(EngineUnavailable, match=r"has ended .*no buffers for you"):
        lifecycle.wait(run_dir, process.pid, deadline=600.0)
    assert time.monotonic() - began < 600.0


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
