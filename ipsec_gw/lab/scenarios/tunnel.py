"""A tunnel between two strongSwans as the scenarios about it have it: who takes part, how it comes and goes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from ipsec_gw.lab.capture import Captures
from ipsec_gw.lab.context import Lab
from ipsec_gw.lab.gateway import GatewayUnderTest, ShownSa
from ipsec_gw.lab.kernel_sas import SaDiary, dump
from ipsec_gw.lab.netns import receive_on_one_processor
from ipsec_gw.lab.oracle import EspPacket
from ipsec_gw.lab.process import all_of
from ipsec_gw.lab.scenarios.start import gateway_of, start_swan
from ipsec_gw.lab.scenarios.verdicts import Evidence, judge_carriers
from ipsec_gw.lab.sites import site_of
from ipsec_gw.lab.strongswan import CHILD, Party, Swan
from ipsec_gw.lab.topology import HOST, LAN, WAN, Role
from ipsec_gw.lab.traffic import Host, TrafficError, UdpFlow, until
from ipsec_gw.lab.wire import esp_packets, without_returned
from vpp_conf.locate import locate_vpp

FLOW_RATE, FLOW_BYTES = 20.0, 200
"""Packets per second in each direction and UDP payload. An emulated processor has milliseconds of work with each, and
at 50 a daemon beside it takes almost twice as long to start.
"""

REKEY_SECONDS = 60.0
FOLLOW_SECONDS = 120.0
"""A tunnel may have to be rekeyed before an engine can have it, and an emulated machine may be loaded."""

POLL_SECONDS = 0.1
QUIET_SECONDS = 0.6


@dataclass(frozen=True, slots=True)
class Talkers:
    """Who talks through the tunnel; ``label`` is the end of their checks' names."""

    client: Host
    server: Host
    gateway: Host
    label: str = ""

    def flows(self, first: int) -> tuple[UdpFlow, UdpFlow]:
        """Steady UDP both ways, by numbers and ports from ``first`` on."""
        way = partial(UdpFlow, rate=FLOW_RATE, size=FLOW_BYTES)
        there = way(first, self.client, self.server, port=7000 + first)
        return there, way(first + 1, self.server, self.client, port=7001 + first)


@dataclass
class Story:
    """Those who take part. Gateway A has ``children``, which the initiator knows by the same names; by those of them
    that are ``silent`` it never sends.
    """

    lab: Lab
    a: Swan
    b: Swan
    gateway: GatewayUnderTest | None
    wan: Captures
    lans: Captures
    diaries: tuple[SaDiary, SaDiary]
    flows: tuple[UdpFlow, ...] = ()
    talkers: tuple[Talkers, ...] = ()
    next_flow: int = 1
    children: tuple[str, ...] = (CHILD,)
    silent: tuple[str, ...] = ()

    @property
    def initiator(self) -> Swan:
        """Who can reach the other: behind a NAT it is gateway B."""
        return self.b if Role.NAT in self.lab.topology.roles else self.a

    def drain(self) -> None:
        """Take in everything that waits in sockets."""
        self.wan.drain()
        self.lans.drain()
        for diary in self.diaries:
            diary.drain()


def wan_frames(story: Story) -> int:
    story.drain()
    return sum(len(capture.frames) for capture in story.wan.captures)


