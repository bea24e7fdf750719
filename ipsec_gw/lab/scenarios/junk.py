"""Junk at the WAN, 100,000 packets per second of it, while a permitted TCP stream goes on."""

from __future__ import annotations

import asyncio
import hashlib
import random
import socket
from collections import Counter
from contextlib import closing, suppress
from dataclasses import dataclass

from ipsec_gw.lab import edge
from ipsec_gw.lab.capture import Capture
from ipsec_gw.lab.context import Lab
from ipsec_gw.lab.flood import Flooded, Sender, flooding
from ipsec_gw.lab.gateway import GatewayUnderTest
from ipsec_gw.lab.junk import SOURCES, Aim, Junk, templates, verdicts
from ipsec_gw.lab.netns import set_sysctl
from ipsec_gw.lab.packets import packet_of
from ipsec_gw.lab.scenarios.border import lost_on_the_wan, start_gateway, wan_link, watched
from ipsec_gw.lab.scenarios.rules import INTERNAL, OPEN, PUBLISHED, plain_rules
from ipsec_gw.lab.talk import endpoint
from ipsec_gw.lab.topology import HOST, WAN, Role
from ipsec_gw.lab.traffic import Host, TrafficError

RATE, SECONDS = 100_000, 5
"""Packets per second that are asked for, and for how long: a slower machine takes longer for as many."""

PACKETS = RATE * SECONDS
TEMPLATES, SEED = 4096, 20_240
IKE_PORTS = (500, 4500)
LONGEST = 120.0
"""Seconds for all of it."""

BLOCK, PAUSE = 16_384, 0.01
"""The stream's pace: bytes, and seconds between them."""


@dataclass(frozen=True, slots=True)
class Streamed:
    """What a stream sent, and what came back."""

    sent: int
    back: int
    same: bool


async def run(lab: Lab) -> None:
    """Play it."""
    # Its multicast would be counted among the junk.
    set_sysctl(lab.topology.namespace(Role.WAN), f"net/ipv6/conf/{edge.TO_GATEWAY}/disable_ipv6", "1")
    gateway = await start_gateway(lab, plain_rules(lab.topology))
    junk = templates(_aim(lab), TEMPLATES, SEED)
    lab.note(f"seed {SEED}: {TEMPLATES} templates of junk")
    inside_end = lab.capture(Role.SWITCH, edge.TO_LAN)
    watched(lab, inside_end)
    before, lost_before = Counter((await gateway.status()).verdicts), lost_on_the_wan(lab)
    with lab.step(f"{PACKETS:,} packets of junk at {RATE:,} per second beside a TCP stream"):
        flooded, streamed = await _flood_and_stream(lab, junk)
    await _judge_stream(lab, streamed)
    after, lost = Counter((await gateway.status()).verdicts), lost_on_the_wan(lab) - lost_before
    lab.note(f"{flooded.rate:,.0f} packets of junk per second for {flooded.seconds:.1f} s, {lost:,} lost at the veth")
    lab.check("the junk is offered", flooded.sent >= PACKETS, f"{PACKETS:,} packets or more", f"{flooded.sent:,}")
    _judge_verdicts(lab, verdicts(junk, flooded.sent), after - before, lost)
    await _judge_traces(lab, gateway, inside_end)
    with lab.step("ipsec-gw off"):
        await gateway.off()


def _aim(lab: Lab) -> Aim:
    topology = lab.topology
    return Aim(
        link=wan_link(lab),
        own=topology.address(Role.GATEWAY_A, WAN),
        behind=edge.BEHIND_LAN[0],
        spared=frozenset((*IKE_PORTS, INTERNAL, PUBLISHED)),
    )


async def _flood_and_stream(lab: Lab, junk: tuple[Junk, ...]) -> tuple[Flooded, Streamed]:
    over = asyncio.Event()
    sender = Sender(lab.topology.namespace(Role.WAN), edge.TO_GATEWAY, [one.frame for one in junk])
    streaming = asyncio.create_task(_stream(lab.host(Role.CLIENT, HOST), lab.host(Role.SERVER, HOST), over))
    try:
        async with asyncio.timeout(LONGEST), flooding(sender, PACKETS, RATE) as sending:
            flooded = await asyncio.shield(sending)
            over.set()
            return flooded, await streaming
    except TimeoutError:
        raise TrafficError(f"junk and stream did not end within {LONGEST:.0f} s") from None
    finally:
        streaming.cancel()
        await asyncio.gather(streaming, return_exceptions=True)


