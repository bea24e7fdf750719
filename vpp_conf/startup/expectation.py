"""What a VPP was started with, kept as a file beside it, and whether the running one is like that. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from vpp_conf.startup.cpu_lists import show_cpus
from vpp_conf.startup.values import InterfacePlan, RxMode, SocketPlan, StartupPlan, count

QAT_ENGINE = "dpdk_cryptodev"
"""The name by which VPP's dpdk plugin registers QAT, with one queue pair for each worker at least."""


@dataclass(frozen=True, slots=True)
class Expectation:
    """What to look for. ``buffers`` are usable ones on all nodes; ``handlers`` are engines by algorithm; pages have
    VPP's names; ``queue_pairs`` are those of QAT that threads should have; ``interfaces`` by the kernel's names.

    ``theirs`` are settings of the operator's: what they decide is not compared.
    """

    main_core: int
    workers: tuple[int, ...]
    engines: tuple[str, ...]
    handlers: Mapping[str, str]
    plugins: tuple[str, ...]
    buffers: int
    data_bytes: int
    buffer_page: str
    heap_page: str
    hugepage_bytes: int
    queue_pairs: int
    rx_mode: RxMode
    interfaces: Mapping[str, InterfacePlan]
    sockets: tuple[SocketPlan, ...]
    theirs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Sockets:
    """AF_XDP sockets on one interface: receive queues, their modes by VPP's names, and whether they copy nothing."""

    queues: int
    modes: frozenset[str]
    zero_copy: bool

    def __str__(self) -> str:
        modes = " and ".join(sorted(self.modes)) or "no mode"
        return f"{count(self.queues, 'queue')}, {modes}, {'zero-copy' if self.zero_copy else 'copies'}"


@dataclass(frozen=True, slots=True)
class Observation:
    """The same of a running VPP. ``main_core`` None: not pinned, nor are workers that are not listed.

    ``handlers`` hold only what could be read; ``buffers`` and others that are None: not readable. ``online`` are the
    machine's CPUs; ``interfaces`` those that VPP has AF_XDP sockets on; ``sockets`` the permissions of those that are
    there; ``dumps``: the process could leave a core dump, which would hold keys.
    """

    main_core: int | None
    workers: tuple[int, ...]
    engines: frozenset[str]
    handlers: Mapping[str, str]
    plugins: frozenset[str]
    buffers: int | None
    data_bytes: int | None
    buffer_page: str | None
    heap_page: str | None
    queue_pairs: int | None
    online: frozenset[int]
    interfaces: Mapping[str, Sockets]
    sockets: Mapping[str, str]
    dumps: bool


@dataclass(frozen=True, slots=True)
class Check:
    """One comparison. ``way_out`` is what to do if it does not hold."""

    name: str
    planned: str
    actual: str
    holds: bool
    way_out: str


def expect(plan: StartupPlan, theirs: frozenset[str]) -> Expectation:
    """What a VPP that was started with this plan has to be like."""
    return Expectation(
        main_core=plan.main_core,
        workers=plan.workers,
        engines=(*plan.engines, QAT_ENGINE) if plan.qat else plan.engines,
        handlers={algorithm: handler.engine for handler in plan.handlers for algorithm in handler.algorithms},
        plugins=plan.plugins,
        buffers=plan.buffers_usable,
        data_bytes=plan.data_bytes,
        buffer_page=plan.buffer_page,
        heap_page=plan.heap_page,
        hugepage_bytes=plan.hugepage_bytes,
        queue_pairs=max(1, len(plan.workers)) if plan.qat else 0,
        rx_mode=plan.rx_mode,
        interfaces={one.name: one for one in plan.interfaces},
        sockets=plan.sockets,
        theirs=tuple(sorted(theirs)),
    )


def expectation_to_json(expectation: Expectation) -> str:
    """For the file beside the running VPP."""
    return json.dumps(asdict(expectation), indent=2) + "\n"


def expectation_from_json(text: str) -> Expectation:
    """The inverse. Raises ValueError for a file of another version or a broken one."""
    try:
        fields: dict[str, Any] = json.loads(text)
        fields |= {name: tuple(fields[name]) for name in ("workers", "engines", "plugins", "theirs")}
        fields["rx_mode"] = RxMode(fields["rx_mode"])
        fields["interfaces"] = {name: InterfacePlan(**one) for name, one in fields["interfaces"].items()}
        fields["sockets"] = tuple(SocketPlan(**one) for one in fields["sockets"])
        return Expectation(**fields)
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"not what a VPP was started with: {error}") from None


def compare(planned: Expectation, actual: Observation) -> tuple[Check, ...]:
    """Everything that both know, whether it holds or not."""
    checks = [
        *_cores(planned, actual),
        _holds_all("plugins", planned.plugins, actual.plugins, "VPP's log names plugins that do not load"),
        *(_engine(name, actual) for name in planned.engines),
        *(
            _check(f"crypto handler {algorithm}", engine, actual.handlers[algorithm], HANDLERS)
            for algorithm, engine in planned.handlers.items()
            if algorithm in actual.handlers
        ),
    ]
    if actual.buffers is not None:
        enough = actual.buffers >= planned.buffers
        checks.append(Check("buffers", f"{planned.buffers} or more", str(actual.buffers), enough, FEW_BUFFERS))
    if actual.data_bytes is not None:
        checks.append(_check("buffers default data-size", str(planned.data_bytes), str(actual.data_bytes), FEW_BUFFERS))
    checks += [*_pages(planned, actual), *_devices(planned, actual), *_permissions(planned, actual)]
    return tuple(check for check in checks if not _is_theirs(check.name, planned.theirs))


