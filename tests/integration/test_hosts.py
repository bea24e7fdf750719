"""What leads packets between hosts to the engine, against the kernel: those with the mark, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import secrets
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from pyroute2 import AsyncIPRoute

from ipsec_gw.ike.xfrm import XfrmSocket
from ipsec_gw.mirror.nftables import RT_XFRM, NfTables, route_key
from ipsec_gw.model.ids import IpAddress
from ipsec_gw.model.objects import Exempt, ExemptKey, Hosts, HostsLead, PortMatch, Selector
from ipsec_gw.model.snapshot import LeadLimits, Mode, PolicyDirection, Template, XfrmPolicy
from ipsec_gw.ownership.bypass import TABLE, TABLE4, Bypass, remove_bypass
from ipsec_gw.ownership.hosts import TABLE as ROUTES
from ipsec_gw.ownership.hosts import HostsDriver
from ipsec_gw.ownership.lead import LeadDriver
from ipsec_gw.ownership.marks import HOSTS_TABLE, hosts_table
from ipsec_gw.ownership.uplink import ENGINE_END, KERNEL_END, raise_uplink
from tests.support.netns import ip, namespace

pytestmark = pytest.mark.root

LOCAL, PEER, OTHER = ip_address("10.0.0.1"), ip_address("10.0.0.2"), ip_address("10.0.0.3")
LEAD, SECOND = HostsLead(Hosts(LOCAL, PEER)), HostsLead(Hosts(LOCAL, OTHER))
MARK = "0x80000000"


@pytest.fixture(autouse=True)
def net() -> Iterator[None]:
    if os.geteuid() != 0:
        pytest.skip("needs root for network namespaces")
    with namespace(f"igwh-{secrets.token_hex(3)}"):
        ip("link set lo up")
        ip("link add wan0 type veth peer name wan0p")
        for name in ("wan0", "wan0p"):
            ip(f"link set {name} up")
        ip(f"addr add {LOCAL}/24 dev wan0")
        yield


async def drivers(route: AsyncIPRoute) -> tuple[HostsDriver, LeadDriver]:
    kernel, engine = await raise_uplink(route)
    hosts = HostsDriver(route, kernel_index=kernel.index)
    ends = {"engine_name": ENGINE_END, "engine_mac": engine.link.mac}
    lead = LeadDriver(route, kernel_index=kernel.index, after_exempt=hosts.mark, **ends)
    await lead.prepare()
    return hosts, lead


async def driver(route: AsyncIPRoute) -> HostsDriver:
    return (await drivers(route))[0]


def marking() -> list[str]:
    """Peers that are led, and the rules that spare, as nft tells them."""
    words = ["nft", "list", "table", "ip", HOSTS_TABLE]
    told = subprocess.run(words, capture_output=True, text=True, check=False).stdout
    led = sorted(re.findall(rf"{LOCAL} \. ([0-9.]+)", told))
    assert bool(led) == (f"ip saddr . ip daddr @led meta mark set {MARK}" in told)
    return led + [line.strip() for line in told.splitlines() if "ip saddr " in line and "@led" not in line]


def take_away(peer: IpAddress) -> None:
    words = ["nft", "delete", "element", "ip", HOSTS_TABLE, "led", f"{{ {LOCAL} . {peer} }}"]
    subprocess.run(words, check=True)


def way(*words: str) -> str:
    """The device that `ip route get` says."""
    done = subprocess.run(["ip", "-j", "route", "get", *words], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)[0]
    return str(found["dev"])


def left() -> list[str]:
    rules = subprocess.run(["ip", "rule"], capture_output=True, text=True, check=True).stdout
    routes = subprocess.run(["ip", "route", "show", "table", str(ROUTES)], capture_output=True, text=True, check=False)
    return [
        line for line in (*rules.splitlines(), *routes.stdout.splitlines()) if str(ROUTES) in line or "192.0.0" in line
    ]


async def test_what_has_the_mark_is_led_and_nothing_else() -> None:
    async with AsyncIPRoute() as route:
        made = await driver(route)
        marked = (str(PEER), "from", str(LOCAL), "mark", MARK)
        assert way(*marked) == "wan0"
        await made.create(LEAD)
        assert way(*marked) == KERNEL_END
        others = {
            "IKE, and what charon asks": (str(PEER),),
            "from our address": (str(PEER), "from", str(LOCAL)),
            "IKE from our address": (str(PEER), "from", str(LOCAL), "ipproto", "udp", "sport", "500", "dport", "500"),
            "another peer": (str(OTHER), "from", str(LOCAL), "mark", MARK),
            "another mark": (str(PEER), "from", str(LOCAL), "mark", "0x1"),
        }
        assert {what: way(*words) for what, words in others.items()} == dict.fromkeys(others, "wan0")


async def test_it_is_found_again_and_leaves_nothing() -> None:
    async with AsyncIPRoute() as route:
        made = await driver(route)
        assert await made.retrieve() == {}
        for lead in (LEAD, SECOND, LEAD):
            await made.create(lead)
        assert await (await driver(route)).retrieve() == {LEAD.key: LEAD, SECOND.key: SECOND}
        await made.update(LEAD)
        await made.delete(LEAD)
        assert await made.retrieve() == {SECOND.key: SECOND}
        assert way(str(OTHER), "from", str(LOCAL), "mark", MARK) == KERNEL_END
        await made.delete(SECOND)
        await made.delete(SECOND)
        assert left() == []
        await made.create(LEAD)
        await made.clear()
        assert left() == []


VXLAN = PortMatch(4789, 0xFFFF)
BETWEEN = Selector(ip_network(LOCAL), ip_network(PEER), 17)
TO, FROM = replace(BETWEEN, destination_port=VXLAN), replace(BETWEEN, source_port=VXLAN)
SOME = replace(BETWEEN, destination_port=PortMatch(0x1000, 0xF000))


def exempt(selector: Selector) -> Exempt:
    return Exempt(ExemptKey(selector), unbound=False)


async def test_marks_are_for_hosts_that_are_led() -> None:
    async with AsyncIPRoute() as route:
        made = await driver(route)
        await made.create(SECOND)
        await made.create(LEAD)
        assert marking() == [str(PEER), str(OTHER)]
        await made.delete(LEAD)
        assert marking() == [str(OTHER)]
        await made.delete(SECOND)
        assert marking() == []
        await made.create(LEAD)
        with closing(NfTables()) as tables:
            tables.remove(hosts_table((), ()))
            assert await made.retrieve() == {LEAD.key: LEAD}
            assert marking() == [str(PEER)], "they are put right"
            tables.remove(hosts_table((), ()))
            made.renew()
            assert marking() == [str(PEER)], "without a look at what is in place, too"
        ip("rule del pref 197")
        assert await made.retrieve() == {}
        assert marking() == [], "and go with what leads"
        await made.create(LEAD)
        await (await driver(route)).clear()
        assert marking() == [], "an earlier life's"
        await made.create(LEAD)
        remove_bypass()
        assert marking() == []


async def test_a_pair_that_somebody_else_takes_away_is_put_right() -> None:
    async with AsyncIPRoute() as route:
        made = await driver(route)
        for lead in (LEAD, SECOND):
            await made.create(lead)
        take_away(PEER)
        assert marking() == [str(OTHER)]
        made.renew()
        assert marking() == [str(PEER), str(OTHER)]
        with closing(NfTables()) as tables:
            tables.remove(hosts_table((), ()))
        await made.delete(SECOND)
        assert marking() == [str(PEER)], "the whole table, although one pair has gone"


def test_there_is_room_for_thousands() -> None:
    """More than one message to the kernel, and from it, has room for."""
    led = [Hosts(LOCAL, ip_address(int(PEER) + number)) for number in range(20000)]
    whole, most, one = (hosts_table(some, [TO]) for some in (led, led[:9000], led[:1]))
    with closing(NfTables()) as tables:
        tables.put(whole)
        assert tables.holds(whole)
        assert not tables.holds(most)
        for former, now in ((whole, one), (one, most), (most, whole)):
            tables.alter(now, former)
            assert tables.holds(now)
            assert not tables.holds(former)


async def test_what_is_exempted_gets_no_mark() -> None:
    async with AsyncIPRoute() as route:
        hosts, lead = await drivers(route)
        elsewhere = replace(TO, destination=ip_network(OTHER))
        around = replace(TO, destination=ip_network("10.0.0.0/30"))
        for selector in (TO, elsewhere, around):
            await lead.create(exempt(selector))
        assert marking() == [], "nothing is led"
        await hosts.create(LEAD)
        led, spared = marking()
        assert led == str(PEER)
        assert spared.startswith(f"ip saddr {LOCAL} ip daddr {PEER} ")
        assert spared.endswith("dport 4789 return")
        assert await hosts.retrieve() == {LEAD.key: LEAD}
        again, _ = await drivers(route)
        assert await again.retrieve() == {LEAD.key: LEAD}, "another life finds it"
        await lead.create(exempt(FROM))
        assert len(marking()) == 3
        for selector in (TO, FROM):
            await lead.delete(exempt(selector))
        assert marking() == [str(PEER)]


async def test_packets_go_by_their_ports() -> None:
    """Real packets, marked without XFRM's choice: that would need ESP in the kernel."""
    async with AsyncIPRoute() as route:
        hosts, _ = await drivers(route)
        await hosts.create(LEAD)
        ip(f"neigh add {PEER} lladdr 02:00:00:00:00:02 dev wan0")
        table = hosts_table([LEAD.key], [TO, SOME, replace(FROM, protocol=6)])
        (chain,) = table.chains
        rules = tuple(rule for rule in chain.rules if route_key(RT_XFRM) not in rule)
        ways = {(1, 9): True, (4789, 9): True, (1, 4789): False, (1, 4096): False, (1, 8191): False, (1, 8192): True}
        with closing(NfTables()) as tables, closing(watching(ENGINE_END)) as engine, closing(watching("wan0p")) as wan:
            tables.put(TABLE4)  # takes the mark off again
            tables.put(replace(table, chains=(replace(chain, rules=rules),)))
            for (sport, dport), led in ways.items():
                send(sport, dport)
                deadline = asyncio.get_running_loop().time() + 10
                while not (left := ports_seen(wan)):  # with no engine the kernel forwards what was led
                    assert asyncio.get_running_loop().time() < deadline
                    await asyncio.sleep(0)
                assert left == [(sport, dport)]
                assert ports_seen(engine) == left * led


