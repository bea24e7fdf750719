"""Rows as bytes: the map writes that fill a bank."""

from __future__ import annotations

import ctypes
import socket
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ipsec_gw.model.ids import IpAddress
from xdp_steer import filter_layout as fil
from xdp_steer import flow_layout as fl
from xdp_steer import screen_layout as sl
from xdp_steer.compile.ids import Ids
from xdp_steer.compile.rows import (
    FilterRow,
    PolicerRow,
    PoolRow,
    PortRow,
    PrefixRow,
    Rows,
    RuleRow,
    ScreenRow,
    Segments,
    TableRows,
)
from xdp_steer.flow_layout import Dimension, Table
from xdp_steer.layout import AddressLeaf, MapSpec

_CHUNKS = 65536 // fl.SERVICE_CHUNK
_BIT_BYTES = fl.MAX_WORDS * 8


@dataclass(frozen=True, slots=True)
class Write:
    """Entries of one map: ``count`` keys and as many values, one after the other."""

    spec: MapSpec
    keys: bytes
    values: bytes
    count: int

    def each_key(self) -> Iterator[bytes]:
        """The keys one by one."""
        size = ctypes.sizeof(self.spec.key)
        return (self.keys[place : place + size] for place in range(0, len(self.keys), size))


def bank_writes(rows: Rows, bank: int) -> Iterator[Write]:
    """Everything that a bank holds, the ruleset's header last.

    Array rows that these writes leave alone cannot be reached: bits of all zone pairs and of every class, all services,
    all pools, the screens of all zones and as many rules as there are bits are written.
    """
    for table, table_rows in rows.tables.items():
        if table is not Table.FILTER or table_rows.rules:  # without filters nobody looks into it
            yield from _table(table_rows, bank, table)
    yield from _filters(rows, bank)
    pools = [_pool(row) for row in rows.pools]
    pools += [fl.PoolLeaf()] * (fl.MAX_POOLS - len(pools))
    yield _span(fl.POOLS, fl.pool_index(bank, 0), b"".join(map(bytes, pools)), fl.MAX_POOLS)
    yield _prefixes(rows, bank)
    screens = [_screen(rows.screens.get(zone)) for zone in range(fl.MAX_ZONES)]
    yield _span(sl.SCREENS, bank * fl.MAX_ZONES, b"".join(map(bytes, screens)), fl.MAX_ZONES)
    keys = [fl.PortKeyLeaf(row.info.ifindex, row.info.vid, bank) for row in rows.ports]
    yield _entries(fl.PORTS, keys, map(_port, rows.ports))
    yield _span(fl.NEAR_PORTS, bank * fl.MAX_NEAR_PORTS, _near_ports(rows.ports), fl.MAX_NEAR_PORTS)
    yield _span(fl.RULESETS, bank, bytes(_header(rows)), 1)


def vlan_port_write(rows: Rows) -> Write:
    """The VLAN devices of all ports; they belong to no bank."""
    infos = [row.info for row in rows.ports if row.info.vlan]
    keys = [ctypes.c_uint32(info.l3_ifindex) for info in infos]
    return _entries(fl.VLAN_PORTS, keys, (fl.VlanPortLeaf(info.ifindex, info.vid, 0) for info in infos))


def name_write(ids: Ids) -> Write:
    """The names of all numbers."""
    names = ids.names()
    keys = [fl.NameKeyLeaf(kind, number) for kind, number in names]
    return _entries(fl.NAMES, keys, (fl.NameLeaf(name.encode()) for name in names.values()))


def address_leaf(address: IpAddress | None) -> AddressLeaf:
    """The map form of an address, zeros for none."""
    return AddressLeaf() if address is None else AddressLeaf.of(address)


def _table(rows: TableRows, bank: int, table: Table) -> Iterator[Write]:
    for kind, segments in rows.services.items():
        yield _span(fl.SERVICES, fl.service_index(bank, table, kind, 0), _service_chunks(segments), _CHUNKS)
    for dimension, bits in rows.bits.items():
        values = b"".join(bitset.to_bytes(_BIT_BYTES, "little") for bitset in bits)
        yield _span(fl.RULE_BITS, fl.bits_index(bank, table, Dimension(dimension), 0), values, len(bits))
    values = b"".join(bytes(_rule(row)) for row in rows.rules)
    yield _span(fl.RULE_ROWS, fl.row_index(bank, table, 0), values, len(rows.rules))


def _service_chunks(segments: Segments) -> bytes:
    ends = [first for first, _ in segments[1:]] + [65536]
    classes = array("H")
    for (first, class_id), end in zip(segments, ends, strict=True):
        classes.extend(array("H", [class_id]) * (end - first))
    return classes.tobytes()


