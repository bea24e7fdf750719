"""The guardian: keeps the kernel's copies of SAs that an engine carries warm (DESIGN.md, invariant 4).

Each tick brings volumes and inbound windows of the SAs that have moved up to what the engine tells, so that charon
counts, rekeys by volume and sees life as if the kernel carried them, and so that the kernel's windows are shut to what
the engine has seen. Outbound numbers are not written here (:meth:`ipsec_gw.ownership.guard.GuardDriver.keep_ahead`).

A volume too is read and then written: what the kernel counts between is lost. So nothing is written of an SA that
changes hands, before the engine has all of its packets: before its steering or its leads are in place.

A window is read and then written, and the kernel may receive a packet between: then its window is moved back behind
that packet, which could be accepted once more. While the engine lives that is no more than is always so between two
ticks (what the engine received since the last one), and the next tick mends it. When the engine dies in that very
moment, it concerns what came within the milliseconds of one tick's work, for as long as it takes the kernel to receive
a window of newer packets; the kernel has no way to move a window only forwards.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol, TypeVar

from ipsec_gw.engines.port import Counters, Heard
from ipsec_gw.errors import XfrmError
from ipsec_gw.model.ids import SaKey
from ipsec_gw.model.warmth import NOTHING, Expiry, SaState, Volume, Warming, adopted, expiry, warming

BATCH = 64
"""Writes between two looks whether the engine still lives."""

LARGEST_SHARE = 0.1
"""Of one processor, for the guardian: with many SAs the ticks come less often."""


class SaStates(Protocol):
    """The kernel's SAs in bulk."""

    def states(self) -> Sequence[SaState]:
        """Of all of them."""

    def write(self, warmings: Sequence[Warming]) -> int:
        """Write them; how many the kernel took."""


class Ledger(Protocol):
    """What the kernel itself has counted of SAs, for daemons that come later: :mod:`ipsec_gw.ownership.handovers`."""

    begun: bool

    def recall(self, state: SaState) -> Volume | None:
        """Of this SA, as far as it is known."""

    def keep(self, counted: Iterable[tuple[SaState, Volume]], alive: Collection[SaState]) -> None:
        """Of SAs of which it has changed, among those that there are."""

    def only(self, alive: Iterable[SaState]) -> None:
        """Of no others than those that there are."""


@dataclass(frozen=True, slots=True)
class Tick:
    """What a tick cost: SAs that the engine has, SAs written, seconds of a processor."""

    carried: int
    written: int
    seconds: float

    def rest(self, shortest: float) -> float:
        """Seconds until the next one, so that it takes no more than its share."""
        return max(shortest, self.seconds / LARGEST_SHARE - self.seconds)


