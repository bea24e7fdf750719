"""What a running VPP really is like, to be compared with what it was started with."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from stat import S_IMODE

from ipsec_gw.errors import EngineError
from vpp_conf.api import VppApi
from vpp_conf.crypto import COLOURS, HANDLER_NAMES, parse_handlers
from vpp_conf.descriptors.af_xdp import Reception
from vpp_conf.descriptors.interface import RX_MODES, interfaces
from vpp_conf.locate import VppInstallation
from vpp_conf.paths import VppPaths
from vpp_conf.permissions import group_name
from vpp_conf.process import PROC
from vpp_conf.show_text import parse_assigned, parse_buffer_page, parse_heap_page, parse_zero_copy
from vpp_conf.startup.expectation import (
    Check,
    Expectation,
    Observation,
    Sockets,
    compare,
    expectation_from_json,
)
from vpp_conf.startup.files import Files
from vpp_conf.startup.probe import ROOT
from vpp_conf.startup.values import SocketPlan

PLUGIN_ROW = re.compile(r"^\s*\d+\.\s+(\S+)\s", re.MULTILINE)
ENGINE_ROW = re.compile(r"^(?P<name>[a-z]\w*)\s+\d+\s", re.MULTILINE)
POOL_ROW = re.compile(
    r"^default-numa-\d+\s+(?P<index>\d+)\s+(?P<node>\d+)\s+\d+\s+(?P<data>\d+)\s+(?P<total>\d+)\s", re.MULTILINE
)
POLL_SECONDS = 0.1
MAIN_THREAD = "vpp_main"
WORKER_PREFIX = "vpp_wk_"
QAT_PLUGIN = "dpdk_plugin.so"
ASSIGNMENT = "show dpdk cryptodev assignment"
ALL_INTERFACES = 0xFFFFFFFF
MAIN = 0
"""The number of the main thread."""
MODE_NAMES = {number: mode.value for mode, number in RX_MODES.items()}
MACHINE = Files(ROOT)
CORE_LIMIT = re.compile(r"^Max core file size\s+(?P<soft>\S+)", re.MULTILINE)


async def check_startup(paths: VppPaths, installation: VppInstallation, patience: float = 0.0) -> tuple[Check, ...]:
    """Compare the running VPP with the plan that it was started with.

    VPP may answer before it has run its commands: for ``patience`` seconds what does not hold yet is looked at again.
    Raises EngineError if that plan is not there or not readable, EngineUnavailable if VPP does not answer.
    """
    planned = read_expectation(paths)
    api = VppApi(paths.api_socket, installation.api_dir)
    await api.connect()
    try:
        deadline = time.monotonic() + patience
        while True:
            checks = compare(planned, await observe(api, paths))
            if all(check.holds for check in checks) or time.monotonic() >= deadline:
                return checks
            await asyncio.sleep(POLL_SECONDS)
    finally:
        await api.close()


def read_expectation(paths: VppPaths) -> Expectation:
    """What the VPP of a folder was started with. Raises EngineError if that is not there or not readable."""
    try:
        return expectation_from_json(paths.plan.read_text())
    except (OSError, ValueError) as error:
        raise EngineError(
            f"{paths.plan} cannot be read ({error}) - `ipsec-gw vpp down` and `up` write it anew"
        ) from None


def planned_reception(paths: VppPaths) -> Reception:
    """How AF_XDP interfaces are to get their packets; as VPP has it, and by interrupts, where no plan tells."""
    try:
        planned = read_expectation(paths)
    except EngineError:
        return Reception()
    return Reception(planned.rx_mode, {name: one.placement for name, one in planned.interfaces.items()})


async def observe(api: VppApi, paths: VppPaths, files: Files = MACHINE) -> Observation:
    """Ask for threads and interfaces by the API and the kernel where threads run; the rest by the CLI, no message tells
    it. ``files`` are those of the machine.
    """
    threads = (await api.call("show_threads")).thread_data
    pinned = {str(thread.name): _pinned(int(thread.pid)) for thread in threads}
    workers = sorted(cpu for name, cpu in pinned.items() if name.startswith(WORKER_PREFIX) and cpu is not None)
    handlers = parse_handlers(await api.cli("show crypto handlers"))
    plugins = parse_plugins(await api.cli("show plugins"))
    buffers, data_bytes = parse_buffers(await api.cli("show buffers"))
    return Observation(
        main_core=pinned.get(MAIN_THREAD),
        workers=tuple(workers),
        engines=parse_engines(await api.cli("show crypto engines")),
        handlers={HANDLER_NAMES[algorithm]: engine for algorithm, engine in handlers.items()},
        plugins=plugins,
        buffers=buffers,
        data_bytes=data_bytes,
        buffer_page=parse_buffer_page(await api.cli("show physmem")),
        heap_page=parse_heap_page(await api.cli("show memory map")),
        queue_pairs=parse_assigned(await api.cli(ASSIGNMENT)) if QAT_PLUGIN in plugins else None,
        online=files.cpu_list("sys/devices/system/cpu/online"),
        interfaces=await _sockets_on(api),
        sockets=_permissions(paths),
        dumps=_dumps(api.process.pid),
    )


async def _sockets_on(api: VppApi) -> Mapping[str, Sockets]:
    """AF_XDP interfaces by the kernel's names."""
    placements = await api.dump("sw_interface_rx_placement_dump", sw_if_index=ALL_INTERFACES)
    zero_copy = parse_zero_copy(await api.cli("show hardware-interfaces"))
    found = {}
    for interface in (await interfaces(api)).values():
        name = interface.name.removeprefix("xdp-")
        if name != interface.name and name in zero_copy:
            rows = [row for row in placements if row.sw_if_index == interface.sw_if_index]
            modes = frozenset(MODE_NAMES.get(int(row.mode), "another mode") for row in rows)
            # The dump has numbers of threads, where the request to place a queue has numbers of workers.
            threads = sorted((int(row.queue_id), int(row.worker_id)) for row in rows if row.worker_id > MAIN)
            found[name] = Sockets(len(rows), modes, zero_copy[name], tuple(thread - 1 for _, thread in threads))
    return found


def _permissions(paths: VppPaths) -> Mapping[str, str]:
    found = {}
    for path in paths.sockets:
        with suppress(OSError):
            status = path.stat()
            found[path.name] = SocketPlan(path.name, S_IMODE(status.st_mode), group_name(status.st_gid)).permissions
    return found


def _dumps(pid: int) -> bool:
    """A limit of 1 byte is none (:data:`vpp_conf.process.NO_CORE`). prlimit(2) may refuse where the file is read."""
    found = CORE_LIMIT.search(Files(PROC).text(f"{pid}/limits") or "")
    return found is not None and found["soft"] not in ("0", "1")


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
