"""`ipsec-gw vpp tune` with a real VPP, and with one that does not start."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from ipsec_gw.cli.main import cli
from ipsec_gw.errors import EngineError, EngineUnavailable, EnvironmentMissing
from tests.integration.conftest import until
from tests.integration.test_vpp_lifecycle import fake, left_behind
from vpp_conf import lifecycle
from vpp_conf.api import VppApi
from vpp_conf.crypto import parse_handlers
from vpp_conf.lifecycle import api_answers
from vpp_conf.locate import locate_vpp
from vpp_conf.paths import VppPaths
from vpp_conf.process import identify
from vpp_conf.reality import check_startup
from vpp_conf.startup.plan import plan_startup
from vpp_conf.startup.probe import probe_machine
from vpp_conf.tuning.choice import choose
from vpp_conf.tuning.file import read_tuning
from vpp_conf.tuning.measure import SCHEDULER
from vpp_conf.tuning.values import Measurement, Tuning, subject_of

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]


def tune(tmp_path: Path, *options: str) -> Result:
    words = ["--run-dir", str(tmp_path / "run"), "vpp", "tune", "--rounds", "1", "--packets", "2560"]
    words += ["--algorithm", "aes-128-gcm", "--algorithm", "chacha20-poly1305"]
    return CliRunner().invoke(cli, [*words, "--output", str(tmp_path / "choice.json"), *options])


def watch(monkeypatch: pytest.MonkeyPatch) -> list[frozenset[tuple[str, str]]]:
    """Who has which algorithm whenever packets start, asked by other means than tune's own."""
    seen: list[frozenset[tuple[str, str]]] = []
    ask = VppApi.cli

    async def watched(self: VppApi, command: str) -> str:
        if command.startswith("packet-generator enable"):
            handlers = parse_handlers(await ask(self, "show crypto handlers"))
            seen.append(frozenset((algorithm.vpp, engine) for algorithm, engine in handlers.items()))
        return await ask(self, command)

    monkeypatch.setattr(VppApi, "cli", watched)
    return seen


VPP_NAMES = {"aes-128-gcm": "AES_GCM_128", "chacha20-poly1305": "CHACHA20_POLY1305"}


