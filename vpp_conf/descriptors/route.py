"""FIB tables, routes and local addresses (``vnet/ip/ip.api``, ``vnet/interface.api``)."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from ipsec_gw.model.ids import IpAddress, IpNetwork
from ipsec_gw.model.objects import VLAN_IDS
from vpp_conf.api import VppApi
from vpp_conf.descriptors.base import NO_INDEX, Descriptor, Reference, from_prefix, host, to_path, to_prefix
from vpp_conf.descriptors.interface import keep_silent

OUTER_TABLE = 0
ENCAP_TABLE = 4701
DECAP_TABLE = 4702
ROUTED_TABLE = 4703
"""The tables of the gateway: next hops and our own addresses; remote selectors; everything to the kernel; the same of
tunnels with an XFRM interface, both ways, multicast too.
"""

SHARED_TABLES = range(4710, 4966)
"""For remote selectors that tunnels share: a table for each, in which the source is looked up. An IPv4 table takes VPP
a quarter of a megabyte, so they are bounded.
"""

DEVICE_TABLES = range(5001, 5001 + VLAN_IDS)
"""For GRE and IPIP devices over tunnel mode: a table for each, in the order of their VLAN IDs, with its two ends."""


@dataclass(frozen=True, slots=True)
class Route:
    """One path for one prefix: out of an interface, by a next hop if it is not point-to-point, or a look-up of the
    packet's source in the table ``by_source``, or, of a ``local`` one, to VPP itself.
    """

    table: int
    prefix: IpNetwork
    sw_if_index: int = NO_INDEX
    next_hop: IpAddress | None = None
    by_source: int | None = None
    local: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """A FIB table of ours, ``version`` 4 or 6."""

    table: int
    version: int


_LOCAL, _SOURCE_LOOKUP = 1, 7
"""``FIB_API_PATH_TYPE_LOCAL``, ``FIB_API_PATH_TYPE_SOURCE_LOOKUP`` (``vnet/fib/fib_types.api``)."""


@dataclass(frozen=True, slots=True)
class LocalAddress:
    """An address of VPP's own on an interface, always a host prefix."""

    sw_if_index: int
    address: IpAddress


class RouteDescriptor(Descriptor[Route]):
    """Routes of the gateway's tables; creating one over another replaces its path without a gap."""

    kind = "route"

    async def create(self, value: Route) -> Route:
        await self._add_del(value, is_add=True)
        return value

    async def update(self, old: Route, new: Route) -> Route:
        if (old.table, old.prefix) != (new.table, new.prefix):
            return await super().update(old, new)
        return await self.create(new)

    async def delete(self, value: Route) -> None:
        await self._add_del(value, is_add=False)

    async def retrieve(self) -> tuple[Route, ...]:
        """Single-path routes of all tables of ours that have an interface, what VPP made by itself included, or that
        look up the source.
        """
        shared = [table.table for table in await TableDescriptor(self._api).retrieve()]
        found = []
        for table, version in itertools.product((OUTER_TABLE, ENCAP_TABLE, DECAP_TABLE, ROUTED_TABLE, *shared), (4, 6)):
            for detail in await self._api.dump("ip_route_dump", table={"table_id": table, "is_ip6": version == 6}):
                route = _route_of(table, detail.route)
                if route is not None:
                    found.append(route)
        return tuple(found)

    def depends_on(self, value: Route) -> tuple[Reference, ...]:
        if value.by_source is not None:
            return (Reference("table", value.by_source),)
        if value.local:
            return (Reference("table", value.table),)
        if value.next_hop is None:
            return (Reference("interface", value.sw_if_index),)
        return (Reference("neighbour", (value.sw_if_index, value.next_hop)),)

    async def _add_del(self, value: Route, *, is_add: bool) -> None:
        await self._api.call(
            "ip_route_add_del",
            is_add=is_add,
            is_multipath=False,
            route={
                "table_id": value.table,
                "prefix": to_prefix(value.prefix),
                "n_paths": 1,
                "paths": [_path_of(value)],
            },
        )


