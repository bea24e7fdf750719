"""Policy routing that leads what XFRM is to transform between this machine and a peer (transport mode) to the engine.

::

    197  from LOCAL to PEER fwmark 0x80000000/0x80000000 lookup T

By addresses alone IKE, ESP and the look-ups of charon and of XFRM itself could not be told from it. So netfilter marks
this machine's own packets that IPsec is to transform, and has them routed once more (:mod:`ipsec_gw.ownership.bypass`).
Nothing else has the mark. The one route of table T is a default route, and the worst there could be: charon looks at
all tables for the way to a peer, and takes the longest prefix, then the smallest metric.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from ipaddress import IPv4Address, ip_address
from typing import Any

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from ipsec_gw.errors import IpsecGwError
from ipsec_gw.model.objects import Hosts, HostsLead, ManagedObject
from ipsec_gw.ownership.bypass import AGAIN_MARK
from ipsec_gw.ownership.lead import DUMMY_HOP, RTNH_F_ONLINK, forgiving, read

TABLE = 21702
_RULE = 197
_WORST_METRIC = 0xFFFFFFFF
_EXISTS = 17


class HostsDriver:
    """Keeps the rules, and the route while there is one. ``kernel_index`` is ``ipsecgw-up``, whose neighbour
    :class:`~ipsec_gw.ownership.lead.LeadDriver` makes.
    """

    def __init__(self, route: AsyncIPRoute, *, kernel_index: int) -> None:
        self._route = route
        self._index = kernel_index

    async def retrieve(self) -> Mapping[Hosts, HostsLead]:
        """What is in place. Without the route there is nothing: the rules that are left are removed."""
        rules = await self._rules()
        if rules and not await self._has_route():
            for hosts in rules:
                await self._delete_rule(hosts)
            return {}
        return {hosts: HostsLead(hosts) for hosts in rules}

    async def create(self, obj: ManagedObject) -> None:
        """The route first: a packet never meets a rule without it."""
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
                priority=_WORST_METRIC,
            )
            await self._route.rule("add", **_request(hosts))
        except NetlinkError as error:
            if error.code != _EXISTS:
                raise IpsecGwError(f"policy route for {hosts} refused: {error} - see `ip rule` and `dmesg`") from None

    async def update(self, obj: ManagedObject) -> None:
        """There is nothing to change about one."""
        await self.create(obj)

    async def delete(self, obj: ManagedObject) -> None:
        """The route goes with the last rule."""
        await self._delete_rule(_hosts(obj))
        if not await self._rules():
            await self._delete_route()

    async def clear(self) -> None:
        """Take all rules and the route away, also those of an earlier life."""
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
            self._route.route("del", family=socket.AF_INET, table=TABLE, dst="default", priority=_WORST_METRIC)
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
