"""What the kernel says of IPv6 peers: next hops by link-local gateways, neighbours that are resolved, source hints."""

from __future__ import annotations

import asyncio
import os
import secrets
import subprocess
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from pyroute2 import AsyncIPRoute

from ipsec_gw.mirror.kernel import KernelView
from tests.support.netns import ip, namespace

pytestmark = pytest.mark.root

PEER, NEIGHBOUR, GATEWAY = ip_address("2001:db8:b::7"), ip_address("2001:db8:a::9"), ip_address("fe80::254")


@pytest.fixture
def router() -> Iterator[str]:
    """A namespace with a router behind wan0, which is known by its link-local address; returns the router's MAC."""
    if os.geteuid() != 0:
        pytest.skip("needs root for network namespaces")
    there = f"igwk-{secrets.token_hex(3)}"
    subprocess.run(["ip", "netns", "add", there], check=True)
    try:
        with namespace(f"igwv-{secrets.token_hex(3)}"):
            Path("/proc/sys/net/ipv6/conf/default/disable_ipv6").write_text("0")
            ip(f"link add wan0 type veth peer name eth0 netns {there}")
            ip(f"-n {there} link set eth0 address 02:00:00:00:02:54 up")
            ip(f"-n {there} addr add {GATEWAY}/64 dev eth0 nodad")
            ip(f"-n {there} addr add {NEIGHBOUR}/64 dev eth0 nodad")
            ip("link set lo up")
            ip("link set wan0 up")
            ip("addr add 2001:db8:a::1/64 dev wan0 nodad")
            ip(f"route add default via {GATEWAY} dev wan0")
            ip(f"route add fd02::/64 via {GATEWAY} dev wan0 src 2001:db8:a::1 table 220")
            yield "02:00:00:00:02:54"
    finally:
        subprocess.run(["ip", "netns", "del", there], check=True)


async def test_peers_behind_a_link_local_gateway_and_on_the_link_are_resolved(router: str) -> None:
    async with AsyncIPRoute() as route:
        view = KernelView(route)
        async with asyncio.timeout(10):
            links = await view.links()
            while len(hops := await view.next_hops({PEER: None, NEIGHBOUR: None}, links)) < 2:  # noqa: ASYNC110 - it is asked, and never tells
                await asyncio.sleep(0)
        assert (hops[PEER].interface, hops[PEER].gateway, hops[PEER].mac) == ("wan0", GATEWAY, router)
        assert (hops[NEIGHBOUR].gateway, hops[NEIGHBOUR].mac, hops[NEIGHBOUR].mtu) == (NEIGHBOUR, router, 1500)


async def test_hints_and_addresses_of_ipv6(router: str) -> None:
    async with AsyncIPRoute() as route:
        view = KernelView(route)
        assert await view.source_hints() == {ip_network("fd02::/64"): ip_address("2001:db8:a::1")}
        assert await view.default_interfaces() == ["wan0"]
        holders = await view.holders()
        assert holders[ip_address("2001:db8:a::1")] == "wan0"
        assert await view.addresses() == holders.keys()


async def test_without_a_route_there_is_no_next_hop(router: str) -> None:
    ip("-6 route del default")
    async with AsyncIPRoute() as route:
        view = KernelView(route)
        assert await view.next_hops({PEER: None}, await view.links()) == {}
