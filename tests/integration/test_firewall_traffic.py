"""Real sockets through the firewall: policies, NAT, fragments, path MTU, ICMP, VLANs; offloads of veths on and off.

XDP is native, and the kernel forwards what XDP has judged: nothing is redirected to a veth.
"""

from __future__ import annotations

import errno
import os
import random
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from typing import Any

import pytest

from tests.integration.conftest import until
from tests.integration.firewall_world import (
    CLIENT,
    DMZ,
    FAR,
    FAR_MTU,
    GATEWAY,
    INNER,
    INSIDE,
    LAN,
    PATIENCE,
    SERVER,
    WAN,
    FirewallBox,
    address,
    counted,
    echo,
    exchange,
    firewall_box,
    nothing,
    ping,
    send_and_read,
    transfer,
)
from xdp_steer.reasons import Reason

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces")]

V4, V6 = socket.AF_INET, socket.AF_INET6
BOTH = pytest.mark.parametrize("family", [V4, V6], ids=["ipv4", "ipv6"])
OPEN, DENIED, REJECTED, WEB, HAIRPIN, SELF_DENIED = 7000, 7001, 7002, 8080, 8443, 7009
DMZ_MTU, DMZ_MSS = 1400, 1000
EXTERNAL, INTERNAL = ("192.0.2.25", "2001:db8:25::25"), ("10.2.0.10", "2001:db8:3::10")
FLOWS = 100
SEED = 4711
IP_MTU_DISCOVER, IP_MTU, PMTUDISC_DO, IPV6_MTU_DISCOVER, IPV6_MTU = 10, 14, 2, 23, 24
IP_RECVERR, IPV6_RECVERR = 11, 25
EXTENDED_ERROR = struct.Struct("=IBBBBII")  # struct sock_extended_err

CONFIGURATION = f"""
[gateway]
engine = "kernel"
wan = ["wan0"]
[zones.lan]
interfaces = ["lan0"]
host_inbound = ["ping"]
[zones.wan]
interfaces = ["wan0"]
[zones.dmz]
interfaces = ["dmz0"]
tcp_mss = {DMZ_MSS}

[applications]
denied = {{ terms = [{{ protocol = "tcp", destination_port = {DENIED} }}, {{ protocol = "udp", destination_port = {DENIED} }}] }}
rejected = {{ terms = [{{ protocol = "tcp", destination_port = {REJECTED} }}, {{ protocol = "udp", destination_port = {REJECTED} }}] }}
web = {{ protocol = "tcp", destination_port = 80 }}
hairpin = {{ protocol = "tcp", destination_port = 443 }}
self-denied = {{ protocol = "udp", destination_port = {SELF_DENIED} }}

[[policies]]
name = "denied"
from = "lan"
to = "wan"
application = "denied"
action = "deny"
[[policies]]
name = "rejected"
from = "lan"
to = "wan"
application = "rejected"
action = "reject"
[[policies]]
name = "lan-out"
from = "lan"
to = "wan"
action = "permit"
[[policies]]
name = "lan-dmz"
from = "lan"
to = "dmz"
action = "permit"
[[policies]]
name = "published"
from = "wan"
to = "dmz"
destination = ["{address(DMZ, V4)}", "{address(DMZ, V6)}"]
application = "web"
action = "permit"
[[policies]]
name = "hairpin"
to = "lan"
from = "lan"
application = "hairpin"
action = "permit"
[[policies]]
name = "mapped-in"
from = "wan"
to = "dmz"
destination = ["{INTERNAL[0]}", "{INTERNAL[1]}"]
action = "permit"
[[policies]]
name = "mapped-out"
from = "dmz"
to = "wan"
action = "permit"
[[policies]]
name = "self-denied"
from = "self"
to = "wan"
application = "self-denied"
action = "deny"

[[nat.source]]
name = "masquerade"
from = "lan"
to = "wan"
translate = "interface"
[[nat.source]]
name = "hairpin-source"
from = "lan"
to = "lan"
translate = "interface"
[[nat.destination]]
name = "web"
from = "wan"
destination = "{WAN[0]}"
protocol = "tcp"
port = {WEB}
to = "{address(DMZ, V4)}"
to_port = 80
[[nat.destination]]
name = "web6"
from = "wan"
destination = "{WAN[1]}"
protocol = "tcp"
port = {WEB}
to = "{address(DMZ, V6)}"
to_port = 80
[[nat.destination]]
name = "hairpin4"
from = "lan"
destination = "{WAN[0]}"
protocol = "tcp"
port = {HAIRPIN}
to = "{address(INNER, V4)}"
to_port = 443
[[nat.destination]]
name = "hairpin6"
from = "lan"
destination = "{WAN[1]}"
protocol = "tcp"
port = {HAIRPIN}
to = "{address(INNER, V6)}"
to_port = 443
[[nat.static]]
name = "mapped"
zone = "wan"
external = "{EXTERNAL[0]}"
internal = "{INTERNAL[0]}"
[[nat.static]]
name = "mapped6"
zone = "wan"
external = "{EXTERNAL[1]}"
internal = "{INTERNAL[1]}"
"""  # noqa: E501 - inline tables of TOML have one line


