"""Hang: VPP is stopped under traffic, again and again. It is ended, and the kernel carries the same tunnel on."""

from __future__ import annotations

from ipsec_gw.lab.context import Lab
from ipsec_gw.lab.gateway import HANG_SECONDS, GatewayUnderTest
from ipsec_gw.lab.scenarios.failover import begin, death, finish, ike, same_ike, stop_vpp
from ipsec_gw.lab.scenarios.tunnel import Story
from ipsec_gw.lab.scenarios.verdicts import Evidence

STOPS = 5


async def run(lab: Lab) -> None:
    """Play it. A stopped VPP that sends after the kernel has begun is seen as numbers that go far back."""
    story, gateway, evidence = await begin(lab)
    await stops(story, gateway, evidence, lab.options.rounds or STOPS)
    await finish(story, gateway, evidence, lossy=True)


async def stops(story: Story, gateway: GatewayUnderTest, evidence: Evidence, count: int) -> None:
    """So many times VPP hangs."""
    first = await ike(story)
    for number in range(1, count + 1):
        name = f"stop {number}"
        cost = await death(story, gateway, evidence, name, stop_vpp, gateway.vpp_up)
        story.lab.check(
            f"{name}: the kernel carries on within the configured bound",
            cost.dying + cost.silent <= HANG_SECONDS,
            f"{HANG_SECONDS} s",
            f"{cost.dying + cost.silent:.3f} s",
        )
    await same_ike(story, first)
