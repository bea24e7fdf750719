"""Policy routing that leads plaintext of accelerated selectors to the engine, before XFRM sees it.

::

    214  iif ipsecgw-vp goto 219               what the engine did not take goes XFRM's way, not in a circle
    215  from SOURCE to DESTINATION lookup T   forwarded packets, and local ones with a chosen source
    215  from 0.0.0.0 to DESTINATION iif lo lookup T      local ones that have none yet: T gives charon's
    219  nop

215 is for prefixes on both sides; 216, 217 and 218 for any source, any destination, and both. All of it precedes
strongSwan's own rule (220). The routes of table T lead to a next hop that exists only as a permanent neighbour (the
IPv4 dummy address of RFC 7600, or a link-local one), on a device that XFRM leaves alone.

IPv6 has the same but the rule for packets without a source: charon's own route gives them one, and they are routed once
more before XFRM takes them (:mod:`ipsec_gw.ownership.bypass`).
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network
from typing import Any

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from ipsec_gw.errors import IpsecGwError
from ipsec_gw.model.ids import IpAddress, IpNetwork
from ipsec_gw.model.objects import Lead, ManagedObject, Selector

TABLE = 21700
_RETURN_RULE, _LEAD_RULE, _ANY_SOURCE, _ANY_DESTINATION, _AFTER_RULE = 214, 215, 1, 2, 219
_RTNH_F_ONLINK = 4


@dataclass(frozen=True, slots=True)
class _Family:
    """What differs: the number of the address family, "no address" in rules and routes, and the next hop."""

    number: int
    unspecified: str
    dummy_hop: str


_FAMILIES = {
    4: _Family(socket.AF_INET, "0.0.0.0", "192.0.0.8"),  # noqa: S104 - nothing is bound to it
    6: _Family(socket.AF_INET6, "::", "fe80::c000:8"),
}


@dataclass(frozen=True, slots=True)
class _Route:
    source_hint: IpAddress | None
    mtu: int


class LeadDriver:
    """Keeps the rules and routes of leads. ``kernel_index`` is ``ipsecgw-up``, ``engine_mac`` its peer's address."""

    def __init__(self, route: AsyncIPRoute, *, kernel_index: int, engine_name: str, engine_mac: str) -> None:
        self._route = route
        self._index = kernel_index
        self._engine_name = engine_name
        self._engine_mac = engine_mac

    async def prepare(self) -> None:
        """Make the neighbour and the two fixed rules. Idempotent; leads that are in place stay."""
        for family in _FAMILIES.values():
            await self._prepare(family)

    async def _prepare(self, family: _Family) -> None:
        await self._route.neigh(
            "replace",
            family=family.number,
            dst=family.dummy_hop,
            lladdr=self._engine_mac,
            ifindex=self._index,
            state="permanent",
        )
        rules = await self._route.get_rules(family=family.number)
        present = {int(rule.get("priority") or 0) async for rule in rules}
        if _AFTER_RULE not in present:
            await self._route.rule("add", family=family.number, priority=_AFTER_RULE, action="nop")
        if _RETURN_RULE not in present:
            await self._route.rule(
                "add",
                family=family.number,
                priority=_RETURN_RULE,
                iifname=self._engine_name,
                action="goto",
                goto=_AFTER_RULE,
            )

    async def retrieve(self) -> Mapping[Selector, Lead]:
        """The leads in place. One that lacks a part differs from any that could be wanted; leftovers are removed."""
        routes, rules = await self._routes(), await self._rules()
        led = {destination for source, destination in rules if source is not None}
        leads: dict[Selector, Lead] = {}
        for source, destination in rules:
            if source is not None:
                lead = _lead_of(Selector(source, destination), routes.get(destination))
                complete = not _binds(lead) or (None, destination) in rules
                leads[lead.key] = lead if complete else replace(lead, mtu=0)
        await self._sweep({dst for source, dst in rules if source is None} | routes.keys(), led)
        return leads

    async def create(self, obj: ManagedObject) -> None:
        """Route first, rules last: a packet never meets a rule without its route."""
        lead = _lead(obj)
        await self._ask(self._put_route(lead), lead)
        await self._put_rule(_rule(lead.key.destination, lead.key.source), lead)
        if _binds(lead):
            await self._put_rule(_unbound_rule(lead.key.destination), lead)

    async def update(self, obj: ManagedObject) -> None:
        """Another MTU or source hint: the route is replaced in one step, then the rule for unbound packets follows."""
        lead = _lead(obj)
        await self._ask(self._put_route(lead), lead)
        if _binds(lead):
            await self._put_rule(_unbound_rule(lead.key.destination), lead)
        else:
            await self._settle_unbound(lead, [lead, *await self._others(lead)])

    async def delete(self, obj: ManagedObject) -> None:
        """Rules first; what leads to one destination share goes with the last of them that needs it."""
        lead = _lead(obj)
        await self._forgiving(self._route.rule("del", **_rule(lead.key.destination, lead.key.source)))
        others = await self._others(lead)
        await self._settle_unbound(lead, others)
        if not others:
            await self._drop_route(lead.key.destination)

    async def remove(self) -> None:
        """Take all rules and routes away, also those of an earlier life."""
        for source, destination in await self._rules():
            rule = _unbound_rule(destination) if source is None else _rule(destination, source)
            await self._forgiving(self._route.rule("del", **rule))
        for family in _FAMILIES.values():
            for priority in (_RETURN_RULE, _AFTER_RULE):
                await self._forgiving(self._route.rule("del", family=family.number, priority=priority))
        for destination in await self._routes():
            await self._drop_route(destination)

    async def _sweep(self, present: set[IpNetwork], led: set[IpNetwork]) -> None:
        """What an interrupted change left for destinations that nothing leads to any more."""
        for destination in present - led:
            await self._drop_unbound(destination)
            await self._drop_route(destination)

    async def _others(self, lead: Lead) -> list[Lead]:
        """The leads in place to the same destination: they share its route and the rule for unbound packets."""
        return [
            replace(lead, key=Selector(source, destination))
            for source, destination in await self._rules()
            if source is not None and destination == lead.key.destination and source != lead.key.source
        ]

    async def _settle_unbound(self, lead: Lead, leads: Sequence[Lead]) -> None:
        if not any(_binds(one) for one in leads):
            await self._drop_unbound(lead.key.destination)

    async def _drop_unbound(self, destination: IpNetwork) -> None:
        if destination.version == 4:
            await self._forgiving(self._route.rule("del", **_unbound_rule(destination)))

    async def _put_rule(self, rule: dict[str, Any], lead: Lead) -> None:
        try:
            await self._route.rule("add", **rule)
        except NetlinkError as error:
            if error.code != _EXISTS:
                raise _refused(lead, error) from None

    @staticmethod
    async def _ask(request: Any, lead: Lead) -> None:
        try:
            await request
        except NetlinkError as error:
            raise _refused(lead, error) from None

    async def _drop_route(self, destination: IpNetwork) -> None:
        family = _FAMILIES[destination.version].number
        await self._forgiving(self._route.route("del", family=family, table=TABLE, dst=str(destination)))

    async def _put_route(self, lead: Lead) -> None:
        extra = {"prefsrc": str(lead.source_hint)} if lead.source_hint else {}
        family = _FAMILIES[lead.key.destination.version]
        await self._route.route(
            "replace",
            family=family.number,
            table=TABLE,
            dst=str(lead.key.destination),
            gateway=family.dummy_hop,
            oif=self._index,
            flags=_RTNH_F_ONLINK,
            metrics={"mtu": lead.mtu},
            **extra,
        )

    async def _routes(self) -> dict[IpNetwork, _Route]:
        found: dict[IpNetwork, _Route] = {}
        for family in _FAMILIES.values():
            for message in await _read(self._route.get_routes(table=TABLE, family=family.number)):
                metrics = dict(slot[:2] for slot in (message.get_attr("RTA_METRICS") or {"attrs": []})["attrs"])
                hint = message.get("prefsrc")
                found[_network(message, "dst", family)] = _Route(
                    ip_address(hint) if hint else None, int(metrics.get("RTAX_MTU", 0))
                )
        return found

    async def _rules(self) -> list[tuple[IpNetwork | None, IpNetwork]]:
        """Our lead rules as (source, destination); source None for those of local packets without one."""
        return [
            (None if rule.get("iifname") else _network(rule, "src", family), _network(rule, "dst", family))
            for family in _FAMILIES.values()
            for rule in await _read(self._route.get_rules(family=family.number))
            if _LEAD_RULE <= int(rule.get("priority") or 0) < _AFTER_RULE and rule.get("table") == TABLE
        ]

    @staticmethod
    async def _forgiving(request: Any) -> None:
        """Removal of what may be gone already (an administrator's hand, a vanished device)."""
        try:
            await request
        except NetlinkError as error:
            if error.code not in _GONE:
                raise IpsecGwError(f"policy routing cannot be removed: {error} - see `ip rule`") from None


