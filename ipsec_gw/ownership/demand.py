"""When an engine that runs only while it is needed is started and stopped. Decided on whatever clock the caller has."""

from __future__ import annotations

from enum import Enum, auto

FIRST_DELAY = 3.0
"""Between two starts: longer than between two looks at an engine, so that the SAs of one that died are the kernel's
before another comes.
"""

LONGEST_DELAY = 300.0
STABLE_SECONDS = 600.0
"""An engine that has run for so long may be started at once when it ends: this is no row of failures."""


class Step(Enum):
    """What has to be done now."""

    NOTHING = auto()
    START = auto()
    STOP = auto()


class Demand:
    """Times are seconds of a monotonic clock. ``idle_seconds`` is how long an engine runs without being needed.

    An engine that does not start, or ends again and again, is started ever less often: with each start that changes the
    carrier of the tunnels once more.
    """

    def __init__(self, idle_seconds: float) -> None:
        self._idle_seconds = idle_seconds
        self._idle_since: float | None = None
        self._up_since: float | None = None
        self._delay = FIRST_DELAY
        self._not_before: float | None = None

    def look(self, now: float, *, needed: bool, runs: bool) -> Step:
        """Whether to start or stop the engine. It is called often; each START is taken for a try."""
        self._follow(now, needed=needed, runs=runs)
        if runs:
            idle = self._idle_since is not None and now >= self._idle_since + self._idle_seconds
            return Step.STOP if idle else Step.NOTHING
        if not needed or (self._not_before is not None and now < self._not_before):
            return Step.NOTHING
        self._not_before = now + self._delay
        self._delay = min(2 * self._delay, LONGEST_DELAY)
        return Step.START

    def _follow(self, now: float, *, needed: bool, runs: bool) -> None:
        if not runs:
            if self._up_since is not None:
                self._not_before = max(self._not_before or now, now + FIRST_DELAY)
            self._up_since = self._idle_since = None
            return
        if self._up_since is None:
            self._up_since = now
        if now >= self._up_since + STABLE_SECONDS:
            self._delay, self._not_before = FIRST_DELAY, None
        if needed:
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since = now

    def stopped(self) -> None:
        """It was stopped because nothing needed it: what needs it next does not wait."""
        self._up_since = self._idle_since = self._not_before = None
        self._delay = FIRST_DELAY

    def stops_in(self, now: float) -> float | None:
        """Seconds until an engine that nothing needs is stopped, None while it does not run or something needs it."""
        return None if self._idle_since is None else max(self._idle_since + self._idle_seconds - now, 0.0)

    def starts_in(self, now: float) -> float:
        """Seconds until the next start is tried, if it is needed then."""
        return 0.0 if self._not_before is None else max(self._not_before - now, 0.0)
