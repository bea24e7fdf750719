"""Pools of source NAT."""

from __future__ import annotations

from ipsec_gw.config.context import Context, tables
from ipsec_gw.config.firewall import PoolShape
from ipsec_gw.config.limits import MAX_POOL_ADDRESSES, MAX_POOLS
from ipsec_gw.config.literals import span_of_addresses
from ipsec_gw.config.names import check_name
from ipsec_gw.config.positions import Path
from ipsec_gw.config.problems import Refused, Report, dotted, one_of
from ipsec_gw.config.section import read
from ipsec_gw.model.firewall import Pool

PREFIX: Path = ("nat", "pools")


class Pools:
    """``[nat.pools]``; what is wrong with it goes to the report when it is made. ``found`` are the good ones."""

    def __init__(self, raw: object, context: Context) -> None:
        self._report = context.report
        entries = tables(raw, PREFIX, self._report)
        self._names = frozenset(entries)
        self.found: dict[str, Pool] = {}
        for number, (name, value) in enumerate(entries.items(), 1):
            if number == MAX_POOLS + 1:
                message = f"{len(entries)} pools are too many"
                self._report.add((*PREFIX, name), message, f"{MAX_POOLS} is the most: put addresses together")
            pool = _pool(name, value, self._report)
            if pool is not None:
                self._check_overlap(pool)
                self.found[name] = pool
        for pool in self.found.values():
            self._check_overflow(pool)

    def lookup(self, path: Path, name: str) -> Pool | None:
        """The pool of that name; None if the report has an error."""
        if name not in self._names:
            way_out = f"define [{dotted((*PREFIX, name))}] or write one of: {one_of(sorted(self._names))}"
            self._report.add(path, f"unknown pool {name!r}", way_out)
        return self.found.get(name)

    def _check_overlap(self, pool: Pool) -> None:
        """An address with a port is in one pool: two of them would hand it out twice."""
        for other in self.found.values():
            if _meet(pool, other):
                line = self._report.line((*PREFIX, other.name))
                message = f"shares addresses and ports with pool {other.name} (line {line})"
                place = (*PREFIX, pool.name, "addresses")
                self._report.add(place, message, "give them other addresses, or ports that do not overlap")

    def _check_overflow(self, pool: Pool) -> None:
        path = (*PREFIX, pool.name, "overflow")
        if pool.overflow is None:
            return
        if pool.overflow == pool.name:
            self._report.add(path, "overflows into itself", "name another pool or remove it")
            return
        other = self.lookup(path, pool.overflow)
        if other is None:
            return
        if other.overflow is not None:
            message = f"pool {other.name} has an overflow itself, and only one is asked"
            self._report.add(path, message, f"remove the overflow of {other.name} or of this pool")
        if other.first.version != pool.first.version:
            message = f"pool {other.name} is IPv{other.first.version}, this one is IPv{pool.first.version}"
            self._report.add(path, message, "name a pool of the same family")


def _pool(name: str, value: object, report: Report) -> Pool | None:
    path: Path = (*PREFIX, name)
    try:
        check_name(name)
    except Refused as refused:
        report.refuse(path, refused)
        return None
    shape = read(PoolShape, value, path, report)
    if shape is None:
        return None
    try:
        first, last = span_of_addresses(shape.addresses)
        size = int(last) - int(first) + 1
        if size > MAX_POOL_ADDRESSES:
            raise Refused(f"{size} addresses are too many", f"{MAX_POOL_ADDRESSES} is the most: write fewer")
    except Refused as refused:
        report.refuse((*path, "addresses"), refused)
        return None
    return Pool(name, first, last, shape.ports, shape.persistent, shape.overflow)


def _meet(one: Pool, two: Pool) -> bool:
    if one.first.version != two.first.version:
        return False
    addresses = int(one.first) <= int(two.last) and int(two.first) <= int(one.last)
    return addresses and one.ports[0] <= two.ports[1] and two.ports[0] <= one.ports[1]
