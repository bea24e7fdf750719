"""Policy routing that leads plaintext of accelerated selectors to the engine, before XFRM sees it.

::

    170  from SOURCE to DESTINATION goto 219   what another policy has of a selector that is led
    198  iif ipsecgw-vp goto 219               what the engine did not take goes XFRM's way, not in a circle
    199  from SOURCE to DESTINATION lookup T   forwarded packets, and local ones with a chosen source
    199  from 0.0.0.0 to DESTINATION iif lo lookup T      local ones that have none yet: T gives charon's
    219  nop

170 and 199 are for prefixes on both sides of any protocol; the numbers that follow are for any source, any destination,
both, and then the same with protocol and ports. All of it precedes strongSwan's own rule (220). The routes of table T
lead to a next hop that exists only as a permanent neighbour (the IPv4 dummy address of RFC 7600, or a link-local one),
on a device that XFRM leaves alone. Their metric is the worst there is: charon looks at all tables for the way to a
peer, and of equally long prefixes takes the one with the smallest. They have the tunnel's MTU, so that the kernel takes
apart what is too long; what is led by ports must stay whole, as fragments have none, and has a table and routes of its
own.

IPv6 has the same but the rule for packets without a source: charon's own route gives them one, and they are routed once
more before XFRM takes them (:mod:`ipsec_gw.ownership.bypass`).
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network
from typing import Any

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from ipsec_gw.errors import IpsecGwError
from ipsec_gw.model.ids import IpAddress, IpNetwork
from ipsec_gw.model.objects import Exempt, ExemptKey, Lead, ManagedObject, PortMatch, Selector

TABLE, WHOLE_TABLE = 21700, 21701
"""Of leads, and of those by ports."""
_EXEMPT_RULE, _RETURN_RULE, _LEAD_RULE, _AFTER_RULE = 170, 198, 199, 219
_ANY_SOURCE, _ANY_DESTINATION, _NARROWED, _KINDS = 1, 2, 4, 20
"""What tells the priorities of one kind of rule apart, and how many there are."""

RTNH_F_ONLINK = 4
WORST_METRIC = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class _Family:
    """What differs: the number of the address family, "no address" in rules and routes, and the next hop."""

    number: int
    unspecified: str
    dummy_hop: str


DUMMY_HOP = "192.0.0.8"

_FAMILIES = {
    4: _Family(socket.AF_INET, "0.0.0.0", DUMMY_HOP),  # noqa: S104 - nothing is bound to it
    6: _Family(socket.AF_INET6, "::", "fe80::c000:8"),
}


@dataclass(frozen=True, slots=True)
class _Route:
    source_hint: IpAddress | None
    mtu: int


class LeadDriver:
    """Keeps the rules and routes of leads and of what is exempted from them.

    ``kernel_index`` is ``ipsecgw-up``, ``engine_mac`` its peer's address. ``after_exempt`` is called after every change
    of what is exempted between two hosts.
    """

    def __init__(
        self,
        route: AsyncIPRoute,
        *,
        kernel_index: int,
        engine_name: str,
        engine_mac: str,
        after_exempt: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._route = route
        self._after_exempt = after_exempt
        self._index = kernel_index
        self._engine_name = engine_name
        self._engine_mac = engine_mac
        self._need_unbound: dict[ExemptKey, bool] = {}
        """Which exemptions need their rule for unbound packets: several may have the same one."""

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

    async def retrieve(self) -> Mapping[Selector | ExemptKey, Lead | Exempt]:
        """What is in place. A lead that lacks a part differs from any that could be wanted; leftovers are removed."""
        routes, rules = await self._routes(), await self._rules()
        led = {_place(rule.selector) for rule in rules if rule.leads and not rule.unbound}
        found: dict[Selector | ExemptKey, Lead | Exempt] = {}
        for rule in rules:
            if rule.unbound:
                continue
            has_unbound = replace(rule, selector=_unbound(rule.selector), unbound=True) in rules
            if rule.leads:
                lead = _lead_of(rule.selector, routes.get(_place(rule.selector)))
                found[lead.key] = lead if has_unbound or not _binds(lead) else replace(lead, mtu=0)
            else:
                found[ExemptKey(rule.selector)] = Exempt(ExemptKey(rule.selector), has_unbound)
        self._need_unbound = {one.key: one.unbound for one in found.values() if isinstance(one, Exempt)}
        await self._sweep(rules, routes.keys() - led)
        return found

    async def create(self, obj: ManagedObject) -> None:
        """Route first, rules last: a packet never meets a rule without its route."""
        if isinstance(obj, Exempt):
            self._need_unbound[obj.key] = obj.unbound
            for rule in _exempting(obj):
                await self._put_rule(rule, obj)
            await self._exempt_changed(obj)
            return
        lead = _lead(obj)
        await self._ask(self._put_route(lead), lead)
        for rule in _leading(lead):
            await self._put_rule(rule, lead)

    async def update(self, obj: ManagedObject) -> None:
        """Another MTU or source hint: the route is replaced in one step, then the rule for unbound packets follows."""
        await self.create(obj)
        await self._settle_unbound(obj, [obj, *await self._others(obj)])

    async def delete(self, obj: ManagedObject) -> None:
        """Rules first; what leads to one destination share goes with the last of them that needs it."""
        if isinstance(obj, Exempt):
            self._need_unbound.pop(obj.key, None)
        rule = (_exempting(obj) if isinstance(obj, Exempt) else _leading(_lead(obj)))[0]
        await forgiving(self._route.rule("del", **_request(rule)))
        others = await self._others(obj)
        await self._settle_unbound(obj, others)
        if isinstance(obj, Lead):
            place = _place(obj.key)
            if not any(one.leads and _place(one.selector) == place for one in await self._to(obj.key.destination)):
                await self._drop_route(place)
        if isinstance(obj, Exempt):
            await self._exempt_changed(obj)

    async def _exempt_changed(self, obj: Exempt) -> None:
        if self._after_exempt is not None and obj.key.selector.of_hosts:
            await self._after_exempt()

    async def clear(self) -> None:
        """Stop leading altogether: an engine begins that holds nothing yet."""
        for obj in (await self.retrieve()).values():
            if isinstance(obj, Lead):
                await self.delete(obj)

    async def remove(self) -> None:
        """Take all rules and routes away, also those of an earlier life."""
        for rule in await self._rules():
            await forgiving(self._route.rule("del", **_request(rule)))
        for family in _FAMILIES.values():
            for priority in (_RETURN_RULE, _AFTER_RULE):
                await forgiving(self._route.rule("del", family=family.number, priority=priority))
        for place in await self._routes():
            await self._drop_route(place)

    async def _sweep(self, rules: Sequence[_Rule], places: Set[_Place]) -> None:
        """What an interrupted change left: rules for unbound packets beside no other, routes that nothing leads to."""
        whole = {replace(rule, selector=_unbound(rule.selector), unbound=True) for rule in rules if not rule.unbound}
        for rule in rules:
            if rule.unbound and rule not in whole:
                await forgiving(self._route.rule("del", **_request(rule)))
        for place in places:
            await self._drop_route(place)

    async def _to(self, destination: IpNetwork) -> list[_Rule]:
        return [rule for rule in await self._rules() if not rule.unbound and rule.selector.destination == destination]

    async def _others(self, obj: ManagedObject) -> list[Lead | Exempt]:
        """What is in place beside it and has the same rule for unbound packets, as it were with what it knows."""
        one = obj.key.selector if isinstance(obj, Exempt) else _lead(obj).key
        found: list[Lead | Exempt] = []
        for rule in await self._to(one.destination):
            same = _unbound(rule.selector) == _unbound(one) and rule.selector != one
            if same and rule.leads and isinstance(obj, Lead):
                found.append(replace(obj, key=rule.selector))
            elif same and not rule.leads and isinstance(obj, Exempt):
                # Of one that nobody told of it is not known: a rule too many exempts, which XFRM protects.
                key = ExemptKey(rule.selector)
                found.append(Exempt(key, unbound=self._need_unbound.get(key, True)))
        return found

    async def _settle_unbound(self, obj: ManagedObject, those: Sequence[ManagedObject]) -> None:
        """Its rule for unbound packets goes unless one of those has it."""
        leads = isinstance(obj, Lead)
        selector = obj.key if isinstance(obj, Lead) else obj.key.selector if isinstance(obj, Exempt) else None
        if selector is None or selector.destination.version != _BINDING:
            return
        rule = _Rule(leads, _unbound(selector), unbound=True)
        needed = [one for other in those for one in (_leading(other) if isinstance(other, Lead) else _exempting(other))]
        if rule not in needed:
            await forgiving(self._route.rule("del", **_request(rule)))

    async def _put_rule(self, rule: _Rule, obj: Lead | Exempt) -> None:
        try:
            await self._route.rule("add", **_request(rule))
        except NetlinkError as error:
            if error.code != _EXISTS:
                raise _refused(obj, error) from None

    @staticmethod
    async def _ask(request: Any, lead: Lead) -> None:
        try:
            await request
        except NetlinkError as error:
            raise _refused(lead, error) from None

    async def _drop_route(self, place: _Place) -> None:
        table, destination = place
        family = _FAMILIES[destination.version].number
        await forgiving(self._route.route("del", family=family, table=table, dst=str(destination)))

    async def _put_route(self, lead: Lead) -> None:
        extra = {"prefsrc": str(lead.source_hint)} if lead.source_hint else {}
        family = _FAMILIES[lead.key.destination.version]
        await self._route.route(
            "replace",
            family=family.number,
            table=_table_of(lead.key),
            dst=str(lead.key.destination),
            gateway=family.dummy_hop,
            oif=self._index,
            flags=RTNH_F_ONLINK,
            priority=WORST_METRIC,
            metrics={"mtu": lead.mtu},
            **extra,
        )

    async def _routes(self) -> dict[_Place, _Route]:
        found: dict[_Place, _Route] = {}
        for family in _FAMILIES.values():
            for table in _TABLES:
                for message in await read(self._route.get_routes(table=table, family=family.number)):
                    metrics = dict(slot[:2] for slot in (message.get_attr("RTA_METRICS") or {"attrs": []})["attrs"])
                    hint = message.get("prefsrc")
                    found[table, _network(message, "dst", family)] = _Route(
                        ip_address(hint) if hint else None, int(metrics.get("RTAX_MTU", 0))
                    )
        return found

    async def _rules(self) -> list[_Rule]:
        return await _rules_of(self._route)


async def exempted(route: AsyncIPRoute) -> list[Selector]:
    """What is exempted from leading now. Raises IpsecGwError."""
    return [rule.selector for rule in await _rules_of(route) if not rule.leads and not rule.unbound]


async def _rules_of(route: AsyncIPRoute) -> list[_Rule]:
    """All but the fixed ones."""
    return [
        rule
        for family in _FAMILIES.values()
        for message in await read(route.get_rules(family=family.number))
        if (rule := _rule_of(message, family)) is not None
    ]


_TABLES = (TABLE, WHOLE_TABLE)
_Place = tuple[int, IpNetwork]
"""A table and a destination: where a route is."""


def _table_of(selector: Selector) -> int:
    return WHOLE_TABLE if selector.ported else TABLE


def _place(selector: Selector) -> _Place:
    return _table_of(selector), selector.destination


_GONE = frozenset({2, 3, 19})
"""ENOENT, ESRCH, ENODEV."""

_EXISTS = 17


async def forgiving(request: Any) -> None:
    """Removal of what may be gone already (an administrator's hand, a vanished device). Raises IpsecGwError."""
    try:
        await request
    except NetlinkError as error:
        if error.code not in _GONE:
            raise IpsecGwError(f"policy routing cannot be removed: {error} - see `ip rule`") from None


async def read(answers: Any) -> list[Any]:
    """A dump. Raises IpsecGwError if the kernel does not give it."""
    try:
        return [message async for message in await answers]
    except NetlinkError as error:
        raise IpsecGwError(f"policy routing cannot be read: {error} - see `ip rule`") from None


def _refused(obj: Lead | Exempt, error: NetlinkError) -> IpsecGwError:
    return IpsecGwError(f"policy route for {obj.key} refused: {error} - see `ip rule` and `dmesg`")


def _lead(obj: ManagedObject) -> Lead:
    if not isinstance(obj, Lead):
        raise TypeError(f"{obj!r} is not a lead")
    return obj


def _lead_of(selector: Selector, route: _Route | None) -> Lead:
    """A lead as it is in place; without its route it has an MTU that nobody wants."""
    return Lead(selector, route.source_hint, route.mtu) if route else Lead(selector, None, 0)


_BINDING = 4
"""The IP version in which packets of this machine's own may need a rule while they have no source."""


def _binds(lead: Lead) -> bool:
    """It needs the rule for local packets that have no source yet."""
    hint = lead.source_hint
    return hint is not None and lead.key.destination.version == _BINDING and hint in lead.key.source


@dataclass(frozen=True, slots=True)
class _Rule:
    """A rule that leads, or that exempts; ``unbound`` is for packets of this machine's own without a source."""

    leads: bool
    selector: Selector
    unbound: bool = False


def _leading(lead: Lead) -> list[_Rule]:
    unbound = [_Rule(True, _unbound(lead.key), unbound=True)] if _binds(lead) else []
    return [_Rule(True, lead.key), *unbound]


def _exempting(obj: ManagedObject) -> list[_Rule]:
    if not isinstance(obj, Exempt):
        raise TypeError(f"{obj!r} is no exemption")
    selector = obj.key.selector
    binds = obj.unbound and selector.destination.version == _BINDING
    return [_Rule(False, selector), *([_Rule(False, _unbound(selector), unbound=True)] if binds else [])]


def _unbound(selector: Selector) -> Selector:
    """The same for packets without a source."""
    nowhere = _FAMILIES[selector.destination.version].unspecified
    return replace(selector, source=ip_network(f"{nowhere}/{selector.destination.max_prefixlen}"))


def _request(rule: _Rule) -> dict[str, Any]:
    """Its netlink attributes, to add or delete it."""
    selector = rule.selector
    # "Any" is no address at all: with 0.0.0.0/0 the kernel refuses the rule (fib_rules.c).
    sides = {"src": selector.source, "dst": selector.destination}
    named: dict[str, Any] = {side: str(network) for side, network in sides.items() if network.prefixlen}
    named |= {"ip_proto": selector.protocol} if selector.protocol else {}
    for name, match in (("sport_range", selector.source_port), ("dport_range", selector.destination_port)):
        if match.mask and match.range is not None:
            named[name] = f"{match.range[0]}:{match.range[1]}"
    named |= {"iifname": "lo"} if rule.unbound else {}
    way: dict[str, Any] = {"table": _table_of(selector)} if rule.leads else {"action": "goto", "goto": _AFTER_RULE}
    family = _FAMILIES[selector.destination.version].number
    return {"family": family, "priority": _priority(rule), **way, **named}


def _priority(rule: _Rule) -> int:
    """Looking for the rule to delete, or for one that exists, the kernel takes what is not given for "whichever"
    (fib_rules.c), so rules that give different things must not meet. Among those of a kind the order means nothing.
    """
    selector = rule.selector
    any_source, any_destination = selector.source.prefixlen == 0, selector.destination.prefixlen == 0
    ports = bool(selector.source_port.mask) + 2 * bool(selector.destination_port.mask)
    level = 1 + ports if selector.protocol else 0
    first = _LEAD_RULE if rule.leads else _EXEMPT_RULE
    return first + _ANY_SOURCE * any_source + _ANY_DESTINATION * any_destination + _NARROWED * level


def _rule_of(message: Any, family: _Family) -> _Rule | None:
    """A rule of ours, None for the fixed ones and those of others."""
    priority = int(message.get("priority") or 0)
    leads = message.get("table") in _TABLES and _LEAD_RULE <= priority < _LEAD_RULE + _KINDS
    exempts = message.get("goto") == _AFTER_RULE and _EXEMPT_RULE <= priority < _EXEMPT_RULE + _KINDS
    if not leads and not exempts:
        return None
    selector = Selector(
        _network(message, "src", family),
        _network(message, "dst", family),
        int(message.get("ip_proto") or 0),
        _ports(message.get("sport_range")),
        _ports(message.get("dport_range")),
    )
    return _Rule(leads, selector, unbound=bool(message.get("iifname")))


def _ports(told: Any) -> PortMatch:
    """The ports of a rule, which are some whose first bits are alike."""
    if not told:
        return PortMatch()
    first, last = map(int, str(told).split(":"))
    return PortMatch(first, 0xFFFF & ~(first ^ last))


def _network(message: Any, side: str, family: _Family) -> IpNetwork:
    """The ``src`` or ``dst`` of a rule or route; netlink leaves it out for "any"."""
    return ip_network(f"{message.get(side) or family.unspecified}/{message.get(f'{side}_len')}")
