"""IPv6 past XFRM on the veth pair: forwarded and own packets, decrypted ones, and everybody else's that must not."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from pyroute2 import AsyncIPRoute
from scapy.layers.inet import UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import Ether

from ipsec_gw.ike.own import OwnPolicy
from ipsec_gw.ike.xfrm import XfrmSocket
from ipsec_gw.mirror.nftables import NfTables
from ipsec_gw.model.objects import Lead, Selector
from ipsec_gw.model.snapshot import LeadLimits, PolicyDirection
from ipsec_gw.ownership.bypass import ARRIVED_MARK, TABLE, Bypass, remove_bypass
from ipsec_gw.ownership.lead import LeadDriver
from ipsec_gw.ownership.uplink import ENGINE_END, KERNEL_END, raise_uplink, remove_uplink
from tests.integration.test_lead import leads_by, shown, way
from tests.support.netns import ip, namespace

pytestmark = pytest.mark.root

SELECTOR = Selector(ip_network("fd01::/64"), ip_network("fd02::/64"))
LEAD = Lead(SELECTOR, ip_address("fd01::1"), 1430)
OTHER4 = Lead(Selector(ip_network("192.168.1.0/24"), ip_network("192.168.2.0/24")), None, 1446)
HOST_MAC = "02:00:00:00:00:09"
TEMPLATE = "tmpl src 10.0.0.1 dst 10.0.0.2 proto esp reqid 1 mode tunnel"


@pytest.fixture(autouse=True)
def net() -> Iterator[None]:
    """A gateway whose XFRM protects the selector as charon has it, in IPv4."""
    if os.geteuid() != 0:
        pytest.skip("needs root for network namespaces")
    with namespace(f"igw6-{secrets.token_hex(3)}"):
        Path("/proc/sys/net/ipv6/conf/default/disable_ipv6").write_text("0")
        Path("/proc/sys/net/ipv6/conf/default/accept_dad").write_text("0")
        forwarding("1")
        ip("link set lo up")
        for name, address in (("wan0", "10.0.0.1/24"), ("lan0", "fd01::1/64")):
            ip(f"link add {name} type veth peer name {name}p")
            Path(f"/proc/sys/net/ipv6/conf/{name}p/disable_ipv6").write_text("1")
            ip(f"link set {name}p up")
            ip(f"link set {name} up")
            ip(f"addr add {address} dev {name}{' nodad' if ':' in address else ''}")
        ip("-6 addr add 2001:db8::1/64 dev wan0 nodad")
        ip("-6 neigh add 2001:db8::2 lladdr 02:00:00:00:00:02 dev wan0 nud permanent")
        ip("-6 neigh add fd01::9 lladdr 02:00:00:00:00:09 dev lan0 nud permanent")
        ip("-6 route add default via 2001:db8::2 dev wan0")
        ip("-6 rule add pref 220 lookup 220")
        ip("-6 route add fd02::/64 via 2001:db8::2 dev wan0 src fd01::1 table 220")
        ip(f"xfrm policy add src fd01::/64 dst fd02::/64 dir out priority 1000 {TEMPLATE}")
        for direction in ("in", "fwd"):
            mirrored = "tmpl src 10.0.0.2 dst 10.0.0.1 proto esp reqid 1 mode tunnel"
            ip(f"xfrm policy add src fd02::/64 dst fd01::/64 dir {direction} priority 1000 {mirrored}")
        yield


def forwarding(value: str) -> None:
    Path("/proc/sys/net/ipv6/conf/all/forwarding").write_text(value)


class Ear:
    """Hears what arrives at an interface, or leaves by it."""

    def __init__(self, device: str) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(socket.ntohs(0x0300)))
        self._socket.bind((device, 0x0003))
        self._socket.settimeout(0.05)

    def hears(self, protocol: int, seconds: float = 2.0) -> bool:
        """Whether a packet of an IPv6 host to another one, with this next header, comes within the time."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                packet = Ether(self._socket.recv(2048))
            except TimeoutError:
                continue
            if IPv6 in packet and packet[IPv6].nh == protocol and packet[IPv6].dst.startswith("fd0"):
                return True
        return False


def say(device: str, mac: str, packet: object) -> None:
    with closing(socket.socket(socket.AF_PACKET, socket.SOCK_RAW)) as line:
        line.bind((device, 0))
        line.send(bytes(Ether(dst=mac, src=HOST_MAC) / packet))


def mac_of(device: str) -> str:
    return str(json.loads(shown("-j", "link", "show", device))[0]["address"])