def watching(interface: str) -> socket.socket:
    """What comes in by it."""
    found = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
    found.bind((interface, 0x0800))
    found.setblocking(False)
    return found


def send(sport: int, dport: int) -> None:
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as speaker:
        speaker.bind((str(LOCAL), sport))
        speaker.sendto(b"x", (str(PEER), dport))


def ports_seen(way: socket.socket) -> list[tuple[int, int]]:
    found = []
    with contextlib.suppress(BlockingIOError):
        while True:
            frame, (_, _, kind, *_) = way.recvfrom(2048)
            if kind != socket.PACKET_OUTGOING and frame[23] == socket.IPPROTO_UDP:
                found.append(struct.unpack_from(">HH", frame, 34))
    return found


async def test_rules_without_the_route_lead_nowhere_and_are_removed() -> None:
    async with AsyncIPRoute() as route:
        made = await driver(route)
        await made.create(LEAD)
        ip(f"route flush table {ROUTES}")
        assert await made.retrieve() == {}
        assert left() == []


async def test_without_carrier_the_kernel_sends() -> None:
    async with AsyncIPRoute() as route:
        await (await driver(route)).create(LEAD)
        ip(f"link set {ENGINE_END} down")
        deadline = asyncio.get_running_loop().time() + 10
        while way(str(PEER), "from", str(LOCAL), "mark", MARK) != "wan0":
            assert asyncio.get_running_loop().time() < deadline
            await asyncio.sleep(0)


