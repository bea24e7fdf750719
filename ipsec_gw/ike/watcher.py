"""Two vici connections that outlive charon: one for events, one for questions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from ipsec_gw.errors import IkeError
from ipsec_gw.ike.vici import ViciSession
from ipsec_gw.model.snapshot import ChildName, ConfiguredChild

log = structlog.get_logger()

_RECONNECT_SECONDS = 1.0


class CharonWatcher:
    """Marks things dirty on vici events, answers questions, and reconnects when charon comes back.

    ``malformed`` counts messages that could not be read.
    """

    def __init__(self, uri: str, *, seconds: float = 10.0) -> None:
        self._uri = uri
        self._changed: Callable[[], None] = lambda: None
        self._seconds = seconds
        self._questions: ViciSession | None = None
        self.version = ""
        self.malformed = 0

    async def connect(self) -> None:
        """First contact: learn charon's version. Raises IkeError if it is absent or hangs."""
        self.version = await (await self._session()).version()

    def on_change(self, changed: Callable[[], None]) -> None:
        """Call this whenever an IKE_SA or CHILD_SA changed, or charon came or went."""
        self._changed = changed

    async def child_names(self) -> dict[int, ChildName]:
        """Names of the CHILD_SAs by SPI. Raises IkeError."""
        return await (await self._session()).child_names()

    async def local_addresses(self) -> list[str]:
        """``local_addrs`` of the loaded connections. Raises IkeError."""
        return await (await self._session()).local_addresses()

    async def never_rekeyed(self) -> frozenset[ConfiguredChild]:
        """Children that are configured never to be rekeyed. Raises IkeError."""
        return await (await self._session()).never_rekeyed()

    async def watch(self) -> None:
        """Listen for events for ever."""
        absent = False
        while True:
            try:
                session = await ViciSession.connect(self._uri, self._seconds, self._count_malformed)
                await session.subscribe(lambda _name, _section: self._changed())
            except IkeError as error:
                if not absent:
                    log.warning("charon is away", reason=str(error))
                absent = True
                await asyncio.sleep(_RECONNECT_SECONDS)
                continue
            if absent:
                log.info("charon is back")
            absent = False
            self._changed()
            try:
                await session.closed.wait()
            finally:
                await session.close()
            self._changed()

    async def close(self) -> None:
        """Close the connection for questions."""
        if self._questions is not None:
            await self._questions.close()
            self._questions = None

    def _count_malformed(self) -> None:
        self.malformed += 1

    async def _session(self) -> ViciSession:
        if self._questions is None or self._questions.closed.is_set():
            self._questions = await ViciSession.connect(self._uri, self._seconds, self._count_malformed)
        return self._questions
