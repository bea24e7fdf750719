"""The veth pair and the policy routes against the kernel: who is led to the engine, and who is not."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from pyroute2 import AsyncIPRoute

from ipsec_gw.mirror.kernel import KernelView
from ipsec_gw.model.objects import Exempt, ExemptKey, Lead, PortMatch, Selector
from ipsec_gw.ownership.lead import LeadDriver
from ipsec_gw.ownership.uplink import ENGINE_END, KERNEL_END, raise_uplink, remove_uplink
from tests.support.netns import ip, namespace

pytestmark = pytest.mark.root

SELECTOR = Selector(ip_network("192.168.1.0/24"), ip_network("192.168.2.0/24"))
LEAD = Lead(SELECTOR, ip_address("192.168.1.1"), 1446)


@pytest.fixture(autouse=True)
def net() -> Iterator[None]:
    if os.geteuid() != 0:
        pytest.skip("needs root for network namespaces")
    with namespace(f"igwl-{secrets.token_hex(3)}"):
        ip("link set lo up")
        for name, address in (("wan0", "10.0.0.1/24"), ("lan0", "192.168.1.1/24")):
            ip(f"link add {name} type veth peer name {name}p")
            ip(f"link set {name}p up")
            ip(f"link set {name} up")
            ip(f"addr add {address} dev {name}")
        ip("route add default via 10.0.0.2 dev wan0")
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        yield


async def driver(route: AsyncIPRoute) -> LeadDriver:
    kernel, engine = await raise_uplink(route)
    made = LeadDriver(route, kernel_index=kernel.index, engine_name=ENGINE_END, engine_mac=engine.link.mac)
    await made.prepare()
    return made


def way(*words: str) -> Any:
    """What `ip route get` says: the device, and the source address if it chose one."""
    done = subprocess.run(["ip", "-j", "route", "get", *words], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)[0]


def shown(*words: str) -> str:
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=False).stdout


def leads_by(device: str, *words: str) -> bool:
    return bool(way(*words)["dev"] == device)


async def test_plaintext_of_the_selector_is_led_and_nothing_else() -> None:
    async with AsyncIPRoute() as route:
        made = await driver(route)
        assert leads_by("wan0", "192.168.2.9", "from", "192.168.1.9", "iif", "lan0")
        await made.create(LEAD)
        assert leads_by(KERNEL_END, "192.168.2.9", "from", "192.168.1.9", "iif", "lan0"), "forwarded"
        assert leads_by(KERNEL_END, "192.168.2.9", "from", "192.168.1.1"), "local, bound to an address"
        unbound = way("192.168.2.9")
        assert (unbound["dev"], unbound["prefsrc"]) == (KERNEL_END, "192.168.1.1"), "local, charon's source address"
        assert leads_by("wan0", "192.168.2.9", "from", "10.0.0.1"), "a source outside the selector"
        assert leads_by("wan0", "192.168.3.9", "from", "192.168.1.1"), "a destination outside the selector"


async def test_what_the_engine_did_not_take_goes_the_kernels_way() -> None:
    async with AsyncIPRoute() as route:
        await (await driver(route)).create(LEAD)
        assert leads_by("wan0", "192.168.2.9", "from", "192.168.1.9", "iif", ENGINE_END)


async def test_without_carrier_the_route_is_no_black_hole() -> None:
    async with AsyncIPRoute() as route:
        await (await driver(route)).create(LEAD)
        ip(f"link set {ENGINE_END} down")
        deadline = asyncio.get_running_loop().time() + 10
        while not leads_by("wan0", "192.168.2.9", "from", "192.168.1.9", "iif", "lan0"):
            assert asyncio.get_running_loop().time() < deadline
            await asyncio.sleep(0)


async def test_retrieve_update_delete() -> None:
    other = Lead(Selector(ip_network("192.168.5.0/24"), SELECTOR.destination), LEAD.source_hint, 1446)
    async with AsyncIPRoute() as route:
        made = await driver(route)
        await made.create(LEAD)
        await made.create(other)
        assert await made.retrieve() == {LEAD.key: LEAD, other.key: other}
        smaller = Lead(SELECTOR, None, 1400)
        await made.update(smaller)
        assert (await made.retrieve())[SELECTOR] == smaller
        assert leads_by("wan0", "192.168.2.9"), "without charon's source an unbound packet is left to the kernel"
        await made.update(LEAD)
        assert leads_by(KERNEL_END, "192.168.2.9")
        await made.delete(smaller)
        assert await made.retrieve() == {other.key: other}, "the shared route stays for the other selector"
        await made.delete(other)
        await made.delete(other)
        assert await made.retrieve() == {}


HALF = {
    "route": "route del 192.168.2.0/24 table 21700",
    "rule of unbound packets": "rule del pref 199 from 0.0.0.0/32 to 192.168.2.0/24 iif lo table 21700",
}


@pytest.mark.parametrize("missing", HALF)
async def test_a_half_made_lead_is_seen_and_made_whole(missing: str) -> None:
    async with AsyncIPRoute() as route:
        made = await driver(route)
        await made.create(LEAD)
        ip(HALF[missing])
        assert (await made.retrieve())[SELECTOR] != LEAD
        await made.create(LEAD)
        assert await made.retrieve() == {SELECTOR: LEAD}
        await made.create(LEAD)
        assert await made.retrieve() == {SELECTOR: LEAD}, "once more is no error"


async def test_leftovers_are_swept_and_what_is_not_ours_stays() -> None:
    foreign = {
        "rule": [
            "pref 199 from 192.168.1.0/24 to 192.168.2.0/24 table 100",
            "pref 169 from 192.168.1.0/24 to 192.168.2.0/24 table 21700",
            "pref 220 from all table 220",
        ],
        "route": ["192.168.2.0/24 via 10.0.0.2 dev wan0 table 100", "192.168.2.0/24 via 10.0.0.2 dev wan0 table 220"],
    }
    async with AsyncIPRoute() as route:
        made = await driver(route)
        for kind, facts in foreign.items():
            for fact in facts:
                ip(f"{kind} add {fact}")
        before = [shown("rule", "show"), shown("route", "show", "table", "100"), shown("route", "show", "table", "220")]
        await made.create(LEAD)
        ip("rule del pref 199 from 192.168.1.0/24 to 192.168.2.0/24 table 21700")  # what a crash left: the rest of it
        assert await made.retrieve() == {}
        assert shown("route", "show", "table", "21700") == ""
        await made.create(LEAD)
        await made.delete(LEAD)
        after = [shown("rule", "show"), shown("route", "show", "table", "100"), shown("route", "show", "table", "220")]
        assert after == before


async def test_leads_with_any_address_do_not_meet_others() -> None:
    """The kernel takes "any" for "whichever" when it looks for a rule: to delete it, or to say that it exists."""
    anywhere = ip_network("0.0.0.0/0")
    pairs = [(s, d) for s in (SELECTOR.source, anywhere) for d in (SELECTOR.destination, anywhere)]
    leads = {Selector(*pair): Lead(Selector(*pair), LEAD.source_hint, 1446) for pair in pairs}
    async with AsyncIPRoute() as route:
        made = await driver(route)
        bare = shown("rule", "show")
        for victim in leads.values():
            for lead in leads.values():
                await made.create(lead)
            assert await made.retrieve() == leads
            await made.delete(victim)
            assert await made.retrieve() == {key: lead for key, lead in leads.items() if lead != victim}
        for lead in leads.values():
            await made.delete(lead)
        assert shown("rule", "show") == bare
        assert shown("route", "show", "table", "21700") == ""


PORTS = PortMatch(), PortMatch(5000, 0xFFFF), PortMatch(0x1400, 0xFF00)
ELSEWHERE = replace(SELECTOR, source=ip_network("192.168.99.0/24"))
KINDS = [
    *(
        replace(one, protocol=17, source_port=s, destination_port=d)
        for one in (SELECTOR, ELSEWHERE)
        for s in PORTS
        for d in PORTS
    ),
    replace(SELECTOR, protocol=6),
    replace(SELECTOR, protocol=6, destination_port=PORTS[1]),
    SELECTOR,
    ELSEWHERE,
    Selector(ip_network("0.0.0.0/0"), SELECTOR.destination),
    Selector(ip_network("0.0.0.0/0"), SELECTOR.destination, 17),
    Selector(ip_network("0.0.0.0/0"), ip_network("0.0.0.0/0"), 17, PORTS[1]),
]


async def test_leads_and_exemptions_of_all_kinds_do_not_meet_each_other() -> None:
    """Of every kind one is deleted while all the others are in place, and nothing else goes with it."""
    objects: dict[Selector | ExemptKey, Lead | Exempt] = {key: Lead(key, LEAD.source_hint, 1446) for key in KINDS}
    exempted = [Exempt(ExemptKey(key), unbound=True) for key in KINDS]
    objects |= {one.key: one for one in exempted}
    async with AsyncIPRoute() as route:
        made = await driver(route)
        bare = shown("rule", "show")
        for one in objects.values():
            await made.create(one)
        assert await made.retrieve() == objects
        for victim in objects.values():
            await made.delete(victim)
            assert await made.retrieve() == {key: one for key, one in objects.items() if one != victim}
            await made.create(victim)
        assert await made.retrieve() == objects
        for one in objects.values():
            await made.delete(one)
        assert shown("rule", "show") == bare


async def test_a_lead_for_a_port_leads_no_other() -> None:
    selector = replace(SELECTOR, protocol=17, destination_port=PORTS[1])
    forwarded = ("192.168.2.9", "from", "192.168.1.7", "iif", "lan0", "ipproto")
    async with AsyncIPRoute() as route:
        made = await driver(route)
        await made.create(Lead(selector, LEAD.source_hint, 1446))
        assert way(*forwarded, "udp", "sport", "7", "dport", "5000")["dev"] == KERNEL_END
        assert way(*forwarded, "udp", "sport", "7", "dport", "5001")["dev"] == "wan0"
        assert way(*forwarded, "tcp", "sport", "7", "dport", "5000")["dev"] == "wan0"
        own = way("192.168.2.9", "ipproto", "udp", "dport", "5000")
        assert (own["dev"], own["prefsrc"]) == (KERNEL_END, "192.168.1.1"), "what has no source gets charon's"
        assert way("192.168.2.9", "ipproto", "udp", "dport", "5001")["dev"] == "wan0"


def led_mtu(*words: str) -> int:
    """What a packet may have on its way to the engine, the device's own if the route says nothing."""
    return int(way("192.168.2.9", "from", "192.168.1.7", "iif", "lan0", *words)["metrics"][0]["mtu"])