def transporting(**changes: object) -> XfrmPolicy:
    """As charon installs it."""
    base = XfrmPolicy(
        PolicyDirection.OUT,
        ip_network(LOCAL),
        ip_network(PEER),
        367231,
        True,
        (Template(LOCAL, PEER, 0x22, 50, 1, Mode.TRANSPORT),),
    )
    return replace(base, **changes)


async def test_packets_are_marked_while_a_policy_asks_for_it() -> None:
    async with AsyncIPRoute() as route:
        await driver(route)
        kernel, _ = await raise_uplink(route)
        with XfrmSocket() as xfrm, closing(NfTables()) as tables:
            bypass = Bypass(xfrm, kernel.index)
            elsewhere, here = (
                transporting(templates=(Template(LOCAL, end, 0x22, 50, 1, Mode.TUNNEL),)) for end in (OTHER, PEER)
            )
            assert bypass.limits([transporting(templates=()), elsewhere]) == LeadLimits()
            assert not tables.holds(TABLE4)
            assert bypass.limits([here]) == LeadLimits()
            assert tables.holds(TABLE4)
            tables.remove(TABLE4)
            assert bypass.limits([transporting()]) == LeadLimits()
            assert tables.holds(TABLE4)
            assert not tables.holds(TABLE), "nobody asked for IPv6"
            tables.remove(TABLE4)
            assert bypass.limits([transporting()]) == LeadLimits()
            assert tables.holds(TABLE4), "it is put right again"
            theirs = transporting(templates=(), mark=(0x8000_0001, 0xFFFF_FFFF))
            assert bypass.limits([transporting(), theirs]) == LeadLimits()
            bit = transporting(templates=(), mark=(0x8000_0000, 0x8000_0000))
            assert "a mark that means something" in bypass.limits([transporting(), bit]).hosts
            assert not tables.holds(TABLE4)
            bypass.limits([transporting()])
            remove_bypass()
            assert not tables.holds(TABLE4)


async def test_marks_of_a_life_that_ended_between_rule_and_mark_are_taken_away() -> None:
    async with AsyncIPRoute() as route:
        before = await driver(route)
        await before.create(LEAD)
        rule = {"priority": 197, "src": f"{LOCAL}/32", "dst": f"{PEER}/32", "table": ROUTES}
        await route.rule("del", family=socket.AF_INET, **rule)
        assert marking()
        after = await driver(route)
        assert await after.retrieve() == {}
        assert marking() == []
        await after.create(LEAD)
        assert marking()


async def test_a_route_of_a_life_that_ended_before_its_rule_is_taken_away() -> None:
    async with AsyncIPRoute() as route:
        before = await driver(route)
        await before.create(LEAD)
        rule = {"priority": 197, "src": f"{LOCAL}/32", "dst": f"{PEER}/32", "table": ROUTES}
        await route.rule("del", family=socket.AF_INET, **rule)
        assert left()
        after = await driver(route)
        assert await after.retrieve() == {}
        assert left() == []
