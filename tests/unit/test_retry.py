"""Bounded retry: each failed object for itself, ever less often, and nobody polls meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from ipsec_gw.desired import Owner, desired
from ipsec_gw.errors import EngineError, XfrmError
from ipsec_gw.model.ids import SaKey
from ipsec_gw.model.objects import EngineSa, ManagedObject, NextHop, ObjectKey, Steer, SteerKey, Tunnel
from ipsec_gw.model.snapshot import Snapshot
from ipsec_gw.reconcile.loop import reconcile_forever
from ipsec_gw.reconcile.plan import Action, Op, plan
from ipsec_gw.reconcile.retry import FIRST_SECONDS, LONGEST_SECONDS, Retries, Waiting, split
from tests.support.world import LOCAL, OFFER, REMOTE, SETTINGS, established, policy, sa, snapshot
from tests.unit.test_loop import IN, OUT, TUNNEL, World, join_anew

SHORT, LONG = 0.5, 5.0


HOP = NextHop(REMOTE, LOCAL, "wan0", REMOTE, "02:00:00:00:00:02")
STEER = Steer(SteerKey(IN))
PUT_HOP, PUT_IN, DROP_IN = Op(Action.CREATE, HOP), Op(Action.UPDATE, STEER), Op(Action.DELETE, STEER)


def test_an_object_that_fails_for_good_is_tried_ever_less_often() -> None:
    retries, now, gaps = Retries(), 0.0, []
    for _ in range(10):
        retries.failed(PUT_HOP, "no", now)
        due = retries.next(now)
        assert due is not None
        assert retries.waiting(due - 0.001) == Waiting({REMOTE: "no"}, {})
        assert retries.waiting(due) == Waiting()
        gaps.append(due - now)
        now = due
    assert gaps[:4] == [FIRST_SECONDS * n for n in (1, 2, 4, 8)]
    assert gaps[-1] == LONGEST_SECONDS
    retries.succeeded(PUT_HOP)
    retries.failed(PUT_HOP, "again", now)
    assert retries.next(now) == now + FIRST_SECONDS, "after a success it begins anew"


def test_objects_wait_each_for_itself_and_are_forgotten_when_nobody_wants_them() -> None:
    retries, key = Retries(), SteerKey(IN)
    retries.failed(PUT_HOP, "one", 0.0)
    retries.failed(DROP_IN, "two", 0.3)
    assert retries.waiting(0.6) == Waiting({}, {key: "two"})
    assert retries.next(0.0) == FIRST_SECONDS
    retries.settle({REMOTE}, {key})
    assert retries.waiting(0.4) == Waiting({REMOTE: "one"}, {key: "two"})
    retries.settle({key}, {key})
    assert retries.waiting(0.4) == Waiting({}, {key: "two"})
    retries.settle({key}, {REMOTE})
    assert retries.waiting(0.4) == Waiting()
    assert retries.next(0.4) is None


def test_what_waits_to_be_put_in_place_is_removed_at_once_and_the_other_way_round() -> None:
    waiting = Waiting({SteerKey(IN): "no"})
    assert split((PUT_IN,), waiting) == ((), (PUT_IN,))
    assert split((DROP_IN,), waiting) == ((DROP_IN,), ())
    waiting = Waiting(removals={SteerKey(IN): "no"})
    assert split((PUT_IN,), waiting) == ((PUT_IN,), ())
    assert split((DROP_IN, PUT_IN), waiting) == ((), (DROP_IN, PUT_IN)), "it would be there still"


def operations() -> tuple[Op, ...]:
    return plan(desired(OFFER, SETTINGS, established()).objects, {})


def kinds(chosen: tuple[Op, ...]) -> list[str]:
    return [type(op.obj).__name__ for op in chosen]


def test_what_waits_holds_back_what_needs_it_and_nothing_else() -> None:
    now, later = split(operations(), Waiting({REMOTE: "no"}))
    assert kinds(later) == ["NextHop", "Tunnel", "Steer", "Lead"]
    assert kinds(now) == ["Guard", "EngineSa", "EngineSa"]
    now, later = split(operations(), Waiting({SteerKey(IN): "no"}))
    assert kinds(later) == ["Steer"]
    assert split(operations(), Waiting()) == (operations(), ())
    removal = plan({}, desired(OFFER, SETTINGS, established()).objects)
    now, later = split(removal, Waiting(removals={TUNNEL: "no"}))
    assert kinds(later) == ["Tunnel", "EngineSa", "EngineSa", "NextHop", "Guard"]


def test_a_drain_alone_is_no_work() -> None:
    drained = (DROP_IN, Op(Action.DRAIN, None))
    assert split(drained, Waiting()) == (drained, ())
    assert split(drained, Waiting(removals={SteerKey(IN): "no"})) == ((), drained[:1])


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def timed() -> tuple[World, Clock]:
    clock = Clock()
    world = join_anew(clock)
    await world.link.open()
    return world, clock


def count_calls(world: World, monkeypatch: pytest.MonkeyPatch, key: ObjectKey) -> list[str]:
    """Attempts to put this object into the engine."""
    tried: list[str] = []
    create = world.engine.create

    async def watched(obj: ManagedObject) -> None:
        assert isinstance(obj, EngineSa | NextHop | Tunnel)
        if obj.key == key:
            tried.append(str(key))
        await create(obj)

    monkeypatch.setattr(world.engine, "create", watched)
    return tried


async def test_an_inbound_sa_that_the_engine_refuses_is_tried_again_with_growing_patience(
    timed: tuple[World, Clock], monkeypatch: pytest.MonkeyPatch
) -> None:
    world, clock = timed
    tried = count_calls(world, monkeypatch, IN)
    world.engine.refuses.add(IN)
    await world.show(established())
    assert len(tried) == 1
    assert world.reasons()[IN.spi][0] is Owner.KERNEL
    assert "tried again" in world.reasons()[IN.spi][1]
    gaps = []
    for attempt in range(2, 6):
        await world.reconciler.run_pass()  # what failed may be half done: one more look, without an attempt
        assert len(tried) == attempt - 1
        rest = world.reconciler.rest(0.01, 1000.0)
        gaps.append(round(rest, 3))
        clock.now += rest
        await world.reconciler.run_pass()
        assert len(tried) == attempt, "its time has come"
    assert gaps == [0.5, 1.0, 2.0, 4.0]
    world.engine.refuses.clear()
    clock.now += 1000
    await world.reconciler.run_pass()
    assert IN in world.engine.objects


async def test_steering_that_fails_is_tried_again_and_the_tunnel_carries_on(timed: tuple[World, Clock]) -> None:
    world, clock = timed
    world.steer.refuses.add(SteerKey(IN))
    await world.show(established())
    assert TUNNEL in world.engine.objects, "outbound is accelerated"
    assert world.maps.claimed() == {OUT}
    assert not world.reconciler.in_sync
    world.steer.refuses.clear()
    await world.reconciler.run_pass()
    assert world.steer.objects == {}, "not before its time"
    clock.now += FIRST_SECONDS
    await world.reconciler.run_pass()
    assert SteerKey(IN) in world.steer.objects
    assert world.reconciler.in_sync


async def test_rest_is_short_while_something_can_be_done_and_long_in_sync(timed: tuple[World, Clock]) -> None:
    world, clock = timed
    assert world.reconciler.rest(SHORT, LONG) == SHORT, "nothing was read yet"
    world.engine.refuses.add(REMOTE)
    await world.show(established())
    assert world.reconciler.rest(SHORT, LONG) == SHORT, "what failed may be half done"
    await world.reconciler.run_pass()
    clock.now += 0.1
    assert world.reconciler.rest(0.01, LONG) == pytest.approx(FIRST_SECONDS - 0.1)
    assert world.reconciler.rest(0.01, 0.2) == 0.2, "never longer than it is looked again in any case"
    world.engine.refuses.clear()
    await world.show(Snapshot())
    assert world.reconciler.rest(SHORT, LONG) == LONG
    await world.show(established(next_hops={}))
    assert world.reconciler.rest(SHORT, LONG) == SHORT, "the peer's MAC comes without an event"


async def test_a_failure_for_good_costs_few_passes(timed: tuple[World, Clock], monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop itself, on a clock that its own waiting moves: a hundred seconds, one object that always fails."""
    world, clock = timed
    world.steer.refuses.add(SteerKey(IN))
    world.source.now = established()
    world.kernel.sas = {one.key: one for one in world.source.now.sas}
    passes = await run_for(world, clock, 100.0, monkeypatch)
    assert world.maps.claimed() == {OUT}
    attempts = [s for r in world.reconciler.history for s in r.steps if isinstance(s.op.obj, Steer)]
    assert 7 <= len(attempts) <= 9, "0.5, 1, 2, 4 ... seconds apart"
    assert passes < 100 / 5 + 3 * len(attempts)


