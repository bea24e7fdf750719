"""Failover: the engine is killed under traffic, again and again, and the kernel carries the same tunnel on.

Also with the daemon dead at that moment. Afterwards everything is back in the engine, with new keys.
"""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field

from ipsec_gw.lab.capture import Frame, esp_of
from ipsec_gw.lab.context import Lab
from ipsec_gw.lab.gateway import GatewayUnderTest
from ipsec_gw.lab.kernel_sas import dump
from ipsec_gw.lab.netns import inside, xfrm_errors
from ipsec_gw.lab.scenarios.site_to_site import leave
from ipsec_gw.lab.scenarios.truth import counter_truth
from ipsec_gw.lab.scenarios.tunnel import (
    FLOW_RATE,
    Story,
    bring_up,
    carry,
    packets,
    quiet,
    set_up,
    spis,
    terminate,
)
from ipsec_gw.lab.scenarios.verdicts import Evidence, Judged, few, judge_capture
from ipsec_gw.lab.scenarios.whereabouts import whereabouts
from ipsec_gw.lab.streams import TcpStream
from ipsec_gw.lab.topology import HOST, WAN, Role
from ipsec_gw.lab.traffic import UdpFlow, until
from ipsec_gw.lab.wire import count_by_sa
from ipsec_gw.model.ids import IpNetwork

KILLS = 5
TCP_PORT, TCP_SEED = 7100, 7
FLOWING = 25
"""Packets of each flow that have to arrive before it counts as flowing."""

FLOW_SECONDS, GONE_SECONDS, BACK_SECONDS = 60.0, 30.0, 240.0
SETTLE_SECONDS = 0.3
"""What was sent on a wire of this machine is there by then."""
REPLAYED_AT_ONCE, REPLAY_REST = 64, 0.01
"""Packets, and seconds until the next: a veth device has a ring of 256 (``veth.c``), and what finds it full is lost, be
it of the flows.
"""

_IKE = re.compile(r"^\S+: #(\d+), ESTABLISHED", re.MULTILINE)


@dataclass
class Death:
    """What a death cost, in packets and seconds. ``older``: recorded packets from before the last look, sent again."""

    name: str
    dying: float = 0.0
    silent: float = 0.0
    lost: list[int] = field(default_factory=list)
    late: list[int] = field(default_factory=list)
    older: int = 0

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.dying * 1000:.0f} ms from kill to empty sockets, {self.silent * 1000:.0f} ms from "
            f"there to the kernel's first packet; {sum(self.lost)} packets lost before that, {sum(self.late)} after"
        )


async def run(lab: Lab) -> None:
    """Play it."""
    story, gateway, evidence = await begin(lab)
    await kills(story, gateway, evidence, lab.options.rounds or KILLS)
    await finish(story, gateway, evidence, lossy=True)


async def kills(story: Story, gateway: GatewayUnderTest, evidence: Evidence, count: int) -> None:
    """So many deaths of the engine under UDP and TCP, and one together with the daemon."""
    lab = story.lab
    first_ike = await ike(story)
    stream = TcpStream(lab.host(Role.CLIENT, HOST), lab.host(Role.SERVER, HOST), port=TCP_PORT, seed=TCP_SEED)
    talking = asyncio.create_task(stream.run())
    lab.stack.callback(talking.cancel)
    await until(lambda: stream.blocks > 0 or talking.done(), FLOW_SECONDS, "the TCP stream")
    if gateway.engine == "vpp":
        costs = [
            await death(story, gateway, evidence, f"kill {number}", kill_vpp, gateway.vpp_up)
            for number in range(1, count + 1)
        ]
        both_again = _both_again(gateway)
        costs.append(await death(story, gateway, evidence, "kill of VPP without a daemon", kill_both, both_again))
    else:
        costs = [
            await death(story, gateway, evidence, f"kill {number} of daemon and engine", kill_daemon, gateway.run_again)
            for number in (1, 2)
        ]
    older = [cost.older for cost in costs]
    lab.check("packets from before a last look were sent again", any(older), "some", sum(older))
    stream.finish()
    await talking
    lab.check("the TCP stream survives everything", stream.blocks > 0, "unbroken", f"{stream.blocks} blocks")
    lab.note(f"the TCP stream waited {stream.longest * 1000:.0f} ms for a block at most")
    await same_ike(story, first_ike)


async def same_ike(story: Story, first: str) -> None:
    """Nothing made charon establish the IKE_SA anew."""
    now = await ike(story)
    story.lab.check("the IKE_SA is the first one still", now == first, f"#{first}", f"#{now}")


