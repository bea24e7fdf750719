"""Daemon-away: the daemon is dead, then stopped, for longer than it may be: the kernel sends in VPP's place meanwhile.

VPP lives all the time. A rekey falls into each absence, which VPP hears nothing of. Afterwards it has everything again.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from ipsec_gw.lab.context import Lab
from ipsec_gw.lab.gateway import GatewayUnderTest, patient
from ipsec_gw.lab.kernel_sas import dump
from ipsec_gw.lab.scenarios.failover import (
    BACK_SECONDS,
    FLOWING,
    all_new,
    begin,
    finish,
    first_of_the_kernel,
    flowing,
)
from ipsec_gw.lab.scenarios.tunnel import FLOW_RATE, REKEY_SECONDS, Story, lossless, only_new, spis
from ipsec_gw.lab.scenarios.verdicts import Evidence
from ipsec_gw.lab.topology import WAN, Role
from ipsec_gw.lab.traffic import until

AWAY = 20.0
"""Seconds: long enough for a daemon that an emulated machine keeps waiting."""

CONFIG = patient(away_seconds=AWAY)
TAKEOVER_SECONDS = 3 * AWAY

Absence = Callable[[GatewayUnderTest], AbstractAsyncContextManager[None]]


@asynccontextmanager
async def dead(gateway: GatewayUnderTest) -> AsyncIterator[None]:
    """Killed, and started again in the end."""
    await gateway.kill()
    yield
    await gateway.run_again()


@asynccontextmanager
async def stopped(gateway: GatewayUnderTest) -> AsyncIterator[None]:
    """By SIGSTOP, and continued in the end: the same process goes on."""
    with gateway.deaf():
        yield


async def run(lab: Lab) -> None:
    """Play it."""
    story, gateway, evidence = await begin(lab, config=CONFIG)
    vpp = gateway.vpp
    for name, absence in (("a dead daemon", dead), ("a stopped daemon", stopped)):
        await _absence(story, gateway, evidence, name, absence)
    lab.check("VPP has lived all the time", gateway.vpp == vpp, str(vpp), gateway.vpp)
    await finish(story, gateway, evidence, lossy=True)


async def _absence(story: Story, gateway: GatewayUnderTest, evidence: Evidence, name: str, absence: Absence) -> None:
    lab, flows = story.lab, story.flows
    await flowing(story)
    old = spis(story)
    async with absence(gateway):
        with lab.step(f"{name}: the kernel takes over"):
            marks = await _taken_over(story, old, name)
        with lab.step(f"{name}: a rekey"):
            await story.b.rekey()
            await until(lambda: only_new(story, old), REKEY_SECONDS, "new SAs alone")
            await flowing(story)
        await lossless(story, flows, marks, f"by a rekey with {name}")
        used, marks = spis(story), [flow.next for flow in flows]
    with lab.step(f"{name}: back in {gateway.engine}"):
        sas = await gateway.sas_when(
            lambda sas: all_new(story, used, {sa.spi for sa in sas if sa.state == gateway.engine}),
            BACK_SECONDS,
            f"new SAs, all in {gateway.engine}",
        )
        evidence.engine_took(sas)
        await flowing(story)
    await lossless(story, flows, marks, f"on the way back from {name}")


async def _taken_over(story: Story, old: frozenset[int], name: str) -> list[int]:
    """Wait for it. The numbers of the flows from which on nothing may be lost."""
    lab, flows = story.lab, story.flows
    gone, marks, before = time.time(), [flow.next for flow in flows], _sent_by_the_kernel(story)
    await until(lambda: _sent_by_the_kernel(story) != before, TAKEOVER_SECONDS, "packets of the kernel's")
    await flowing(story)
    settled = [flow.next - FLOWING // 2 for flow in flows]
    seconds = first_of_the_kernel(story, old, gone) - gone
    lab.note(f"{name}: the kernel's first packet came after {seconds:.1f} s, {AWAY:.0f} s were allowed")
    lost = [len(flow.missing(mark, end)) for flow, mark, end in zip(flows, marks, settled, strict=True)]
    ring = round(FLOW_RATE / 2)
    lab.check(
        f"{name}: no more is lost than was in a ring", max(lost) <= ring, f"{ring} packets of a flow at most", lost
    )
    return settled


def _sent_by_the_kernel(story: Story) -> dict[int, int]:
    """As its counters tell, which no daemon writes meanwhile."""
    local = story.lab.topology.address(Role.GATEWAY_A, WAN)
    return {sa.spi: sa.packets for sa in dump(story.a.site.namespace) if sa.source == local}
