"""An index of IP networks: which of many overlap with a given one, without looking at all of them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import Generic, TypeVar

from ipsec_gw.model.ids import IpNetwork

V = TypeVar("V")


class PrefixIndex(Generic[V]):
    """Values by network, several per network allowed, in the order in which they were given.

    Two networks overlap exactly when one of them contains the other. The containing ones are found by one look per
    prefix length in use, the contained ones are neighbours in the order of first addresses.
    """

    def __init__(self, entries: Iterable[tuple[IpNetwork, V]]) -> None:
        families: dict[int, dict[tuple[int, int], list[V]]] = {}
        for network, value in entries:
            first, length = int(network.network_address), network.prefixlen
            families.setdefault(network.version, {}).setdefault((first, length), []).append(value)
        self._families = {version: _Family(groups) for version, groups in families.items()}

    def overlapping(self, network: IpNetwork) -> Iterator[list[V]]:
        """The values of every network that overlaps with this one, a list for each network."""
        family = self._families.get(network.version)
        return family.overlapping(network) if family else iter(())

    def breadth(self, network: IpNetwork) -> int:
        """How many values :meth:`overlapping` has for this network."""
        family = self._families.get(network.version)
        return family.breadth(network) if family else 0


class _Family(Generic[V]):
    """The networks of one IP version; a key is (first address, prefix length)."""

    def __init__(self, groups: dict[tuple[int, int], list[V]]) -> None:
        self._groups = groups
        self._ordered = sorted(groups)
        self._lengths = sorted({length for _, length in groups})
        self._before = [0, *accumulate(len(groups[key]) for key in self._ordered)]

    def overlapping(self, network: IpNetwork) -> Iterator[list[V]]:
        yield from self._around(network)
        start, end = self._inside(network)
        for key in self._ordered[start:end]:
            yield self._groups[key]

    def breadth(self, network: IpNetwork) -> int:
        start, end = self._inside(network)
        return self._before[end] - self._before[start] + sum(map(len, self._around(network)))

    def _around(self, network: IpNetwork) -> Iterator[list[V]]:
        """The values of networks that contain this one and more."""
        first, bits = int(network.network_address), network.max_prefixlen
        for length in self._lengths:
            if length >= network.prefixlen:
                return
            found = self._groups.get((first >> bits - length << bits - length, length))
            if found is not None:
                yield found

    def _inside(self, network: IpNetwork) -> tuple[int, int]:
        """Where the networks inside this one lie in the order, itself included."""
        start = bisect_left(self._ordered, (int(network.network_address), network.prefixlen))
        return start, bisect_left(self._ordered, (int(network.broadcast_address) + 1, 0), lo=start)