@pytest.fixture(scope="module")
def world() -> Iterator[FirewallBox]:
    with firewall_box() as box:
        for end in ((GATEWAY, "dmz0"), (DMZ, "d0")):
            box.on(end[0], "ip", "link", "set", end[1], "mtu", str(DMZ_MTU))
        box.addresses(DMZ, "d0", *INTERNAL)
        box.on(DMZ, "ip", "addr", "change", f"{INTERNAL[1]}/64", "dev", "d0", "preferred_lft", "0")  # no default source
        box.route(SERVER, f"{EXTERNAL[0]}/32", WAN[0])
        box.route(SERVER, f"{EXTERNAL[1]}/128", WAN[1])
        for host in (CLIENT, SERVER, GATEWAY):
            box.on(host, "sysctl", "-qw", "net.ipv4.ping_group_range=0 0")
        box.write(CONFIGURATION)
        box.run()
        assert "xdpgeneric" not in box.sh("ip", "link", "show", "lan0")
        yield box
        assert box.gw("off").returncode == 0


@pytest.fixture(params=["on", "off"], ids=["offload", "no-offload"])
def offloads(world: FirewallBox, request: pytest.FixtureRequest) -> Iterator[str]:
    """Checksums and segmentation left to the receiver (partial checksums), or done by the sender."""
    ends = ((CLIENT, "c0"), (SERVER, "s0"), (DMZ, "d0"), (INNER, "m0"))
    for host, device in ends:
        switches = [word for name in ("tx", "tso", "gso") for word in (name, request.param)]
        world.on(host, "ethtool", "-K", device, *switches, check=False)  # segmentation is taken from a peer of XDP
    assert f"tx-checksumming: {request.param}" in world.on(CLIENT, "ethtool", "-k", "c0")
    yield request.param
    for host, device in ends:
        world.on(host, "ethtool", "-K", device, "tx", "on", check=False)


def ours(pair: tuple[str, str], family: int) -> str:
    return pair[family == V6]


def payload(octets: int) -> bytes:
    return random.Random(SEED).randbytes(octets)


@BOTH
def test_permit_without_nat(world: FirewallBox, offloads: str, family: int) -> None:
    to = (address(DMZ, family), OPEN)
    with closing(world.udp(DMZ, family, OPEN)) as server, closing(world.udp(CLIENT, family)) as client:
        assert exchange(client, to, server, payload(1000))[0] == address(CLIENT, family)
    with closing(world.listen(DMZ, OPEN, family)) as listener:
        counted(
            world,
            "lan-dmz",
            lambda: transfer(world.tcp(CLIENT, family), to, listener, payload(1 << 20)),
        )
    found = [one for one in world.sessions(protocol=6, port=OPEN) if one["destination"]["address"] == to[0]]
    assert {(one["policy"], one["natSource"], one["state"]) for one in found} == {("lan-dmz", None, "time-wait")}
    assert found[0]["forward"]["bytes"] > 1 << 20


@BOTH
def test_deny(world: FirewallBox, family: int) -> None:
    to = (address(SERVER, family), DENIED)
    with closing(world.udp(SERVER, family, DENIED)) as server, closing(world.udp(CLIENT, family)) as client:
        counted(world, "denied", lambda: client.sendto(b"x", to))
        assert nothing(server)
    with closing(world.listen(SERVER, DENIED, family)) as listener, closing(world.tcp(CLIENT, family)) as client:
        client.setblocking(False)
        counted(world, "denied", lambda: client.connect_ex(to))
        counted(world, "denied", lambda: None)  # the next SYN: no answer has ended the attempt
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        assert nothing(listener)


