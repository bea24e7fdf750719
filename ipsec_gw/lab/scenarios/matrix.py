"""The matrix: every configuration by strongSwan and the kernel alone, then once more beside ipsec-gw.

What the kernel delivers has to be delivered, the same way (through a tunnel or in clear); what it drops has to be
dropped. Who carries a configuration is checked as well, so that a refusal is one that was meant.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ipsec_gw.errors import IpsecGwError
from ipsec_gw.lab.context import Lab
from ipsec_gw.lab.gateway import PLAIN, GatewayUnderTest, ShownSa
from ipsec_gw.lab.matrix.case import Carrier, Case
from ipsec_gw.lab.matrix.catalogue import chosen
from ipsec_gw.lab.matrix.probes import Fate, Outcome, Range
from ipsec_gw.lab.matrix.sites import Party, Sites
from ipsec_gw.lab.netns import receive_on_one_processor
from ipsec_gw.lab.process import all_of
from ipsec_gw.lab.scenarios.start import gateway_of, start_swan
from ipsec_gw.lab.topology import WAN, Role
from ipsec_gw.lab.traffic import TrafficError
from vpp_conf.locate import locate_vpp

FAILURES = (IpsecGwError, OSError, TimeoutError)
CARRIED_SECONDS = 15.0
"""How long ipsec-gw may take until a configuration is carried as expected: a first SA may have to be rekeyed."""

POLL_SECONDS = 0.1
TOLD = 4
"""Differences of a configuration that its check tells."""


@dataclass(frozen=True, slots=True)
class Stage:
    """What became of a configuration's probes at first, or after something happened."""

    what: str
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Course:
    """A configuration's stages, and who carried it; ``failure`` if it did not get to its end."""

    stages: tuple[Stage, ...] = ()
    carriers: tuple[ShownSa, ...] = ()
    failure: str = ""
    seconds: float = 0.0


async def run(lab: Lab) -> None:
    """Play it."""
    cases = chosen(lab.options.cases, lab.options.seed)
    lab.note(f"seed {lab.options.seed}, configurations: {', '.join(case.name for case in cases)}")
    a, b = [
        await start_swan(lab, Party(role, lab.topology.namespace(role))) for role in (Role.GATEWAY_A, Role.GATEWAY_B)
    ]
    gateway = gateway_of(lab, a)
    with lab.step("start two strongSwans"):
        await all_of(a.load(), b.load())
        await receive_on_one_processor(b.site.namespace, WAN)
    lab.strongswan = await a.version()
    if lab.options.engine == "vpp":
        lab.vpp = locate_vpp().version.removeprefix("vpp ").split()[0]
    sites = Sites(a, b)
    with Range(lab.topology) as probes:
        alone = await _play_all(lab, cases, sites, probes, None)
        with lab.step("start ipsec-gw"):
            await gateway.start()
        for pid in gateway.pids:
            lab.watch_process(pid)
        beside = await _play_all(lab, cases, sites, probes, gateway)
    for case, reference, course in zip(cases, alone, beside, strict=True):
        _judge(lab, case, reference, course)
    with lab.step("ipsec-gw off"):
        await gateway.off()


async def _play_all(
    lab: Lab, cases: Sequence[Case], sites: Sites, probes: Range, gateway: GatewayUnderTest | None
) -> list[Course]:
    with_ = gateway.engine if gateway else "the kernel alone"
    courses = []
    for case in cases:
        with lab.step(f"{case.name}, {with_}"):
            courses.append(await _play(case, sites, probes, gateway))
    return courses


async def _play(case: Case, sites: Sites, probes: Range, gateway: GatewayUnderTest | None) -> Course:
    """From nothing to nothing. What fails is told by the course, and the next configuration has its turn."""
    started = time.monotonic()
    stages: list[Stage] = []
    carriers: tuple[ShownSa, ...] = ()
    failure = ""
    try:
        if gateway is not None and case.gateway:
            await gateway.reload(PLAIN + case.gateway)
        await sites.establish(case, probes)
        for act in (None, *case.acts):
            if act is not None:
                await sites.act(case, act)
            if gateway is not None:
                carriers = await _carried(case, sites, gateway)
            stages.append(Stage(act or "at first", await probes.outcome(case.probes)))
    except FAILURES as error:
        failure = f"{type(error).__name__}: {error}"
    try:
        await sites.abandon(case)
        if gateway is not None:
            await _forgotten(gateway)
        if gateway is not None and case.gateway:
            await gateway.reload(PLAIN)
    except FAILURES as error:
        failure = failure or f"taking it down: {type(error).__name__}: {error}"
    return Course(tuple(stages), carriers, failure, time.monotonic() - started)


