"""Real clients of IPv6 alone reach real servers of IPv4 through NAT64; offloads of veths on and off.

XDP is native, and the kernel forwards what XDP has translated: nothing is redirected to a veth.
"""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from ipaddress import IPv4Address, IPv6Address

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
from xdp_steer.reasons import Reason

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces")]

V4, V6 = socket.AF_INET, socket.AF_INET6
SEED = 4711
POOL = "192.0.2.64"
FLOWS = 1000
IPV6_MTU_DISCOVER, IP_MTU_DISCOVER, PMTUDISC_DO, PMTUDISC_DONT = 23, 10, 2, 0
IPV6_MTU = 24

CONFIGURATION = f"""
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
name = "not-this"
from = "lan"
to = "wan"
source = "2001:db8:1::/64"
destination = "192.0.2.0/24"
application = "telnet"
action = "reject"
[[policies]]
name = "lan-out"
from = "lan"
to = "wan"
source = "2001:db8:1::/64"
destination = ["192.0.2.0/24", "198.51.100.0/24"]
action = "permit"
[[policies]]
name = "lan-dmz"
from = "lan"
to = "dmz"
action = "permit"

[nat.pools.four]
addresses = "{POOL}"

[[nat.nat64]]
name = "into-four"
from = "lan"
prefix = "2001:db8:6464::/96"
translate = {{ pool = "four" }}
[[nat.nat64]]
name = "by-interface"
from = "lan"
prefix = "2001:db8:6565:100::/56"
translate = "interface"
"""


def behind(host: str) -> str:
    """A host's IPv4 address as IPv6 knows it."""
    return str(IPv6Address(int(IPv6Address("2001:db8:6464::")) + int(IPv4Address(address(host, V4)))))


@pytest.fixture(scope="module")
def world() -> Iterator[FirewallBox]:
    with firewall_box() as box:
        for host in (CLIENT, INNER):
            box.on(host, "ip", "-4", "addr", "flush", "scope", "global")
            box.on(host, "sysctl", "-qw", "net.ipv4.ping_group_range=0 0")
        box.on(SERVER, "ip", "-6", "route", "flush", "root", "2001:db8::/32")
        box.write(CONFIGURATION)
        box.run()
        yield box
        assert box.gw("off").returncode == 0


@pytest.fixture(params=["on", "off"], ids=["offload", "no-offload"])
def offloads(world: FirewallBox, request: pytest.FixtureRequest) -> str:
    for host, device in ((CLIENT, "c0"), (SERVER, "s0"), (DMZ, "d0"), (INNER, "m0")):
        world.on(host, "ethtool", "-K", device, "tx", request.param, check=False)
    assert f"tx-checksumming: {request.param}" in world.on(CLIENT, "ethtool", "-k", "c0")
    return str(request.param)


def payload(octets: int) -> bytes:
    return random.Random(SEED).randbytes(octets)


HOSTS = pytest.mark.parametrize("host", [SERVER, FAR])


@HOSTS
def test_udp(world: FirewallBox, offloads: str, host: str) -> None:
    with closing(world.udp(host, V4, 4001)) as server, closing(world.udp(CLIENT, V6)) as client:
        for octets in (0, 1, 999):
            seen = exchange(client, (behind(host), 4001), server, payload(octets))
            assert seen == (POOL, client.getsockname()[1])
    shown = [(one["natSource"]["address"], one["destination"]["address"]) for one in world.sessions(port=4001)]
    assert (POOL, behind(host)) in shown


@HOSTS
def test_tcp(world: FirewallBox, offloads: str, host: str) -> None:
    with closing(world.listen(host, 4002, V4)) as listener:
        seen = transfer(world.tcp(CLIENT, V6), (behind(host), 4002), listener, payload(1 << 20))
    assert seen[0] == POOL


def test_by_the_address_of_the_interface(world: FirewallBox, offloads: str) -> None:
    """The prefix has 56 bits: 192 before the octet that stays empty, 0.2.9 behind it."""
    with closing(world.listen(SERVER, 4003, V4)) as listener:
        to = ("2001:db8:6565:1c0:0:209::", 4003)
        assert transfer(world.tcp(CLIENT, V6), to, listener, payload(1 << 18))[0] == WAN[0]


@HOSTS
def test_echo(world: FirewallBox, host: str) -> None:
    for sender in (CLIENT, INNER):
        with closing(ping(world, sender, behind(host), payload(500))) as client:
            answer, source = client.recvfrom(1 << 16)
        assert (answer[0], answer[8:], source[0]) == (129, payload(500), behind(host))


def test_nobody_listens(world: FirewallBox) -> None:
    """Port unreachable and RST of IPv4 come back as those of IPv6."""
    with closing(world.udp(CLIENT, V6)) as client:
        client.connect((behind(SERVER), 4999))
        client.send(b"anyone?")
        with pytest.raises(ConnectionRefusedError):
            client.recv(100)
    with closing(world.tcp(CLIENT, V6)) as client, pytest.raises(ConnectionRefusedError):
        client.connect((behind(SERVER), 4999))


def test_policies_have_their_say(world: FirewallBox) -> None:
    before = world.rule("not-this")
    refused = pytest.raises(ConnectionRefusedError)
    with closing(world.listen(SERVER, 23, V4)), closing(world.tcp(CLIENT, V6)) as client, refused:
        client.connect((behind(SERVER), 23))
    assert world.rule("not-this") == before + 1


