"""Child processes that cannot outlive their purpose: run to an end, or run beside us until stopped."""

from __future__ import annotations

import asyncio
import ctypes
import os
import shutil
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ipsec_gw.errors import EnvironmentMissing, IpsecGwError

PR_SET_PDEATHSIG = 1
"""``linux/prctl.h``: the signal that a child gets when its parent dies, whatever killed it."""

STOP_SECONDS = 10.0
"""How long a child may take to obey SIGTERM before it is killed."""

_libc = ctypes.CDLL(None, use_errno=True)


class CommandFailed(IpsecGwError):
    """A tool returned an error; the text holds its command line and the end of what it wrote."""


@dataclass(frozen=True, slots=True)
class Output:
    """What a finished command wrote, and its exit code."""

    code: int
    stdout: str
    stderr: str


def need_tools(packages: Mapping[str, str]) -> None:
    """Check that programs are installed: name -> Debian package. Raises EnvironmentMissing naming all absent ones."""
    absent = [name for name in packages if shutil.which(name, path=tool_path()) is None]
    if absent:
        wanted = " ".join(sorted({packages[name] for name in absent}))
        raise EnvironmentMissing(f"not installed: {', '.join(absent)} - apt install {wanted}")


def tool_path() -> str:
    """PATH with the system's own directories first, sbin included."""
    return f"/usr/sbin:/usr/bin:/sbin:/bin:{os.environ.get('PATH', '')}"


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a child."""
    return {**os.environ, "PATH": tool_path(), "LC_ALL": "C.UTF-8", **(extra or {})}


_all_processors = frozenset(os.sched_getaffinity(0))


def every_processor() -> frozenset[int]:
    """The processors that this process may have used when it started."""
    return _all_processors


def stay_on_one_processor() -> None:
    """Keep this process on one processor; children go where they like.

    What it sends passes all namespaces in softirqs of this processor, so nothing overtakes: with several, a stalled
    one (emulation) sends packets so late that the peer's replay window of 32 drops them, which proves nothing.
    """
    os.sched_setaffinity(0, {min(_all_processors)})


def dies_with_parent(with_signal: signal.Signals) -> Callable[[], None]:
    """A ``preexec_fn``: the child gets ``with_signal`` when we die, even by SIGKILL."""

    def arrange() -> None:
        os.sched_setaffinity(0, _all_processors)
        _libc.prctl(PR_SET_PDEATHSIG, int(with_signal), 0, 0, 0)

    return arrange


def entering(namespace: str | None, argv: Sequence[str]) -> list[str]:
    """``argv`` inside a network namespace. Not ``ip netns exec``: that remounts /sys and hides bpffs."""
    if namespace is None:
        return list(argv)
    return ["nsenter", f"--net=/run/netns/{namespace}", "--", *argv]


async def run(
    argv: Sequence[str],
    *,
    namespace: str | None = None,
    stdin: str | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = 60.0,
    check: bool = True,
) -> Output:
    """Run a command to its end. Raises CommandFailed if it fails (with ``check``) or outlasts ``timeout`` seconds."""
    command = entering(namespace, argv)
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE if stdin is not None else asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment(env),
        start_new_session=True,
        preexec_fn=dies_with_parent(signal.SIGKILL),
    )
    try:
        data = stdin.encode() if stdin is not None else None
        out, err = await asyncio.wait_for(process.communicate(data), timeout)
    except TimeoutError:
        raise CommandFailed(f"{' '.join(argv)}: no end after {timeout:.0f} s") from None
    finally:
        await _reap(process)
    output = Output(process.returncode or 0, out.decode(errors="replace"), err.decode(errors="replace"))
    if check and output.code != 0:
        said = (output.stderr.strip() or output.stdout.strip())[-600:]
        raise CommandFailed(f"{' '.join(argv)}: exit {output.code}: {said}")
    return output


async def all_of(*work: Awaitable[object]) -> None:
    """Do several things at once; if one fails the others are ended first. Raises the first failure."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _reap(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
        await process.wait()


class Daemon:
    """A program that runs beside us until :meth:`stop`; what it writes goes to ``log``."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.name = name
        self.log = log
        self._process = process

    @classmethod
    async def start(
        cls,
        name: str,
        argv: Sequence[str],
        log: Path,
        *,
        namespace: str | None = None,
        env: Mapping[str, str] | None = None,
        outlive: bool = False,
    ) -> Daemon:
        """Start it. With ``outlive`` it stays when we end (``lab up``), otherwise it gets SIGTERM then."""
        with log.open("ab") as sink:
            process = await asyncio.create_subprocess_exec(
                *entering(namespace, argv),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                env=environment(env),
                start_new_session=True,
                preexec_fn=None if outlive else dies_with_parent(signal.SIGTERM),
            )
        return cls(name, process, log)

    @property
    def pid(self) -> int:
        """Process id: of the program itself, as nsenter executes it in its own place."""
        return self._process.pid

    def ensure_running(self) -> None:
        """Raise CommandFailed, with the end of the log, if the program ended."""
        if self._process.returncode is not None:
            raise CommandFailed(f"{self.name} ended with {self._process.returncode}: {self.tail()}")

    def tail(self, characters: int = 800) -> str:
        """The end of the log."""
        if not self.log.exists():
            return ""
        return self.log.read_text(errors="replace")[-characters:].strip()

    async def kill(self) -> None:
        """SIGKILL."""
        await _reap(self._process)

    async def stop(self, seconds: float = STOP_SECONDS) -> None:
        """SIGTERM, and SIGKILL if it has not ended after ``seconds``."""
        if self._process.returncode is not None:
            return
        self._process.terminate()
        try:
            await asyncio.wait_for(self._process.wait(), seconds)
        finally:
            await _reap(self._process)
