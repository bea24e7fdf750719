"""Neighbours on a link find NAT's addresses without anybody's hand, by ARP and neighbour discovery."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from pyroute2 import AsyncIPRoute

from ipsec_gw.config.load import load
from ipsec_gw.mirror import proxy
from tests.integration.conftest import until
from tests.integration.firewall_world import (
    CLIENT,
    DMZ,
    GATEWAY,
    SERVER,
    WAN,
    FirewallBox,
    address,
    exchange,
    firewall_box,
    nothing,
    transfer,
)
from xdp_steer.reasons import Reason

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces")]

V4, V6 = socket.AF_INET, socket.AF_INET6
BOTH = pytest.mark.parametrize("family", [V4, V6], ids=["ipv4", "ipv6"])
PUBLISHED, SECOND = ("192.0.2.40", "2001:db8:2::40"), ("192.0.2.41", "2001:db8:2::41")
POOL = (("192.0.2.48", "192.0.2.53"), ("2001:db8:2::48", "2001:db8:2::4d"))
EXTERNAL = ("192.0.2.60", "2001:db8:2::60")
FREE = ("192.0.2.70", "2001:db8:2::70")
PORT = 8080


def _both(text: str) -> str:
    """A table for each family; ``$name`` stands for the family's address."""
    values = {
        "published": PUBLISHED,
        "second": SECOND,
        "external": EXTERNAL,
        "dmz": (address(DMZ, V4), address(DMZ, V6)),
        "client": (address(CLIENT, V4), address(CLIENT, V6)),
        "pool": tuple("-".join(pair) for pair in POOL),
        "n": ("4", "6"),
    }
    tables = []
    for number in (0, 1):
        table = text
        for name, pair in values.items():
            table = table.replace(f"${name}", pair[number])
        tables.append(table)
    return "\n".join(tables)


BASE = """
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
name = "out"
from = "lan"
to = "wan"
action = "permit"
[[policies]]
name = "in"
from = "wan"
to = "dmz"
action = "permit"
[[policies]]
name = "mapped"
from = "wan"
to = "lan"
action = "permit"
""" + _both("""
[nat.pools.p$n]
addresses = "$pool"
[[nat.source]]
name = "out$n"
from = "lan"
to = "wan"
destination = "::/0"
translate = { pool = "p$n" }
[[nat.destination]]
name = "published$n"
from = "wan"
destination = "$published"
to = "$dmz"
""").replace('destination = "::/0"', 'destination = "0.0.0.0/0"', 1)
SECONDS = _both("""
[[nat.destination]]
name = "second$n"
from = "wan"
destination = "$second"
to = "$dmz"
""")
MAPPED = _both("""
[[nat.static]]
name = "mapped$n"
zone = "wan"
external = "$external"
internal = "$client"
""")


def hold(box: FirewallBox) -> None:
    """As the configuration file asks for."""
    assert box.config is not None
    ruleset = load(box.config).firewall
    assert ruleset is not None

    async def act() -> None:
        async with AsyncIPRoute() as route:
            await proxy.hold(route, (await proxy.wanted(route, ruleset)).given)

    with box.inside(GATEWAY):
        asyncio.run(act())


def configure(box: FirewallBox, text: str) -> None:
    box.write(text)
    box.ask("reload")
    hold(box)


def remove(box: FirewallBox) -> None:
    async def act() -> None:
        async with AsyncIPRoute() as route:
            await proxy.remove(route)

    with box.inside(GATEWAY):
        asyncio.run(act())


class Impatient(FirewallBox):
    """Many a question here has no answer."""

    neighbour_tries = 3


@pytest.fixture(scope="module")
def world() -> Iterator[FirewallBox]:
    with firewall_box(Impatient) as box:
        box.write(BASE)
        box.run()
        hold(box)
        yield box
        assert box.gw("off").returncode == 0


