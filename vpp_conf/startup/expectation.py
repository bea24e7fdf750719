"""What a VPP was started with, kept as a file beside it, and whether the running one is like that. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from vpp_conf.startup.cpu_lists import show_cpus
from vpp_conf.startup.values import StartupPlan

QAT_ENGINE = "dpdk_cryptodev"
"""The name by which VPP's dpdk plugin registers QAT, with one queue pair for each worker at least."""


@dataclass(frozen=True, slots=True)
class Expectation:
    """What to look for. ``buffers`` are usable ones on all nodes; ``handlers`` are engines by algorithm.

    ``theirs`` are settings of the operator's: what they decide is not compared.
    """

    main_core: int
    workers: tuple[int, ...]
    engines: tuple[str, ...]
    handlers: Mapping[str, str]
    plugins: tuple[str, ...]
    buffers: int
    data_bytes: int
    theirs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Observation:
    """The same of a running VPP. ``main_core`` None: not pinned, nor are workers that are not listed.

    ``handlers`` hold only what could be read; ``buffers`` None: not readable.
    """

    main_core: int | None
    workers: tuple[int, ...]
    engines: frozenset[str]
    handlers: Mapping[str, str]
    plugins: frozenset[str]
    buffers: int | None
    data_bytes: int | None


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
        return Expectation(**fields)
    except (TypeError, KeyError) as error:
        raise ValueError(f"not what a VPP was started with: {error}") from None


def compare(planned: Expectation, actual: Observation) -> tuple[Check, ...]:
    """Everything that both know, whether it holds or not."""
    checks = [
        _check(
            "cpu main-core", str(planned.main_core), "-" if actual.main_core is None else str(actual.main_core), PINNED
        ),
        _check("cpu corelist-workers", show_cpus(planned.workers) or "-", show_cpus(actual.workers) or "-", PINNED),
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
    return tuple(check for check in checks if not _is_theirs(check.name, planned.theirs))


PINNED = "something moved VPP's threads (taskset, a cpuset): leave that to startup.conf"
HANDLERS = "somebody chose another by `set crypto handler`; start VPP again to undo it"
FEW_BUFFERS = "another program took the hugepages meanwhile: ipsec-gw vpp prepare, then start VPP again"
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
