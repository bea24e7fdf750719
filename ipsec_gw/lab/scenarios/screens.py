"""Screens: nmap's scans, floods, and SYN cookies before real TCP clients and servers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from ipsec_gw.lab import edge
from ipsec_gw.lab.capture import IPPROTO_ICMP, IPPROTO_UDP
from ipsec_gw.lab.context import Lab
from ipsec_gw.lab.flood import Flooded, Sender, flooding
from ipsec_gw.lab.floods import datagrams, echoes, from_nobody, syns
from ipsec_gw.lab.junk import SOURCES, SOURCES6
from ipsec_gw.lab.packets import Packet, is_syn
from ipsec_gw.lab.scenarios.border import start_gateway, wan_link, watched
from ipsec_gw.lab.scenarios.edge_rules import CLOSED, screens_rules
from ipsec_gw.lab.scenarios.rules import OPEN
from ipsec_gw.lab.scenarios.scans import NOTHING, scans
from ipsec_gw.lab.scenarios.screened import SERVED, Reading, Story, callers_of, judge_screen
from ipsec_gw.lab.streams import TcpStream, serving
from ipsec_gw.lab.topology import HOST, Role
from ipsec_gw.lab.traffic import TrafficError, until

ALLOWED_SYNS, ALLOWED_OTHERS, WINDOW = 20, 50, 1
FLOODS = f"""\
syn_flood = {ALLOWED_SYNS}
syn_cookie = true
udp_flood = {ALLOWED_OTHERS}
icmp_flood = {ALLOWED_OTHERS}
window = {WINDOW}
"""
BARE = f"syn_flood = {ALLOWED_SYNS}\nwindow = {WINDOW}\n"

RATE, MOST = 10_000, 1_200_000
"""Packets per second of a flood, and how many it ends after by itself."""

FEWEST, ENOUGH = 2000, 20_000
"""Packets of a flood that a screen has counted before clients call, and before it is over."""

TEMPLATES, SEED = 4096, 4987
IN_A_FLOOD, AFTER_IT = 8, 3
"""Clients of each family."""

SECONDS = 60.0
"""For a screen to count :data:`ENOUGH`: a slow machine sends less per second."""

PAUSE, TRIES = 0.1, 20
"""Seconds between clients that find out whether a flood's last window has ended, and how many there are: more than a
window altogether.
"""


async def run(lab: Lab) -> None:
    """Play it."""
    lan, far = lab.capture(Role.SWITCH, edge.TO_LAN), lab.capture(Role.SERVER, HOST)
    captures = watched(lab, lan, far)
    gateway = await start_gateway(lab, screens_rules(NOTHING, syn_check=False))
    called = {4: lab.host(Role.CLIENT, HOST), 6: lab.host6(Role.CLIENT, HOST)}
    stream = TcpStream(lab.host(Role.SERVER, HOST), called[4], port=OPEN, seed=SEED)
    story = Story(lab, gateway, lan, far, callers_of(lab), called, stream)
    streaming = asyncio.create_task(stream.run())
    try:
        async with serving(called[4], SERVED), serving(called[6], SERVED):
            await scans(story)
            await _syn_flood(story)
            await _after_the_flood(story)
            await _other_floods(story)
            await _without_cookies(story)
        await _judge_stream(lab, stream, streaming)
    finally:
        streaming.cancel()
        await asyncio.gather(streaming, return_exceptions=True)
    lost = captures.lost()
    lab.check("the captures are complete", lost == 0, "0 frames lost", lost)
    with lab.step("ipsec-gw off"):
        await gateway.off()


async def _judge_stream(lab: Lab, stream: TcpStream, streaming: asyncio.Task[None]) -> None:
    """Its source is the one that scans, and its session is older than all screens."""
    stream.finish()
    name, expected = "a TCP session from before goes on through all of it", "every block comes back unchanged"
    try:
        await streaming
    except TrafficError as error:
        lab.check(name, False, expected, error)
    else:
        lab.check(name, stream.blocks > 0, expected, f"{stream.blocks} blocks, the slowest took {stream.longest:.1f} s")


@dataclass(frozen=True, slots=True)
class Met:
    """A flood and what came of it; ``through`` are its packets that entered the LAN."""

    flooded: Flooded
    between: Reading
    through: int


async def _flood(
    story: Story,
    frames: list[bytes],
    verdict: str,
    of_flood: Callable[[Packet], bool],
    meanwhile: Callable[[], Awaitable[None]],
) -> Met:
    """Flood the WAN until the verdict has been counted often enough; something else happens once that has begun."""
    before, through = await story.reading(), story.count(story.lan, of_flood, outgoing=False)

    async def counted(packets: int) -> None:
        wanted = before.verdicts[verdict] + packets
        await story.gateway.status_when(
            lambda status: status.verdicts.get(verdict, 0) >= wanted, SECONDS, f"{packets} packets of {verdict}"
        )

    sender = Sender(story.lab.topology.namespace(Role.WAN), edge.TO_GATEWAY, frames)
    async with flooding(sender, MOST, RATE) as sending:
        await counted(FEWEST)
        await meanwhile()
        await counted(ENOUGH)
    flooded = sending.result()
    story.lab.note(f"{verdict}: {flooded.rate:,.0f} packets per second for {flooded.seconds:.1f} s")
    between = (await story.reading()).since(before)
    return Met(flooded, between, story.count(story.lan, of_flood, outgoing=False) - through)


def _forged_syn(packet: Packet) -> bool:
    return is_syn(packet, SERVED) and from_nobody(packet.source)


def _syns(story: Story) -> list[bytes]:
    victims = [host.address for host in story.called.values()]
    return syns(wan_link(story.lab), victims, SERVED, TEMPLATES, SEED)


def _judge_allowed(story: Story, name: str, met: Met, allowed: int) -> None:
    windows = int(met.flooded.seconds / WINDOW) + 2
    most = windows * allowed
    ok, expected = 0 < met.through <= most, f"some, {most} at most in {windows} windows"
    story.lab.check(f"{name}: no more than allowed reaches the LAN", ok, expected, met.through)


def _judge_counted(story: Story, name: str, verdict: str, met: Met, wanted: int) -> None:
    """All of them but what was lost before, by the verdict and by the screen's own counter."""
    lost, found = met.between.lost, met.between.verdicts[verdict]
    expected = f"{wanted:,}" + (f", {lost:,} lost before" if lost else "")
    story.lab.check(name, wanted - lost <= found <= wanted, expected, f"{found:,}")
    judge_screen(story, name.partition(":")[0], verdict, met.between, ENOUGH)


