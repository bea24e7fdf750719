"""Start and stop the VPP of a runtime directory. Blocking; call it from a thread where a loop runs."""

from __future__ import annotations

import fcntl
import os
import resource
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ipsec_gw.errors import EngineError, EngineUnavailable, EnvironmentMissing
from vpp_conf.locate import VppInstallation, locate_vpp
from vpp_conf.paths import VppPaths
from vpp_conf.process import ProcessId, identify
from vpp_conf.startup.drop_in import DropIn, Merged
from vpp_conf.startup.expectation import expect, expectation_to_json
from vpp_conf.startup.plan import plan_startup
from vpp_conf.startup.probe import probe_machine
from vpp_conf.startup.render import merged_startup, render_commands
from vpp_conf.startup.values import Needs, StartupPlan
from vpp_conf.tuning.values import Tuning

START_SECONDS = 60.0
"""VPP needs about one second on hardware and a dozen in an emulated machine."""

TERM_SECONDS = 5.0
KILL_SECONDS = 10.0
POLL_SECONDS = 0.05
LOG_TAIL_LINES = 5

SOCKCLNT_CREATE = 15
SOCKCLNT_CREATE_REPLY = 16
"""Fixed message numbers of VPP's socket API (``vlibmemory/memclnt.api``)."""

FRAME = struct.Struct(">QII")
"""Header of a message on the API socket: unused, length, unused (``msgbuf_t``)."""


@dataclass(frozen=True, slots=True)
class VppStatus:
    """``running``: the process lives; ``answering``: its API socket answered a moment ago.

    ``seconds`` is how long the start took, 0 if this call did not start anything. ``notes`` tell what could be better.
    """

    running: bool
    answering: bool
    pid: int | None
    version: str | None
    run_dir: Path
    seconds: float = 0.0
    notes: tuple[str, ...] = ()


def up(
    run_dir: Path,
    deadline: float = START_SECONDS,
    needs: Needs | None = None,
    drop_in: DropIn | None = None,
    tuning: Tuning | None = None,
) -> VppStatus:
    """Start VPP in this network namespace and wait until its API answers. A running one is left as it is.

    VPP outlives the caller. Raises EnvironmentMissing (no root, no VPP, no plan for this machine), ConfigError (the
    operator's settings) or EngineUnavailable (VPP ended or did not answer within ``deadline`` seconds; the text carries
    the end of its log).
    """
    require_root()
    paths = VppPaths(run_dir.resolve())
    installation = locate_vpp()
    paths.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _locked(paths):
        running = _running(paths)
        if running is not None:
            _await_api(paths, running, deadline)
            return VppStatus(True, True, running.pid, installation.version, run_dir)
        _clean(paths)
        started = time.monotonic()
        plan = plan_startup(probe_machine(installation), needs, tuning)
        merged = merged_startup(plan, paths, installation, drop_in)
        process = _spawn(installation, paths, plan, merged)
        try:
            _await_api(paths, process, deadline)
        except EngineUnavailable:
            process.stop(TERM_SECONDS, KILL_SECONDS)
            _clean(paths)
            raise
        seconds = time.monotonic() - started
        return VppStatus(True, True, process.pid, installation.version, run_dir, seconds, _notes(plan, merged))


def require_root() -> None:
    """Raises EnvironmentMissing unless this process may start VPP."""
    if os.geteuid() != 0:
        raise EnvironmentMissing("starting VPP needs root - run it with sudo or from systemd")


def down(run_dir: Path) -> VppStatus:
    """Stop the VPP that :func:`up` started and remove its sockets, PID file and shared memory. Idempotent.

    Raises EngineError if the process survives SIGKILL.
    """
    paths = VppPaths(run_dir.resolve())
    if paths.folder.is_dir():
        with _locked(paths):
            process = _running(paths)
            if process is not None and not process.stop(TERM_SECONDS, KILL_SECONDS):
                raise EngineError(f"VPP (pid {process.pid}) survives SIGKILL - look at `dmesg`")
            _clean(paths)
            paths.journal.unlink(missing_ok=True)
    return VppStatus(False, False, None, None, run_dir)


