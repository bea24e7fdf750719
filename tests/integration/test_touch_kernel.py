"""A connected socket makes a policy as new, past the leads, and sends nothing."""

from __future__ import annotations

import os
import re
import socket
import subprocess
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from ipsec_gw.ownership.touch import connect_once
from tests.support.netns import ip, namespace

pytestmark = pytest.mark.root


@pytest.fixture
def net() -> Iterator[None]:
    with namespace(f"touch{os.getpid()}"):
        Path("/proc/sys/net/ipv6/conf/default/disable_ipv6").write_text("0")
        Path("/proc/sys/net/ipv6/conf/default/addr_gen_mode").write_text("1")
        for name, peer in (("wan9", "far9"), ("up8", "vp8")):
            ip(f"link add {name} type veth peer name {peer}")
            for one in (name, peer):
                ip(f"link set {one} up")
        yield


def used(version: int) -> list[bool]:
    """Of each outbound policy, whether it was ever asked."""
    said = subprocess.run(
        ["ip", f"-{version}", "-s", "xfrm", "policy", "list", "dir", "out"], check=True, capture_output=True, text=True
    ).stdout
    return [when != "-" for when in re.findall(r"add \S+ \S+ use (\S+)", said)]


def sent(interface: str) -> int:
    """Packets, as `/proc/net/dev` has them."""
    lines = Path("/proc/thread-self/net/dev").read_text().splitlines()
    return next(int(line.split()[10]) for line in lines if line.strip().startswith(f"{interface}:"))


@pytest.mark.parametrize(
    ("version", "here", "own", "there", "source", "destination"),
    [
        (4, "10.1.0.0/24", "10.0.0.1/24", "10.2.0.0/24", "10.1.0.1", "10.2.0.1"),
        (6, "fd00:1::/64", "fd00::1/64", "fd00:2::/64", "fd00:1::1", "fd00:2::1"),
    ],
)
def test_the_policy_is_asked(
    net: None, version: int, here: str, own: str, there: str, source: str, destination: str
) -> None:
    ip(f"addr add {own} dev wan9" + (" nodad" if version == 6 else ""))
    ip(f"-{version} route add {there} dev wan9")
    ip(f"-{version} rule add pref 215 from {here} to {there} lookup 21700")  # a lead
    ip(f"-{version} route add {there} dev up8 table 21700")
    if version == 4:
        Path("/proc/sys/net/ipv4/conf/up8/disable_xfrm").write_text("1")
    ip(f"xfrm policy add src {here} dst {there} dir out")
    assert used(version) == [False]
    before = sent("up8"), sent("wan9")
    connect_once(ip_address(source), ip_address(destination), "wan9", socket.IPPROTO_UDP)
    assert used(version) == [True]
    assert version == 6 or (sent("up8"), sent("wan9")) == before, "IPv6 has reports of its own to send"


@pytest.mark.parametrize(("protocol", "asked"), [(47, [True]), (4, [False])])
def test_the_policy_for_a_devices_packets_is_asked_by_their_protocol(
    net: None, protocol: int, asked: list[bool]
) -> None:
    ip("addr add 10.0.0.1/24 dev wan9")
    ip("xfrm policy add src 10.0.0.1/32 dst 10.0.0.2/32 proto 47 dir out")
    before = sent("wan9")
    connect_once(ip_address("10.0.0.1"), ip_address("10.0.0.2"), "wan9", protocol)
    assert used(4) == asked
    assert sent("wan9") == before
