"""A whole run of tune: a VPP of its own, measured, and gone again. Blocking."""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ipsec_gw.errors import EngineError, EnvironmentMissing
from vpp_conf import lifecycle
from vpp_conf.api import VppApi
from vpp_conf.lifecycle import VppStatus
from vpp_conf.locate import VppInstallation, locate_vpp
from vpp_conf.paths import VppPaths
from vpp_conf.startup.drop_in import DropIn
from vpp_conf.startup.probe import probe_machine
from vpp_conf.startup.syntax import COMBINED_HANDLERS, show
from vpp_conf.startup.values import Needs
from vpp_conf.tuning.choice import choose
from vpp_conf.tuning.measure import SCHEDULER, Effort, Figures, Progress, measure
from vpp_conf.tuning.values import Tuning, subject_of

FOLDER = "tune"
FIRST = -20
"""The highest priority among ordinary processes (setpriority(2))."""

NEEDS = Needs(sas=64, tunnels=32, sessions=0, workers=0, qat=False)
"""One thread does all: its clocks are what is measured. Memory for a few tunnels."""


@dataclass(frozen=True, slots=True)
class Run:
    """What was found. ``absent`` are pairs of algorithm and engine that this VPP does not have on this CPU."""

    tuning: Tuning
    absent: tuple[tuple[str, str], ...]


def tune(run_dir: Path, effort: Effort, progress: Progress) -> Run:
    """Start a VPP below the runtime directory, measure, stop it. That of the gateway is not touched.

    Raises EnvironmentMissing (no root, no VPP or one that is too old, no engine, no plan for this machine),
    EngineUnavailable (VPP does not start, or dies) or EngineError (a switch that did nothing, another run of tune).
    """
    lifecycle.require_root()
    installation = locate_vpp()
    machine = probe_machine(installation)
    if installation.release < COMBINED_HANDLERS:
        raise EnvironmentMissing(
            f"tune knows the handlers of VPP {show(COMBINED_HANDLERS)} and later, {installation.short_version} is "
            "installed - go without: the plan goes by the CPU's flags then"
        )
    subject = subject_of(machine)
    if not subject.engines:
        raise EnvironmentMissing("VPP has no crypto engine - install vpp-crypto-engines of the official fd.io packages")
    with own_vpp(run_dir) as paths:
        figures = asyncio.run(_measure(paths, installation, subject.engines, effort, progress))
    tuning = Tuning(
        subject=subject,
        measured_at=datetime.now(UTC).replace(microsecond=0),
        clock_hz=figures.clock_hz,
        packets=effort.packets,
        measurements=figures.measurements,
        choices=choose(figures.measurements),
    )
    return Run(tuning, figures.absent)


async def _measure(
    paths: VppPaths, installation: VppInstallation, engines: tuple[str, ...], effort: Effort, progress: Progress
) -> Figures:
    api = VppApi(paths.api_socket, installation.api_dir)
    await api.connect()
    try:
        return await measure(api, installation.release, engines, effort, progress)
    finally:
        await api.close()


def _prefer(state: VppStatus) -> None:
    """Before others on its core: clocks that somebody else had in between are counted as well."""
    if state.pid is not None:
        with suppress(OSError):  # a container may not allow it
            os.setpriority(os.PRIO_PROCESS, state.pid, FIRST)


def _with_scheduler() -> DropIn | None:
    """What the asynchronous way needs, where it is installed."""
    if SCHEDULER not in locate_vpp().plugins():
        return None
    return DropIn("tune", f"plugins {{ plugin {SCHEDULER} {{ enable }} }}\n")


@contextmanager
def own_vpp(run_dir: Path, tuning: Tuning | None = None) -> Iterator[VppPaths]:
    """A VPP with one thread below the runtime directory, started with these handlers.

    Stops what an earlier run that was killed left, and leaves nothing. After a failure the log stays. Raises
    EngineError if another process does the same, and what :func:`vpp_conf.lifecycle.up` raises.
    """
    folder = run_dir / FOLDER
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (run_dir / f"{FOLDER}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise EngineError(f"another run of tune is under way below {run_dir} - wait for it") from None
        lifecycle.down(folder)
        try:
            _prefer(lifecycle.up(folder, needs=NEEDS, drop_in=_with_scheduler(), tuning=tuning))
            yield VppPaths(folder.resolve())
        finally:
            lifecycle.down(folder)
    shutil.rmtree(folder)
