"""FRR for real: two gateways speak BGP over the WAN, and nothing is left of it."""

import asyncio
import json
import time
from contextlib import AsyncExitStack
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from ipsec_gw.lab import frr, netns, session
from ipsec_gw.lab.frr import Frr, Neighbor, Router
from ipsec_gw.lab.process import run
from ipsec_gw.lab.topology import WAN, Role, two_networks

pytestmark = [pytest.mark.root, pytest.mark.skipif(not frr.installed(), reason="FRR is not installed - run make setup")]

GATEWAYS = (Role.GATEWAY_A, Role.GATEWAY_B)
SECONDS = 60.0
TRACES = (Path("/run/frr"), Path("/var/tmp/frr"))


async def when(ask, wanted):
    """Ask until the answer is as wanted."""
    deadline = time.monotonic() + SECONDS
    said = await ask()
    while said != wanted and time.monotonic() < deadline:
        await asyncio.sleep(0.1)
        said = await ask()
    assert said == wanted


def traces():
    return [path for top in TRACES if top.is_dir() for path in (top, *top.rglob("*"))]


@pytest.fixture
async def routers():
    """Of gateways A and B, with a session."""
    topology = two_networks(session.new_tag())
    mine = session.begin(topology.tag, topology.namespaces)
    before = traces()
    try:
        async with AsyncExitStack() as stack:
            await netns.build(topology)
            started = []
            for number, (role, other) in enumerate((GATEWAYS, GATEWAYS[::-1])):
                here, there = topology.address(role, WAN), topology.address(other, WAN)
                networks = tuple(IPv4Network(network) for network in topology.behind(role))
                router = Router(role, topology.namespace(role), 65001 + number, here, (Neighbor(there),), networks)
                started.append(await Frr.start(router, mine.run_dir / role))
                stack.push_async_callback(started[-1].stop)
            yield tuple(started)
        assert netns.processes(topology.namespaces) == {}
        assert await routes(started[0]) == []
    finally:
        await session.end(mine)
    assert traces() == before


async def state(router):
    (neighbor,) = router.router.neighbors
    return await router.session(neighbor.address)


async def counts(router):
    """How often its session came and went."""
    now = await state(router)
    return now.up, now.came, now.went


async def came_again(router):
    """Whether its session is up once more, and tells so; on a slow machine it may come and go more often than once."""
    up, came, went = await counts(router)
    return up and went > 0 and came == went + 1


async def routes(router):
    """The networks that its kernel has by BGP."""
    shown = await run(["ip", "-n", router.router.namespace, "-j", "route", "show", "proto", "bgp"])
    return sorted(route["dst"] for route in json.loads(shown.stdout or "[]"))


async def test_routes_come_and_go(routers):
    a, b = routers
    for router in routers:
        await when(lambda router=router: counts(router), (True, 1, 0))
    await when(lambda: routes(a), ["10.2.0.0/24", "10.3.0.0/24"])
    await when(lambda: routes(b), ["10.1.0.0/24"])
    first = await state(a)
    await b.configure("no network 10.3.0.0/24")
    await when(lambda: routes(a), ["10.2.0.0/24"])
    await b.configure("network 10.3.0.0/24")
    await when(lambda: routes(a), ["10.2.0.0/24", "10.3.0.0/24"])
    now = await state(a)
    assert (now.up, now.came, now.went) == (True, 1, 0)
    assert now.received > first.received


async def test_a_session_that_was_down_tells_it(routers):
    a, b = routers
    await when(lambda: counts(a), (True, 1, 0))
    await b.vtysh("clear bgp *")
    await when(lambda: came_again(a), True)
