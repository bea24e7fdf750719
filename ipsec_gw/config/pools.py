"""Pools of source NAT."""

from __future__ import annotations

from dataclasses import replace

from ipsec_gw.config.context import Context, tables
from ipsec_gw.config.firewall import PoolShape
from ipsec_gw.config.limits import MAX_POOL_ADDRESSES, MAX_POOLS
from ipsec_gw.config.literals import prefix_of, span_of_addresses
from ipsec_gw.config.names import check_name
from ipsec_gw.config.positions import Path
from ipsec_gw.config.problems import Refused, Report, dotted, one_of
from ipsec_gw.config.section import read
from ipsec_gw.config.vpp_pools import check_vpp_pool, moves_of
from ipsec_gw.model.firewall import Blocks, Pool

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
        if other.blocks is not None:
            message = f"pool {other.name} has blocks, which are subscribers' for good"
            self._report.add(path, message, "name a pool without blocks")
        if other.engine is not pool.engine:
            self._report.add(path, f"pool {other.name} has addresses of VPP's, this one has not", "name a pool of XDP")
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
    pool = Pool(name, first, last, shape.ports, shape.persistent, shape.overflow, engine=shape.engine)
    moves = moves_of(path, shape, report)
    if not check_vpp_pool(path, pool, shape, report) or moves is None:
        return None
    pool = replace(pool, moves=moves)
    return _with_blocks(pool, shape, path, report)


def _with_blocks(pool: Pool, shape: PoolShape, path: Path, report: Report) -> Pool | None:
    """Blocks of ports for subscribers, if the pool has them: nothing that contradicts them, and room for all."""
    if shape.block is None and shape.subscribers is None:
        return pool
    blocks = _blocks(pool, shape, path, report)
    if blocks is None:
        return None
    made = replace(pool, blocks=blocks)
    room = made.blocks_of_an_address * (int(pool.last) - int(pool.first) + 1)
    count = blocks.subscribers.num_addresses
    if room < count:
        message = f"room for {room} blocks of {blocks.size} ports, and {blocks.subscribers} are {count}"
        report.add((*path, "block"), message, "write a smaller block, fewer subscribers or more addresses")
        return None
    return made


def _blocks(pool: Pool, shape: PoolShape, path: Path, report: Report) -> Blocks | None:
    if shape.block is None or shape.subscribers is None:
        given, missing = ("block", "subscribers") if shape.subscribers is None else ("subscribers", "block")
        report.add((*path, given), f"{missing} is missing beside it", f"add {missing}, or remove {given}")
        return None
    for option, is_set in (("persistent", shape.persistent), ("overflow", shape.overflow is not None)):
        if is_set:
            report.add((*path, option), "a block of ports is a subscriber's for good", f"remove {option}, or block")
            return None
    try:
        subscribers = prefix_of(shape.subscribers)
    except Refused as refused:
        report.refuse((*path, "subscribers"), refused)
        return None
    if subscribers.version != 4 or pool.first.version != 4:
        report.add((*path, "subscribers"), "blocks of ports are for IPv4", "write prefixes of IPv4, or remove block")
        return None
    return Blocks(shape.block, subscribers)


def _meet(one: Pool, two: Pool) -> bool:
    if one.first.version != two.first.version:
        return False
    addresses = int(one.first) <= int(two.last) and int(two.first) <= int(one.last)
    return addresses and one.ports[0] <= two.ports[1] and two.ports[0] <= one.ports[1]
