"""Filters and policers between real hosts: what real sockets get of them, in XDP and where the kernel forwards."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.integration.conftest import until
from tests.integration.firewall_world import (
    CLIENT,
    DMZ,
    GATEWAY,
    LAN,
    PATIENCE,
    SERVER,
    WAN,
    FirewallBox,
    address,
    exchange,
    firewall_box,
    transfer,
)
from xdp_steer.reasons import Reason

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces")]

V4, V6 = socket.AF_INET, socket.AF_INET6
FAMILIES = pytest.mark.parametrize("family", [V4, V6], ids=["v4", "v6"])
AF21 = 18
ETH_P_IP, ETH_P_IPV6 = 0x0800, 0x86DD

CONFIGURATION = """
[gateway]
engine = "kernel"
wan = ["wan0"]
[zones.lan]
interfaces = ["lan0"]
host_inbound = ["ping", "ssh"]
[zones.wan]
interfaces = ["wan0"]
[zones.dmz]
interfaces = ["dmz0"]
[firewall]
default_policy = "permit"
[applications.voice]
protocol = "udp"
destination_port = 6000
[applications.bulk]
protocol = "tcp"
destination_port = 6001
[applications.never]
protocol = "udp"
destination_port = 6002
[applications.answers]
protocol = "tcp"
source_port = 6001

[filters.in]
input = "lan0"
terms = [
  { name = "voice", application = "voice", mark = "ef", mirror = "mir0" },
  { name = "never", application = "never", action = "reject" },
  { name = "bulk", application = "bulk", policer = "bulk" },
]
[filters.out]
output = ["wan0", "dmz0"]
terms = [
  { name = "voice", dscp = "ef", mark = "af21" },
  { name = "never", destination = ["192.0.2.66", "2001:db8:2::66"], action = "discard" },
]
[filters.host]
host = true
terms = [{ name = "no-ssh", application = "ssh", action = "discard" }]

[policers.bulk]
rate = "40M"
burst = 20000
"""


@pytest.fixture(scope="module")
def world() -> Iterator[FirewallBox]:
    with firewall_box() as box:
        box.route(SERVER, "10.0.0.0/8", WAN[0])
        box.wire(GATEWAY, "mir0", SERVER, "mir1")
        box.write(CONFIGURATION)
        box.run()
        yield box
        assert box.gw("off").returncode == 0


def term(box: FirewallBox, name: str) -> int:
    return next(rule["packets"] for rule in box.ask("firewall")["rules"] if (rule["kind"], rule["name"]) == name)


@FAMILIES
@pytest.mark.parametrize("host", [SERVER, DMZ])
def test_marks_of_both_filters(world: FirewallBox, host: str, family: int) -> None:
    """In by lan0 it becomes EF, and out by the other one, which sees that, AF21; answers keep what they have."""
    level, option = (socket.IPPROTO_IP, 13) if family == V4 else (socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS)
    with closing(world.udp(host, family, 6000)) as server, closing(world.udp(CLIENT, family)) as client:
        for end in (server, client):
            end.setsockopt(level, option, 1)
        before = term(world, ("filter-term", "in/voice")), term(world, ("filter-term", "out/voice"))
        for _ in range(3):  # the first packet of the flow and those of its session
            client.sendto(b"hello", (address(host, family), 6000))
            data, ancillary, _, peer = server.recvmsg(100, 100)
            assert (data, ancillary[0][2][0] >> 2) == (b"hello", AF21)
        server.sendto(b"back", peer)
        data, ancillary, _, _ = client.recvmsg(100, 100)
        assert (data, ancillary[0][2][0] >> 2) == (b"back", 0)
        after = term(world, ("filter-term", "in/voice")), term(world, ("filter-term", "out/voice"))
        assert after == (before[0] + 3, before[1] + 3)


@FAMILIES
def test_the_daemon_sends_copies_of_what_arrived(world: FirewallBox, family: int) -> None:
    """Before it was marked; what no term mirrors is not among them."""
    with world.inside(SERVER):
        kind = ETH_P_IP if family == V4 else ETH_P_IPV6
        listener = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(kind))
        listener.bind(("mir1", kind))
    listener.settimeout(PATIENCE)
    with closing(listener), closing(world.udp(CLIENT, family)) as client:
        client.sendto(b"unseen", (address(SERVER, family), 7100))
        client.sendto(b"copied", (address(SERVER, family), 6000))
        packet = listener.recv(2000)
    assert packet.endswith(b"copied")
    first = int.from_bytes(packet[:2])
    assert first >> (2 if family == V4 else 6) & 63 == 0
    assert socket.inet_pton(family, address(CLIENT, family)) in packet


@FAMILIES
def test_what_is_rejected_is_told_to_the_sender(world: FirewallBox, family: int) -> None:
    with closing(world.udp(CLIENT, family)) as client:
        client.connect((address(SERVER, family), 6002))
        client.send(b"no")
        with pytest.raises(OSError, match=r"No route to host|Permission denied"):
            client.recv(100)


@FAMILIES
def test_the_host_filter_and_the_policies_both_have_their_say(world: FirewallBox, family: int) -> None:
    before = world.verdict(Reason.FILTER_DISCARD)
    with closing(world.listen(GATEWAY, 22, family)), closing(world.tcp(CLIENT, family)) as client:
        client.setblocking(False)
        client.connect_ex((LAN[family == V6], 22))
        until(lambda: world.verdict(Reason.FILTER_DISCARD) > before, "ssh is discarded")


@FAMILIES
def test_what_the_kernel_forwards_is_discarded(world: FirewallBox, family: int) -> None:
    before = world.verdict(Reason.EGRESS_FILTER)
    there = "192.0.2.66" if family == V4 else "2001:db8:2::66"
    world.on(GATEWAY, "ip", "neigh", "replace", there, "lladdr", "02:00:00:00:00:66", "nud", "permanent", "dev", "wan0")
    with closing(world.udp(CLIENT, family)) as client:
        client.sendto(b"no", (there, 7000))
        until(lambda: world.verdict(Reason.EGRESS_FILTER) == before + 1, "it is discarded on the way out")


@FAMILIES
def test_tcp_gets_through_a_policer_whole(world: FirewallBox, family: int) -> None:
    """What is beyond the rate is dropped and sent again by TCP."""
    data = bytes(range(256)) * 4096
    red = term(world, ("policer", "bulk"))
    with closing(world.listen(SERVER, 6001, family)) as listener:
        transfer(world.tcp(CLIENT, family), (address(SERVER, family), 6001), listener, data)
    assert term(world, ("policer", "bulk")) > red
    assert world.verdict(Reason.FILTER_POLICED) > 0


@FAMILIES
def test_other_flows_are_as_without_filters(world: FirewallBox, family: int) -> None:
    with closing(world.udp(SERVER, family, 7001)) as server, closing(world.udp(CLIENT, family)) as client:
        exchange(client, (address(SERVER, family), 7001), server)
