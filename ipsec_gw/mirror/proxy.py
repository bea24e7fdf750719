"""Makes the kernel answer for NAT's addresses on a link, with or without a daemon.

::

    215  iif eth0 lookup T                       both IP versions; T is of this interface alone
    local 203.0.113.16/28 dev lo table T         the kernel answers ARP, and probes of IPv6 neighbours, for these
    2001:db8::10 dev eth0 proxy                  a neighbour proxy for each address of IPv6, and proxy_ndp = 1

The addresses are local to packets that come in there and to nothing else: nothing can be bound to them, no source
address is chosen among them, and what this machine sends to them goes out. A packet from the link that opens no flow
through NAT is judged as one to this machine. ARP probes (RFC 5227, no sender) are not answered. Setting an interface
down takes its neighbour proxies away: they come back with the next :func:`hold`.

Everything carries a protocol number of its own (`proto 217`), and by that it is found again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Collection
from dataclasses import dataclass, replace
from ipaddress import IPv6Address, ip_address, ip_network
from socket import AF_INET, AF_INET6
from typing import Any, cast

import structlog
from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from ipsec_gw.errors import IpsecGwError
from ipsec_gw.firewall.answers import Answer, Answers, answers
from ipsec_gw.mirror import ndp
from ipsec_gw.mirror.announce import announce
from ipsec_gw.model.firewall import Ruleset
from ipsec_gw.model.ids import IpAddress, IpNetwork

PROTOCOL, PROTOCOL_NDP = 217, 218
"""Of routes, neighbour proxies and rules; the latter of an IPv6 rule whose interface had neighbour proxies switched on
for it.
"""
FIRST_TABLE = 2_170_000
"""Plus the index of an interface: its table."""
_PRIORITY = 215
_LOOPBACK, _SCOPE_HOST, _SCOPE_UNIVERSE = 1, 254, 0
_NTF_PROXY = 8
_ETHERNET = 1
_GONE = frozenset({2, 3, 19})
"""ENOENT, ESRCH, ENODEV."""
_EXISTS = 17
_FAR = {AF_INET: "240.0.0.1", AF_INET6: "2000::1"}
"""Addresses nobody has: the way there is the default route's."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Rule:
    family: int
    interface: str
    table: int


@dataclass(frozen=True, slots=True)
class _Route:
    network: IpNetwork
    table: int


@dataclass(frozen=True, slots=True)
class _Proxy:
    address: IPv6Address
    index: int


@dataclass(frozen=True, slots=True)
class _State:
    """What is in the kernel. ``switched`` are interfaces whose proxy_ndp is ours."""

    rules: frozenset[_Rule] = frozenset()
    routes: frozenset[_Route] = frozenset()
    proxies: frozenset[_Proxy] = frozenset()
    switched: frozenset[str] = frozenset()


async def wanted(route: AsyncIPRoute, ruleset: Ruleset) -> Answers:
    """What a ruleset's addresses and the interfaces of this moment ask for. Raises IpsecGwError."""
    try:
        names = {link.index: name for name, link in (await _links(route)).items()}
        connected: dict[str, set[IpNetwork]] = {}
        taken: set[IpAddress] = set()
        async for message in await route.get_addr():
            text, interface = message.get("address"), names.get(int(message.get("index")))
            taken.add(ip_address(message.get("local") or text))
            if interface and int(message.get("scope")) == _SCOPE_UNIVERSE:
                prefix = ip_network(f"{text}/{message.get('prefixlen')}", strict=False)
                connected.setdefault(interface, set()).add(prefix)
        prefixes = {interface: frozenset(found) for interface, found in connected.items()}
        found = answers(ruleset, prefixes, frozenset(taken))
        for index in [index for index, name in names.items() if any(one.interface == name for one in found.given)]:
            taken |= await _routers(route, index)
    except NetlinkError as error:
        raise IpsecGwError(f"the addresses of interfaces cannot be read: {error} - see `ip addr`") from None
    found = answers(ruleset, prefixes, frozenset(taken))
    for one in found.left_out:
        log.warning("not answered for", interface=one.interface, addresses=str(one.network), reason=one.reason)
    return found


