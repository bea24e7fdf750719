"""A daemon shows that it is there, and notices afterwards that it was not.

Without one for too long, XDP leaves what goes out to the kernel. A daemon that is started then finds that before it
gives an engine anything; one that was only kept from running (stopped, or starved) has to be told.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Protocol


class Signs(Protocol):
    """The part of the steering that a daemon's presence needs."""

    def heartbeat(self, away_seconds: float) -> None:
        """It is there, and counts as away after so many seconds; 0: never."""

    def engine_gone(self) -> bool:
        """Whether the kernel has taken over what goes out."""


class Presence:
    """``away_seconds`` is how long the daemon may be silent, 0 for ever. ``clock`` counts seconds."""

    def __init__(self, signs: Signs, away_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._signs = signs
        self._away_seconds = away_seconds
        self._clock = clock
        self._shown = clock()
        self._missed = False

    def show(self) -> bool:
        """The daemon is there; whether there is an absence to make up for. Raises SteeringError."""
        now = self._clock()
        self._signs.heartbeat(self._away_seconds)
        # Half of it: XDP has another clock, and what was not taken over is not touched.
        self._missed |= 0 < self._away_seconds < 2 * (now - self._shown)
        self._shown = now
        return self._missed

    async def make_up(self, begin: Callable[[], Awaitable[None]]) -> bool:
        """After an absence let an engine ``begin`` anew if the kernel has taken over from it: true if it had. If that
        raises something, the next call tries again.
        """
        if not self._missed:
            return False
        taken = self._signs.engine_gone()
        if taken:
            await begin()
        self._missed = False
        return taken
