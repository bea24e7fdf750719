"""Site to site: a tunnel between two unmodified strongSwans, the left gateway accelerated, the right one not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial

from ipsec_gw.lab.context import Lab
from ipsec_gw.lab.gateway import GatewayUnderTest, ShownSa
from ipsec_gw.lab.netns import xfrm_errors
from ipsec_gw.lab.scenarios.truth import TOLD, counter_truth
from ipsec_gw.lab.scenarios.tunnel import (
    REKEY_SECONDS,
    Story,
    Talkers,
    bring_up,
    carried_again,
    carry,
    lossless,
    only_new,
    packets,
    quiet,
    resume,
    set_up,
    spis,
    terminate,
    wan_frames,
)
from ipsec_gw.lab.scenarios.verdicts import Evidence, Judged, Reading, judge_capture, judge_counters
from ipsec_gw.lab.strongswan import Swan
from ipsec_gw.lab.topology import WAN, Role
from ipsec_gw.lab.traffic import TrafficError, ping, tcp_echo, udp_echo, until
from ipsec_gw.lab.wire import count_by_sa

TCP_BYTES = 200_000
SIZES = (1, 64, 511, 1200, 1368)
"""Payloads of single packets, up to what fits any tunnel over a 1500-byte WAN unfragmented: VXLAN over tunnel mode has
1,396 bytes for an IP packet. A longer one is lost where the sender has not learnt that yet.
"""

READ_SECONDS = 60.0

REKEYS = {1: "a rekey", 2: "two rekeys"}


async def run(lab: Lab) -> None:
    """Play it."""
    story = await set_up(lab)
    evidence = Evidence()
    flow_marks = await bring_up(story, evidence)
    await carry(story, evidence)
    await bracketed_exchange(story, "payload exchange")
    await rekey_under_traffic(story, evidence)
    await bracketed_exchange(story, "payload exchange after the rekeys")
    await conclude(story, evidence, flow_marks)


async def conclude(story: Story, evidence: Evidence, flow_marks: tuple[int, ...]) -> None:
    """Take the tunnel down, judge everything that was captured, and leave."""
    lab = story.lab
    await quiet(story)
    for flow, mark in zip(story.flows, flow_marks, strict=True):
        lab.note(f"UDP {flow.source} -> {flow.destination} since the tunnel is up: {flow.tally(mark)}")
    await charon_counts(story)
    await terminate(story, evidence)
    judge_capture(lab, evidence, story.wan, story.lans, story.diaries, Judged(lossy=Role.NAT in lab.topology.roles))
    await leave(story)


async def charon_counts(story: Story, name: str = TOLD) -> None:
    """Hold charon's counters against the wire, at a quiet moment. A NAT may have dropped what B sent."""
    here = {str(address) for address in story.lab.topology.addresses(Role.GATEWAY_A, WAN)}
    sent_by = here if Role.NAT in story.lab.topology.roles else None
    await counter_truth(story.lab, story.a, story.gateway, count_by_sa(packets(story)), sent_by=sent_by, name=name)


async def leave(story: Story) -> None:
    """Note the kernels' errors, and take the gateway's way out."""
    lab = story.lab
    for swan in (story.a, story.b):
        lab.note(f"IPsec error counters of {swan.site.identity}: {xfrm_errors(swan.site.namespace) or 'all 0'}")
    if story.gateway is not None:
        with lab.step("ipsec-gw off"):
            await story.gateway.off()


async def bracketed_exchange(story: Story, name: str, which: Callable[[ShownSa], bool] = lambda _: True) -> None:
    """TCP, UDP and ICMP between two quiet moments, so that every counter can be held against the wire, of those SAs
    ``which`` carry something.
    """
    async with bracketed(story, name, which):
        for talkers in story.talkers:
            await _exchange(story.lab, name, talkers)


@asynccontextmanager
async def bracketed(story: Story, name: str, which: Callable[[ShownSa], bool] = lambda _: True) -> AsyncIterator[None]:
    """What is done meanwhile is all that goes on, and the counters of those SAs that it uses are held against the
    wire.
    """
    lab, gateway = story.lab, story.gateway
    with lab.step(f"{name}: wait for silence and read counters"):
        await quiet(story)
        before = await _read(story, gateway) if gateway else None
        wire_before = count_by_sa(packets(story))
    with lab.step(name):
        yield
        await quiet(story)
    if gateway is not None and before is not None:
        with lab.step(f"{name}: read counters"):
            after = await _read(story, gateway)
        judge_counters(lab, name, before, after, count_by_sa(packets(story)) - wire_before, which)
    resume(story)


async def _read(story: Story, gateway: GatewayUnderTest) -> Reading:
    """By the commands, and if something passed the WAN meanwhile, again and faster: a routing protocol is never quiet
    for long. Raises TrafficError.
    """
    deadline = asyncio.get_running_loop().time() + READ_SECONDS
    passed = wan_frames(story)
    status, sas = await asyncio.gather(gateway.status(), gateway.sas())
    while (now := wan_frames(story)) != passed:
        if asyncio.get_running_loop().time() > deadline:
            raise TrafficError(f"the WAN was never quiet long enough to read counters in {READ_SECONDS:.0f} s")
        passed = now
        status, sas = await asyncio.gather(gateway.status_now(), gateway.sas_now())
    return Reading(status, sas)


async def _exchange(lab: Lab, name: str, talkers: Talkers) -> None:
    client, server, gateway = talkers.client, talkers.server, talkers.gateway
    labels = {client: "client", server: "server", gateway: "gateway A itself"}
    pairs = ((client, server), (server, client), (gateway, server), (server, gateway))
    for number, (left, right) in enumerate(pairs):
        way, port, seed = f"{labels[left]} to {labels[right]}{talkers.label}", 8000 + number, 100 + number
        talks = (
            (f"TCP {way}", tcp_echo(left, right, port=port, size=TCP_BYTES, seed=seed)),
            (f"UDP {way}", udp_echo(left, right, port=port, sizes=SIZES, seed=seed)),
            (f"ICMP {way}", ping(left, right, identifier=port, sizes=SIZES, seed=seed)),
        )
        for what, talk in talks:
            try:
                lab.check(f"{name}: {what}", True, "payloads come back unchanged", await talk)
            except TrafficError as error:
                lab.check(f"{name}: {what}", False, "payloads come back unchanged", error)


async def rekey_under_traffic(story: Story, evidence: Evidence, initiators: Sequence[Swan] = ()) -> None:
    """A rekey from each of them, by default from both, and not a packet lost."""
    lab = story.lab
    initiators = initiators or (story.a, story.b)
    await until(lambda: all(flow.next > 0 for flow in story.flows), 5.0, "steady traffic")
    marks = [flow.next for flow in story.flows]
    for swan in initiators:
        with lab.step(f"rekey from {swan.site.identity} under steady traffic"):
            old = spis(story)
            await swan.rekey()
            # charon keeps the old inbound SA for delete_rekeyed_delay (5 s): the rekey is over when that has gone.
            await until(partial(only_new, story, old), REKEY_SECONDS, "new SAs alone")
            if story.gateway is not None:
                await carried_again(story, story.gateway, evidence)
    await lossless(story, story.flows, marks, f"by {REKEYS[len(initiators)]}")