async def set_up(
    lab: Lab,
    sites: Sequence[Party] = (),
    *,
    inactivity: int = 0,
    config: str = "",
    settings: str = "",
    on_demand: bool = False,
) -> Story:
    """Both strongSwans and ipsec-gw, and everything that watches them; hosts talk IPv4 unless ``sites`` are given.
    ``inactivity`` is when A closes the tunnel, in seconds. ``config`` is the gateway's own, ``on_demand``: by that it
    starts VPP itself. ``settings`` are further ones of both charons.
    """
    topology = lab.topology
    wan = Captures([lab.capture(Role.WAN, "to-a"), lab.capture(Role.WAN, "to-b")])
    lans = Captures([lab.capture(Role.CLIENT, HOST), lab.capture(Role.SERVER, HOST)])
    diaries = tuple(SaDiary(topology.namespace(role)) for role in (Role.GATEWAY_A, Role.GATEWAY_B))
    for captures in (wan, lans):
        lab.stack.callback(captures.close)
    for diary in diaries:
        lab.stack.callback(diary.close)
    lab.stack.callback(lab.save_captures, wan)
    for captures in (wan, lans):
        task = asyncio.create_task(captures.keep_draining())
        lab.stack.callback(task.cancel)
    usual = [site_of(topology, role, lab.options.proposal) for role in (Role.GATEWAY_A, Role.GATEWAY_B)]
    usual[0] = replace(usual[0], inactivity=inactivity)
    a, b = [await start_swan(lab, site, settings) for site in sites or usual]
    gateway = _gateway(lab, a, config, on_demand=on_demand)
    with lab.step("start two strongSwans" + (" and ipsec-gw" if gateway else "")):
        await all_of(a.load(), b.load(), *([gateway.start()] if gateway else []))
        await receive_on_one_processor(b.site.namespace, WAN)
    for pid in gateway.pids if gateway else ():
        lab.watch_process(pid)
    story = Story(lab, a, b, gateway, wan, lans, (diaries[0], diaries[1]))
    if not sites:
        ends = (lab.host(Role.CLIENT, HOST), lab.host(Role.SERVER, HOST), lab.host(Role.GATEWAY_A, LAN))
        start_flows(story, Talkers(*ends))
    return story


def _gateway(lab: Lab, a: Swan, config: str, *, on_demand: bool) -> GatewayUnderTest | None:
    if lab.options.baseline:
        lab.note("without ipsec-gw: strongSwan and the kernel alone")
        return None
    return gateway_of(lab, a, config, on_demand=on_demand)


def start_flows(story: Story, *talkers: Talkers) -> None:
    """Let them talk, and those before them no more."""
    end_flows(story, *story.flows)
    story.talkers = ()
    add_flows(story, *talkers)


def add_flows(story: Story, *talkers: Talkers) -> tuple[UdpFlow, ...]:
    """Let them talk besides the others; returns their flows."""
    lab = story.lab
    first = story.next_flow
    flows = tuple(flow for n, who in enumerate(talkers) for flow in who.flows(first + 2 * n))
    story.talkers, story.flows = (*story.talkers, *talkers), (*story.flows, *flows)
    story.next_flow += len(flows)
    for flow in flows:
        lab.stack.callback(flow.close)
        lab.stack.callback(asyncio.create_task(flow.run()).cancel)
    return flows


def end_flows(story: Story, *flows: UdpFlow) -> None:
    """Let these talk no more."""
    for flow in flows:
        flow.pause()
    story.flows = tuple(flow for flow in story.flows if flow not in flows)


async def bring_up(story: Story, evidence: Evidence) -> tuple[int, ...]:
    """IKE under traffic that already runs; returns the numbers from which the flows must arrive."""
    lab, flows = story.lab, story.flows
    await until(lambda: all(flow.next >= 10 for flow in flows), 30.0, "traffic before IKE")
    with lab.step("initiate the tunnel"):
        for child in story.children:
            await story.initiator.initiate(child)
    await protected(story, evidence)
    marks = tuple(flow.next for flow in flows)
    for swan in (story.a, story.b):
        said = await swan.list_sas()
        lab.check(f"IKE is up at {swan.site.identity}", said.ike and said.child, "IKE_SA and CHILD_SA", said)
    return marks


async def protected(story: Story, evidence: Evidence) -> None:
    """From now on nothing may be in clear on the WAN."""
    story.drain()
    evidence.up = [len(capture.frames) for capture in story.wan.captures]
    story.lab.strongswan = await story.a.version()
    if story.lab.options.engine == "vpp":
        story.lab.vpp = locate_vpp().version.removeprefix("vpp ").split()[0]


async def carry(story: Story, evidence: Evidence) -> None:
    """Wait until the engine has the tunnel (or says why not), then until both flows arrive."""
    lab, gateway = story.lab, story.gateway
    if gateway is None:
        return
    engine = gateway.engine

    with lab.step(f"wait until {engine} carries the tunnel"):
        sas = await gateway.carrying()
    judge_carriers(lab, engine, sas)
    evidence.engine_took(sas)
    status = await gateway.status_now()
    lab.check("ipsec-gw runs the engine asked for", status.engine == engine, engine, f"{status.engine}: {status.note}")


