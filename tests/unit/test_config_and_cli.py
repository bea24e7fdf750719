"""Bad input: one line, with file and line or the object, the way out, and the exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from ipsec_gw.cli.main import cli
from ipsec_gw.config.load import load
from ipsec_gw.config.model import EngineChoice, GatewayConfig
from ipsec_gw.config.problems import InvalidConfig
from ipsec_gw.errors import ConfigError
from ipsec_gw.model.sizes import inner_mtu
from ipsec_gw.observe import control

GOOD = """
[gateway]
engine = "kernel"
wan = ["eth0"]

[connections.site]
accelerate = false
[connections."with.dot"]
accelerate = true
"""


def test_a_good_file(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text(GOOD)
    config = load(path)
    assert config.gateway.engine is EngineChoice.KERNEL
    assert config.gateway.wan == ("eth0",)
    assert config.choices.kept == {"site"}


BAD = {
    "syntax": ("[gateway]\nengine = \n", 2),
    "unknown option": ("[gateway]\n\nengin = 'vpp'\n", 3),
    "unknown engine": ("# a comment\n[gateway]\nengine = 'fast'\n", 3),
    "wrong type": ("[connections.a]\n[connections.b]\naccelerate = 'perhaps'\n", 3),
    "unknown table": ("[gateway]\n[gatway]\n", 2),
    "negative time": ("[gateway]\nvici_timeout = -1\n", 2),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_names_file_and_line(case: str, tmp_path: Path) -> None:
    text, line = BAD[case]
    path = tmp_path / "c.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}:{line}: ")
    assert "\n" not in message
    assert caught.value.exit_code == 2


def test_an_unreadable_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path)
    (tmp_path / "b").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load(tmp_path / "b")


def command(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ipsec_gw.cli.main", *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, **env},
    )


def test_errors_are_one_line_on_stderr(tmp_path: Path) -> None:
    done = command("--config", str(tmp_path / "none.toml"), "run")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "none.toml:1: cannot be read" in done.stderr
    done = command("--run-dir", str(tmp_path), "show", "sas")
    assert (done.returncode, done.stdout) == (1, "")
    assert "no daemon listens" in done.stderr
    assert "ipsec-gw run" in done.stderr


def test_an_unknown_command_is_a_usage_error() -> None:
    assert command("accelerate").returncode == 2


@pytest.mark.parametrize(
    ("link", "version", "encapsulated", "expected"),
    [(1500, 4, False, 1446), (1500, 4, True, 1438), (1500, 6, False, 1426), (9000, 4, False, 8946)],
)
def test_the_inner_mtu_is_exact(link: int, version: int, encapsulated: bool, expected: int) -> None:
    """One byte more would not fit: checked against the sizes of RFC 4303's layout, packet by packet."""
    assert inner_mtu(link, version, encapsulated=encapsulated) == expected

    def outer(inner: int) -> int:
        payload = inner + 2 + -(inner + 2) % 4
        return {4: 20, 6: 40}[version] + (8 if encapsulated else 0) + 8 + 8 + payload + 16

    assert outer(expected) <= link < outer(expected + 1)


SA_ROW = {
    "connection": "branch-7",
    "child": "net",
    "direction": "out",
    "spi": "c5882868",
    "source": "198.51.100.1",
    "destination": "203.0.113.17",
    "algorithm": "CHACHA20_POLY1305",
    "engine": "kernel",
    "state": "kernel",
    "reason": "the SA has a mark or if_id (route-based IPsec)",
    "packets": 1234567,
    "bytes": 1234567890,
}


def test_show_sas_fits_80_columns_and_json_is_the_same_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "ask", lambda _run_dir, question: {question: [SA_ROW]})
    monkeypatch.setenv("COLUMNS", "80")
    table = CliRunner().invoke(cli, ["show", "sas"])
    assert table.exit_code == 0, table.output
    for shown in ("branch-7/net", "out", "c5882868", "203.0.113.17", "CHACHA20_POLY1305", "1,234,567", "1.2 GB"):
        assert shown in table.output
    assert f"c5882868: {SA_ROW['reason']}" in table.output
    assert max(map(len, table.output.splitlines())) <= 80
    as_json = CliRunner().invoke(cli, ["show", "sas", "--json"])
    assert json.loads(as_json.output) == {"sas": [SA_ROW]}


def test_vpp_runs_while_it_is_needed_only_where_vpp_is_the_engine(tmp_path: Path) -> None:
    file = tmp_path / "gw.toml"
    file.write_text('[gateway]\nvpp = "needed"\nvpp_idle_seconds = 5.0\n')
    gateway = load(file).gateway
    assert gateway.starts_vpp
    assert gateway.vpp_idle_seconds == 5.0
    assert not GatewayConfig().starts_vpp
    assert not gateway.model_copy(update={"engine": EngineChoice.SOFT}).starts_vpp
    file.write_text("[gateway]\nvpp_idle_seconds = 0.5\n")
    with pytest.raises(InvalidConfig, match="vpp_idle_seconds"):
        load(file)


@pytest.mark.parametrize("seconds", ["0", "5", "60.5"])
def test_a_daemon_may_be_away_for_ever_or_for_some_time(tmp_path: Path, seconds: str) -> None:
    file = tmp_path / "gw.toml"
    file.write_text(f"[gateway]\ndaemon_away_seconds = {seconds}\n")
    assert load(file).gateway.daemon_away_seconds == float(seconds)


def test_a_daemon_that_is_merely_late_is_not_away(tmp_path: Path) -> None:
    file = tmp_path / "gw.toml"
    file.write_text("[gateway]\ndaemon_away_seconds = 4.9\n")
    with pytest.raises(InvalidConfig, match=r"gw.toml:2: .*daemon_away_seconds = 4.9 is less .* or 0 for never"):
        load(file)


@pytest.mark.parametrize("option", ['vpp = "needed"', 'policy_mode = "spd"'])
@pytest.mark.parametrize("engine", EngineChoice)
def test_options_of_vpp_need_vpp(tmp_path: Path, option: str, engine: EngineChoice) -> None:
    file = tmp_path / "gw.toml"
    file.write_text(f'[gateway]\n{option}\nengine = "{engine}"\n')
    if engine in (EngineChoice.AUTO, EngineChoice.VPP):
        assert f'= "{getattr(load(file).gateway, option.partition(" ")[0])}"' in option
        return
    with pytest.raises(InvalidConfig, match=f'engine = "{engine}" and {option} exclude each other'):
        load(file)