@BOTH
def test_reject(world: FirewallBox, offloads: str, family: int) -> None:
    to = (address(SERVER, family), REJECTED)
    with closing(world.listen(SERVER, REJECTED, family)) as listener, closing(world.tcp(CLIENT, family)) as client:
        before = world.rule("rejected")
        assert client.connect_ex(to) == errno.ECONNREFUSED
        assert world.rule("rejected") == before + 1
        assert nothing(listener)
    with closing(world.udp(SERVER, family, REJECTED)) as server, closing(world.udp(CLIENT, family)) as client:
        client.connect(to)
        client.send(payload(100))
        with pytest.raises(OSError, match=r".") as caught:
            client.recv(100)
        assert caught.value.errno == (errno.EHOSTUNREACH if family == V4 else errno.EACCES)
        assert nothing(server)


@BOTH
def test_source_nat(world: FirewallBox, offloads: str, family: int) -> None:
    to = (address(SERVER, family), OPEN)
    with closing(world.udp(SERVER, family, OPEN)) as server, closing(world.udp(CLIENT, family)) as client:
        assert exchange(client, to, server, payload(1400))[0] == ours(WAN, family)
    with closing(world.listen(SERVER, OPEN, family)) as listener:
        assert transfer(world.tcp(CLIENT, family), to, listener, payload(1 << 20))[0] == ours(WAN, family)


def test_source_nat_tells_two_hosts_of_the_same_port_apart(world: FirewallBox) -> None:
    to = (address(SERVER, V4), OPEN)
    with ExitStack() as stack:
        server = stack.enter_context(closing(world.udp(SERVER, V4, OPEN)))
        hosts = [stack.enter_context(closing(world.udp(host, V4, 5555))) for host in (CLIENT, INNER)]
        seen = [exchange(host, to, server, b"%d" % number) for number, host in enumerate(hosts)]
        assert seen[0][0] == seen[1][0] == WAN[0]
        assert seen[0][1] != seen[1][1]


@BOTH
def test_destination_nat(world: FirewallBox, offloads: str, family: int) -> None:
    with closing(world.listen(DMZ, 80, family)) as listener:
        seen = transfer(world.tcp(SERVER, family), (ours(WAN, family), WEB), listener, payload(1 << 20))
    assert seen[0] == address(SERVER, family)


@BOTH
def test_hairpin(world: FirewallBox, offloads: str, family: int) -> None:
    with closing(world.listen(INNER, 443, family)) as listener:
        seen = transfer(world.tcp(CLIENT, family), (ours(WAN, family), HAIRPIN), listener, payload(1 << 20))
    assert seen[0] == ours(LAN, family)


@BOTH
def test_static_nat_both_ways(world: FirewallBox, offloads: str, family: int) -> None:
    outside, inside = ours(EXTERNAL, family), ours(INTERNAL, family)
    with (
        closing(world.endpoint(DMZ, family, socket.SOCK_DGRAM)) as mapped,
        closing(world.udp(SERVER, family, 4001)) as server,
    ):
        mapped.bind((inside, 4000))
        assert exchange(server, (outside, 4000), mapped) == (address(SERVER, family), 4001)
    with (
        closing(world.endpoint(DMZ, family, socket.SOCK_DGRAM)) as mapped,
        closing(world.udp(SERVER, family, 4002)) as server,
    ):
        mapped.bind((inside, 4003))
        assert exchange(mapped, (address(SERVER, family), 4002), server) == (outside, 4003)
    with closing(world.listen(DMZ, 4004, family)) as listener:
        seen = transfer(world.tcp(SERVER, family), (outside, 4004), listener, payload(1 << 18))
        assert seen[0] == address(SERVER, family)


