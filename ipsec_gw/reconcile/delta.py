"""The delta tracker: desired against what is in place, and what is left to do.

It does nothing to the data path itself. The executor tells it what succeeded; a resync replaces all that it
believes about the data path (after projectcalico's felix/deltatracker)::

      desired only          both, equal           in place only
    +---------------+-------------------------+-----------------+
    |    create     |  in sync (or: update)   |     delete      |
    +---------------+-------------------------+-----------------+
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class DeltaTracker(Generic[K, V]):
    """Two maps and their difference. Values are compared with ``==``."""

    def __init__(self) -> None:
        self._desired: dict[K, V] = {}
        self._in_place: dict[K, V] = {}

    @property
    def desired(self) -> Mapping[K, V]:
        """What should be in place."""
        return self._desired

    @property
    def in_place(self) -> Mapping[K, V]:
        """What is in place as far as is known."""
        return self._in_place

    def want(self, desired: Mapping[K, V]) -> None:
        """Replace what is desired."""
        self._desired = dict(desired)

    def resync(self, in_place: Mapping[K, V]) -> None:
        """Replace what is known to be in place, after reading it all."""
        self._in_place = dict(in_place)

    def done(self, key: K, value: V | None) -> None:
        """Note one success: ``value`` is in place under ``key``, or nothing any more."""
        if value is None:
            self._in_place.pop(key, None)
        else:
            self._in_place[key] = value

    def creates(self) -> dict[K, V]:
        """Desired and not in place."""
        return {k: v for k, v in self._desired.items() if k not in self._in_place}

    def updates(self) -> dict[K, V]:
        """Desired and in place with another value: the desired value."""
        return {k: v for k, v in self._desired.items() if k in self._in_place and self._in_place[k] != v}

    def deletes(self) -> dict[K, V]:
        """In place and not desired: the value in place."""
        return {k: v for k, v in self._in_place.items() if k not in self._desired}

    def in_sync(self) -> bool:
        """True if there is nothing to do."""
        return self._desired == self._in_place