async def test_what_is_led_by_ports_may_be_longer_than_the_rest_of_its_destination() -> None:
    """It must not be fragmented on the way: fragments have no ports."""
    selector = replace(SELECTOR, protocol=17, destination_port=PORTS[1])
    by_port = Lead(selector, LEAD.source_hint, 1500)
    port = ("ipproto", "udp", "sport", "7", "dport", "5000")
    async with AsyncIPRoute() as route:
        made = await driver(route)
        for lead in (LEAD, by_port):
            await made.create(lead)
        assert await made.retrieve() == {SELECTOR: LEAD, selector: by_port}
        assert led_mtu("ipproto", "tcp", "sport", "7", "dport", "5000") == LEAD.mtu
        await made.delete(LEAD)
        assert led_mtu(*port) == by_port.mtu
        await made.create(LEAD)
        await made.delete(by_port)
        assert led_mtu(*port) == LEAD.mtu
        assert shown("route", "show", "table", "21701") == ""


async def test_what_is_exempted_goes_the_way_of_xfrm() -> None:
    part = Selector(ip_network("192.168.1.0/28"), SELECTOR.destination, 6)
    forwarded = ("192.168.2.9", "from", "192.168.1.7", "iif", "lan0", "ipproto")
    async with AsyncIPRoute() as route:
        made = await driver(route)
        await made.create(Exempt(ExemptKey(part), unbound=True))
        await made.create(LEAD)
        assert way(*forwarded, "tcp", "sport", "7", "dport", "80")["dev"] == "wan0"
        assert way(*forwarded, "udp", "sport", "7", "dport", "80")["dev"] == KERNEL_END
        assert way("192.168.2.9", "from", "192.168.1.99", "iif", "lan0", "ipproto", "tcp")["dev"] == KERNEL_END
        assert way("192.168.2.9", "ipproto", "tcp", "dport", "80")["dev"] == "wan0"
        assert way("192.168.2.9", "ipproto", "udp", "dport", "80")["dev"] == KERNEL_END
        await made.update(Exempt(ExemptKey(part), unbound=False))
        assert await made.retrieve() == {
            SELECTOR: LEAD,
            ExemptKey(part): Exempt(ExemptKey(part), unbound=False),
        }
        assert way("192.168.2.9", "ipproto", "tcp", "dport", "80")["dev"] == KERNEL_END


