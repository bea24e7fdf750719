"""Starts and stops an engine that runs only while it is needed, so that no tunnel notices.

Before it is stopped nothing is given to it any more, and everything that it had is taken back; only then its process
ends. What comes meanwhile is the kernel's, and starts it again. What the kernel carries when it starts goes over as
after a failure: by fresh keys.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

import structlog

from ipsec_gw.errors import IpsecGwError
from ipsec_gw.ownership.demand import Demand, Step
from ipsec_gw.ownership.engine_link import EngineLink

LOOK_SECONDS = 0.25

ASLEEP = "VPP is not running: it is started for the first SA that it can carry"
STARTING = "VPP is being started for it"
STOPPING = "VPP is being stopped, nothing has needed it: it is started again for this SA"

log = structlog.get_logger()


class Service(Protocol):
    """The engine's process. Starting and stopping block."""

    def running(self) -> bool:
        """Whether there is one that can be asked."""

    def start(self) -> None:
        """Start it and wait until it answers; one that runs is left as it is. Raises IpsecGwError."""

    def stop(self) -> None:
        """Stop it. Not there is no error. Raises IpsecGwError."""


class Attendant:
    """``needed`` tells whether anything could be carried now, ``empty`` whether the engine holds nothing. ``settle``
    returns when a whole pass of the control loop has begun and ended. ``look`` is called when the engine can be opened,
    ``tell`` with troubles that no caller hears of.
    """

    def __init__(
        self,
        link: EngineLink,
        demand: Demand,
        service: Service,
        *,
        needed: Callable[[], bool],
        empty: Callable[[], bool],
        settle: Callable[[], Awaitable[None]],
        look: Callable[[], None],
        tell: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._link = link
        self._demand = demand
        self._service = service
        self._needed = needed
        self._empty = empty
        self._settle = settle
        self._look = look
        self._tell = tell
        self._clock = clock
        self.busy = False
        link.asleep = ASLEEP

    @property
    def opens(self) -> bool:
        """Whether an engine that is away may be opened now: it runs, and is not about to be stopped."""
        return not self.busy and self._service.running()

    async def run(self) -> None:
        """Attend for ever."""
        while True:
            await self.tick()
            await asyncio.sleep(LOOK_SECONDS)

    async def tick(self) -> None:
        """Look once, and do what has to be done. One that runs and is not open yet is not started once more: opening it
        takes its time.
        """
        if not self._link.up and self._service.running():
            return
        self.busy = True
        try:
            match self._demand.look(self._clock(), needed=self._needed(), runs=self._link.up):
                case Step.START:
                    await self._start()
                case Step.STOP:
                    await self._stop()
                case Step.NOTHING:
                    pass
        finally:
            self.busy = False

    def words(self) -> str:
        """What it does, for people."""
        now = self._clock()
        if self._link.up:
            left = self._demand.stops_in(now)
            return "runs while it is needed" + ("" if left is None else f": nothing needs it, it stops in {left:.0f} s")
        if not self._needed():
            return "runs while it is needed: nothing needs it now"
        wait = self._demand.starts_in(now)
        return "runs while it is needed: " + ("it is being started" if self.busy else f"it is started in {wait:.0f} s")

    async def _start(self) -> None:
        self._link.asleep = STARTING
        log.info("starting VPP: an SA needs it")
        try:
            await asyncio.to_thread(self._service.start)
        except IpsecGwError as error:
            self._link.asleep = f"VPP did not start, and is tried again: {error}"
            self._tell(f"VPP is needed and did not start: {error}")
            return
        self._look()

    async def _stop(self) -> None:
        self._link.rest()
        self._link.asleep = STOPPING
        await self._settle()
        if self._needed() or not self._empty():
            self._look()  # it goes on, and is opened again
            return
        log.info("stopping VPP: nothing needs it")
        await self._link.engine.close()
        try:
            await asyncio.to_thread(self._service.stop)
        except IpsecGwError as error:
            self._tell(f"VPP is not needed and could not be stopped: {error}")
        self._demand.stopped()
        self._link.asleep = ASLEEP
