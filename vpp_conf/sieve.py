"""An input classifier whose rules come and go without a gap, on interfaces that share it.

It is a chain of VPP's classifier tables for each IP version, one for each mask, in the order of :class:`Stage`. A rule
is a session in the table of its mask; a new mask is a new table, which is linked in once it is complete. What fits no
rule is dropped, or goes on as if nothing had been asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from enum import IntEnum

from vpp_conf.api import VppApi
from vpp_conf.descriptors.base import NO_INDEX
from vpp_conf.descriptors.classify import VERSIONS, Chains, Check, CheckDescriptor, Pair
from vpp_conf.journal import Journal


class Stage(IntEnum):
    """Which rules are asked first."""

    OUTER = 0
    EXCEPTION = 1
    OVERLAY = 2
    INNER = 3


@dataclass(frozen=True, slots=True, order=True)
class Mask:
    """What a table compares, and when it is asked. The first table of a chain stays for good."""

    stage: Stage
    octets: bytes


@dataclass(frozen=True, slots=True)
class Sift:
    """A rule: what fits goes to this next index of the classifier's node, without ``advance`` bytes at its beginning.
    Whoever looks there for its FIB finds ``table``, which VPP does not tell.
    """

    version: int
    mask: Mask
    match: bytes
    following: int
    advance: int = 0
    table: int | None = field(default=None, compare=False)

    @property
    def place(self) -> tuple[int, Mask, bytes]:
        """What it fits: one rule has it."""
        return self.version, self.mask, self.match


@dataclass(frozen=True, slots=True)
class _Table:
    index: int
    mask: Mask


class Sieve:
    """The rules on some interfaces. ``firsts`` are the masks of the first tables; ``miss`` is the next index of what
    fits nothing. The journal tells which stage a table is of.
    """

    def __init__(
        self, api: VppApi, journal: Journal, name: str, interfaces: Sequence[int], firsts: Mapping[int, Mask], miss: int
    ) -> None:
        self._api = api
        self._checks = CheckDescriptor(api)
        self._journal = journal
        self._name = name
        self._interfaces = tuple(interfaces)
        self._firsts = firsts
        self._miss = miss
        self._chains: dict[int, list[_Table]] = {}
        self.rules: frozenset[Sift] = frozenset()

    async def open(self) -> None:
        """Adopt what an earlier daemon left; without a whole chain begin with an empty one."""
        held = [await self._checks.chains_of(index) for index in self._interfaces]
        recorded = self._recorded()
        if any(chains != recorded for chains in held) or not recorded.whole:
            await self._begin(held)
            return
        self.rules = frozenset([sift for version in VERSIONS for sift in await self._sifts(version)])

    def _recorded(self) -> Chains:
        """The chains that the journal knows, of which the tables are remembered."""
        self._chains = {version: [] for version in VERSIONS}
        for row in self._journal.rows("sieve"):
            if row["name"] == self._name:
                self._chains[row["version"]] = [
                    _Table(index, Mask(Stage(stage), bytes.fromhex(octets))) for index, stage, octets in row["tables"]
                ]
        return Chains(*(tuple(table.index for table in self._chains[version]) for version in VERSIONS))

    async def _begin(self, held: Sequence[Chains]) -> None:
        """With the first tables alone."""
        for index, chains in zip(self._interfaces, held, strict=True):
            await self._checks.attach(_check(index, chains), is_add=False)
        left = {table for chains in held for version in VERSIONS for table in chains.of(version)}
        await self._checks.drop(sorted(left))
        for version in VERSIONS:
            first = self._firsts[version]
            self._chains[version] = [_Table(await self._add_table(first, NO_INDEX), first)]
            self._record(version)
        made = self._recorded()
        for index in self._interfaces:
            await self._checks.attach(_check(index, made), is_add=True)
        self.rules = frozenset()

    async def turn(self, rules: frozenset[Sift]) -> None:
        """Have these rules and no others. Raises EngineError, with as many changed as it takes to say so: call it again
        with those of before.
        """
        for sift in rules - self.rules:
            await self._add(sift)
        places = {sift.place for sift in rules}
        for sift in self.rules - rules:
            if sift.place in places:  # it leads elsewhere now
                self.rules -= {sift}
            else:
                await self._remove(sift)

    async def _add(self, sift: Sift) -> None:
        table = next((one for one in self._chains[sift.version] if one.mask == sift.mask), None)
        if table is None:
            await self._link(sift)
        else:
            await self._put(table.index, sift)
        self.rules |= {sift}

    async def _put(self, table: int, sift: Sift) -> None:
        await self._checks.add_session(table, sift.match, sift.following, sift.advance, sift.table)

    async def _link(self, sift: Sift) -> None:
        """A table with its first rule."""
        chain = self._chains[sift.version]
        place = next((at for at, one in enumerate(chain) if at and one.mask > sift.mask), len(chain))
        following = chain[place].index if place < len(chain) else NO_INDEX
        index = await self._add_table(sift.mask, following)
        async with AsyncExitStack() as undo:
            undo.push_async_callback(self._checks.drop, [index])
            await self._put(index, sift)
            await self._checks.follow(chain[place - 1].index, index)
            undo.pop_all()
        chain.insert(place, _Table(index, sift.mask))
        self._record(sift.version)

    async def _remove(self, sift: Sift) -> None:
        chain = self._chains[sift.version]
        place = next(at for at, one in enumerate(chain) if one.mask == sift.mask)
        await self._checks.delete_session(chain[place].index, sift.match)
        self.rules -= {sift}
        if place and not any((one.version, one.mask) == (sift.version, sift.mask) for one in self.rules):
            following = chain[place + 1].index if place + 1 < len(chain) else NO_INDEX
            await self._checks.follow(chain[place - 1].index, following)
            gone = chain.pop(place)
            self._record(sift.version)
            await self._checks.drop([gone.index])

    async def _add_table(self, mask: Mask, following: int) -> int:
        return await self._checks.add_table(mask.octets, following, self._miss, roomy=True)

    async def _sifts(self, version: int) -> list[Sift]:
        found = []
        for table in self._chains[version]:
            for detail in await self._api.dump("classify_session_dump", table_id=table.index):
                rule = version, table.mask, bytes(detail.match), detail.hit_next_index, detail.advance
                found.append(Sift(*rule))
        return found

    def _record(self, version: int) -> None:
        tables = [[one.index, int(one.mask.stage), one.mask.octets.hex()] for one in self._chains[version]]
        row = {"name": self._name, "version": version, "tables": tables}
        self._journal.put("sieve", f"{self._name}/{version}", row)


def _check(sw_if_index: int, chains: Chains) -> Check:
    """For its interface and chains alone."""
    return Check(sw_if_index, frozenset(), Pair(0, 0), None, chains)
