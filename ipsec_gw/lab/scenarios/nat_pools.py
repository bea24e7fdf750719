"""Pools of source NAT that VPP translates with: always, at times, and when it has died (three scenarios).

Whose a flow is shows in the address that the server sees: a pool has addresses of VPP's and of XDP's.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from ipaddress import IPv4Address, ip_address
from random import Random
from typing import Any

from ipsec_gw.lab import edge
from ipsec_gw.lab.context import Lab
from ipsec_gw.lab.crowd import Met, crowd
from ipsec_gw.lab.path_mtu import discovered
from ipsec_gw.lab.scenarios.border import Story, set_up
from ipsec_gw.lab.scenarios.conversations import SIZES, TCP_BYTES, answers_ping, finds_mtu, judged, refused
from ipsec_gw.lab.scenarios.edge_rules import CLOSED, NEIGHBOURS, PUBLISHED, hairpin_rules, pool_rules
from ipsec_gw.lab.scenarios.rules import OPEN
from ipsec_gw.lab.talk import BLOCK, Attempt, endpoint, tcp, udp
from ipsec_gw.lab.topology import HOST, Role
from ipsec_gw.lab.traffic import Host, TrafficError, until

OF_VPP = frozenset(list(edge.POOL)[:-1])
OF_XDP = frozenset(list(edge.POOL)[-1:])
"""VPP has the first addresses of a pool, XDP the last eighth, one at least."""
OF_VPP_INSIDE = frozenset(list(NEIGHBOURS)[:-1])
WHOSE = {"vpp": OF_VPP, "xdp": OF_XDP}

FRAGMENTED = (2000, 4000)
CROWDED, FLOWS, SEED = 7310, 2000, 44
LASTING, SURGING = 7320, 7330
PART = 20_000
"""Bytes that a lasting stream sends at a time."""

PATIENCE = 60.0
ANSWER_SECONDS = 2.0
AWAY = "translator-away"
SURGE = 'engine = "auto"\npromote_flows = 200\ndemote_flows = 100\ndwell = 3'


@dataclass(frozen=True, slots=True)
class Ends:
    """Who talks."""

    client: Host
    inner: Host
    server: Host


def _ends(lab: Lab) -> Ends:
    return Ends(lab.host(Role.CLIENT, HOST), lab.host(Role.INNER, HOST), lab.host(Role.SERVER, HOST))


async def run_pool(lab: Lab) -> None:
    """Play `nat-pool`."""
    ends = _ends(lab)
    story = await _begin(lab, 'engine = "vpp"', "VPP", hairpin_rules(ends.inner.address))
    with lab.step("path MTU discovery"):
        discovery = discovered(ends.client, (ends.server.address, OPEN), ends.server)
        await finds_mtu(lab, "path MTU: the client learns it through VPP", edge.PATH_MTU, discovery)
    await _conversations(lab, ends)
    await _hairpin(lab, ends)
    await _errors(story, ends)
    await _all_at_once(story, ends)
    await _end(story)


async def run_failover(lab: Lab) -> None:
    """Play `nat-failover`."""
    story, ends = await _begin(lab, 'engine = "vpp"', "VPP"), _ends(lab)
    with ExitStack() as flows:
        lost = await _lasting(lab, flows, "before VPP dies", "vpp", ends, 1)
        with lab.step("VPP dies"):
            await _kill_vpp(story)
            begun = time.monotonic()
            await _nat_when(story, lambda nat: nat["state"] != "VPP", "XDP takes over")
            lab.note(f"new flows were XDP's {time.monotonic() - begun:.2f} s after VPP's death")
        kept = await _lasting(lab, flows, "while VPP is away", "xdp", ends, 2)
        before = (await story.gateway.status()).verdicts.get(AWAY, 0)
        silent = [str(flow) for flow in lost if await flow.is_silent()]
        away = (await story.gateway.status()).verdicts.get(AWAY, 0) - before
        ok = len(silent) == len(lost) and away > 0
        lab.check("what VPP translated is dropped and counted", ok, f"{len(lost)} flows silent", f"{silent}, {away}")
        with lab.step("VPP comes back"):
            await story.gateway.vpp_up()
            await _nat_when(story, lambda nat: nat["state"] == "VPP", "VPP translates again")
        kept += await _lasting(lab, flows, "when VPP is back", "vpp", ends, 3)
        await _go_on(lab, "flows that began while it was away, and after", kept)
    await _end(story)


async def run_auto(lab: Lab) -> None:
    """Play `nat-auto`."""
    story, ends = await _begin(lab, SURGE, ""), _ends(lab)
    with ExitStack() as flows:
        begun = await _lasting(lab, flows, "before the surge", "xdp", ends, 1)
        with lab.step("a surge"):
            seconds, opened = await _surge(ends)
            lab.note(f"new flows were VPP's {seconds:.2f} s after the surge had begun, {opened} flows later")
        begun += await _lasting(lab, flows, "in the surge", "vpp", ends, 2)
        await _go_on(lab, "flows from before and from the surge", begun)
        with lab.step("the surge is over"):
            await _nat_when(story, lambda nat: _engine(nat) == "xdp", "the pool is XDP's")
        begun += await _lasting(lab, flows, "after the surge", "xdp", ends, 3)
        await _go_on(lab, "flows from before, from the surge and from after it", begun)
    await _end(story)


async def _begin(lab: Lab, options: str, state: str, further: str = "") -> Story:
    """With a pool with these options, and further rules; its engine is to be in that state."""
    story = await set_up(lab, pool_rules(options) + further)
    await _nat_when(story, lambda nat: not state or nat["state"] == state, f"the pool is {state}'s")
    return story


async def _nat_when(story: Story, holds: Callable[[Mapping[str, Any]], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not holds(nat := await story.gateway.nat_now()):
        if time.monotonic() > end:
            raise TrafficError(f"{what}: not within {PATIENCE:.0f} s, last told: {nat}")
        await asyncio.sleep(0.1)


def _engine(nat: Mapping[str, Any]) -> str:
    return str(nat["pools"][0]["auto"]["engine"])


async def _kill_vpp(story: Story) -> None:
    process = story.gateway.vpp
    if process is None:
        raise AssertionError("no VPP runs")
    process.send(signal.SIGKILL)
    await until(lambda: not process.is_alive(), PATIENCE, "the end of VPP")


async def _conversations(lab: Lab, ends: Ends) -> None:
    called = (ends.server.address, OPEN)
    with lab.step("conversations"):
        for number, (name, host) in enumerate((("client", ends.client), ("inner host", ends.inner)), 1):
            for protocol, talk in (
                ("TCP", tcp(host, called, ends.server, OPEN, size=TCP_BYTES, seed=number)),
                ("UDP", udp(host, called, ends.server, OPEN, sizes=SIZES, seed=number)),
                ("fragments", udp(host, called, ends.server, OPEN, sizes=FRAGMENTED, seed=number)),
            ):
                expected = "the server sees an address of VPP's"
                await judged(lab, f"{name}, {protocol}", expected, talk, lambda heard: heard.peer in OF_VPP)
            await answers_ping(lab, f"{name}, ICMP", host, ends.server, number)


async def _hairpin(lab: Lab, ends: Ends) -> None:
    """Both hosts are on one LAN, and neither sees the other's own address."""
    called, expected = (PUBLISHED, OPEN), "the server sees an address of VPP's second pool"
    with lab.step("hairpin"):
        for protocol, talk in (
            ("TCP", tcp(ends.client, called, ends.inner, OPEN, size=TCP_BYTES, seed=3)),
            ("UDP", udp(ends.client, called, ends.inner, OPEN, sizes=SIZES, seed=3)),
        ):
            await judged(lab, f"hairpin, {protocol}", expected, talk, lambda heard: heard.peer in OF_VPP_INSIDE)
        await refused(lab, "hairpin: errors come back", ends.client, (PUBLISHED, CLOSED))


