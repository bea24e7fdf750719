"""Which tunnel plaintext goes into, as VPP's FIB decides it: by destination, and where tunnels share one by source too.

The decision is exact because a packet matches one tunnel alone, or the selectors of one lie inside another's on both
sides: then the narrower one has it (:meth:`EncapMap.conflict`; strongSwan's policies decide between others that
overlap, and `desired` leaves the loser to the kernel). Protocols and ports are not looked at.

A destination that one tunnel alone has, or tunnels behind the gate alone, is a plain route to it. One that several
have, or that lies inside another tunnel's, leads to a table of its own, in which the *source* is looked up: of all
destinations that contain it.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass

from ipsec_gw.errors import EngineError
from ipsec_gw.model.ids import IpAddress, IpNetwork
from ipsec_gw.model.objects import Selector
from vpp_conf.descriptors.route import ENCAP_TABLE, SHARED_TABLES, Route

_NONE: frozenset[Selector] = frozenset()

FIRST_GATE_WAY, FIRST_WHOLE_WAY = 0x8000_0000, 0xC000_0000
"""From here on numbers stand for tunnels behind the gates (:mod:`vpp_conf.gates`), below they are ``sw_if_index``.
Those from the second on get whole packets.
"""


@dataclass(frozen=True, slots=True)
class Hop:
    """An interface and its next hops by IP version."""

    sw_if_index: int
    hop4: IpAddress
    hop6: IpAddress

    def route(self, table: int, prefix: IpNetwork) -> Route:
        """The way to it."""
        return Route(table, prefix, self.sw_if_index, self.hop4 if prefix.version == 4 else self.hop6)


@dataclass(frozen=True, slots=True)
class Gate:
    """Where plaintext of all tunnels goes that have no interface: as it is, or by where fragments are put together."""

    direct: Hop
    whole: Hop

    def route(self, table: int, prefix: IpNetwork, way: int) -> Route:
        """The way to it for this tunnel."""
        return (self.direct if way < FIRST_WHOLE_WAY else self.whole).route(table, prefix)


@dataclass(frozen=True, slots=True)
class Change:
    """What :meth:`EncapMap.put` did: ``affected`` destinations may have other routes now, the rest is to undo it."""

    interface: int
    affected: frozenset[IpNetwork]
    former: frozenset[Selector]
    former_tables: Mapping[IpNetwork, int]


class EncapMap:
    """The selectors of all tunnels, by ``sw_if_index`` or number behind the gate, and the routes that follow. Pure."""

    def __init__(
        self,
        tunnels: Mapping[int, frozenset[Selector]] | None = None,
        tables: Mapping[IpNetwork, int] | None = None,
        gate: Gate | None = None,
    ) -> None:
        """``tables`` are those that VPP has already, by the destination that leads to them. Raises EngineError."""
        self.gate = gate
        self._selectors: dict[int, frozenset[Selector]] = {}
        self._ways: dict[IpNetwork, dict[IpNetwork, list[int]]] = {}
        self._ordered: list[_Key] = []
        self._networks: dict[_Key, IpNetwork] = {}
        self._lengths: Counter[tuple[int, int]] = Counter()
        self._tables = dict(tables or {})
        for interface, selectors in (tunnels or {}).items():
            self._replace(interface, _NONE, networks_of(selectors))
        self._assign_tables(self._ways.keys() | self._tables.keys())

    def selectors(self, interface: int) -> frozenset[Selector]:
        """What leads to this tunnel."""
        return self._selectors.get(interface, _NONE)

    def all_routes(self) -> dict[IpNetwork, frozenset[Route]]:
        """The routes of every destination."""
        return {destination: self.routes(destination) for destination in self._ways}

    def conflict(
        self, interface: int | None, selectors: Iterable[Selector], *, whole: bool = False
    ) -> tuple[Selector, int] | None:
        """The first of these selectors that has packets in common with another tunnel, which lies neither inside it nor
        around it, and that tunnel. Those that get ``whole`` packets have the same networks: the SPD knows their ports.
        """
        for selector in selectors:
            for destination in (*self._around(selector.destination), *self._inside(selector.destination)):
                for source, others in self._ways[destination].items():
                    for other in others:
                        same = whole and other >= FIRST_WHOLE_WAY
                        if (
                            other != interface
                            and not same
                            and _confused(selector.networks, Selector(source, destination))
                        ):
                            return selector, other
        return None

    def put(self, interface: int, selectors: frozenset[Selector]) -> Change:
        """Give a tunnel these selectors, whose networks count; none to forget it.

        Raises EngineError, and changes nothing, if too many destinations are shared.
        """
        selectors = networks_of(selectors)
        former, tables = self.selectors(interface), dict(self._tables)
        touched = frozenset(selector.destination for selector in former ^ selectors)
        self._replace(interface, former, selectors)
        affected = touched.union(*(self._inside(destination) for destination in touched))
        change = Change(interface, affected, former, tables)
        try:
            self._assign_tables(affected)
        except EngineError:
            self.undo(change)
            raise
        return change

    def undo(self, change: Change) -> None:
        """Take the last change back."""
        self._replace(change.interface, self.selectors(change.interface), change.former)
        self._tables = dict(change.former_tables)

    def routes(self, destination: IpNetwork) -> frozenset[Route]:
        """All routes that packets for this destination need; none if no tunnel has it."""
        if destination not in self._ways:
            return frozenset()
        table = self._tables.get(destination)
        ways = self._all_ways(destination)
        if table is None:
            return frozenset({self._route(ENCAP_TABLE, destination, next(iter(ways.values())))})
        by_source = (self._route(table, source, way) for source, way in ways.items())
        return frozenset({Route(ENCAP_TABLE, destination, by_source=table), *by_source})

    def _route(self, table: int, prefix: IpNetwork, way: int) -> Route:
        if way < FIRST_GATE_WAY or self.gate is None:
            return Route(table, prefix, way)
        return self.gate.route(table, prefix, way)

    def _replace(self, interface: int, former: frozenset[Selector], selectors: frozenset[Selector]) -> None:
        for selector in former - selectors:
            ways = self._ways[selector.destination]
            ways[selector.source].remove(interface)
            if not ways[selector.source]:
                del ways[selector.source]
            if not ways:
                self._drop(selector.destination)
        for selector in selectors - former:
            if selector.destination not in self._ways:
                self._add(selector.destination)
            self._ways[selector.destination].setdefault(selector.source, []).append(interface)
        if selectors:
            self._selectors[interface] = selectors
        else:
            self._selectors.pop(interface, None)

    def _add(self, destination: IpNetwork) -> None:
        key = _key(destination)
        self._ways[destination] = {}
        self._networks[key] = destination
        insort(self._ordered, key)
        self._lengths[destination.version, destination.prefixlen] += 1

    def _drop(self, destination: IpNetwork) -> None:
        key = _key(destination)
        del self._ways[destination]
        del self._networks[key]
        del self._ordered[bisect_left(self._ordered, key)]
        self._lengths[destination.version, destination.prefixlen] -= 1

    def _assign_tables(self, destinations: Set[IpNetwork]) -> None:
        """A table for each that is shared, and for no other. Raises EngineError."""
        shared = {one for one in destinations if one in self._ways and self._leads_apart(one)}
        for destination in destinations - shared:
            self._tables.pop(destination, None)
        for destination in sorted(shared - self._tables.keys(), key=_key):
            taken = set(self._tables.values())
            free = next((number for number in SHARED_TABLES if number not in taken), None)
            if free is None:
                raise EngineError(
                    f"{destination} is shared by tunnels, and so are {len(SHARED_TABLES)} others already"
                    " - leave it to the kernel"
                )
            self._tables[destination] = free

    def _leads_apart(self, destination: IpNetwork) -> bool:
        """It is not enough to know it: of those behind the gate an SPD decides."""
        return len({_place_of(way) for way in self._all_ways(destination).values()}) > 1

    def _all_ways(self, destination: IpNetwork) -> dict[IpNetwork, int]:
        """The tunnels by source of all destinations that contain this one; of one source the narrowest has it, and of
        several that stand in one place any will do.
        """
        around = sorted(self._around(destination), key=lambda one: one.prefixlen)
        return {source: ways[0] for one in around for source, ways in self._ways[one].items()}

    def _around(self, network: IpNetwork) -> Iterator[IpNetwork]:
        """The destinations that contain a network, itself included."""
        for (version, length), count in self._lengths.items():
            if count and version == network.version and length <= network.prefixlen:
                wider = network.supernet(new_prefix=length)
                if wider in self._ways:
                    yield wider

    def _inside(self, network: IpNetwork) -> Iterator[IpNetwork]:
        """The destinations that lie inside a network and are narrower."""
        version, first, length = _key(network)
        start = bisect_left(self._ordered, (version, first, length + 1))
        end = bisect_left(self._ordered, (version, int(network.broadcast_address) + 1, 0), lo=start)
        return (self._networks[key] for key in self._ordered[start:end])


def _place_of(way: int) -> int:
    """An interface, or the first number of those who share one."""
    return next((first for first in (FIRST_WHOLE_WAY, FIRST_GATE_WAY) if way >= first), way)


def networks_of(selectors: Iterable[Selector]) -> frozenset[Selector]:
    """The same without protocols and ports."""
    return frozenset(selector.networks for selector in selectors)


def _confused(one: Selector, other: Selector) -> bool:
    """Whether a packet matches both, and neither lies inside the other on both sides."""
    if not one.networks_meet(other):
        return False
    narrower = [one.source.prefixlen - other.source.prefixlen, one.destination.prefixlen - other.destination.prefixlen]
    return narrower == [0, 0] or min(narrower) < 0 < max(narrower)


_Key = tuple[int, int, int]
"""Version, first address, prefix length: what lies inside a network follows it."""


def _key(network: IpNetwork) -> _Key:
    return network.version, int(network.network_address), network.prefixlen
