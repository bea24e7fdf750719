"""This machine's rules as its own tools put them: nftables, traffic control, policy routing, VRFs."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator

import pytest
from pyroute2 import AsyncIPRoute

from ipsec_gw.mirror.host import read_host
from ipsec_gw.unseen import FilterRule, Host, Queue, RoutingRule, unseen
from tests.support.netns import ip, namespace

pytestmark = pytest.mark.root

RULES = """
table inet gate {
    chain passing {
        type filter hook forward priority 0; policy drop;
        iifname "eth0" oifname { "eth1", "eth2" } ct state established accept
        ipsec in reqid 5 accept
        meta secpath exists accept
        rt ipsec exists counter accept
        ip saddr 10.0.0.0/8 accept
    }
    chain before {
        type filter hook prerouting priority -300;
        meta l4proto esp counter drop
        udp dport { 500, 4500 } limit rate 5/second drop
        ip protocol esp meta mark set 5
        esp spi 5 drop
        udp dport 53 drop
        meta l4proto { esp, ah } counter accept
        iif "lo" accept
    }
}
table ip nat {
    chain post {
        type nat hook postrouting priority 100;
        oifname != "eth1" masquerade
        oifname { "eth0" } masquerade
    }
}
"""


@pytest.fixture(autouse=True)
def net() -> Iterator[None]:
    if os.geteuid() != 0:
        pytest.skip("needs root for network namespaces")
    with namespace(f"igwh-{secrets.token_hex(3)}"):
        ip("link add eth0 type veth peer name far0")
        ip("addr add 192.0.2.2/24 dev eth0")
        ip("link set eth0 up")
        ip("link set far0 up")
        ip("route add default via 192.0.2.1")
        yield


def run(*words: str, text: str = "") -> None:
    subprocess.run(words, input=text, text=True, check=True)


async def look(*wan: str) -> Host:
    async with AsyncIPRoute() as route:
        return await read_host(route, wan)


@pytest.mark.skipif(shutil.which("nft") is None, reason="nft is not installed")
async def test_rules_of_nftables_are_understood() -> None:
    run("nft", "-f", "-", text=RULES)
    host = await look()
    assert host.unread == ()
    seen: dict[str, list[FilterRule]] = {}
    for rule in host.filters:
        seen.setdefault(rule.chain, []).append(rule)
    passing, before, post = (seen[name] for name in ("inet gate passing", "inet gate before", "ip nat post"))
    assert [rule.interfaces for rule in passing] == [frozenset({"eth0", "eth1", "eth2"}), *[frozenset()] * 4]
    assert [rule.ipsec for rule in passing] == [False, True, True, True, False]
    assert [rule.esp for rule in before] == [True, True, True, True, False, True, False]
    assert [rule.accepts for rule in before] == [False, False, False, False, False, True, True]
    assert [rule.interfaces for rule in post] == [frozenset({"eth1"}), frozenset({"eth0"})]
    warned = [warning.what for warning in unseen(host)]
    assert sorted(warned) == sorted(
        [*["nftables chain inet gate passing"] * 2, "nftables chain inet gate before", "nftables chain ip nat post"]
    )


async def test_without_the_tool_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    assert (await look()).unread == ("nftables: the tool nft is not installed",)


async def test_queues_and_rules() -> None:
    assert (await look()).wan == {"eth0"}, "the interface of the default route"
    quiet = await look("eth0")
    assert (quiet.queues, quiet.routing, quiet.vrfs) == ((), (), {})
    run("tc", "qdisc", "add", "dev", "eth0", "root", "pfifo")  # the one that every kernel has
    ip("rule add fwmark 7 lookup 77 priority 300")
    ip("rule add to 10.9.0.0/16 lookup 220 priority 220")  # strongSwan's
    ip("rule add to 10.9.0.0/16 lookup 21700 priority 215")  # ours
    host = await look("eth0")
    assert host.queues == (Queue("eth0", "pfifo"),)
    assert host.routing == (RoutingRule(300, 4),)
    assert len(unseen(host)) == 2


async def test_only_vrfs_count_as_vrfs() -> None:
    try:
        ip("link add blue type vrf table 10")
    except subprocess.CalledProcessError:
        pytest.skip("this kernel has no VRFs")
    ip("link add bridge type bridge")
    ip("link set far0 master bridge")
    ip("link set eth0 master blue")
    assert (await look("eth0")).vrfs == {"eth0": "blue"}
