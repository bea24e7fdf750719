"""VXLAN devices as rtnetlink lists them, read from the bytes of messages."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Iterable
from ipaddress import ip_address
from typing import cast

import pytest
from pyroute2 import AsyncIPRoute
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg

from ipsec_gw.mirror.kernel import KernelView
from ipsec_gw.model.objects import InterfaceKind, XfrmInterface
from ipsec_gw.model.snapshot import Vxlan
from tests.unit.test_xfrm_interfaces import Links, link

HERE, THERE = "10.0.0.1", "10.0.0.2"
PORT = ("IFLA_VXLAN_PORT", 4789)
ENDS = (("IFLA_VXLAN_LOCAL", HERE), ("IFLA_VXLAN_GROUP", THERE), ("IFLA_VXLAN_ID", 42), PORT)
VXLAN1 = XfrmInterface(17, "vxlan1", InterfaceKind.VXLAN)
NTF_SELF, NTF_MASTER = 0x02, 0x04


class Devices(Links):
    """With the forwarding databases of bridges and VXLAN devices."""

    def __init__(self, *found: ifinfmsg, entries: Iterable[ndmsg] = ()) -> None:
        super().__init__(*found)
        self._entries = tuple(entries)

    async def get_neighbours(self, *, family: int) -> AsyncIterator[ndmsg]:
        assert family == socket.AF_BRIDGE

        async def each() -> AsyncIterator[ndmsg]:
            for one in self._entries:
                yield one

        return each()


def entry(*attributes: tuple[str, object], index: int = 17, flags: int = NTF_SELF) -> ndmsg:
    """As the kernel sends it."""
    made = ndmsg()
    made["family"], made["ifindex"], made["flags"] = socket.AF_BRIDGE, index, flags
    made["attrs"] = list(attributes)
    made.encode()
    read = ndmsg(made.data)
    read.decode()
    return read


async def seen(
    *attributes: tuple[str, object], kind: str = "vxlan", entries: Iterable[ndmsg] = ()
) -> tuple[Vxlan, ...]:
    links = Devices(link(2, "wan0", "vlan", []), link(17, "vxlan1", kind, list(attributes)), entries=entries)
    view = KernelView(cast(AsyncIPRoute, links))
    return await view.vxlans(await view.links())


async def test_a_device_is_told_with_its_ends_and_port() -> None:
    here, there = ip_address(HERE), ip_address(THERE)
    assert await seen(*ENDS) == (Vxlan(VXLAN1, here, there, 4789, 42),)
    six = (("IFLA_VXLAN_LOCAL6", "2001:db8::1"), ("IFLA_VXLAN_GROUP6", "2001:db8::2"))
    assert await seen(*six, PORT) == (Vxlan(VXLAN1, ip_address("2001:db8::1"), ip_address("2001:db8::2"), 4789),)
    assert await seen(("IFLA_VXLAN_GROUP", THERE), PORT) == (Vxlan(VXLAN1, None, there, 4789),)
    (bound,) = await seen(*ENDS, ("IFLA_VXLAN_LINK", 2))
    assert bound.link == "wan0"


USUAL = [
    ("IFLA_VXLAN_TTL", 64),
    ("IFLA_VXLAN_TTL_INHERIT", True),  # the kernel tells it always, and it is read as a flag
    ("IFLA_VXLAN_LEARNING", 1),
    ("IFLA_VXLAN_PORT_RANGE", {"low": 0, "high": 0}),
    ("IFLA_VXLAN_UDP_CSUM", 1),
    ("IFLA_VXLAN_COLLECT_METADATA", 0),
    ("IFLA_VXLAN_DF", 0),
]
ODD: list[tuple[str, object, str]] = [
    ("IFLA_VXLAN_COLLECT_METADATA", 1, "external"),
    ("IFLA_VXLAN_GBP", True, "GBP"),
    ("IFLA_VXLAN_GPE", True, "GPE"),
    ("IFLA_VXLAN_REMCSUM_TX", 1, "checksums"),
    ("IFLA_VXLAN_PROXY", 1, "proxy"),
    ("IFLA_VXLAN_L2MISS", 1, "l2miss"),
    ("IFLA_VXLAN_TTL", 5, "TTL of 5"),
    ("IFLA_VXLAN_TOS", 1, "TOS of 0x01"),
    ("IFLA_VXLAN_DF", 1, "DF"),
    ("IFLA_VXLAN_LABEL", 7, "flow label"),
    ("IFLA_VXLAN_PORT_RANGE", {"low": 1000, "high": 2000}, "srcport"),
]


async def test_a_usual_one_has_no_oddity() -> None:
    (device,) = await seen(*ENDS, *USUAL)
    assert (device.oddity, device.elsewhere, device.up) == ("", (), True)


@pytest.mark.parametrize(("name", "value", "words"), ODD, ids=[f"{name} {value}" for name, value, _ in ODD])
async def test_what_no_engine_could_do_is_told(name: str, value: object, words: str) -> None:
    (device,) = await seen(*ENDS, (name, value))
    assert words in device.oddity


async def test_where_else_its_forwarding_database_leads() -> None:
    anyone, mac = "00:00:00:00:00:00", "02:00:00:00:00:09"
    entries = [
        entry(("NDA_LLADDR", anyone), ("NDA_DST", THERE)),
        entry(("NDA_LLADDR", mac), ("NDA_DST", "10.0.0.4")),
        entry(("NDA_LLADDR", mac), ("NDA_DST", "10.0.0.3")),
        entry(("NDA_LLADDR", mac), ("NDA_DST", "10.0.0.7"), index=18),
        entry(("NDA_LLADDR", mac), ("NDA_MASTER", 5), flags=NTF_MASTER),
        entry(("NDA_LLADDR", mac)),
    ]
    (device,) = await seen(*ENDS, entries=entries)
    assert device.elsewhere == ("10.0.0.3", "10.0.0.4")


@pytest.mark.parametrize(
    "own", [("NDA_VNI", 43), ("NDA_PORT", 4790), ("NDA_IFINDEX", 3), ("NDA_NH_ID", 7)], ids=lambda own: own[0]
)
async def test_an_entry_may_have_what_the_device_has_not(own: tuple[str, int]) -> None:
    (device,) = await seen(*ENDS, entries=[entry(("NDA_LLADDR", "02:00:00:00:00:09"), ("NDA_DST", THERE), own)])
    assert device.elsewhere == (f"{THERE} by an entry of its own kind",)


@pytest.mark.parametrize("group", [None, "0.0.0.0", "239.1.1.1"])
async def test_one_without_a_peer_or_with_a_group_is_none(group: str | None) -> None:
    attributes = [] if group is None else [("IFLA_VXLAN_GROUP", group)]
    assert await seen(*attributes, PORT) == ()


async def test_others_are_none() -> None:
    assert await seen(("IFLA_GRE_REMOTE", THERE), kind="gre") == ()
