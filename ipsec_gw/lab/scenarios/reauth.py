"""Reauth: the IKE_SA is made anew under traffic, by either side: break before make, then make before break."""

from __future__ import annotations

from functools import partial

from ipsec_gw.lab.context import Lab
from ipsec_gw.lab.matrix.case import Connection
from ipsec_gw.lab.process import all_of
from ipsec_gw.lab.scenarios.failover import flowing, ike
from ipsec_gw.lab.scenarios.tale import Tale, tell
from ipsec_gw.lab.scenarios.tunnel import (
    REKEY_SECONDS,
    Story,
    follow,
    lossless,
    only_new,
    spis,
)
from ipsec_gw.lab.scenarios.verdicts import Evidence, Judged
from ipsec_gw.lab.strongswan import CONNECTION, MAKE_BEFORE_BREAK, Swan
from ipsec_gw.lab.traffic import until

BREAK_FIRST, MAKE_FIRST = "break before make", "make before break"


async def _play(story: Story, evidence: Evidence) -> None:
    for swan in (story.a, story.b):
        await _reauthenticate(story, evidence, swan, BREAK_FIRST)
    await all_of(story.a.settle(MAKE_BEFORE_BREAK), story.b.settle(MAKE_BEFORE_BREAK))
    for swan in (story.a, story.b):
        await _reauthenticate(story, evidence, swan, MAKE_FIRST)
    await all_of(story.a.settle(), story.b.settle())


async def _reauthenticate(story: Story, evidence: Evidence, swan: Swan, way: str) -> None:
    """Break before make has a time without a tunnel, in which nothing goes through.

    Make before break: each side sends with its new SA, and refuses what comes by the old one if its reqid is another,
    before the other side has changed over. The side that began deletes the old SAs at once as well. That costs some
    packets, with strongSwan alone too, and more of them with an engine, which changes over after charon. What B sends
    loses none when B begins.
    """
    lab, began = story.lab, swan.site.identity
    await flowing(story)
    old, first, marks = spis(story), await ike(story), [flow.next for flow in story.flows]
    with lab.step(f"{began} reauthenticates, {way}"):
        await swan.swanctl("--rekey", "--ike", CONNECTION, "--reauth")
        await until(partial(only_new, story, old), REKEY_SECONDS, "new SAs alone")
        await follow(story, evidence, 2)
        await flowing(story)
    now = await ike(story)
    lab.check(f"{way} by {began}: the IKE_SA is another one", now not in (first, "none"), f"not #{first}", f"#{now}")
    for flow, mark in zip(story.flows, marks, strict=True):
        lab.note(f"{flow.source} -> {flow.destination}, {way} by {began}: {flow.tally(mark, flow.next - 2)}")
    if way == MAKE_FIRST and swan is story.b:
        await lossless(story, story.flows[1:], marks[1:], f"{way} by {began}")
    again = [flow.next for flow in story.flows]
    await flowing(story)
    await lossless(story, story.flows, again, f"after {way} by {began}")


TALE = Tale("reauth", Connection(), _play, judged=Judged(lossy=True))


async def run(lab: Lab) -> None:
    """Play it."""
    await tell(lab, TALE)
