"""What a running VPP really is like, to be compared with what it was started with."""

from __future__ import annotations

import asyncio
import os
import re
import time

from ipsec_gw.errors import EngineError
from vpp_conf.api import VppApi
from vpp_conf.crypto import COLOURS, HANDLER_NAMES, parse_handlers
from vpp_conf.locate import VppInstallation
from vpp_conf.paths import VppPaths
from vpp_conf.startup.expectation import Check, Observation, compare, expectation_from_json

PLUGIN_ROW = re.compile(r"^\s*\d+\.\s+(\S+)\s", re.MULTILINE)
ENGINE_ROW = re.compile(r"^(?P<name>[a-z]\w*)\s+\d+\s", re.MULTILINE)
POOL_ROW = re.compile(
    r"^default-numa-\d+\s+(?P<index>\d+)\s+(?P<node>\d+)\s+\d+\s+(?P<data>\d+)\s+(?P<total>\d+)\s", re.MULTILINE
)
POLL_SECONDS = 0.1
MAIN_THREAD = "vpp_main"
WORKER_PREFIX = "vpp_wk_"


async def check_startup(paths: VppPaths, installation: VppInstallation, patience: float = 0.0) -> tuple[Check, ...]:
    """Compare the running VPP with the plan that it was started with.

    VPP may answer before it has run its commands: for ``patience`` seconds what does not hold yet is looked at again.
    Raises EngineError if that plan is not there or not readable, EngineUnavailable if VPP does not answer.
    """
    try:
        planned = expectation_from_json(paths.plan.read_text())
    except (OSError, ValueError) as error:
        raise EngineError(
            f"{paths.plan} cannot be read ({error}) - `ipsec-gw vpp down` and `up` write it anew"
        ) from None
    api = VppApi(paths.api_socket, installation.api_dir)
    await api.connect()
    try:
        deadline = time.monotonic() + patience
        while True:
            checks = compare(planned, await observe(api))
            if all(check.holds for check in checks) or time.monotonic() >= deadline:
                return checks
            await asyncio.sleep(POLL_SECONDS)
    finally:
        await api.close()


async def observe(api: VppApi) -> Observation:
    """Ask for threads by the API and the kernel where they run; the rest by the CLI, no message tells it."""
    threads = (await api.call("show_threads")).thread_data
    pinned = {str(thread.name): _pinned(int(thread.pid)) for thread in threads}
    workers = sorted(cpu for name, cpu in pinned.items() if name.startswith(WORKER_PREFIX) and cpu is not None)
    handlers = parse_handlers(await api.cli("show crypto handlers"))
    buffers, data_bytes = parse_buffers(await api.cli("show buffers"))
    return Observation(
        main_core=pinned.get(MAIN_THREAD),
        workers=tuple(workers),
        engines=parse_engines(await api.cli("show crypto engines")),
        handlers={HANDLER_NAMES[algorithm]: engine for algorithm, engine in handlers.items()},
        plugins=parse_plugins(await api.cli("show plugins")),
        buffers=buffers,
        data_bytes=data_bytes,
    )


def _pinned(thread: int) -> int | None:
    """The only CPU that the kernel lets a thread run on, None if there are more. VPP tells only what it asked for."""
    try:
        cpus = os.sched_getaffinity(thread)
    except ProcessLookupError:
        return None
    return next(iter(cpus)) if len(cpus) == 1 else None


def parse_plugins(text: str) -> frozenset[str]:
    """The file names in ``show plugins``."""
    return frozenset(PLUGIN_ROW.findall(text))


def parse_engines(text: str) -> frozenset[str]:
    """The names in ``show crypto engines``."""
    return frozenset(ENGINE_ROW.findall(COLOURS.sub("", text)))


def parse_buffers(text: str) -> tuple[int | None, int | None]:
    """The buffers of all default pools in ``show buffers`` and the size of their data, None if there are none."""
    pools = list(POOL_ROW.finditer(text))
    if not pools:
        return None, None
    return sum(int(pool["total"]) for pool in pools), int(pools[0]["data"])