class Guardian:
    """One for the life of the daemon. :meth:`tick` may run in a thread, one at a time; ``moved`` are the SAs that had
    carried something at the last one.

    ``expire`` is told of SAs whose volume limits are reached. ``waited`` tells of an outbound SA what the kernel has
    encrypted and the engine sends all the same: both count it. ``ledger`` is what the last daemon left, and the next
    one finds. ``now`` is Unix time. Making one raises XfrmError.
    """

    def __init__(
        self,
        sas: SaStates,
        expire: Callable[[SaKey, Expiry], None],
        ledger: Ledger,
        waited: Callable[[SaKey], Volume] = lambda _key: NOTHING,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._sas = sas
        self._expire = expire
        self._now = now
        self._born = int(now())
        there = sas.states()
        self._found = {state.key: state for state in there}
        self._twins = frozenset(state.key for state in there if state.add_time == self._born)
        self._ledger = ledger
        ledger.only(there)
        self._waited = waited
        self._told: dict[SaKey, Volume] = {}
        self._left_out: dict[SaKey, Volume] = {}
        self._own: dict[SaKey, Volume] = {}
        self._tops: dict[SaKey, tuple[int, int]] = {}
        self._expired: set[SaKey] = set()
        self._buried: set[SaKey] = set()
        self._settled: set[SaKey] = set()
        self.last = Tick(0, 0, 0.0)
        self.moved: frozenset[SaKey] = frozenset()

    def told(self, key: SaKey, total: Counters) -> Volume:
        """How much of the ``total`` that the engine carried is in the kernel's volume of an SA: also before the first
        tick, where an earlier daemon has written it.
        """
        found = self._found.get(key)
        if key in self._told or found is None:
            return self._told.get(key, NOTHING)
        return self._told_before(found, Volume(total.packets, total.octets))

    def untold(self, key: SaKey, total: Counters) -> Volume:
        """How much of what the engine carried is not in the kernel's volume of an SA, neither written nor counted by
        the kernel itself because it had waited.
        """
        fresh = Volume(total.packets, total.octets).minus(self.told(key, total))
        return fresh.minus(self._counted_twice(key, fresh))

    def unsettled(self, keys: Iterable[SaKey]) -> bool:
        """Whether any of these has never been written: :meth:`tick` has to be told then whose the engine has alone."""
        return any(key not in self._settled for key in keys)

    def tick(
        self,
        heard: Heard,
        local: Callable[[SaKey], bool],
        alive: Callable[[], bool],
        alone: Container[SaKey] | None = None,
    ) -> Tick:
        """Write what has moved. ``local`` tells inbound SAs; as soon as ``alive`` says no, nothing is written any more.
        An SA is written for the first time when it is among those that the engine has ``alone``; None: all of them.

        Raises XfrmError.
        """
        began = time.thread_time()
        self._note_tops(heard)
        warmings = self._due(heard.counters, local, alone)
        self.moved = frozenset(warm.state.key for warm in warmings)
        written = 0
        for batch in _batches(warmings, BATCH):
            if not alive():
                break
            written += self._write(batch, heard.counters)
        self.last = Tick(len(heard.counters), written, time.thread_time() - began)
        return self.last

    def bury(self, last: Mapping[SaKey, Counters], local: Callable[[SaKey], bool]) -> Tick:
        """The engine is gone, these are its last counters: the kernel's copies get all of it. The next engine begins
        at nothing.
        """
        tick = self.tick(Heard(last, {}), local, lambda: True)
        self._buried = set(self._told)
        self._settled.clear()
        self._tops.clear()
        return tick

    def _note_tops(self, heard: Heard) -> None:
        for key, number in heard.numbers.items():
            if key in heard.counters:
                self._tops[key] = (number, heard.counters[key].packets)

    def _due(
        self, counters: Mapping[SaKey, Counters], local: Callable[[SaKey], bool], alone: Container[SaKey] | None
    ) -> list[Warming]:
        due, own, now = [], {}, int(self._now())
        states = {state.key: state for state in self._sas.states()} if self._moved(counters) else {}
        for key, count in counters.items():
            state = states.get(key)
            if state is None or not self._settles(state, alone):
                continue
            carried = Volume(count.packets, count.octets)
            told = self._told.setdefault(key, self._told_before(state, carried))
            if key in self._buried or carried.packets < told.packets:
                told = self._told[key] = NOTHING  # the engine has it anew
                self._buried.discard(key)
            twice = self._counted_twice(key, carried.minus(told))
            warm = warming(state, carried, told.plus(twice), self._top(key, carried) if local(key) else None, now)
            if warm is not None:
                due.append(warm)
                self._left_out[key] = self._left_out.get(key, NOTHING).plus(twice)
            own[key] = state.used.minus(told.plus(twice)) if warm is None else warm.used.minus(carried)
        self._note_own(own, states)
        if states:
            self._forget(states.keys())
        return due

    def _note_own(self, own: Mapping[SaKey, Volume], states: Mapping[SaKey, SaState]) -> None:
        """What the kernel itself has counted, for the next daemon: before it is written what the engine has."""
        changed = {key: volume for key, volume in own.items() if self._own.get(key) != volume}
        self._own |= changed
        self._ledger.keep([(states[key], volume) for key, volume in changed.items()], states.values())

    def _settles(self, state: SaState, alone: Container[SaKey] | None) -> bool:
        """An SA that is older than this daemon has changed hands before."""
        if alone is None or state.key in alone or self._is_older(state):
            self._settled.add(state.key)
        return state.key in self._settled

    def _is_older(self, state: SaState) -> bool:
        """Than the daemon. The kernel tells whole seconds: of the daemon's own, those SAs are that were there."""
        return state.add_time < self._born or state.key in self._twins

    def _counted_twice(self, key: SaKey, fresh: Volume) -> Volume:
        """Of what the engine has carried since the last write: what had waited, and is in the kernel's volume."""
        return self._waited(key).minus(self._left_out.get(key, NOTHING)).at_most(fresh)

    def _told_before(self, state: SaState, carried: Volume) -> Volume:
        """By an earlier daemon, of SAs that are older than this one. What a younger one has is the kernel's own."""
        if not self._is_older(state):
            return NOTHING
        own = self._ledger.recall(state)
        if own is not None:
            return adopted(state, carried, own)
        return NOTHING if self._ledger.begun else adopted(state, carried, NOTHING)

    def _moved(self, counters: Mapping[SaKey, Counters]) -> bool:
        """Whether the kernel has to be asked at all."""
        return any(
            key not in self._told or key in self._buried or self._told[key].packets != count.packets
            for key, count in counters.items()
        )

    def _top(self, key: SaKey, carried: Volume) -> int:
        """The highest number received: the last one that was told, and one at least for each packet since."""
        number, packets = self._tops.get(key, (0, 0))
        return number + max(carried.packets - packets, 0)

    def _write(self, batch: Sequence[Warming], counters: Mapping[SaKey, Counters]) -> int:
        written = self._sas.write(batch)
        for warm in batch:
            count = counters[warm.state.key]
            self._told[warm.state.key] = Volume(count.packets, count.octets)
            self._see_to_limits(warm)
        return written

    def _see_to_limits(self, warm: Warming) -> None:
        limit, key = expiry(warm), warm.state.key
        if limit is Expiry.HARD or (limit is Expiry.SOFT and key not in self._expired):
            self._expired.add(key)
            self._expire(key, limit)

    def _forget(self, alive: Iterable[SaKey]) -> None:
        known = set(alive)
        self._found = {key: state for key, state in self._found.items() if key in known}
        self._told = {key: told for key, told in self._told.items() if key in known}
        self._own = {key: own for key, own in self._own.items() if key in known}
        self._tops = {key: top for key, top in self._tops.items() if key in known}
        self._left_out = {key: volume for key, volume in self._left_out.items() if key in known}
        self._expired &= known
        self._buried &= known
        self._settled &= known


T = TypeVar("T")


def _batches(items: Iterable[T], size: int) -> Iterable[list[T]]:
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch


def expirer(kernel: Expiries, tell: Callable[[str], None]) -> Callable[[SaKey, Expiry], None]:
    """Expires SAs in the kernel, as it would by itself; ``tell`` hears of those that could not be."""

    def expire(key: SaKey, limit: Expiry) -> None:
        try:
            if limit is Expiry.HARD:
                kernel.expire_hard(key)
            else:
                kernel.expire_soft(key)
        except XfrmError as error:
            tell(f"the {limit} volume limit of SA {key} is reached, and charon was not told: {error}")

    return expire


class Expiries(Protocol):
    """The part of the kernel's SA interface that limits need."""

    def expire_soft(self, key: SaKey) -> None:
        """Ask charon for a rekey."""

    def expire_hard(self, key: SaKey) -> None:
        """Delete the SA and tell charon."""
