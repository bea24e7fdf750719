"""The way to a peer as the kernel tells it: what marks things dirty, what does not, and neighbours that stay alive."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import subprocess
from collections.abc import Iterator, Mapping
from ipaddress import ip_address
from pathlib import Path

import pytest
from pyroute2 import AsyncIPRoute
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.l2 import Ether

from ipsec_gw.mirror.changes import Concern, NetworkMonitor
from ipsec_gw.mirror.kernel import KernelView
from ipsec_gw.model.ids import IpAddress
from ipsec_gw.model.snapshot import ResolvedHop
from tests.support.netns import ip, namespace

pytestmark = pytest.mark.root

PEER, OTHER, GATEWAY = ip_address("203.0.113.9"), ip_address("203.0.113.10"), ip_address("192.0.2.1")
MAC, OURS = "02:00:00:00:00:01", "02:00:00:00:00:02"
HOPS = {PEER: ResolvedHop("wan0", GATEWAY, MAC, 1500)}


class Ear:
    """A monitor, and whether it was touched since the last question."""

    def __init__(self) -> None:
        self.touched = False
        self.monitor = NetworkMonitor(self._touch)

    def _touch(self) -> None:
        self.touched = True

    def hears(self, *commands: str) -> bool:
        """Whether these commands are worth a look; the kernel has told of each when it returns."""
        self.monitor.drain()
        self.touched = False
        for command in commands:
            ip(command)
        self.monitor.drain()
        return self.touched


@pytest.fixture
def ear() -> Iterator[Ear]:
    if os.geteuid() != 0:
        pytest.skip("needs root for network namespaces")
    with namespace(f"igw-{secrets.token_hex(3)}"):
        Path("/proc/sys/net/ipv6/conf/all/disable_ipv6").write_text("0")
        ip(f"link add wan0 address {OURS} type veth peer name far0")
        ip("addr add 192.0.2.2/24 dev wan0")
        ip("link set wan0 up")
        ip("link set far0 up")
        ip(f"neigh replace {GATEWAY} lladdr {MAC} dev wan0 nud reachable")
        ip(f"route add default via {GATEWAY}")
        made = Ear()
        made.monitor.watch({PEER}, HOPS)
        yield made
        made.monitor.close()


TOUCHING = {
    "a narrower route to the peer": ["route add 203.0.113.0/24 via 192.0.2.7"],
    "a route to it in another table": ["route add 203.0.113.9 via 192.0.2.7 table 77"],
    "the route that it uses goes": [f"route del default via {GATEWAY}"],
    "another MAC of the gateway": [f"neigh replace {GATEWAY} lladdr 02:00:00:00:00:02 dev wan0 nud reachable"],
    "the gateway's MAC goes": [f"neigh del {GATEWAY} dev wan0"],
    "an address more": ["addr add 192.0.2.3/24 dev wan0"],
    "a link changes": ["link set wan0 mtu 1400"],
    "a rule": ["rule add to 203.0.113.9 lookup 77"],
    "an IPv6 rule": ["-6 rule add to 2001:db8::9 lookup 77"],
    "charon's own route": ["route add 10.9.0.0/16 via 192.0.2.1 table 220"],
}

SILENT = {
    "routes to elsewhere": ["route add 198.51.100.0/24 via 192.0.2.7", "route del 198.51.100.0/24"],
    "an IPv6 default route": ["-6 route add ::/0 dev wan0"],
    "another neighbour": ["neigh replace 192.0.2.50 lladdr 02:00:00:00:00:50 dev wan0 nud reachable"],
    "the gateway is stale and keeps its MAC": [f"neigh replace {GATEWAY} lladdr {MAC} dev wan0 nud stale"],
    "a bridge learns": ["link show dev wan0"],
}


@pytest.mark.parametrize("what", TOUCHING)
def test_what_may_change_the_way_to_a_peer_is_heard(ear: Ear, what: str) -> None:
    assert ear.hears(*TOUCHING[what])


@pytest.mark.parametrize("what", SILENT)
def test_what_touches_no_peer_is_not(ear: Ear, what: str) -> None:
    assert not ear.hears(*SILENT[what])


def test_a_peer_that_waits_hears_of_a_new_neighbour_and_one_more_peer_of_its_routes(ear: Ear) -> None:
    ear.monitor.watch({PEER, OTHER}, HOPS)
    assert ear.hears("neigh replace 192.0.2.50 lladdr 02:00:00:00:00:50 dev wan0 nud reachable")
    assert ear.hears("route add 203.0.113.10 via 192.0.2.50")
    ear.monitor.watch({OTHER}, {OTHER: HOPS[PEER]})
    assert not ear.hears("route add 203.0.113.9 via 192.0.2.50")


def test_ipv6_peers_are_told_by_their_prefixes(ear: Ear) -> None:
    ear.monitor.watch({ip_address("2001:db8:9::1")}, {ip_address("2001:db8:9::1"): HOPS[PEER]})
    assert ear.hears("-6 route add 2001:db8:9::/48 dev wan0")
    assert not ear.hears("-6 route add 2001:db8:8::/48 dev wan0")


def test_lost_messages_may_have_been_about_anything(ear: Ear) -> None:
    with socket.socket(fileno=os.dup(ear.monitor.fileno())) as same:
        same.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)  # the least there is: a few messages
    assert ear.hears(*(f"route add 198.51.{n}.0/24 via 192.0.2.7" for n in range(40)))
    assert ear.monitor.overruns > 0
    assert not ear.hears("route add 198.52.0.0/24 via 192.0.2.7"), "and it goes on"


def test_a_broken_datagram_may_be_about_anything_and_never_fails(ear: Ear) -> None:
    datagrams: list[bytes] = []

    class Recorder(Concern):
        def touched_by(self, datagram: bytes) -> bool:
            datagrams.append(datagram)
            return super().touched_by(datagram)

    ear.monitor.concern = Recorder(frozenset({PEER}), HOPS)
    ear.hears(*TOUCHING["a narrower route to the peer"])
    ear.hears(*TOUCHING["another MAC of the gateway"])
    assert len(datagrams) == 2
    for datagram in datagrams:
        for end in range(1, len(datagram)):
            assert Concern(frozenset({PEER}), HOPS).touched_by(datagram[:end])


async def hops_of(peers: Mapping[IpAddress, IpAddress | None]) -> dict[IpAddress, ResolvedHop]:
    async with AsyncIPRoute() as route:
        view = KernelView(route)
        return await view.next_hops(peers, await view.links())


def neighbour_states() -> str:
    return subprocess.run(["ip", "neigh"], check=True, capture_output=True, text=True).stdout


async def test_a_stale_next_hop_is_used_so_that_the_kernel_keeps_it(ear: Ear) -> None:
    assert ear is not None
    ip(f"neigh replace {GATEWAY} lladdr {MAC} dev wan0 nud stale")
    assert (await hops_of({PEER: None}))[PEER].mac == MAC
    state = next(line for line in neighbour_states().splitlines() if line.startswith(str(GATEWAY)))
    assert "DELAY" in state or "PROBE" in state, state


async def test_a_confirmed_or_permanent_next_hop_is_left_alone(ear: Ear) -> None:
    assert ear is not None
    for state in ("reachable", "permanent"):
        ip(f"neigh replace {GATEWAY} lladdr {MAC} dev wan0 nud {state}")
        await hops_of({PEER: None})
        assert f"{GATEWAY} dev wan0 lladdr {MAC} {state.upper()}" in neighbour_states()


async def test_the_way_depends_on_our_own_end(ear: Ear) -> None:
    """Of two providers each wants the packets that come from its address, and ESP goes by that as well."""
    assert ear is not None
    second, others = ip_address("192.0.2.3"), ip_address("192.0.2.7")
    ip(f"addr add {second}/24 dev wan0")
    ip(f"neigh replace {others} lladdr 02:00:00:00:00:07 dev wan0 nud permanent")
    ip(f"route add default via {others} table 77")
    ip(f"rule add from {second} lookup 77")
    for source, gateway in ((None, GATEWAY), (ip_address("192.0.2.2"), GATEWAY), (second, others)):
        hop = (await hops_of({PEER: source}))[PEER]
        assert (hop.gateway, hop.source) == (gateway, source)


async def test_the_mtu_of_a_route_and_what_a_router_tells_count(ear: Ear) -> None:
    assert ear is not None
    ip(f"route add {OTHER} via {GATEWAY} mtu 1400")
    hops = await hops_of({PEER: None, OTHER: None})
    assert {peer: hop.mtu for peer, hop in hops.items()} == {PEER: 1500, OTHER: 1400}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.connect((str(PEER), 4500))
        sender.send(b"a packet")
        port = sender.getsockname()[1]
        quoted = IP(src="192.0.2.2", dst=str(PEER), flags="DF") / UDP(sport=port, dport=4500)
        too_big = IP(src=str(GATEWAY), dst="192.0.2.2") / ICMP(type=3, code=4, nexthopmtu=1300) / quoted
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as far:
            far.bind(("far0", 0))
            far.send(bytes(Ether(dst=OURS, src=MAC) / too_big))
        async with asyncio.timeout(30):
            while (await hops_of({PEER: None}))[PEER].mtu != 1300:  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0)
