"""What is noted when a scenario breaks off."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import AsyncExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest

from ipsec_gw.lab import autopsy, topology
from ipsec_gw.lab.autopsy import write_autopsy
from ipsec_gw.lab.context import Lab, Options
from ipsec_gw.lab.process import CommandFailed, Output
from ipsec_gw.lab.session import Session
from vpp_conf.paths import VppPaths
from vpp_conf.process import identify


class Silent:
    def tell(self, _event: object) -> None:
        """Nobody listens."""


def lab(artifacts: Path | None) -> Lab:
    session = Session("igw-000000", 1, 1, ())
    return Lab(session, topology.site_to_site("igw"), Options(artifacts=artifacts), Silent(), AsyncExitStack())


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The kernel does not answer one question."""
    found: list[str] = []

    async def run(argv: list[str], **_: object) -> Output:
        found.append(" ".join(argv))
        if argv[0] == "nft":
            raise CommandFailed("nft list ruleset: no end after 20 s")
        return Output(0, f"answer to {argv[-1]}", "")

    monkeypatch.setattr(autopsy, "run", run)
    monkeypatch.setattr("ipsec_gw.lab.session.STATE_DIR", tmp_path)
    return found


async def test_who_does_not_answer_is_noted(tmp_path: Path, asked: list[str]) -> None:
    one = lab(tmp_path)
    await write_autopsy(one)
    said = (tmp_path / "autopsy.txt").read_text()
    assert "# ip -4 rule\nanswer to rule" in said
    assert "# nft list ruleset\nnft list ruleset: no end after 20 s" in said
    assert "show status\nanswer to status" in said
    assert not any("xfrm state" in words or "ipsec sa" in words or "ipsec all" in words for words in asked), "keys"
    assert not any("vppctl" in words for words in asked), "none runs"


async def test_threads_of_vpp_are_looked_at(tmp_path: Path) -> None:
    one = lab(tmp_path)
    pid_file, own = VppPaths(one.session.gateway_dir).pid_file, identify(os.getpid())
    assert own is not None
    pid_file.parent.mkdir(parents=True)
    pid_file.write_text(f"{own.pid} {own.start}")
    await write_autopsy(one)
    said = (tmp_path / "autopsy.txt").read_text()
    assert f"# {own.pid} wchan\n" in said
    assert "Name:\t" in said


async def test_without_artifacts_nobody_is_asked(asked: list[str]) -> None:
    await write_autopsy(lab(None))
    assert asked == []


@pytest.mark.parametrize("hangs", [True, False])
async def test_a_vpp_that_does_not_answer_is_told_to_write_where_it_hangs(
    hangs: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run(argv: list[str], **_: object) -> Output:
        if hangs and argv[-1] == "clock":
            raise CommandFailed("vppctl show clock: no end after 20 s")
        return Output(0, "", "")

    monkeypatch.setattr(autopsy, "run", run)
    monkeypatch.setattr(autopsy, "locate_vpp", lambda: SimpleNamespace(vppctl=Path("vppctl")))
    one = lab(tmp_path)
    pid_file = VppPaths(one.session.gateway_dir).pid_file
    pid_file.parent.mkdir(parents=True)
    child = await asyncio.create_subprocess_exec("sleep", "60")
    own = identify(child.pid)
    assert own is not None
    pid_file.write_text(f"{own.pid} {own.start}")
    await write_autopsy(one)
    if not hangs:
        assert own.is_alive()
        child.terminate()
    assert await asyncio.wait_for(child.wait(), 10) == -(signal.SIGABRT if hangs else signal.SIGTERM)
