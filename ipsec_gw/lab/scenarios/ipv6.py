"""Tunnels with IPv6: outside, inside, and both versions inside at once. One after the other, each as site to site."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from ipsec_gw.lab.capture import Captures
from ipsec_gw.lab.context import Lab
from ipsec_gw.lab.process import all_of
from ipsec_gw.lab.scenarios.site_to_site import bracketed_exchange, charon_counts, leave, rekey_under_traffic
from ipsec_gw.lab.scenarios.truth import TOLD
from ipsec_gw.lab.scenarios.tunnel import Story, Talkers, bring_up, carry, quiet, set_up, start_flows, terminate
from ipsec_gw.lab.scenarios.verdicts import Evidence, Judged, judge_capture
from ipsec_gw.lab.sites import site_of_versions
from ipsec_gw.lab.strongswan import Site
from ipsec_gw.lab.topology import HOST, LAN, Role
from ipsec_gw.model.sizes import inner_mtu

ICMP6_PROTOCOL, PACKET_TOO_BIG = 58, 2


@dataclass(frozen=True, slots=True)
class Shape:
    """A tunnel: its name, the IP version of its end points, and those of its networks."""

    name: str
    outer: int
    inner: tuple[int, ...]

    def sites(self, lab: Lab) -> tuple[Site, Site]:
        """Both configurations."""
        proposal = lab.options.proposal
        a, b = (
            site_of_versions(lab.topology, role, proposal, self.outer, self.inner)
            for role in (Role.GATEWAY_A, Role.GATEWAY_B)
        )
        return a, b

    def talkers(self, lab: Lab) -> tuple[Talkers, ...]:
        """Those of each version inside."""
        ends = {4: lab.host, 6: lab.host6}
        return tuple(
            Talkers(
                ends[version](Role.CLIENT, HOST),
                ends[version](Role.SERVER, HOST),
                ends[version](Role.GATEWAY_A, LAN),
                f", IPv{version}",
            )
            for version in self.inner
        )


SHAPES = (Shape("4+6in4", 4, (4, 6)), Shape("6in6", 6, (6,)), Shape("4in6", 6, (4,)))


async def run(lab: Lab) -> None:
    """Play it."""
    story: Story | None = None
    tunnels: list[Evidence] = []
    for shape in SHAPES:
        sites = shape.sites(lab)
        if story is None:
            story = await set_up(lab, sites)
        else:
            with lab.step(f"{shape.name}: load the configuration"):
                await all_of(story.a.reconfigure(sites[0]), story.b.reconfigure(sites[1]))
        tunnels.append(await _play(story, shape))
    if story is not None:
        judge_capture(lab, tunnels[-1], story.wan, story.lans, story.diaries, Judged(), earlier=tunnels[:-1])
        await leave(story)


async def _play(story: Story, shape: Shape) -> Evidence:
    """One tunnel from its birth to its end."""
    evidence = Evidence()
    begins = len(story.lans.captures[0].frames)
    start_flows(story, *shape.talkers(story.lab))
    await bring_up(story, evidence)
    await carry(story, evidence)
    await bracketed_exchange(story, shape.name)
    await rekey_under_traffic(story, evidence, (story.a,))
    await quiet(story)
    if 6 in shape.inner:
        _judge_path_mtu(story.lab, shape, story.lans, begins)
    await charon_counts(story, f"{shape.name}: {TOLD}")
    await terminate(story, evidence)
    return evidence


def _judge_path_mtu(lab: Lab, shape: Shape, lans: Captures, begins: int) -> None:
    """TCP of the client begins with segments that fill its own link: it has to be told what the tunnel takes."""
    told = set()
    for frame in lans.captures[0].frames[begins:]:
        packet = frame.ipv6
        if packet is None or frame.outgoing or packet[6] != ICMP6_PROTOCOL or packet[40] != PACKET_TOO_BIG:
            continue
        told.add(struct.unpack_from(">I", packet, 44)[0])
    wanted = inner_mtu(1500, shape.outer, encapsulated=False)
    lab.check(
        f"{shape.name}: the client is told the tunnel's MTU",
        told == {wanted},
        f"packet too big, {wanted} bytes",
        ", ".join(map(str, sorted(told))) or "nothing",
    )