async def begin(lab: Lab, *, inactivity: int = 0, config: str = "") -> tuple[Story, GatewayUnderTest, Evidence]:
    """The tunnel under traffic, carried by the engine. A closes it after so many seconds of inactivity, 0: never.
    ``config`` is the gateway's own.
    """
    story = await set_up(lab, inactivity=inactivity, config=config)
    gateway = story.gateway
    if gateway is None:
        raise AssertionError("this is about ipsec-gw alone")
    evidence = Evidence()
    await bring_up(story, evidence)
    await carry(story, evidence)
    return story, gateway, evidence


async def finish(
    story: Story,
    gateway: GatewayUnderTest,
    evidence: Evidence,
    *,
    lossy: bool = False,
    flapped: bool = False,
    links: Collection[IpNetwork] = (),
    bridged: bool = False,
) -> None:
    """Charon's counters, the end of the tunnel, and what the captures tell. ``lossy``: packets may have been lost;
    ``flapped``, ``links`` and ``bridged`` as in :class:`Judged`.
    """
    await quiet(story)
    await counter_truth(story.lab, story.a, gateway, count_by_sa(packets(story)))
    await terminate(story, evidence)
    judged = Judged(taken_over=True, lossy=lossy, links=frozenset(links), flapped=flapped, bridged=bridged)
    judge_capture(story.lab, evidence, story.wan, story.lans, story.diaries, judged)
    await leave(story)


async def kill_vpp(gateway: GatewayUnderTest) -> None:
    """SIGKILL; returns when the process has ended: from then on its sockets are closed."""
    process = gateway.vpp
    if process is None:
        raise AssertionError("no VPP runs")
    process.send(signal.SIGKILL)
    await until(lambda: not process.is_alive(), GONE_SECONDS, "the end of VPP")


async def stop_vpp(gateway: GatewayUnderTest) -> None:
    """SIGSTOP: VPP hangs, and its sockets stay. Returns when somebody has ended it."""
    process = gateway.vpp
    if process is None:
        raise AssertionError("no VPP runs")
    process.send(signal.SIGSTOP)
    await until(lambda: not process.is_alive(), GONE_SECONDS, "the end of a VPP that hangs")


async def kill_daemon(gateway: GatewayUnderTest) -> None:
    """The daemon, and an engine that lives in it."""
    await gateway.kill()


async def kill_both(gateway: GatewayUnderTest) -> None:
    """The daemon first, so that it cannot do anything about VPP's death."""
    await gateway.kill()
    await kill_vpp(gateway)


def _both_again(gateway: GatewayUnderTest) -> Callable[[], Awaitable[None]]:
    async def again() -> None:
        await gateway.run_again()
        await gateway.vpp_up()

    return again


