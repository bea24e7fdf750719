"""Steering entries as a driver: XDP hands a known (destination, SPI) to the engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from ipsec_gw.model.ids import SaKey
from ipsec_gw.model.objects import ManagedObject, Steer, SteerKey, UdpPeer


class SteerMaps(Protocol):
    """The part of the steering that this driver needs."""

    def steer(self, key: SaKey, peer: UdpPeer | None) -> None:
        """Add an entry, or give the one that is there another peer."""

    def unsteer(self, key: SaKey) -> None:
        """Remove an entry."""

    def peers(self) -> Mapping[SaKey, UdpPeer | None]:
        """The entries in the map, and where their ESP in UDP comes from."""


class SteerDriver:
    """Adds and removes steering entries."""

    def __init__(self, maps: SteerMaps) -> None:
        self._maps = maps

    async def retrieve(self) -> Mapping[SteerKey, Steer]:
        """The entries in the map now."""
        return {SteerKey(key): Steer(SteerKey(key), peer) for key, peer in self._maps.peers().items()}

    async def create(self, obj: ManagedObject) -> None:
        """Steer an SA."""
        steer = _steer(obj)
        self._maps.steer(steer.key.sa, steer.peer)

    async def update(self, obj: ManagedObject) -> None:
        """Its peer has moved: one map write."""
        await self.create(obj)

    def clear(self) -> None:
        """Stop steering altogether: an engine begins that holds nothing yet."""
        for key in self._maps.peers():
            self._maps.unsteer(key)

    async def delete(self, obj: ManagedObject) -> None:
        """Stop steering an SA."""
        self._maps.unsteer(_steer(obj).key.sa)


def _steer(obj: ManagedObject) -> Steer:
    if not isinstance(obj, Steer):
        raise TypeError(f"{obj!r} is not a steering entry")
    return obj
