"""Route-based: both gateways have an XFRM interface, or a VTI device, the tunnel is for anything, and routing says what
goes into it.

What the kernel routes goes to the engine, and comes back by the same interface. A route that goes takes its traffic out
of the tunnel, and one that comes brings it in, without a word to strongSwan.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from dataclasses import dataclass, replace
from ipaddress import ip_network
from pathlib import Path

from ipsec_gw.lab.context import Lab
from ipsec_gw.lab.gateway import PLAIN, GatewayUnderTest
from ipsec_gw.lab.netns import inside
from ipsec_gw.lab.process import run as call
from ipsec_gw.lab.scenarios.failover import death, finish, flowing, kill_daemon, kill_vpp
from ipsec_gw.lab.scenarios.rules import ZONES
from ipsec_gw.lab.scenarios.site_to_site import bracketed_exchange, rekey_under_traffic
from ipsec_gw.lab.scenarios.tunnel import Story, Talkers, bring_up, carry, set_up, spis, start_flows
from ipsec_gw.lab.scenarios.verdicts import Evidence, few
from ipsec_gw.lab.sites import site_of
from ipsec_gw.lab.strongswan import CONNECTION, NO_ROUTES, Site
from ipsec_gw.lab.topology import HOST, LAN, WAN, Role
from ipsec_gw.lab.traffic import TrafficError, udp_echo, until
from ipsec_gw.lab.xdp_peer import pass_all

INTERFACE, NUMBER = "ipsec0", 42
ANYTHING = ip_network("0.0.0.0/0")
SILENT_SECONDS = 30.0
GROUP, GROUP_PORT, GROUP_SECONDS = "224.0.0.250", 7444, 10.0
"""Of the local network control block, unassigned (RFC 5771)."""
OTHER_GATEWAY = {Role.GATEWAY_A: Role.GATEWAY_B, Role.GATEWAY_B: Role.GATEWAY_A}

ACCELERATE = f"""
[connections.{CONNECTION}]
mode = "accelerate"
"""
"""strongSwan before 5.9.10 does not see that an XFRM interface is used; this child has no `inactivity`."""

DENIED = 7666
VPN_ZONE = """
[zones.vpn]
interfaces = ["{0}"]
host_inbound = ["ping"]

[applications.denied]
protocol = "udp"
destination_port = {1}
"""
DENY = """
[[policies]]
name = "denied-{0}"
from = "{0}"
to = "{1}"
application = "denied"
action = "deny"
"""
PERMIT = """
[[policies]]
name = "{0}-to-{1}"
from = "{0}"
to = "{1}"
action = "permit"
"""


def walled(interface: str) -> str:
    """A firewall with this interface in a zone of its own: the zones around it may talk, but for the denied port."""
    return "".join(
        (
            ZONES,
            VPN_ZONE.format(interface, DENIED),
            *(DENY.format(*pair) for pair in (("trust", "vpn"), ("vpn", "trust"))),
            *(PERMIT.format(*pair) for pair in (("trust", "vpn"), ("vpn", "trust"), ("self", "vpn"), ("vpn", "self"))),
        )
    )


@dataclass(frozen=True, slots=True)
class Kind:
    """What routing sends to: the words that make it, how swanctl names it, and charon's settings for it."""

    link: str
    options: tuple[str, str]
    settings: str = ""


XFRM = Kind(f"type xfrm dev {WAN} if_id {NUMBER}", (f"if_id_in = {NUMBER}", f"if_id_out = {NUMBER}"))
VTI = Kind(
    f"type vti local {{local}} remote {{remote}} key {NUMBER}",
    (f"mark_in = {NUMBER}", f"mark_out = {NUMBER}"),
    NO_ROUTES,
)


async def run(lab: Lab) -> None:
    """Play it without a firewall."""
    await _play(lab, XFRM, PLAIN + ACCELERATE)


async def run_with_vti(lab: Lab) -> None:
    """Play it with VTI devices."""
    await _play(lab, VTI, PLAIN + ACCELERATE)


async def run_with_firewall(lab: Lab) -> None:
    """Play it with the XFRM interface in a zone of its own."""
    hear_the_firewall(lab)
    await _play(lab, XFRM, walled(INTERFACE) + ACCELERATE)


def hear_the_firewall(lab: Lab) -> None:
    """The client takes what XDP answers (a packet is too long): its veth does with a program of its own alone."""
    lab.stack.callback(os.close, pass_all(lab.topology.namespace(Role.CLIENT), HOST))


async def _play(lab: Lab, kind: Kind, config: str) -> None:
    for role in OTHER_GATEWAY:
        await _raise_interface(lab, role, kind)
    before = await _settings(lab)
    sites = [_site(lab, role, kind) for role in OTHER_GATEWAY]
    story = await set_up(lab, sites, config=config, settings=kind.settings)
    gateway = story.gateway
    if gateway is None:
        raise AssertionError("this is about ipsec-gw alone")
    ends = (lab.host(Role.CLIENT, HOST), lab.host(Role.SERVER, HOST), lab.host(Role.GATEWAY_A, LAN))
    start_flows(story, Talkers(*ends))
    evidence = Evidence()
    await bring_up(story, evidence)
    await carry(story, evidence)
    await bracketed_exchange(story, "payload exchange")
    await _multicast(lab)
    if config.startswith(ZONES):
        await walls_hold(story, gateway)
    await rekey_under_traffic(story, evidence)
    await _routes_decide(story)
    await engine_dies(story, gateway, evidence)
    await bracketed_exchange(story, "payload exchange at the end")
    await finish(story, gateway, evidence, lossy=True)
    after = await _settings(lab)
    lab.check("the interface has its settings back", after == before, before, after)


