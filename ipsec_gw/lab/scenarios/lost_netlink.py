"""Lost-netlink: the daemon hears nothing while tunnels come, go and are rekeyed, and then it has to find out.

First more notifications of the kernel come than its socket holds. Then charon does not answer for longer than the
daemon waits. A tunnel that nothing happens to has traffic all the time.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time

from ipsec_gw.lab.context import Lab
from ipsec_gw.lab.gateway import GatewayUnderTest
from ipsec_gw.lab.matrix.case import Child, Connection
from ipsec_gw.lab.matrix.ends import End
from ipsec_gw.lab.noise import make_noise
from ipsec_gw.lab.scenarios.chaos import MISSED
from ipsec_gw.lab.scenarios.configured import talkers
from ipsec_gw.lab.scenarios.failover import flowing
from ipsec_gw.lab.scenarios.tale import Tale, tell
from ipsec_gw.lab.scenarios.tunnel import (
    REKEY_SECONDS,
    Story,
    add_flows,
    end_flows,
    follow,
    lossless,
    spis,
)
from ipsec_gw.lab.scenarios.verdicts import Evidence, Judged
from ipsec_gw.lab.traffic import until

UNTOUCHED = Child()
REKEYED = Child("net2", "{near2}", "{far2}")
DELETED = Child("net3", "{near}", "{far2}", local_b="{near2}", remote_b="{far}")
ADDED = Child("net4", "{near2}", "{far}", local_b="{near}", remote_b="{far2}")
CONNECTION = Connection(children=(UNTOUCHED, REKEYED, DELETED, ADDED))

VICI_SECONDS = 4.0
NOTICE_SECONDS, NAME_SECONDS = 60.0, 60.0


async def _play(story: Story, evidence: Evidence) -> None:
    gateway = story.gateway
    if gateway is None:
        raise AssertionError("this is about ipsec-gw alone")
    for child in (REKEYED, DELETED):
        await story.a.initiate(child.name)
    await follow(story, evidence, 6)
    await _kernel_unheard(story, gateway, evidence)
    await _charon_unheard(story, gateway, evidence)


async def _kernel_unheard(story: Story, gateway: GatewayUnderTest, evidence: Evidence) -> None:
    """A rekey, a new child and one that goes, behind more messages than the daemon's socket holds."""
    lab = story.lab
    await flowing(story)
    marks = [flow.next for flow in story.flows]
    old, (gone,) = spis(story), await story.a.children(DELETED.name)
    with lab.step("the daemon hears nothing of the kernel"), gateway.deaf():
        await asyncio.to_thread(make_noise, story.a.site.namespace, MISSED)
        await story.a.rekey(REKEYED.name)
        await until(lambda: len(spis(story) - old) == 2, REKEY_SECONDS, "a rekey")
        await story.a.terminate_child(gone)
        await story.a.initiate(ADDED.name)
        await until(lambda: len(spis(story) - old) == 4, REKEY_SECONDS, "a new child")
        unheard = spis(story) - old
    with lab.step("the daemon finds out"):
        status = await gateway.status_when(lambda now: now.overruns > 0, NOTICE_SECONDS, "lost notifications")
        await follow(story, evidence, 6)
        await flowing(story)
    lab.check("the daemon tells that it lost notifications", status.overruns > 0, "some", status.overruns)
    kept = len(unheard & spis(story))
    lab.check("the SAs that it did not hear of are carried", kept == 4, "4 SAs", kept)
    await _judge_untouched(story, gateway, marks, "while the daemon hears nothing of the kernel")
    added = add_flows(story, talkers(lab, End.CLIENT_2, End.SERVER_2), talkers(lab, End.CLIENT_2, End.SERVER))
    await flowing(story)
    await lossless(story, added, [0] * len(added), "through what came unheard")
    end_flows(story, *added)


async def _charon_unheard(story: Story, gateway: GatewayUnderTest, evidence: Evidence) -> None:
    """New SAs of which charon tells nothing: the kernel has them, so the engine has them. Their names come later."""
    lab, pid = story.lab, story.a.daemon.pid
    await flowing(story)
    old, marks = spis(story), [flow.next for flow in story.flows]
    with lab.step("charon tells nothing"):
        try:
            with gateway.deaf():
                await story.a.rekey(REKEYED.name)
                await until(lambda: len(spis(story)) == 6 and len(spis(story) - old) == 2, REKEY_SECONDS, "new SAs")
                os.kill(pid, signal.SIGSTOP)
            await follow(story, evidence, 6)
            nameless = {sa.spi for sa in await gateway.sas_now() if not sa.child}
            silent = time.monotonic()
            await until(lambda: time.monotonic() > silent + 2 * VICI_SECONDS, 3 * VICI_SECONDS, "a long silence")
            await flowing(story)
            still = {sa.spi for sa in await gateway.sas_now() if not sa.child}
        finally:
            os.kill(pid, signal.SIGCONT)
    lab.check("SAs are carried before charon has named them", still == spis(story) - old, "2 SAs", len(still))
    lab.note(f"SAs without a name at first: {len(nameless)}")
    with lab.step("charon answers again"):
        await gateway.sas_when(
            lambda sas: len(sas) == 6 and all(sa.child for sa in sas), NAME_SECONDS, "a name for every SA"
        )
        await story.b.rekey(REKEYED.name)
        await until(lambda: len(spis(story)) == 6 and not still & spis(story), REKEY_SECONDS, "a rekey from B")
        await follow(story, evidence, 6)
    sas = await gateway.sas_now()
    lab.check("charon's names are known again", all(sa.child for sa in sas), "all", [sa.child for sa in sas])
    await _judge_untouched(story, gateway, marks, "while charon tells nothing")


async def _judge_untouched(story: Story, gateway: GatewayUnderTest, marks: list[int], when: str) -> None:
    """Of VPP: an engine that lives in the daemon is stopped with it."""
    if gateway.engine == "vpp":
        await lossless(story, story.flows, marks, when)
        return
    for flow, mark in zip(story.flows, marks, strict=True):
        story.lab.note(f"{flow.source} -> {flow.destination} {when}, with its engine: {flow.tally(mark)}")


TALE = Tale(
    "lost-netlink",
    CONNECTION,
    _play,
    settings=f"vici_timeout = {VICI_SECONDS}\n",
    judged=Judged(taken_over=True, lossy=True),
    baseline=False,
)


async def run(lab: Lab) -> None:
    """Play it."""
    await tell(lab, TALE)
