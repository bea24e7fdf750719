"""Site to site: a tunnel between two unmodified strongSwans, the left gateway accelerated, the right one not."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial

from ipsec_gw.lab.capture import Captures
from ipsec_gw.lab.context import Lab
from ipsec_gw.lab.gateway import GatewayUnderTest
from ipsec_gw.lab.kernel_sas import SaDiary, dump
from ipsec_gw.lab.netns import receive_on_one_processor, xfrm_errors
from ipsec_gw.lab.oracle import EspPacket
from ipsec_gw.lab.process import all_of
from ipsec_gw.lab.scenarios.start import gateway_of, start_swan
from ipsec_gw.lab.scenarios.verdicts import Evidence, Reading, judge_capture, judge_carriers, judge_counters
from ipsec_gw.lab.sites import site_of
from ipsec_gw.lab.strongswan import Swan
from ipsec_gw.lab.topology import HOST, LAN, WAN, Role
from ipsec_gw.lab.traffic import TrafficError, UdpFlow, ping, tcp_echo, udp_echo, until
from ipsec_gw.lab.wire import count_by_sa, esp_packets
from vpp_conf.locate import locate_vpp

FLOW_RATE, FLOW_BYTES = 50.0, 200
"""Packets per second in each direction and UDP payload: what an emulated processor carries without sweat."""

TCP_BYTES = 200_000
SIZES = (1, 64, 511, 1200, 1372)
"""Payloads of single packets, up to what fits a tunnel over a 1500-byte WAN unfragmented."""

REKEY_SECONDS = 60.0
QUIET_SECONDS = 0.6


@dataclass
class Story:
    """Those who take part."""

    lab: Lab
    a: Swan
    b: Swan
    gateway: GatewayUnderTest | None
    wan: Captures
    lans: Captures
    diaries: tuple[SaDiary, SaDiary]
    flows: tuple[UdpFlow, UdpFlow]

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


async def run(lab: Lab) -> None:
    """Play it."""
    story = await set_up(lab)
    evidence = Evidence()
    flow_marks = await bring_up(story, evidence)
    await carry(story, evidence)
    await bracketed_exchange(story, "payload exchange")
    await rekey_under_traffic(story, evidence)
    await bracketed_exchange(story, "payload exchange after the rekeys")
    await conclude(story, evidence, flow_marks)


async def conclude(story: Story, evidence: Evidence, flow_marks: tuple[int, int]) -> None:
    """Take the tunnel down, judge everything that was captured, and leave."""
    lab = story.lab
    await quiet(story)
    for flow, mark in zip(story.flows, flow_marks, strict=True):
        lab.note(f"UDP {flow.source} -> {flow.destination} since the tunnel is up: {flow.tally(mark)}")
    await terminate(story, evidence)
    judge_capture(lab, evidence, story.wan, story.lans, story.diaries, lossy=Role.NAT in lab.topology.roles)
    for swan in (story.a, story.b):
        lab.note(f"IPsec error counters of {swan.site.identity}: {xfrm_errors(swan.site.namespace) or 'all 0'}")
    if story.gateway is not None:
        with lab.step("ipsec-gw off"):
            await story.gateway.off()


def _wan_frames(story: Story) -> int:
    story.drain()
    return sum(len(capture.frames) for capture in story.wan.captures)


async def set_up(lab: Lab) -> Story:
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
    sites = (site_of(topology, role, lab.options.proposal) for role in (Role.GATEWAY_A, Role.GATEWAY_B))
    a, b = [await start_swan(lab, site) for site in sites]
    gateway = _gateway(lab, a)
    with lab.step("start two strongSwans" + (" and ipsec-gw" if gateway else "")):
        await all_of(a.load(), b.load(), *([gateway.start()] if gateway else []))
        await receive_on_one_processor(b.site.namespace, WAN)
    for pid in gateway.pids if gateway else ():
        lab.watch_process(pid)
    return Story(lab, a, b, gateway, wan, lans, (diaries[0], diaries[1]), _start_flows(lab))


def _gateway(lab: Lab, a: Swan) -> GatewayUnderTest | None:
    if lab.options.baseline:
        lab.note("without ipsec-gw: strongSwan and the kernel alone")
        return None
    return gateway_of(lab, a)


def _start_flows(lab: Lab) -> tuple[UdpFlow, UdpFlow]:
    client, server = lab.host(Role.CLIENT, HOST), lab.host(Role.SERVER, HOST)
    there = UdpFlow(1, client, server, rate=FLOW_RATE, size=FLOW_BYTES, port=7001)
    back = UdpFlow(2, server, client, rate=FLOW_RATE, size=FLOW_BYTES, port=7002)
    for flow in (there, back):
        lab.stack.callback(flow.close)
        lab.stack.callback(asyncio.create_task(flow.run()).cancel)
    return there, back


async def bring_up(story: Story, evidence: Evidence) -> tuple[int, int]:
    """IKE under traffic that already runs; returns the numbers from which both flows must arrive."""
    lab, flows = story.lab, story.flows
    await until(lambda: all(flow.next >= 10 for flow in flows), 30.0, "traffic before IKE")
    with lab.step("initiate the tunnel"):
        await story.initiator.initiate()
    story.drain()
    evidence.up = [len(capture.frames) for capture in story.wan.captures]
    marks = (flows[0].next, flows[1].next)
    lab.strongswan = await story.a.version()
    if lab.options.engine == "vpp":
        lab.vpp = locate_vpp().version.removeprefix("vpp ").split()[0]
    for swan in (story.a, story.b):
        said = await swan.list_sas()
        lab.check(f"IKE is up at {swan.site.identity}", said.ike and said.child, "IKE_SA and CHILD_SA", said)
    return marks


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
    status = await gateway.status()
    lab.check("ipsec-gw runs the engine asked for", status.engine == engine, engine, f"{status.engine}: {status.note}")


async def quiet(story: Story) -> None:
    """Pause the flows and wait until nothing is under way: counters and capture can be compared exactly."""
    for flow in story.flows:
        flow.pause()
    loop = asyncio.get_running_loop()
    deadline, still_since, seen = loop.time() + 20.0, loop.time(), -1
    while loop.time() - still_since < QUIET_SECONDS:
        count = _wan_frames(story)
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
    return [packet for capture in story.wan.captures for packet in esp_packets(capture.frames)]


async def bracketed_exchange(story: Story, name: str) -> None:
    """TCP, UDP and ICMP between two quiet moments, so that every counter can be held against the wire."""
    lab, gateway = story.lab, story.gateway
    with lab.step(f"{name}: wait for silence and read counters"):
        await quiet(story)
        before = await _read(gateway) if gateway else None
        wire_before = count_by_sa(packets(story))
    with lab.step(name):
        await _exchange(lab, name)
        await quiet(story)
    carried = count_by_sa(packets(story)) - wire_before
    if gateway is not None and before is not None:
        with lab.step(f"{name}: read counters"):
            after = await _read(gateway)
        judge_counters(lab, name, before, after, carried)
    resume(story)


async def _read(gateway: GatewayUnderTest) -> Reading:
    status, sas = await asyncio.gather(gateway.status(), gateway.sas())
    return Reading(status, sas)


async def _exchange(lab: Lab, name: str) -> None:
    client, server = lab.host(Role.CLIENT, HOST), lab.host(Role.SERVER, HOST)
    gateway = lab.host(Role.GATEWAY_A, LAN)
    labels = {client: "client", server: "server", gateway: "gateway A itself"}
    pairs = ((client, server), (server, client), (gateway, server), (server, gateway))
    for number, (left, right) in enumerate(pairs):
        way, port, seed = f"{labels[left]} to {labels[right]}", 8000 + number, 100 + number
        talks = (
            (f"TCP {way}", tcp_echo(left, right, port=port, size=TCP_BYTES, seed=seed)),
            (f"UDP {way}", udp_echo(left, right, port=port, sizes=SIZES, seed=seed)),
            (f"ICMP {way}", ping(left, right, identifier=port, sizes=SIZES, seed=seed)),
        )
        for what, talk in talks:
            try:
                lab.check(f"{name}: {what}", True, "payloads come back unchanged", await talk)
            except TrafficError as error:
                lab.check(f"{name}: {what}", False, "payloads come back unchanged", error)


def spis(story: Story) -> frozenset[int]:
    return frozenset(sa.spi for sa in dump(story.a.site.namespace))


def _only_new(story: Story, old: frozenset[int]) -> bool:
    now = spis(story)
    return len(now) == 2 and not now & old


async def rekey_under_traffic(story: Story, evidence: Evidence) -> None:
    lab = story.lab
    await until(lambda: all(flow.next > 0 for flow in story.flows), 5.0, "steady traffic")
    marks = [flow.next for flow in story.flows]
    for swan in (story.a, story.b):
        with lab.step(f"rekey from {swan.site.identity} under steady traffic"):
            old = spis(story)
            await swan.rekey()
            # charon keeps the old inbound SA for delete_rekeyed_delay (5 s): the rekey is over when that has gone.
            await until(partial(_only_new, story, old), REKEY_SECONDS, "new SAs alone")
            if story.gateway is not None:
                await _carried_again(story, story.gateway, evidence)
    for flow, mark in zip(story.flows, marks, strict=True):
        flow.pause()
        tally = await flow.settle(mark)
        lab.check(
            f"no packet {flow.source} -> {flow.destination} is lost or doubled by two rekeys",
            tally.perfect,
            "0 lost, 0 twice, 0 corrupted",
            tally,
        )
    resume(story)


async def _carried_again(story: Story, gateway: GatewayUnderTest, evidence: Evidence) -> None:
    current = spis(story)
    sas = await gateway.sas_when(
        lambda sas: {sa.spi for sa in sas} == current and all(sa.state == gateway.engine for sa in sas),
        REKEY_SECONDS,
        f"the new SAs in {gateway.engine}",
    )
    evidence.engine_took(sas)


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
