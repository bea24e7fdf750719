"""Starting the lab as a user does, and looking what it left on this machine."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from ipsec_gw.errors import EnvironmentMissing
from ipsec_gw.lab.kernel import Environment, choose_environment
from ipsec_gw.lab.session import PIN_DIR, STATE_DIR, start_time
from vpp_conf.locate import locate_vpp

RESULTS = Path(__file__).parent.parent.parent / "bench" / "results"
LAB = [sys.executable, "-m", "ipsec_gw.lab"]


@dataclass(frozen=True)
class Traces:
    """Everything that a run could leave on this machine."""

    namespaces: frozenset[str]
    states: frozenset[str]
    pins: frozenset[str]
    temporary: frozenset[str]

    def minus(self, earlier):
        return sorted(
            (self.namespaces | self.states | self.pins | self.temporary)
            - (earlier.namespaces | earlier.states | earlier.pins | earlier.temporary)
        )


def traces():
    return Traces(
        _names(Path("/run/netns"), "igw-*"),
        _names(STATE_DIR, "igw-*"),
        _names(PIN_DIR, "igw-*"),
        _names(Path(tempfile.gettempdir()), "ipsec-gw-lab-*"),
    )


def _names(directory, pattern):
    return frozenset(str(path) for path in directory.glob(pattern)) if directory.is_dir() else frozenset()


def start(*arguments):
    return subprocess.Popen(
        [*LAB, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def finish(process):
    """Its exit code, report and progress lines."""
    out, err = process.communicate()
    return process.returncode, json.loads(out) if out.startswith("{") else {}, err


def wait_for_line(process, words):
    """Read progress until a line has ``words``; what was read is returned."""
    seen = []
    for line in process.stderr:
        seen.append(line)
        if words in line:
            return seen
    raise AssertionError(f"ended without {words!r}: {''.join(seen)}")


def descendants(pid):
    """All processes below ``pid``, with their start times."""
    found = {}
    for child in (Path(f"/proc/{pid}/task/{pid}/children").read_text()).split():
        found[int(child)] = start_time(int(child))
        found |= descendants(int(child))
    return found


def await_end(pids, seconds=15.0):
    """The processes that are still there after ``seconds`` at most."""
    deadline = time.monotonic() + seconds
    while True:
        alive = [pid for pid, started in pids.items() if started is not None and start_time(pid) == started]
        if not alive or time.monotonic() > deadline:
            return alive
        time.sleep(0.05)


def kill_group(process):
    """Whatever a failed test left of its own process group."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.communicate()


def play(scenario, *arguments):
    """Run a scenario; every check of it has to hold, and nothing may be left of it. Its report."""
    before = traces()
    process = start("run", scenario, "--json", *arguments)
    try:
        code, report, lines = finish(process)
    finally:
        kill_group(process)
    assert report, lines
    failed = [check for check in report["checks"] if not check["ok"]]
    assert not failed, f"{failed}\n{report['notes']}"
    assert (code, report["ok"]) == (0, True)
    assert traces().minus(before) == []
    return report


def need(engine):
    """Skip, with the reason, where this engine is not installed."""
    if engine == "vpp":
        try:
            locate_vpp()
        except EnvironmentMissing as missing:
            pytest.skip(str(missing))


def skip_unless_all(request):
    """For scenarios that take minutes each on an emulated machine."""
    if not request.config.getoption("--all-scenarios"):
        pytest.skip("takes minutes of an emulated machine: --all-scenarios runs it")


def skip_slow_machine(request):
    """For scenarios that take a minute where the kernel has ESP, and ten of them in the virtual machine."""
    if asyncio.run(choose_environment()) is Environment.VM:
        skip_unless_all(request)


def often(request, few, many):
    """``--rounds``: few by default, many with --all-scenarios."""
    return ("--rounds", str(many if request.config.getoption("--all-scenarios") else few))


def kept(request, name):
    """The report of a long run is kept."""
    if not request.config.getoption("--all-scenarios"):
        return ()
    RESULTS.mkdir(exist_ok=True)
    return ("--report", str(RESULTS / f"{name}.json"))


def check_names(report):
    """What was checked."""
    return [check["name"] for check in report["checks"]]
