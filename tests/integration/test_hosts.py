"""What leads transport mode to the engine, against the kernel: packets with the mark, and nothing else."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from pyroute2 import AsyncIPRoute

from ipsec_gw.ike.xfrm import XfrmSocket
from ipsec_gw.mirror.nftables import NfTables
from ipsec_gw.model.objects import Hosts, HostsLead
from ipsec_gw.model.snapshot import LeadLimits, Mode, PolicyDirection, Template, XfrmPolicy
from ipsec_gw.ownership.bypass import TABLE, TABLE4, Bypass, remove_bypass
from ipsec_gw.ownership.hosts import TABLE as ROUTES
from ipsec_gw.ownership.hosts import HostsDriver
from ipsec_gw.ownership.lead import LeadDriver
from ipsec_gw.ownership.uplink import ENGINE_END, KERNEL_END, raise_uplink
from tests.support.netns import ip, namespace

pytestmark = pytest.mark.root

LOCAL, PEER, OTHER = ip_address("10.0.0.1"), ip_address("10.0.0.2"), ip_address("10.0.0.3")
LEAD, SECOND = HostsLead(Hosts(LOCAL, PEER)), HostsLead(Hosts(LOCAL, OTHER))
MARK = "0x80000000"


@pytest.fixture(autouse=True)
def net() -> Iterator[None]:
    if os.geteuid() != 0:
        pytest.skip("needs root for network namespaces")
    with namespace(f"igwh-{secrets.token_hex(3)}"):
        ip("link set lo up")
        ip("link add wan0 type veth peer name wan0p")
        for name in ("wan0", "wan0p"):
            ip(f"link set {name} up")
        ip(f"addr add {LOCAL}/24 dev wan0")
        yield


async def driver(route: AsyncIPRoute) -> HostsDriver:
    kernel, engine = await raise_uplink(route)
    lead = LeadDriver(route, kernel_index=kernel.index, engine_name=ENGINE_END, engine_mac=engine.link.mac)
    await lead.prepare()
    return HostsDriver(route, kernel_index=kernel.index)


def way(*words: str) -> str:
    """The device that `ip route get` says."""
    done = subprocess.run(["ip", "-j", "route", "get", *words], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)[0]
    return str(found["dev"])


def left() -> list[str]:
    rules = subprocess.run(["ip", "rule"], capture_output=True, text=True, check=True).stdout
    routes = subprocess.run(["ip", "route", "show", "table", str(ROUTES)], capture_output=True, text=True, check=False)
    return [
        line for line in (*rules.splitlines(), *routes.stdout.splitlines()) if str(ROUTES) in line or "192.0.0" in line
    ]


async def test_what_has_the_mark_is_led_and_nothing_else() -> None:
    async with AsyncIPRoute() as route:
        made = await driver(route)
        marked = (str(PEER), "from", str(LOCAL), "mark", MARK)
        assert way(*marked) == "wan0"
        await made.create(LEAD)
        assert way(*marked) == KERNEL_END
        others = {
            "IKE, and what charon asks": (str(PEER),),
            "from our address": (str(PEER), "from", str(LOCAL)),
            "IKE from our address": (str(PEER), "from", str(LOCAL), "ipproto", "udp", "sport", "500", "dport", "500"),
            "another peer": (str(OTHER), "from", str(LOCAL), "mark", MARK),
            "another mark": (str(PEER), "from", str(LOCAL), "mark", "0x1"),
        }
        assert {what: way(*words) for what, words in others.items()} == dict.fromkeys(others, "wan0")


async def test_it_is_found_again_and_leaves_nothing() -> None:
    async with AsyncIPRoute() as route:
        made = await driver(route)
        assert await made.retrieve() == {}
        for lead in (LEAD, SECOND, LEAD):
            await made.create(lead)
        assert await (await driver(route)).retrieve() == {LEAD.key: LEAD, SECOND.key: SECOND}
        await made.update(LEAD)
        await made.delete(LEAD)
        assert await made.retrieve() == {SECOND.key: SECOND}
        assert way(str(OTHER), "from", str(LOCAL), "mark", MARK) == KERNEL_END
        await made.delete(SECOND)
        await made.delete(SECOND)
        assert left() == []
        await made.create(LEAD)
        await made.clear()
        assert left() == []


async def test_rules_without_the_route_lead_nowhere_and_are_removed() -> None:
    async with AsyncIPRoute() as route:
        made = await driver(route)
        await made.create(LEAD)
        ip(f"route flush table {ROUTES}")
        assert await made.retrieve() == {}
        assert left() == []


async def test_without_carrier_the_kernel_sends() -> None:
    async with AsyncIPRoute() as route:
        await (await driver(route)).create(LEAD)
        ip(f"link set {ENGINE_END} down")
        deadline = asyncio.get_running_loop().time() + 10
        while way(str(PEER), "from", str(LOCAL), "mark", MARK) != "wan0":
            assert asyncio.get_running_loop().time() < deadline
            await asyncio.sleep(0)


def transporting(**changes: object) -> XfrmPolicy:
    """As charon installs it."""
    base = XfrmPolicy(
        PolicyDirection.OUT,
        ip_network(LOCAL),
        ip_network(PEER),
        367231,
        True,
        (Template(LOCAL, PEER, 0x22, 50, 1, Mode.TRANSPORT),),
    )
    return replace(base, **changes)


async def test_packets_are_marked_while_a_policy_asks_for_it() -> None:
    async with AsyncIPRoute() as route:
        await driver(route)
        kernel, _ = await raise_uplink(route)
        with XfrmSocket() as xfrm, closing(NfTables()) as tables:
            bypass = Bypass(xfrm, kernel.index)
            assert bypass.limits([transporting(templates=())]) == LeadLimits()
            assert not tables.holds(TABLE4)
            assert bypass.limits([transporting()]) == LeadLimits()
            assert tables.holds(TABLE4)
            assert not tables.holds(TABLE), "nobody asked for IPv6"
            tables.remove(TABLE4)
            assert bypass.limits([transporting()]) == LeadLimits()
            assert tables.holds(TABLE4), "it is put right again"
            theirs = transporting(templates=(), mark=(0x8000_0001, 0xFFFF_FFFF))
            assert bypass.limits([transporting(), theirs]) == LeadLimits()
            bit = transporting(templates=(), mark=(0x8000_0000, 0x8000_0000))
            assert "a mark that means something" in bypass.limits([transporting(), bit]).hosts
            assert not tables.holds(TABLE4)
            bypass.limits([transporting()])
            remove_bypass()
            assert not tables.holds(TABLE4)
