"""Looks at a running VPP now and then, so that something is known of it when it dies."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from pathlib import Path

from ipsec_gw.errors import EngineError, EngineUnavailable
from vpp_conf import evidence
from vpp_conf.api import VppApi
from vpp_conf.evidence import SHOWS, THREADS, TRACE
from vpp_conf.paths import VppPaths
from vpp_conf.process import ProcessId


class Recorder:
    """Of the VPP that ``api`` is connected to. What it finds lies beside VPP's files, for whoever finds VPP dead."""

    def __init__(self, paths: VppPaths, api: VppApi) -> None:
        self._paths = paths
        self._api = api

    async def look(self) -> None:
        """Ask VPP for what it shows, and write it down. Raises EngineUnavailable if VPP does not answer."""
        parts = []
        for command in SHOWS:
            try:
                parts.append(f"==== {command}\n{await self._api.cli(command)}\n")
            except EngineUnavailable:
                raise
            except EngineError as error:  # a command that this release does not have
                parts.append(f"==== {command}\n{error}\n")
        await asyncio.to_thread(self._write, "".join(parts))

    def _write(self, shown: str) -> None:
        for path, text in ((self._paths.shown, shown), (self._paths.trace, self._api.trace.text())):
            with suppress(OSError):  # the folder is gone with VPP
                _replace(path, text[-evidence.MOST_BYTES :])

    def keep(self, process: ProcessId, why: str, threads: str) -> str:
        """Keep evidence of a process that has ended. Where it is, or nothing if there is no need or no room."""
        texts = {TRACE: self._api.trace.text()} | ({THREADS: threads} if threads else {})
        try:
            kept = evidence.keep(self._paths, process, why, texts)
        except OSError:
            return ""
        return str(kept.path) if kept else ""


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.touch(mode=0o600)
    partial.write_text(text)
    partial.replace(path)