def _path_of(value: Route) -> dict[str, Any]:
    version = value.prefix.version
    if value.local:
        return {**to_path(version), "type": _LOCAL}
    if value.by_source is None:
        return to_path(version, value.sw_if_index, value.next_hop)
    return {**to_path(version, table=value.by_source), "type": _SOURCE_LOOKUP}


def _route_of(table: int, route: Any) -> Route | None:
    """What a dump tells of a route, None for one that is not of a kind of ours."""
    if route.n_paths != 1:
        return None
    path, prefix = route.paths[0], from_prefix(route.prefix)
    if path.sw_if_index == NO_INDEX:
        # VPP does not tell which address is looked up (fib_api_path_encode), but our tables are for sources alone.
        return Route(table, prefix, by_source=path.table_id) if path.table_id in SHARED_TABLES else None
    raw = getattr(path.nh.address, f"ip{prefix.version}")
    next_hop = ip_address(raw if isinstance(raw, bytes) else str(raw))
    return Route(table, prefix, path.sw_if_index, next_hop if int(next_hop) else None)


class TableDescriptor(Descriptor[Table]):
    """The tables with one of these ``numbers``, as many as are needed."""

    kind = "table"

    def __init__(self, api: VppApi, numbers: range = SHARED_TABLES) -> None:
        super().__init__(api)
        self._numbers = numbers

    async def create(self, value: Table) -> Table:
        await self._add_del(value, is_add=True)
        return value

    async def delete(self, value: Table) -> None:
        await self._add_del(value, is_add=False)

    async def flush(self, value: Table) -> None:
        """Delete the routes in it: VPP does not do that with a table that goes."""
        await self._api.call("ip_table_flush", table=_table(value))

    async def retrieve(self) -> tuple[Table, ...]:
        """Those in the range that is ours."""
        tables = [detail.table for detail in await self._api.dump("ip_table_dump")]
        return tuple(Table(one.table_id, 6 if one.is_ip6 else 4) for one in tables if one.table_id in self._numbers)

    async def _add_del(self, value: Table, *, is_add: bool) -> None:
        await self._api.call("ip_table_add_del", is_add=is_add, table=_table(value))


def _table(value: Table) -> dict[str, Any]:
    what = "shared" if value.table in SHARED_TABLES else "device"
    return {"table_id": value.table, "is_ip6": value.version == 6, "name": f"ipsec-gw {what} {value.table}"}


class LocalAddressDescriptor(Descriptor[LocalAddress]):
    """Addresses that ESP is received for, and those that make an interface capable of IP.

    With its first IPv6 address VPP begins to advertise itself as a router; here the kernel speaks for the interface.
    """

    kind = "local-address"

    async def create(self, value: LocalAddress) -> LocalAddress:
        await self._add_del(value, is_add=True)
        if value.address.version == 6:
            await keep_silent(self._api, value.sw_if_index)
        return value

    async def delete(self, value: LocalAddress) -> None:
        await self._add_del(value, is_add=False)

    async def retrieve(self) -> tuple[LocalAddress, ...]:
        """Of all interfaces; IPsec interfaces show what they borrow."""
        interfaces = await self._api.dump("sw_interface_dump")
        return await self.retrieve_on([interface.sw_if_index for interface in interfaces])

    async def retrieve_on(self, sw_if_indices: Iterable[int]) -> tuple[LocalAddress, ...]:
        """Of these interfaces: VPP is asked twice for each."""
        found: list[LocalAddress] = []
        for sw_if_index in sw_if_indices:
            for version6 in (False, True):
                details = await self._api.dump("ip_address_dump", sw_if_index=sw_if_index, is_ipv6=version6)
                found += [LocalAddress(detail.sw_if_index, from_prefix_address(detail.prefix)) for detail in details]
        return tuple(found)

    async def _add_del(self, value: LocalAddress, *, is_add: bool) -> None:
        await self._api.call(
            "sw_interface_add_del_address",
            sw_if_index=value.sw_if_index,
            is_add=is_add,
            del_all=False,
            prefix=to_prefix(host(value.address)),
        )


def from_prefix_address(value: object) -> IpAddress:
    """The address of an ``address_with_prefix``."""
    return getattr(value, "ip", None) or from_prefix(value).network_address