@BOTH
def test_fragments_both_ways(world: FirewallBox, offloads: str, family: int) -> None:
    """4000 bytes are three fragments each way, with NAT and (IPv4, cut once more for a smaller MTU) without."""
    hosts = [(SERVER, ours(WAN, family)), *([(DMZ, address(CLIENT, V4))] if family == V4 else [])]
    for host, source in hosts:
        with closing(world.udp(host, family, OPEN)) as server, closing(world.udp(CLIENT, family)) as client:
            for end in (server, client):
                end.setsockopt(*_discover(family), 0)  # fragment
            for _ in range(20):
                assert exchange(client, (address(host, family), OPEN), server, payload(4000))[0] == source


@pytest.mark.parametrize("host", [DMZ, FAR], ids=["at-the-gateway", "behind-nat"])
def test_fragments_of_ipv6_learn_a_smaller_mtu(world: FirewallBox, host: str) -> None:
    """A router behind NAT quotes the fragment header."""
    world.on(CLIENT, "ip", "-6", "route", "flush", "cache")
    with closing(world.udp(host, V6, OPEN)) as server, closing(world.udp(CLIENT, V6)) as client:
        server.settimeout(0.2)

        def arrives() -> bool:
            client.sendto(payload(4000), (address(host, V6), OPEN))
            with suppress(TimeoutError):
                return server.recv(1 << 16) == payload(4000)
            return False

        until(arrives, "fragments fit", 5)


def _discover(family: int) -> tuple[int, int]:
    return (socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER) if family == V6 else (socket.IPPROTO_IP, IP_MTU_DISCOVER)


@BOTH
@pytest.mark.parametrize(("host", "mtu"), [(DMZ, DMZ_MTU), (FAR, FAR_MTU)], ids=["at-the-gateway", "behind-nat"])
def test_path_mtu_discovery(world: FirewallBox, host: str, mtu: int, family: int) -> None:
    """The gateway itself says that it is too big, and what a router behind it says finds its way through NAT."""
    world.on(CLIENT, "ip", "-6" if family == V6 else "-4", "route", "flush", "cache")
    level, option = (socket.IPPROTO_IPV6, IPV6_MTU) if family == V6 else (socket.IPPROTO_IP, IP_MTU)
    with closing(world.udp(CLIENT, family)) as client, closing(world.udp(host, family, OPEN)) as server:
        client.setsockopt(*_discover(family), PMTUDISC_DO)
        client.connect((address(host, family), OPEN))
        assert client.getsockopt(level, option) == 1500
        client.send(payload(1440))
        until(lambda: client.getsockopt(level, option) == mtu, "the path's MTU is known", PATIENCE)
        client.settimeout(0)
        with suppress(OSError):
            client.recv(1)  # the error that told it
        with pytest.raises(OSError, match=r".") as caught:
            client.send(payload(1440))
        assert caught.value.errno == errno.EMSGSIZE
        assert nothing(server)
        client.send(payload(mtu - 60))
        assert len(server.recv(1 << 16)) == mtu - 60


@BOTH
def test_large_transfer_over_a_small_mtu(world: FirewallBox, offloads: str, family: int) -> None:
    world.on(CLIENT, "ip", "-6" if family == V6 else "-4", "route", "flush", "cache")
    with closing(world.listen(FAR, OPEN, family)) as listener:
        transfer(world.tcp(CLIENT, family), (address(FAR, family), OPEN), listener, payload(3 << 20))


@BOTH
def test_mss_is_lowered_both_ways(world: FirewallBox, offloads: str, family: int) -> None:
    with closing(world.listen(DMZ, OPEN, family)) as listener, closing(world.tcp(CLIENT, family)) as client:
        client.connect((address(DMZ, family), OPEN))
        with closing(listener.accept()[0]) as peer:
            timestamps = 12
            for end in (client, peer):
                assert end.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) == DMZ_MSS - timestamps


@BOTH
def test_ping_of_the_gateway_where_it_is_allowed(world: FirewallBox, family: int) -> None:
    with closing(ping(world, CLIENT, ours(LAN, family), payload(56))) as client:
        answer, source = client.recvfrom(1 << 16)
        assert (answer[0], answer[8:], source[0]) == (129 if family == V6 else 0, payload(56), ours(LAN, family))
    before = world.verdict(Reason.DEFAULT_DENY)
    with closing(ping(world, SERVER, ours(WAN, family), payload(56))) as server:
        until(lambda: world.verdict(Reason.DEFAULT_DENY) > before, "it is refused")
        server.settimeout(0)
        with pytest.raises(BlockingIOError):
            server.recv(1)


