"""When policies with a schedule hold. All times are local wall-clock time."""

from __future__ import annotations

from datetime import datetime, time, timedelta

from ipsec_gw.model.firewall import Ruleset, Schedule

_DAY = 24 * 60
_MINUTE = timedelta(minutes=1)


def active(schedule: Schedule | None, now: datetime) -> bool:
    """Whether a schedule holds at a moment; None holds always.

    A span whose end lies before its start goes over midnight and belongs to the day on which it starts.
    """
    if schedule is None:
        return True
    today, minute = now.weekday(), now.hour * 60 + now.minute
    if schedule.start <= schedule.end:
        return _on(schedule, today) and schedule.start <= minute < schedule.end
    return (_on(schedule, today) and minute >= schedule.start) or (
        _on(schedule, (today - 1) % 7) and minute < schedule.end
    )


def _on(schedule: Schedule, weekday: int) -> bool:
    return not schedule.days or weekday in schedule.days


def next_change(ruleset: Ruleset, now: datetime) -> datetime | None:
    """The first moment after ``now`` at which another set of policies holds; None when that never happens."""
    schedules = {policy.schedule for policy in ruleset.policies if policy.schedule is not None}
    changes = [found for schedule in schedules if (found := _next(schedule, now)) is not None]
    return min(changes, default=None)


def _next(schedule: Schedule, now: datetime) -> datetime | None:
    midnight = datetime.combine(now.date(), time(), now.tzinfo)
    for day in range(9):  # a week, and what a span of the day before leaves over
        for minutes in sorted({schedule.start, schedule.end % _DAY, 0}):
            moment = midnight + timedelta(days=day, minutes=minutes)
            if moment > now and active(schedule, moment) != active(schedule, moment - _MINUTE):
                return moment
    return None