def test_path_mtu_of_udp_from_ipv6(world: FirewallBox) -> None:
    """A router of IPv4 says 1300, the client hears 1320."""
    with closing(world.udp(FAR, V4, 4005)) as far, closing(world.udp(CLIENT, V6)) as client:
        client.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, PMTUDISC_DO)
        client.connect((behind(FAR), 4005))
        client.send(payload(1400))
        until(lambda: _mtu(client) == FAR_MTU + 20, "the path MTU is known", PATIENCE)
        client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        client.send(payload(FAR_MTU + 20 - 48))
        assert far.recv(1 << 16) == payload(FAR_MTU + 20 - 48)


def _mtu(client: socket.socket) -> int:
    return client.getsockopt(socket.IPPROTO_IPV6, IPV6_MTU)


def test_path_mtu_of_the_ipv4_side(world: FirewallBox) -> None:
    """1500 bytes of IPv4 would be 1520 of IPv6: the gateway says 1480, and the server's kernel obeys, DF or not."""
    with closing(world.udp(SERVER, V4, 4006)) as server, closing(world.udp(CLIENT, V6)) as client:
        client.sendto(b"more", (behind(SERVER), 4006))
        _, peer = server.recvfrom(100)
        for discover in (PMTUDISC_DO, PMTUDISC_DONT):
            world.on(SERVER, "ip", "route", "flush", "cache")
            server.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, discover)
            before = world.verdict(Reason.TOO_BIG)
            client.settimeout(0.3)

            def arrives(octets: int) -> bool:
                with suppress(TimeoutError, OSError):
                    server.sendto(payload(octets), peer)
                    return client.recv(1 << 16) == payload(octets)
                return False

            if discover == PMTUDISC_DO:
                assert not arrives(1472)
                until(lambda: arrives(1480 - 28), "what fits arrives", PATIENCE)
            else:
                until(lambda: arrives(1472), "the server fragments", PATIENCE)
            assert world.verdict(Reason.TOO_BIG) > before


def test_fragments_both_ways(world: FirewallBox, offloads: str) -> None:
    with closing(world.udp(SERVER, V4, 4007)) as server, closing(world.udp(CLIENT, V6)) as client:
        for end, level, name in (
            (server, socket.IPPROTO_IP, IP_MTU_DISCOVER),
            (client, socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER),
        ):
            end.setsockopt(level, name, PMTUDISC_DONT)

        def arrives() -> bool:
            client.settimeout(0.5)
            server.settimeout(0.5)
            with suppress(TimeoutError):
                exchange(client, (behind(SERVER), 4007), server, payload(4000))
                return True
            return False

        until(arrives, "fragments of IPv4 fit into IPv6", PATIENCE)
        for _ in range(10):
            assert exchange(client, (behind(SERVER), 4007), server, payload(4000))[0] == POOL


def test_tcp_finds_its_path_mtu(world: FirewallBox) -> None:
    """1 MB each way over 1300 bytes of IPv4, with segments that were too long at first."""
    world.on(CLIENT, "ip", "-6", "route", "flush", "cache")
    with closing(world.listen(FAR, 4008, V4)) as listener:
        assert transfer(world.tcp(CLIENT, V6), (behind(FAR), 4008), listener, payload(1 << 20))[0] == POOL


def test_a_thousand_flows(world: FirewallBox) -> None:
    """All open at a time, every answer at its own client."""
    with ExitStack() as stack:
        server = stack.enter_context(closing(world.udp(SERVER, V4, 4010)))
        clients = [stack.enter_context(closing(world.udp((CLIENT, INNER)[n % 2], V6))) for n in range(FLOWS)]
        seen = set()
        for number, client in enumerate(clients):
            client.sendto(b"%d" % number, (behind(SERVER), 4010))
            try:
                data, peer = server.recvfrom(100)
            except TimeoutError:
                pytest.fail(f"flow {number} is lost: {world.gw('show', 'status', '--json').stdout}")
            assert data == b"%d" % number
            seen.add(peer)
            server.sendto(data * 2, peer)
        assert {peer[0] for peer in seen} == {POOL}
        assert len(seen) == FLOWS
        for number, client in enumerate(clients):
            data, source = client.recvfrom(100)
            assert (data, source[:2]) == (b"%d" % number * 2, (behind(SERVER), 4010))
    found = world.ask('sessions {"protocol": 17, "port": 4010, "limit": 2000}')["sessions"]
    assert len(found) == FLOWS


def test_what_it_shows(world: FirewallBox) -> None:
    before = world.rule("into-four")
    with closing(world.udp(SERVER, V4, 4011)) as server, closing(world.udp(CLIENT, V6)) as client:
        exchange(client, (behind(SERVER), 4011), server)
    assert world.rule("into-four") == before + 1
    shown = world.gw("show", "sessions", "--port", "4011").stdout
    assert POOL in shown
    before = world.verdict(Reason.NAT64_ADDRESS)
    with closing(world.udp(CLIENT, V6)) as client:
        client.sendto(b"gateway?", (str(IPv6Address("2001:db8:6464::c000:201")), 53))
    until(lambda: world.verdict(Reason.NAT64_ADDRESS) == before + 1, "the gateway's own address is refused")