async def test_an_unreadable_world_is_looked_at_ever_less_often(
    timed: tuple[World, Clock], monkeypatch: pytest.MonkeyPatch
) -> None:
    world, clock = timed

    async def refuse() -> Snapshot:
        raise XfrmError("no")

    monkeypatch.setattr(world.source, "snapshot", refuse)
    assert await run_for(world, clock, 100.0, monkeypatch) < 30


async def test_dirty_means_at_once(timed: tuple[World, Clock], monkeypatch: pytest.MonkeyPatch) -> None:
    world, clock = timed
    dirty = asyncio.Event()

    def twice() -> None:
        if clock.now < 101.0:
            clock.now = 101.0
            dirty.set()

    slept = await run_for(world, clock, 5.0, monkeypatch, dirty, twice)
    assert slept == 2


async def run_for(
    world: World,
    clock: Clock,
    seconds: float,
    monkeypatch: pytest.MonkeyPatch,
    dirty: asyncio.Event | None = None,
    after_pass: Callable[[], None] = lambda: None,
) -> int:
    """How many passes the loop makes in this time of the virtual clock."""
    dirty = dirty or asyncio.Event()
    end, passes = clock.now + seconds, 0

    class Ended(Exception):
        pass

    class Timeout:
        def __init__(self, delay: float) -> None:
            self.delay = delay

        async def __aenter__(self) -> None:
            if dirty.is_set():
                return
            clock.now += self.delay
            if clock.now >= end:
                raise Ended
            raise TimeoutError

        async def __aexit__(self, *_exc: object) -> None:
            pass

    def counted() -> None:
        nonlocal passes
        passes += 1
        after_pass()

    monkeypatch.setattr("ipsec_gw.reconcile.loop.asyncio.timeout", Timeout)
    with pytest.raises(Ended):
        await reconcile_forever(world.reconciler, dirty, after_pass=counted)
    return passes


