"""Who owns what: every run writes down what it makes, so that a later one can remove what a dead one left.

A state file is written before the first namespace is made, and removed after the last is gone.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import signal
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ipsec_gw.errors import IpsecGwError
from ipsec_gw.lab import netns

STATE_DIR = Path("/run/ipsec-gw-lab")
PIN_DIR = Path("/sys/fs/bpf")
PREFIX = "igw-"
END_SECONDS = 8.0
"""How long a leftover process may take to obey SIGTERM."""


@dataclass(frozen=True, slots=True)
class Session:
    """A run's belongings. ``started`` is the owner's start time in clock ticks: pids are used again.

    ``kept`` is set by `lab up`: it outlives its owner until `lab down`.
    """

    tag: str
    pid: int
    started: int
    namespaces: tuple[str, ...]
    kept: bool = False

    @property
    def run_dir(self) -> Path:
        """Configuration, sockets and logs of the run. In /run: socket paths are short and the disk stays clean."""
        return STATE_DIR / self.tag

    @property
    def state_file(self) -> Path:
        """The session, written down."""
        return STATE_DIR / f"{self.tag}.json"

    @property
    def pins(self) -> Path:
        """The bpffs directory of the gateway under test."""
        return PIN_DIR / self.tag

    @property
    def gateway_dir(self) -> Path:
        """The run directory of the gateway under test (its ``--run-dir``)."""
        return self.run_dir / "gateway"


def start_time(pid: int) -> int | None:
    """When a process started, in clock ticks since boot (field 22 of ``/proc/pid/stat``), or None if it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()
    # A zombie does nothing any more; its parent is slow to notice.
    return None if fields[0] == "Z" else int(fields[19])


def new_tag() -> str:
    """A name that no other run has."""
    return f"{PREFIX}{secrets.token_hex(3)}"


def begin(tag: str, namespaces: tuple[str, ...]) -> Session:
    """Write the session down and make its directory. Raises IpsecGwError if the tag is taken."""
    session = Session(tag, os.getpid(), start_time(os.getpid()) or 0, namespaces)
    STATE_DIR.mkdir(mode=0o755, exist_ok=True)
    try:
        session.run_dir.mkdir(mode=0o700)
    except FileExistsError:
        raise IpsecGwError(f"{session.run_dir} exists - run `ipsec-gw lab down`") from None
    write(session)
    return session


def write(session: Session) -> None:
    """Write the state file, whole or not at all."""
    fresh = session.state_file.with_suffix(".new")
    fresh.write_text(json.dumps(asdict(session)))
    fresh.rename(session.state_file)


def keep(session: Session) -> Session:
    """Let the session outlive us (`lab up`)."""
    kept = replace(session, kept=True)
    write(kept)
    return kept


def parse(text: str) -> Session:
    """Read a state file. Raises ValueError, KeyError or TypeError for anything else."""
    data = json.loads(text)
    return Session(**{**data, "namespaces": tuple(data["namespaces"])})


def sessions() -> list[Session]:
    """All sessions that are written down; unreadable files are not ours to judge and left alone."""
    found = []
    for path in sorted(STATE_DIR.glob("*.json")):
        try:
            found.append(parse(path.read_text()))
        except (ValueError, KeyError, TypeError, FileNotFoundError):
            continue
    return found


def is_dead(session: Session) -> bool:
    """True if the owner ended without clearing up."""
    return start_time(session.pid) != session.started


async def end(session: Session) -> None:
    """Remove everything that belongs to a session: processes, pins, namespaces, directory, state file."""
    await end_processes(session)
    unpin(session.pins)
    await netns.remove(session.namespaces)
    shutil.rmtree(session.run_dir, ignore_errors=True)
    session.state_file.unlink(missing_ok=True)


async def end_processes(session: Session) -> list[str]:
    """End what still lives in the session's namespaces; returns what that was, but what was dying already."""
    found = netns.processes(session.namespaces)
    found.pop(os.getpid(), None)
    for pid in found:
        _signal(pid, signal.SIGTERM)
    deadline = time.monotonic() + END_SECONDS
    while True:
        if time.monotonic() > deadline or not any(start_time(pid) for pid in found):
            break
        await asyncio.sleep(0.05)
    for pid in found:
        _signal(pid, signal.SIGKILL)
    return [command for command in found.values() if command]  # who dies loses that first


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def unpin(directory: Path) -> None:
    """Remove a bpffs directory with its pins. bpffs holds links and maps, removed like files."""
    if directory.is_dir():
        shutil.rmtree(directory, ignore_errors=True)


EXCHANGE_PREFIX = "ipsec-gw-lab-"
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def exchange_directory() -> tempfile.TemporaryDirectory[str]:
    """A directory on disk for what goes to and from the virtual machine (whose /run is its own), named after us."""
    owner = os.getpid()
    return tempfile.TemporaryDirectory(prefix=f"{_exchange_prefix()}{owner}-{start_time(owner)}-")


def _exchange_prefix() -> str:
    # With the boot: the virtual machine sees the same directory, and must not take its host's runs for dead ones.
    return f"{EXCHANGE_PREFIX}{BOOT_ID.read_text()[:8]}-"


def _remove_dead_exchanges() -> list[str]:
    removed = []
    prefix = _exchange_prefix()
    for path in Path(tempfile.gettempdir()).glob(f"{prefix}*-*-*"):
        pid, started, _ = path.name.removeprefix(prefix).split("-", 2)
        if pid.isdigit() and started.isdigit() and start_time(int(pid)) != int(started):
            shutil.rmtree(path, ignore_errors=True)
            removed.append(path.name)
    return removed


async def sweep() -> list[str]:
    """Remove what dead runs left behind; returns what that was called."""
    return await _end_all([session for session in sessions() if is_dead(session) and not session.kept])


async def down() -> list[str]:
    """Remove what dead runs and `lab up` left; runs that are alive are not touched. Returns what that was called."""
    return await _end_all([session for session in sessions() if session.kept or is_dead(session)])


async def _end_all(gone: list[Session]) -> list[str]:
    for session in gone:
        await end(session)
    return [*(session.tag for session in gone), *_remove_dead_exchanges()]


@dataclass(frozen=True, slots=True)
class Leftovers:
    """What is still there of a session after its end."""

    namespaces: tuple[str, ...]
    processes: tuple[str, ...]
    pins: tuple[str, ...]
    files: tuple[str, ...]


def leftovers(session: Session, pids: dict[int, int]) -> Leftovers:
    """Look for remains. ``pids`` are the processes that the run started, with their start times."""
    alive = [str(pid) for pid, started in pids.items() if start_time(pid) == started]
    inside = [command for pid, command in netns.processes(session.namespaces).items() if pid != os.getpid()]
    files = [path for path in (session.run_dir, session.state_file) if path.exists()]
    return Leftovers(
        tuple(netns.present(session.namespaces)),
        tuple(alive + inside),
        tuple(str(path) for path in session.pins.rglob("*")) if session.pins.exists() else (),
        tuple(str(path) for path in files),
    )
