"""GRE over IPsec: both gateways have a GRE device, and SAs for what it sends; BGP runs over it, in transport mode.

What routing sends out by the device goes to the engine, which does GRE and ESP, and what comes of it comes in by the
device. A rekey and the death of the engine are no flap. An IPIP device has the same, with static routes. In tunnel mode
a GRE device has addresses of its own, and an IPIP device those of the gateways.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from ipaddress import IPv4Network

from ipsec_gw.lab.capture import Frame, header
from ipsec_gw.lab.context import Lab
from ipsec_gw.lab.frr import TOOLS
from ipsec_gw.lab.gateway import PLAIN, GatewayUnderTest
from ipsec_gw.lab.matrix.case import Child, Connection
from ipsec_gw.lab.process import need_tools
from ipsec_gw.lab.process import run as call
from ipsec_gw.lab.scenarios.configured import GATEWAYS, both
from ipsec_gw.lab.scenarios.failover import finish, flowing
from ipsec_gw.lab.scenarios.frr import Link, bgp_comes, own_end, raise_links, unbroken
from ipsec_gw.lab.scenarios.route_based import OTHER_GATEWAY, engine_dies, hear_the_firewall, walled, walls_hold
from ipsec_gw.lab.scenarios.site_to_site import bracketed_exchange, rekey_under_traffic
from ipsec_gw.lab.scenarios.tunnel import Story, Talkers, bring_up, carry, set_up, start_flows
from ipsec_gw.lab.scenarios.verdicts import Evidence, few
from ipsec_gw.lab.topology import HOST, LAN, Role
from ipsec_gw.model.objects import ENCAPSULATIONS

NETWORK = IPv4Network("192.168.47.0/30")
CLEAR = frozenset(ENCAPSULATIONS.values())


ENDS = IPv4Network("192.0.2.0/30")
"""Addresses of the gateways that no packet on the WAN has."""


def _between(protocol: str, mode: str, ends: IPv4Network | None) -> Child:
    """The child for what a device sends."""
    sides = ("{here}", "{there}") if ends is None else tuple(str(own_end(ends, role)) for role in GATEWAYS)
    here, there = (f"{side}/32[{protocol}]" for side in sides)
    mirrored = (None, None) if ends is None else (there, here)
    return Child("net", here, there, options=(f"mode = {mode}",), local_b=mirrored[0], remote_b=mirrored[1])


def _link(interface: str, kind: str, protocol: str, mode: str = "transport", ends: IPv4Network | None = None) -> Link:
    connection = Connection(children=(_between(protocol, mode, ends),))
    return Link(interface, f"{kind} local {{here}} remote {{there}} ttl 64", NETWORK, 0, connection, ends)


GRE, IPIP = _link("gre1", "gre", "gre"), _link("ipip1", "ipip", "4")
GRE_TUNNEL, IPIP_TUNNEL = _link("gre1", "gre", "gre", "tunnel", ENDS), _link("ipip1", "ipip", "4", "tunnel")
MTU = {GRE: "1442", IPIP: "1446", GRE_TUNNEL: "1422", IPIP_TUNNEL: "1426"}
"""What fits into an ESP packet of 1,500 bytes behind the device's headers."""


async def run_gre(lab: Lab) -> None:
    """Play it with BGP over a GRE device."""
    need_tools(TOOLS)
    await _play(lab, GRE, by_bgp=True)


async def run_gre_with_firewall(lab: Lab) -> None:
    """Play it with the GRE device in a zone of its own, and routes by hand."""
    hear_the_firewall(lab)
    await _play(lab, GRE, walled(GRE.interface))


async def run_ipip(lab: Lab) -> None:
    """Play it with routes by hand over an IPIP device."""
    await _play(lab, IPIP)


async def run_gre_tunnel(lab: Lab) -> None:
    """Play it in tunnel mode, with a GRE device between addresses of its own."""
    await _play(lab, GRE_TUNNEL)


async def run_ipip_tunnel(lab: Lab) -> None:
    """Play it in tunnel mode, with an IPIP device between the gateways' own addresses."""
    await _play(lab, IPIP_TUNNEL)


