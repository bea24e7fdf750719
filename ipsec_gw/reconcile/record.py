"""What was planned and what came of it: one record per pass, kept in a ring."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from ipsec_gw.reconcile.plan import Op


class Outcome(StrEnum):
    """Of one operation."""

    DONE = "done"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Step:
    """An operation and its outcome; ``detail`` is the error, or what a skipped step waited for."""

    op: Op
    outcome: Outcome
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Record:
    """One pass: when it ended (Unix time), how long it took (seconds) and its steps."""

    at: float
    seconds: float
    steps: tuple[Step, ...]

    @property
    def failures(self) -> tuple[Step, ...]:
        """Steps that did not come through."""
        return tuple(step for step in self.steps if step.outcome is not Outcome.DONE)


class History:
    """The last passes that did something."""

    def __init__(self, length: int = 256) -> None:
        self._records: deque[Record] = deque(maxlen=length)

    def add(self, record: Record) -> None:
        """Keep a record, if it has steps."""
        if record.steps:
            self._records.append(record)

    def __iter__(self) -> Iterator[Record]:
        return iter(self._records)

    def __len__(self) -> int:
        return len(self._records)