async def death(
    story: Story,
    gateway: GatewayUnderTest,
    evidence: Evidence,
    name: str,
    kill: Callable[[GatewayUnderTest], Awaitable[None]],
    revive: Callable[[], Awaitable[None]],
) -> Death:
    """The engine goes, the kernel carries on, the engine comes back: what was lost, replayed and sent meanwhile."""
    lab = story.lab
    with lab.step(f"{name}: traffic before"):
        await flowing(story)
    old, (older, since) = spis(story), by_last_look(story)
    cost = Death(name, older=len(older))
    with lab.step(name):
        marks, killed = [flow.next for flow in story.flows], time.time()
        await kill(gateway)
        empty, marks_empty = time.time(), [flow.next for flow in story.flows]
        # What is older than the guardian's last look is shut out for certain; and what came since.
        stale, fresh = await replay(story, older), await replay(story, since)
        await flowing(story)
    settled = [flow.next - FLOWING // 2 for flow in story.flows]
    first = first_of_the_kernel(story, old, killed)
    cost.dying, cost.silent = empty - killed, max(first - empty, 0.0)
    for flow, start, middle, end in zip(story.flows, marks, marks_empty, settled, strict=True):
        cost.lost.append(len(flow.missing(max(start - 5, 0), middle)))
        late = flow.missing(middle, end)
        cost.late.append(len(late))
        if late:
            _tell(story, flow, f"{name}: lost once the sockets were empty, of {middle} to {end}", late)
    lab.note(str(cost))
    lab.check(f"{name}: no packet is lost once the sockets are empty", not any(cost.late), "0", sum(cost.late))
    rings = round(len(story.flows) * FLOW_RATE * (cost.dying + 0.5))
    lab.check(
        f"{name}: no more is lost than was in the rings",
        sum(cost.lost) <= rings,
        f"{rings} packets at most, sent in {cost.dying * 1000:.0f} ms and half a second before",
        sum(cost.lost),
    )
    lab.check(f"{name}: nothing older than the last look is accepted again", not stale, f"0 of {len(older)}", stale)
    lab.note(f"{name}: of what came since the last look {fresh} recorded packets were accepted again")
    with lab.step(f"{name}: back in {gateway.engine}"):
        await revive()
        await gateway.status_when(lambda now: now.in_sync, BACK_SECONDS, "in sync")
        sas = await gateway.sas_when(
            lambda sas: all_new(story, old, {sa.spi for sa in sas if sa.state == gateway.engine}),
            BACK_SECONDS,
            f"new SAs, all in {gateway.engine}",
        )
        evidence.engine_took(sas)
        back = [flow.next for flow in story.flows]
        await flowing(story)
    missing = [flow.missing(*span) for flow, *span in zip(story.flows, settled, back, strict=True)]
    for flow, lost, *span in zip(story.flows, missing, settled, back, strict=True):
        if lost:
            _tell(story, flow, f"{name}: lost on the way back, of {span[0]} to {span[1]}", lost)
    lab.check(f"{name}: no packet is lost on the way back", not any(missing), "0", [len(lost) for lost in missing])
    kept, wanted = spis(story) & old, f"{_unused(story)} old SPIs at most" if story.silent else "no old SPI"
    lab.check(f"{name}: back in {gateway.engine} with new keys", len(kept) <= _unused(story), wanted, few(sorted(kept)))
    return cost


def _tell(story: Story, flow: UdpFlow, what: str, lost: Sequence[int]) -> None:
    errors = xfrm_errors(story.a.site.namespace) or "no error"
    story.lab.note(f"{what}: {few(lost)} from {flow.source}; {whereabouts(story, flow, lost[0])}; A counts {errors}")


def all_new(story: Story, old: frozenset[int], carried: set[int]) -> bool:
    now = spis(story)
    return len(now) == 2 * len(story.children) and now == carried and len(now & old) <= _unused(story)


def _unused(story: Story) -> int:
    """SAs of tunnels whose key has never been used here: they may go to the next engine."""
    return 2 * len(story.silent)


async def flowing(story: Story) -> None:
    """Wait until packets that are sent from now on arrive, in both directions."""
    marks = [flow.next for flow in story.flows]

    def arrived(flow: UdpFlow, mark: int) -> bool:
        return flow.next >= mark + FLOWING and flow.tally(flow.next - FLOWING, flow.next - 2).lost == 0

    await until(
        lambda: all(arrived(flow, mark) for flow, mark in zip(story.flows, marks, strict=True)),
        FLOW_SECONDS,
        "traffic in both directions",
    )


def recorded(story: Story) -> list[Frame]:
    """What an attacker on the WAN has of the tunnel's ESP towards A, of SAs that still live."""
    story.drain()
    alive = {(sa.destination, sa.spi) for sa in dump(story.a.site.namespace)}
    found = []
    for frame in story.wan.captures[1].frames:
        packet = None if frame.outgoing else esp_of(frame)
        if packet is not None and (packet.destination, packet.spi) in alive:
            found.append(frame)
    return found


def by_last_look(story: Story) -> tuple[list[Frame], list[Frame]]:
    """Of what is recorded, what A's kernel has been told of by the guardian's last look, and what came since."""
    known = {(sa.destination, sa.spi): sa.received for sa in dump(story.a.site.namespace)}
    older: list[Frame] = []
    since: list[Frame] = []
    for frame in recorded(story):
        packet = esp_of(frame)
        if packet is not None:
            seen = packet.sequence <= known.get((packet.destination, packet.spi), 0)
            (older if seen else since).append(frame)
    return older, since


async def replay(story: Story, frames: Sequence[Frame], flow: UdpFlow | None = None) -> int:
    """Send towards A again what was recorded, and count what the host behind it gets twice of a flow."""
    flow, topology = flow or story.flows[1], story.lab.topology  # the first one towards A
    with inside(topology.namespace(Role.WAN)):
        wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        wire.bind(("to-a", 0))
    before = flow.tally(0).duplicated
    with wire:
        for number, frame in enumerate(frames, start=1):
            wire.send(frame.data)
            if number % REPLAYED_AT_ONCE == 0:
                await asyncio.sleep(REPLAY_REST)
        await asyncio.sleep(SETTLE_SECONDS)
    return flow.tally(0).duplicated - before


def first_of_the_kernel(story: Story, old: frozenset[int], killed: float) -> float:
    """When the first packet of A's kernel passed the WAN with a key of the engine's."""
    local = story.lab.topology.address(Role.GATEWAY_A, WAN)
    numbers: dict[int, int] = {}
    story.drain()
    for frame in story.wan.captures[0].frames:
        packet = None if frame.outgoing else esp_of(frame)
        if packet is None or packet.source != local or packet.spi not in old:
            continue
        if packet.sequence > numbers.get(packet.spi, 0) + _JUMP and packet.spi in numbers and frame.when >= killed:
            return frame.when
        numbers[packet.spi] = packet.sequence
    return killed


_JUMP = 1 << 20
"""The kernel's number is far ahead of the engine's: no gap of a few packets looks like that."""


async def ike(story: Story) -> str:
    """The number that charon gives the IKE_SA."""
    found = _IKE.search(await story.a.swanctl("--list-sas"))
    return found.group(1) if found else "none"