async def driver(route: AsyncIPRoute) -> LeadDriver:
    kernel, engine = await raise_uplink(route)
    made = LeadDriver(route, kernel_index=kernel.index, engine_name=ENGINE_END, engine_mac=engine.link.mac)
    await made.prepare()
    return made


def bypass(kernel: XfrmSocket) -> Bypass:
    return Bypass(kernel, socket.if_nametoindex(KERNEL_END))


FORWARDED = IPv6(src="fd01::9", dst="fd02::9") / UDP(sport=1, dport=2) / b"x"


async def test_leads_of_both_families_live_side_by_side() -> None:
    async with AsyncIPRoute() as route:
        made = await driver(route)
        bare = [shown("-6", "rule"), shown("rule")]
        await made.create(LEAD)
        await made.create(OTHER4)
        assert await made.retrieve() == {LEAD.key: LEAD, OTHER4.key: OTHER4}
        assert leads_by(KERNEL_END, "fd02::9", "from", "fd01::9", "iif", "lan0"), "forwarded"
        assert leads_by(KERNEL_END, "fd02::9", "from", "fd01::1"), "local, with its source"
        assert way("fd02::9")["prefsrc"] == "fd01::1", "local without one: charon's"
        assert leads_by("wan0", "fd02::9", "from", "fd03::1", "iif", "lan0")
        assert leads_by("wan0", "fd02::9", "from", "fd01::9", "iif", ENGINE_END), "what comes back"
        assert (await (await driver(route)).retrieve()).keys() == {LEAD.key, OTHER4.key}, "a second life adopts"
        smaller = Lead(SELECTOR, None, 1300)
        await made.update(smaller)
        assert (await made.retrieve())[SELECTOR] == smaller
        for lead in (smaller, OTHER4):
            await made.delete(lead)
        assert [shown("-6", "rule"), shown("rule")] == bare
        assert shown("-6", "route", "show", "table", "21700") == ""
        await made.create(LEAD)
        await made.remove()
        await remove_uplink(route)
        assert "21700" not in shown("-6", "rule")
        assert "goto" not in shown("-6", "rule")


async def test_leads_to_any_destination_do_not_meet_others() -> None:
    anywhere = ip_network("::/0")
    pairs = [(s, d) for s in (SELECTOR.source, anywhere) for d in (SELECTOR.destination, anywhere)]
    leads = {Selector(*pair): Lead(Selector(*pair), LEAD.source_hint, 1430) for pair in pairs}
    async with AsyncIPRoute() as route:
        made = await driver(route)
        for victim in leads.values():
            for lead in leads.values():
                await made.create(lead)
            assert await made.retrieve() == leads
            await made.delete(victim)
            assert await made.retrieve() == {key: lead for key, lead in leads.items() if lead != victim}


async def test_forwarded_packets_reach_the_engine_in_clear_and_others_do_not_pass() -> None:
    async with AsyncIPRoute() as route:
        made = await driver(route)
        await made.create(LEAD)
        engine, wan, mac = Ear(ENGINE_END), Ear("wan0"), mac_of("lan0")
        say("lan0p", mac, FORWARDED)
        assert not engine.hears(17, 0.5), "XFRM takes it, and has no SA"
        with XfrmSocket() as kernel:
            assert bypass(kernel).ensure(()) == LeadLimits()
        say("lan0p", mac, FORWARDED)
        assert engine.hears(17)
        await made.delete(LEAD)
        say("lan0p", mac, FORWARDED)
        assert not wan.hears(17, 0.5), "never in clear out of the WAN, also where it came back from the engine's end"


async def test_decrypted_packets_are_taken_from_the_engine_and_from_nobody_else() -> None:
    async with AsyncIPRoute() as route:
        await driver(route)
        up, wan, lan = mac_of(KERNEL_END), mac_of("wan0"), Ear("lan0p")
        own = Ear(KERNEL_END)
        with XfrmSocket() as kernel:
            bypass(kernel).ensure(())
        # The answer is routed as the selector's own packets are: back to the engine.
        await (await driver(route)).create(LEAD)
        ask = IPv6(src="fd02::9", dst="fd01::1") / ICMPv6EchoRequest()
        pass_on = IPv6(src="fd02::9", dst="fd01::9") / UDP(sport=2, dport=1) / b"x"
        before = received()
        say("wan0p", wan, ask)
        say("wan0p", wan, pass_on)
        assert not lan.hears(17, 0.5), "clear packets from outside are not taken for decrypted ones"
        assert received() == before
        say(ENGINE_END, up, ask)
        say(ENGINE_END, up, pass_on)
        assert lan.hears(17)
        assert own.hears(58), "the question itself"
        async with asyncio.timeout(2):
            await until(lambda: received() == before + 1)


