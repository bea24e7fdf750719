"""Start and stop the VPP of a runtime directory. Blocking; call it from a thread where a loop runs."""

from __future__ import annotations

import asyncio
import fcntl
import os
import resource
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from ipsec_gw.errors import EngineError, EngineUnavailable, EnvironmentMissing
from vpp_conf import evidence
from vpp_conf.api import VppApi
from vpp_conf.locate import VppInstallation, locate_vpp
from vpp_conf.paths import VppPaths
from vpp_conf.permissions import close_folder, open_sockets, refuse_taken
from vpp_conf.process import NO_CORE, ProcessId, identify, noted, recorded, service_of
from vpp_conf.start_failure import missing_hugepages
from vpp_conf.startup.drop_in import DropIn, Merged
from vpp_conf.startup.expectation import Expectation, expect, expectation_from_json, expectation_to_json
from vpp_conf.startup.files import Files
from vpp_conf.startup.plan import plan_startup
from vpp_conf.startup.probe import ROOT, probe_machine
from vpp_conf.startup.relief import without_process
from vpp_conf.startup.render import merged_startup, render_commands
from vpp_conf.startup.values import Needs, StartupPlan
from vpp_conf.tuning.values import Tuning

START_SECONDS = 60.0
"""VPP needs about one second on hardware and a dozen in an emulated machine."""

TERM_SECONDS = 5.0
KILL_SECONDS = 10.0
POLL_SECONDS = 0.05
LOG_TAIL_LINES = 5

UNIT = "ipsec-gw-vpp.service"
"""The systemd unit that runs :func:`run`."""

PACKAGED_UNIT = "vpp.service"
"""The unit of VPP's packages, which runs it instead where :data:`PACKAGED_DROP_IN` is installed."""

PACKAGED_DROP_IN = "vpp.service.d/ipsec-gw.conf"
"""In the folder of systemd's units."""

SOCKCLNT_CREATE = 15
SOCKCLNT_CREATE_REPLY = 16
"""Fixed message numbers of VPP's socket API (``vlibmemory/memclnt.api``)."""

FRAME = struct.Struct(">QII")
"""Header of a message on the API socket: unused, length, unused (``msgbuf_t``)."""


@dataclass(frozen=True, slots=True)
class _Start:
    """Everything that is decided before a VPP is started."""

    installation: VppInstallation
    paths: VppPaths
    plan: StartupPlan
    merged: Merged

    @property
    def command(self) -> list[str]:
        return [str(self.installation.binary), "-c", str(self.paths.startup)]

    @property
    def notes(self) -> tuple[str, ...]:
        return (*self.plan.notes, *map(str, self.merged.findings))


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
        refuse_taken(paths)
        _keep_evidence(paths)
        _clean(paths)
        return _begin(_prepare(installation, paths, needs, drop_in, tuning), run_dir, deadline)


def restart(
    run_dir: Path,
    deadline: float = START_SECONDS,
    needs: Needs | None = None,
    drop_in: DropIn | None = None,
    tuning: Tuning | None = None,
) -> VppStatus:
    """Stop the VPP that runs, if one does, and start another from a startup.conf that is made anew.

    The new one is planned, for the machine without the old one, before that is touched: whatever :func:`up` raises
    because there is no VPP, no plan or no valid settings leaves the old one running. Raises as well what :func:`down`
    does, and EngineError if the VPP belongs to systemd.
    """
    require_root()
    paths = VppPaths(run_dir.resolve())
    installation = locate_vpp()
    paths.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _locked(paths):
        running = _running(paths)
        unit = service_of(running.pid) if running is not None else None
        if running is not None and unit in (UNIT, PACKAGED_UNIT):
            raise EngineError(
                f"VPP (pid {running.pid}) is run by {unit}, with the options of that unit - "
                f"use `systemctl restart {unit}`"
            )
        start = _prepare(installation, paths, needs, drop_in, tuning, running)
        _stop(paths, running)
        return _begin(start, run_dir, deadline)


def run(
    run_dir: Path, needs: Needs | None = None, drop_in: DropIn | None = None, tuning: Tuning | None = None
) -> NoReturn:
    """Become VPP: this process goes on as VPP in the foreground, for a supervisor like systemd. Its output is its log.

    Raises what :func:`up` raises before VPP has started, and EngineError if one runs already.
    """
    require_root()
    paths = VppPaths(run_dir.resolve())
    installation = locate_vpp()
    paths.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _locked(paths):  # until the exec, which closes the lock's descriptor
        running = _running(paths)
        if running is not None:
            raise EngineError(f"VPP runs already as process {running.pid} - stop it with `ipsec-gw vpp down`")
        refuse_taken(paths)
        _keep_evidence(paths)
        _clean(paths)
        start = _prepare(installation, paths, needs, drop_in, tuning)
        _write(start)
        own = identify(os.getpid())
        if own is None:
            raise EngineUnavailable("/proc does not show this process - mount it")
        _record(paths, own)
        try:
            _become(start.command, paths.log)
        except OSError as error:
            _clean(paths)
            raise EngineUnavailable(f"{installation.binary} cannot be executed ({error}){_log_tail(paths)}") from error


def wait(run_dir: Path, pid: int, deadline: float = START_SECONDS) -> VppStatus:
    """Wait until the VPP that :func:`run` became in process ``pid`` answers its API.

    Raises EngineUnavailable if the process ends before, or does not answer within ``deadline`` seconds.
    """
    paths = VppPaths(run_dir.resolve())
    process = identify(pid)
    if process is None:
        raise EngineUnavailable(f"process {pid} has ended{_log_tail(paths)}")
    installation = locate_vpp()
    _await_start(paths, installation, process, deadline)
    planned = _planned(paths)  # only now: it is written by the process that is waited for
    if planned is not None:
        open_sockets(paths, planned.sockets)
    return VppStatus(True, True, pid, installation.version, run_dir)


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
            _stop(paths, _running(paths))
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


