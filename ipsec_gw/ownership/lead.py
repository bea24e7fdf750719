"""Policy routing that leads plaintext of accelerated selectors to the engine, before XFRM sees it.

::

    216  iif ipsecgw-vp goto 218               what the engine did not take goes XFRM's way, not in a circle
    217  from SOURCE to DESTINATION lookup T   forwarded packets, and local ones with a chosen source
    217  from 0.0.0.0 to DESTINATION iif lo lookup T      local ones that have none yet: T gives charon's
    218  nop

All of it precedes strongSwan's own rule (220). The routes of table T lead to a next hop that exists only as a
permanent neighbour (the IPv4 dummy address of RFC 7600), on a device that XFRM leaves alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from ipsec_gw.errors import IpsecGwError
from ipsec_gw.model.ids import IpAddress, IpNetwork
from ipsec_gw.model.objects import Lead, ManagedObject, Selector

TABLE = 21700
_RETURN_RULE, _LEAD_RULE, _AFTER_RULE = 216, 217, 218
_DUMMY_HOP = "192.0.0.8"
_RTNH_F_ONLINK = 4
_UNSPECIFIED = "0.0.0.0"  # noqa: S104 - "no address" in rules and routes, nothing is bound to it


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
        await self._route.neigh(
            "replace", dst=_DUMMY_HOP, lladdr=self._engine_mac, ifindex=self._index, state="permanent"
        )
        present = {int(rule.get("priority") or 0) async for rule in await self._route.get_rules(family=2)}
        if _AFTER_RULE not in present:
            await self._route.rule("add", priority=_AFTER_RULE, action="nop")
        if _RETURN_RULE not in present:
            await self._route.rule(
                "add", priority=_RETURN_RULE, iifname=self._engine_name, action="goto", goto=_AFTER_RULE
            )

    async def retrieve(self) -> Mapping[Selector, Lead]:
        """The leads in place."""
        routes = await self._routes()
        leads: dict[Selector, Lead] = {}
        for source, destination in await self._rules():
            route = routes.get(destination)
            if source is not None and route is not None:
                selector = Selector(source, destination)
                leads[selector] = Lead(selector, route.source_hint, route.mtu)
        return leads

    async def create(self, obj: ManagedObject) -> None:
        """Route first, rules last: a packet never meets a rule without its route."""
        lead = _lead(obj)
        try:
            await self._put_route(lead)
            for rule in _rules_of(lead):
                await self._route.rule("add", **rule)
        except NetlinkError as error:
            raise IpsecGwError(f"policy route for {lead.key} refused: {error} - see `ip rule` and `dmesg`") from None

    async def update(self, obj: ManagedObject) -> None:
        """Another MTU or source hint: the route is replaced in one step, then the rule for unbound packets follows."""
        lead = _lead(obj)
        unbound = {**_rule(lead, f"{_UNSPECIFIED}/32"), "iifname": "lo"}
        try:
            await self._put_route(lead)
            await self._forgiving(self._route.rule("del", **unbound))
            if unbound in _rules_of(lead):
                await self._route.rule("add", **unbound)
        except NetlinkError as error:
            raise IpsecGwError(f"policy route for {obj.key} refused: {error} - see `ip rule` and `dmesg`") from None

    async def delete(self, obj: ManagedObject) -> None:
        """Rules first; the route goes with the last lead to its destination."""
        lead = _lead(obj)
        for rule in _rules_of(lead):
            await self._forgiving(self._route.rule("del", **rule))
        if all(destination != lead.key.destination for _, destination in await self._rules()):
            await self._forgiving(self._route.route("del", table=TABLE, dst=str(lead.key.destination)))

    async def remove(self) -> None:
        """Take all rules and routes away, also those of an earlier life."""
        async for rule in await self._route.get_rules(family=2):
            if int(rule.get("priority") or 0) == _LEAD_RULE and rule.get("table") == TABLE:
                await self._forgiving(self._route.rule("del", **_as_request(rule)))
        for priority in (_RETURN_RULE, _AFTER_RULE):
            await self._forgiving(self._route.rule("del", priority=priority))
        for destination in await self._routes():
            await self._forgiving(self._route.route("del", table=TABLE, dst=str(destination)))

    async def _put_route(self, lead: Lead) -> None:
        extra = {"prefsrc": str(lead.source_hint)} if lead.source_hint else {}
        await self._route.route(
            "replace",
            table=TABLE,
            dst=str(lead.key.destination),
            gateway=_DUMMY_HOP,
            oif=self._index,
            flags=_RTNH_F_ONLINK,
            metrics={"mtu": lead.mtu},
            **extra,
        )

    async def _routes(self) -> dict[IpNetwork, _Route]:
        found: dict[IpNetwork, _Route] = {}
        async for message in await self._route.get_routes(table=TABLE, family=2):
            destination = _network(message, "dst")
            metrics = dict(slot[:2] for slot in (message.get_attr("RTA_METRICS") or {"attrs": []})["attrs"])
            hint = message.get("prefsrc")
            found[destination] = _Route(ip_address(hint) if hint else None, int(metrics.get("RTAX_MTU", 0)))
        return found

    async def _rules(self) -> list[tuple[IpNetwork | None, IpNetwork]]:
        """Our lead rules as (source, destination); source None for those of local packets without one."""
        found: list[tuple[IpNetwork | None, IpNetwork]] = []
        async for rule in await self._route.get_rules(family=2):
            if int(rule.get("priority") or 0) != _LEAD_RULE or rule.get("table") != TABLE:
                continue
            destination = _network(rule, "dst")
            source = _network(rule, "src")
            found.append((None if rule.get("iifname") else source, destination))
        return found

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


def _lead(obj: ManagedObject) -> Lead:
    if not isinstance(obj, Lead):
        raise TypeError(f"{obj!r} is not a lead")
    return obj


def _rules_of(lead: Lead) -> list[dict[str, Any]]:
    rules = [_rule(lead, str(lead.key.source))]
    if lead.source_hint is not None and lead.source_hint in lead.key.source:
        rules.append({**_rule(lead, f"{_UNSPECIFIED}/32"), "iifname": "lo"})
    return rules


def _rule(lead: Lead, source: str) -> dict[str, Any]:
    return {"priority": _LEAD_RULE, "src": source, "dst": str(lead.key.destination), "table": TABLE}


def _network(message: Any, side: str) -> IpNetwork:
    """The ``src`` or ``dst`` of a rule or route; netlink leaves it out for "any"."""
    return ip_network(f"{message.get(side) or _UNSPECIFIED}/{message.get(f'{side}_len')}")


def _as_request(rule: Any) -> dict[str, Any]:
    request: dict[str, Any] = {"priority": _LEAD_RULE, "table": TABLE}
    for side in ("src", "dst"):
        if rule.get(f"{side}_len"):
            request[side] = str(_network(rule, side))
    if rule.get("iifname"):
        request["iifname"] = rule.get("iifname")
    return request
