"""The kernel state by which NAT's addresses are answered for: held exactly, given back, others' left alone."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import closing
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from pyroute2 import AsyncIPRoute
from structlog.testing import capture_logs

from ipsec_gw.firewall.answers import Answer
from ipsec_gw.mirror import proxy
from ipsec_gw.mirror.ports import ROUTES, Changes
from ipsec_gw.model.firewall import Pool, Ruleset, SourceNat, Translation, Zone
from tests.support.netns import ip, namespace

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces")]


@pytest.fixture
def kernel() -> Iterator[None]:
    """Two interfaces, no firewall."""
    with namespace(f"igwn-{secrets.token_hex(3)}"):
        ip("link set lo up")
        Path("/proc/sys/net/ipv6/conf/default/disable_ipv6").write_text("0")
        Path("/proc/sys/net/ipv6/conf/all/forwarding").write_text("1")
        for name, address4, address6 in (
            ("wan0", "192.0.2.1/24", "2001:db8:2::1/64"),
            ("lan0", "10.1.0.1/24", "fd00::1/64"),
        ):
            ip(f"link add {name} type veth peer name {name}p")
            for end in (f"{name}p", name):
                ip(f"link set {end} up")
            ip(f"addr add {address4} dev {name}")
            ip(f"addr add {address6} dev {name} nodad")
        yield


WANTED = frozenset(
    Answer(interface, ip_network(text))
    for interface, text in (
        ("wan0", "192.0.2.16/28"),
        ("wan0", "2001:db8:2::10/126"),
        ("lan0", "10.1.0.7/32"),
        ("lan0", "fd00::7/128"),
    )
)


def switches(name: str) -> tuple[str, str]:
    net = Path("/proc/sys/net/ipv6")
    return (net / f"conf/{name}/proxy_ndp").read_text().strip(), (net / f"neigh/{name}/proxy_delay").read_text().strip()


def setting(name: str, value: str) -> None:
    Path(f"/proc/sys/{name}").write_text(value)


def ndp_proxies(interface: str, value: str) -> None:
    setting(f"net/ipv6/conf/{interface}/proxy_ndp", value)


def everything() -> str:
    commands = ("rule", "-6 rule", "route show table all", "-6 route show table all type local", "-6 neigh show proxy")
    return "".join(os.popen(f"ip {command}").read() for command in commands)


async def test_held_exactly_and_idempotent(kernel: None) -> None:
    before = everything()
    async with AsyncIPRoute() as route:
        await proxy.hold(route, WANTED)
        held = everything()
        assert held.count("iif wan0") == held.count("iif lan0") == 2
        assert held.count(" proxy ") == 5
        heard: list[bool] = []
        with closing(Changes(ROUTES, lambda: heard.append(True))) as changes:
            await proxy.hold(route, WANTED)
            with pytest.raises(BlockingIOError):
                changes._socket.recv(1 << 16)
        assert everything() == held
        some = frozenset(one for one in WANTED if one.interface == "wan0" and one.network.version == 4)
        await proxy.hold(route, some)
        assert "192.0.2.16/28" in everything()
        assert "lan0 lookup" not in everything()
        await proxy.remove(route)
    assert everything() == before


async def test_settings_are_given_back_and_others_proxies_stay(kernel: None) -> None:
    fresh = switches("wan0")
    ndp_proxies("lan0", "1")
    by_hand = switches("lan0")
    for address6 in ("2001:db8:2::12", "2001:db8:2::99"):
        ip(f"-6 neigh add proxy {address6} dev wan0")
    async with AsyncIPRoute() as route:
        await proxy.hold(route, WANTED)
        assert switches("wan0") == ("1", "0")
        assert switches("lan0") == by_hand, "somebody's own proxies are answered for as that one wants"
        await proxy.remove(route)
    assert (switches("wan0"), switches("lan0")) == (fresh, by_hand)
    assert everything().count(" proxy") == 2


async def test_it_comes_back_after_an_interface_was_down_or_another(kernel: None) -> None:
    async with AsyncIPRoute() as route:
        await proxy.hold(route, WANTED)
        held = everything()
        ip("link set lan0 down")
        assert everything().count(" proxy ") == 4
        ip("link set lan0 up")
        await proxy.hold(route, WANTED)
        assert everything().count(" proxy ") == held.count(" proxy ") == 5
        ip("link del lan0")
        await proxy.hold(route, WANTED)
        assert "iif lan0" not in everything()
        ip("link add lan0 type veth peer name lan0p")
        assert switches("lan0")[0] == "0"
        await proxy.hold(route, WANTED)
        assert (switches("lan0"), everything().count("iif lan0 lookup")) == (("1", "0"), 2)
        ndp_proxies("lan0", "0")
        await proxy.hold(route, WANTED)
        assert switches("lan0") == ("1", "0")


async def test_no_answer_for_the_default_router_and_own_addresses(kernel: None) -> None:
    ip("route add default via 192.0.2.18")
    ip("-6 route add default via 2001:db8:2::12")
    pools = tuple(
        Pool(first, ip_address(first), ip_address(last))
        for first, last in (("192.0.2.0", "192.0.2.19"), ("2001:db8:2::", "2001:db8:2::13"))
    )
    rules = tuple(SourceNat(pool.name, Translation.POOL, "lan", "wan", pool=pool.name) for pool in pools)
    ruleset = Ruleset((Zone("wan", ("wan0", "missing0")),), pools=pools, source_nat=rules)
    async with AsyncIPRoute() as route:
        found = await proxy.wanted(route, ruleset)
    assert {one.interface for one in found.given} == {"wan0"}
    addresses = {str(address) for one in found.given for address in one.network}
    assert addresses == {f"192.0.2.{number}" for number in (*range(2, 18), 19)} | {
        f"2001:db8:2::{number:x}" for number in (*range(2, 18), 19)
    }


async def test_settings_with_which_nobody_is_answered_are_named(kernel: None) -> None:
    settings = {"net/ipv4/conf/wan0/arp_ignore": "1", "net/ipv6/conf/lan0/forwarding": "0"}
    for name, value in settings.items():
        setting(name, value)
    async with AsyncIPRoute() as route:
        with capture_logs() as logs:
            await proxy.hold(route, WANTED)
            await proxy.hold(route, WANTED)
    warned = sorted(line["setting"] for line in logs if line["log_level"] == "warning")
    assert warned == ["net.ipv4.conf.wan0.arp_ignore = 1", "net.ipv6.conf.lan0.forwarding = 0"], "once"
