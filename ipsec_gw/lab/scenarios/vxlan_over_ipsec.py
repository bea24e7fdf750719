"""VXLAN over IPsec: both gateways have a VXLAN device, and SAs for what it sends.

The engine does VXLAN and ESP, and the kernel what the engine leaves to it, and all of it once the engine is dead: then
the device's packets are the gateway's own. In transport mode, with routes by the device, there are two children, each
of which carries one way: packets go to the port of the device, and come from any. In a bridge the device joins both
LANs, and one child is for all UDP; so it is in tunnel mode, between addresses that no packet on the WAN has, and
between the gateways' own. Rekeys and the death of the engine happen under traffic, and hosts find out what fits into
the tunnel.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address, IPv4Network

from ipsec_gw.lab.capture import IPPROTO_UDP, Frame, header
from ipsec_gw.lab.context import Lab
from ipsec_gw.lab.gateway import PLAIN, GatewayUnderTest, ShownSa
from ipsec_gw.lab.matrix.case import Child, Connection
from ipsec_gw.lab.netns import set_sysctl
from ipsec_gw.lab.oracle import VXLAN_PORT
from ipsec_gw.lab.path_mtu import discovered
from ipsec_gw.lab.process import run as call
from ipsec_gw.lab.scenarios.configured import GATEWAYS, both
from ipsec_gw.lab.scenarios.conversations import finds_mtu
from ipsec_gw.lab.scenarios.failover import finish, flowing
from ipsec_gw.lab.scenarios.frr import NOWHERE, end, own_end, reach
from ipsec_gw.lab.scenarios.route_based import OTHER_GATEWAY, engine_dies
from ipsec_gw.lab.scenarios.site_to_site import bracketed_exchange, rekey_under_traffic
from ipsec_gw.lab.scenarios.tunnel import (
    Story,
    Talkers,
    bring_up,
    carries,
    carry,
    quiet,
    resume,
    set_up,
    spis,
    start_flows,
)
from ipsec_gw.lab.scenarios.verdicts import Evidence, few
from ipsec_gw.lab.strongswan import CHILD
from ipsec_gw.lab.topology import HOST, LAN, Role
from xdp_steer.reasons import Reason

DEVICE, BRIDGE, VNI = "vxlan1", "br0", 42
NETWORK = IPv4Network("192.168.48.0/30")
FITS = 1416
"""Bytes of IP packet that fit into an ESP packet of 1,500, behind the headers of Ethernet, VXLAN and UDP."""
ENDS, FITS_TUNNEL = IPv4Network("192.0.2.0/30"), FITS - 20
"""Of the device in tunnel mode, where the IP header is inside as well."""

MTU_PORT = 7700
TRUSTED_MS = "3600000"
_WORK = "{} does VXLAN and ESP"
_OUT, _LEFT, _BACK = (reason.label for reason in (Reason.XFRMI_OUT, Reason.XFRMI_LEFT, Reason.XFRMI_BACK))
"""Frames that were led to the engine, that were left to the kernel, and that came back to it."""

BACK = "back"
"""The child for what comes, beside the usual one for what goes."""


def _child(name: str, local: str, remote: str, mode: str = "transport") -> Child:
    return Child(name, f"dynamic[{local}]", f"dynamic[{remote}]", options=(f"mode = {mode}",))


@dataclass(frozen=True, slots=True)
class Way:
    """How a device is used: its children, by some of which gateway A never sends, and what hosts' packets reach it by
    once the tunnel is up.
    """

    children: tuple[Child, ...]
    join: Callable[[Lab], Awaitable[None]]
    silent: tuple[str, ...] = ()
    options: str = ""
    ends: IPv4Network | None = None
    fits: int = FITS

    @property
    def names(self) -> tuple[str, ...]:
        """Of the children."""
        return tuple(child.name for child in self.children)

    def uses(self, sa: ShownSa) -> bool:
        """Whether an SA carries something: of two children for a way each, one of a pair."""
        return not self.silent or (sa.child in self.silent) is (sa.direction == "in")


async def run_routed(lab: Lab) -> None:
    """Play it with routes by the device, whose MTU is the operator's work; without them nothing goes anywhere."""
    await _go_nowhere(lab)
    await _play(lab, ROUTED)


