"""Rekey storm: one rekey after the other under steady traffic, from either side or both at once, and nothing is lost.

Charon keeps an old inbound SA for some seconds, and the next rekey does not wait for that: several generations live
side by side, more of them than a tunnel of an engine holds.
"""

from __future__ import annotations

import random
from bisect import bisect
from collections import Counter
from functools import partial

from ipsec_gw.lab.context import Lab
from ipsec_gw.lab.process import CommandFailed
from ipsec_gw.lab.scenarios.site_to_site import leave
from ipsec_gw.lab.scenarios.tunnel import (
    REKEY_SECONDS,
    Story,
    bring_up,
    carried_again,
    carry,
    only_new,
    resume,
    set_up,
    spis,
    terminate,
)
from ipsec_gw.lab.scenarios.verdicts import Evidence
from ipsec_gw.lab.topology import LAN, Role
from ipsec_gw.lab.traffic import until
from ipsec_gw.lab.wire import clear_packets

REKEYS = 200
SETTINGS = "[gateway]\nhang_seconds = 10.0\nhold_seconds = 3.0\n"
"""Where the daemon is slower than the rekeys, packets wait for less than charon keeps an old inbound SA (5 s)."""
WAYS = {"gwa": ("a",), "gwb": ("b",), "both": ("a", "b")}


async def run(lab: Lab) -> None:
    """Play it."""
    dice = random.Random(lab.options.seed)  # noqa: S311 - repeatable, not secret
    story = await set_up(lab, config=SETTINGS)
    evidence = Evidence()
    await bring_up(story, evidence)
    await carry(story, evidence)
    await until(lambda: all(flow.next > 0 for flow in story.flows), 5.0, "steady traffic")
    _forget(story)
    marks = [flow.next for flow in story.flows]
    done: Counter[str] = Counter()
    rekeyed_at: list[tuple[int, ...]] = []
    most, leaked, rekeys = 0, 0, lab.options.rounds or REKEYS
    with lab.step(f"{rekeys} rekeys under steady traffic"):
        while done.total() < rekeys:
            who = dice.choice(list(WAYS))
            most = max(most, await _rekey(story, WAYS[who]))
            done[who] += 1
            rekeyed_at.append(tuple(flow.next for flow in story.flows))
            leaked += _forget(story)
    with lab.step("wait until the old SAs are gone"):
        first = spis(story)
        await story.a.rekey()
        await until(partial(only_new, story, first), REKEY_SECONDS, "new SAs alone")
        if story.gateway is not None:
            await carried_again(story, story.gateway, evidence)
    lab.note(f"seed {lab.options.seed}, rekeys by who began them: {dict(sorted(done.items()))}")
    lab.check("several generations of SAs lived side by side", most > 2, "more than 2 SAs at a time", most)
    await _judge(story, marks, rekeyed_at)
    leaked += _forget(story)
    lab.check("nothing of the protected networks crossed the WAN in clear", leaked == 0, "0 packets", leaked)
    resume(story)
    await terminate(story, evidence)
    await leave(story)


async def _rekey(story: Story, who: tuple[str, ...]) -> int:
    """One, which is over when there are new SAs; returns how many there were then."""
    before = spis(story)
    for name in who:
        try:
            await (story.a if name == "a" else story.b).rekey()
        except CommandFailed:
            continue  # the other side's rekey is under way
    await until(lambda: bool(spis(story) - before), REKEY_SECONDS, f"new SAs after a rekey by {who}")
    return len(spis(story))


def _forget(story: Story) -> int:
    """Let go of what was captured since last time; returns how many of its packets were in clear."""
    topology = story.lab.topology
    networks = topology.network(Role.GATEWAY_A, LAN), topology.network(Role.GATEWAY_B, LAN)
    story.drain()
    leaked = 0
    for capture in (*story.wan.captures, *story.lans.captures):
        if capture in story.wan.captures:
            leaked += len(clear_packets(capture.frames, networks))
        capture.frames.clear()
    return leaked


async def _judge(story: Story, marks: list[int], rekeyed_at: list[tuple[int, ...]]) -> None:
    lab = story.lab
    for at, (flow, mark) in enumerate(zip(story.flows, marks, strict=True)):
        flow.pause()
        tally = await flow.settle(mark)
        by_rekey = Counter(bisect([passed[at] for passed in rekeyed_at], number) for number in flow.missing(mark))
        for rekey, lost in sorted(by_rekey.items()):
            lab.note(f"lost {flow.source} -> {flow.destination} after rekey {rekey}: {lost} packets")
        blocked = tally.lost / flow.rate / len(rekeyed_at)
        lab.note(f"effective blocked time {flow.source} -> {flow.destination}: {1000 * blocked:.2f} ms a rekey")
        lab.check(
            f"no packet {flow.source} -> {flow.destination} is lost or doubled by the rekeys",
            tally.perfect,
            "0 lost, 0 twice, 0 corrupted",
            tally,
        )