async def until(true: Callable[[], bool]) -> None:
    while not true():  # noqa: ASYNC110 - the kernel tells nobody
        await asyncio.sleep(0)


def received() -> int:
    """Echo requests that this machine took."""
    lines = Path("/proc/thread-self/net/snmp6").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Icmp6InEchos "))


async def test_it_is_put_right_again_and_nobody_elses_policies_are_touched() -> None:
    async with AsyncIPRoute() as route:
        await driver(route)
        theirs = shown("xfrm", "policy")
        with XfrmSocket() as kernel, closing(NfTables()) as tables:
            listed = kernel.policies()
            stale = OwnPolicy(PolicyDirection.OUT, ifindex=socket.if_nametoindex("lan0"))
            kernel.put_own(stale)
            made = bypass(kernel)
            made.ensure(())
            wanted = kernel.own_policies()
            assert stale not in wanted
            assert {(p.direction, p.mark) for p in wanted} == {
                (PolicyDirection.OUT, 0),
                (PolicyDirection.IN, ARRIVED_MARK),
            }
            assert kernel.policies() == listed, "ours are in no snapshot"
            for policy in wanted:
                kernel.delete_own(policy)
                kernel.delete_own(policy)
                made.ensure(())
                assert kernel.own_policies() == wanted
            tables.remove(TABLE)
            assert not tables.holds(TABLE)
            made.ensure(())
            assert tables.holds(TABLE)
            remove_bypass()
            assert kernel.own_policies() == frozenset()
            assert not tables.holds(TABLE)
        assert shown("xfrm", "policy") == theirs


MARKED = {
    "no mark at all": ((0, 0xFFFF_FFFF), False),
    "the very bit": ((0x8000_0000, 0x8000_0000), False),
    "a value": ((0x8000_0001, 0xFFFF_FFFF), True),
    "other bits": ((0, 0xFF), True),
}


@pytest.mark.parametrize("case", MARKED)
async def test_nobodys_policy_loses_a_packet_to_the_mark(case: str) -> None:
    mark, fits = MARKED[case]
    async with AsyncIPRoute() as route:
        await driver(route)
        with XfrmSocket() as kernel, closing(NfTables()) as tables:
            theirs = replace(kernel.policies()[0], direction=PolicyDirection.OUT, mark=mark)
            made = bypass(kernel)
            made.ensure(())
            assert ("would need a mark" in made.ensure((theirs,)).local6) is not fits
            assert tables.holds(TABLE) is fits
            inbound = replace(theirs, direction=PolicyDirection.IN)
            assert made.ensure((inbound,)) == LeadLimits()
            assert tables.holds(TABLE)


async def test_a_machine_that_does_not_forward_says_so() -> None:
    async with AsyncIPRoute() as route:
        await driver(route)
        with XfrmSocket() as kernel:
            forwarding("0")
            limits = bypass(kernel).ensure(())
        assert limits.all6 == ""
        assert "forwarding is off" in limits.local6


async def test_own_packets_reach_the_engine_and_come_back_to_the_kernel_without_one() -> None:
    add_states()
    ip("neigh add 10.0.0.2 lladdr 02:00:00:00:00:02 dev wan0 nud permanent")
    async with AsyncIPRoute() as route:
        made = await driver(route)
        with XfrmSocket() as kernel:
            bypass(kernel).ensure(())
        await made.create(LEAD)
        engine, wan = Ear(ENGINE_END), Ear("wan0")
        with closing(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)) as line:
            line.sendto(b"x", ("fd02::9", 2))
        assert engine.hears(17)
        assert not wan.hears(17, 0.5)
        with XfrmSocket() as kernel:
            assert max(sa.replay.oseq for sa in kernel.sas()) == 1, "no engine: it came back, and the kernel sent ESP"


def add_states() -> None:
    """The SAs of the policies, or a skip."""
    states = (("10.0.0.1", "10.0.0.2"), ("10.0.0.2", "10.0.0.1"))
    for number, (source, destination) in enumerate(states):
        words = f"ip xfrm state add src {source} dst {destination} proto esp spi {0x1000 + number} reqid 1 mode tunnel"
        aead = ["aead", "rfc4106(gcm(aes))", "0x" + "01" * 20, "128", "flag", "af-unspec"]
        done = subprocess.run([*words.split(), *aead], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"this kernel has no ESP ({done.stderr.strip()}): the lab's scenario ipv6 shows it in its VM")
