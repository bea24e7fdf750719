"""A gateway in a network namespace of its own, driven by its command line."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ipsec_gw.errors import EnvironmentMissing
from ipsec_gw.observe.control import listening
from vpp_conf.locate import locate_vpp

DEADLINE = 60.0


def until(condition: Callable[[], Any], what: str, seconds: float = DEADLINE) -> Any:
    """Wait for a condition, with a deadline."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"not within {seconds:g} s: {what}"
        time.sleep(0.02)
    return value


class Box:
    """A namespace with a WAN interface (veth), a scripted charon, and the command line."""

    def __init__(self, tmp: Path) -> None:
        self.name = f"igwt-{secrets.token_hex(3)}"
        self.tmp = tmp
        self.run_dir = tmp / "run"
        self.pins = Path("/sys/fs/bpf") / self.name
        self.vici = tmp / "vici"
        self.config: Path | None = None
        self.children: list[subprocess.Popen[str]] = []

    def sh(self, *words: str, check: bool = True) -> str:
        done = subprocess.run(
            ["nsenter", f"--net=/run/netns/{self.name}", *words],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert not check or done.returncode == 0, done.stderr
        return done.stdout

    def raise_(self) -> None:
        subprocess.run(["ip", "netns", "add", self.name], check=True)
        self.sh("ip", "link", "set", "lo", "up")
        self.sh("ip", "link", "add", "wan0", "type", "veth", "peer", "name", "peer0")
        for interface in ("wan0", "peer0"):
            self.sh("ip", "link", "set", interface, "up")
        self.sh("ip", "addr", "add", "10.0.0.1/24", "dev", "wan0")

    def charon(self, *words: str) -> subprocess.Popen[str]:
        child = self.spawn("-m", "tests.support.charon", str(self.vici), *words)
        until(self.vici.exists, "the scripted charon listens")
        return child

    def spawn(self, *words: str) -> subprocess.Popen[str]:
        log = (self.tmp / f"child-{len(self.children)}.log").open("w")
        child = subprocess.Popen(
            ["nsenter", f"--net=/run/netns/{self.name}", sys.executable, *words], stdout=log, stderr=log, text=True
        )
        self.children.append(child)
        return child

    def words(self, *words: str) -> list[str]:
        config = ["--config", str(self.config)] if self.config else []
        return ["-m", "ipsec_gw.cli.main", *config, "--run-dir", str(self.run_dir), "--pins", str(self.pins), *words]

    def gw(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["nsenter", f"--net=/run/netns/{self.name}", sys.executable, *self.words(*words)],
            env=dict(os.environ),  # without it the COLUMNS that readline puts behind Python's back would come along
            capture_output=True,
            text=True,
            check=False,
            timeout=90,
        )

    def daemon(self, *words: str) -> subprocess.Popen[str]:
        child = self.spawn(*self.words("run", "--vici", f"unix://{self.vici}", *words))
        until(lambda: child.poll() is not None or listening(self.run_dir), "the daemon listens")
        assert child.poll() is None, self.log(child)
        return child

    def log(self, child: subprocess.Popen[str]) -> str:
        return (self.tmp / f"child-{self.children.index(child)}.log").read_text()

    def status(self) -> Any:
        done = self.gw("show", "status", "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def status_or_none(self) -> Any:
        """The status, None while no daemon listens."""
        done = self.gw("show", "status", "--json")
        return json.loads(done.stdout) if done.returncode == 0 else None

    def stop(self, child: subprocess.Popen[str], number: int = signal.SIGTERM) -> int:
        child.send_signal(number)
        return child.wait(DEADLINE)

    def traces(self) -> dict[str, str]:
        """What a gateway could have left: empty values mean that nothing is there."""
        links = self.sh("ip", "-o", "link")
        return {
            "pins": str(self.pins) if self.pins.exists() else "",
            "veth": links if "ipsecgw" in links else "",
            "xdp": links if "xdp" in links else "",
            "qdisc": "clsact" if "clsact" in self.sh("tc", "qdisc", "show") else "",
            "rules": "\n".join(line for line in self.sh("ip", "rule").splitlines() if line.startswith("21")),
        }

    def lower(self) -> None:
        for child in self.children:
            if child.poll() is None:
                child.kill()
            child.wait(DEADLINE)
        self.gw("off")
        subprocess.run(["ip", "netns", "del", self.name], check=False)


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    if os.geteuid() != 0:
        pytest.skip("needs root for network namespaces")
    made = Box(tmp_path)
    made.raise_()
    try:
        yield made
    finally:
        made.lower()


@pytest.fixture(scope="session")
def vpp_installed() -> None:
    """VPP is installed: for fixtures that live longer than a test."""
    try:
        locate_vpp()
    except EnvironmentMissing as missing:
        pytest.skip(str(missing))


@pytest.fixture
def vpp(vpp_installed: None) -> None:
    """VPP is installed."""
