"""Children that are not to be rekeyed by us, because charon would never do it: some clients take no rekey."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Mapping

from ipsec_gw.errors import IkeError
from ipsec_gw.model.ids import SaKey
from ipsec_gw.model.snapshot import ChildName, ConfiguredChild

_KNOWN_SECONDS = 60.0
"""So long an answer holds: charon tells nobody that connections were loaded."""


class Spared:
    """``ask`` asks charon for the children that are configured never to be rekeyed; it may raise IkeError. ``clock`` is
    monotonic, in seconds.
    """

    def __init__(self, ask: Callable[[], Awaitable[frozenset[ConfiguredChild]]], clock: Callable[[], float]) -> None:
        self._ask = ask
        self._clock = clock
        self._asked: float | None = None
        self._children: frozenset[ConfiguredChild] = frozenset()

    async def renew(self) -> None:
        """Before anything is rekeyed. Without charon the last answer holds."""
        if self._asked is not None and self._clock() < self._asked + _KNOWN_SECONDS:
            return
        self._asked = self._clock()
        with contextlib.suppress(IkeError):  # the vici watcher reports and reconnects
            self._children = await self._ask()

    def has(self, key: SaKey, names: Mapping[int, ChildName]) -> bool:
        """Whether an SA is one of theirs, by the ``names`` of SPIs: it is the other side's to rekey it."""
        name = names.get(key.spi)
        return name is not None and ConfiguredChild(name.connection, name.child) in self._children