_GONE = frozenset({2, 3, 19})
"""ENOENT, ESRCH, ENODEV."""

_EXISTS = 17


async def _read(answers: Any) -> list[Any]:
    """A dump. Raises IpsecGwError if the kernel does not give it."""
    try:
        return [message async for message in await answers]
    except NetlinkError as error:
        raise IpsecGwError(f"policy routing cannot be read: {error} - see `ip rule`") from None


def _refused(lead: Lead, error: NetlinkError) -> IpsecGwError:
    return IpsecGwError(f"policy route for {lead.key} refused: {error} - see `ip rule` and `dmesg`")


def _lead(obj: ManagedObject) -> Lead:
    if not isinstance(obj, Lead):
        raise TypeError(f"{obj!r} is not a lead")
    return obj


def _lead_of(selector: Selector, route: _Route | None) -> Lead:
    """A lead as it is in place; without its route it has an MTU that nobody wants."""
    return Lead(selector, route.source_hint, route.mtu) if route else Lead(selector, None, 0)


def _binds(lead: Lead) -> bool:
    """Its destination needs the rule for local packets that have no source yet."""
    return lead.key.destination.version == 4 and lead.source_hint is not None and lead.source_hint in lead.key.source


def _rule(destination: IpNetwork, source: IpNetwork) -> dict[str, Any]:
    # "Any" is no address at all: with 0.0.0.0/0 the kernel refuses the rule (fib_rules.c).
    sides = {"src": source, "dst": destination}
    named = {side: str(network) for side, network in sides.items() if network.prefixlen}
    family = _FAMILIES[destination.version].number
    return {"family": family, "priority": _priority(source, destination), "table": TABLE, **named}


def _priority(source: IpNetwork, destination: IpNetwork) -> int:
    """Looking for the rule to delete, or for one that exists, the kernel takes "any" for "whichever" (fib_rules.c), so
    a rule with it must not meet one without. Among leads the order means nothing.
    """
    any_source, any_destination = source.prefixlen == 0, destination.prefixlen == 0
    return _LEAD_RULE + _ANY_SOURCE * any_source + _ANY_DESTINATION * any_destination


def _unbound_rule(destination: IpNetwork) -> dict[str, Any]:
    return {**_rule(destination, ip_network(f"{_FAMILIES[4].unspecified}/32")), "iifname": "lo"}


def _network(message: Any, side: str, family: _Family) -> IpNetwork:
    """The ``src`` or ``dst`` of a rule or route; netlink leaves it out for "any"."""
    return ip_network(f"{message.get(side) or family.unspecified}/{message.get(f'{side}_len')}")
