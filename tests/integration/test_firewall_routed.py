"""A zone on an interface without Ethernet: the test is the other end of a tun device."""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
from collections.abc import Iterator
from contextlib import closing

import pytest
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6EchoRequest, IPv6
from scapy.packet import Packet, Raw

from tests.integration.conftest import until
from tests.integration.firewall_world import (
    CLIENT,
    GATEWAY,
    LAN,
    PATIENCE,
    FirewallBox,
    address,
    firewall_box,
    nothing,
)
from xdp_steer.reasons import Reason

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces")]

V4, V6 = socket.AF_INET, socket.AF_INET6
BOTH = pytest.mark.parametrize("family", [V4, V6], ids=["ipv4", "ipv6"])
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
SITE = {V4: "10.77.0.9", V6: "2001:db8:77::9"}
OURS = {V4: "10.77.0.1", V6: "2001:db8:77::1"}
OPEN, DENIED = 7000, 7001

CONFIGURATION = f"""
[gateway]
engine = "kernel"
wan = ["wan0"]
[zones.lan]
interfaces = ["lan0"]
[zones.wan]
interfaces = ["wan0"]
[zones.site]
interfaces = ["tun0"]
host_inbound = ["ping"]

[applications.open]
protocol = "udp"
destination_port = {OPEN}

[[policies]]
name = "site-in"
from = "site"
to = "lan"
application = "open"
action = "permit"
[[policies]]
name = "site-out"
from = "lan"
to = "site"
application = "open"
action = "permit"
"""


class Site:
    """Everything behind the tun device."""

    def __init__(self, box: FirewallBox) -> None:
        with box.inside(GATEWAY):
            self._fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            fcntl.ioctl(self._fd, TUNSETIFF, struct.pack("16sH22x", b"tun0", IFF_TUN | IFF_NO_PI))
        box.on(GATEWAY, "ip", "link", "set", "tun0", "up")
        box.addresses(GATEWAY, "tun0", *OURS.values())

    def send(self, packet: Packet) -> None:
        os.write(self._fd, bytes(packet))

    def receive(self, layer: type[Packet]) -> Packet:
        """The next packet with that layer."""
        while True:
            assert select.select([self._fd], [], [], PATIENCE)[0], f"no {layer.__name__}"
            data = os.read(self._fd, 1 << 16)
            packet = IP(data) if data[0] >> 4 == 4 else IPv6(data)
            if layer in packet:
                return packet

    def close(self) -> None:
        os.close(self._fd)


@pytest.fixture(scope="module")
def box() -> Iterator[FirewallBox]:
    with firewall_box() as made:
        made.write(CONFIGURATION)
        yield made
        assert made.gw("off").returncode == 0
        assert "ipsecgw-k" not in made.on(GATEWAY, "ip", "link")


@pytest.fixture(scope="module")
def site(box: FirewallBox) -> Iterator[Site]:
    with closing(Site(box)) as made:
        box.run()
        yield made


def ip(family: int, source: str, destination: str) -> Packet:
    return IP(src=source, dst=destination) if family == V4 else IPv6(src=source, dst=destination)


def datagram(family: int, port: int, data: bytes = b"from the site") -> Packet:
    return ip(family, SITE[family], address(CLIENT, family)) / UDP(sport=40000, dport=port) / Raw(data)


@BOTH
def test_a_flow_comes_in_and_its_answers_go_out(box, site, family):
    with closing(box.udp(CLIENT, family, OPEN)) as sock:
        site.send(datagram(family, OPEN))
        data, peer = sock.recvfrom(1 << 16)
        assert (data, peer[0]) == (b"from the site", SITE[family])
        sock.sendto(b"answer", peer)
        answer = site.receive(UDP)
        assert (bytes(answer[UDP].payload), answer[UDP].dport) == (b"answer", 40000)
    assert {found["fromZone"] for found in box.sessions(port=40000)} == {"site"}


@BOTH
def test_what_no_policy_permits_does_not_come_in(box, site, family):
    before = box.verdict(Reason.DEFAULT_DENY)
    with closing(box.udp(CLIENT, family, DENIED)) as sock:
        site.send(datagram(family, DENIED))
        until(lambda: box.verdict(Reason.DEFAULT_DENY) == before + 1, "the packet is denied")
        assert nothing(sock)


@BOTH
def test_a_flow_goes_out(box, site, family):
    with closing(box.udp(CLIENT, family)) as sock:
        sock.sendto(b"to the site", (SITE[family], OPEN))
        packet = site.receive(UDP)
        assert bytes(packet[UDP].payload) == b"to the site"
        back = ip(family, SITE[family], address(CLIENT, family)) / UDP(sport=OPEN, dport=packet[UDP].sport) / Raw(b"x")
        site.send(back)
        assert sock.recv(100) == b"x"


@BOTH
def test_this_machine_answers_and_asks(box, site, family):
    request, reply = (ICMP(id=7), ICMP) if family == V4 else (ICMPv6EchoRequest(id=7), ICMPv6EchoReply)
    site.send(ip(family, SITE[family], OURS[family]) / request)
    assert site.receive(reply).src == OURS[family]
    with closing(box.udp(GATEWAY, family)) as sock:
        sock.sendto(b"q", (SITE[family], 53))
        asked = site.receive(UDP)
        site.send(ip(family, SITE[family], OURS[family]) / UDP(sport=53, dport=asked[UDP].sport) / Raw(b"a"))
        assert sock.recv(100) == b"a"


def test_what_belongs_to_the_link_stays_on_it(box, site):
    """Multicast is the business of the interface: it does not come in by another one."""
    with closing(box.endpoint(GATEWAY, V4, socket.SOCK_DGRAM)) as sock:
        sock.bind(("", 9999))
        membership = socket.inet_aton("224.0.0.250") + socket.inet_aton(OURS[V4])
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
        site.send(IP(src=SITE[V4], dst="224.0.0.250", ttl=1) / UDP(sport=1, dport=9999) / Raw(b"hello"))
        assert sock.recv(100) == b"hello"


def test_the_kernel_forwards_nothing_that_was_not_judged(box, site):
    """A packet for the LAN whose session is gone does not pass, whichever way the kernel would take."""
    before = box.verdict(Reason.ICMP_UNSOLICITED)
    site.send(IP(src=SITE[V4], dst=address(CLIENT, V4)) / ICMP(type=0, id=9))
    until(lambda: box.verdict(Reason.ICMP_UNSOLICITED) == before + 1, "the reply is dropped")


def test_an_interface_that_comes_again_is_taken_again(box, site):
    programs = box.on(GATEWAY, "tc", "filter", "show", "dev", "tun0", "ingress")
    assert "ipsec-gw-decrypted" in programs
    assert "ipsec-gw-guard" in box.on(GATEWAY, "tc", "filter", "show", "dev", "tun0", "egress")
    site.close()  # and with it the device
    again = Site(box)
    try:
        until(lambda: "ipsec-gw" in box.on(GATEWAY, "tc", "filter", "show", "dev", "tun0", "ingress"), "taken again")
        site._fd = os.dup(again._fd)
        again.send(ip(V4, SITE[V4], LAN[0]) / ICMP(id=8))
        assert again.receive(ICMP).src == LAN[0]
    finally:
        again.close()