async def _errors(story: Story, ends: Ends) -> None:
    lab = story.lab
    with lab.step("errors"):
        await refused(lab, "errors come back: nobody listens", ends.inner, (ends.server.address, CLOSED))
        with ExitStack() as stack:
            attempts = [
                stack.enter_context(closing(Attempt(ends.server, address, OPEN))) for address in sorted(OF_VPP | OF_XDP)
            ]
            await asyncio.sleep(ANSWER_SECONDS)
            said = {str(attempt.look()) for attempt in attempts}
        silence = {"TCP silence, UDP silence"}
        lab.check("nobody gets in uncalled", said == silence, "; ".join(silence), "; ".join(said))


async def _all_at_once(story: Story, ends: Ends) -> None:
    lab, half = story.lab, FLOWS // 2
    lab.note(f"seed {SEED}: payloads of {FLOWS:,} flows")
    with lab.step(f"{FLOWS:,} flows at once"):
        called = (ends.server.address, CROWDED)
        async with crowd((ends.client, ends.inner), called, ends.server, half, SEED) as met:
            sessions = await story.gateway.sessions("--port", str(CROWDED), "--limit", str(2 * FLOWS))
        for protocol, flows in zip(("UDP", "TCP"), met, strict=True):
            _judge_flows(lab, protocol, flows, half)
        lab.check("all flows are there at once", len(sessions) == FLOWS, f"{FLOWS:,} sessions", f"{len(sessions):,}")


def _judge_flows(lab: Lab, protocol: str, flows: Met, count: int) -> None:
    name = f"{FLOWS:,} flows at once, {protocol}"
    right = f"{len(flows.seen)} flows, {flows.wrong} wrong"
    lab.check(f"{name}: every payload comes to its own end", not flows.wrong, f"{count} flows, 0 wrong", right)
    others = sum(1 for address, _ in flows.seen if ip_address(address) not in OF_VPP)
    ok = len(flows.seen) == count and not flows.twice and not others
    found = f"{flows.twice} twice, {others} of other addresses"
    lab.check(f"{name}: no translated port twice", ok, "0 twice, all of VPP's addresses", found)


