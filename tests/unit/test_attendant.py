"""An engine is started for the first SA and stopped after the last one, on a virtual clock."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from ipsec_gw.desired import Owner, Settings, needs_engine
from ipsec_gw.engines.port import Capabilities
from ipsec_gw.errors import EngineUnavailable
from ipsec_gw.gateway import VPP_ABILITIES
from ipsec_gw.model.choices import Choices
from ipsec_gw.model.snapshot import Snapshot
from ipsec_gw.ownership.attendant import ASLEEP, STARTING, Attendant
from ipsec_gw.ownership.demand import FIRST_DELAY, Demand
from ipsec_gw.ownership.engine_link import EngineLink
from tests.support.world import OFFER, SETTINGS, established, policy, sa
from tests.unit.test_loop import OUT, World, join_anew

IDLE = 60.0


class Process:
    """The engine's process as a fake. ``refuses`` is why it does not start."""

    def __init__(self, world: World) -> None:
        self._engine = world.engine
        self._engine.broken = True
        self.refuses = ""
        self.calls: list[str] = []
        self.held: list[int] = []

    def running(self) -> bool:
        return not self._engine.broken

    def start(self) -> None:
        self.calls.append("start")
        if self.refuses:
            raise EngineUnavailable(self.refuses)
        self._engine.restart()
        self._engine.broken = False

    def stop(self) -> None:
        self.calls.append("stop")
        self.held.append(len(self._engine.objects))
        self._engine.broken = True


class Stage:
    """A gateway whose engine is attended; ``now`` is the time."""

    def __init__(self) -> None:
        self.now = 100.0
        self.world = join_anew(lambda: self.now)
        self.world.link._expected = VPP_ABILITIES
        self.process = Process(self.world)
        self.told: list[str] = []
        self.during: Callable[[], Awaitable[None]] | None = None
        self.attendant = Attendant(
            self.world.link,
            Demand(IDLE),
            self.process,
            needed=lambda: self.world.reconciler.needs_engine,
            empty=lambda: self.world.reconciler.empty,
            settle=self._settle,
            look=lambda: None,
            tell=self.told.append,
            clock=lambda: self.now,
        )

    async def _settle(self) -> None:
        if self.during is not None:
            await self.during()
        await self.world.reconciler.run_pass()

    async def show(self, look: Snapshot, seconds: float = 1.0) -> None:
        """A new situation, what the daemon does about it, and time."""
        await self.world.show(look)
        await self.attendant.tick()
        if not self.world.link.up and self.attendant.opens:
            await self.world.link.open()
            self.world.reconciler.distrust()
        await self.world.reconciler.run_pass()
        self.now += seconds


@pytest.fixture
def stage() -> Stage:
    return Stage()


async def test_no_engine_until_the_first_sa_and_none_after_the_last(stage: Stage) -> None:
    for _ in range(5):
        await stage.show(Snapshot(), 1000.0)
    assert stage.process.calls == []
    assert stage.attendant.words() == "runs while it is needed: nothing needs it now"
    await stage.show(established())
    assert stage.process.calls == ["start"]
    assert stage.world.link.up
    assert OUT in stage.world.engine.objects
    assert stage.world.maps.claimed() == {OUT}
    assert stage.attendant.words() == "runs while it is needed"
    await stage.show(Snapshot(), IDLE - 1)
    assert "it stops in 1 s" in stage.attendant.words()
    await stage.show(Snapshot())
    assert stage.process.calls == ["start"], "the idle time is not over"
    await stage.show(Snapshot())
    assert stage.process.calls == ["start", "stop"]
    assert stage.world.empty()
    assert stage.told == []
    await stage.show(established())
    assert stage.process.calls == ["start", "stop", "start"]
    assert OUT in stage.world.engine.objects


async def test_while_there_is_no_engine_the_kernel_carries_and_says_why(stage: Stage) -> None:
    assert stage.world.link.offer.asleep == ASLEEP
    await stage.world.show(established())
    assert stage.world.reasons() == {0x11: (Owner.KERNEL, ASLEEP), 0x22: (Owner.KERNEL, ASLEEP)}
    assert stage.world.maps.owner[OUT] == "kernel", "nobody holds its packets back"
    cbc = established(
        sas=tuple(
            sa(spi, inbound=inbound, aead=None, algorithm="cbc(aes)") for spi, inbound in ((0x11, True), (0x22, False))
        )
    )
    await stage.show(cbc)
    assert {why for _, why in stage.world.reasons().values()} == {"algorithm cbc(aes) is left to the kernel"}
    assert stage.process.calls == []


