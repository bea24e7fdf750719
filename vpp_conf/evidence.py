"""What is kept of a VPP that died or hung: its last words, what it showed of itself before, and what it was told.

No keys are in it: core dumps are off, VPP's own trace of its API is off, the commands that are asked never show an SA,
and the trace is the gateway's own (:mod:`vpp_conf.api_trace`). A few are kept, each of limited size, until the next
boot.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from vpp_conf.paths import VppPaths
from vpp_conf.process import PROC, ProcessId

MOST_KEPT = 5
MOST_BYTES = 128 << 10
"""Of one file; of longer ones the end is kept."""

WHY = "why.json"
THREADS, TRACE = "threads.txt", "api-trace.txt"
CORE_PATTERN = Path("/proc/sys/kernel/core_pattern")
OF_A_THREAD = ("comm", "status", "wchan", "stack")
"""What of /proc/PID/task/TID tells where a thread hangs (proc(5)): no memory, no registers."""

SHOWS = (
    "show version verbose",
    "show threads",
    "show clock",
    "show logging",
    "show runtime",
    "show errors",
    "show interface rx-placement",
    "show hardware-interfaces",
    "show buffers",
    "show physmem",
    "show memory main-heap",
    "show crypto engines",
    "show crypto async status",
    "show node counters",
)
"""Commands whose answers are kept. None of ``show ipsec``: it can print keys."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """Where it is, when it was kept, and why VPP ended."""

    path: Path
    at: str
    why: str


def keep(paths: VppPaths, process: ProcessId, why: str, texts: Mapping[str, str]) -> Evidence | None:
    """Keep what there is of a process that has ended, with more texts by file name; the oldest make room.

    None if that was done for this process before, or it was stopped on purpose. Raises OSError.
    """
    paths.evidence.mkdir(mode=0o700, parents=True, exist_ok=True)
    mark = f"{process.pid}-{process.start}"
    if asked_to_leave(paths, process) or any(paths.evidence.glob(f"*-{mark}")):
        return None
    at = datetime.now(UTC)
    partial = paths.evidence / f".{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(mode=0o700)
    for path in (paths.log, paths.startup, paths.commands, paths.plan, paths.shown, paths.trace):
        with suppress(FileNotFoundError):
            _write(partial / path.name, path.read_bytes())
    for name, text in texts.items():
        _write(partial / name, text.encode())
    when = at.isoformat(timespec="seconds")
    told = {
        "at": when,
        "why": why,
        "pid": process.pid,
        "corePattern": CORE_PATTERN.read_text().strip(),
        "coreDump": "none: keys are in VPP's memory",
    }
    _write(partial / WHY, (json.dumps(told, indent=2) + "\n").encode())
    place = paths.evidence / f"{at:%Y%m%dT%H%M%S.%fZ}-{mark}"
    partial.replace(place)
    for old in _kept(paths)[:-MOST_KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return Evidence(place, when, why)


def last(paths: VppPaths) -> Evidence | None:
    """The newest that is there and can be read."""
    for place in reversed(_kept(paths)):
        with suppress(OSError, ValueError, KeyError):
            told = json.loads((place / WHY).read_text())
            return Evidence(place, str(told["at"]), str(told["why"]))
    return None


def leave(paths: VppPaths, process: ProcessId) -> None:
    """Note that a process is about to be stopped on purpose: its end is nothing to keep evidence of."""
    paths.leaving.write_text(f"{process.pid} {process.start}\n")


def asked_to_leave(paths: VppPaths, process: ProcessId) -> bool:
    """Whether that was noted."""
    try:
        return paths.leaving.read_text().split() == [str(process.pid), str(process.start)]
    except FileNotFoundError:
        return False


def threads(pid: int) -> str:
    """Where the threads of a process are, in the kernel's words. What cannot be read is left out."""
    parts: list[str] = []
    with suppress(OSError):
        for task in sorted((PROC / str(pid) / "task").iterdir()):
            for name in OF_A_THREAD:
                with suppress(OSError):
                    parts.append(f"==== {task.name} {name}\n{(task / name).read_text()}\n")
    return "".join(parts)


def _kept(paths: VppPaths) -> list[Path]:
    """Oldest first."""
    if not paths.evidence.is_dir():
        return []
    return sorted(place for place in paths.evidence.iterdir() if not place.name.startswith("."))


def _write(path: Path, content: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(content[-MOST_BYTES:])