async def hold(route: AsyncIPRoute, wanted: Collection[Answer]) -> None:
    """Make the kernel answer for exactly these, and tell the neighbours of those that are new. Idempotent.

    What is in place already is not touched, nor are proxies of others. Interfaces that do not exist are left out. Needs
    forwarding on the interface for IPv6 and ``arp_ignore`` 0 for IPv4, and warns where it is otherwise. Raises
    IpsecGwError.
    """
    try:
        links = await _links(route)
        present, foreign = await _present(route)
        present = await _unmarked(route, present)
        state = _state([one for one in wanted if one.interface in links], links)
        await _take_away(route, present, state)
        await _add(route, present, state, foreign)
        new = [one for one in wanted if one.interface in links and not _has(present, one, links[one.interface])]
        for name in sorted({one.interface for one in new}):
            link = links[name]
            networks = [one.network for one in new if one.interface == name]
            log.info("answering for NAT's addresses", interface=name, addresses=sorted(map(str, networks)))
            for obstacle in ndp.obstacles(name, {network.version for network in networks}):
                log.warning("neighbours may get no answer", interface=name, setting=obstacle)
            if link.mac:
                announce(name, link.mac, networks)
    except (NetlinkError, OSError) as error:
        raise IpsecGwError(
            f"NAT's addresses cannot be answered for: {error} - see `ip rule`, `ip neigh show proxy` and `dmesg`"
        ) from None


async def remove(route: AsyncIPRoute) -> None:
    """Take everything away, also what an earlier life left. Raises IpsecGwError."""
    await hold(route, ())


@dataclass(frozen=True, slots=True)
class _Link:
    index: int
    mac: str  # empty where there is no Ethernet


async def _links(route: AsyncIPRoute) -> dict[str, _Link]:
    found = {}
    async for link in await route.get_links():
        mac = link.get("address") if link.get("ifi_type") == _ETHERNET else ""
        found[str(link.get("ifname"))] = _Link(int(link.get("index")), str(mac or ""))
    return found


async def _routers(route: AsyncIPRoute, index: int) -> set[IpAddress]:
    """The next hops of default routes out of an interface: never to be answered for."""
    found: set[IpAddress] = set()
    for family, far in _FAR.items():
        try:
            messages = cast(list[Any], await route.route("get", dst=far, oif=index, family=family))
        except NetlinkError:
            continue  # no such route
        gateway = messages[0].get("gateway")
        if gateway:
            found.add(ip_address(gateway))
    return found


def _state(wanted: Collection[Answer], links: dict[str, _Link]) -> _State:
    rules, routes, proxies = set(), set(), set()
    for one in wanted:
        index = links[one.interface].index
        rules.add(_Rule(_family(one.network), one.interface, FIRST_TABLE + index))
        routes.add(_Route(one.network, FIRST_TABLE + index))
        if one.network.version == 6:
            proxies |= {_Proxy(IPv6Address(address), index) for address in one.network}
    switched = frozenset(rule.interface for rule in rules if rule.family == AF_INET6)
    return _State(frozenset(rules), frozenset(routes), frozenset(proxies), switched)