async def test_what_the_kernel_carried_meanwhile_goes_over_with_a_fresh_key(stage: Stage) -> None:
    await stage.world.show(established())
    stage.world.maps.seen[OUT] = type("Seen", (), {"passed": 3, "dropped": 0})()
    await stage.show(established())
    assert stage.process.calls == ["start"]
    assert OUT not in stage.world.engine.objects
    assert stage.world.refusals.pacer.waiting == {OUT}
    assert stage.world.reconciler.needs_engine, "it runs for the key that comes"


async def test_an_sa_that_comes_while_it_is_being_stopped_is_not_given_to_it(stage: Stage) -> None:
    await stage.show(established())
    await stage.show(Snapshot(), IDLE)
    fresh = established(sas=(sa(0x33, inbound=True), sa(0x44)), policies=(policy(0x44),))

    async def comes() -> None:
        stage.during = None
        await stage.world.show(fresh)

    stage.during = comes
    await stage.show(Snapshot())
    await stage.world.show(fresh)
    assert stage.process.calls == ["start"], "something needs it again: it goes on"
    await stage.show(fresh)
    assert stage.world.link.up
    assert stage.process.calls == ["start"]
    assert len(stage.world.engine.objects) > 0


async def test_it_holds_nothing_when_it_is_stopped(stage: Stage) -> None:
    await stage.show(established())
    await stage.show(Snapshot(), IDLE)
    await stage.show(Snapshot())
    assert stage.process.held == [0]


async def test_one_that_does_not_start_leaves_the_kernel_in_charge_and_is_tried_again(stage: Stage) -> None:
    stage.process.refuses = "no buffers"
    await stage.show(established(), FIRST_DELAY)
    assert stage.told == ["VPP is needed and did not start: no buffers"]
    assert {why for _, why in stage.world.reasons().values()} == {"VPP did not start, and is tried again: no buffers"}
    stage.process.refuses = ""
    await stage.show(established())
    assert stage.process.calls == ["start", "start"]
    assert stage.world.link.up


async def test_one_that_takes_long_to_be_opened_is_started_once(stage: Stage) -> None:
    await stage.world.show(established())
    await stage.attendant.tick()
    for _ in range(100):
        stage.now += FIRST_DELAY
        await stage.attendant.tick()
        assert stage.attendant.opens, "nobody stands in the way of its opening"
    assert stage.process.calls == ["start"]
    assert not stage.world.link.up


async def test_one_that_dies_is_started_again(stage: Stage) -> None:
    await stage.show(established())
    stage.process.stop()
    await stage.world.link.look()
    assert not stage.world.link.up
    assert stage.world.link.losses == 1
    await stage.show(established(), FIRST_DELAY)
    await stage.show(established())
    assert stage.process.calls == ["start", "stop", "start"]


async def test_a_rest_is_no_loss(stage: Stage) -> None:
    await stage.show(established())
    stage.world.link.rest()
    assert (stage.world.link.up, stage.world.link.losses, stage.world.link.offer.absent) == (False, 0, "")


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        (SETTINGS, True),
        (Settings(SETTINGS.wan, Choices(observe=True)), False),
        (Settings(SETTINGS.wan, Choices(kept=frozenset({"site"}))), False),
        (Settings(SETTINGS.wan, Choices(canary=0)), False),
        (Settings(frozenset({"other0"})), False),
    ],
)
def test_only_what_would_be_carried_needs_an_engine(settings: Settings, wanted: bool) -> None:
    for offer in (OFFER, EngineLink(join_anew().engine, VPP_ABILITIES).offer):
        assert needs_engine(offer, settings, established()) is wanted
    assert not needs_engine(OFFER, settings, Snapshot())


def test_what_a_vpp_that_ran_told_of_itself_holds() -> None:
    link = join_anew().link
    link._expected = VPP_ABILITIES
    link.capabilities = Capabilities(frozenset(), True, True, 4096, True, "no engines")
    link.asleep = STARTING
    assert link.offer.absent == ""
    assert not needs_engine(link.offer, SETTINGS, established())
