"""Idle: VPP runs only while it is needed. No packet is lost when it comes, nor when it goes.

The tunnel's traffic runs from its first SA on: the kernel carries it while VPP starts, then a rekey brings the key that
VPP gets. Beside it a flow in clear passes the WAN all the time: its sockets come and go with VPP.
"""

from __future__ import annotations

import asyncio

from ipsec_gw.lab.context import Lab
from ipsec_gw.lab.gateway import PLAIN, GatewayUnderTest
from ipsec_gw.lab.scenarios.failover import flowing
from ipsec_gw.lab.scenarios.tunnel import (
    FLOW_BYTES,
    FLOW_RATE,
    Story,
    bring_up,
    carry,
    resume,
    set_up,
    terminate,
)
from ipsec_gw.lab.scenarios.verdicts import Evidence, Judged, judge_capture
from ipsec_gw.lab.topology import WAN, Role
from ipsec_gw.lab.traffic import UdpFlow, until

IDLE_SECONDS = 45.0
"""Longer than it takes on an emulated machine to see that the tunnel is gone."""

CONFIG = f"""{PLAIN}vpp = "needed"
vpp_idle_seconds = {IDLE_SECONDS}
"""

STOP_SECONDS = 150.0
CLEAR_FLOW, CLEAR_PORT = 90, 7900


async def run(lab: Lab) -> None:
    """Play it: a tunnel comes and goes twice."""
    story = await set_up(lab, config=CONFIG, on_demand=True)
    gateway = story.gateway
    if gateway is None:
        raise AssertionError("this is about ipsec-gw alone")
    clear = _clear_flow(lab)
    await until(lambda: clear.next >= 10, 30.0, "traffic in clear")
    beginning = clear.next
    life = (await gateway.status()).life
    lab.check("no VPP runs before the first SA", gateway.vpp is None, "none", gateway.vpp)
    lab.check("the status says so", life.endswith("nothing needs it now"), "nothing needs it now", life)
    evidence = Evidence()
    await _first(story, gateway, evidence)
    await _again(story, gateway)
    clear.pause()
    tally = await clear.settle(beginning)
    lab.check("no packet in clear is lost when VPP comes and goes", tally.perfect, "0 lost, 0 twice", tally)
    judge_capture(lab, evidence, story.wan, story.lans, story.diaries, Judged())
    with lab.step("ipsec-gw off"):
        await gateway.off()


async def _first(story: Story, gateway: GatewayUnderTest, evidence: Evidence) -> None:
    marks = await bring_up(story, evidence)
    await carry(story, evidence)
    await flowing(story)
    await _lossless(story, marks, "when VPP comes")
    await _leave(story, gateway, evidence)


async def _again(story: Story, gateway: GatewayUnderTest) -> None:
    """A second life: what comes after a stop is treated as what came first."""
    lab, evidence = story.lab, Evidence()
    with lab.step("initiate the tunnel again"):
        await story.initiator.initiate()
    marks = tuple(flow.next for flow in story.flows)
    resume(story)
    await carry(story, evidence)
    await flowing(story)
    await _lossless(story, marks, "when VPP comes again")
    await _leave(story, gateway, evidence)


async def _lossless(story: Story, marks: tuple[int, ...], when: str) -> None:
    """All packets since the marks have arrived, once."""
    for flow, mark in zip(story.flows, marks, strict=True):
        flow.pause()
        tally = await flow.settle(mark)
        name = f"no packet {flow.source} -> {flow.destination} is lost {when}"
        story.lab.check(name, tally.perfect, "0 lost, 0 twice, 0 corrupted", tally)


async def _leave(story: Story, gateway: GatewayUnderTest, evidence: Evidence) -> None:
    lab, running = story.lab, gateway.vpp
    lab.check("VPP runs while the tunnel is up", running is not None, "a process", running)
    leaving = asyncio.get_running_loop().time()
    await terminate(story, evidence)
    lab.check("VPP runs on when the last SA has gone", gateway.vpp == running, str(running), gateway.vpp)
    with lab.step("wait until VPP is stopped"):
        await until(lambda: gateway.vpp is None, STOP_SECONDS, "the end of a VPP that nothing needs")
    waited = asyncio.get_running_loop().time() - leaving
    idle = f"not before {IDLE_SECONDS:.0f} s"
    lab.check("VPP is stopped an idle time after the last SA", waited >= IDLE_SECONDS, idle, f"{waited:.0f} s")
    status = await gateway.status_when(lambda now: now.in_sync, STOP_SECONDS, "in sync")
    lab.check("the status tells that it is stopped", "nothing needs it now" in status.life, "it", status.life)
    lost = gateway.said("engine lost")
    lab.check("a stop is no loss", lost == 0, "0 losses", lost)


def _clear_flow(lab: Lab) -> UdpFlow:
    """Between the gateways, past the tunnel, by the WAN interface that VPP has its sockets on."""
    ends = (lab.host(Role.GATEWAY_A, WAN), lab.host(Role.GATEWAY_B, WAN))
    flow = UdpFlow(CLEAR_FLOW, *ends, rate=FLOW_RATE, size=FLOW_BYTES, port=CLEAR_PORT)
    lab.stack.callback(flow.close)
    lab.stack.callback(asyncio.create_task(flow.run()).cancel)
    return flow