async def test_a_distrust_while_everything_is_read_is_not_lost(
    timed: tuple[World, Clock], monkeypatch: pytest.MonkeyPatch
) -> None:
    world, _ = timed
    retrieve = world.engine.retrieve

    async def disturbed() -> object:
        found = await retrieve()
        world.reconciler.distrust()
        return found

    monkeypatch.setattr(world.engine, "retrieve", disturbed)
    await world.show(Snapshot())
    assert not world.reconciler.in_sync
    monkeypatch.undo()
    await world.reconciler.run_pass()
    assert world.reconciler.in_sync


async def test_everything_is_read_again_after_it_could_not_be_read(
    timed: tuple[World, Clock], monkeypatch: pytest.MonkeyPatch
) -> None:
    world, _ = timed
    await world.show(established())
    world.reconciler.distrust()

    async def refuse() -> object:
        raise EngineError("no dump")

    monkeypatch.setattr(world.engine, "retrieve", refuse)
    with pytest.raises(EngineError):
        await world.reconciler.run_pass()
    assert not world.reconciler.in_sync
    monkeypatch.undo()
    assert (await world.reconciler.run_pass()).steps == ()
    assert world.reconciler.in_sync


async def test_a_lead_that_was_half_made_goes_before_the_guard_opens(timed: tuple[World, Clock]) -> None:
    """The driver refused and left something: only reading it all again shows it."""
    world, _ = timed
    create = world.lead.create

    async def halfway(obj: ManagedObject) -> None:
        await create(obj)
        raise EngineError("the second half was refused")

    world.lead.create = halfway  # type: ignore[method-assign]
    open_with_lead: list[bool] = []
    release = world.maps.release

    def watch(key: SaKey) -> None:
        open_with_lead.append(bool(world.lead.objects))
        release(key)

    world.maps.release = watch  # type: ignore[method-assign]
    await world.show(established())
    assert open_with_lead == [False]
    assert world.lead.objects == {}
    assert world.maps.owner == {OUT: "kernel"}


async def test_an_inbound_sa_that_waits_leaves_its_older_sibling_at_work(timed: tuple[World, Clock]) -> None:
    world, _ = timed
    await world.show(established())
    newer = SaKey(LOCAL, 0x33)
    world.engine.refuses.add(newer)
    look = snapshot(
        sa(0x11, inbound=True), sa(0x22), sa(0x33, inbound=True, age=1), sa(0x44, age=1), policies=(policy(0x44),)
    )
    await world.show(look)
    tunnel = world.engine.objects[TUNNEL]
    assert isinstance(tunnel, Tunnel)
    assert (tunnel.inbound, tunnel.outbound) == ((IN,), SaKey(REMOTE, 0x44))
    assert world.reasons()[0x33][0] is Owner.KERNEL
