"""What charon does with tunnels, told one tale after the other by the same two gateways.

Where the lab needs a virtual machine, bringing everything up takes longer than a tale.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from ipsec_gw.errors import IpsecGwError
from ipsec_gw.lab.context import Lab
from ipsec_gw.lab.gateway import patient
from ipsec_gw.lab.matrix.case import Connection
from ipsec_gw.lab.matrix.ends import End
from ipsec_gw.lab.scenarios.configured import both, load, talkers
from ipsec_gw.lab.scenarios.site_to_site import charon_counts, leave
from ipsec_gw.lab.scenarios.truth import TOLD
from ipsec_gw.lab.scenarios.tunnel import (
    Story,
    bring_up,
    carry,
    end_flows,
    protected,
    quiet,
    set_up,
    spis,
    start_flows,
    terminate,
)
from ipsec_gw.lab.scenarios.verdicts import Evidence, Judged, judge_capture
from ipsec_gw.lab.strongswan import CONNECTION
from ipsec_gw.lab.traffic import until

PATIENT = patient(hang_seconds=10.0)
"""None of the tales is about a VPP that hangs, and on a loaded emulated machine one that is well may be silent for some
seconds."""

FAILURES = (IpsecGwError, OSError, TimeoutError)
BREAK_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Tale:
    """A connection of both gateways and what happens to it, told by ``play`` with the child ``net`` up and traffic
    between its networks.

    ``springs``: nothing is up, a packet has to bring it up. ``settings`` are lines of the gateway's own configuration.
    ``judged`` is what the captures may show. Without a ``baseline`` it is about ipsec-gw alone.
    """

    name: str
    connection: Connection
    play: Callable[[Story, Evidence], Awaitable[None]]
    springs: bool = False
    settings: str = ""
    judged: Judged = field(default_factory=Judged)
    baseline: bool = True


async def tell(lab: Lab, *tales: Tale) -> None:
    """Tell them, from no tunnel to no tunnel each, and judge everything that was captured."""
    if lab.options.baseline and not all(tale.baseline for tale in tales):
        raise IpsecGwError("this is about ipsec-gw alone - run it without --baseline")
    config = PATIENT + "".join(tale.settings for tale in tales)
    story = await set_up(lab, both(lab, tales[0].connection), config=config)
    told: list[Evidence] = []
    for number, tale in enumerate(tales):
        if number:
            with lab.step(f"{tale.name}: load the configuration"):
                await load(story, tale.connection)
        evidence = Evidence()
        told.append(evidence)
        try:
            await _tell(story, tale, evidence)
        except FAILURES as error:
            lab.check(f"{tale.name} is told to its end", False, "no error", f"{type(error).__name__}: {error}")
            await _break_off(story, evidence)
    *earlier, last = told
    judged = tales[0].judged
    for tale in tales[1:]:
        judged |= tale.judged
    judge_capture(lab, last, story.wan, story.lans, story.diaries, judged, earlier=earlier)
    await leave(story)


async def _tell(story: Story, tale: Tale, evidence: Evidence) -> None:
    if tale.springs:
        await protected(story, evidence)
        end_flows(story, *story.flows)
    else:
        start_flows(story, talkers(story.lab, End.CLIENT, End.SERVER))
        await bring_up(story, evidence)
        await carry(story, evidence)
    await tale.play(story, evidence)
    await quiet(story)
    await charon_counts(story, f"{tale.name}: {TOLD}")
    await terminate(story, evidence)


async def _break_off(story: Story, evidence: Evidence) -> None:
    """A tale that fails does not keep the others from being told. Raises IpsecGwError if tunnels cannot be ended."""
    end_flows(story, *story.flows)
    story.drain()
    frames = [len(capture.frames) for capture in story.wan.captures]
    evidence.up, evidence.down = evidence.up or frames, evidence.down or frames
    for swan in (story.a, story.b):
        await swan.settle()
        if spis(story):
            await swan.swanctl("--terminate", "--ike", CONNECTION, "--force", "--timeout", "5")
    await until(lambda: not spis(story), BREAK_SECONDS, "a kernel without SAs")
