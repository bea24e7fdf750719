"""Frr: both gateways speak BGP through their tunnel, over an XFRM interface, and have their routes from it alone.

A prefix is withdrawn and comes again; it moves to a second tunnel and back. The session survives a rekey, and the death
and the return of the engine. Where BGP has no route a gateway has one of the last resort, to nowhere, as careful
operators have it: nothing goes to the WAN in clear.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import TypeVar

from ipsec_gw.lab.context import Lab
from ipsec_gw.lab.frr import HOLD_SECONDS, KEEPALIVE_SECONDS, TOOLS, BgpSession, Frr, Neighbor, Router
from ipsec_gw.lab.gateway import PLAIN, ShownSa
from ipsec_gw.lab.matrix.case import Child, Connection
from ipsec_gw.lab.process import need_tools
from ipsec_gw.lab.process import run as call
from ipsec_gw.lab.scenarios.configured import GATEWAYS, both
from ipsec_gw.lab.scenarios.failover import finish, flowing
from ipsec_gw.lab.scenarios.route_based import OTHER_GATEWAY, engine_dies
from ipsec_gw.lab.scenarios.site_to_site import bracketed, bracketed_exchange, rekey_under_traffic
from ipsec_gw.lab.scenarios.tunnel import Story, Talkers, bring_up, carry, follow, lossless, set_up, spis, start_flows
from ipsec_gw.lab.scenarios.verdicts import Evidence, few
from ipsec_gw.lab.topology import HOST, LAN, WAN, Role
from ipsec_gw.lab.traffic import Host, TrafficError, tcp_echo, until
from ipsec_gw.model.ids import IpAddress, IpNetwork

NOWHERE = "4278198272"
"""A metric whose upper byte is 255: to zebra such a route has the distance that everything else goes before."""

ROUTE_SECONDS = 60.0
POLL_SECONDS = 0.5
SILENT_SECONDS = 30.0
CLOCK_SECONDS = 2
"""FRR tells the start of a session as a difference of two clocks, in whole seconds."""

MOVED_PORT, MOVED_BYTES, MOVED_SEED = 8100, 200_000, 81
ASNS = {Role.GATEWAY_A: 65001, Role.GATEWAY_B: 65002}
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Link:
    """An interface at both gateways into which routing sends what a tunnel carries, with a network of its own: ``kind``
    is what `ip link add` calls it, the gateways' addresses in braces; with ``ends`` those are not the outer ones, but
    the first of that network, which they have besides. The routers prefer the link with the greater ``weight``.
    """

    interface: str
    kind: str
    network: IPv4Network
    weight: int
    connection: Connection
    ends: IPv4Network | None = None

    def address(self, role: Role) -> IPv4Address:
        """A gateway's own."""
        return self.network[1 + GATEWAYS.index(role)]

    def added(self, lab: Lab, role: Role) -> str:
        """As `ip` adds it."""
        here, there = (end(lab, self.ends, one) for one in (role, OTHER_GATEWAY[role]))
        return f"link add {self.interface} type {self.kind.format(here=here, there=there)}"


def end(lab: Lab, ends: IPv4Network | None, role: Role) -> IpAddress:
    """A gateway's address that a device sends from: the outer one, or its own of ``ends``."""
    return lab.topology.address(role, WAN) if ends is None else own_end(ends, role)


def own_end(ends: IPv4Network, role: Role) -> IPv4Address:
    """The address of a gateway that is no outer one of its tunnels."""
    return ends[1 + GATEWAYS.index(role)]


def reach(lab: Lab, ends: IPv4Network, role: Role) -> tuple[str, str]:
    """What gives a gateway its own, and the way to the other's, as ip takes it."""
    other = OTHER_GATEWAY[role]
    way = lab.topology.address(other, WAN)
    return f"addr add {own_end(ends, role)}/32 dev lo", f"route add {own_end(ends, other)}/32 via {way}"


