"""When to try again what failed: soon at first, then ever less often, each object for itself.

One object that fails for good costs one attempt a minute, and neither holds up the others nor fills the history.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field

from ipsec_gw.model.objects import ObjectKey
from ipsec_gw.reconcile.plan import Action, Op

FIRST_SECONDS, LONGEST_SECONDS = 0.5, 60.0


@dataclass(frozen=True, slots=True)
class _Failure:
    reason: str
    delay: float
    not_before: float


@dataclass(frozen=True, slots=True)
class Waiting:
    """Objects that must not be put in place yet, and those that must not be removed yet, each with what the last
    attempt said. To remove what could not be put in place waits for nothing.
    """

    puts: Mapping[ObjectKey, str] = field(default_factory=dict)
    removals: Mapping[ObjectKey, str] = field(default_factory=dict)

    def holds(self, op: Op) -> bool:
        """Whether this operation is one of them."""
        if op.obj is None:
            return False
        return op.obj.key in (self.removals if op.action is Action.DELETE else self.puts)

    def and_more(self, other: Waiting) -> Waiting:
        """Both; what is here is kept as it is."""
        return Waiting({**other.puts, **self.puts}, {**other.removals, **self.removals})


class Retries:
    """The failed objects by key, and when each may be tried again. Times are seconds of the caller's clock."""

    def __init__(self) -> None:
        self._puts: dict[ObjectKey, _Failure] = {}
        self._removals: dict[ObjectKey, _Failure] = {}

    def failed(self, op: Op, reason: str, now: float) -> None:
        """An attempt failed: the next one waits twice as long as this one did."""
        if op.obj is None:
            return
        failures = self._failures_of(op)
        last = failures.get(op.obj.key)
        delay = min(last.delay * 2, LONGEST_SECONDS) if last else FIRST_SECONDS
        failures[op.obj.key] = _Failure(reason, delay, now + delay)

    def succeeded(self, op: Op) -> None:
        """It went well: its next failure starts with the shortest delay."""
        if op.obj is not None:
            self._failures_of(op).pop(op.obj.key, None)

    def settle(self, wanted: Container[ObjectKey], in_place: Container[ObjectKey]) -> None:
        """Forget objects that nobody wants to put in place any more, and those that are gone."""
        self._puts = {key: one for key, one in self._puts.items() if key in wanted}
        self._removals = {key: one for key, one in self._removals.items() if key in in_place}

    def waiting(self, now: float) -> Waiting:
        """What must not be tried yet."""
        return Waiting(*(_reasons(failures, now) for failures in (self._puts, self._removals)))

    def next(self, now: float) -> float | None:
        """When the first of those that wait may be tried again, None if none waits."""
        failures = (*self._puts.values(), *self._removals.values())
        return min((one.not_before for one in failures if now < one.not_before), default=None)

    def _failures_of(self, op: Op) -> dict[ObjectKey, _Failure]:
        return self._removals if op.action is Action.DELETE else self._puts


def _reasons(failures: Mapping[ObjectKey, _Failure], now: float) -> dict[ObjectKey, str]:
    return {key: one.reason for key, one in failures.items() if now < one.not_before}


def split(operations: Sequence[Op], waiting: Waiting) -> tuple[tuple[Op, ...], tuple[Op, ...]]:
    """What can be done now, and what waits: for its own time, or behind an operation that does. In the plan's order."""
    held: set[ObjectKey] = set()
    now: list[Op] = []
    later: list[Op] = []
    for op in operations:
        if op.obj is not None and (waiting.holds(op) or not held.isdisjoint({op.obj.key, *op.needs, *op.frees})):
            held.add(op.obj.key)
            later.append(op)
        else:
            now.append(op)
    return (tuple(now) if any(op.obj is not None for op in now) else ()), tuple(later)