@pytest.fixture(autouse=True)
def strangers(request: pytest.FixtureRequest) -> None:
    """Nobody on the WAN knows a MAC yet."""
    if "world" in request.fixturenames:
        request.getfixturevalue("world").on(SERVER, "ip", "neigh", "flush", "dev", "s0", "nud", "all")


def ours(pair: tuple[Any, Any], family: int) -> Any:
    return pair[family == V6]


def mac_of(box: FirewallBox, host: str, device: str) -> str:
    return str(json.loads(box.on(host, "ip", "-j", "link", "show", device))[0]["address"])


def neighbour(box: FirewallBox, text: str) -> dict[str, Any]:
    """What the server knows of an address on the WAN's link; empty: nothing."""
    found = json.loads(box.on(SERVER, "ip", "-j", "neigh", "show", text, "dev", "s0") or "[]")
    return dict(found[0]) if found else {}


def unanswered(box: FirewallBox, family: int, text: str) -> bool:
    """Ask for it. True if nobody answers."""
    with closing(box.udp(SERVER, family)) as server:
        server.sendto(b"anybody?", (text, PORT))
        until(lambda: neighbour(box, text).get("lladdr") or "FAILED" in neighbour(box, text).get("state", ()), "an end")
    return "lladdr" not in neighbour(box, text)


def leftovers(box: FirewallBox) -> str:
    found = [line for family in ("-4", "-6") for line in box.on(GATEWAY, "ip", family, "rule").splitlines()]
    rules = "".join(line for line in found if line.startswith("215:"))
    routes = "".join(
        box.on(GATEWAY, "ip", family, "route", "show", "table", "all", "proto", "217") for family in ("-4", "-6")
    )
    return rules + routes + box.on(GATEWAY, "ip", "-6", "neigh", "show", "proxy")


@BOTH
def test_a_published_service_is_reached(world: FirewallBox, family: int) -> None:
    to = (ours(PUBLISHED, family), PORT)
    with closing(world.udp(DMZ, family, PORT)) as service, closing(world.udp(SERVER, family)) as neighbour_socket:
        assert exchange(neighbour_socket, to, service)[0] == address(SERVER, family)
    assert neighbour(world, to[0])["lladdr"] == mac_of(world, GATEWAY, "wan0")
    with closing(world.listen(DMZ, PORT, family)) as listener:
        assert transfer(world.tcp(SERVER, family), to, listener, b"x" * 100_000)[0] == address(SERVER, family)


@BOTH
def test_answers_come_to_every_address_of_a_pool(world: FirewallBox, family: int) -> None:
    first, last = (int.from_bytes(socket.inet_pton(family, text), "big") for text in ours(POOL, family))
    size = 16 if family == V6 else 4
    every = {socket.inet_ntop(family, number.to_bytes(size, "big")) for number in range(first, last + 1)}
    seen = set()
    with closing(world.udp(SERVER, family, PORT)) as server:
        for _ in range(300):
            with closing(world.udp(CLIENT, family)) as client:
                seen.add(exchange(client, (address(SERVER, family), PORT), server)[0])
            if seen == every:
                break
    assert seen == every
    assert {neighbour(world, text)["lladdr"] for text in every} == {mac_of(world, GATEWAY, "wan0")}