async def _syn_flood(story: Story) -> None:
    lab = story.lab
    await story.gateway.reload(screens_rules(FLOODS))
    lab.note(f"seed {SEED}: {TEMPLATES} templates of each flood")
    resets = list[int]()

    async def clients() -> None:
        for version in (4, 6) * IN_A_FLOOD:
            caller = story.fresh(version)
            resets.append(await story.call(caller) + await story.call(caller))

    with lab.step(f"a flood of SYNs, {RATE:,} per second, and {2 * IN_A_FLOOD} TCP clients"):
        met = await _flood(story, _syns(story), "screen-syn-cookie", _forged_syn, clients)
    name = "flood of SYNs"
    expected = "all data of two calls come back, over three connections at most"
    found = f"{len(resets)} clients, reset {max(resets)} times at most"
    lab.check(f"{name}: clients of both families are served", max(resets) <= 1, expected, found)
    _judge_allowed(story, name, met, ALLOWED_SYNS)
    await _judge_cookies(story, name, met, sum(resets))


async def _judge_cookies(story: Story, name: str, met: Met, resets: int) -> None:
    lab = story.lab

    def real(packet: Packet) -> bool:
        return is_syn(packet, SERVED) and not from_nobody(packet.source)

    held = story.count(story.far, real, outgoing=True) - story.count(story.lan, real, outgoing=False)
    lab.note(f"SYNs of clients that were answered with cookies: {held}")
    what = f"{name}: all that are too many are answered with cookies"
    _judge_counted(story, what, "screen-syn-cookie", met, met.flooded.sent - met.through + held)
    valid, lost = met.between.verdicts["screen-cookie-valid"], met.between.lost
    ok = 0 < resets <= valid <= resets + lost
    lab.check(f"{name}: every client that was reset had acknowledged a cookie", ok, str(resets), valid)
    lists = [await story.gateway.sessions("--prefix", str(one), "--limit", "5000") for one in (SOURCES, SOURCES6)]
    sessions = sum(map(len, lists))
    lab.check(f"{name}: cookies cost no session", sessions <= met.through, f"{met.through} at most", sessions)


async def _after_the_flood(story: Story) -> None:
    lab = story.lab
    with lab.step("after the flood"):
        for _ in range(TRIES):
            if not await story.call(story.fresh(4)):
                break
            await asyncio.sleep(PAUSE)
        before = await story.reading()
        resets = [await story.call(story.fresh(version)) for version in (4, 6) * AFTER_IT]
        given = (await story.reading()).since(before).verdicts["screen-syn-cookie"]
        ok, found = not any(resets) and not given, f"{sum(resets)} resets, {given} cookies"
        lab.check("after the flood, new clients are served without cookies", ok, "0 resets, 0 cookies", found)


async def _other_floods(story: Story) -> None:
    lab, victim = story.lab, story.lab.topology.address(Role.CLIENT, HOST)
    link = wan_link(lab)
    for kind, protocol, frames in (
        ("UDP", IPPROTO_UDP, datagrams(link, victim, CLOSED, TEMPLATES, SEED)),
        ("ICMP", IPPROTO_ICMP, echoes(link, victim, TEMPLATES, SEED)),
    ):
        name, verdict, resets = f"flood of {kind}", f"screen-{kind.lower()}-flood", list[int]()

        def of_flood(packet: Packet, protocol: int = protocol) -> bool:
            return packet.protocol == protocol and from_nobody(packet.source)

        async def clients(resets: list[int] = resets) -> None:
            resets += [await story.call(story.fresh(version)) for version in (4, 6)]

        with lab.step(f"a {name}, and TCP clients"):
            met = await _flood(story, frames, verdict, of_flood, clients)
        lab.check(f"{name}: TCP clients are served at once", not any(resets), "0 resets", f"{sum(resets)} resets")
        _judge_allowed(story, name, met, ALLOWED_OTHERS)
        _judge_counted(story, f"{name}: what is too much is dropped", verdict, met, met.flooded.sent - met.through)


async def _without_cookies(story: Story) -> None:
    """What is too much is dropped, and only what was there before goes on."""
    await story.gateway.reload(screens_rules(BARE))
    blocks = story.stream.blocks

    async def stream_goes_on() -> None:
        await until(lambda: story.stream.blocks > blocks + 1, SECONDS, "the session from before goes on")

    name, verdict = "flood of SYNs without cookies", "screen-syn-flood"
    with story.lab.step(f"a {name}"):
        met = await _flood(story, _syns(story), verdict, _forged_syn, stream_goes_on)
    _judge_allowed(story, name, met, ALLOWED_SYNS)
    _judge_counted(story, f"{name}: what is too much is dropped", verdict, met, met.flooded.sent - met.through)