async def _play(lab: Lab, link: Link, config: str = PLAIN, *, by_bgp: bool = False) -> None:
    for role in GATEWAYS:
        await raise_links(lab, role, (link,))
    await _fit(lab, link)
    before = await _mtu(lab, link)
    story = await set_up(lab, both(lab, link.connection), config=config)
    gateway = story.gateway
    if gateway is None:
        raise AssertionError("this is about ipsec-gw alone")
    start_flows(story, Talkers(lab.host(Role.CLIENT, HOST), lab.host(Role.SERVER, HOST), lab.host(Role.GATEWAY_A, LAN)))
    evidence = Evidence()
    await bring_up(story, evidence)
    await carry(story, evidence)
    bgp = await bgp_comes(story, (link,)) if by_bgp else None
    if bgp is None:
        await _routes(story, link)
    carried = await _mtu(lab, link)
    lab.check(f"{link.interface} has the MTU of its tunnel", carried == MTU[link], MTU[link], carried)
    await bracketed_exchange(story, "payload exchange")
    await _told(lab, link, gateway)
    if config != PLAIN:
        await walls_hold(story, gateway)
    await rekey_under_traffic(story, evidence)
    if bgp is not None:
        await unbroken(lab, *bgp, "after the rekeys")
    await engine_dies(story, gateway, evidence)
    await bracketed_exchange(story, "payload exchange at the end")
    if bgp is not None:
        await unbroken(lab, *bgp, "after the engine's death and return")
        with lab.step("stop FRR"):
            await bgp[0].stop()
    await finish(story, gateway, evidence, lossy=True, links=[link.network])
    _none_in_clear(lab, story, evidence)
    after = await _mtu(lab, link)
    lab.check(f"{link.interface} has its own MTU back", after == before, before, after)


async def _fit(lab: Lab, link: Link) -> None:
    """Give gateway B's device the MTU of the tunnel: nothing but the kernel sends by it, and that fragments before ESP,
    or sends packets with DF that do not fit.
    """
    words = ["ip", "link", "set", link.interface, "mtu", MTU[link]]
    await call(words, namespace=lab.topology.namespace(Role.GATEWAY_B))


async def _told(lab: Lab, link: Link, gateway: GatewayUnderTest) -> None:
    kind = link.kind.split()[0].upper()
    told, wanted = (
        (await gateway.status_now()).overlays,
        f"{kind} device {link.interface}: {gateway.engine} does {kind}",
    )
    lab.check("`show status` says who does what", told == (f"{wanted} and ESP",), f"{wanted} and ESP", "; ".join(told))


async def _routes(story: Story, link: Link) -> None:
    """To what is behind the other gateway."""
    for role, other in OTHER_GATEWAY.items():
        for network in story.lab.topology.behind(other):
            words = ["ip", "route", "add", str(network), "dev", link.interface]
            await call(words, namespace=story.lab.topology.namespace(role))
    await flowing(story)


async def _mtu(lab: Lab, link: Link) -> str:
    """Of gateway A's device."""
    shown = await call(["ip", "-n", lab.topology.namespace(Role.GATEWAY_A), "-j", "link", "show", link.interface])
    return str(json.loads(shown.stdout)[0]["mtu"])


def _none_in_clear(lab: Lab, story: Story, evidence: Evidence) -> None:
    """The device's own packets are between the gateways' addresses, which are no protected networks."""
    during: list[Frame] = []
    for capture, up, down in zip(story.wan.captures, evidence.up, evidence.down, strict=True):
        during += capture.frames[up:down]
    found = bare(during, CLEAR)
    lab.check("no packet of the device crosses the WAN without ESP", not found, "none", few(found))


def bare(frames: Sequence[Frame], protocols: Collection[int]) -> list[str]:
    """IP packets of these protocols, in words."""
    parsed = [header(frame.ip) for frame in frames if frame.ip is not None]
    return [f"{one.source} -> {one.destination} protocol {one.protocol}" for one in parsed if one.protocol in protocols]
