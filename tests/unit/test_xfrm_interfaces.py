"""XFRM interfaces as rtnetlink lists them, read from the bytes of messages."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, cast

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from ipsec_gw.mirror.kernel import KernelView
from ipsec_gw.model.objects import XfrmInterface

IFF_UP, IFF_NOARP = 0x1, 0x80


def link(index: int, name: str, kind: str, data: list[tuple[str, object]]) -> ifinfmsg:
    info = {"attrs": [("IFLA_INFO_KIND", kind), ("IFLA_INFO_DATA", {"attrs": data})]}
    made = ifinfmsg()
    made["index"], made["flags"] = index, IFF_UP | IFF_NOARP
    made["attrs"] = [("IFLA_IFNAME", name), ("IFLA_MTU", 1500), ("IFLA_LINKINFO", info)]
    made.encode()
    read = ifinfmsg(made.data)
    read.decode()
    return read


class Links:
    """The part of AsyncIPRoute that is asked."""

    def __init__(self, *found: ifinfmsg) -> None:
        self._found = found

    async def get_links(self) -> AsyncIterator[Any]:
        async def each() -> AsyncIterator[Any]:
            for one in self._found:
                yield one

        return each()


async def seen(*found: ifinfmsg) -> dict[int, XfrmInterface]:
    return (await KernelView(cast(AsyncIPRoute, Links(*found))).links()).xfrm_interfaces()


async def test_they_are_found_by_their_if_id() -> None:
    found = await seen(
        link(3, "eth0.7", "vlan", [("IFLA_VLAN_ID", 7)]),
        link(17, "ipsec0", "xfrm", [("IFLA_XFRM_LINK", 2), ("IFLA_XFRM_IF_ID", 42)]),
        link(18, "ipsec1", "xfrm", [("IFLA_XFRM_IF_ID", 0xFFFF0001)]),
    )
    assert found == {42: XfrmInterface(17, "ipsec0"), 0xFFFF0001: XfrmInterface(18, "ipsec1")}


async def test_one_that_is_told_its_if_id_by_others_is_none_of_ours() -> None:
    assert await seen(link(17, "ipsec0", "xfrm", [("IFLA_XFRM_LINK", 2)])) == {}
