"""Carry a plan out, one operation at a time; a failing object never holds up the others."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from ipsec_gw.errors import IpsecGwError, Untouched
from ipsec_gw.model.objects import (
    EngineSa,
    Exempt,
    Guard,
    HostsLead,
    InterfaceEntry,
    InterfaceLead,
    Lead,
    ManagedObject,
    NextHop,
    ObjectKey,
    Overlay,
    Steer,
    Tunnel,
)
from ipsec_gw.reconcile.delta import DeltaTracker
from ipsec_gw.reconcile.plan import Action, Op
from ipsec_gw.reconcile.record import Outcome, Record, Step

Sleep = Callable[[float], Awaitable[None]]


class Driver(Protocol):
    """Puts objects of some kinds in place. Every call raises IpsecGwError on refusal and changes nothing then."""

    async def create(self, obj: ManagedObject) -> None:
        """Put a new object in place."""

    async def update(self, obj: ManagedObject) -> None:
        """Replace the object with the same key."""

    async def delete(self, obj: ManagedObject) -> None:
        """Take the object away."""


class Drivers:
    """Which driver is responsible for which kind of object."""

    def __init__(
        self, *, engine: Driver, guard: Driver, steer: Driver, lead: Driver, hosts: Driver, interface: Driver
    ) -> None:
        self._by_kind: dict[type, Driver] = {
            EngineSa: engine,
            NextHop: engine,
            Tunnel: engine,
            Overlay: engine,
            Guard: guard,
            Steer: steer,
            Lead: lead,
            Exempt: lead,
            HostsLead: hosts,
            InterfaceEntry: interface,
            InterfaceLead: interface,
        }

    def of(self, obj: ManagedObject) -> Driver:
        """The driver of this object."""
        return self._by_kind[type(obj)]


class Executor:
    """Runs plans. ``drain_seconds`` is how long steered packets may linger in the rings after their entry is gone."""

    def __init__(
        self,
        drivers: Drivers,
        tracker: DeltaTracker[ObjectKey, ManagedObject],
        *,
        drain_seconds: float = 0.05,
        sleep: Sleep = asyncio.sleep,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._drivers = drivers
        self._tracker = tracker
        self._drain_seconds = drain_seconds
        self._sleep = sleep
        self._clock = clock

    async def run(self, operations: Sequence[Op], same_engine: Callable[[], bool]) -> Record:
        """Carry the operations out in order, note each success in the tracker and return what came of them.

        Nothing is steered any more once ``same_engine`` tells that the engine they were planned for has gone: another
        one, or the same after a restart, has none of its SAs.
        """
        started = self._clock()
        failed: set[ObjectKey] = set()
        steps = [await self._step(op, failed, same_engine) for op in operations]
        now = self._clock()
        return Record(at=now, seconds=now - started, steps=tuple(steps))

    async def _step(self, op: Op, failed: set[ObjectKey], same_engine: Callable[[], bool]) -> Step:
        if op.obj is None:
            await self._sleep(self._drain_seconds)
            return Step(op, Outcome.DONE)
        if not (failed.isdisjoint(op.needs) and failed.isdisjoint(op.frees)):
            obstacles = (op.needs | op.frees) & failed
            failed.add(op.obj.key)
            return Step(op, Outcome.SKIPPED, f"an earlier step failed for {', '.join(sorted(map(str, obstacles)))}")
        if isinstance(op.obj, Steer) and op.action is not Action.DELETE and not same_engine():
            failed.add(op.obj.key)
            return Step(op, Outcome.FAILED, "the engine was lost meanwhile")
        try:
            await self._apply(op.action, op.obj)
        except IpsecGwError as error:
            failed.add(op.obj.key)
            return Step(op, Outcome.FAILED, str(error), torn=not isinstance(error, Untouched))
        self._tracker.done(op.obj.key, None if op.action is Action.DELETE else op.obj)
        return Step(op, Outcome.DONE)

    async def _apply(self, action: Action, obj: ManagedObject) -> None:
        driver = self._drivers.of(obj)
        match action:
            case Action.CREATE:
                await driver.create(obj)
            case Action.UPDATE:
                await driver.update(obj)
            case Action.DELETE:
                await driver.delete(obj)
            case Action.DRAIN:
                raise ValueError("a drain has no object")
