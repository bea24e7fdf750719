"""Esn: a peer's extended sequence numbers pass 2^32 under traffic, with replay windows of several sizes (RFC 4304).

The peer's kernel is told to go on shortly before that, which no receiver can tell from packets that were lost. The
engine counts up what the wire does not show, and so does the kernel's copy that it would carry on with: the operator
has it do so. What an engine sends begins at 1 and cannot be moved on, so its own numbers do not come that far here.
"""

from __future__ import annotations

import asyncio
import time

from ipsec_gw.lab.capture import Frame, esp_of
from ipsec_gw.lab.context import Lab
from ipsec_gw.lab.extended import counts, move_on
from ipsec_gw.lab.gateway import GatewayUnderTest
from ipsec_gw.lab.matrix.case import Child, Connection
from ipsec_gw.lab.matrix.ends import End
from ipsec_gw.lab.scenarios.configured import talkers
from ipsec_gw.lab.scenarios.failover import flowing, recorded, replay
from ipsec_gw.lab.scenarios.tale import Tale, tell
from ipsec_gw.lab.scenarios.tunnel import (
    POLL_SECONDS,
    REKEY_SECONDS,
    Story,
    add_flows,
    follow,
    lossless,
    quiet,
    resume,
    spis,
)
from ipsec_gw.lab.scenarios.verdicts import Evidence, Judged
from ipsec_gw.lab.traffic import until

EXTENDED, SHORT = "aes128gcm16-x25519-esn", "aes128gcm16-x25519"
WRAP = 1 << 32
BEFORE = 60
"""Packets from where the peer goes on to the last number of 32 bits."""

BEYOND = 40
"""Packets with numbers above that."""

SYNC_SECONDS = 15.0


def _window(size: int) -> tuple[str, ...]:
    return (f"replay_window = {size}",)


WINDOWS = {
    "net": (32, End.CLIENT, End.SERVER),
    "net2": (64, End.CLIENT_2, End.SERVER_2),
    "net3": (1024, End.CLIENT, End.SERVER_2),
    "net4": (0, End.CLIENT_2, End.SERVER),
}
"""Window and ends of each child. Without a window there are no extended numbers: the kernel wants one for them."""

CHILDREN = (
    Child("net", "{near}", "{far}", EXTENDED, _window(32)),
    Child("net2", "{near2}", "{far2}", EXTENDED, _window(64)),
    Child("net3", "{near}", "{far2}", EXTENDED, _window(1024), local_b="{near2}", remote_b="{far}"),
    Child("net4", "{near2}", "{far}", SHORT, _window(0), local_b="{near}", remote_b="{far2}"),
)


async def _play(story: Story, evidence: Evidence) -> None:
    gateway = story.gateway
    if gateway is None:
        raise AssertionError("this is about ipsec-gw alone")
    for child in CHILDREN[1:]:
        await story.a.initiate(child.name)
    await follow(story, evidence, 2 * len(CHILDREN))
    _, *others = (talkers(story.lab, *ends) for _, *ends in WINDOWS.values())
    add_flows(story, *others)
    await flowing(story)
    inbound = {child.name: await story.a.inbound(child.name) for child in CHILDREN}
    early = recorded(story)
    await _pass(story, inbound)
    await _replayed(story, inbound, early)
    await _hand_over(story, gateway, evidence)


async def _pass(story: Story, inbound: dict[str, int]) -> None:
    """The peer's numbers jump to the end of 32 bits and go on: not a packet is lost.

    Halfway first: near its beginning a receiver takes what is less than a window before 2^32 for something that came
    before 0 (RFC 4303 appendix A2.2).
    """
    lab, b = story.lab, story.b.site.namespace
    marks = [flow.next for flow in story.flows]
    extended = [inbound[name] for name, (window, *_) in WINDOWS.items() if window]
    with lab.step(f"the peer's numbers go on at 2^32 - {BEFORE}, and beyond"):
        for number in (WRAP // 2, WRAP - BEFORE):
            await quiet(story)
            for spi in extended:
                move_on(b, spi, number)
            resume(story)
            await flowing(story)
        enough = WRAP + BEYOND
        await until(lambda: all(counts(b)[spi].sent > enough for spi in extended), REKEY_SECONDS, "numbers of 33 bits")
    await lossless(story, story.flows, marks, "when the peer's numbers pass 2^32")
    told = await _windows(story, inbound)
    ok = all(number > WRAP for number in told.values())
    lab.check("the kernel's copies of the windows have passed 2^32 too", ok, f"above {WRAP}", told)


async def _windows(story: Story, inbound: dict[str, int]) -> dict[str, int]:
    """The highest number received, as the kernel has it of each child with a window; waits for the upper half."""
    end = time.monotonic() + SYNC_SECONDS
    while True:
        known = counts(story.a.site.namespace)
        told = {name: known[inbound[name]].received for name, (window, *_) in WINDOWS.items() if window}
        if all(number > WRAP for number in told.values()) or time.monotonic() > end:
            return told
        await asyncio.sleep(POLL_SECONDS)


async def _replayed(story: Story, inbound: dict[str, int], early: list[Frame]) -> None:
    """What was recorded before and after 2^32 comes again: only what has no window takes it."""
    await quiet(story)
    late = recorded(story)[len(early) :]
    for (name, (window, *_)), flow in zip(WINDOWS.items(), story.flows[1::2], strict=True):
        for when, frames in (("before", early), ("beyond", late)):
            mine = [frame for frame in frames if (packet := esp_of(frame)) is not None and packet.spi == inbound[name]]
            again = await replay(story, mine, flow)
            what = f"window {window}: what was sent {when} 2^32 is {'not ' if window else ''}accepted again"
            right = again == 0 if window else again > 0
            story.lab.check(what, bool(mine) and right, "0" if window else "some", f"{again} of {len(mine)}")
    resume(story)


async def _hand_over(story: Story, gateway: GatewayUnderTest, evidence: Evidence) -> None:
    """The operator gives all to the kernel and takes it back: the same SAs go on, then fresh ones."""
    lab = story.lab
    await flowing(story)
    old, marks = spis(story), [flow.next for flow in story.flows]
    with lab.step("ipsec-gw fallback"):
        await gateway.by_hand("fallback")
        await gateway.sas_when(lambda sas: all(sa.state == "kernel" for sa in sas), REKEY_SECONDS, "all in the kernel")
        await flowing(story)
    lab.check("the kernel carries the same SAs on beyond 2^32", spis(story) == old, "the same", len(spis(story) & old))
    with lab.step("ipsec-gw return"):
        await gateway.by_hand("return")
        await until(lambda: not spis(story) & old, 2 * REKEY_SECONDS, "fresh SAs")
        await follow(story, evidence, 2 * len(CHILDREN))
        await flowing(story)
    await lossless(story, story.flows, marks, "when the kernel takes over beyond 2^32 and gives back")


TALE = Tale(
    "esn",
    Connection(children=CHILDREN),
    _play,
    judged=Judged(taken_over=True, lossy=True, gaps=True),
    baseline=False,
)


async def run(lab: Lab) -> None:
    """Play it."""
    await tell(lab, TALE)
