"""When policies hold. 2 March 2026 is a Monday."""

from __future__ import annotations

from datetime import datetime, timedelta
from random import Random

import pytest

from ipsec_gw.model.firewall import Action, Policy, Ruleset, Schedule
from xdp_steer.compile import next_change
from xdp_steer.compile.schedule import active

OFFICE = Schedule("office", frozenset({0, 1, 2, 3, 4}), 8 * 60, 18 * 60)
NIGHT = Schedule("night", frozenset({4}), 22 * 60, 6 * 60)
SUNDAYS = Schedule("sundays", frozenset({6}))
ALWAYS = Schedule("always")


def at(day: int, clock: str) -> datetime:
    return datetime.fromisoformat(f"2026-03-{day:02} {clock}")


def rules(*schedules: Schedule | None) -> Ruleset:
    return Ruleset(
        policies=tuple(Policy(f"p{n}", Action.PERMIT, schedule=schedule) for n, schedule in enumerate(schedules))
    )


@pytest.mark.parametrize(
    ("schedule", "moment", "holds"),
    [
        (None, at(2, "00:00"), True),
        (OFFICE, at(2, "07:59"), False),
        (OFFICE, at(2, "08:00"), True),
        (OFFICE, at(2, "17:59:59"), True),
        (OFFICE, at(2, "18:00"), False),
        (OFFICE, at(7, "12:00"), False),
        (NIGHT, at(6, "21:59"), False),
        (NIGHT, at(6, "22:00"), True),
        (NIGHT, at(7, "05:59"), True),
        (NIGHT, at(7, "06:00"), False),
        (NIGHT, at(6, "05:00"), False),
        (SUNDAYS, at(8, "23:59"), True),
        (SUNDAYS, at(9, "00:00"), False),
    ],
)
def test_active(schedule: Schedule | None, moment: datetime, holds: bool) -> None:
    assert active(schedule, moment) is holds


@pytest.mark.parametrize(
    ("schedules", "now", "change"),
    [
        ((), at(2, "12:00"), None),
        ((None, ALWAYS), at(2, "12:00"), None),
        ((OFFICE,), at(2, "08:00"), at(2, "18:00")),
        ((OFFICE,), at(6, "18:00"), at(9, "08:00")),
        ((NIGHT,), at(7, "01:00"), at(7, "06:00")),
        ((NIGHT,), at(7, "06:00"), at(13, "22:00")),
        ((SUNDAYS,), at(2, "00:00"), at(8, "00:00")),
        ((SUNDAYS,), at(8, "00:00"), at(9, "00:00")),
        ((SUNDAYS, OFFICE, None), at(2, "12:00"), at(2, "18:00")),
    ],
)
def test_next_change(schedules: tuple[Schedule | None, ...], now: datetime, change: datetime | None) -> None:
    assert next_change(rules(*schedules), now) == change


def test_nothing_changes_before_the_next_change() -> None:
    seed = 20260302
    print("seed", seed)
    random = Random(seed)
    for _ in range(60):
        days = frozenset(random.sample(range(7), random.randrange(4)))
        schedule = Schedule("s", days, random.randrange(1440), random.randrange(1441))
        now = at(2, "00:00") + timedelta(minutes=random.randrange(7 * 1440))
        change = next_change(rules(schedule), now)
        minutes = [now + timedelta(minutes=n) for n in range(8 * 1440)]
        first = next((moment for moment in minutes if active(schedule, moment) != active(schedule, now)), None)
        assert change == first, (schedule, now)