@BOTH
@pytest.mark.parametrize("octets", [56, 3000], ids=["small", "fragmented"])
def test_ping_through_nat(world: FirewallBox, family: int, octets: int) -> None:
    with closing(ping(world, CLIENT, address(SERVER, family), payload(octets))) as client:
        answer, source = client.recvfrom(1 << 16)
        assert (answer[8:], source[0]) == (payload(octets), address(SERVER, family))


@BOTH
def test_the_gateway_itself(world: FirewallBox, offloads: str, family: int) -> None:
    """What it sends may leave and is answered; a policy from self holds; nobody else gets in."""
    with closing(world.udp(SERVER, family, OPEN)) as server, closing(world.udp(GATEWAY, family)) as gateway:
        assert exchange(gateway, (address(SERVER, family), OPEN), server, payload(3000))[0] == ours(WAN, family)
    with closing(world.listen(SERVER, OPEN, family)) as listener:
        transfer(world.tcp(GATEWAY, family), (address(SERVER, family), OPEN), listener, payload(1 << 20))
    with closing(ping(world, GATEWAY, address(SERVER, family), payload(56))) as gateway:
        assert gateway.recv(1 << 16)[8:] == payload(56)
    with closing(world.udp(SERVER, family, SELF_DENIED)) as server, closing(world.udp(GATEWAY, family)) as gateway:
        counted(world, "self-denied", lambda: _send(gateway, (address(SERVER, family), SELF_DENIED)))
        assert nothing(server)
    before = world.verdict(Reason.DEFAULT_DENY)
    with closing(world.udp(GATEWAY, family, OPEN)) as gateway, closing(world.udp(CLIENT, family)) as client:
        client.sendto(b"x", (ours(LAN, family), OPEN))
        until(lambda: world.verdict(Reason.DEFAULT_DENY) > before, "it is refused")
        assert nothing(gateway)


def _send(sender: socket.socket, to: tuple[str, int]) -> None:
    with suppress(OSError):  # some kernels tell the sender that egress has dropped it
        sender.sendto(b"x", to)


@BOTH
def test_icmp_errors_find_the_client_through_nat(world: FirewallBox, family: int) -> None:
    """As traceroute: the gateway, the router behind it, the host, each seen at its own address."""
    level, hops, receive = (
        (socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, IPV6_RECVERR)
        if family == V6
        else (socket.IPPROTO_IP, socket.IP_TTL, IP_RECVERR)
    )
    seen = []
    for ttl in (1, 2, 3):
        with closing(world.udp(CLIENT, family)) as client:
            client.setsockopt(level, receive, 1)
            client.setsockopt(level, hops, ttl)
            client.connect((address(FAR, family), 33434))
            client.send(b"probe")
            with pytest.raises(OSError, match=r".") as caught:
                client.recv(1)
            assert caught.value.errno in (errno.EHOSTUNREACH, errno.ECONNREFUSED), caught.value
            _, control, _, _ = client.recvmsg(512, 512, socket.MSG_ERRQUEUE)
            seen.append(_offender(control, family))
    assert seen == [ours(LAN, family), address(SERVER, family), address(FAR, family)]


def _offender(control: list[tuple[int, int, bytes]], family: int) -> str:
    """The address that the error came from (SO_EE_OFFENDER)."""
    data = next(data for _, kind, data in control if kind in (IP_RECVERR, IPV6_RECVERR))
    name = data[EXTENDED_ERROR.size :]
    return socket.inet_ntop(family, name[8:24] if family == V6 else name[4:8])


@BOTH
def test_many_flows_at_once(world: FirewallBox, offloads: str, family: int) -> None:
    data = [random.Random(SEED + number).randbytes(20_000) for number in range(FLOWS)]
    got: list[Any] = [None] * FLOWS
    to = (address(SERVER, family), OPEN)
    with ExitStack() as stack:
        listener = stack.enter_context(closing(world.listen(SERVER, OPEN, family)))
        clients = [stack.enter_context(closing(world.tcp(CLIENT, family))) for _ in range(FLOWS)]

        def serve(peer: socket.socket) -> None:
            with peer:
                echo(peer)

        def run(number: int) -> None:
            clients[number].connect(to)
            got[number] = send_and_read(clients[number], data[number])

        runners = [threading.Thread(target=run, args=(number,)) for number in range(FLOWS)]
        for runner in runners:
            runner.start()
        servers = [threading.Thread(target=serve, args=(listener.accept()[0],)) for _ in range(FLOWS)]
        for server in servers:
            server.start()
        for thread in (*runners, *servers):
            thread.join(PATIENCE)
    assert got == data


