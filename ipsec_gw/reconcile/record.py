"""What was planned and what came of it: one record per pass, kept in a ring."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import takewhile

import structlog

from ipsec_gw.reconcile.plan import Op

log = structlog.get_logger()


class Outcome(StrEnum):
    """Of one operation."""

    DONE = "done"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Step:
    """An operation and its outcome; ``detail`` is the error, or what a skipped step waited for. ``torn`` is what failed
    and may be half done.
    """

    op: Op
    outcome: Outcome
    detail: str = ""
    torn: bool = False


@dataclass(frozen=True, slots=True)
class Record:
    """One pass: when it ended (Unix time), how long it took (seconds) and its steps.

    Or a trouble that belongs to no step: then ``trouble`` says what and why, and ``times`` how often it came with no
    pass between; ``at`` is the last time.
    """

    at: float
    seconds: float
    steps: tuple[Step, ...]
    trouble: str = ""
    times: int = 1

    @property
    def failures(self) -> tuple[Step, ...]:
        """Steps that did not come through."""
        return tuple(step for step in self.steps if step.outcome is not Outcome.DONE)


class History:
    """The last passes that did something, and the troubles between them."""

    def __init__(self, length: int = 256, clock: Callable[[], float] = time.time) -> None:
        self._records: deque[Record] = deque(maxlen=length)
        self._clock = clock

    def add(self, record: Record) -> None:
        """Keep a record, if it has steps."""
        if record.steps:
            self._records.append(record)

    def trouble(self, what: str) -> None:
        """Log and keep what went wrong outside of a step. The same again, with no pass between, is one record."""
        earlier = next((r for r in takewhile(lambda r: r.trouble, reversed(self._records)) if r.trouble == what), None)
        if earlier is None:
            log.warning("trouble", what=what)
        else:
            self._records.remove(earlier)
        times = earlier.times + 1 if earlier else 1
        self._records.append(Record(self._clock(), 0.0, (), what, times))

    def __iter__(self) -> Iterator[Record]:
        return iter(self._records)

    def __len__(self) -> int:
        return len(self._records)
