"""Two sites with the same network: gateway A translates both of them, and strongSwan knows of neither.

Client and server have the same address. The tunnel's selectors name what site A is shown as and what site B really has.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

from ipsec_gw.lab.context import Lab
from ipsec_gw.lab.scenarios.conversations import SIZES, TCP_BYTES, answers_ping, both, judged
from ipsec_gw.lab.scenarios.firewall import Story, bring_up, check_counters, judge_wan, set_up
from ipsec_gw.lab.scenarios.rules import KNOWN, OPEN, SHOWN, overlapping_rules
from ipsec_gw.lab.sites import site_of
from ipsec_gw.lab.strongswan import Site
from ipsec_gw.lab.talk import Attempt, Heard, tcp, udp
from ipsec_gw.lab.topology import LAN, MTU, WAN, Role, Topology
from ipsec_gw.lab.traffic import Host

LONG = (2000, 4000)
"""Payloads that the sender cuts into fragments."""


async def run(lab: Lab) -> None:
    """Play it."""
    story = await set_up(lab, sites(lab.topology, lab.options.proposal), overlapping_rules(lab.topology))
    away, home = _there(story.server, KNOWN), _there(story.client, SHOWN)
    await _without_tunnel(story, away)
    await bring_up(story)
    await _both_ways(story, away, home)
    wan = lab.host(Role.GATEWAY_A, WAN)
    with lab.step("beside the tunnel"):
        name = "beside the tunnel: client to WAN with source NAT"
        await both(lab, name, story.client, (story.provider, OPEN), (wan.address,), "gateway A")
    await check_counters(story)
    judge_wan(story, [lab.topology.network(Role.GATEWAY_A, LAN), SHOWN, KNOWN])
    with lab.step("ipsec-gw off"):
        await story.gateway.off()


def sites(topology: Topology, proposal: str) -> tuple[Site, Site]:
    """What both strongSwans know: site A as it is shown, site B as it is."""
    a, b = (site_of(topology, role, proposal) for role in (Role.GATEWAY_A, Role.GATEWAY_B))
    return replace(a, local_network=SHOWN), replace(b, remote_network=SHOWN)


def _there(host: Host, network: IPv4Network) -> IPv4Address:
    """The address at the same place of another network of 24 bits."""
    return network[int(host.address) & 0xFF]


async def _without_tunnel(story: Story, away: IPv4Address) -> None:
    lab = story.lab
    with lab.step("try without the tunnel"), closing(Attempt(story.client, away, OPEN)) as attempt:
        # An echo by the same interfaces: what was sent before it has been judged when it is answered.
        await answers_ping(lab, "without a tunnel: client to WAN, ICMP", story.client, story.provider, 1)
        said = str(attempt.look())
    silent = "TCP silence, UDP silence"
    lab.check("without a tunnel, the other site is not there", said == silent, silent, said)


async def _both_ways(story: Story, away: IPv4Address, home: IPv4Address) -> None:
    ways = (
        ("client to server", story.client, story.server, away, home, 2),
        ("server to client", story.server, story.client, home, away, 4),
    )
    for way, caller, host, called, seen, number in ways:
        with story.lab.step(way):
            await _talk(story.lab, way, caller, host, called, seen)
            for again in range(2):
                name = f"tunnel: {way}, ICMP{' once more' if again else ''}"
                await answers_ping(story.lab, name, caller, Host(host.namespace, called), number + again)


async def _talk(lab: Lab, way: str, caller: Host, host: Host, called: IPv4Address, seen: IPv4Address) -> None:
    port, expected = OPEN, f"the server sees {seen}"
    target = (called, port)

    def translated(heard: Heard) -> bool:
        return heard.peer == seen

    def narrowed(heard: Heard) -> bool:
        """TCP has learnt what fits into the tunnel, from an error that was translated back."""
        return heard.peer == seen and heard.mtu < MTU

    await judged(
        lab,
        f"tunnel: {way}, TCP",
        f"{expected}, path MTU below {MTU}",
        tcp(caller, target, host, port, size=TCP_BYTES, seed=port),
        narrowed,
    )
    for kind, sizes_ in (("UDP", SIZES), ("UDP in fragments", LONG)):
        talk = udp(caller, target, host, port, sizes=sizes_, seed=port)
        await judged(lab, f"tunnel: {way}, {kind}", expected, talk, translated)
