"""VXLAN devices as the running kernel tells them, with their forwarding databases."""

from __future__ import annotations

import os
import secrets
import subprocess
from collections.abc import Iterator
from ipaddress import ip_address

import pytest
from pyroute2 import AsyncIPRoute

from ipsec_gw.mirror.kernel import KernelView
from ipsec_gw.model.snapshot import Vxlan
from tests.support.netns import ip, namespace

pytestmark = pytest.mark.root

ENDS = "local 10.0.0.1 remote 10.0.0.2 dstport 4789"
MAC, ANYONE = "02:00:00:00:00:09", "00:00:00:00:00:00"


@pytest.fixture(autouse=True)
def net() -> Iterator[None]:
    if os.geteuid() != 0:
        pytest.skip("needs root for network namespaces")
    with namespace(f"igwx-{secrets.token_hex(3)}"):
        yield


def fdb(words: str, destination: str) -> None:
    subprocess.run(["bridge", "fdb", *words.split(), "dev", "vxlan1", "dst", destination], check=True)


async def seen() -> Vxlan:
    async with AsyncIPRoute() as route:
        view = KernelView(route)
        (device,) = await view.vxlans(await view.links())
    return device


async def test_a_usual_one() -> None:
    ip(f"link add vxlan1 type vxlan id 42 {ENDS}")
    device = await seen()
    ends = device.local, device.remote, device.port, device.vni
    assert ends == (ip_address("10.0.0.1"), ip_address("10.0.0.2"), 4789, 42)
    assert (device.up, device.oddity, device.elsewhere, str(device)) == (False, "", (), "VXLAN device vxlan1")
    ip("link set vxlan1 up")
    assert (await seen()).up


async def test_entries_of_its_forwarding_database() -> None:
    ip(f"link add vxlan1 type vxlan id 42 {ENDS}")
    ip("link add br0 type bridge")
    for words in ("master br0", "up"):
        ip(f"link set vxlan1 {words}")
    fdb(f"add {MAC}", "10.0.0.2")
    assert (await seen()).elsewhere == ()
    fdb(f"append {ANYONE}", "10.0.0.3")
    assert (await seen()).elsewhere == ("10.0.0.3",)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("ttl 5", "TTL of 5"),
        ("tos inherit", "TOS"),
        ("df set", "DF"),
        ("srcport 40000 41000", "srcport"),
        ("proxy", "proxy"),
        ("gbp", "GBP"),
    ],
)
async def test_what_engines_would_do_otherwise(options: str, words: str) -> None:
    ip(f"link add vxlan1 type vxlan id 42 {ENDS} {options}")
    assert words in (await seen()).oddity


@pytest.mark.parametrize("options", ["ttl 64", "ttl inherit", "nolearning", "noudpcsum"])
async def test_what_makes_no_difference(options: str) -> None:
    ip(f"link add vxlan1 type vxlan id 42 {ENDS} {options}")
    assert (await seen()).oddity == ""
