"""When a process has ended."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from vpp_conf.process import PROC, identify

THREADS = """
import ctypes, os, sys, threading
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0))).start()
ctypes.CDLL(None).syscall(60, 0)  # exit(2): this thread alone
"""


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        os.sched_yield()


def state(pid: int) -> str:
    return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[0]


def test_a_process_lives_as_long_as_one_of_its_threads() -> None:
    with subprocess.Popen([sys.executable, "-c", THREADS], stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        until(lambda: state(process.pid) == "Z")
        found = identify(process.pid)
        assert found is not None
        assert found.is_alive()
        process.stdin.close()
        until(lambda: identify(process.pid) is None)
        assert state(process.pid) == "Z", "nobody has waited for it yet"
        assert not found.is_alive()


def test_a_signal_never_reaches_what_got_its_pid_since() -> None:
    with subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE) as process:
        found = identify(process.pid)
        assert found is not None
        earlier = replace(found, start=found.start - 1)
        for refused in (lambda: earlier.send(signal.SIGKILL), earlier.pidfd):
            with pytest.raises(ProcessLookupError):
                refused()
        assert earlier.stop(0, 0), "it has ended long ago"
        assert process.poll() is None
        found.send(signal.SIGKILL)
        assert process.wait(30) == -signal.SIGKILL
        with pytest.raises(ProcessLookupError):
            found.send(signal.SIGKILL)
