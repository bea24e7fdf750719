"""The level-triggered loop: events mark things dirty, passes decide from snapshots (DESIGN.md, invariant 9)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import structlog

from ipsec_gw.desired import MOVED, Desired, Owner, SaVerdict, Settings, desired, needs_engine
from ipsec_gw.engines.port import nothing
from ipsec_gw.errors import IpsecGwError
from ipsec_gw.model.choices import Choices
from ipsec_gw.model.ids import Direction, SaKey
from ipsec_gw.model.objects import (
    AnyLead,
    EngineSa,
    Guard,
    GuardKey,
    HostsLead,
    InterfaceLead,
    Lead,
    ManagedObject,
    ObjectKey,
    Tunnel,
)
from ipsec_gw.model.snapshot import Snapshot
from ipsec_gw.ownership.engine_link import EngineLink
from ipsec_gw.ownership.refusals import Refusals
from ipsec_gw.ownership.unfit import Unnamed, received
from ipsec_gw.ownership.waiting import Carried, carried, had_alone
from ipsec_gw.reconcile.delta import DeltaTracker
from ipsec_gw.reconcile.execute import Executor
from ipsec_gw.reconcile.plan import Action, Op, plan
from ipsec_gw.reconcile.record import History, Outcome, Record, Step
from ipsec_gw.reconcile.retry import Retries, Waiting, split

log = structlog.get_logger()

Retrieve = Callable[[], Awaitable[Mapping[ObjectKey, ManagedObject]]]


class SnapshotSource(Protocol):
    """Takes snapshots."""

    async def snapshot(self) -> Snapshot:
        """One look at strongSwan and the kernel."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """Operations that are due, and those that only `mode` and `canary` stand in the way of."""

    due: tuple[Op, ...]
    observed: tuple[Op, ...]


class Reconciler:
    """One pass: snapshot, desired, plan, execute, record. ``retrieve`` reads all that is in place, engine included.

    ``follow`` is shown every snapshot and the outbound SAs that stay in the kernel, before anything is done.
    ``settings`` may be replaced at any time; ``decided`` are those that the last decision went by.
    """

    def __init__(
        self,
        *,
        source: SnapshotSource,
        link: EngineLink,
        settings: Settings,
        tracker: DeltaTracker[ObjectKey, ManagedObject],
        executor: Executor,
        retrieve: Retrieve,
        refusals: Refusals,
        follow: Callable[[Snapshot, frozenset[SaKey]], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        history: History | None = None,
    ) -> None:
        self._source = source
        self._link = link
        self.settings = settings
        self._tracker = tracker
        self._executor = executor
        self._retrieve = retrieve
        self.refusals = refusals
        self._follow = follow
        self._clock = clock
        self._retries = Retries()
        self._unnamed = Unnamed()
        self.history = history if history is not None else History()
        self.snapshot = Snapshot()
        self.decision = Desired()
        self.decided = settings
        self._stale = True
        self._losses = link.losses
        self.before_pass: Callable[[], Awaitable[None]] = nothing

    @property
    def in_sync(self) -> bool:
        """True if the last pass left nothing to do."""
        return not self._stale and self._tracker.in_sync()

    @property
    def in_place(self) -> Container[ObjectKey]:
        """Keys of what is known to be in place."""
        return self._tracker.in_place

    @property
    def verdicts(self) -> tuple[SaVerdict, ...]:
        """The last decisions, of which those that are not carried out (yet) are pending."""
        in_place = self._tracker.in_place
        return tuple(
            replace(verdict, owner=Owner.PENDING, reason="the engine is to get it, and does not have it yet")
            if verdict.owner is Owner.ENGINE and verdict.sa.key not in in_place
            else verdict
            for verdict in self.decision.verdicts
        )

    @property
    def unresolved(self) -> bool:
        """True while an SA waits for its peer's MAC, or for its name where names decide: the kernel, or charon, was
        asked and answers soon, without an event to us.
        """
        waiting = (v.sa for v in self.decision.verdicts if v.owner is Owner.PENDING and v.direction is Direction.OUT)
        names = self.snapshot.names if self.settings.by_name else None
        return any(
            sa.key.destination not in self.snapshot.next_hops or (names is not None and sa.key.spi not in names)
            for sa in waiting
        )

    def outlook(self, choices: Choices) -> Outlook:
        """What a pass would do now with these decisions, and what more if nothing were only observed. Pure: from the
        last snapshot and from what is known to be in place.
        """
        waiting = self._retries.waiting(self._clock())

        def operations(choices: Choices) -> tuple[Op, ...]:
            settings = replace(self.settings, choices=choices)
            decision = desired(self._link.offer, settings, self.snapshot, self._refused(waiting))
            return plan(decision.objects, self._tracker.in_place)

        due = operations(choices)
        known = set(due)
        return Outlook(due, tuple(op for op in operations(choices.without_observing()) if op not in known))

    def carried(self, key: SaKey) -> Carried | None:
        """An outbound SA of a tunnel that is in place with all of its leads; None for any other."""
        return carried(key, self._tracker.in_place, self.decision.objects)

    def had_alone(self) -> frozenset[SaKey]:
        """SAs whose packets the engine has alone. Looks at all objects."""
        return had_alone(self._tracker.in_place)

    @property
    def moved(self) -> frozenset[SaKey]:
        """SAs that the operator moved to the kernel: nobody asks for their rekeys."""
        return frozenset(v.sa.key for v in self.decision.verdicts if v.reason == MOVED)

    @property
    def needs_engine(self) -> bool:
        """True if there is an SA for the engine, as the last pass saw it, whether the engine is there or not."""
        held = any(isinstance(obj, EngineSa) for obj in self.decision.objects.values())
        return held or needs_engine(self._link.offer, self.decided, self.snapshot)

    @property
    def empty(self) -> bool:
        """True if nothing is known to be in place."""
        return not self._stale and not self._tracker.in_place

    def rest(self, shortest: float, longest: float) -> float:
        """Seconds until the next pass, if nothing gets dirty before: ``shortest`` while something can be done, else
        until the first object that failed may be tried again.
        """
        now = self._clock()
        if self._stale or self.unresolved or self._able(now):
            return shortest
        due = self._retries.next(now)
        return longest if due is None else min(longest, max(due - now, shortest))

    def _able(self, now: float) -> bool:
        """Whether an operation is left that waits for nothing."""
        if self._tracker.in_sync():
            return False
        return bool(split(plan(self._tracker.desired, self._tracker.in_place), self._retries.waiting(now))[0])

    def distrust(self) -> None:
        """Read everything that is in place again at the next pass."""
        self._stale = True

    async def run_pass(self) -> Record:
        """One pass. Errors of single objects are in its record; it raises, and the history tells, if nothing could be
        read.
        """
        try:
            await self.before_pass()
            await self._renew()
            self.snapshot = await self._source.snapshot()
            self._forget_the_dead()
            return await self._converge(self._retries.waiting(self._clock()))
        except IpsecGwError as error:
            self.history.trouble(f"the pass ended early: {error}")
            raise

    async def withdraw(self) -> Record:
        """Take everything away and leave all SAs to the kernel."""
        await self._resync()
        self._tracker.want({})
        return await self._carry_out(plan({}, self._tracker.in_place))

    async def _renew(self) -> None:
        """Read what is in place anew, unless what was read last still holds."""
        if self._stale or not self._same_engine():
            await self._resync()

    async def _resync(self) -> None:
        self._stale = False  # first: a distrust while everything is read must not be lost, and no loss of the engine
        self._losses = self._link.losses
        try:
            self._tracker.resync(await self._retrieve())
        except BaseException:
            self._stale = True
            raise
        in_place = self._tracker.in_place.values()
        claimed = {obj.key.sa for obj in in_place if isinstance(obj, Guard)}
        outbound = {obj.key for obj in in_place if isinstance(obj, EngineSa) and obj.direction is Direction.OUT}
        for key in claimed - outbound:
            # Claimed once and not in the engine now: an earlier life of either may have used the key.
            self.refusals.add(key, "its key may have been used by the engine before: a rekey brings a fresh one")
        for key in outbound - claimed:
            # An engine that was out of reach comes back with what was taken from it meanwhile.
            self.refusals.add(key, "the kernel took it over from the engine: a rekey brings a fresh one")

    def _same_engine(self) -> bool:
        """What was read of it last is still there."""
        return self._link.losses == self._losses

    def _forget_the_dead(self) -> None:
        alive = frozenset(sa.key for sa in self.snapshot.sas)
        self.refusals.settle(alive)
        self._link.forget(alive)

    async def _converge(self, waiting: Waiting) -> Record:
        """Decide and act; decide once more if acting refused an SA, so that nothing is left half in place.

        What failed may be half done: the second time everything in place is read again before.
        """
        refused = len(self._refused_by_acting(waiting))
        record = await self._decide_and_act(waiting)
        waiting = waiting.and_more(self._retries.waiting(self._clock()))
        if len(self._refused_by_acting(waiting)) != refused:
            await self._renew()
            again = await self._decide_and_act(waiting)
            record = Record(again.at, record.seconds + again.seconds, record.steps + again.steps)
        return record

    def _refused(self, waiting: Waiting) -> dict[SaKey, str]:
        """SAs that stay in the kernel: outbound ones for good, inbound ones until they are tried again, or for good if
        the kernel has received too much with them.
        """
        used = received(self.snapshot, self._tracker.in_place)
        return {**used, **self._unnamed.reasons(self.snapshot), **self._refused_by_acting(waiting)}

    def _refused_by_acting(self, waiting: Waiting) -> dict[SaKey, str]:
        inbound = {
            key: f"the engine did not take it, it is tried again: {waiting.puts[key]}"
            for key in self._inbound() & waiting.puts.keys()
        }
        return {**inbound, **self.refusals.reasons()}

    def forsake(self, key: SaKey) -> None:
        """The kernel encrypts with a claimed outbound SA, and no policy names it."""
        self._unnamed.add(self.snapshot, key)

    def _inbound(self) -> set[SaKey]:
        return {sa.key for sa in self.snapshot.sas if sa.key.destination in self.snapshot.local_addresses}

    async def _decide_and_act(self, waiting: Waiting) -> Record:
        self.decided = self.settings
        self.decision = desired(self._link.offer, self.decided, self.snapshot, self._refused(waiting))
        self._tracker.want(self.decision.objects)
        # An inbound SA that waits is not wanted meanwhile, and yet it is tried again.
        self._retries.settle(self.decision.objects.keys() | self._inbound(), self._tracker.in_place)
        if self._follow is not None:
            kept = {
                v.sa.key for v in self.decision.verdicts if v.owner is Owner.KERNEL and v.direction is Direction.OUT
            }
            self._follow(self.snapshot, frozenset(kept))
        now, later = split(plan(self._tracker.desired, self._tracker.in_place), waiting)
        for op in later:
            self._isolate(op, "waits for what failed before")
        return await self._carry_out(now)

    async def _carry_out(self, operations: tuple[Op, ...]) -> Record:
        if not operations:
            return Record(at=time.time(), seconds=0.0, steps=())
        record = await self._executor.run(operations, self._same_engine)
        self.history.add(record)
        spared = _spared(record.failures)
        for step in record.steps:
            self._report(step, spared)
        return record

    def _report(self, step: Step, spared: frozenset[ObjectKey]) -> None:
        if step.outcome is Outcome.DONE:
            log.info("done", op=str(step.op))
            self._retries.succeeded(step.op)
            if isinstance(step.op.obj, Tunnel) and step.op.action is not Action.DELETE:
                self.refusals.pacer.succeed(step.op.obj.remote)
            return
        log.warning(str(step.outcome), op=str(step.op), reason=step.detail)
        if step.torn:
            self.distrust()
        if step.outcome is Outcome.FAILED:
            self._retries.failed(step.op, step.detail, self._clock())
        if step.op.obj is not None and step.op.obj.key not in spared:
            self._isolate(step.op, f"failed: {step.detail}")

    def _isolate(self, op: Op, why: str) -> None:
        """What cannot be put in place stays in the kernel, and one bad object does not hold up the rest.

        A claimed outbound SA without its tunnel or lead would be a black hole, so its tunnel goes as a whole.
        """
        if op.action is Action.DELETE or op.obj is None:
            return
        match op.obj:
            case EngineSa() as sa if sa.direction is Direction.OUT:
                self.refusals.add(sa.key, f"{op} {why}")
            case Tunnel() as tunnel:
                self.refusals.add(tunnel.outbound, f"{op} {why}")
            case Lead() | InterfaceLead() | HostsLead():
                for key in op.needs:
                    user = self.decision.objects.get(key)
                    if isinstance(user, Tunnel):
                        self.refusals.add(user.outbound, f"{op} {why}")
            case _:
                pass


def _spared(failures: Sequence[Step]) -> frozenset[ObjectKey]:
    """Tunnels that were skipped for inbound SAs alone, and leads to them: the next decision does without those SAs. And
    leads of hosts that were skipped for some of their tunnels: it does without these, and exempts them.
    """
    failed = {step.op.obj.key for step in failures if step.op.obj is not None}
    tunnels = [step.op.obj for step in failures if isinstance(step.op.obj, Tunnel)]
    isolated = frozenset[ObjectKey]({key for one in tunnels for key in (one.key, GuardKey(one.outbound))})
    spared: set[ObjectKey] = set()
    for step in failures:
        if step.outcome is Outcome.SKIPPED and isinstance(step.op.obj, Tunnel | AnyLead):
            obstacles = (step.op.needs | step.op.frees) & failed
            harmless = {*step.op.obj.inbound} if isinstance(step.op.obj, Tunnel) else set(spared)
            if isinstance(step.op.obj, HostsLead):
                harmless |= isolated
            if obstacles <= harmless:
                spared.add(step.op.obj.key)
    return frozenset(spared)


async def reconcile_forever(
    reconciler: Reconciler,
    dirty: asyncio.Event,
    *,
    look_again_seconds: float = 5.0,
    retry_seconds: float = 0.5,
    after_pass: Callable[[], None] = lambda: None,
) -> None:
    """Run a pass whenever something is dirty, when what failed may be tried again, and now and then all the same.

    If nothing can be read the passes come ever less often, down to the same now and then.
    """
    patience = retry_seconds
    while True:
        dirty.clear()
        try:
            await reconciler.run_pass()
            delay, patience = reconciler.rest(retry_seconds, look_again_seconds), retry_seconds
        except IpsecGwError as error:
            log.debug("pass failed", reason=str(error), again_in=patience)
            reconciler.distrust()
            delay, patience = patience, min(patience * 2, look_again_seconds)
        after_pass()
        try:
            async with asyncio.timeout(delay):
                await dirty.wait()
        except TimeoutError:
            continue
