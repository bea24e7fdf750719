"""Does the engine hang? Decided from signs of life, on whatever clock the caller has."""

from __future__ import annotations

from dataclasses import dataclass

STUCK_PACKETS = 32
"""So many packets have to wait before that tells anything: a few may be of a kind that no socket takes."""


@dataclass(slots=True)
class _Waiting:
    """Packets that were handed over since ``begun``, when ``handed`` were; ``enough`` is since when they tell."""

    begun: float
    handed: int
    taken: int
    enough: float | None = None


class Watchdog:
    """Times are seconds of a monotonic clock. ``bound`` is how long an engine may show no sign of life, ``interval``
    how often the caller looks.

    A caller that comes late was itself kept from looking: what it missed meanwhile is not held against the engine.
    """

    def __init__(self, bound: float, interval: float, now: float) -> None:
        self._bound = bound
        self._interval = interval
        self._looked = now
        self._answered = now
        self._waiting: _Waiting | None = None

    def answered(self, now: float) -> None:
        """The engine answered a ping."""
        self._answered = now

    def look(self, now: float, handed: int, taken: int) -> str:
        """Why the engine is taken for hung, or nothing.

        ``handed`` are the packets given to its sockets so far, ``taken`` those that it took out of them.
        """
        late = max(now - self._looked - self._interval, 0.0)
        self._looked = now
        self._answered += late
        if now - self._answered > self._bound:
            return f"its API did not answer for {_milliseconds(now - self._answered)}"
        return self._stuck(now, late, handed, taken)

    def _stuck(self, now: float, late: float, handed: int, taken: int) -> str:
        waiting = self._waiting
        if waiting is None or waiting.taken != taken:
            self._waiting = _Waiting(now, handed, taken)
        elif waiting.enough is not None:
            waiting.enough += late
            if now - waiting.enough > self._bound:
                return f"it took none of {handed - waiting.handed} packets for {_milliseconds(now - waiting.enough)}"
        elif handed - waiting.handed >= STUCK_PACKETS:
            waiting.enough = now
        elif now - waiting.begun > self._bound:
            self._waiting = _Waiting(now, handed, taken)
        return ""


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"
