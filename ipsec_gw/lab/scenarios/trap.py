"""Trap: the first packet brings the tunnel up, from either side; it goes, and the next packet brings it up again.

It goes by DELETE in one round and for inactivity in the next one.
"""

from __future__ import annotations

from ipsec_gw.lab.context import Lab
from ipsec_gw.lab.kernel_sas import dump
from ipsec_gw.lab.matrix.case import Child, Connection
from ipsec_gw.lab.matrix.ends import End
from ipsec_gw.lab.scenarios.configured import talkers
from ipsec_gw.lab.scenarios.failover import flowing
from ipsec_gw.lab.scenarios.tale import Tale, tell
from ipsec_gw.lab.scenarios.tunnel import (
    REKEY_SECONDS,
    Story,
    follow,
    spis,
    start_flows,
)
from ipsec_gw.lab.scenarios.verdicts import Evidence, Judged, few
from ipsec_gw.lab.traffic import UdpFlow, until

ROUNDS = 5
INACTIVITY = 40
"""Seconds: longer than it takes to ask charon for its counters on an emulated machine that is loaded."""

CHILD = Child(options=("start_action = trap",), a=(f"inactivity = {INACTIVITY}s",))


async def _play(story: Story, evidence: Evidence) -> None:
    start_flows(story, talkers(story.lab, End.CLIENT, End.SERVER))
    for flow in story.flows:
        flow.pause()
    rounds = story.lab.options.rounds or ROUNDS
    for number in range(1, rounds + 1):
        await _spring(story, evidence, number)
        if number < rounds:
            await _go(story, evidence, number)


async def _spring(story: Story, evidence: Evidence, number: int) -> None:
    """One host sends, from one side and the other in turn; once it has come through the other one answers."""
    lab = story.lab
    first, second = story.flows if number % 2 else reversed(story.flows)
    marks = first.next, second.next
    with lab.step(f"round {number}: {first.source} sends"):
        first.resume()
        await until(lambda: len(spis(story)) == 2, REKEY_SECONDS, "a tunnel for a packet")
        born = spis(story)
        await follow(story, evidence, 2)
        await until(lambda: len(dump(story.b.site.namespace)) == 2, REKEY_SECONDS, "the tunnel at B")
        second.resume()
        await flowing(story)
    kept = spis(story) == born
    lab.check(f"round {number}: the tunnel's first SAs are carried", kept, "no rekey", "the same SPIs" if kept else "")
    for flow, mark in zip((first, second), marks, strict=True):
        flow.pause()
        await flow.settle(mark)
    await _judge(lab, number, first, marks[0])
    tally = second.tally(marks[1])
    name = f"round {number}: no packet {second.source} -> {second.destination} is lost or doubled"
    lab.check(name, tally.perfect, "0 lost, 0 twice, 0 corrupted", tally)


async def _judge(lab: Lab, number: int, flow: UdpFlow, mark: int) -> None:
    """The kernel drops packets until charon has the SA. Once one has come through, all do."""
    missing, tally = flow.missing(mark), flow.tally(mark)
    leading = missing == list(range(mark, mark + len(missing)))
    lab.note(f"round {number}: {flow.source} -> {flow.destination} {tally}")
    ok = leading and tally.received > 0 and (tally.duplicated, tally.corrupted) == (0, 0)
    name = f"round {number}: of {flow.source} -> {flow.destination} only the first packets are lost"
    lab.check(name, ok, "none after the first that arrived", few([n - mark for n in missing]))


async def _go(story: Story, evidence: Evidence, number: int) -> None:
    """By DELETE or for inactivity, with all flows paused."""
    by_delete = bool(number % 2)
    with story.lab.step(f"round {number}: the tunnel goes {'by DELETE' if by_delete else 'for inactivity'}"):
        if by_delete:
            await story.a.terminate()
        await until(lambda: not spis(story), 4 * INACTIVITY, "no tunnel")
        await follow(story, evidence, 0)


TALE = Tale("trap", Connection(children=(CHILD,)), _play, springs=True, judged=Judged(lossy=True))


async def run(lab: Lab) -> None:
    """Play it."""
    await tell(lab, TALE)