def _filters(rows: Rows, bank: int) -> Iterator[Write]:
    filters = rows.filters
    classes = b"".join(bitset.to_bytes(_BIT_BYTES, "little") for bitset in filters.classes)
    yield _span(fil.FILTER_BITS, bank * fil.MAX_FILTER_CLASSES, classes, len(filters.classes))
    yield _span(fil.FILTER_ROWS, bank * fl.MAX_ROWS, b"".join(map(_filter, filters.rows)), len(filters.rows))
    policers = b"".join(map(_policer, filters.policers))
    yield _span(fil.POLICERS, bank * fil.MAX_POLICERS, policers, len(filters.policers))


def _filter(row: FilterRow) -> bytes:
    policer = 0 if row.policer is None else row.policer + 1
    return bytes(fil.FilterRowLeaf(policer, row.mirror, fil.KEEP_DSCP if row.mark is None else row.mark))


def _policer(row: PolicerRow) -> bytes:
    numbers = (row.number, row.yellow_rule, row.kind, row.aware, row.yellow, row.red, 0)
    peak = (fil.cost_of(row.peak_rate), fil.burst_ticks(row.peak_burst, row.peak_rate)) if row.peak_rate else (0, 0)
    return bytes(fil.PolicerLeaf(*numbers, fil.cost_of(row.rate), fil.burst_ticks(row.burst, row.rate), *peak))


def _rule(row: RuleRow) -> fl.RuleRowLeaf:
    return fl.RuleRowLeaf(
        row.rule,
        row.action,
        row.flags,
        row.timeout,
        row.pool,
        row.prefixlen,
        address_leaf(row.to),
        socket.htons(row.port),
        socket.htons(row.first_port),
        socket.htons(row.adjustment),
        0,
    )


def _pool(row: PoolRow) -> fl.PoolLeaf:
    first = address_leaf(row.first)
    subscribers = socket.htonl(int(row.subscribers)) if row.subscribers else 0
    translator = row.translator | (fl.POOL_AUTO if row.auto else 0)
    shared = row.addresses, row.low, row.high, row.persistent, translator
    return fl.PoolLeaf(first, *shared, row.overflow, row.block, subscribers)


def _screen(row: ScreenRow | None) -> sl.ScreenLeaf:
    if row is None:
        return sl.ScreenLeaf()
    leaf = sl.ScreenLeaf(sum(1 << screen for screen in row.wanted), row.flags, row.window)
    for screen, threshold in row.thresholds.items():
        leaf.thresholds[screen] = threshold
    return leaf


def _port(row: PortRow) -> fl.PortLeaf:
    info = row.info
    addresses = address_leaf(info.address4), address_leaf(info.address6)
    return fl.PortLeaf(info.l3_ifindex, row.zone, row.flags, row.mss, row.in_filter, row.out_filter, *addresses)


def _near_ports(rows: Iterable[PortRow]) -> bytes:
    """Every port at its place; of several that share one the first, the others are found by the hash."""
    places = (fl.NearPortLeaf * fl.MAX_NEAR_PORTS)()
    for row in rows:
        place = places[(row.info.ifindex + row.info.vid) % fl.MAX_NEAR_PORTS]
        if not place.ifindex:
            place.ifindex, place.vid, place.port = row.info.ifindex, row.info.vid, _port(row)
    return bytes(places)


def _prefixes(rows: Rows, bank: int) -> Write:
    keys: list[fl.PrefixKeyLeaf] = []
    classes: list[ctypes.c_uint32] = []
    for table, table_rows in rows.tables.items():
        for destination, prefixes in ((False, table_rows.sources), (True, table_rows.destinations)):
            side = fl.side(table, destination=destination)
            keys += [_prefix_key(row, bank, side) for row in prefixes]
            classes += [ctypes.c_uint32(row.class_id) for row in prefixes]
    keys += [_prefix_key(row, bank, fl.TRANSLATOR_SIDE) for row in rows.translated]
    classes += [ctypes.c_uint32(row.class_id) for row in rows.translated]
    return _entries(fl.PREFIXES, keys, classes)


def _prefix_key(row: PrefixRow, bank: int, side: int) -> fl.PrefixKeyLeaf:
    network = row.network
    prefixlen = network.prefixlen + (96 if network.version == 4 else 0)
    return fl.PrefixKeyLeaf(32 + prefixlen, bank, side, AddressLeaf.of(network.network_address))


def _header(rows: Rows) -> fl.RulesetLeaf:
    header = fl.RulesetLeaf(default_action=rows.default, host_filter=rows.filters.host)
    header.timeouts[:] = rows.timeouts
    for table, table_rows in rows.tables.items():
        header.tables[table] = fl.RuleTableLeaf(table_rows.words, table_rows.unasked)
    return header


def _entries(spec: MapSpec, keys: Iterable[object], values: Iterable[object]) -> Write:
    packed = [bytes(key) for key in keys]  # type: ignore[call-overload]
    return Write(spec, b"".join(packed), b"".join(map(bytes, values)), len(packed))  # type: ignore[arg-type]


def _span(spec: MapSpec, first: int, values: bytes, count: int) -> Write:
    return Write(spec, array("I", range(first, first + count)).tobytes(), values, count)