async def _stream(client: Host, server: Host, over: asyncio.Event) -> Streamed:
    """Seeded bytes there and back, block by block, until it is over. Raises TrafficError."""
    loop = asyncio.get_running_loop()
    with (
        closing(endpoint(server, socket.SOCK_STREAM, OPEN)) as listening,
        closing(endpoint(client, socket.SOCK_STREAM)) as caller,
    ):
        listening.listen()
        try:
            await loop.sock_connect(caller, (str(server.address), OPEN))
            answering, _ = await loop.sock_accept(listening)
            with answering:
                (sent, there), (back, here), _ = await asyncio.gather(
                    _talk(caller, over), _listen(caller), _echo(answering)
                )
        except OSError as error:
            raise TrafficError(f"TCP {client} -> {server} beside the junk: {error}") from error
    return Streamed(sent, back, there == here)


async def _talk(caller: socket.socket, over: asyncio.Event) -> tuple[int, str]:
    chance, digest, sent = random.Random(SEED), hashlib.sha256(), 0  # noqa: S311 - repeatable, not secret
    while True:
        block = chance.randbytes(BLOCK)
        await asyncio.get_running_loop().sock_sendall(caller, block)
        digest.update(block)
        sent += len(block)
        with suppress(TimeoutError):
            await asyncio.wait_for(over.wait(), PAUSE)
        if over.is_set():
            caller.shutdown(socket.SHUT_WR)
            return sent, digest.hexdigest()


async def _listen(caller: socket.socket) -> tuple[int, str]:
    digest, back = hashlib.sha256(), 0
    while block := await asyncio.get_running_loop().sock_recv(caller, BLOCK):
        digest.update(block)
        back += len(block)
    return back, digest.hexdigest()


async def _echo(answering: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    while block := await loop.sock_recv(answering, BLOCK):
        await loop.sock_sendall(answering, block)
    answering.shutdown(socket.SHUT_WR)


async def _judge_stream(lab: Lab, streamed: Streamed) -> None:
    lab.check(
        "the permitted TCP stream comes through",
        streamed.same and streamed.sent == streamed.back > 0,
        "every byte there and back",
        "every byte there and back" if streamed.same else f"{streamed.back:,} of {streamed.sent:,} bytes",
    )
    lab.note(f"TCP stream: {streamed.sent:,} bytes there, {streamed.back:,} back")


def _judge_verdicts(lab: Lab, wanted: Counter[str], counted: Counter[str], lost: int) -> None:
    """Each verdict counts what was sent for it. What was lost before XDP is missing in some of them."""
    for verdict, sent in sorted(wanted.items()):
        found = counted[verdict]
        ok = sent - lost <= found <= sent
        lab.check(
            f"junk is accounted to {verdict}", ok, f"{sent:,}" + (f", {lost:,} lost" if lost else ""), f"{found:,}"
        )
    total, found = sum(wanted.values()), sum(counted[verdict] for verdict in wanted)
    ok = total - lost <= found <= total
    expected = f"{total:,}" + (f", {lost:,} lost before" if lost else "")
    lab.check("all junk is accounted to drop reasons", ok, expected, f"{found:,}")


async def _judge_traces(lab: Lab, gateway: GatewayUnderTest, inside_end: Capture) -> None:
    sessions = await gateway.sessions("--prefix", str(SOURCES), "--limit", "1")
    lab.check("junk leaves no session", not sessions, "0 sessions", f"{len(sessions)} sessions")
    inside_end.drain()
    packets = (packet_of(frame) for frame in inside_end.frames if not frame.outgoing)
    through = sum(1 for packet in packets if packet is not None and packet.source in SOURCES)
    lab.check("no junk reaches the LAN", not through, "0 packets", f"{through} packets")
    lost = inside_end.lost()
    lab.check("the captures are complete", lost == 0, "0 frames lost", lost)
