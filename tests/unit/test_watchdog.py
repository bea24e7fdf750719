"""When an engine is taken for hung, on a virtual clock; and what the sentry does about it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ipsec_gw.errors import EngineError, EngineUnavailable, SteeringError
from ipsec_gw.ownership.engine_link import EngineLink
from ipsec_gw.ownership.sentry import LOOKS_PER_BOUND, SILENT_SHARE, Sentry
from ipsec_gw.ownership.watchdog import STUCK_PACKETS, Watchdog
from tests.support.fakes import FakeEngine

BOUND, INTERVAL = 0.5, 0.05


class Looks:
    """A watchdog that is asked at regular times."""

    def __init__(self) -> None:
        self.now = 100.0
        self.dog = Watchdog(BOUND, INTERVAL, self.now)
        self.handed = self.taken = 0

    def pass_(self, seconds: float, *, answers: bool = True, handed: float = 0, taken: float = 0) -> str:
        """Let time pass; packets come and are taken per second. The first verdict, or nothing."""
        first, begun = "", self.now
        gave, took = self.handed, self.taken
        for step in range(1, round(seconds / INTERVAL) + 1):
            self.now = begun + step * INTERVAL
            self.handed = gave + int(handed * step * INTERVAL)
            self.taken = took + int(taken * step * INTERVAL)
            if answers:
                self.dog.answered(self.now)
            first = first or self.dog.look(self.now, self.handed, self.taken)
        return first


def test_an_engine_that_answers_and_takes_is_well() -> None:
    looks = Looks()
    assert looks.pass_(10.0) == ""
    assert looks.pass_(10.0, handed=1000, taken=900) == ""


def test_no_answer_within_the_bound_is_a_hang_and_not_before() -> None:
    looks = Looks()
    looks.pass_(1.0)
    assert looks.pass_(BOUND, answers=False) == ""
    assert "its API did not answer for 550 ms" in looks.pass_(INTERVAL, answers=False)


def test_whenever_it_stops_there_is_time_left_within_the_bound_to_end_it() -> None:
    """As the sentry asks: pings and looks at a tenth of the bound each, at any distance from each other."""
    interval = BOUND / LOOKS_PER_BOUND
    for phase in range(20):
        for stop in range(20):
            dog = Watchdog(SILENT_SHARE * BOUND, interval, 0.0)
            pings, stopped = phase * interval / 20, 1.0 + stop * interval / 20
            for look in range(1, 100):
                now = look * interval
                answers = min(now, stopped) - (min(now, stopped) - pings) % interval
                dog.answered(max(answers, 0.0))
                if dog.look(now, 0, 0):
                    break
            assert SILENT_SHARE * BOUND - interval < now - stopped <= 0.75 * BOUND


def test_packets_that_nobody_takes_are_a_hang_though_the_api_answers() -> None:
    looks = Looks()
    looks.pass_(1.0, handed=1000, taken=1000)
    assert looks.pass_(BOUND, handed=1000) == ""
    assert "it took none of" in looks.pass_(3 * INTERVAL, handed=1000)


def test_one_worker_that_takes_on_is_no_hang() -> None:
    looks = Looks()
    assert looks.pass_(5.0, handed=10_000, taken=21) == ""


def test_a_few_packets_that_no_socket_takes_tell_nothing_however_long_they_add_up() -> None:
    looks = Looks()
    assert looks.pass_(600.0, handed=STUCK_PACKETS / BOUND / 2) == ""
    assert looks.handed > 100 * STUCK_PACKETS


def test_a_watcher_that_was_held_up_itself_begins_anew() -> None:
    looks = Looks()
    looks.pass_(1.0, handed=1000, taken=1000)
    looks.now += 60.0  # the watcher was stopped
    looks.handed += 50_000
    assert looks.dog.look(looks.now, looks.handed, looks.taken) == ""
    assert looks.pass_(BOUND - INTERVAL, answers=False, handed=1000) == ""
    assert looks.pass_(3 * INTERVAL, answers=False, handed=1000)


class Process:
    """Signs of life of an engine as a test wants them."""

    def __init__(self) -> None:
        self.watched = asyncio.Event()
        self.ended: Callable[[], None] = lambda: None
        self.answers = True
        self.breaks = self.dies_then = False
        self.ours = True
        self.fenced = self.closed = self.looks = 0
        self.kept: list[str] = []

    def on_end(self, ended: Callable[[], None]) -> None:
        self.ended = ended
        self.watched.set()

    async def ping(self) -> None:
        if self.breaks:
            if self.dies_then:
                asyncio.get_running_loop().call_later(0.1, self.ended)
            raise EngineUnavailable("the connection broke")
        if not self.answers:
            await asyncio.Event().wait()

    def taken(self) -> int:
        return 0

    def fence(self) -> bool:
        self.fenced += self.ours
        if self.ours:
            self.ended()
        return self.ours

    async def look(self) -> None:
        self.looks += 1
        raise EngineError("it does not show that")

    def evidence(self, why: str) -> str:
        assert not self.closed
        self.kept.append(why)
        return "/evidence"

    def close(self) -> None:
        self.closed += 1


class Switch:
    def __init__(self, process: Process) -> None:
        self.process = process
        self.log: list[tuple[bool, int]] = []
        self.broken = False

    def set_engine(self, on: bool) -> None:
        self.log.append((on, self.process.fenced))

    def handed(self) -> int:
        if self.broken:
            raise SteeringError("no counters")
        return 0


class Post:
    """A sentry with all that it watches."""

    def __init__(self, bound: float = BOUND) -> None:
        self.engine, self.process = FakeEngine(), Process()
        self.engine.vitals = self._vitals  # type: ignore[method-assign]
        self.switch = Switch(self.process)
        self.link = EngineLink(self.engine)
        self.told: list[str] = []
        self.lost = asyncio.Event()
        self.sentry = Sentry(self.link, self.switch, bound, lost=self.lost.set, tell=self.told.append)

    async def _vitals(self) -> Process:
        return self.process

    async def watching(self) -> None:
        async with asyncio.timeout(10.0):
            await self.process.watched.wait()

    async def until(self, condition: Callable[[], bool]) -> None:
        await self.link.open()
        task = asyncio.create_task(self.sentry.run())
        async with asyncio.timeout(10.0):
            while not condition():
                assert not task.done()
                await asyncio.sleep(0.005)
        task.cancel()
        await asyncio.wait([task])


async def test_the_end_of_the_process_is_a_loss_at_once() -> None:
    post = Post(bound=0.0)
    begun = asyncio.create_task(post.until(lambda: post.process.closed == 1))
    await post.watching()
    post.process.ended()
    await begun
    assert post.link.trouble == "its process has ended"
    assert post.process.kept == ["its process has ended"]
    assert post.told == ["what is left of the engine that was lost is kept in /evidence"]
    assert (post.link.losses, post.process.fenced, post.process.closed, post.switch.log) == (1, 0, 1, [])


async def test_a_hung_engine_is_cut_off_and_then_killed() -> None:
    post = Post(0.05)
    post.process.answers = False
    await post.until(post.lost.is_set)
    assert "it hung and was ended: its API did not answer" in post.link.trouble
    assert post.process.fenced == 1
    assert post.switch.log == [(False, 0)], "first the switch, then the kill"


async def test_a_hung_engine_of_somebody_else_is_told_and_left() -> None:
    post = Post(0.05)
    post.process.answers = post.process.ours = False
    await post.until(lambda: bool(post.told))
    assert "was not started by this gateway" in post.told[0]
    assert post.switch.log[:2] == [(False, 0), (True, 0)]
    assert not post.lost.is_set()


async def test_the_engine_is_looked_at_now_and_then_whatever_it_answers() -> None:
    post = Post()
    post.sentry._look_seconds = 0.01
    await post.until(lambda: post.process.looks >= 3)
    assert post.link.up
    assert post.told == []


async def test_of_an_engine_that_is_put_away_nothing_is_kept() -> None:
    post = Post(0.05)
    begun = asyncio.create_task(post.until(lambda: post.process.closed == 1))
    await post.watching()
    post.link.rest()
    await begun
    assert (post.process.kept, post.told, post.lost.is_set()) == ([], [], False)


async def test_a_broken_connection_is_a_loss() -> None:
    post = Post()
    post.process.breaks = True
    await post.until(post.lost.is_set)
    assert post.link.trouble == "the connection broke"


async def test_a_dying_process_breaks_its_connection_first() -> None:
    post = Post()
    post.process.breaks = post.process.dies_then = True
    await post.until(post.lost.is_set)
    assert post.link.trouble == "its process has ended"


async def test_counters_that_cannot_be_read_leave_the_answers_to_be_watched() -> None:
    post = Post(0.05)
    post.switch.broken = True
    post.process.answers = False
    await post.until(post.lost.is_set)
    assert "did not answer" in post.link.trouble
    assert "cannot be watched" in post.told[0]


async def test_an_engine_without_a_process_is_not_watched() -> None:
    post = Post()

    async def none() -> None:
        return None

    post.engine.vitals = none  # type: ignore[method-assign]
    await post.link.open()
    await asyncio.wait_for(post.sentry.run(), 5.0)
    assert post.link.up


async def test_a_bound_of_nothing_leaves_hangs_alone() -> None:
    post = Post(0.0)
    post.process.answers = False
    begun = asyncio.create_task(post.until(post.lost.is_set))
    await post.watching()
    assert not post.lost.is_set()
    post.process.ended()
    await begun
    assert post.process.fenced == 0
