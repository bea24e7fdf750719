"""An engine that runs only while something needs it, on a virtual clock."""

from __future__ import annotations

import itertools
import random

from ipsec_gw.ownership.demand import FIRST_DELAY, LONGEST_DELAY, STABLE_SECONDS, Demand, Step

IDLE = 60.0


def test_the_first_need_starts_it_at_once_and_nothing_else_does() -> None:
    demand = Demand(IDLE)
    assert demand.look(0.0, needed=False, runs=False) is Step.NOTHING
    assert demand.look(1000.0, needed=False, runs=False) is Step.NOTHING
    assert demand.look(1001.0, needed=True, runs=False) is Step.START


def test_it_is_stopped_an_idle_time_after_the_last_need() -> None:
    demand = Demand(IDLE)
    assert demand.look(0.0, needed=True, runs=True) is Step.NOTHING
    assert demand.stops_in(0.0) is None
    assert demand.look(500.0, needed=True, runs=True) is Step.NOTHING
    assert demand.look(501.0, needed=False, runs=True) is Step.NOTHING
    assert demand.stops_in(511.0) == IDLE - 10.0
    assert demand.look(501.0 + IDLE - 0.001, needed=False, runs=True) is Step.NOTHING
    assert demand.look(501.0 + IDLE, needed=False, runs=True) is Step.STOP


def test_a_need_in_between_begins_the_idle_time_anew() -> None:
    demand = Demand(IDLE)
    demand.look(0.0, needed=False, runs=True)
    demand.look(IDLE - 1, needed=True, runs=True)
    assert demand.look(IDLE, needed=False, runs=True) is Step.NOTHING
    assert demand.look(2 * IDLE - 1, needed=False, runs=True) is Step.NOTHING
    assert demand.look(2 * IDLE, needed=False, runs=True) is Step.STOP


def test_what_comes_while_it_is_stopped_starts_it_without_waiting() -> None:
    demand = Demand(IDLE)
    assert demand.look(0.0, needed=True, runs=False) is Step.START
    demand.look(1.0, needed=False, runs=True)
    assert demand.look(1.0 + IDLE, needed=False, runs=True) is Step.STOP
    demand.stopped()
    assert demand.stops_in(1.0 + IDLE) is None
    assert demand.look(1.0 + IDLE, needed=True, runs=False) is Step.START


def test_an_engine_that_does_not_start_is_tried_ever_less_often() -> None:
    demand, starts = Demand(IDLE), []
    for tenth in range(20_000):
        if demand.look(tenth / 10, needed=True, runs=False) is Step.START:
            starts.append(tenth / 10)
    gaps = [later - earlier for earlier, later in itertools.pairwise(starts)]
    assert gaps[:4] == [FIRST_DELAY, 2 * FIRST_DELAY, 4 * FIRST_DELAY, 8 * FIRST_DELAY]
    assert gaps[-1] == LONGEST_DELAY
    assert demand.starts_in(starts[-1]) == LONGEST_DELAY


def test_an_engine_that_ran_long_and_dies_is_back_soon_and_not_at_once() -> None:
    demand = Demand(IDLE)
    for now in (0.0, 3.0, 9.0):
        assert demand.look(now, needed=True, runs=False) is Step.START
    demand.look(10.0, needed=True, runs=True)
    demand.look(10.0 + STABLE_SECONDS, needed=True, runs=True)
    died = 11.0 + STABLE_SECONDS
    assert demand.look(died, needed=True, runs=False) is Step.NOTHING
    assert demand.look(died + FIRST_DELAY - 0.1, needed=True, runs=False) is Step.NOTHING
    assert demand.look(died + FIRST_DELAY, needed=True, runs=False) is Step.START


def test_any_life_has_its_idle_time_and_its_pauses() -> None:
    """Never stopped while needed or before the idle time is over; never two starts within the first delay."""
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    demand, now, runs, started, idle_since = Demand(IDLE), 0.0, False, -1e9, None
    needed = False
    for _ in range(5000):
        now += chance.choice((0.1, 1.0, 10.0))
        needed = needed if chance.random() < 0.9 else not needed
        if runs and chance.random() < 0.02:
            runs = False  # it dies
        idle_since = (idle_since if idle_since is not None else now) if runs and not needed else None
        match demand.look(now, needed=needed, runs=runs):
            case Step.START:
                assert needed, seed
                assert not runs, seed
                assert now - started >= FIRST_DELAY, seed
                started, runs = now, chance.random() < 0.7
            case Step.STOP:
                assert idle_since is not None, seed
                assert now - idle_since >= IDLE, seed
                demand.stopped()
                runs, started = False, -1e9
            case Step.NOTHING:
                assert idle_since is None or now - idle_since < IDLE, seed
