"""When to try again what failed: soon at first, then ever less often, each object for itself.

One object that fails for good costs one attempt a minute, and neither holds up the others nor fills the history.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

from ipsec_gw.model.objects import ObjectKey
from ipsec_gw.reconcile.plan import Op

FIRST_SECONDS, LONGEST_SECONDS = 0.5, 60.0


@dataclass(frozen=True, slots=True)
class _Failure:
    reason: str
    delay: float
    not_before: float


class Retries:
    """The failed objects by key, and when each may be tried again. Times are seconds of the caller's clock."""

    def __init__(self) -> None:
        self._failures: dict[ObjectKey, _Failure] = {}

    def failed(self, key: ObjectKey, reason: str, now: float) -> None:
        """An attempt failed: the next one waits twice as long as this one did."""
        last = self._failures.get(key)
        delay = min(last.delay * 2, LONGEST_SECONDS) if last else FIRST_SECONDS
        self._failures[key] = _Failure(reason, delay, now + delay)

    def succeeded(self, key: ObjectKey) -> None:
        """It went well: its next failure starts with the shortest delay."""
        self._failures.pop(key, None)

    def settle(self, *known: Container[ObjectKey]) -> None:
        """Forget objects that are in none of these: nobody wants them any more."""
        self._failures = {key: one for key, one in self._failures.items() if any(key in objects for objects in known)}

    def waiting(self, now: float) -> dict[ObjectKey, str]:
        """Objects that must not be tried yet, each with what its last attempt said."""
        return {key: one.reason for key, one in self._failures.items() if now < one.not_before}

    def next(self, now: float) -> float | None:
        """When the first of those that wait may be tried again, None if none waits."""
        return min((one.not_before for one in self._failures.values() if now < one.not_before), default=None)


def split(operations: Sequence[Op], waiting: Mapping[ObjectKey, str]) -> tuple[tuple[Op, ...], tuple[Op, ...]]:
    """What can be done now, and what waits: for a failed object, or behind an operation that does."""
    held: set[ObjectKey] = set(waiting)
    now: list[Op] = []
    later: list[Op] = []
    for op in operations:
        if op.obj is not None and (op.obj.key in held or not (held.isdisjoint(op.needs) and held.isdisjoint(op.frees))):
            held.add(op.obj.key)
            later.append(op)
        else:
            now.append(op)
    return (tuple(now) if any(op.obj is not None for op in now) else ()), tuple(later)