def _link(number: int, connection: str, child: str, weight: int) -> Link:
    if_id = 42 + number
    anything = Child(child, "0.0.0.0/0", "0.0.0.0/0")
    options = (f"if_id_in = {if_id}", f"if_id_out = {if_id}")
    role = f"-{connection}" if number else ""
    return Link(
        f"ipsec{number}",
        f"xfrm dev {WAN} if_id {if_id}",
        IPv4Network(f"192.168.{if_id}.0/30"),
        weight,
        Connection(connection, (anything,), options=options, role=role),
    )


FIRST, SECOND = LINKS = (_link(0, "site", "net", 100), _link(1, "second", "net2", 0))

ACCELERATE = "".join(f'\n[connections.{link.connection.name}]\nmode = "accelerate"\n' for link in LINKS)
"""strongSwan before 5.9.10 does not see that an XFRM interface is used; these children have no `inactivity`."""


@dataclass(frozen=True, slots=True)
class Routers:
    """Both gateways' FRR, by the gateway, and the link that they prefer."""

    by_role: Mapping[Role, Frr]
    first: Link

    @property
    def b(self) -> Frr:
        """That of gateway B."""
        return self.by_role[Role.GATEWAY_B]

    async def session(self, role: Role, link: Link) -> BgpSession:
        """What a gateway says of its neighbor on a link."""
        return await self.by_role[role].session(link.address(OTHER_GATEWAY[role]))

    async def stop(self) -> None:
        """End both."""
        for frr in self.by_role.values():
            await frr.stop()


async def run(lab: Lab) -> None:
    """Play it."""
    need_tools(TOOLS)
    for role in GATEWAYS:
        await raise_links(lab, role, LINKS)
    story = await set_up(lab, both(lab, *(link.connection for link in LINKS)), config=PLAIN + ACCELERATE)
    gateway = story.gateway
    if gateway is None:
        raise AssertionError("this is about ipsec-gw alone")
    client, inside = lab.host(Role.CLIENT, HOST), lab.host(Role.GATEWAY_A, LAN)
    start_flows(
        story,
        Talkers(client, lab.host(Role.SERVER, HOST), inside),
        Talkers(client, _second_server(lab), inside, " in the second network"),
    )
    evidence = Evidence()
    await bring_up(story, evidence)
    await carry(story, evidence)
    routers, first = await bgp_comes(story, LINKS)
    await bracketed_exchange(story, "payload exchange")
    await rekey_under_traffic(story, evidence)
    await unbroken(lab, routers, first, "after the rekeys")
    await _prefix_goes(story, routers)
    await _prefix_moves(story, routers, evidence)
    await unbroken(lab, routers, first, "after the moves")
    await engine_dies(story, gateway, evidence)
    await unbroken(lab, routers, first, "after the engine's death and return")
    with lab.step("stop FRR"):
        await routers.stop()
    await finish(story, gateway, evidence, lossy=True, links=[link.network for link in LINKS])


def _second_server(lab: Lab) -> Host:
    (address,) = lab.topology.port(Role.SERVER, HOST).further
    return Host(lab.topology.namespace(Role.SERVER), address.ip)


def _second_network(lab: Lab) -> IPv4Network:
    (address,) = lab.topology.port(Role.GATEWAY_B, LAN).further
    return IPv4Network(address.network)


async def raise_links(lab: Lab, role: Role, links: Sequence[Link]) -> None:
    """Make a gateway's interfaces, and its routes of the last resort."""
    lines = [
        line
        for link in links
        for line in (
            *(() if link.ends is None else reach(lab, link.ends, role)),
            link.added(lab, role),
            f"addr add {link.address(role)}/{link.network.prefixlen} dev {link.interface}",
            f"link set {link.interface} up",
        )
    ]
    await _ip(lab, role, *lines, *_no_way(lab, role))


def _no_way(lab: Lab, role: Role) -> list[str]:
    """The routes of the last resort, as ip takes them."""
    networks = lab.topology.behind(OTHER_GATEWAY[role])
    return [f"route add unreachable {network} metric {NOWHERE}" for network in networks]


async def _ip(lab: Lab, role: Role, *lines: str) -> None:
    await call(["ip", "-n", lab.topology.namespace(role), "-batch", "-"], stdin="\n".join(lines) + "\n")


