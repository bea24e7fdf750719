"""VXLAN devices as rtnetlink lists them, read from the bytes of messages."""

from __future__ import annotations

from ipaddress import ip_address
from typing import cast

import pytest
from pyroute2 import AsyncIPRoute

from ipsec_gw.mirror.kernel import KernelView
from ipsec_gw.model.snapshot import Vxlan
from tests.unit.test_xfrm_interfaces import Links, link

HERE, THERE = "10.0.0.1", "10.0.0.2"
PORT = ("IFLA_VXLAN_PORT", 4789)


async def seen(*attributes: tuple[str, object], kind: str = "vxlan") -> tuple[Vxlan, ...]:
    links = Links(link(2, "wan0", "vlan", []), link(17, "vxlan1", kind, list(attributes)))
    return await KernelView(cast(AsyncIPRoute, links)).vxlans()


async def test_a_device_is_told_with_its_ends_and_port() -> None:
    ends = (("IFLA_VXLAN_LOCAL", HERE), ("IFLA_VXLAN_GROUP", THERE), ("IFLA_VXLAN_ID", 42))
    assert await seen(*ends, PORT) == (Vxlan("vxlan1", ip_address(HERE), ip_address(THERE), 4789),)
    six = (("IFLA_VXLAN_LOCAL6", "2001:db8::1"), ("IFLA_VXLAN_GROUP6", "2001:db8::2"))
    assert await seen(*six, PORT) == (Vxlan("vxlan1", ip_address("2001:db8::1"), ip_address("2001:db8::2"), 4789),)
    assert await seen(("IFLA_VXLAN_GROUP", THERE), PORT) == (Vxlan("vxlan1", None, ip_address(THERE), 4789),)


@pytest.mark.parametrize("group", [None, "0.0.0.0", "239.1.1.1"])
async def test_one_without_a_peer_or_with_a_group_is_none(group: str | None) -> None:
    attributes = [] if group is None else [("IFLA_VXLAN_GROUP", group)]
    assert await seen(*attributes, PORT) == ()


async def test_others_are_none() -> None:
    assert await seen(("IFLA_GRE_REMOTE", THERE), kind="gre") == ()