async def _forgotten(gateway: GatewayUnderTest) -> None:
    """Until nothing is left of it. Raises TrafficError."""
    end = time.monotonic() + CARRIED_SECONDS
    while await gateway.sas_now() or not await gateway.in_sync():
        if time.monotonic() > end:
            raise TrafficError(f"ipsec-gw still shows SAs after {CARRIED_SECONDS:.0f} s, or is not in sync")
        await asyncio.sleep(POLL_SECONDS)


async def _carried(case: Case, sites: Sites, gateway: GatewayUnderTest) -> tuple[ShownSa, ...]:
    """What `show sas` says once it is as expected and in place, or what it says at last."""
    carrier, _ = case.expected(gateway.engine)
    end = time.monotonic() + CARRIED_SECONDS
    while True:
        sas = await gateway.sas_now()
        known = {(sa.destination, sa.spi) for sa in sas} == {(str(dst), spi) for dst, spi in sites.carried()}
        if known and _as_expected(carrier, gateway.engine, sas) and await gateway.in_sync():
            return sas
        if time.monotonic() > end:
            return sas
        await asyncio.sleep(POLL_SECONDS)


def _as_expected(carrier: Carrier, engine: str, sas: Sequence[ShownSa]) -> bool:
    carried = {sa.direction for sa in sas if sa.state == engine}
    both = {"in", "out"}
    if carrier is Carrier.KERNEL:
        return engine == "kernel" or (not carried and len(sas) == len([sa for sa in sas if sa.state == "kernel"]))
    if carrier is Carrier.ENGINE:
        return carried == both and all(sa.state == engine for sa in sas)
    return (
        carried == both and any(sa.state != engine for sa in sas) and all(sa.reason for sa in sas if sa.state != engine)
    )


def _judge(lab: Lab, case: Case, reference: Course, course: Course) -> None:
    """Two checks: each packet fares alike, and the one carries it who should."""
    engine = lab.options.engine
    failure = "; ".join(
        f"{who}: {one.failure}" for who, one in (("kernel alone", reference), (engine, course)) if one.failure
    )
    differences = [
        f"{stage.what}: {probe}: {was} by the kernel alone, {now}"
        for stage, other in zip(reference.stages, course.stages, strict=False)
        for probe, was, now in zip(case.probes, stage.outcome.fates, other.outcome.fates, strict=True)
        if was is not now
    ]
    differences += [
        f"{stage.what}: {one} {'by the kernel alone' if one in stage.outcome.classes else f'by {engine}'}"
        for stage, other in zip(reference.stages, course.stages, strict=False)
        for one in sorted(stage.outcome.classes ^ other.outcome.classes)
    ]
    told = "; ".join([*differences[:TOLD], *([f"{len(differences) - TOLD} more"] if differences[TOLD:] else [])])
    counts = Counter(fate for stage in reference.stages for fate in stage.outcome.fates)
    says_something = bool(counts[Fate.TUNNEL]) is case.tunnels
    same = not failure and not differences and len(reference.stages) == len(course.stages) == 1 + len(case.acts)
    lab.check(
        f"{case.name}: {case.about}: packets fare as with the kernel alone",
        same and says_something,
        ", ".join(f"{count} {fate}" for fate, count in sorted(counts.items())),
        failure or told or ("the same" if says_something else "nothing went through a tunnel"),
    )
    carrier, reason = case.expected(engine)
    reasons = sorted({sa.reason for sa in course.carriers if sa.state != engine and sa.reason})
    states = Counter(sa.state for sa in course.carriers)
    right = _as_expected(carrier, engine, course.carriers) and (not reason or any(reason in one for one in reasons))
    lab.check(
        f"{case.name}: who carries it",
        right or not case.tunnels,
        carrier + (f" ({reason})" if reason else ""),
        ", ".join(f"{count} SAs {state}" for state, count in sorted(states.items()))
        + (f": {'; '.join(reasons)}" if reasons else ""),
    )
