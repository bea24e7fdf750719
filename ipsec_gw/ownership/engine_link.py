"""An engine with its life around it: is it there, is it still the same, and what did it send."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping

import structlog

from ipsec_gw.desired import EngineOffer
from ipsec_gw.engines.port import Capabilities, Counters, Engine, Heard, nothing
from ipsec_gw.errors import EngineError, EngineUnavailable
from ipsec_gw.model.ids import SaKey
from ipsec_gw.model.objects import EngineKey, EngineObject, EngineSa, ManagedObject, NextHop, Overlay, Tunnel

log = structlog.get_logger()


class EngineLink:
    """Opens an engine, notices its loss or restart, and keeps the last counters of every SA it had.

    ``losses`` counts how often the engine went away with its objects, ``trouble`` tells why it is away now. As a
    driver it passes objects on. While the engine is away, what is deleted is gone already. ``expected`` is what an
    engine that was never there is taken to be able to do. ``asleep`` is told of an engine that is away because nothing
    has needed it, empty of one that should be there. ``on_counters`` is called
    with the counters that an engine just told which is alive, ``on_open`` whenever one has its sockets, ``tell`` with
    troubles that no caller hears of.
    """

    def __init__(self, engine: Engine, expected: Capabilities | None = None) -> None:
        self.engine = engine
        self._expected = expected
        self.asleep = ""
        self.capabilities: Capabilities | None = None
        self._absent = "not opened yet"
        self._epoch = 0
        self._counters: dict[SaKey, Counters] = {}
        self.losses = 0
        self.trouble = ""
        self.on_counters: Callable[[Mapping[SaKey, Counters]], None] = lambda _counters: None
        self.on_open: Callable[[], Awaitable[None]] = nothing
        self.tell: Callable[[str], None] = lambda _trouble: None

    @property
    def up(self) -> bool:
        """True while the engine answers."""
        return not self._absent

    @property
    def offer(self) -> EngineOffer:
        """What may be given to the engine now."""
        able = self.capabilities or self._expected
        asleep = "" if self.up else self.asleep
        absent = "" if asleep else self._absent
        if able is not None and not able.steers:
            absent = f"the {self.engine.name} engine is in use: nothing is accelerated"
        return EngineOffer(
            name=self.engine.name,
            algorithms=able.algorithms if able else frozenset(),
            esn=able.esn if able else False,
            udp_encap=able.udp_encap if able else False,
            max_replay_window=able.max_replay_window if able else 0,
            gre=able.gre if able else False,
            vxlan=able.vxlan if able else False,
            absent=absent,
            asleep=asleep,
        )

    async def open(self) -> None:
        """Open the engine. Raises EngineUnavailable; it may be tried again."""
        self.capabilities = await self.engine.open()
        await self.on_open()
        self._epoch = self.engine.epoch
        self._absent = self.trouble = ""
        log.info("engine is up", engine=str(self.engine.name), note=self.capabilities.note)

    async def begin_anew(self) -> None:
        """As when it was opened: what was taken from it meanwhile is not its own any more. One that is away will be."""
        if self.up:
            await self.on_open()

    async def read_counters(self) -> Mapping[SaKey, Counters]:
        """Read the counters now and return them; the last known ones stay if the engine does not tell."""
        try:
            if self.up:
                fresh = await self.engine.counters()
                self._note(fresh)
                return fresh
        except EngineUnavailable as error:
            self.lose(str(error))
        except EngineError as error:
            self.tell(f"the engine's counters cannot be read: {error}")
        return {}

    async def look(self) -> Mapping[SaKey, Counters]:
        """Read the counters, and notice whether the engine lost its objects since the last look: ``losses`` grows.

        Returned are counters of an engine that is alive, nothing otherwise.
        """
        fresh = await self.read_counters()
        if self.up and self.engine.epoch != self._epoch:
            self.lose("it restarted")
            return {}
        if fresh:
            self.on_counters(fresh)
        return fresh

    async def hear(self) -> Heard:
        """:meth:`look`, and the numbers that inbound SAs had just before; with the last counters of SAs that have left
        the engine. Nothing while it is away.
        """
        numbers: Mapping[SaKey, int] = {}
        try:
            if self.up:
                numbers = await self.engine.numbers()
        except EngineError as error:  # the look tells if it is gone
            self.tell(f"the engine's inbound numbers cannot be read: {error}")
        await self.look()
        return Heard(self._counters if self.up else {}, numbers)

    async def received(self, keys: Collection[SaKey]) -> Mapping[SaKey, int]:
        """The highest number that the engine accepted with each of these inbound SAs; nothing while it is away."""
        try:
            numbers = await self.engine.numbers() if self.up else {}
        except EngineUnavailable as error:
            self.lose(str(error))
            return {}
        return {key: numbers[key] for key in keys if key in numbers}

    def sent(self, key: SaKey) -> Counters | None:
        """The last known counters of an SA, None if it was never seen in the engine."""
        return self._counters.get(key)

    def counters(self) -> Mapping[SaKey, Counters]:
        """The last known counters of all SAs."""
        return self._counters

    def _note(self, fresh: Mapping[SaKey, Counters]) -> None:
        """A mapping of its own each time: the guardian's thread may be at work with the one before."""
        self._counters = {**self._counters, **fresh}

    def forget(self, alive: Iterable[SaKey]) -> None:
        """Drop the counters of SAs that the kernel does not have any more."""
        known = set(alive)
        self._counters = {key: value for key, value in self._counters.items() if key in known}

    async def retrieve(self) -> Mapping[EngineKey, EngineObject]:
        """What the engine holds; nothing while it is away."""
        return await self.engine.retrieve() if self.up else {}

    async def create(self, obj: ManagedObject) -> None:
        """Create an object in the engine."""
        try:
            await self.engine.create(_engine_object(obj))
        except EngineUnavailable as error:
            self.lose(str(error))
            raise

    async def update(self, obj: ManagedObject) -> None:
        """Update an object in the engine."""
        try:
            await self.engine.update(_engine_object(obj))
        except EngineUnavailable as error:
            self.lose(str(error))
            raise

    async def delete(self, obj: ManagedObject) -> None:
        """Delete an object; of an SA the final counters are read first, the kernel continues behind them."""
        if not self.up:
            return
        if isinstance(obj, EngineSa):
            self._note(await self.engine.counters())
        await self.engine.delete(_engine_object(obj).key)

    def rest(self) -> None:
        """Give the engine nothing any more: it is about to be stopped. What it counted last is kept."""
        if self.up:
            self._note(self.engine.last_counters())
            self._absent = f"engine {self.engine.name} is not in use"

    def lose(self, why: str) -> None:
        """The engine is gone, with its objects. What it counted last is kept, if that can still be read."""
        if self.up:
            self.losses += 1
            self._note(self.engine.last_counters())
            self._absent = f"engine {self.engine.name} is away"
            self.trouble = why
            log.error("engine lost", engine=str(self.engine.name), reason=why)
            self.tell(f"the engine was lost: {why}")


def _engine_object(obj: ManagedObject) -> EngineObject:
    if not isinstance(obj, EngineSa | NextHop | Tunnel | Overlay):
        raise TypeError(f"{obj!r} is not an engine's object")
    return obj
