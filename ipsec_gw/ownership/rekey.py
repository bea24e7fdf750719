"""Paced rekeys of SAs that must get a fresh key before an engine may have them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ipsec_gw.model.ids import IpAddress, SaKey

_FIRST_DELAY = 0.5
_LONGEST_DELAY = 300.0
_SPACING = 0.1
"""Seconds between two requests, so that charon's other work goes on."""


@dataclass(slots=True)
class _Peer:
    delay: float
    not_before: float


class RekeyPacer:
    """Which SA to ask a rekey for, and when: spaced, and ever less often for a peer that keeps failing.

    Nobody answers: an SA that is still there after five minutes is asked for again.

    Times are seconds of a monotonic clock that the caller passes in.
    """

    def __init__(self) -> None:
        self._waiting: dict[SaKey, None] = {}
        self._asked: dict[SaKey, float] = {}
        self._peers: dict[IpAddress, _Peer] = {}
        self._sources: dict[SaKey, IpAddress] = {}
        self._next = 0.0

    def request(self, key: SaKey, source: IpAddress | None = None) -> None:
        """Ask for a rekey of this SA, until it is gone; a second request for the same SA is ignored. The peer is where
        it goes to; of an inbound one it is its ``source``.
        """
        if source is not None:
            self._sources[key] = source
        if key not in self._asked:
            self._waiting[key] = None

    def settle(self, alive: Callable[[SaKey], bool]) -> None:
        """Drop what is known of SAs that are gone."""
        self._waiting = {key: None for key in self._waiting if alive(key)}
        self._asked = {key: when for key, when in self._asked.items() if alive(key)}
        self._sources = {key: source for key, source in self._sources.items() if alive(key)}

    def succeed(self, peer: IpAddress) -> None:
        """A tunnel to this peer went to the engine: its next failure starts with the shortest delay again."""
        self._peers.pop(peer, None)

    def due(self, now: float, held: Callable[[SaKey], bool] = lambda _key: False) -> SaKey | None:
        """The SA to ask a rekey for now, if any. It counts as asked from here on; those that are ``held`` wait."""
        if now < self._next:
            return None
        for key in [key for key, when in self._asked.items() if now >= when + _LONGEST_DELAY]:
            del self._asked[key]
            self._waiting[key] = None
        for key in self._waiting:
            if held(key):
                continue
            address = self._sources.get(key, key.destination)
            peer = self._peers.get(address)
            if peer is not None and now < peer.not_before:
                continue
            delay = min(peer.delay * 2, _LONGEST_DELAY) if peer else _FIRST_DELAY
            self._peers[address] = _Peer(delay, now + delay)
            self._next = now + _SPACING
            del self._waiting[key]
            self._asked[key] = now
            return key
        return None

    @property
    def waiting(self) -> frozenset[SaKey]:
        """SAs whose rekey is still to be asked for."""
        return frozenset(self._waiting)