def _prepare(
    installation: VppInstallation,
    paths: VppPaths,
    needs: Needs | None,
    drop_in: DropIn | None,
    tuning: Tuning | None,
    leaving: ProcessId | None = None,
) -> _Start:
    """Plan and render, touching nothing. What the process that is ``leaving`` holds counts as free."""
    machine = probe_machine(installation)
    if leaving is not None:
        machine = without_process(machine, Files(ROOT), leaving.pid)
    plan = plan_startup(machine, needs, tuning)
    return _Start(installation, paths, plan, merged_startup(plan, paths, installation, drop_in))


def _begin(start: _Start, run_dir: Path, deadline: float) -> VppStatus:
    began = time.monotonic()
    process = _spawn(start)
    try:
        _await_start(start.paths, start.installation, process, deadline)
        open_sockets(start.paths, start.plan.sockets)
    except EngineError:
        process.stop(TERM_SECONDS, KILL_SECONDS)
        _clean(start.paths)
        raise
    seconds = time.monotonic() - began
    return VppStatus(True, True, process.pid, start.installation.version, run_dir, seconds, start.notes)


def _stop(paths: VppPaths, process: ProcessId | None) -> None:
    if process is None:
        _keep_evidence(paths)
    else:
        evidence.leave(paths, process)
    if process is not None and not process.stop(TERM_SECONDS, KILL_SECONDS):
        raise EngineError(f"VPP (pid {process.pid}) survives SIGKILL - look at `dmesg`")
    _clean(paths)
    paths.journal.unlink(missing_ok=True)


def _keep_evidence(paths: VppPaths) -> None:
    """Of a VPP that died while nobody watched it: the daemon was away, or there is none."""
    found = noted(paths.pid_file)
    if found is not None and not found.is_alive():
        with suppress(OSError):  # a start does not fail for it
            evidence.keep(paths, found, "it was found dead", {})


def _write(start: _Start) -> None:
    """The files that VPP reads, and its plan for those who compare. The log of the one before makes room."""
    paths = start.paths
    close_folder(paths)
    paths.startup.write_text(start.merged.text)
    paths.commands.write_text(render_commands(start.plan))
    paths.plan.write_text(expectation_to_json(expect(start.plan, start.merged.theirs)))
    paths.leaving.unlink(missing_ok=True)
    if paths.log.exists():
        paths.log.replace(paths.old_log)


def _spawn(start: _Start) -> ProcessId:
    _write(start)
    process = identify(_run_detached(start.command, start.paths.log))
    if process is None:
        raise EngineUnavailable(f"VPP ended at once{_log_tail(start.paths)}")
    with suppress(ProcessLookupError):
        # Keys are going to be in VPP's memory: no core dumps.
        resource.prlimit(process.pid, resource.RLIMIT_CORE, NO_CORE)
    _record(start.paths, process)
    return process


def _record(paths: VppPaths, process: ProcessId) -> None:
    paths.pid_file.write_text(f"{process.pid} {process.start}\n")


def _become(command: list[str], log: Path) -> NoReturn:
    """Execute a command in place of this process, which keeps its PID and its start. Raises OSError."""
    resource.setrlimit(resource.RLIMIT_CORE, NO_CORE)  # keys are going to be in VPP's memory: no core dumps
    os.chdir("/")
    for name, flags, targets in (
        (os.devnull, os.O_RDONLY, (0,)),
        (str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, (1, 2)),
    ):
        handle = os.open(name, flags, 0o600)
        for target in targets:
            os.dup2(handle, target)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores these, and that would be inherited
        signal.signal(number, signal.SIG_DFL)
    os.execv(command[0], command)  # noqa: S606 - a program of our own choice, its arguments are a list


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


def _await_start(paths: VppPaths, installation: VppInstallation, process: ProcessId, seconds: float) -> None:
    try:
        _await_api(paths, process, seconds)
    except EngineUnavailable as error:
        planned = None if process.is_alive() else _planned(paths)
        raise EngineUnavailable(f"{error}{missing_hugepages(planned) if planned else ''}") from None
    if paths.commands.exists() and paths.commands.stat().st_size:
        with ThreadPoolExecutor(1) as thread:  # the caller may have a loop of its own
            thread.submit(asyncio.run, _command(paths, installation)).result()


async def _command(paths: VppPaths, installation: VppInstallation) -> None:
    """VPP sleeps for two seconds before it runs its commands: they are run now, so that it starts as it was planned."""
    api = VppApi(paths.api_socket, installation.api_dir)
    await api.connect()
    try:
        await api.cli(f"exec {paths.commands}")
    finally:
        await api.close()


def _planned(paths: VppPaths) -> Expectation | None:
    try:
        return expectation_from_json(paths.plan.read_text())
    except (OSError, ValueError):
        return None


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
    return recorded(paths.pid_file)


def _clean(paths: VppPaths) -> None:
    """Remove what a VPP that is gone leaves behind. Its log and startup.conf stay for people to read."""
    for path in (*paths.sockets, paths.pid_file, paths.shown, paths.trace, *paths.segments()):
        path.unlink(missing_ok=True)


@contextmanager
def _locked(paths: VppPaths) -> Iterator[None]:
    """One start or stop at a time. The lock file stays: removing it would let two callers lock two files."""
    with paths.lock.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
