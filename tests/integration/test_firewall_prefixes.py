"""Real sockets through translation of whole prefixes: static NAT, NPTv6; offloads of veths on and off."""

from __future__ import annotations

import errno
import os
import random
import socket
from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.integration.conftest import until
from tests.integration.firewall_world import (
    CLIENT,
    DMZ,
    FAR,
    FAR_MTU,
    INNER,
    PATIENCE,
    SERVER,
    WAN,
    FirewallBox,
    address,
    exchange,
    firewall_box,
    ping,
    transfer,
)

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces")]

V4, V6 = socket.AF_INET, socket.AF_INET6
SEED = 4711
IPV6_MTU_DISCOVER, PMTUDISC_DO = 23, 2

CONFIGURATION = """
[gateway]
engine = "kernel"
wan = ["wan0"]
[zones.lan]
interfaces = ["lan0"]
[zones.wan]
interfaces = ["wan0"]
[zones.dmz]
interfaces = ["dmz0"]

[[policies]]
name = "all"
action = "permit"

[[nat.static]]
name = "dmz4"
zone = "wan"
external = "203.0.113.0/24"
internal = "10.2.0.0/24"
[[nat.static]]
name = "dmz6"
zone = "wan"
external = "2001:db8:33::/64"
internal = "2001:db8:3::/64"
[[nat.nptv6]]
name = "lan6"
zone = "wan"
external = "2001:db8:ff00::/48"
internal = "2001:db8:1::/48"
"""

OUTSIDE = {
    (DMZ, V4): "203.0.113.9",
    (DMZ, V6): "2001:db8:33::9",
    (CLIENT, V6): "2001:db8:ff00:100::9",
    (INNER, V6): "2001:db8:ff00:100::8",
}
"""What hosts are outside. The words 2001:db8:1:0 and 2001:db8:ff00:100 have the same sum."""
PLACES = pytest.mark.parametrize(("host", "family"), OUTSIDE, ids=str)


@pytest.fixture(scope="module")
def world() -> Iterator[FirewallBox]:
    with firewall_box() as box:
        box.route(SERVER, "203.0.113.0/24", WAN[0])
        for host in (CLIENT, INNER, DMZ, SERVER):
            box.on(host, "sysctl", "-qw", "net.ipv4.ping_group_range=0 0")
        box.write(CONFIGURATION)
        box.run()
        yield box
        assert box.gw("off").returncode == 0


@pytest.fixture(params=["on", "off"], ids=["offload", "no-offload"])
def offloads(world: FirewallBox, request: pytest.FixtureRequest) -> str:
    for host, device in ((CLIENT, "c0"), (SERVER, "s0"), (DMZ, "d0"), (INNER, "m0")):
        world.on(host, "ethtool", "-K", device, "tx", request.param, check=False)
    assert f"tx-checksumming: {request.param}" in world.on(CLIENT, "ethtool", "-k", "c0")
    return request.param


def payload(octets: int) -> bytes:
    return random.Random(SEED).randbytes(octets)


@PLACES
def test_out(world: FirewallBox, offloads: str, host: str, family: int) -> None:
    for peer in (SERVER, FAR):
        with closing(world.udp(peer, family, 4001)) as server, closing(world.udp(host, family)) as client:
            seen = exchange(client, (address(peer, family), 4001), server, payload(900))
            assert seen == (OUTSIDE[host, family], client.getsockname()[1])
        with closing(world.listen(peer, 4002, family)) as listener:
            seen = transfer(world.tcp(host, family), (address(peer, family), 4002), listener, payload(1 << 19))
            assert seen[0] == OUTSIDE[host, family]


@PLACES
def test_in(world: FirewallBox, offloads: str, host: str, family: int) -> None:
    with closing(world.udp(host, family, 4003)) as inside, closing(world.udp(SERVER, family)) as outside:
        assert exchange(outside, (OUTSIDE[host, family], 4003), inside)[0] == address(SERVER, family)
    with closing(world.listen(host, 4004, family)) as listener:
        seen = transfer(world.tcp(FAR, family), (OUTSIDE[host, family], 4004), listener, payload(1 << 19))
        assert seen[0] == address(FAR, family)


@PLACES
def test_ping_both_ways(world: FirewallBox, host: str, family: int) -> None:
    for sender, to in ((host, address(SERVER, family)), (SERVER, OUTSIDE[host, family])):
        with closing(ping(world, sender, to, payload(300))) as client:
            answer, source = client.recvfrom(1 << 16)
        assert (answer[0], answer[8:], source[0]) == (129 if family == V6 else 0, payload(300), to)


def test_path_mtu_discovery_behind_nptv6(world: FirewallBox) -> None:
    """A router says what fits, about the address that it knows; the client hears it about its own."""
    with closing(world.udp(FAR, V6, 4005)) as far, closing(world.udp(CLIENT, V6)) as client:
        client.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, PMTUDISC_DO)
        client.connect((address(FAR, V6), 4005))
        client.send(payload(1400))

        def learnt() -> bool:
            return f"mtu {FAR_MTU}" in world.on(CLIENT, "ip", "-6", "route", "get", address(FAR, V6))

        until(learnt, "the path MTU is known", PATIENCE)
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.EMSGSIZE
        client.send(payload(FAR_MTU - 48))
        assert far.recv(1 << 16) == payload(FAR_MTU - 48)


def test_rules_count_and_sessions_show(world: FirewallBox) -> None:
    before = world.rule("lan6")
    with closing(world.udp(SERVER, V6, 4006)) as server, closing(world.udp(CLIENT, V6)) as client:
        exchange(client, (address(SERVER, V6), 4006), server)
    assert world.rule("lan6") == before + 1
    (session,) = world.sessions(protocol=17, port=4006)
    assert session["natSource"]["address"] == OUTSIDE[CLIENT, V6]
