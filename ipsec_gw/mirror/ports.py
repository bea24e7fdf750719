"""The interfaces of the firewall's zones as the kernel has them, and a signal when any of it changes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from ipaddress import ip_address
from typing import Any

from pyroute2 import AsyncIPRoute

from ipsec_gw.mirror.ethtool import has_device
from ipsec_gw.mirror.links import ARPHRD_ETHER
from ipsec_gw.model.ids import IpAddress
from ipsec_gw.netlink import (
    NETLINK_ROUTE,
    RTNLGRP_IPV4_IFADDR,
    RTNLGRP_IPV4_ROUTE,
    RTNLGRP_IPV4_RULE,
    RTNLGRP_IPV6_IFADDR,
    RTNLGRP_IPV6_ROUTE,
    RTNLGRP_LINK,
    RTNLGRP_NEIGH,
    Ear,
)
from xdp_steer.compile.rows import PortInfo

_SCOPE_UNIVERSE = 0
_XFRM_KINDS = frozenset({"xfrm", "vti", "vti6"})
INTERFACES = (RTNLGRP_LINK, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR)
"""Notifications after which interfaces are looked at again."""
ROUTES = (*INTERFACES, RTNLGRP_NEIGH, RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV4_RULE, RTNLGRP_IPV6_ROUTE)
"""Notifications after which a route that was looked up may be another one."""


class Changes(Ear):
    """Tells that something changed, not what: lost notifications are no loss then."""

    def __init__(self, groups: Iterable[int], changed: Callable[[], None]) -> None:
        super().__init__(NETLINK_ROUTE, groups)
        self._changed = changed

    def drain(self) -> None:
        """Read what there is and tell."""
        for _ in self.datagrams():
            pass
        self._changed()


async def port_infos(
    route: AsyncIPRoute, names: Iterable[str], generic: Callable[[int], bool], kept: frozenset[str]
) -> dict[str, PortInfo]:
    """What there is of the named interfaces; those that do not exist are left out.

    ``generic`` tells whether an interface (by index) has XDP in generic mode. Nothing is redirected to an interface in
    ``kept``: what the kernel may want to encrypt, the kernel has to send.
    """
    links = {str(link.get("ifname")): link async for link in await route.get_links()}
    addresses = await _addresses(route)
    found = {}
    for name in names:
        link = links.get(name)
        if link is None:
            continue
        index, vid = int(link.get("index")), _vid(link)
        parent = int(link.get("link")) if vid else index
        hardware = next((other for other, one in links.items() if int(one.get("index")) == parent), name)
        native = has_device(hardware) and not generic(parent)
        found[name] = PortInfo(
            ifindex=parent,
            l3_ifindex=index,
            vid=vid,
            address4=addresses.get((index, 4)),
            address6=addresses.get((index, 6)),
            redirect=hardware not in kept and (native or generic(parent)),
            partial=not native,
            vlan=bool(vid),
            ethernet=int(link.get("ifi_type")) == ARPHRD_ETHER,
            xfrm=_kind(link) in _XFRM_KINDS,
        )
    return found


async def local_addresses(route: AsyncIPRoute) -> frozenset[IpAddress]:
    """All addresses of this machine."""
    texts = [message.get("local") or message.get("address") async for message in await route.get_addr()]
    return frozenset(ip_address(text) for text in texts if text)


async def _addresses(route: AsyncIPRoute) -> dict[tuple[int, int], IpAddress]:
    """The first global address of each interface and IP version."""
    found: dict[tuple[int, int], IpAddress] = {}
    async for message in await route.get_addr():
        text = message.get("local") or message.get("address")
        if text and int(message.get("scope")) == _SCOPE_UNIVERSE:
            address = ip_address(text)
            found.setdefault((int(message.get("index")), address.version), address)
    return found


def _vid(link: Any) -> int:
    return int(link.get("linkinfo").get("data").get("vlan_id")) if _kind(link) == "vlan" else 0


def _kind(link: Any) -> str:
    info = link.get("linkinfo")
    return "" if info is None else str(info.get("kind"))