async def _start_routers(lab: Lab, links: Sequence[Link]) -> Routers:
    """FRR at both gateways, announcing what is behind them."""
    started: dict[Role, Frr] = {}
    for role in GATEWAYS:
        neighbors = tuple(Neighbor(link.address(OTHER_GATEWAY[role]), link.weight) for link in links)
        networks = tuple(IPv4Network(network) for network in lab.topology.behind(role))
        router = Router(role, lab.topology.namespace(role), ASNS[role], links[0].address(role), neighbors, networks)
        started[role] = await Frr.start(router, lab.session.run_dir / f"frr-{role}")
        lab.stack.push_async_callback(started[role].stop)
        for pid in started[role].pids:
            lab.watch_process(pid)
    return Routers(started, links[0])


async def bgp_comes(story: Story, links: Sequence[Link]) -> tuple[Routers, Mapping[Role, BgpSession]]:
    """The session comes up through the first link's tunnel, and brings the routes; returns the gateways' sessions."""
    lab, link = story.lab, links[0]
    async with bracketed(story, "BGP comes up"):
        routers = await _start_routers(lab, links)
        first = {role: await _up(routers, role, link) for role in GATEWAYS}
        for role, other in OTHER_GATEWAY.items():
            lab.check(f"{role} has a BGP session", first[role].up, "Established", first[role])
            for network in lab.topology.behind(other):
                way = await _way_becomes(lab, role, network, link.interface)
                lab.check(f"{role} has its route to {network} from BGP", way == link.interface, link.interface, way)
    await flowing(story)
    return routers, first


async def _up(routers: Routers, role: Role, link: Link) -> BgpSession:
    """A gateway's session on a link when it is up, or as it is in the end."""
    return await _when(lambda: routers.session(role, link), lambda session: session.up, 2.0 * HOLD_SECONDS)


async def _when(
    ask: Callable[[], Awaitable[Answer]], holds: Callable[[Answer], bool], seconds: float = ROUTE_SECONDS
) -> Answer:
    """The first answer that holds, or the last one of ``seconds``."""
    deadline = asyncio.get_running_loop().time() + seconds
    while True:
        said = await ask()
        if holds(said) or asyncio.get_running_loop().time() > deadline:
            return said
        await asyncio.sleep(POLL_SECONDS)


async def _way_becomes(lab: Lab, role: Role, network: IpNetwork, wanted: str) -> str:
    return await _when(lambda: _way(lab, role, network), lambda found: found == wanted)


async def _way(lab: Lab, role: Role, network: IpNetwork) -> str:
    """The interfaces by which a gateway's kernel has a route to a network from BGP; "none" without one."""
    shown = await call(["ip", "-n", lab.topology.namespace(role), "-j", "route", "show", str(network)])
    found = [str(route.get("dev")) for route in json.loads(shown.stdout or "[]") if route.get("protocol") == "bgp"]
    return ", ".join(found) or "none"


async def _prefix_goes(story: Story, routers: Routers) -> None:
    """B withdraws the second network, and announces it again."""
    lab, keys = story.lab, spis(story)
    network = _second_network(lab)
    *others, there, _ = story.flows
    marks = [flow.next for flow in others]
    with lab.step(f"{network} is withdrawn"):
        await routers.b.configure(f"no network {network}")
        gone = await _way_becomes(lab, Role.GATEWAY_A, network, "none")
        mark = there.next
        await until(lambda: there.next >= mark + 50, SILENT_SECONDS, "more traffic")
    lab.check(f"{network} is withdrawn: A has no route", gone == "none", "none", gone)
    arrived = there.tally(mark).received
    lab.check("nothing goes into the tunnel for a prefix that is withdrawn", not arrived, "0 arrived", arrived)
    await lossless(story, others, marks, "when another prefix is withdrawn")
    with lab.step(f"{network} is announced again"):
        await routers.b.configure(f"network {network}")
        back = await _way_becomes(lab, Role.GATEWAY_A, network, FIRST.interface)
    lab.check(f"{network} is announced again: A has its route", back == FIRST.interface, FIRST.interface, back)
    await flowing(story)
    now = spis(story)
    lab.check("the SAs are the same, whatever BGP says", now == keys, few(sorted(keys)), few(sorted(now)))


