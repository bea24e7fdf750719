"""From a ruleset to the rows of one bank."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime

from ipsec_gw.model.firewall import TRANSLATOR_PORT, TUNNEL_INTERFACES, Pool, PoolEngine, Ruleset, Zone
from ipsec_gw.model.ids import IpAddress
from xdp_steer.compile.classify import prefix_rows, service_rows, source_port_rows, zone_bits
from xdp_steer.compile.errors import CompileError
from xdp_steer.compile.filters import Bound, bind, filter_terms
from xdp_steer.compile.ids import Ids
from xdp_steer.compile.rows import PoolRow, PortInfo, PortRow, Rows, ScreenRow, TableRows
from xdp_steer.compile.screens import screen_flags, screen_rows
from xdp_steer.compile.terms import ACTIONS, Term, Terms
from xdp_steer.compile.translators import Translator, translated_rows, translators_of
from xdp_steer.flow_layout import (
    MAX_POOLS,
    MAX_PORTS,
    MAX_PREFIXES,
    MAX_ROWS,
    TRANSLATOR_OUTSIDE,
    Dimension,
    PortFlag,
    Table,
    TableAny,
    Timeout,
)


def compile_ruleset(ruleset: Ruleset, ids: Ids, interfaces: Mapping[str, PortInfo], *, now: datetime) -> Rows:
    """What the maps hold for a ruleset at a moment of local time; policies whose schedule does not hold are left out.

    ``ids`` come from :func:`xdp_steer.compile.ids.assign` for this ruleset. An interface that ``interfaces`` does not
    have is left out: nothing arrives by it. Raises CompileError, naming the rule, when a reference leads nowhere, when
    a rule asks for what the pipeline does not look at, or when a table is too small.
    """
    terms = Terms(ruleset, ids, now)
    of_filters, filters = filter_terms(ruleset, ids, interfaces)
    tables = {
        Table.POLICY: _table(Table.POLICY, terms.policy()),
        Table.SNAT: _table(Table.SNAT, terms.snat()),
        Table.DNAT: _table(Table.DNAT, terms.dnat()),
        Table.FILTER: _table(Table.FILTER, of_filters),
    }
    translators = translators_of(ruleset)
    _check_prefixes(tables)
    timeouts = tuple(int(getattr(ruleset.sessions.timeouts, timeout.name.lower())) for timeout in Timeout)
    screens = screen_rows(ruleset, ids)
    return Rows(
        ports=(
            *_ports(ruleset.zones, ids, interfaces, screens, bind(ruleset), {one.zone for one in translators}),
            *_translator_ports(translators, ids, interfaces),
        ),
        tables=tables,
        pools=tuple(_pools(ruleset.pools, {one.pool: one.tag for one in translators})),
        timeouts=timeouts,
        default=ACTIONS[ruleset.default],
        screens=screens,
        filters=filters,
        translated=tuple(translated_rows(translators)),
    )


def _table(table: Table, rules: Iterable[Term]) -> TableRows:
    terms = tuple(rules)
    if len(terms) > MAX_ROWS:
        raise CompileError(
            f"{terms[MAX_ROWS].label}: the {table.name.lower()} table has {len(terms)} rows up to the last rule, "
            f"{MAX_ROWS} are possible (one for each rule and application term) - merge or remove rules"
        )
    source_bits, sources = prefix_rows(terms, Dimension.SOURCE)
    destination_bits, destinations = prefix_rows(terms, Dimension.DESTINATION)
    service_bits, services = service_rows(terms)
    source_port_bits, source_ports = source_port_rows(terms)
    unasked = TableAny(0)
    unasked |= TableAny(0) if sources else TableAny.SOURCE
    unasked |= TableAny(0) if destinations else TableAny.DESTINATION
    unasked |= TableAny(0) if len(source_port_bits) > 1 else TableAny.SOURCE_PORT
    bits = {
        Dimension.ZONES: zone_bits(terms),
        Dimension.SOURCE: source_bits,
        Dimension.DESTINATION: destination_bits,
        Dimension.SERVICE: service_bits,
        Dimension.SOURCE_PORT: source_port_bits,
    }
    return TableRows(tuple(term.row for term in terms), bits, sources, destinations, services | source_ports, unasked)


def _check_prefixes(tables: Mapping[Table, TableRows]) -> None:
    count = sum(len(rows.sources) + len(rows.destinations) for rows in tables.values())
    if count > MAX_PREFIXES:
        raise CompileError(f"the rules use {count} prefixes, {MAX_PREFIXES} are possible - merge address sets")


def _ports(
    zones: Iterable[Zone],
    ids: Ids,
    interfaces: Mapping[str, PortInfo],
    screens: Mapping[int, ScreenRow],
    bound: Bound,
    answered: set[str],
) -> Iterator[PortRow]:
    taken: dict[tuple[int, int], str] = {}
    for zone in zones:
        row = screens.get(ids.zones[zone.name])
        for name in zone.ports:
            if name not in interfaces:
                continue
            info = interfaces[name]
            place = (info.ifindex, info.vid)
            if place in taken:
                raise CompileError(f"zone {zone.name}: {name} is {taken[place]} again - name it once, in one zone")
            if len(taken) == MAX_PORTS:
                raise CompileError(f"zone {zone.name}: {name} is one interface too many, {MAX_PORTS} are possible")
            taken[place] = f"{name} of zone {zone.name}"
            flags = _port_flags(zone, name, info, row) | PortFlag.POOLS * (zone.name in answered)
            made = PortRow(info, ids.zones[zone.name], flags, zone.tcp_mss or 0)
            yield _with_filters(made, bound.input.get(name, 0), bound.output.get(name, 0), bound.host)
        yield from _routed(zone, ids, interfaces, row, bound)


def _with_filters(row: PortRow, arriving: int, leaving: int, host: int) -> PortRow:
    """What is looked at as it leaves leaves by the kernel, and is looked at on TC egress."""
    flags = row.flags | PortFlag.FILTER * bool(arriving) | PortFlag.HOST_FILTER * bool(host)
    if leaving:
        flags &= ~PortFlag.REDIRECT
    return replace(row, flags=flags, in_filter=arriving, out_filter=leaving)


def _routed(
    zone: Zone, ids: Ids, interfaces: Mapping[str, PortInfo], screens: ScreenRow | None, bound: Bound
) -> Iterator[PortRow]:
    """The row of the tunnels' port by which packets of a zone's interfaces without Ethernet come in."""
    port = interfaces.get(TUNNEL_INTERFACES[1])
    routed = [name for name in zone.interfaces if name in interfaces and not interfaces[name].ethernet]
    if port is None or not routed:
        return
    filters = {bound.input.get(name, 0) for name in routed}
    if len(filters) > 1:
        raise CompileError(
            f"zone {zone.name}: {', '.join(routed)} have no Ethernet, and not all of them the same input filter - "
            "give them the same one, or zones of their own"
        )
    number = ids.zones[zone.name]
    row = PortRow(replace(port, vid=number), number, _port_flags(zone, "", port, screens), zone.tcp_mss or 0)
    yield _with_filters(row, filters.pop(), 0, bound.host)


def _port_flags(zone: Zone, name: str, info: PortInfo, screens: ScreenRow | None) -> PortFlag:
    flags = {
        PortFlag.TUNNEL: name in TUNNEL_INTERFACES,
        PortFlag.DECRYPTED: name == TUNNEL_INTERFACES[1],
        PortFlag.SYN_CHECK: zone.syn_check,
        PortFlag.TCP_RESET: zone.tcp_reset,
        PortFlag.PARTIAL: info.partial,
        PortFlag.XFRM: info.xfrm,
        PortFlag.REDIRECT: info.redirect,
    }
    return PortFlag(sum(flag for flag, wanted in flags.items() if wanted)) | screen_flags(screens)


def _translator_ports(
    translators: tuple[Translator, ...], ids: Ids, interfaces: Mapping[str, PortInfo]
) -> Iterator[PortRow]:
    """What VPP sends by the tag of a pool comes from the zone that the pool's flows lead to."""
    port = interfaces.get(TRANSLATOR_PORT)
    if port is None or not translators:
        return
    for one in translators:
        yield PortRow(replace(port, vid=one.tag), ids.zones[one.zone], PortFlag.TRANSLATED, 0)
    yield PortRow(replace(port, vid=TRANSLATOR_OUTSIDE), ids.zones[translators[0].zone], PortFlag.TRANSLATED, 0)


