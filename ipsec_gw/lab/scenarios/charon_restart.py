"""Charon-restart: gateway A's charon is stopped and started again, then killed and started again, under traffic.

A charon that is stopped takes its SAs along. One that is killed leaves them in the kernel: the tunnel goes on, and the
new charon knows nothing of it. Whatever the kernel has, the engine has, and nothing else.
"""

from __future__ import annotations

from functools import partial

from ipsec_gw.lab.context import Lab
from ipsec_gw.lab.kernel_sas import dump
from ipsec_gw.lab.matrix.case import Connection
from ipsec_gw.lab.process import run as call
from ipsec_gw.lab.scenarios.failover import flowing
from ipsec_gw.lab.scenarios.tale import Tale, tell
from ipsec_gw.lab.scenarios.tunnel import (
    REKEY_SECONDS,
    Story,
    carries,
    follow,
    lossless,
    spis,
)
from ipsec_gw.lab.scenarios.verdicts import Evidence, Judged, few
from ipsec_gw.lab.traffic import until


async def _play(story: Story, evidence: Evidence) -> None:
    await _stopped(story, evidence)
    await _killed(story, evidence)


async def _stopped(story: Story, evidence: Evidence) -> None:
    """It takes its SAs and policies along and tells the peer. What is sent meanwhile is lost, but not in clear."""
    lab, gateway = story.lab, story.gateway
    await flowing(story)
    old, marks = spis(story), [flow.next for flow in story.flows]
    with lab.step("stop charon"):
        await story.a.stop()
        await follow(story, evidence, 0)
    if gateway is not None:
        status = await gateway.status_when(lambda now: not now.steer and not now.guard, REKEY_SECONDS, "empty maps")
        left = [*status.steer, *status.guard]
        lab.check("nothing is steered or guarded without a charon", not left, "none", few(left))
    with lab.step("start charon and the tunnel again"):
        await _charon_again(story)
        await story.a.initiate()
        await follow(story, evidence, 2)
        await flowing(story)
    _tell(story, marks, "while charon was stopped")
    lab.check("the tunnel is back with fresh keys after a stop", not spis(story) & old, "no old SPI", few(sorted(old)))


async def _killed(story: Story, evidence: Evidence) -> None:
    """Its SAs stay, and nobody manages them any more."""
    lab = story.lab
    await flowing(story)
    old, marks = spis(story), [flow.next for flow in story.flows]
    with lab.step("kill charon"):
        await story.a.daemon.kill()
        await flowing(story)
        await follow(story, evidence, 2)
    lab.check("the SAs outlive a charon that is killed", spis(story) == old, "both", len(spis(story) & old))
    with lab.step("start charon again"):
        await _charon_again(story)
        await flowing(story)
        await follow(story, evidence, len(spis(story)))
    lab.note(f"of the SAs of a charon that was killed the next one leaves {len(spis(story) & old)} in the kernel")
    await lossless(story, story.flows, marks, "when charon is killed and started")
    marks = [flow.next for flow in story.flows]
    with lab.step("start the tunnel again"):
        await story.a.initiate()
        evidence.engine_took(await carries(story, lambda: spis(story) - old, 2))
        await flowing(story)
    _tell(story, marks, "when the tunnel came up beside its orphans")
    await _clear_away(story, evidence, old)


async def _clear_away(story: Story, evidence: Evidence, old: frozenset[int]) -> None:
    """The operator deletes what nobody manages, and the new tunnel does not notice."""
    orphans = [sa for sa in dump(story.a.site.namespace) if sa.spi in old]
    marks = [flow.next for flow in story.flows]
    with story.lab.step("delete what the charon that was killed has left"):
        for sa in orphans:
            which = ["src", str(sa.source), "dst", str(sa.destination), "proto", "esp", "spi", f"{sa.spi:#x}"]
            await call(["ip", "xfrm", "state", "delete", *which], namespace=story.a.site.namespace)
        await until(partial(_fresh, story, old), REKEY_SECONDS, "fresh SAs alone")
        await follow(story, evidence, 2)
        await flowing(story)
    fresh = not spis(story) & old
    story.lab.check("the tunnel is back with fresh keys after a kill", fresh, "no old SPI", few(sorted(old)))
    await lossless(story, story.flows, marks, "when orphans are deleted")


def _fresh(story: Story, old: frozenset[int]) -> bool:
    return not spis(story) & old


async def _charon_again(story: Story) -> None:
    await story.a.run_again()
    story.lab.watch_process(story.a.daemon.pid)
    await story.a.load()


def _tell(story: Story, marks: list[int], when: str) -> None:
    for flow, mark in zip(story.flows, marks, strict=True):
        story.lab.note(f"{flow.source} -> {flow.destination} {when}: {flow.tally(mark, flow.next - 2)}")


TALE = Tale("charon-restart", Connection(), _play, judged=Judged(lossy=True))


async def run(lab: Lab) -> None:
    """Play it."""
    await tell(lab, TALE)