async def run_tunnel(lab: Lab) -> None:
    """The same in tunnel mode, between addresses of the device's own."""
    await _go_nowhere(lab)
    for role in GATEWAYS:
        await _ip(lab, role, *reach(lab, ENDS, role))
    await _play(lab, TUNNEL)


async def run_own_ends(lab: Lab) -> None:
    """In tunnel mode, between the gateways' own addresses."""
    await _go_nowhere(lab)
    await _play(lab, OWN_ENDS)


async def _go_nowhere(lab: Lab) -> None:
    for role, other in OTHER_GATEWAY.items():
        await _ip(lab, role, *(f"route add blackhole {net} metric {NOWHERE}" for net in lab.topology.behind(other)))


async def run_bridged(lab: Lab) -> None:
    """Play it with the device in a bridge, which can only tell hosts what is too long."""
    for role in GATEWAYS:
        address = lab.topology.port(role, LAN).address
        await _ip(
            lab,
            role,
            f"link add {BRIDGE} type bridge mcast_snooping 0",
            f"address del {address} dev {LAN}",
            f"link set {LAN} master {BRIDGE}",
            f"link set {BRIDGE} up",
            f"address add {address} dev {BRIDGE}",
        )
    await _play(lab, BRIDGED)


async def _route(lab: Lab) -> None:
    for role, other in OTHER_GATEWAY.items():
        routes = [f"route add {network} via {_link_address(other)}" for network in lab.topology.behind(other)]
        await _ip(lab, role, f"address add {_link_address(role)}/{NETWORK.prefixlen} dev {DEVICE}", *routes)
        _trust_neighbours(lab, role, DEVICE)


async def _bridge(lab: Lab) -> None:
    for role in GATEWAYS:
        await _ip(lab, role, f"link set {DEVICE} master {BRIDGE}")
    for role, device in ((Role.CLIENT, HOST), (Role.SERVER, HOST), (Role.GATEWAY_A, BRIDGE)):
        _trust_neighbours(lab, role, device)


def _trust_neighbours(lab: Lab, role: Role, device: str) -> None:
    """What waits for an SA to change hands waits for seconds on an emulated machine, and ARP's probes are among it."""
    set_sysctl(lab.topology.namespace(role), f"net/ipv4/neigh/{device}/base_reachable_time_ms", TRUSTED_MS)


ROUTED = Way(
    (_child(CHILD, "udp", f"udp/{VXLAN_PORT}"), _child(BACK, f"udp/{VXLAN_PORT}", "udp")),
    _route,
    silent=(BACK,),
    options=f" mtu {FITS}",
)
BRIDGED = Way((_child(CHILD, "udp", "udp"),), _bridge)


def _tunnel() -> Child:
    """The one for all UDP between the ends."""
    here, there = (f"{own_end(ENDS, role)}/32[udp]" for role in GATEWAYS)
    return Child(CHILD, here, there, options=("mode = tunnel",), local_b=there, remote_b=here)


TUNNEL = Way((_tunnel(),), _route, options=f" mtu {FITS_TUNNEL}", ends=ENDS, fits=FITS_TUNNEL)
OWN_ENDS = Way((_child(CHILD, "udp", "udp", "tunnel"),), _route, options=f" mtu {FITS_TUNNEL}", fits=FITS_TUNNEL)