def _cores(planned: Expectation, actual: Observation) -> tuple[Check, ...]:
    """Threads of a CPU that goes offline are moved to others, and stay there when it is back."""
    offline = frozenset({planned.main_core, *planned.workers}) - actual.online if actual.online else frozenset()
    way_out = PINNED
    if offline:
        cpu = min(offline)
        way_out = (
            f"CPU {show_cpus(offline)} is offline: echo 1 > /sys/devices/system/cpu/cpu{cpu}/online, start VPP again"
        )
    main = "-" if actual.main_core is None else str(actual.main_core)
    return (
        _check("cpu main-core", str(planned.main_core), main, way_out),
        _check("cpu corelist-workers", show_cpus(planned.workers) or "-", show_cpus(actual.workers) or "-", way_out),
    )


def _pages(planned: Expectation, actual: Observation) -> tuple[Check, ...]:
    pairs = (
        ("buffers page-size", planned.buffer_page, actual.buffer_page),
        ("memory main-heap-page-size", planned.heap_page, actual.heap_page),
    )
    return tuple(_check(name, wanted, found, FEW_BUFFERS) for name, wanted, found in pairs if found is not None)


def _devices(planned: Expectation, actual: Observation) -> tuple[Check, ...]:
    """AF_XDP interfaces that are there, by whoever made them, and QAT's queue pairs."""
    checks = [_interface(planned, name, sockets) for name, sockets in sorted(actual.interfaces.items())]
    if planned.queue_pairs and actual.queue_pairs is not None:
        wanted, found = f"{planned.queue_pairs} in use", f"{actual.queue_pairs} in use"
        enough = actual.queue_pairs >= planned.queue_pairs
        checks.append(Check("dpdk queue pairs", wanted, found, enough, QUEUE_PAIRS))
    return tuple(checks)


def _interface(planned: Expectation, name: str, actual: Sockets) -> Check:
    """One that the plan does not know is virtual, or was added later: its queues are right as they are."""
    known = planned.interfaces.get(name, InterfacePlan(name, actual.queues, zero_copy=False))
    wanted = Sockets(known.queues, frozenset({planned.rx_mode.value}), known.zero_copy)
    return _check(f"af_xdp {name}", str(wanted), str(actual), SOCKETS)


def _permissions(planned: Expectation, actual: Observation) -> tuple[Check, ...]:
    sockets = (
        _check(f"socket {one.name}", one.permissions, actual.sockets.get(one.name, "missing"), PERMISSIONS)
        for one in planned.sockets
    )
    return (*sockets, _check("core dumps", "off", "on" if actual.dumps else "off", DUMPS))


PINNED = "something moved VPP's threads (taskset, a cpuset): leave that to startup.conf"
HANDLERS = "somebody chose another by `set crypto handler`; start VPP again to undo it"
FEW_BUFFERS = "another program took the hugepages meanwhile: ipsec-gw vpp prepare, then start VPP again"
QUEUE_PAIRS = "threads without a queue pair encrypt in software: `show dpdk cryptodev assignment` tells which"
SOCKETS = "the driver or the kernel gave other sockets, or somebody changed queues or mode since: start VPP again"
PERMISSIONS = "somebody changed or removed it: start VPP again"
DUMPS = "a dump would hold keys: `prlimit --core=1 --pid` of VPP, and look who raised the limit"
SETTINGS = {
    "buffers": ("buffers buffers-per-numa", "buffers page-size", "buffers default data-size", "buffers numa"),
    "plugins": ("plugins plugin",),
}
"""Checks that are decided by settings of other names."""


def _is_theirs(name: str, theirs: tuple[str, ...]) -> bool:
    settings = SETTINGS.get(name, (name,))
    if name.startswith("crypto-engines"):
        settings = (name, "crypto-engines default")
    return any(one.startswith(settings) for one in theirs)


def _check(name: str, planned: str, actual: str, way_out: str) -> Check:
    return Check(name, planned, actual, planned == actual, way_out)


def _holds_all(name: str, planned: tuple[str, ...], actual: frozenset[str], way_out: str) -> Check:
    missing = [one for one in planned if one not in actual]
    return Check(name, " ".join(planned), f"without {' '.join(missing)}" if missing else "all", not missing, way_out)


def _engine(name: str, actual: Observation) -> Check:
    """An engine whose instructions the CPU lacks, or QAT with too few queue pairs, is silently not there."""
    there = name in actual.engines
    way_out = "`show dpdk cryptodev assignment` and the kernel's log (vfio) say more"
    if name != QAT_ENGINE:
        way_out = "VPP's log says why it was not registered: a missing package, or a CPU without its instructions"
    return Check(f"crypto-engines {name}", "registered", "registered" if there else "missing", there, way_out)
