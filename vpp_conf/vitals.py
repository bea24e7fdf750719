"""Signs of life of one VPP process: its end is told at once, its API answers, its sockets are emptied."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable

from ipsec_gw.errors import EngineUnavailable
from vpp_conf.evidence import threads
from vpp_conf.paths import VppPaths
from vpp_conf.process import ProcessId, recorded
from vpp_conf.raw_api import RawApi
from vpp_conf.recorder import Recorder
from vpp_conf.traffic import TrafficReader


class VppVitals:
    """Watches the VPP process that the API client is connected to. Use :meth:`open`, and :meth:`close` it.

    Only a VPP that this gateway's runtime directory has recorded is killed, and by a pidfd: never another process that
    got its number.
    """

    def __init__(
        self, api: RawApi, traffic: TrafficReader, handle: int | None, process: ProcessId, recorder: Recorder
    ) -> None:
        self._api = api
        self._traffic = traffic
        self._handle = handle
        self._process = process
        self._recorder = recorder
        self._threads = ""

    @classmethod
    async def open(cls, paths: VppPaths, process: ProcessId, traffic: TrafficReader, recorder: Recorder) -> VppVitals:
        """Raises EngineUnavailable if the process has ended or does not answer."""
        handle = _pidfd(process) if recorded(paths.pid_file) == process else None
        try:
            return cls(await RawApi.connect(paths.api_socket), traffic, handle, process, recorder)
        except BaseException:
            if handle is not None:
                os.close(handle)
            raise

    def on_end(self, ended: Callable[[], None]) -> None:
        """Call this once the process has ended. Without a recorded process only pings tell it."""
        if self._handle is not None:
            loop, handle = asyncio.get_running_loop(), self._handle

            def told() -> None:
                loop.remove_reader(handle)
                ended()

            loop.add_reader(handle, told)

    async def ping(self) -> None:
        """Return when VPP's main thread has answered. Raises EngineUnavailable when it is gone."""
        await self._api.ping()

    def taken(self) -> int:
        """Packets that VPP took out of its sockets. Raises EngineError if its counters cannot be read."""
        return self._traffic.received()

    def fence(self) -> bool:
        """Kill it, which works on a stopped process too; False if it is not ours to kill."""
        if self._handle is None:
            return False
        self._threads = threads(self._process.pid)
        with contextlib.suppress(ProcessLookupError):  # it was quicker
            signal.pidfd_send_signal(self._handle, signal.SIGKILL)
        return True

    async def look(self) -> None:
        """Write down what VPP shows of itself. Raises EngineUnavailable."""
        await self._recorder.look()

    def evidence(self, why: str) -> str:
        """Keep what is left of it, now that it has ended. Only of a VPP that is ours."""
        return self._recorder.keep(self._process, why, self._threads) if self._handle is not None else ""

    def close(self) -> None:
        """Stop watching."""
        self._api.close()
        if self._handle is not None:
            asyncio.get_running_loop().remove_reader(self._handle)
            os.close(self._handle)
            self._handle = None


def _pidfd(process: ProcessId) -> int:
    try:
        return process.pidfd()
    except ProcessLookupError:
        raise EngineUnavailable(f"VPP (pid {process.pid}) has ended") from None