@BOTH
def test_a_vlan_is_a_zone(world: FirewallBox, offloads: str, family: int) -> None:
    """Not in a zone nothing passes; with a zone it does, and the interface below is another zone."""
    words = ("type", "vlan", "id", "20")
    try:
        world.on(GATEWAY, "ip", "link", "add", "link", "lan0", "name", "lan0.20", *words)
    except AssertionError as error:
        if "Unknown device type" not in str(error):
            raise
        pytest.skip("this kernel has no 802.1Q")
    try:
        for host, parent in ((GATEWAY, "lan0"), (CLIENT, "c0")):
            world.on(host, "ethtool", "-K", parent, "rxvlan", "off", "txvlan", "off")
        world.on(CLIENT, "ip", "link", "add", "link", "c0", "name", "c0.20", *words)
        for host, device, number in ((GATEWAY, "lan0.20", 1), (CLIENT, "c0.20", 9)):
            world.on(host, "ip", "link", "set", device, "up")
            world.addresses(host, device, f"10.3.0.{number}", f"2001:db8:6::{number}")
        guest = ("10.3.0.1", "2001:db8:6::1")
        world.write(
            CONFIGURATION
            + '[zones.guest]\ninterfaces = ["lan0.20"]\nhost_inbound = ["ping"]\n'
            + '[[policies]]\nname = "guest"\nfrom = "guest"\nto = "dmz"\naction = "permit"\n'
        )
        before = world.verdict(Reason.NO_ZONE)
        with closing(ping(world, CLIENT, ours(guest, family), payload(56))):
            until(lambda: world.verdict(Reason.NO_ZONE) > before, "no zone, no way")
        world.ask("reload")
        with closing(ping(world, CLIENT, ours(guest, family), payload(56))) as client:
            assert client.recv(1 << 16)[8:] == payload(56)
        source = ("10.3.0.9", "2001:db8:6::9")
        for to in (address(DMZ, V4), address(DMZ, V6)):
            via = ours(guest, V6 if ":" in to else V4)
            world.on(CLIENT, "ip", "route", "replace", f"{to}/{128 if ':' in to else 32}", "via", via)
        with closing(world.udp(DMZ, family, OPEN)) as server, closing(world.udp(CLIENT, family)) as client:
            assert exchange(client, (address(DMZ, family), OPEN), server)[0] == ours(source, family)
        with closing(world.listen(DMZ, OPEN, family)) as listener:
            transfer(world.tcp(CLIENT, family), (address(DMZ, family), OPEN), listener, payload(1 << 20))
        assert {one["fromZone"] for one in world.sessions(zone="guest")} == {"guest"}
    finally:
        world.write(CONFIGURATION)
        world.ask("reload")
        for to in (address(DMZ, V4), address(DMZ, V6)):
            world.on(CLIENT, "ip", "-6" if ":" in to else "-4", "route", "del", to, check=False)
        world.on(CLIENT, "ip", "link", "del", "c0.20", check=False)
        world.on(GATEWAY, "ip", "link", "del", "lan0.20")


def test_the_gateways_own_addresses_are_not_reached_across_zones(world: FirewallBox) -> None:
    """Ping of another zone's address of the gateway is to self as well: allowed from the LAN, not from the WAN."""
    with closing(ping(world, CLIENT, INSIDE[0], payload(56))) as client:
        assert client.recv(1 << 16)[8:] == payload(56)
    world.route(SERVER, "10.2.0.0/24", WAN[0])
    before = world.verdict(Reason.DEFAULT_DENY)
    with closing(ping(world, SERVER, INSIDE[0], payload(56))):
        until(lambda: world.verdict(Reason.DEFAULT_DENY) > before, "it is refused")