async def test_the_rule_that_exemptions_share_goes_with_the_last_that_needs_it() -> None:
    parts = [Selector(ip_network(source), SELECTOR.destination) for source in ("192.168.1.0/28", "192.168.1.16/28")]
    first, second = (Exempt(ExemptKey(part), unbound=True) for part in parts)
    async with AsyncIPRoute() as route:
        made = await driver(route)
        await made.create(LEAD)
        await made.create(first)
        await made.create(second)
        await made.update(Exempt(first.key, unbound=False))
        assert way("192.168.2.9")["dev"] == "wan0", "the second one needs it"
        await made.delete(second)
        assert await made.retrieve() == {SELECTOR: LEAD, first.key: Exempt(first.key, unbound=False)}
        assert way("192.168.2.9")["dev"] == KERNEL_END


async def test_a_second_life_adopts_and_removal_leaves_nothing() -> None:
    async with AsyncIPRoute() as route:
        await (await driver(route)).create(LEAD)
        reborn = await driver(route)
        assert await reborn.retrieve() == {SELECTOR: LEAD}
        await reborn.remove()
        await remove_uplink(route)
        await remove_uplink(route)
        assert [rule.get("priority") async for rule in await route.get_rules(family=2)] == [None, 32766, 32767]
        assert KERNEL_END not in await KernelView(route).interfaces()


async def test_of_equally_long_prefixes_charon_takes_any_other_way_to_a_peer() -> None:
    """It looks at all tables but its own, and of the same length at the one with the smallest metric (``get_route`` of
    its kernel-netlink plugin): a lead for everything must not be the way to other peers.
    """
    async with AsyncIPRoute() as route:
        made = await driver(route)
        everything = replace(LEAD, key=Selector(SELECTOR.source, ip_network("0.0.0.0/0")), source_hint=None)
        await made.create(everything)
        ways = json.loads(shown("-j", "route", "show", "table", "all", "default"))
        assert {one["dev"]: one.get("metric", 0) for one in ways} == {"wan0": 0, KERNEL_END: (1 << 32) - 1}
        assert await made.retrieve() == {everything.key: everything}
        await made.update(replace(everything, mtu=1300))
        assert len(json.loads(shown("-j", "route", "show", "table", "all", "default"))) == 2
        await made.delete(everything)
        assert len(json.loads(shown("-j", "route", "show", "table", "all", "default"))) == 1