async def _present(route: AsyncIPRoute) -> tuple[_State, frozenset[_Proxy]]:
    """Ours, and the neighbour proxies of others. Routes without a rule are none: rules come first and go last."""
    rules, routes, proxies, switched = set(), set(), {True: set[_Proxy](), False: set[_Proxy]()}, set()
    for family in (AF_INET, AF_INET6):
        own = False
        async for rule in await route.get_rules(family=family):
            protocol = rule.get("protocol")
            if rule.get("priority") != _PRIORITY or protocol not in (PROTOCOL, PROTOCOL_NDP):
                continue
            own = True
            rules.add(_Rule(family, str(rule.get("iifname")), int(rule.get_attr("FRA_TABLE"))))
            if protocol == PROTOCOL_NDP:
                switched.add(str(rule.get("iifname")))
        if own:
            async for message in await route.get_routes(family=family, proto=PROTOCOL):
                network = ip_network(f"{message.get('dst')}/{message.get('dst_len')}")
                routes.add(_Route(network, int(message.get_attr("RTA_TABLE"))))
    async for entry in await route.neigh("dump", family=AF_INET6, flags=_NTF_PROXY, dump_filter=None):
        proxy = _Proxy(IPv6Address(entry.get("dst")), int(entry.get("ifindex")))
        proxies[entry.get_attr("NDA_PROTOCOL") == PROTOCOL].add(proxy)
    state = _State(frozenset(rules), frozenset(routes), frozenset(proxies[True]), frozenset(switched))
    return state, frozenset(proxies[False])


async def _unmarked(route: AsyncIPRoute, present: _State) -> _State:
    """Without rules of interfaces whose proxy_ndp was on by itself, and is not any more: it is to be ours then."""
    other = {rule for rule in present.rules if rule.family == AF_INET6 and rule.interface not in present.switched}
    lost = {rule for rule in other if not ndp.is_on(rule.interface)}
    for rule in lost:
        await _forgiving(route.rule("del", **_rule(rule)), _GONE)
    return replace(present, rules=present.rules - lost)


def _has(present: _State, one: Answer, link: _Link) -> bool:
    return _Route(one.network, FIRST_TABLE + link.index) in present.routes


async def _take_away(route: AsyncIPRoute, present: _State, state: _State) -> None:
    for proxy in present.proxies - state.proxies:
        await _forgiving(route.neigh("del", **_neigh(proxy)), _GONE)
    for old in present.routes - state.routes:
        await _forgiving(route.route("del", **_route(old)), _GONE)
    for rule in present.rules - state.rules:
        await _forgiving(route.rule("del", **_rule(rule)), _GONE)
    for interface in present.switched - state.switched:
        ndp.switch_off(interface)


async def _add(route: AsyncIPRoute, present: _State, state: _State, foreign: frozenset[_Proxy]) -> None:
    """Rules first, so that nothing is left behind without one; then all that they lead to."""
    for rule in state.rules - present.rules:
        switch = rule.family == AF_INET6 and not ndp.is_on(rule.interface)
        protocol = PROTOCOL_NDP if switch else PROTOCOL
        await _forgiving(route.rule("add", **_rule(rule), protocol=protocol), {_EXISTS})
        if switch:
            ndp.switch_on(rule.interface)
    for interface in state.switched & present.switched:
        if not ndp.is_on(interface):
            ndp.switch_on(interface)
    for new in state.routes - present.routes:
        await route.route("replace", **_route(new))
    for proxy in state.proxies - present.proxies - foreign:
        await _forgiving(route.neigh("add", **_neigh(proxy), protocol=PROTOCOL), _GONE)


def _rule(rule: _Rule) -> dict[str, Any]:
    return {"family": rule.family, "priority": _PRIORITY, "iifname": rule.interface, "table": rule.table}


def _route(one: _Route) -> dict[str, Any]:
    family = _family(one.network)
    request = {"family": family, "dst": str(one.network), "oif": _LOOPBACK, "table": one.table}
    scope = {"scope": _SCOPE_HOST} if family == AF_INET else {}
    return {**request, **scope, "type": "local", "proto": PROTOCOL}


def _neigh(proxy: _Proxy) -> dict[str, Any]:
    return {"family": AF_INET6, "dst": str(proxy.address), "ifindex": proxy.index, "flags": _NTF_PROXY}


def _family(network: IpNetwork) -> int:
    return AF_INET6 if network.version == 6 else AF_INET


async def _forgiving(request: Awaitable[Any], codes: Collection[int]) -> None:
    """A request whose end may be reached already: by an administrator's hand, or because a device went meanwhile."""
    try:
        await request
    except NetlinkError as error:
        if error.code not in codes:
            raise