async def _play(lab: Lab, way: Way) -> None:
    for role in GATEWAYS:
        await _raise_device(lab, role, way)
    story = await set_up(lab, both(lab, Connection(children=way.children)), config=PLAIN)
    gateway = story.gateway
    if gateway is None:
        raise AssertionError("this is about ipsec-gw alone")
    story.children, story.silent = way.names, way.silent
    client, server = lab.host(Role.CLIENT, HOST), lab.host(Role.SERVER, HOST)
    start_flows(story, Talkers(client, server, lab.host(Role.GATEWAY_A, LAN)))
    evidence = Evidence()
    await bring_up(story, evidence)
    await carry(story, evidence)
    evidence.engine_took(await carries(story, partial(spis, story), 2 * len(way.children), alone=True))
    await way.join(lab)  # not before, or hosts would talk in clear
    await flowing(story)
    told, wanted = (await gateway.status_now()).overlays, f"VXLAN device {DEVICE}: {_WORK.format(gateway.engine)}"
    lab.check("`show status` says who does what", told == (wanted,), wanted, "; ".join(told))
    before = await _work(story, gateway)
    await bracketed_exchange(story, "payload exchange", way.uses)
    _the_engine_did_it(lab, before, await _work(story, gateway))
    await rekey_under_traffic(story, evidence)
    found = discovered(client, (server.address, MTU_PORT), server)
    await finds_mtu(lab, "the client finds out what fits into the tunnel", way.fits, found)
    await engine_dies(story, gateway, evidence)
    told = (await gateway.status_now()).overlays
    lab.check("`show status` says it again", told == (wanted,), wanted, "; ".join(told))
    await bracketed_exchange(story, "payload exchange at the end", way.uses)
    await finish(story, gateway, evidence, lossy=True, links=[NETWORK], bridged=way is BRIDGED)
    _none_in_clear(lab, story, evidence)


@dataclass(frozen=True, slots=True)
class Work:
    """Frames of gateway A's device so far: led to the engine, kept from it, and sent by the device itself."""

    led: int
    kept: int
    sent: int


async def _work(story: Story, gateway: GatewayUnderTest) -> Work:
    """At a quiet moment."""
    await quiet(story)
    counted = (await gateway.status_now()).verdicts
    command = ["ip", "-n", story.lab.topology.namespace(Role.GATEWAY_A), "-s", "-j", "link", "show", DEVICE]
    sent = json.loads((await call(command)).stdout)[0]["stats64"]["tx"]["packets"]
    resume(story)
    return Work(counted[_OUT], counted[_LEFT] + counted[_BACK], sent)


def _the_engine_did_it(lab: Lab, before: Work, after: Work) -> None:
    """The device has sent nothing but what was kept from the engine. What is too long it only tells of."""
    led, kept, sent = after.led - before.led, after.kept - before.kept, after.sent - before.sent
    lab.check(f"frames of {DEVICE} are led to the engine", led > 0, "some", led)
    lab.check(f"the kernel's {DEVICE} sends none but those that are left to it", sent <= kept, f"{kept} at most", sent)


async def _raise_device(lab: Lab, role: Role, way: Way) -> None:
    here, there = (end(lab, way.ends, one) for one in (role, OTHER_GATEWAY[role]))
    kind = f"type vxlan id {VNI} local {here} remote {there} dstport {VXLAN_PORT}"
    await _ip(lab, role, f"link add {DEVICE}{way.options} {kind}", f"link set {DEVICE} up")


def _link_address(role: Role) -> IPv4Address:
    return NETWORK[1 + GATEWAYS.index(role)]


async def _ip(lab: Lab, role: Role, *lines: str) -> None:
    for line in lines:
        await call(["ip", *line.split()], namespace=lab.topology.namespace(role))


def _none_in_clear(lab: Lab, story: Story, evidence: Evidence) -> None:
    """The device's own packets are between the gateways' addresses, which are no protected networks."""
    during: list[Frame] = []
    for capture, up, down in zip(story.wan.captures, evidence.up, evidence.down, strict=True):
        during += capture.frames[up:down]
    found = of_vxlan(during)
    lab.check("no packet of the device crosses the WAN without ESP", not found, "none", few(found))


def of_vxlan(frames: Sequence[Frame]) -> list[str]:
    """What a VXLAN device has sent and nothing has encrypted, in words; of fragments, which have no ports, all UDP."""
    found = []
    for packet in (frame.ip for frame in frames):
        if packet is None or (parsed := header(packet)).protocol != IPPROTO_UDP:
            continue
        port = packet[parsed.header_bytes + 2 : parsed.header_bytes + 4]
        if parsed.fragment or port == VXLAN_PORT.to_bytes(2, "big"):
            found.append(f"{parsed.source} -> {parsed.destination} UDP, {len(packet)} bytes")
    return found
