"""Keeps VPP's NAT as the firewall's pools want it, and tells the data path whether VPP translates."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Any, Protocol

import structlog

from ipsec_gw.errors import EngineError
from ipsec_gw.model.firewall import Ruleset
from ipsec_gw.model.ids import IpAddress
from ipsec_gw.model.snapshot import PolicyDirection, XfrmPolicy
from xdp_steer.compile.translators import Translator, translators_of

LOOK_SECONDS = 1.0
"""Between two looks at VPP."""

MOST_SOURCES = 64
"""VPP's workers stand still while it looks for the flows of one."""

WHOLE_LOOKS = 30
"""Every so many looks all of VPP's NAT is held against what is wanted."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Held:
    """VPP has the pools. ``life`` tells one VPP from the next, ``ended``: what it translated before may be gone;
    ``sessions`` is how many translations a thread of VPP's may have.
    """

    life: int
    ended: bool
    sessions: int


@dataclass(frozen=True, slots=True)
class Translated:
    """A flow as it is inside and outside; ``far`` is the other side."""

    protocol: int
    inside: tuple[IPv4Address, int]
    outside: tuple[IPv4Address, int]
    far: tuple[IPv4Address, int]


def doubts(
    translators: Iterable[Translator], here: frozenset[IpAddress], policies: Iterable[XfrmPolicy]
) -> Iterator[str]:
    """What is against VPP's addresses: they are this machine's, or IPsec policies protect what comes from them."""
    protecting = [one for one in policies if one.direction is PolicyDirection.OUT and one.allow and one.templates]
    for one in translators:
        taken = [address for address in here if isinstance(address, IPv4Address) and one.first <= address <= one.last]
        for address in sorted(taken):
            yield f"pool {one.pool} has {address}, an address of this machine: no answers to it reach VPP"
        for policy in protecting:
            near = policy.source
            if isinstance(near, IPv4Network) and one.first <= near[-1] and near[0] <= one.last:
                yield (
                    f"pool {one.pool} is VPP's and lies in {near}, which IPsec protects towards {policy.destination}: "
                    "what it has translated for there is dropped"
                )


class TranslatorEngine(Protocol):
    """VPP, as far as pools need it. All calls raise EngineError, and EngineUnavailable when VPP is away."""

    async def hold(self, ruleset: Ruleset) -> Held:
        """Make VPP translate with the pools of a ruleset that are VPP's."""

    async def look(self) -> int:
        """The life of the VPP that answers."""

    async def release(self) -> None:
        """VPP translates no more."""

    async def translated(self, sources: Iterable[IPv4Address], tags: Iterable[int]) -> list[Translated]:
        """What VPP makes of flows from these addresses, by the pools with these tags."""

    async def count(self) -> int:
        """How many translations VPP has."""

    async def close(self) -> None:
        """Disconnect; VPP carries on with what it has."""


class Switch(Protocol):
    """The data path's side."""

    def translates(self) -> bool:
        """Whether VPP gets the new flows of its pools."""

    def begin_translation(self, life: int, *, anew: bool) -> None:
        """VPP gets them; with ``anew``, or in another life, the sessions of before are over."""

    def end_translation(self) -> None:
        """XDP translates what is new in VPP's place."""


class PoolWatch:
    """The pools of VPP in one gateway. ``engine`` is None where no VPP is in use: XDP translates then.

    ``dock`` is awaited before VPP gets pools: the interface has to be there.
    """

    def __init__(self, switch: Switch, engine: TranslatorEngine | None, dock: Callable[[], Awaitable[None]]) -> None:
        self._switch = switch
        self._engine = engine
        self._dock = dock
        self._wanted: Ruleset | None = None
        self._held: tuple[Ruleset, Held] | None = None
        self._looks = 0
        self._again = asyncio.Event()
        self.trouble = "" if engine is not None else "no VPP is in use"

    @property
    def wanted(self) -> bool:
        """Whether there are pools for VPP."""
        return self._wanted is not None

    @property
    def state(self) -> str:
        """Who translates new flows of VPP's pools, for people."""
        if self._switch.translates():
            return "VPP"
        return f"XDP, with its own addresses of the pools ({self.trouble or 'VPP is away'})"

    def want(self, ruleset: Ruleset) -> None:
        """From now on the pools of this ruleset."""
        self._wanted = ruleset if translators_of(ruleset) else None
        self._again.set()

    def look_again(self) -> None:
        """Something happened to VPP: look at once."""
        self._again.set()

    async def run(self) -> None:
        """Follow VPP, until cancelled."""
        while True:
            await self.look()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._again.wait()
            self._again.clear()

    async def look(self) -> None:
        """Look at VPP once and act upon it."""
        if self._engine is None:
            self._end()
            return
        try:
            await (self._release(self._engine) if self._wanted is None else self._hold(self._engine, self._wanted))
        except EngineError as error:
            self._end()
            if str(error) != self.trouble:
                log.warning("VPP does not translate: XDP does, with its own addresses of the pools", reason=str(error))
            self.trouble = str(error)

    async def translated(self, sources: frozenset[IPv4Address]) -> list[Translated]:
        """What VPP makes of flows from these addresses, of MOST_SOURCES at most; nothing while it is away."""
        if self._engine is None or self._held is None or not sources:
            return []
        tags = [one.tag for one in translators_of(self._held[0])]
        with contextlib.suppress(EngineError):  # the next look tells
            return await self._engine.translated(sorted(sources)[:MOST_SOURCES], tags)
        return []

    async def view(self) -> dict[str, Any]:
        """For `show nat`: who translates new flows, how many VPP translates, and how many each of its threads could."""
        count = 0
        if self._engine is not None and self._held is not None:
            with contextlib.suppress(EngineError):
                count = await self._engine.count()
        return {
            "state": self.state if self.wanted else "",
            "translations": count,
            "most": self._held[1].sessions if self._held else 0,
        }

    def _end(self) -> None:
        self._held = None
        if self._switch.translates():
            self._switch.end_translation()

    async def _hold(self, engine: TranslatorEngine, wanted: Ruleset) -> None:
        self._looks += 1
        if self._held is not None and self._looks % WHOLE_LOOKS:
            held = self._held[1] if self._held[0] is wanted and self._switch.translates() else None
            if held is not None and await engine.look() == held.life:
                return
        await self._dock()
        now = await engine.hold(wanted)
        self._switch.begin_translation(now.life, anew=now.ended)
        if self._held is None:
            log.info("VPP translates", pools=len(translators_of(wanted)), translations_of_a_thread=now.sessions)
        self._held, self.trouble = (wanted, now), ""

    async def _release(self, engine: TranslatorEngine) -> None:
        """Nobody wants VPP's NAT. What an earlier daemon left goes as well, when VPP is there."""
        had = self._held is not None or self._switch.translates()
        self._end()
        if had:
            await engine.release()
        self.trouble = ""