@pytest.mark.vpp
def test_a_short_run_measures_every_engine_and_the_plan_uses_it(
    vpp: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watch(monkeypatch)
    left_over = lifecycle.up(tmp_path / "run" / "tune").pid  # as a run that was killed leaves it
    assert left_over is not None
    result = tune(tmp_path, "--json")
    assert result.exit_code == 0, result.stderr
    answer: dict[str, Any] = json.loads(result.stdout)
    rows = answer["measurements"]
    installed = locate_vpp().crypto_engines()
    pairs = {(one["algorithm"], one["engine"]) for one in rows}
    absent = {(one["algorithm"], one["engine"]) for one in answer["absent"]}
    assert pairs | absent == {(algorithm, engine) for algorithm in VPP_NAMES for engine in installed}
    assert not pairs & absent
    assert {algorithm for algorithm, _ in pairs} == set(VPP_NAMES)
    assert {one["bytes"] for one in rows} == {64, 1400}
    works = {one["work"] for one in rows}
    assert works == ({"encrypt", "decrypt", "async"} if SCHEDULER in locate_vpp().plugins() else {"encrypt", "decrypt"})
    assert len(rows) == 2 * len(works) * len(pairs)
    runs = len(works) - 1  # one run is both directions
    assert len(seen) == 2 * runs * len(pairs)
    for number, handlers in enumerate(seen):
        one = rows[number // runs * len(works)]
        assert (VPP_NAMES[one["algorithm"]], one["engine"]) in handlers
    for one in rows:
        assert len(one["clocks"]) == 1
        assert min(one["clocks"][0], one["median"], one["ratio"], one["gigabits"]) > 0

    assert identify(left_over) is None
    assert left_behind(tmp_path / "run" / "tune") == []
    assert not (tmp_path / "run" / "tune").exists()

    kept = read_tuning(tmp_path / "choice.json")
    assert kept is not None
    plan = plan_startup(probe_machine(locate_vpp()), tuning=kept)
    chosen = {(one["algorithm"], one["engine"]) for one in answer["choices"]}
    assert chosen <= {(algorithm, one.engine) for one in plan.handlers for algorithm in one.algorithms}
    assert not [one for one in plan.findings if one.subject == "crypto handlers"]


@pytest.mark.vpp
def test_a_switch_that_does_nothing_ends_the_run(vpp: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its word for the kind of operation the command is one that VPP takes and forgets."""
    ask = VppApi.cli

    async def without_the_word(self: VppApi, command: str) -> str:
        return await ask(self, command.replace("handler simple ", "handler "))

    monkeypatch.setattr(VppApi, "cli", without_the_word)
    result = tune(tmp_path)
    assert isinstance(result.exception, EngineError)
    assert "nothing was measured" in str(result.exception)
    assert not (tmp_path / "choice.json").exists()
    assert left_behind(tmp_path / "run" / "tune") == []


@pytest.mark.vpp
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_interrupted_leaves_no_vpp(vpp: None, tmp_path: Path, number: signal.Signals) -> None:
    paths = VppPaths((tmp_path / "run" / "tune").resolve())
    words = ["--run-dir", str(tmp_path / "run"), "vpp", "tune", "--rounds", "100000"]
    words += ["--output", str(tmp_path / "choice.json")]
    # In a job in the background SIGINT is ignored, and children inherit that.
    command = ["env", "--default-signal=INT", sys.executable, "-m", "ipsec_gw.cli.main", *words]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as child:
        try:
            until(lambda: paths.api_socket.exists() and api_answers(paths.api_socket), "VPP answers")
            pid = int(paths.pid_file.read_text().split()[0])
            child.send_signal(number)
            assert child.wait(60) == 130
        finally:
            child.kill()
    assert identify(pid) is None
    assert left_behind(paths.run_dir) == []
    assert not (tmp_path / "choice.json").exists()


@pytest.mark.vpp
def test_vpp_is_started_with_the_choice(vpp: None, tmp_path: Path) -> None:
    """Openssl is nobody's first choice, so it can come from nowhere else."""
    algorithms = ("aes-128-gcm", "aes-256-gcm", "chacha20-poly1305")
    measurements = tuple(Measurement(algorithm, "openssl", 64, (1.0,)) for algorithm in algorithms)
    chosen = Tuning(
        subject_of(probe_machine(locate_vpp())), datetime.now(UTC), 1e9, 1, measurements, choose(measurements)
    )
    try:
        lifecycle.up(tmp_path, tuning=chosen)
        checks = asyncio.run(check_startup(VppPaths(tmp_path.resolve()), locate_vpp(), 5.0))
    finally:
        lifecycle.down(tmp_path)
    handlers = {check.name.removeprefix("crypto handler "): check for check in checks if "handler" in check.name}
    assert {name: handlers[name].actual for name in algorithms} == dict.fromkeys(algorithms, "openssl")
    assert all(check.holds for check in handlers.values())


@pytest.mark.vpp
def test_two_runs_do_not_meet(vpp: None, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / "tune.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = tune(tmp_path)
    assert isinstance(result.exception, EngineError)
    assert "another run" in str(result.exception)


def test_a_vpp_that_does_not_start_is_named_with_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(tmp_path, "echo no such luck; exit 3", monkeypatch)
    result = tune(tmp_path)
    assert isinstance(result.exception, EngineUnavailable)
    assert "no such luck" in str(result.exception)
    assert str(VppPaths(tmp_path / "run" / "tune").log) in str(result.exception)
    assert VppPaths(tmp_path / "run" / "tune").log.exists()
    assert not (tmp_path / "choice.json").exists()


def test_a_vpp_without_engines_or_of_an_older_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(tmp_path, "exit 3", monkeypatch)
    (tmp_path / "fake/lib/any/vpp_crypto_engines/native.so").unlink()
    result = tune(tmp_path)
    assert isinstance(result.exception, EnvironmentMissing)
    assert "install vpp-crypto-engines" in str(result.exception)
    binary = tmp_path / "fake/bin/vpp"
    binary.write_text(binary.read_text().replace("v26.06", "v25.10"))
    result = tune(tmp_path)
    assert isinstance(result.exception, EnvironmentMissing)
    assert "vpp v25.10 is installed" in str(result.exception)
    assert not (tmp_path / "run" / "tune").exists()
