"""GRE and IPIP devices as rtnetlink lists them, read from the bytes of messages."""

from __future__ import annotations

from ipaddress import ip_address
from typing import cast

import pytest
from pyroute2 import AsyncIPRoute

from ipsec_gw.mirror.kernel import KernelView
from ipsec_gw.model.objects import InterfaceKind, XfrmInterface
from ipsec_gw.model.snapshot import Encapsulator
from tests.unit.test_xfrm_interfaces import Links, link

HERE, THERE = "10.0.0.1", "10.0.0.2"
ENDS: list[tuple[str, object]] = [("IFLA_GRE_LOCAL", HERE), ("IFLA_GRE_REMOTE", THERE)]
PLAIN: list[tuple[str, object]] = [
    *ENDS,
    *[("IFLA_GRE_LINK", 0), ("IFLA_GRE_IFLAGS", 0), ("IFLA_GRE_OFLAGS", 0), ("IFLA_GRE_IKEY", 0), ("IFLA_GRE_OKEY", 0)],
    *[("IFLA_GRE_TTL", 0), ("IFLA_GRE_TOS", 0), ("IFLA_GRE_PMTUDISC", 1), ("IFLA_GRE_FWMARK", 0)],
    *[("IFLA_GRE_ENCAP_TYPE", 0), ("IFLA_GRE_IGNORE_DF", 0)],
]


async def seen(*found: object) -> tuple[Encapsulator, ...]:
    return (await KernelView(cast(AsyncIPRoute, Links(*found))).links()).encapsulators()  # type: ignore[arg-type]


async def gre(**attributes: object) -> Encapsulator:
    """A GRE device with these attributes beside its end points."""
    data = [*ENDS, *((f"IFLA_GRE_{name.upper()}", value) for name, value in attributes.items())]
    (found,) = await seen(link(2, "wan0", "vlan", []), link(17, "gre1", "gre", data))
    return found


async def test_a_plain_device_is_what_its_ends_say() -> None:
    found = await seen(
        link(3, "eth0.7", "vlan", [("IFLA_VLAN_ID", 7)]),
        link(17, "gre1", "gre", PLAIN),
        link(18, "ipip1", "ipip", [("IFLA_IPIP_LOCAL", HERE), ("IFLA_IPIP_REMOTE", THERE), ("IFLA_IPIP_PROTO", 4)]),
    )
    assert found == tuple(
        Encapsulator(XfrmInterface(*device), ip_address(HERE), ip_address(THERE))
        for device in ((17, "gre1", InterfaceKind.GRE), (18, "ipip1", InterfaceKind.IPIP))
    )
    assert [(one.interface.kind, one.protocol) for one in found] == [(InterfaceKind.GRE, 47), (InterfaceKind.IPIP, 4)]


async def test_one_without_ends_is_for_any() -> None:
    (found,) = await seen(link(5, "gre0", "gre", [("IFLA_GRE_LOCAL", "0.0.0.0"), ("IFLA_GRE_REMOTE", "0.0.0.0")]))
    assert (found.local, found.remote) == (None, None)


async def test_what_is_honoured() -> None:
    assert not (await gre(ttl=255, tos=0)).oddity
    assert (await gre(tos=1)).dscp
    assert not (await gre(tos=0)).dscp
    assert (await gre(link=2)).link == "wan0"


ODD = {
    "a key": ({"ikey": 7, "iflags": 0x2000}, "key"),
    "checksums on the way out": ({"oflags": 0x8000}, "checksums"),
    "a small TTL": ({"ttl": 5}, "TTL of 5"),
    "a TOS": ({"tos": 0xB8}, "TOS of 0xb8"),
    "a TOS beside the one from inside": ({"tos": 0xB9}, "TOS of 0xb9"),
    "UDP": ({"encap_type": 1}, "UDP"),
    "ends with each packet": ({"collect_metadata": True}, "external"),
    "a mark": ({"fwmark": 3}, "mark"),
}


@pytest.mark.parametrize(("attributes", "oddity"), ODD.values(), ids=ODD.keys())
async def test_what_no_engine_does(attributes: dict[str, object], oddity: str) -> None:
    assert oddity in (await gre(**attributes)).oddity


async def test_ethernet_over_gre_is_no_plain_device() -> None:
    (found,) = await seen(link(17, "tap1", "gretap", PLAIN))
    assert "gretap" in found.oddity
    assert found.protocol == 47


async def test_more_than_ipv4_in_ipip() -> None:
    (found,) = await seen(link(17, "ipip1", "ipip", [("IFLA_IPIP_PROTO", 137)]))
    assert found.oddity
