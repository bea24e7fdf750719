"""Keeps VPP's encap routes as :class:`~vpp_conf.encap.EncapMap` says, one tunnel's change at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack

from ipsec_gw.model.ids import IpNetwork
from ipsec_gw.model.objects import Selector
from vpp_conf.api import VppApi
from vpp_conf.descriptors.route import ENCAP_TABLE, SHARED_TABLES, Route, RouteDescriptor, Table, TableDescriptor
from vpp_conf.encap import EncapMap, Gate

_Place = tuple[int, IpNetwork]
_NONE: frozenset[Route] = frozenset()


class EncapRoutes:
    """The routes in place, by the destination that they are for."""

    def __init__(self, api: VppApi) -> None:
        self._routes = RouteDescriptor(api)
        self._tables = TableDescriptor(api)
        self._held: dict[IpNetwork, frozenset[Route]] = {}
        self.map = EncapMap()

    @property
    def gate(self) -> Gate | None:
        """Where tunnels without an interface are; None before there is one."""
        return self.map.gate

    @gate.setter
    def gate(self, gate: Gate) -> None:
        self.map.gate = gate

    async def adopt(
        self, tunnels: Mapping[int, frozenset[Selector]], found: Iterable[Route], interfaces: frozenset[int]
    ) -> None:
        """Take what is in VPP for what it is, and make it right for these tunnels, by ``sw_if_index`` or number.

        ``found`` are VPP's routes. Those to one of the ``interfaces``, which are all IPsec interfaces of ours, that no
        tunnel explains are removed, and so are tables that none leads to.
        """
        gate = self.gate
        gates = frozenset() if gate is None else frozenset({gate.direct.sw_if_index, gate.whole.sw_if_index})
        ours = frozenset(route for route in found if _is_ours(route, interfaces | gates))
        tables = {route.prefix: route.by_source for route in ours if route.by_source is not None}
        self.map = EncapMap(tunnels, tables, self.gate)
        self._held = self.map.all_routes()
        wanted = frozenset().union(*self._held.values())
        present = frozenset(await self._tables.retrieve())
        await self._turn(ours, wanted, present)
        for table in present - _tables_of(ours) - _tables_of(wanted):
            await self._tables.delete(table)

    async def change(self, interface: int, selectors: frozenset[Selector]) -> None:
        """Give a tunnel these selectors, none to forget it. Raises EngineError, and changes nothing then."""
        change = self.map.put(interface, selectors)
        wanted = {destination: self.map.routes(destination) for destination in change.affected}
        before = frozenset().union(*(self._held.get(destination, _NONE) for destination in change.affected))
        try:
            await self._turn(before, frozenset().union(*wanted.values()), frozenset())
        except BaseException:
            self.map.undo(change)
            raise
        for destination, routes in wanted.items():
            if routes:
                self._held[destination] = routes
            else:
                self._held.pop(destination, None)

    async def _turn(self, before: frozenset[Route], after: frozenset[Route], present: frozenset[Table]) -> None:
        """From ``before`` to ``after`` without a gap: what is led to is there first and goes last. A step that fails
        takes the earlier ones back. ``present`` are tables that exist without being led to.
        """
        old, new = _by_place(before), _by_place(after)
        async with AsyncExitStack() as undo:
            for table in _tables_of(after) - _tables_of(before) - present:
                await self._tables.create(table)
                undo.push_async_callback(self._tables.delete, table)
            for route in sorted(after - before, key=_leads):
                await self._routes.create(route)
                replaced = old.get((route.table, route.prefix))
                if replaced is None:
                    undo.push_async_callback(self._routes.delete, route)
                else:
                    undo.push_async_callback(self._routes.create, replaced)
            for place in sorted(old.keys() - new.keys(), key=lambda place: place[0] != ENCAP_TABLE):
                await self._routes.delete(old[place])
                undo.push_async_callback(self._routes.create, old[place])
            for table in _tables_of(before) - _tables_of(after):
                await self._tables.delete(table)
                undo.push_async_callback(self._tables.create, table)
            undo.pop_all()


def _is_ours(route: Route, interfaces: frozenset[int]) -> bool:
    if route.by_source in SHARED_TABLES:
        return True
    return (route.table == ENCAP_TABLE or route.table in SHARED_TABLES) and route.sw_if_index in interfaces


def _by_place(routes: frozenset[Route]) -> dict[_Place, Route]:
    return {(route.table, route.prefix): route for route in routes}


def _tables_of(routes: frozenset[Route]) -> frozenset[Table]:
    return frozenset(Table(route.by_source, route.prefix.version) for route in routes if route.by_source is not None)


def _leads(route: Route) -> bool:
    """Whether packets come to it first."""
    return route.table == ENCAP_TABLE
