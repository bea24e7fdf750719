"""Finding VPP, or saying how to get it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ipsec_gw.errors import EnvironmentMissing
from vpp_conf import locate
from vpp_conf.locate import BINARY_VARIABLE, locate_vpp


def fake_vpp(prefix: Path, script: str = "echo 'vpp v26.06-release built by nobody'") -> Path:
    binary = prefix / "bin" / "vpp"
    binary.parent.mkdir(parents=True)
    binary.write_text(f"#!/bin/sh\n{script}\n")
    binary.chmod(0o755)
    return binary


def test_the_environment_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binary = fake_vpp(tmp_path)
    (tmp_path / "lib/x86_64-linux-gnu/vpp_plugins").mkdir(parents=True)
    (tmp_path / "share/vpp/api").mkdir(parents=True)
    (tmp_path / "lib/x86_64-linux-gnu/vpp_plugins/crypto_ipsecmb_plugin.so").touch()
    monkeypatch.setenv(BINARY_VARIABLE, str(binary))
    found = locate_vpp()
    assert found.binary == binary
    assert found.release == (26, 6)
    assert found.plugin_dir == tmp_path / "lib/x86_64-linux-gnu/vpp_plugins"
    assert found.api_dir == tmp_path / "share/vpp/api"
    assert found.crypto_engines() == {"ipsecmb"}
    assert found.vppctl is None


def test_the_path_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binary = fake_vpp(tmp_path)
    monkeypatch.delenv(BINARY_VARIABLE, raising=False)
    monkeypatch.setenv("PATH", f"{binary.parent}:/bin")
    assert locate_vpp().binary == binary


def test_without_one_the_way_out_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(BINARY_VARIABLE, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(locate, "USUAL_BINARIES", (tmp_path / "vpp",))
    with pytest.raises(EnvironmentMissing, match=r"official fd\.io packages"):
        locate_vpp()


def test_a_wrong_name_in_the_environment_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BINARY_VARIABLE, str(tmp_path / "nothing"))
    with pytest.raises(EnvironmentMissing, match=BINARY_VARIABLE):
        locate_vpp()


def test_one_that_does_not_run_is_reported_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BINARY_VARIABLE, str(fake_vpp(tmp_path, "echo 'libvlib.so: not found' >&2; exit 127")))
    with pytest.raises(EnvironmentMissing, match="libvlib"):
        locate_vpp()