@BOTH
def test_static_nat_both_ways_and_a_removed_rule(world: FirewallBox, family: int) -> None:
    outside, inside = ours(EXTERNAL, family), address(CLIENT, family)
    assert unanswered(world, family, outside)
    world.on(SERVER, "ip", "neigh", "flush", "dev", "s0", "nud", "all")
    configure(world, BASE + SECONDS + MAPPED)
    try:
        with closing(world.udp(CLIENT, family, PORT)) as mapped, closing(world.udp(SERVER, family, 4001)) as server:
            assert exchange(server, (outside, PORT), mapped) == (address(SERVER, family), 4001)
        with closing(world.udp(CLIENT, family, 4002)) as mapped, closing(world.udp(SERVER, family, 4003)) as server:
            assert exchange(mapped, (address(SERVER, family), 4003), server) == (outside, 4002)
        assert inside != outside
        with closing(world.udp(DMZ, family, PORT)) as service, closing(world.udp(SERVER, family)) as server:
            exchange(server, (ours(SECOND, family), PORT), service)
    finally:
        configure(world, BASE)
    world.on(SERVER, "ip", "neigh", "flush", "dev", "s0", "nud", "all")
    assert unanswered(world, family, outside)
    assert unanswered(world, family, ours(SECOND, family))
    with closing(world.udp(DMZ, family, PORT)) as service, closing(world.udp(SERVER, family)) as server:
        exchange(server, (ours(PUBLISHED, family), PORT), service)


@BOTH
def test_nobody_answers_for_others(world: FirewallBox, family: int) -> None:
    assert unanswered(world, family, ours(FREE, family))


@BOTH
def test_a_known_neighbour_is_confirmed(world: FirewallBox, family: int) -> None:
    """Probes go to the MAC that is known, as unicast."""
    text, mac = ours(PUBLISHED, family), mac_of(world, GATEWAY, "wan0")
    world.on(SERVER, "ip", "neigh", "replace", text, "lladdr", mac, "dev", "s0", "nud", "probe")
    until(lambda: neighbour(world, text)["state"] == ["REACHABLE"], "it is confirmed")


@BOTH
def test_what_opens_no_flow_is_judged_as_to_this_machine(world: FirewallBox, family: int) -> None:
    """No service of the gateway is behind such an address: the pool's zone permits nothing to it."""
    to = (ours(POOL, family)[0], PORT)
    before = world.verdict(Reason.DEFAULT_DENY)
    with closing(world.udp(GATEWAY, family, PORT)) as gateway, closing(world.udp(SERVER, family)) as server:
        server.sendto(b"junk", to)
        until(lambda: world.verdict(Reason.DEFAULT_DENY) > before, "it is refused")
        assert nothing(gateway)


@BOTH
def test_neighbours_that_knew_another_mac_are_told(world: FirewallBox, family: int) -> None:
    text = ours(SECOND, family)
    world.on(SERVER, "ip", "neigh", "replace", text, "lladdr", "02:00:00:00:00:99", "dev", "s0", "nud", "stale")
    configure(world, BASE + SECONDS)
    try:
        mac = mac_of(world, GATEWAY, "wan0")
        until(lambda: neighbour(world, text).get("lladdr") == mac, "the announcement arrives")
    finally:
        configure(world, BASE)


@BOTH
def test_a_killed_daemon_changes_nothing(world: FirewallBox, family: int) -> None:
    child = world.children[-1]
    assert world.stop(child, signal.SIGKILL) == -signal.SIGKILL
    try:
        with closing(world.udp(DMZ, family, PORT)) as service, closing(world.udp(SERVER, family)) as server:
            exchange(server, (ours(PUBLISHED, family), PORT), service)
        with closing(world.udp(SERVER, family, PORT)) as server, closing(world.udp(CLIENT, family)) as client:
            exchange(client, (address(SERVER, family), PORT), server)
    finally:
        world.run()


def test_the_gateways_own_address_is_its_own(world: FirewallBox) -> None:
    local = world.on(GATEWAY, "ip", "route", "show", "table", "all", "type", "local")
    assert f"local {WAN[0]} dev wan0 table local" in local
    assert "dev wan0" in world.on(GATEWAY, "ip", "route", "get", PUBLISHED[0]), "not local to this machine itself"


def test_removed_and_held_again(world: FirewallBox) -> None:
    remove(world)
    try:
        assert leftovers(world) == ""
        assert unanswered(world, V4, PUBLISHED[0])
        assert unanswered(world, V6, PUBLISHED[1])
    finally:
        hold(world)
    assert leftovers(world).count("proxy") == 7, "six of the pool and the published one"
