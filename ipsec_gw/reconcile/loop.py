"""The level-triggered loop: events mark things dirty, passes decide from snapshots (DESIGN.md, invariant 9)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

import structlog

from ipsec_gw.desired import Desired, Owner, Settings, desired
from ipsec_gw.errors import IpsecGwError
from ipsec_gw.model.ids import Direction, SaKey
from ipsec_gw.model.objects import EngineSa, Guard, Lead, ManagedObject, ObjectKey, Tunnel
from ipsec_gw.model.snapshot import Snapshot
from ipsec_gw.ownership.engine_link import EngineLink
from ipsec_gw.ownership.refusals import Refusals
from ipsec_gw.reconcile.delta import DeltaTracker
from ipsec_gw.reconcile.execute import Executor
from ipsec_gw.reconcile.plan import Action, Op, plan
from ipsec_gw.reconcile.record import History, Outcome, Record, Step

log = structlog.get_logger()

Retrieve = Callable[[], Awaitable[Mapping[ObjectKey, ManagedObject]]]


class SnapshotSource(Protocol):
    """Takes snapshots."""

    async def snapshot(self) -> Snapshot:
        """One look at strongSwan and the kernel."""


class Reconciler:
    """One pass: snapshot, desired, plan, execute, record. ``retrieve`` reads all that is in place, engine included.

    ``follow`` is shown every snapshot and the outbound SAs that stay in the kernel, before anything is done.
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
    ) -> None:
        self._source = source
        self._link = link
        self._settings = settings
        self._tracker = tracker
        self._executor = executor
        self._retrieve = retrieve
        self.refusals = refusals
        self._follow = follow
        self.history = History()
        self.snapshot = Snapshot()
        self.decision = Desired()
        self._stale = True

    @property
    def in_sync(self) -> bool:
        """True if the last pass left nothing to do."""
        return not self._stale and self._tracker.in_sync()

    @property
    def unresolved(self) -> bool:
        """True while an SA waits for its peer's MAC: the kernel was asked and answers soon, without an event to us."""
        waiting = (v.sa for v in self.decision.verdicts if v.owner is Owner.PENDING and v.direction is Direction.OUT)
        return any(sa.key.destination not in self.snapshot.next_hops for sa in waiting)

    def distrust(self) -> None:
        """Read everything that is in place again at the next pass."""
        self._stale = True

    async def run_pass(self) -> Record:
        """One pass. Errors of single objects are in the record; it raises only if nothing could be read."""
        if self._stale:
            await self._resync()
        self.snapshot = await self._source.snapshot()
        self._forget_the_dead()
        return await self._converge()

    async def withdraw(self) -> Record:
        """Take everything away and leave all SAs to the kernel."""
        await self._resync()
        self._tracker.want({})
        return await self._carry_out(plan({}, self._tracker.in_place))

    async def _resync(self) -> None:
        self._tracker.resync(await self._retrieve())
        self._stale = False
        held = {obj.key.sa for obj in self._tracker.in_place.values() if isinstance(obj, Guard)}
        for key in held - set(self._tracker.in_place):
            # Claimed once and not in the engine now: an earlier life of either may have used the key.
            self.refusals.add(key, "its key may have been used by the engine before: a rekey brings a fresh one")

    def _forget_the_dead(self) -> None:
        alive = frozenset(sa.key for sa in self.snapshot.sas)
        self.refusals.settle(alive)
        self._link.forget(alive)

    async def _converge(self) -> Record:
        """Decide and act; decide once more if acting refused an SA, so that nothing is left half in place."""
        refused = len(self.refusals.reasons())
        record = await self._decide_and_act()
        if len(self.refusals.reasons()) != refused:
            again = await self._decide_and_act()
            record = Record(again.at, record.seconds + again.seconds, record.steps + again.steps)
        return record

    async def _decide_and_act(self) -> Record:
        self.decision = desired(self._link.offer, self._settings, self.snapshot, self.refusals.reasons())
        self._tracker.want(self.decision.objects)
        if self._follow is not None:
            kept = {
                v.sa.key for v in self.decision.verdicts if v.owner is Owner.KERNEL and v.direction is Direction.OUT
            }
            self._follow(self.snapshot, frozenset(kept))
        return await self._carry_out(plan(self._tracker.desired, self._tracker.in_place))

    async def _carry_out(self, operations: tuple[Op, ...]) -> Record:
        if not operations:
            return Record(at=time.time(), seconds=0.0, steps=())
        record = await self._executor.run(operations)
        self.history.add(record)
        for step in record.steps:
            self._report(step)
        return record

    def _report(self, step: Step) -> None:
        if step.outcome is Outcome.DONE:
            log.info("done", op=str(step.op))
            if isinstance(step.op.obj, Tunnel) and step.op.action is not Action.DELETE:
                self.refusals.pacer.succeed(step.op.obj.remote)
            return
        log.warning(str(step.outcome), op=str(step.op), reason=step.detail)
        self._isolate(step)

    def _isolate(self, step: Step) -> None:
        """What cannot be put in place stays in the kernel, and one bad object does not hold up the rest.

        A claimed outbound SA without its tunnel or lead would be a black hole, so its tunnel goes as a whole.
        """
        if step.op.action is Action.DELETE or step.op.obj is None:
            return
        match step.op.obj:
            case EngineSa() as sa if sa.direction is Direction.OUT:
                self._refuse_step(sa.key, step)
            case Tunnel() as tunnel:
                self._refuse_step(tunnel.outbound, step)
            case Lead() as lead:
                for obj in self.decision.objects.values():
                    if isinstance(obj, Tunnel) and lead.key in obj.selectors:
                        self._refuse_step(obj.outbound, step)
            case _:
                pass

    def _refuse_step(self, key: SaKey, step: Step) -> None:
        self.refusals.add(key, f"{step.op} failed: {step.detail}")
        self.distrust()


async def reconcile_forever(
    reconciler: Reconciler,
    dirty: asyncio.Event,
    *,
    look_again_seconds: float = 5.0,
    retry_seconds: float = 0.5,
    after_pass: Callable[[], None] = lambda: None,
) -> None:
    """Run a pass whenever something is dirty, soon again after a failure, and now and then all the same."""
    while True:
        dirty.clear()
        delay = look_again_seconds
        try:
            record = await reconciler.run_pass()
            if record.failures or not reconciler.in_sync or reconciler.unresolved:
                delay = retry_seconds
        except IpsecGwError as error:
            log.error("pass failed", reason=str(error))
            reconciler.distrust()
            delay = retry_seconds
        after_pass()
        try:
            async with asyncio.timeout(delay):
                await dirty.wait()
        except TimeoutError:
            continue
