"""How a daemon starts and stops VPP: by itself, or by systemd where it is a service."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from ipsec_gw.errors import EngineError, EngineUnavailable
from vpp_conf import lifecycle, service
from vpp_conf.paths import VppPaths
from vpp_conf.process import ProcessId
from vpp_conf.service import VppService
from vpp_conf.start_options import StartOptions, remember
from vpp_conf.startup.values import Needs


class Machine:
    """What was called. ``daemon`` and ``vpp`` are the services that these two belong to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        self.calls: list[Any] = []
        self.daemon: str | None = None
        self.vpp: str | None = None
        self.code, self.stderr = 0, ""
        self.units = tmp_path / "units"
        monkeypatch.setattr(service, "service_of", lambda pid: self.vpp if pid == 7 else self.daemon)
        monkeypatch.setattr(service, "recorded", lambda _path: ProcessId(7, 1))
        monkeypatch.setattr(service, "start", lambda _run_dir, options: self.calls.append(options))
        monkeypatch.setattr(lifecycle, "down", lambda _run_dir: self.calls.append("down"))
        monkeypatch.setattr(service, "UNITS_FOLDER", self.units)
        monkeypatch.setattr(subprocess, "run", self._run)

    def _run(self, command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        self.calls.append(" ".join(command))
        return subprocess.CompletedProcess(command, self.code, "", self.stderr)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    return Machine(monkeypatch, tmp_path)


@pytest.mark.parametrize("daemon", [None, "user@0.service"])
def test_by_hand_with_the_options_of_the_last_start(machine: Machine, tmp_path: Path, daemon: str | None) -> None:
    machine.daemon = daemon
    options = StartOptions(Needs(sas=9), tmp_path / "own.conf")
    remember(tmp_path, options)
    VppService(tmp_path).start()
    assert machine.calls == [options]
    VppService(tmp_path).stop()
    assert machine.calls == [options, "down"]


def test_a_service_has_systemd_start_vpps_own_unit(machine: Machine, tmp_path: Path) -> None:
    """Processes of a service end with it, and VPP must not."""
    machine.daemon, machine.vpp = "ipsec-gw.service", "ipsec-gw-vpp.service"
    VppService(tmp_path).start()
    VppService(tmp_path).stop()
    unit = "ipsec-gw-vpp.service"
    assert machine.calls == [f"systemctl start {unit}", f"systemctl stop {unit}", "down"]
    drop_in = machine.units / lifecycle.PACKAGED_DROP_IN
    drop_in.parent.mkdir(parents=True)
    drop_in.touch()
    machine.calls.clear()
    machine.vpp = "vpp.service"
    VppService(tmp_path).start()
    VppService(tmp_path).stop()
    assert machine.calls == ["systemctl start vpp.service", "systemctl stop vpp.service", "down"]


def test_what_systemd_says_is_told_with_the_way_out(machine: Machine, tmp_path: Path) -> None:
    machine.daemon, machine.code, machine.stderr = "ipsec-gw.service", 5, "Unit ipsec-gw-vpp.service not found.\n"
    with pytest.raises(EngineUnavailable, match=r"did not start .*not found.*ipsec-gw units install"):
        VppService(tmp_path).start()


def test_without_systemctl_it_is_said(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: Any, **__: Any) -> None:
        raise FileNotFoundError("systemctl")

    machine.daemon = "ipsec-gw.service"
    monkeypatch.setattr(subprocess, "run", absent)
    with pytest.raises(EngineError, match="did not end well"):
        VppService(tmp_path).start()


def test_it_runs_when_its_socket_is_there(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not VppService(tmp_path).running()
    paths = VppPaths(tmp_path.resolve())
    paths.folder.mkdir()
    paths.api_socket.touch()
    assert VppService(tmp_path).running()
    monkeypatch.setattr(service, "recorded", lambda _path: None)
    assert not VppService(tmp_path).running()