def _pools(pools: tuple[Pool, ...], tags: Mapping[str, int]) -> Iterator[PoolRow]:
    if len(pools) > MAX_POOLS:
        raise CompileError(f"pool {pools[MAX_POOLS].name}: {len(pools)} pools, {MAX_POOLS} are possible - merge some")
    numbers = {pool.name: index + 1 for index, pool in enumerate(pools)}
    families = {pool.name: pool.first.version for pool in pools}
    for pool in pools:
        if pool.overflow is not None and families.get(pool.overflow) != pool.first.version:
            raise CompileError(f"pool {pool.name}: there is no pool {pool.overflow} of its family to overflow into")
        overflow = numbers[pool.overflow] if pool.overflow is not None else 0
        first, last = pool.of_xdp
        row = PoolRow(first, _addresses(pool, first, last), *pool.ports, pool.persistent, overflow)
        if pool.blocks is not None:
            row = replace(row, block=pool.blocks.size, subscribers=pool.blocks.subscribers.network_address)
        yield replace(row, translator=tags.get(pool.name, 0), auto=pool.engine is PoolEngine.AUTO)


def _addresses(pool: Pool, first: IpAddress, last: IpAddress) -> int:
    count = int(last) - int(first) + 1
    if pool.first.version != pool.last.version or not 1 <= count < 1 << 32:
        raise CompileError(
            f"pool {pool.name}: {pool.first} to {pool.last} are not 1 to {(1 << 32) - 1} addresses of one family - "
            "give the lowest one first"
        )
    return count
