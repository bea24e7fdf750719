"""`ipsec-gw vpp plan` and `prepare` on machines below a folder."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from ipsec_gw.cli.main import cli
from ipsec_gw.errors import ConfigError, EngineError, EngineUnavailable, EnvironmentMissing, IpsecGwError
from tests.support.machines import unpack_machine
from vpp_conf import lifecycle
from vpp_conf.lifecycle import VppStatus
from vpp_conf.paths import VppPaths
from vpp_conf.startup.drop_in import DropIn
from vpp_conf.startup.prepare import Applied, apply_settings, check_applied
from vpp_conf.startup.values import Finding, Needs, PlanRefused, Setting, Severity
from vpp_conf.tuning.choice import choose
from vpp_conf.tuning.file import write_tuning
from vpp_conf.tuning.values import Measurement, Subject, Tuning

HUGEPAGES = "sys/devices/system/node/node0/hugepages/hugepages-2048kB/nr_hugepages"


def vpp(root: Path, command: str, *options: str) -> Result:
    return CliRunner().invoke(cli, ["vpp", command, "--root", str(root), "--release", "26.06", *options])


def plan_json(root: Path, *options: str) -> dict[str, Any]:
    result = vpp(root, "plan", "--json", *options)
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


def test_the_table_and_json_say_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    root = unpack_machine("xeon-one-socket-qat", tmp_path)
    answer = plan_json(root)
    result = vpp(root, "plan")
    assert result.exit_code == 0
    for value in answer["values"]:
        line = next(line for line in result.stdout.splitlines() if line.startswith(f"{value['name']} "))
        assert value["value"] in line
        assert value["reason"] in line
    assert answer["machine"]["isolated"] == "2-9,34-41"
    assert answer["machine"]["interfaces"][0]["zeroCopy"]
    assert answer["machine"]["cryptoDevices"][1]["id"] == "8086:4941"


def test_findings_and_settings_are_printed_with_the_way_out(tmp_path: Path) -> None:
    root = unpack_machine("cloud-jumbo", tmp_path)
    result = vpp(root, "plan")
    answer = plan_json(root)
    assert {one["subject"] for one in answer["findings"]} == {"mtu", "hugepages", "defect"}
    for one in answer["findings"]:
        assert f"{one['severity']}: {one['text']}" in result.stdout
        assert f"way out: {one['wayOut']}" in result.stdout
    for one in answer["settings"]:
        assert f"{one['command']}\n" in result.stdout


def test_needs_are_options(tmp_path: Path) -> None:
    root = unpack_machine("xeon-one-socket-qat", tmp_path)
    values = {
        one["name"]: one["value"]
        for one in plan_json(root, "--workers", "3", "--sas", "200000", "--no-qat", "--interface", "eno2")["values"]
    }
    assert values["cpu corelist-workers"] == "2-4"
    assert values["dpdk dev"] == "-"
    assert "af_xdp eno1" not in values


def test_a_plan_that_is_refused_is_an_exit_code_and_its_findings(tmp_path: Path) -> None:
    root = unpack_machine("vm-two-cpus", tmp_path)
    result = vpp(root, "plan", "--workers", "9")
    assert result.exit_code == PlanRefused.exit_code == 1
    assert "9 workers are asked for" in result.stderr
    assert "way out: " in result.stderr
    answer = plan_json(root, "--workers", "9")
    assert answer["findings"][0]["severity"] == "error"
    assert "values" not in answer


def test_prepare_makes_the_settings_hold(tmp_path: Path) -> None:
    root = unpack_machine("cloud-jumbo", tmp_path)
    wanted = {one["path"]: one["wanted"] for one in plan_json(root)["settings"]}
    assert len(wanted) == 3
    result = vpp(root, "prepare")
    assert result.exit_code == 0, result.output
    assert {path: int((root / path[1:]).read_text()) for path in wanted} == wanted
    assert f"/{HUGEPAGES}: 0 -> {wanted[f'/{HUGEPAGES}']}" in result.stdout
    # The kernel would have counted them up:
    (root / HUGEPAGES).with_name("free_hugepages").write_text((root / HUGEPAGES).read_text())
    assert vpp(root, "prepare").stdout == "everything is as the plan wants it\n"


def test_a_dry_run_prints_the_commands_and_changes_nothing(tmp_path: Path) -> None:
    root = unpack_machine("cloud-jumbo", tmp_path)
    before = (root / HUGEPAGES).read_text()
    result = vpp(root, "prepare", "--dry-run")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [one["command"] for one in plan_json(root)["settings"]]
    assert (root / HUGEPAGES).read_text() == before


def test_a_setting_that_cannot_be_written_does_not_stop_the_others(tmp_path: Path) -> None:
    root = unpack_machine("cloud-jumbo", tmp_path)
    (root / HUGEPAGES).unlink()
    (root / HUGEPAGES).mkdir()
    result = vpp(root, "prepare")
    assert isinstance(result.exception, EnvironmentMissing)
    assert f"/{HUGEPAGES} cannot be written" in str(result.exception)
    assert (root / "proc/sys/net/core/bpf_jit_enable").read_text() == "1\n"


@pytest.mark.parametrize("command", ["up", "restart"])
def test_starts_take_needs_and_the_operators_own_settings(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def started(run_dir: Path, **arguments: Any) -> VppStatus:
        seen.update(arguments)
        return VppStatus(True, True, 7, "vpp v26.06", run_dir, 1.0, ("a note",))

    monkeypatch.setattr(lifecycle, command, started)
    own = tmp_path / "own.conf"
    own.write_text("logging { x 1 }\n")
    measurements = (Measurement("aes-128-gcm", "native", 64, (200.0,)),)
    subject = Subject("a CPU", "vpp v26.06", ("native",))
    tuning = Tuning(subject, datetime(2026, 1, 1, tzinfo=UTC), 2e9, 1000, measurements, choose(measurements))
    write_tuning(tuning, tmp_path / "choice.json")
    options = ["--run-dir", str(tmp_path), "vpp", command, "--workers", "2", "--sas", "9", "--drop-in", str(own)]
    result = CliRunner().invoke(cli, [*options, "--tuning", str(tmp_path / "choice.json")])
    assert result.exit_code == 0, result.output
    assert seen == {
        "needs": Needs(workers=2, sas=9),
        "drop_in": DropIn(str(own), "logging { x 1 }\n"),
        "tuning": tuning,
    }
    assert "process 7 and answers" in result.stdout
    assert "note: a note" in result.stderr
    assert "not compared with its plan" in result.stderr


def test_a_restart_takes_the_options_of_the_last_start_but_those_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Needs, DropIn | None]] = []

    def started(run_dir: Path, *, needs: Needs, drop_in: DropIn | None, tuning: Tuning | None) -> VppStatus:
        seen.append((needs, drop_in))
        return VppStatus(True, True, 7, "vpp v26.06", run_dir, 1.0)

    def call(*words: str) -> Result:
        return CliRunner().invoke(cli, ["--run-dir", str(tmp_path / "run"), "vpp", *words])

    monkeypatch.setattr(lifecycle, "up", started)
    monkeypatch.setattr(lifecycle, "restart", started)
    own = tmp_path / "own.conf"
    own.write_text("x")
    monkeypatch.chdir(tmp_path)
    options = ("--sas", "9", "--interface", "a", "--interface", "b", "--no-qat", "--drop-in", "own.conf")
    assert call("restart").exit_code == 0
    assert seen.pop() == (Needs(), None), "nothing was started before"
    assert call("up", *options).exit_code == 0
    first = (Needs(sas=9, interfaces=("a", "b"), qat=False), DropIn(str(own), "x"))
    assert seen.pop()[0] == first[0]
    monkeypatch.chdir("/")
    assert call("restart").exit_code == 0
    assert seen.pop() == first
    assert call("restart", "--sas", "4096", "--workers", "1").exit_code == 0
    changed = (replace(first[0], sas=4096, workers=1), first[1])
    assert seen.pop() == changed, "a default that is given counts as well"
    assert call("restart").exit_code == 0
    assert seen.pop() == changed
    VppPaths(tmp_path / "run").options.write_text("[]")
    result = call("restart")
    assert isinstance(result.exception, EngineError)
    assert "options.json does not tell" in str(result.exception)
    assert not seen


@pytest.mark.parametrize(
    ("error", "untouched"),
    [
        (PlanRefused((Finding(Severity.ERROR, "workers", "too many", "fewer"),)), True),
        (ConfigError("own.conf:1: no such section"), True),
        (EngineUnavailable("VPP ended while it started"), False),
    ],
)
def test_a_refused_restart_says_that_nothing_was_touched(
    error: IpsecGwError, untouched: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> VppStatus:
        raise error

    monkeypatch.setattr(lifecycle, "restart", fails)
    result = CliRunner().invoke(cli, ["--run-dir", str(tmp_path), "vpp", "restart"])
    assert result.exception is error
    assert ("VPP was not restarted: it is as it was" in result.stderr) is untouched


def test_run_and_wait_hand_their_arguments_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Any, ...]] = []

    def waited(*arguments: Any) -> VppStatus:
        seen.append(arguments)
        return VppStatus(True, True, 7, "vpp v26.06", tmp_path)

    monkeypatch.setattr(lifecycle, "run", lambda *arguments: seen.append(arguments))
    monkeypatch.setattr(lifecycle, "wait", waited)
    monkeypatch.setattr("ipsec_gw.cli.vpp.tuning_of", lambda path: f"read from {path}")
    own = tmp_path / "own.conf"
    own.write_text("x")
    for words in (["run", "--sas", "9", "--drop-in", str(own), "--tuning", "figures"], ["wait", "7"]):
        result = CliRunner().invoke(cli, ["--run-dir", str(tmp_path), "vpp", *words])
        assert result.exit_code == 0, result.output
    assert seen == [(tmp_path, Needs(sas=9), DropIn(str(own), "x"), "read from figures"), (tmp_path, 7)]


@pytest.mark.parametrize("content", [None, "{}", "no json"])
def test_the_status_of_a_vpp_without_its_plan_is_still_told(
    content: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "status", lambda run_dir: VppStatus(True, True, 7, "vpp v26.06", run_dir))
    monkeypatch.setattr("ipsec_gw.cli.vpp.locate_vpp", lambda: None)
    if content is not None:
        VppPaths(tmp_path).folder.mkdir()
        VppPaths(tmp_path).plan.write_text(content)
    result = CliRunner().invoke(cli, ["--run-dir", str(tmp_path), "vpp", "status", "--json"])
    assert result.exit_code == 0, result.output
    state = {"running": True, "answering": True, "version": "vpp v26.06", "checks": [], "evidence": None}
    assert json.loads(result.stdout) == state
    assert "plan.json cannot be read" in result.stderr


class Stingy(type(Path())):  # type: ignore[misc]
    """A kernel that gives 100 hugepages, whatever is asked for."""

    def write_text(self, data: str, *args: Any, **kwargs: Any) -> int:
        written: int = super().write_text("100\n", *args, **kwargs)
        return written


def test_fewer_hugepages_than_asked_for_are_said(tmp_path: Path) -> None:
    setting = Setting("nr_hugepages", 0, 266, "echo 266 > /nr_hugepages", "some")
    applied = apply_settings((setting,), Stingy(tmp_path))
    assert applied[0].after == 100
    with pytest.raises(EnvironmentMissing, match=r"266 asked for, 100 given - .*compact_memory"):
        check_applied(applied)


def test_what_was_given_is_no_problem() -> None:
    check_applied((Applied(Setting("x", 0, 1, "", ""), 1),))