def _site(lab: Lab, role: Role, kind: Kind) -> Site:
    site = site_of(lab.topology, role, lab.options.proposal)
    return replace(site, local_network=ANYTHING, remote_network=ANYTHING, child_options=kind.options)


async def _raise_interface(lab: Lab, role: Role, kind: Kind) -> None:
    namespace = lab.topology.namespace(role)
    _report_no_membership(namespace)
    ends = {"local": lab.topology.address(role, WAN), "remote": lab.topology.address(OTHER_GATEWAY[role], WAN)}
    for words in (
        f"link add {INTERFACE} {kind.link.format(**ends)}",
        f"link set {INTERFACE} up multicast on",
        f"route add {lab.topology.network(OTHER_GATEWAY[role], LAN)} dev {INTERFACE}",
    ):
        await call(["ip", *words.split()], namespace=namespace)


def _report_no_membership(namespace: str) -> None:
    """No host has sent such reports, so they would be taken for damage of what the hosts sent."""
    with inside(namespace):
        Path("/proc/sys/net/ipv4/igmp_link_local_mcast_reports").write_text("0")


async def _settings(lab: Lab) -> str:
    """Of gateway A's interface."""
    namespace = lab.topology.namespace(Role.GATEWAY_A)
    shown = await call(["ip", "-o", "link", "show", INTERFACE], namespace=namespace)
    mtu = shown.stdout.split(" mtu ")[1].split()[0]
    return f"mtu {mtu}, disable_policy {_disable_policy(namespace)}"


def _disable_policy(namespace: str) -> str:
    with inside(namespace):
        return Path(f"/proc/sys/net/ipv4/conf/{INTERFACE}/disable_policy").read_text().strip()


async def _multicast(lab: Lab) -> None:
    """As routing protocols speak: to a group on the link, with a TTL of 1."""
    for role, other in OTHER_GATEWAY.items():
        with inside(lab.topology.namespace(other)):
            listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            index = socket.if_nametoindex(INTERFACE)
            listener.bind((GROUP, GROUP_PORT))
            joined = socket.inet_aton(GROUP) + bytes(4) + struct.pack("=i", index)
            listener.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, joined)
            listener.setblocking(False)
        with inside(lab.topology.namespace(role)):
            sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sender.bind((str(lab.topology.address(role, LAN)), 0))
            by = bytes(8) + struct.pack("=i", socket.if_nametoindex(INTERFACE))
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, by)
        with listener, sender:
            said = f"hello of {role}".encode()
            sender.sendto(said, (GROUP, GROUP_PORT))
            try:
                heard = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(listener, 100), GROUP_SECONDS)
            except TimeoutError:
                heard = b"nothing"
        lab.check(f"multicast of {role} comes through its interface", heard == said, said.decode(), heard.decode())


async def walls_hold(story: Story, gateway: GatewayUnderTest) -> None:
    """What a policy denies does not pass, whichever way it goes, and what passes is taken for what it is."""
    lab = story.lab
    client, server = lab.host(Role.CLIENT, HOST), lab.host(Role.SERVER, HOST)
    for left, right in ((client, server), (server, client)):
        try:
            said = await udp_echo(left, right, port=DENIED, sizes=(64,), seed=DENIED)
        except TrafficError as error:
            lab.check(f"UDP {left} -> {right} is denied", True, "no answer", error)
        else:
            lab.check(f"UDP {left} -> {right} is denied", False, "no answer", said)
    malformed = (await gateway.status()).verdicts.get("malformed", 0)
    lab.check("the firewall finds nothing malformed, whoever decrypted it", not malformed, "0", malformed)


async def _routes_decide(story: Story) -> None:
    """The route to B's network goes, and comes again."""
    lab, keys = story.lab, spis(story)
    network, namespace = lab.topology.network(Role.GATEWAY_B, LAN), lab.topology.namespace(Role.GATEWAY_A)
    there = story.flows[0]
    with lab.step("the route goes"):
        await call(["ip", "route", "replace", "unreachable", str(network)], namespace=namespace)
        mark = there.next
        await until(lambda: there.next >= mark + 50, SILENT_SECONDS, "more traffic")
    arrived = there.tally(mark).received
    lab.check("without its route nothing goes into the tunnel", arrived == 0, "0 arrived", f"{arrived} arrived")
    with lab.step("the route comes again"):
        await call(["ip", "route", "replace", str(network), "dev", INTERFACE], namespace=namespace)
        await flowing(story)
    now = spis(story)
    lab.check("the SAs are the same", now == keys, few(sorted(keys)), few(sorted(now)))


async def engine_dies(story: Story, gateway: GatewayUnderTest, evidence: Evidence) -> None:
    """Its process is killed: the kernel carries on, and gives back."""
    if gateway.engine == "vpp":
        await death(story, gateway, evidence, "kill of VPP", kill_vpp, gateway.vpp_up)
    else:
        await death(story, gateway, evidence, "kill of daemon and engine", kill_daemon, gateway.run_again)
