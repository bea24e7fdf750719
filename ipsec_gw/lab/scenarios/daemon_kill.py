"""Daemon-kill: the daemon is killed under traffic and rekeys, again and again, and nothing happens to the traffic."""

from __future__ import annotations

import time

from ipsec_gw.lab.context import Lab
from ipsec_gw.lab.gateway import GatewayUnderTest
from ipsec_gw.lab.scenarios.failover import begin, finish, flowing
from ipsec_gw.lab.scenarios.tunnel import REKEY_SECONDS, Story, carried_again, lossless, only_new, spis
from ipsec_gw.lab.scenarios.verdicts import Evidence, few
from ipsec_gw.lab.traffic import until

KILLS = 10
LOADED = "pipeline loaded"

INACTIVITY = 240
"""Seconds: charon would close a tunnel of which it sees no traffic. While no daemon lives it sees none, and on a loaded
emulated machine a daemon takes more than a minute to come back."""


async def run(lab: Lab) -> None:
    """Play it."""
    story, gateway, evidence = await begin(lab, inactivity=INACTIVITY)
    began = time.monotonic()
    await daemon_kills(story, gateway, evidence, lab.options.rounds or KILLS)
    with lab.step("longer than charon lets a tunnel be idle"):
        await until(lambda: time.monotonic() > began + 1.25 * INACTIVITY, 3 * INACTIVITY, "time")
    lab.check("charon sees that the tunnel is in use", len(spis(story)) == 2, "both SAs", few(sorted(spis(story))))
    await finish(story, gateway, evidence)


async def daemon_kills(story: Story, gateway: GatewayUnderTest, evidence: Evidence, count: int) -> None:
    """So many deaths of the daemon. After the first, third and so on there is a rekey, which the new daemon has to
    follow, and the one after it to take over: an SA of which the kernel has had some packets itself.
    """
    lab = story.lab
    await flowing(story)
    marks = [flow.next for flow in story.flows]
    for number in range(1, count + 1):
        with lab.step(f"kill {number} of the daemon"):
            await gateway.kill()
            await flowing(story)
            await _return(story, gateway, evidence)
            if number % 2 == 1:
                await _rekey(story, gateway, evidence)
    await lossless(story, story.flows, marks, f"by {count} deaths of the daemon")
    loaded = gateway.said(LOADED)
    lab.check("a restart compiles nothing", loaded == 1, "loaded once", f"{loaded} times")


async def _return(story: Story, gateway: GatewayUnderTest, evidence: Evidence) -> None:
    old = spis(story)
    await gateway.run_again()
    await carried_again(story, gateway, evidence)
    # Two lives in a row too short to tell charon anything would be more than it is idle, on a loaded machine.
    await gateway.status_when(lambda now: now.warmed > 0, REKEY_SECONDS, "charon is told of what went by")
    kept = spis(story) == old
    story.lab.check("an unchanged tunnel is adopted as it is", kept, "the same SPIs", len(spis(story) & old))


async def _rekey(story: Story, gateway: GatewayUnderTest, evidence: Evidence) -> None:
    old = spis(story)
    await story.b.rekey()
    await until(lambda: only_new(story, old), REKEY_SECONDS, "new SAs alone")
    await carried_again(story, gateway, evidence)