def status(run_dir: Path) -> VppStatus:
    """What is there now; never raises for an absent VPP."""
    paths = VppPaths(run_dir.resolve())
    process = _running(paths)
    version = None
    with suppress(EnvironmentMissing):
        version = locate_vpp().version
    if process is None:
        return VppStatus(False, False, None, version, run_dir)
    return VppStatus(True, api_answers(paths.api_socket), process.pid, version, run_dir)


def api_answers(path: Path, timeout: float = 2.0) -> bool:
    """True if a VPP answers ``sockclnt_create`` on this API socket."""
    message = struct.pack(">HI", SOCKCLNT_CREATE, 0) + b"ipsec-gw-probe".ljust(64, b"\0")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(timeout)
        try:
            client.connect(str(path))
            client.sendall(FRAME.pack(0, len(message), 0) + message)
            answer = client.recv(FRAME.size + 2, socket.MSG_WAITALL)
        except OSError:
            return False
    return answer[FRAME.size :] == SOCKCLNT_CREATE_REPLY.to_bytes(2, "big")


def _notes(plan: StartupPlan, merged: Merged) -> tuple[str, ...]:
    return (*plan.notes, *map(str, merged.findings))


def _spawn(installation: VppInstallation, paths: VppPaths, plan: StartupPlan, merged: Merged) -> ProcessId:
    paths.startup.write_text(merged.text)
    paths.commands.write_text(render_commands(plan))
    paths.plan.write_text(expectation_to_json(expect(plan, merged.theirs)))
    if paths.log.exists():
        paths.log.replace(paths.old_log)
    process = identify(_run_detached([str(installation.binary), "-c", str(paths.startup)], paths.log))
    if process is None:
        raise EngineUnavailable(f"VPP ended at once{_log_tail(paths)}")
    with suppress(ProcessLookupError):
        # Keys are going to be in VPP's memory: no core dumps.
        resource.prlimit(process.pid, resource.RLIMIT_CORE, (0, 0))
    paths.pid_file.write_text(f"{process.pid} {process.start}\n")
    return process


def _run_detached(command: list[str], log: Path) -> int:
    """Run a command in its own session and return its PID. A shell in between leaves it no parent to be reaped by."""
    shell = subprocess.run(
        ["/bin/sh", "-c", '"$@" >>"$0" 2>&1 </dev/null & echo $!', str(log), *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        start_new_session=True,
        cwd="/",
    )
    return int(shell.stdout)


def _await_api(paths: VppPaths, process: ProcessId, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not api_answers(paths.api_socket):
        if not process.is_alive():
            raise EngineUnavailable(f"VPP ended while it started{_log_tail(paths)}")
        if time.monotonic() > deadline:
            raise EngineUnavailable(
                f"VPP does not answer on {paths.api_socket} after {seconds:.0f} s{_log_tail(paths)}"
            )
        time.sleep(POLL_SECONDS)


def _log_tail(paths: VppPaths) -> str:
    lines = paths.log.read_text(errors="replace").splitlines() if paths.log.exists() else []
    tail = " | ".join(line.strip() for line in lines[-LOG_TAIL_LINES:] if line.strip())
    return f" - see {paths.log}" + (f": {tail}" if tail else "")


def _running(paths: VppPaths) -> ProcessId | None:
    try:
        pid, start = paths.pid_file.read_text().split()
        recorded = ProcessId(int(pid), int(start))
    except (FileNotFoundError, ValueError):
        return None
    return recorded if recorded.is_alive() else None


def _clean(paths: VppPaths) -> None:
    """Remove what a VPP that is gone leaves behind. Its log and startup.conf stay for people to read."""
    for path in (*paths.sockets, paths.pid_file, *paths.segments()):
        path.unlink(missing_ok=True)


@contextmanager
def _locked(paths: VppPaths) -> Iterator[None]:
    """One start or stop at a time. The lock file stays: removing it would let two callers lock two files."""
    with paths.lock.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
