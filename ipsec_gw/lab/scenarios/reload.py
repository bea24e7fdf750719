"""Reload: swanctl loads other connections under traffic. What is up stays as it is until charon makes it anew, and the
engine has what the kernel has at every moment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ipsec_gw.lab.context import Lab
from ipsec_gw.lab.kernel_sas import dump
from ipsec_gw.lab.matrix.case import Child, Connection
from ipsec_gw.lab.matrix.ends import End
from ipsec_gw.lab.scenarios.configured import load, talkers
from ipsec_gw.lab.scenarios.failover import flowing
from ipsec_gw.lab.scenarios.tale import Tale, tell
from ipsec_gw.lab.scenarios.tunnel import (
    REKEY_SECONDS,
    Story,
    add_flows,
    carries,
    end_flows,
    follow,
    lossless,
    spis,
)
from ipsec_gw.lab.scenarios.verdicts import Evidence, Judged
from ipsec_gw.lab.traffic import UdpFlow, until

FIRST = Child()
WIDER = Child("net", "{near},{near2}", "{far}", local_b="{near}", remote_b="{far},{far2}")
STRONGER = replace(WIDER, esp="aes256gcm16-x25519")
SECOND = Child("net2", "{near2}", "{far2}")
KEY_BYTES = {"aes128gcm16-x25519": 16, "aes256gcm16-x25519": 32}

LOADS = ("--load-all", "--load-conns")


def _site(*children: Child) -> Connection:
    return Connection(children=children)


async def _play(story: Story, evidence: Evidence) -> None:
    for command in LOADS:
        await _load(story, f"the same once more by {command}", FIRST, command=command)
    await _load(story, "a network more", WIDER)
    await _anew(story, evidence, WIDER)
    add_flows(story, talkers(story.lab, End.CLIENT_2, End.SERVER))
    await flowing(story)
    await _load(story, "another cipher", STRONGER, command="--load-conns")
    await _anew(story, evidence, STRONGER)
    await _second_child(story, evidence)
    await _first_vanishes(story, evidence)


async def _load(story: Story, what: str, *children: Child, command: str = "--load-all") -> None:
    """Nothing of what is up changes, nothing is to be done, and no packet is harmed."""
    lab, gateway = story.lab, story.gateway
    await flowing(story)
    marks, before = [flow.next for flow in story.flows], spis(story)
    steps = await gateway.steps() if gateway else 0
    with lab.step(f"load: {what}"):
        await load(story, _site(*children), command=command)
        await flowing(story)
    kept = spis(story)
    lab.check(f"what is up stays when charon loads {what}", kept == before, f"{len(before)} SAs", len(kept & before))
    await lossless(story, story.flows, marks, f"when charon loads {what}")
    if gateway is not None:
        due, done = await gateway.planned(), await gateway.steps() - steps
        name = f"nothing is planned and nothing is done when charon loads {what}"
        lab.check(name, not due and not done, "0 operations", f"{'; '.join(due) or 0} planned, {done} done")


async def _anew(story: Story, evidence: Evidence, child: Child) -> None:
    """Charon makes the child anew by its present configuration, and then takes the old one down.

    While both are up they claim the same networks, and the kernel sends with the new one. What comes loses a few
    packets, with strongSwan alone too: the peer sends with the new SA before charon here has installed it. With other
    selectors the child has another reqid, and the peer's policies refuse what still comes by the old SA; until the
    engine has changed over that is lost, as with strongSwan alone until charon has.
    """
    lab = story.lab
    marks, old, (number,) = [flow.next for flow in story.flows], spis(story), await story.a.children()
    with lab.step(f"{child.name} anew, with {child.local} to {child.remote}, {child.esp}"):
        await story.a.initiate(child.name)
        await carries(story, lambda: spis(story) - old, 2)
        await story.a.terminate_child(number)
        await until(lambda: len(spis(story)) == len(old) and not spis(story) & old, REKEY_SECONDS, "new SAs alone")
        await follow(story, evidence, 2)
        await flowing(story)
    sizes = {len(sa.key.reveal()) for sa in dump(story.a.site.namespace)}
    wanted = KEY_BYTES[child.esp]
    lab.check(f"the kernel has keys of {wanted} bytes after {child.local}", sizes == {wanted}, f"{wanted}", sizes)
    if child is STRONGER:
        await lossless(story, story.flows[::2], marks[::2], "when the same selectors are made anew")
    for flow, mark in zip(story.flows, marks, strict=True):
        tally = flow.tally(mark, flow.next - 2)
        lab.note(f"{flow.source} -> {flow.destination} while {child.name} is made anew: {tally}")


async def _second_child(story: Story, evidence: Evidence) -> None:
    """It comes up beside the first, which does not notice."""
    await _load(story, "a second child", STRONGER, SECOND)
    flows, marks = story.flows, [flow.next for flow in story.flows]
    with story.lab.step("bring the second child up"):
        await story.a.initiate(SECOND.name)
        await follow(story, evidence, 4)
    added = add_flows(story, talkers(story.lab, End.CLIENT_2, End.SERVER_2))
    await flowing(story)
    await lossless(story, flows, marks, "when a second child comes up")
    await lossless(story, added, [0, 0], "since the second child is carried")


async def _first_vanishes(story: Story, evidence: Evidence) -> None:
    """From the configuration first, which ends nothing; then by the operator's hand, and the second does not notice."""
    await _load(story, "the second child alone", SECOND)
    gone: Sequence[UdpFlow] = story.flows[:-2]
    end_flows(story, *gone)
    marks = [flow.next for flow in story.flows]
    with story.lab.step("take the first child down"):
        (number,) = await story.a.children()
        await story.a.terminate_child(number)
        await follow(story, evidence, 2)
        await flowing(story)
    await lossless(story, story.flows, marks, "when the first child is taken down")


TALE = Tale("reload", _site(FIRST), _play, judged=Judged(lossy=True))


async def run(lab: Lab) -> None:
    """Play it."""
    await tell(lab, TALE)
