"""Watches the engine's process: notices its death at once, and ends one that hangs before the kernel takes over."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Protocol

import structlog

from ipsec_gw.engines.port import Vitals
from ipsec_gw.errors import EngineError, EngineUnavailable, IpsecGwError
from ipsec_gw.ownership.engine_link import EngineLink
from ipsec_gw.ownership.watchdog import Watchdog

LOOKS_PER_BOUND = 10
"""A hang is noticed a tenth of the bound late at most."""

SILENT_SHARE = 0.6
"""Of the bound, this is silence. The rest is for the look that comes late and for the kernel of the machine to take a
killed process apart: 10 to 100 ms for the memory that a VPP has."""

LOOK_SECONDS = 60.0
"""Between two looks at what the engine shows of itself: the last one is evidence if it dies."""

AWAY = "it is away"
DYING_SECONDS = 0.5
END_SECONDS = 10.0
_REST_SECONDS = 0.1

log = structlog.get_logger()


class Switch(Protocol):
    """The part of the steering that a sentry needs."""

    def set_engine(self, on: bool) -> None:
        """Off: what is steered falls to the kernel with the next packet."""

    def handed(self) -> int:
        """Packets given to live sockets of the engine so far."""


class Sentry:
    """Watches whatever process the link has open. ``lost`` is called when the link has lost its engine, ``tell`` with
    what no caller hears of.

    ``bound`` is in seconds: that long after its last sign of life, the tunnels of a hung engine are the kernel's; 0
    leaves hangs alone. A hung engine is first cut off by one write, then killed: it may wake up at any time, and its
    packets cannot be filtered. The kernel takes the numbers over when its sockets are gone, which is after its last
    thread.
    """

    def __init__(
        self,
        link: EngineLink,
        switch: Switch,
        bound: float,
        *,
        lost: Callable[[], None],
        tell: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        look_seconds: float = LOOK_SECONDS,
    ) -> None:
        self._link = link
        self._switch = switch
        self._bound = bound
        self._lost = lost
        self._tell = tell
        self._clock = clock
        self._look_seconds = look_seconds

    async def run(self) -> None:
        """Watch for ever; returns only if the engine has no process of its own."""
        while True:
            if not self._link.up:
                await asyncio.sleep(_REST_SECONDS)
                continue
            try:
                vitals = await self._link.engine.vitals()
                if vitals is None:
                    return
            except EngineUnavailable as error:
                self._lose(str(error))
                continue
            with contextlib.closing(vitals):
                why = await self._watch(vitals)
                self._lose(why)
                if why != AWAY and (where := await asyncio.to_thread(vitals.evidence, why)):
                    self._tell(f"what is left of the engine that was lost is kept in {where}")

    def _lose(self, why: str) -> None:
        """First of all: whatever else is done, the kernel does not wait for it."""
        if self._link.up:
            self._link.lose(why)
            self._lost()

    async def _watch(self, vitals: Vitals) -> str:
        """Until the engine is gone, and why it went."""
        ended = asyncio.Event()
        vitals.on_end(ended.set)
        interval = (self._bound or END_SECONDS) / LOOKS_PER_BOUND
        dog = Watchdog(SILENT_SHARE * self._bound, interval, self._clock())
        async with _beside(self._look_closely(vitals)), _beside(self._ping(vitals, dog, interval)) as pinging:
            while self._link.up:
                if await _within(ended, interval):
                    return "its process has ended"
                if pinging.done():
                    # A process that dies lets go of its connections first, and ends when all are closed.
                    dies = await _within(ended, DYING_SECONDS)
                    return "its process has ended" if dies else str(pinging.exception())
                why = self._look(vitals, dog) if self._bound else ""
                if why and await self._end(vitals, ended, why):
                    return f"it hung and was ended: {why}"
        return AWAY

    async def _look_closely(self, vitals: Vitals) -> None:
        """Without an answer there is nothing to write down: whether that is bad, others tell."""
        while True:
            await asyncio.sleep(self._look_seconds)
            with contextlib.suppress(EngineError):
                await vitals.look()

    async def _ping(self, vitals: Vitals, dog: Watchdog, interval: float) -> None:
        while True:
            await vitals.ping()
            dog.answered(self._clock())
            await asyncio.sleep(interval)

    def _look(self, vitals: Vitals, dog: Watchdog) -> str:
        handed, taken = 0, 0  # as if nothing moved: the API's answers are watched all the same
        try:
            handed, taken = self._switch.handed(), vitals.taken()
        except IpsecGwError as error:
            self._tell(f"the engine's sockets cannot be watched: {error}")
        return dog.look(self._clock(), handed, taken)

    async def _end(self, vitals: Vitals, ended: asyncio.Event, why: str) -> bool:
        self._switch.set_engine(False)
        log.error("engine hangs", reason=why)
        if not vitals.fence():
            self._tell(f"the engine hangs ({why}) and was not started by this gateway: end it by hand")
            self._switch.set_engine(True)
            return False
        if not await _within(ended, END_SECONDS):
            self._tell(f"the hung engine does not end {END_SECONDS:.0f} s after SIGKILL: look at dmesg")
            return False
        return True


async def _within(event: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True


@contextlib.asynccontextmanager
async def _beside(work: Coroutine[Any, Any, None]) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(work)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # seen: the watcher asked for it, or it came too late