class Lasting:
    """A flow of UDP or TCP that stays; each part that is sent is compared with what comes."""

    def __init__(self, near: socket.socket, far: socket.socket, peer: tuple[str, int], seed: int) -> None:
        self._near, self._far, self._peer = near, far, peer
        self._random = Random(seed)  # noqa: S311 - repeatable, not secret

    @property
    def address(self) -> IPv4Address:
        """What the server took it for."""
        return IPv4Address(self._peer[0])

    def __str__(self) -> str:
        return "TCP" if self._near.type == socket.SOCK_STREAM else "UDP"

    async def talk(self) -> bool:
        """There and back. False if something else comes, or nothing."""
        try:
            async with asyncio.timeout(PATIENCE):
                return await (self._stream() if self._near.type == socket.SOCK_STREAM else self._datagram())
        except (TimeoutError, OSError):
            return False

    async def is_silent(self) -> bool:
        """Whether nothing comes of what is sent."""
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(self._near, b"is anybody there")
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await loop.sock_recv(self._far, BLOCK)
        except TimeoutError:
            return True
        return False

    async def _stream(self) -> bool:
        loop, data = asyncio.get_running_loop(), self._random.randbytes(PART)
        for one, other in ((self._near, self._far), (self._far, self._near)):
            await loop.sock_sendall(one, data)
            got = b""
            while len(got) < len(data) and (block := await loop.sock_recv(other, BLOCK)):
                got += block
            if got != data:
                return False
        return True

    async def _datagram(self) -> bool:
        loop, data = asyncio.get_running_loop(), self._random.randbytes(800)
        await loop.sock_sendall(self._near, data)
        there, peer = await loop.sock_recvfrom(self._far, BLOCK)
        await loop.sock_sendto(self._far, there[::-1], peer)
        return (there, peer, await loop.sock_recv(self._near, BLOCK)) == (data, self._peer, data[::-1])


async def _lasting(lab: Lab, flows: ExitStack, when: str, engine: str, ends: Ends, number: int) -> list[Lasting]:
    """A flow of TCP and one of UDP that begin now, and are to be of that engine's."""
    made = [await _open(flows, kind, ends, number) for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM)]
    for flow in made:
        right = flow.address in WHOSE[engine] and await flow.talk()
        lab.check(f"{when}: a new flow, {flow}", right, f"of {engine}, payloads as sent", flow.address)
    return made


async def _open(flows: ExitStack, kind: socket.SocketKind, ends: Ends, number: int) -> Lasting:
    loop, port = asyncio.get_running_loop(), LASTING + number
    near = flows.enter_context(closing(endpoint(ends.client, kind)))
    far = flows.enter_context(closing(endpoint(ends.server, kind, port)))
    async with asyncio.timeout(PATIENCE):
        if kind == socket.SOCK_STREAM:
            far.listen()
            await loop.sock_connect(near, (str(ends.server.address), port))
            answering, peer = await loop.sock_accept(far)
            return Lasting(near, flows.enter_context(closing(answering)), peer, number)
        near.connect((str(ends.server.address), port))
        await loop.sock_sendall(near, b"here I am")
        _, peer = await loop.sock_recvfrom(far, BLOCK)
    return Lasting(near, far, peer, number)


async def _go_on(lab: Lab, which: str, flows: Collection[Lasting]) -> None:
    right = [await flow.talk() for flow in flows]
    lab.check(f"{which}: all go on", all(right), f"{len(flows)} of {len(flows)}", f"{sum(right)} of {len(flows)}")


async def _surge(ends: Ends) -> tuple[float, int]:
    """New flows one after the other until one is VPP's: the seconds that took, and how many they were."""
    loop, begun, opened = asyncio.get_running_loop(), time.monotonic(), 0
    with closing(endpoint(ends.server, socket.SOCK_DGRAM, SURGING)) as far:
        while time.monotonic() < begun + PATIENCE:
            opened += 1
            with closing(endpoint(ends.client, socket.SOCK_DGRAM)) as near:
                near.connect((str(ends.server.address), SURGING))
                async with asyncio.timeout(PATIENCE):
                    await loop.sock_sendall(near, b"one of many")
                    _, peer = await loop.sock_recvfrom(far, BLOCK)
            if ip_address(peer[0]) in OF_VPP:
                return time.monotonic() - begun, opened
    raise TrafficError(f"new flows do not become VPP's: {opened} within {PATIENCE:.0f} s")


async def _end(story: Story) -> None:
    lab, private = story.lab, story.lab.topology.network(Role.CLIENT, HOST)
    with lab.step("look for what went untranslated"):
        packets = story.arrived(story.wan, lambda packet: packet.source.version == 4)
        leaked = [packet for packet in packets if packet.source in private or packet.destination in private]
        found = f"{len(leaked)} of {len(packets)} packets"
        lab.check("nothing untranslated is on the WAN", bool(packets) and not leaked, "0 packets", found)
        lost = story.lan.lost() + story.wan.lost()
        lab.check("the captures are complete", lost == 0, "0 frames lost", lost)
    with lab.step("ipsec-gw off"):
        await story.gateway.off()