async def quiet(story: Story) -> None:
    """Pause the flows and wait until nothing is under way: counters and capture can be compared exactly."""
    for flow in story.flows:
        flow.pause()
    loop = asyncio.get_running_loop()
    deadline, still_since, seen = loop.time() + 20.0, loop.time(), -1
    while loop.time() - still_since < QUIET_SECONDS:
        count = wan_frames(story)
        if count != seen:
            still_since, seen = loop.time(), count
        if loop.time() > deadline:
            raise TrafficError("the WAN is not quiet 20 s after all traffic was paused")
        await asyncio.sleep(0.05)


def resume(story: Story) -> None:
    for flow in story.flows:
        flow.resume()


def packets(story: Story) -> list[EspPacket]:
    story.drain()
    sent = without_returned(*(esp_packets(capture.frames) for capture in story.wan.captures))
    return [packet for one in sent for packet in one]


def spis(story: Story) -> frozenset[int]:
    return frozenset(sa.spi for sa in dump(story.a.site.namespace))


def only_new(story: Story, old: frozenset[int]) -> bool:
    """One child has new SAs, and nothing of its old ones is left."""
    now = spis(story)
    return len(now) == 2 * len(story.children) and len(now - old) == 2


async def carried_again(story: Story, gateway: GatewayUnderTest, evidence: Evidence) -> None:
    current = spis(story)
    sas = await gateway.sas_when(
        lambda sas: {sa.spi for sa in sas} == current and all(sa.state == gateway.engine for sa in sas),
        REKEY_SECONDS,
        f"the new SAs in {gateway.engine}",
    )
    evidence.engine_took(sas)


async def follow(story: Story, evidence: Evidence, count: int) -> None:
    """Wait until gateway A's kernel has so many SAs, and the engine those and no others. Raises TrafficError."""
    evidence.engine_took(await carries(story, partial(spis, story), count, alone=True))


async def carries(
    story: Story, which: Callable[[], frozenset[int]], count: int, *, alone: bool = False
) -> tuple[ShownSa, ...]:
    """Wait until these are so many and the engine has them, and with ``alone`` until no others are shown; returns what
    is. Raises TrafficError.
    """
    gateway = story.gateway
    await until(lambda: len(which()) == count, REKEY_SECONDS, f"{count} SAs in the kernel")
    if gateway is None:
        return ()
    deadline = asyncio.get_running_loop().time() + FOLLOW_SECONDS
    while True:
        sas = await gateway.sas_now()
        taken = {sa.spi for sa in sas if sa.state == gateway.engine}
        wanted = which()
        if len(wanted) == count and wanted <= taken and (not alone or {sa.spi for sa in sas} == wanted):
            return sas
        if asyncio.get_running_loop().time() > deadline:
            shown = "; ".join(f"{sa.key} {sa.direction} {sa.state} {sa.reason}" for sa in sas)
            raise TrafficError(f"{gateway.engine} has not these {count} SAs of the kernel: {shown or 'none'}")
        await asyncio.sleep(POLL_SECONDS)


async def lossless(story: Story, flows: Sequence[UdpFlow], marks: Sequence[int], what: str) -> None:
    """Pause the flows and check that all that was sent since the marks has arrived, once; then they go on."""
    for flow, mark in zip(flows, marks, strict=True):
        flow.pause()
        tally = await flow.settle(mark)
        name = f"no packet {flow.source} -> {flow.destination} is lost or doubled {what}"
        story.lab.check(name, tally.perfect, "0 lost, 0 twice, 0 corrupted", tally)
    for flow in flows:
        flow.resume()


async def terminate(story: Story, evidence: Evidence) -> None:
    lab, gateway = story.lab, story.gateway
    evidence.down = [len(capture.frames) for capture in story.wan.captures]
    with lab.step("terminate the tunnel"):
        await story.a.terminate()
        namespaces = (story.a.site.namespace, story.b.site.namespace)
        await until(lambda: not any(dump(name) for name in namespaces), 30.0, "kernels without SAs")
    if gateway is None:
        return
    sas, status = await asyncio.gather(
        gateway.sas_when(lambda sas: not sas, 30.0, "no SA shown"),
        gateway.status_when(lambda now: not now.steer and not now.guard, 30.0, "empty maps"),
    )
    lab.check("the engine holds no SA after termination", not sas, "0", len(sas))
    left = [*status.steer, *status.guard]
    lab.check("the steering and guard maps are empty after termination", not left, "none", ", ".join(left) or "none")
