"""Steering entries as a driver: XDP hands a known (destination, SPI) to the engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from ipsec_gw.model.ids import SaKey
from ipsec_gw.model.objects import ManagedObject, Steer, SteerKey


class SteerMaps(Protocol):
    """The part of the steering that this driver needs."""

    def steer(self, key: SaKey) -> None:
        """Add an entry."""

    def unsteer(self, key: SaKey) -> None:
        """Remove an entry."""

    def steered(self) -> frozenset[SaKey]:
        """The entries in the map."""


class SteerDriver:
    """Adds and removes steering entries."""

    def __init__(self, maps: SteerMaps) -> None:
        self._maps = maps

    async def retrieve(self) -> Mapping[SteerKey, Steer]:
        """The entries in the map now."""
        return {SteerKey(key): Steer(SteerKey(key)) for key in self._maps.steered()}

    async def create(self, obj: ManagedObject) -> None:
        """Steer an SA."""
        self._maps.steer(_sa_key(obj))

    async def update(self, obj: ManagedObject) -> None:
        """An entry has nothing to change."""

    def clear(self) -> None:
        """Stop steering altogether: an engine begins that holds nothing yet."""
        for key in self._maps.steered():
            self._maps.unsteer(key)

    async def delete(self, obj: ManagedObject) -> None:
        """Stop steering an SA."""
        self._maps.unsteer(_sa_key(obj))


def _sa_key(obj: ManagedObject) -> SaKey:
    if not isinstance(obj, Steer):
        raise TypeError(f"{obj!r} is not a steering entry")
    return obj.key.sa
