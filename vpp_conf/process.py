"""One process on this machine, told apart from a later one that got the same PID."""

from __future__ import annotations

import os
import select
import signal
import time
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
STATE_FIELD = 0
THREADS_FIELD = 17
START_FIELD = 19
"""Positions in /proc/PID/stat after the command's closing parenthesis: fields 3, 20 and 22 of proc(5)."""

NO_CORE = (1, 1)
"""Of RLIMIT_CORE, in bytes: no file is made, and a program that ``core_pattern`` pipes dumps to gets none either. From
that one 0 would not keep them (``fs/coredump.c`` takes 1 for its own mark against recursion)."""


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A PID and when it started, in clock ticks since boot."""

    pid: int
    start: int

    def is_alive(self) -> bool:
        """True while this very process runs; a zombie is dead."""
        return identify(self.pid) == self

    def pidfd(self) -> int:
        """A descriptor of this very process, never of one that got its PID since; the caller closes it.

        Raises ProcessLookupError if it has ended.
        """
        handle = os.pidfd_open(self.pid)
        if not self.is_alive():
            os.close(handle)
            raise ProcessLookupError(self.pid)
        return handle

    def send(self, number: int) -> None:
        """Send a signal to it. Raises ProcessLookupError if it has ended."""
        handle = self.pidfd()
        try:
            signal.pidfd_send_signal(handle, number)
        finally:
            os.close(handle)

    def stop(self, grace: float, kill_grace: float) -> bool:
        """Terminate, and kill after ``grace`` seconds. True when the process is gone ``kill_grace`` seconds later."""
        try:
            handle = self.pidfd()
        except ProcessLookupError:
            return True
        try:
            for number, seconds in ((signal.SIGTERM, grace), (signal.SIGKILL, kill_grace)):
                try:
                    signal.pidfd_send_signal(handle, number)
                except ProcessLookupError:
                    return True
                if _wait_gone(handle, seconds):
                    return True
            return not self.is_alive()
        finally:
            os.close(handle)


def identify(pid: int) -> ProcessId | None:
    """The process that has this PID now, None if there is none or it is a zombie.

    While a process dies its first thread may be a zombie already, and another one still send by its sockets.
    """
    try:
        text = (PROC / str(pid) / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()
    ended = fields[STATE_FIELD] in "ZX" and int(fields[THREADS_FIELD]) <= 1
    return None if ended else ProcessId(pid, int(fields[START_FIELD]))


def noted(pid_file: Path) -> ProcessId | None:
    """The process that a PID file names (``PID START``), alive or not; None if the file does not name one."""
    try:
        pid, start = pid_file.read_text().split()
        return ProcessId(int(pid), int(start))
    except (FileNotFoundError, ValueError):
        return None


def recorded(pid_file: Path) -> ProcessId | None:
    """The process that a PID file names, None if it has ended or the file is not there."""
    found = noted(pid_file)
    return found if found is not None and found.is_alive() else None


def service_of(pid: int) -> str | None:
    """The systemd service that a process belongs to, by its control group (``proc_pid_cgroup(5)``); None without one.

    The outermost one counts: below it a service may have groups of its own.
    """
    try:
        lines = (PROC / str(pid) / "cgroup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return None
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "name=systemd"):
            found = next((part for part in path.split("/") if part.endswith(".service")), None)
            if found is not None:
                return found
    return None


def _wait_gone(handle: int, seconds: float) -> bool:
    """A pidfd becomes readable when its process ends."""
    deadline = time.monotonic() + seconds
    poller = select.poll()
    poller.register(handle, select.POLLIN)
    while (left := deadline - time.monotonic()) > 0:
        if poller.poll(left * 1000):
            return True
    return False
