"""Peers behind NAT that send from another address or port than charon knows.

Only the kernel tells charon (XFRM_MSG_MAPPING), when it has authenticated a packet from there, and charon then moves
the SA. But the packets are the engine's. So XDP notes such an SA, the kernel's replay window is moved to where the
engine's is (what the engine has seen must be nothing that the kernel believes), and what goes on coming from elsewhere
is the kernel's, for a minute or until charon has moved the SA. Whatever else happens, one of both takes the packets.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Protocol

import structlog

from ipsec_gw.errors import IpsecGwError
from ipsec_gw.model.ids import SaKey

PATIENCE_SECONDS = 60.0
"""How long the next packet from elsewhere is waited for: peers that are idle send few."""

RENEWAL_SECONDS = 0.75
"""How often the kernel's window is moved meanwhile: it is never further behind the engine's than this."""

TRIAL_SECONDS = 2.0
"""What XDP is told at a time: when nobody moves the window any more, the engine soon has all packets again."""

log = structlog.get_logger()


class MoveMaps(Protocol):
    """The part of the steering that notes where packets come from."""

    def take_moved(self) -> frozenset[SaKey]:
        """Inbound SAs with packets from elsewhere since the last call."""

    def give_to_kernel(self, key: SaKey, seconds: float) -> None:
        """For so long the kernel gets what comes from elsewhere."""


class Windows(Protocol):
    """The part of the kernel's SA interface that replay windows need."""

    def raise_seq(self, key: SaKey, seq: int) -> None:
        """Move an inbound SA's window upwards, everything in it received."""


class MoveWatch:
    """``received`` tells the highest number that an engine accepted with each SA, ``tell`` is told of troubles."""

    def __init__(
        self,
        maps: MoveMaps,
        kernel: Windows,
        *,
        received: Callable[[Collection[SaKey]], Awaitable[Mapping[SaKey, int]]],
        tell: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._until: dict[SaKey, float] = {}
        self._renewed = -RENEWAL_SECONDS
        self._maps = maps
        self._kernel = kernel
        self._received = received
        self._tell = tell

    async def look(self) -> None:
        """Begin a trial of every SA that packets from elsewhere came for, and go on with those that have begun. Several
        times a second.
        """
        now = self._clock()
        known = {key for key, until in self._until.items() if until > now}
        try:
            moved = self._maps.take_moved()
            due = moved - known if now < self._renewed + RENEWAL_SECONDS else moved | known
            numbers = await self._received(due) if due else {}
        except IpsecGwError as error:
            self._tell(f"it is not known which peers have moved: {error}")
            return
        if due >= known:
            self._renewed = now
        gone = due - numbers.keys()
        self._until = {key: self._until[key] for key in known - gone}
        self._until |= dict.fromkeys(moved - gone, now + PATIENCE_SECONDS)
        for key in sorted(numbers):
            self._try(key, numbers[key])

    def _try(self, key: SaKey, number: int) -> None:
        try:
            self._kernel.raise_seq(key, number)
            self._maps.give_to_kernel(key, TRIAL_SECONDS)
        except IpsecGwError as error:  # it is gone, most likely; the others must not wait for it
            self._until.pop(key, None)
            self._tell(f"the peer of SA {key} may have moved, and charon cannot be told: {error}")
        else:
            log.debug("packets come from elsewhere, the kernel takes them", sa=str(key))
