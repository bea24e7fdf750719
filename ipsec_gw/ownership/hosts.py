"""Policy routing that leads what XFRM is to transform between this machine and a peer, for itself, to the engine.

::

    197  from LOCAL to PEER fwmark 0x80000000/0x80000000 lookup T

By addresses alone IKE, ESP and the look-ups of charon and of XFRM itself could not be told from it. So netfilter marks
this machine's own packets that IPsec is to transform, and has them routed once more (:mod:`ipsec_gw.ownership.marks`):
those between hosts that have such a rule, but for what is exempted of those. Nothing else has the mark. The one route
of table T is a default route, and the worst there could be: charon looks at all tables for the way to a peer, and takes
the longest prefix, then the smallest metric.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import IPv4Address, ip_address
from typing import Any, Protocol

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from ipsec_gw.errors import IpsecGwError
from ipsec_gw.mirror.nftables import Table, Tables
from ipsec_gw.model.objects import Hosts, HostsLead, ManagedObject, Selector
from ipsec_gw.ownership.lead import DUMMY_HOP, RTNH_F_ONLINK, WORST_METRIC, exempted, forgiving, read
from ipsec_gw.ownership.marks import AGAIN_MARK, hosts_table

TABLE = 21702
_RULE = 197
_EXISTS = 17


class KeptTables(Protocol):
    """See :class:`ipsec_gw.mirror.nftables.Tables`."""

    def keep(self, table: Table) -> None:
        """In place, and one without rules not there at all."""

    def change(self, table: Table, former: Table) -> None:
        """The same, of one that was as ``former``."""


class HostsDriver:
    """Keeps the rules, the route while there is one, and the marks. ``kernel_index`` is ``ipsecgw-up``, whose neighbour
    :class:`~ipsec_gw.ownership.lead.LeadDriver` makes; that one keeps the exemptions, and calls :meth:`mark` then.
    """

    def __init__(self, route: AsyncIPRoute, *, kernel_index: int, tables: KeptTables | None = None) -> None:
        self._route = route
        self._index = kernel_index
        self._tables = tables or Tables()
        self._wanted, self._marked = hosts_table((), ()), True
        """The table as it was put last, and whether there may be one, of an earlier life perhaps."""
        self._led: frozenset[Hosts] | None = None
        self._exempted: Sequence[Selector] = ()
        """What that table is of; None: it is not known whether it is in place."""

    async def retrieve(self) -> Mapping[Hosts, HostsLead]:
        """What is in place, marks put right. Without the route there is nothing: rules that are left are removed, and
        so is a route that is left without a rule.
        """
        rules, routed = await self._rules(), await self._has_route()
        if not routed:
            for hosts in rules:
                await self._delete_rule(hosts)
            rules = []
        elif not rules:
            await self._delete_route()
        with contextlib.suppress(IpsecGwError):  # without marks nothing is led, and without its rule none leads
            await self._mark(rules)
        return {hosts: HostsLead(hosts) for hosts in rules}

    async def mark(self) -> None:
        """Have those packets marked that rules and exemptions ask for. Raises IpsecGwError if something is led."""
        rules = await self._rules()
        with contextlib.nullcontext() if rules else contextlib.suppress(IpsecGwError):
            await self._mark(rules)

    def renew(self) -> None:
        """Put the marks back if somebody else took them away."""
        with contextlib.suppress(IpsecGwError):
            if self._wanted.has_rules:
                self._tables.keep(self._wanted)

    async def _mark(self, led: Iterable[Hosts]) -> None:
        """See to the table, whatever is in place."""
        found = frozenset(led)
        self._led = None
        if found or self._marked:
            self._marked = True
            self._exempted = await exempted(self._route) if found else ()
            self._wanted = hosts_table(found, self._exempted)
            self._tables.keep(self._wanted)
            self._marked = bool(found)
        self._led = found

    async def _alter(self, led: frozenset[Hosts]) -> None:
        """These are led now. There may be thousands, so the rest is taken to be as it was left."""
        self._led, former = None, self._wanted
        self._wanted = hosts_table(led, self._exempted)
        self._tables.change(self._wanted, former)
        self._led = led

    async def create(self, obj: ManagedObject) -> None:
        """The route first, the mark last: a packet never meets a rule without the route, nor has a mark in vain."""
        hosts = _hosts(obj)
        try:
            await self._route.route(
                "replace",
                family=socket.AF_INET,
                table=TABLE,
                dst="default",
                gateway=DUMMY_HOP,
                oif=self._index,
                flags=RTNH_F_ONLINK,
                priority=WORST_METRIC,
            )
            await self._route.rule("add", **_request(hosts))
        except NetlinkError as error:
            if error.code != _EXISTS:
                raise IpsecGwError(f"policy route for {hosts} refused: {error} - see `ip rule` and `dmesg`") from None
        if self._led:
            await self._alter(self._led | {hosts})
        else:
            await self.mark()

    async def update(self, obj: ManagedObject) -> None:
        """There is nothing to change about one."""
        await self.create(obj)

    async def delete(self, obj: ManagedObject) -> None:
        """The mark first: if it stays, so does the lead. The route goes with the last rule."""
        led = self._led if self._led is not None else frozenset(await self._rules())
        left = led - {_hosts(obj)}
        await (self._alter(left) if self._led and left else self._mark(left))
        await self._delete_rule(_hosts(obj))
        if not left:
            await self._delete_route()

    async def clear(self) -> None:
        """Take all marks, rules and the route away, also those of an earlier life."""
        with contextlib.suppress(IpsecGwError):  # without its rule no mark leads
            await self._mark(())
        for hosts in await self._rules():
            await self._delete_rule(hosts)
        await self._delete_route()

    async def _rules(self) -> list[Hosts]:
        found = await read(self._route.get_rules(family=socket.AF_INET))
        return [_read_hosts(message) for message in found if message.get("table") == TABLE]

    async def _has_route(self) -> bool:
        return bool(await read(self._route.get_routes(table=TABLE, family=socket.AF_INET)))

    async def _delete_rule(self, hosts: Hosts) -> None:
        await forgiving(self._route.rule("del", **_request(hosts)))

    async def _delete_route(self) -> None:
        await forgiving(
            self._route.route("del", family=socket.AF_INET, table=TABLE, dst="default", priority=WORST_METRIC)
        )


def _hosts(obj: ManagedObject) -> Hosts:
    if not isinstance(obj, HostsLead):
        raise TypeError(f"{obj!r} is not a lead of hosts")
    return obj.key


def _request(hosts: Hosts) -> dict[str, Any]:
    """A rule's netlink attributes, to add or delete it."""
    return {
        "family": socket.AF_INET,
        "priority": _RULE,
        "src": f"{hosts.local}/32",
        "dst": f"{hosts.remote}/32",
        "fwmark": AGAIN_MARK,
        "fwmask": AGAIN_MARK,
        "table": TABLE,
    }


def _read_hosts(message: Any) -> Hosts:
    """A rule without an address, which is none of ours, gives the unspecified one."""
    nowhere = IPv4Address(0)
    return Hosts(ip_address(message.get("src") or nowhere), ip_address(message.get("dst") or nowhere))