async def _prefix_moves(story: Story, routers: Routers, evidence: Evidence) -> None:
    """The second network to a second tunnel, and back. What comes from it stays in the first one."""
    lab = story.lab
    with lab.step("bring the second tunnel up"):
        await story.a.initiate(SECOND.connection.children[0].name)
        await follow(story, evidence, 2 * len(LINKS))
        session = await _up(routers, Role.GATEWAY_A, SECOND)
    lab.check("BGP comes up in the second tunnel too", session.up, "Established", session)
    await _move(story, routers, SECOND)
    name = "the second network's way is the second tunnel"
    async with bracketed(story, name, _takes_two_ways):
        client, server = lab.host(Role.CLIENT, HOST), _second_server(lab)
        try:
            said = await tcp_echo(client, server, port=MOVED_PORT, size=MOVED_BYTES, seed=MOVED_SEED)
        except TrafficError as error:
            lab.check(f"{name}: TCP", False, "payloads come back unchanged", error)
        else:
            lab.check(f"{name}: TCP", True, "payloads come back unchanged", said)
    await _move(story, routers, FIRST)
    with lab.step("take the second tunnel down"):
        await routers.b.configure(f"neighbor {SECOND.address(Role.GATEWAY_A)} shutdown")
        await story.a.swanctl("--terminate", "--ike", SECOND.connection.name, "--timeout", "30")
        await follow(story, evidence, 2)
        await flowing(story)


def _takes_two_ways(sa: ShownSa) -> bool:
    """There by the second tunnel, back by the first."""
    there, back = (link.connection.children[0].name for link in (SECOND, FIRST))
    return (sa.child, sa.direction) in {(there, "out"), (back, "in")}


async def _move(story: Story, routers: Routers, link: Link) -> None:
    """B announces the second network on the second link alone, or (with the first) on both again."""
    lab, network = story.lab, _second_network(story.lab)
    what = f"when {network} moves to {link.interface}"
    await flowing(story)
    marks = [flow.next for flow in story.flows]
    with lab.step(what):
        await routers.b.vtysh(
            "configure terminal",
            f"ip prefix-list moved seq 5 deny {network}",
            "ip prefix-list moved seq 10 permit any",
        )
        no = "" if link is SECOND else "no "
        await routers.b.configure(f"{no}neighbor {FIRST.address(Role.GATEWAY_A)} prefix-list moved out")
        found = await _way_becomes(lab, Role.GATEWAY_A, network, link.interface)
        await flowing(story)
    lab.check(f"{network} moves to {link.interface}", found == link.interface, link.interface, found)
    await lossless(story, story.flows, marks, what)


async def unbroken(lab: Lab, routers: Routers, first: Mapping[Role, BgpSession], when: str) -> None:
    """The session is the first one still, and not only for want of a timeout: each hears the other again."""
    with lab.step(f"BGP {when}"):
        now = await asyncio.gather(*(_hears(routers, role) for role in GATEWAYS))
    for role, (session, heard) in zip(GATEWAYS, now, strict=True):
        same = abs(session.since - first[role].since) <= CLOCK_SECONDS
        same = same and session.up and (session.came, session.went) == (first[role].came, first[role].went)
        lab.check(f"{role} has the same BGP session {when}", same, str(first[role]), session)
        lab.check(f"{role} hears its neighbor {when}", heard > 0, "1 message or more", heard)


async def _hears(routers: Routers, role: Role) -> tuple[BgpSession, int]:
    """The session when a message has come, and how many have."""
    before = await routers.session(role, routers.first)
    now = await _when(
        lambda: routers.session(role, routers.first),
        lambda session: session.received > before.received,
        3.0 * KEEPALIVE_SECONDS,
    )
    return now, now.received - before.received
