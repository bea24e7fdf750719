"""A firewall between LAN and WAN, and no tunnel: its neighbours, what they see, and the gateway with its rules.

The network is one of :mod:`ipsec_gw.lab.edge`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass

from ipsec_gw.lab import edge
from ipsec_gw.lab.capture import Capture, Captures
from ipsec_gw.lab.context import Lab
from ipsec_gw.lab.flood import dropped
from ipsec_gw.lab.gateway import GatewayUnderTest
from ipsec_gw.lab.junk import Link
from ipsec_gw.lab.netns import mac_address
from ipsec_gw.lab.packets import Packet, TooBig, packet_of, too_big
from ipsec_gw.lab.scenarios.start import gateway_of, start_swan
from ipsec_gw.lab.strongswan import Site
from ipsec_gw.lab.topology import HOST, LAN, WAN, Role, Topology
from ipsec_gw.lab.xdp_peer import pass_all


@dataclass(frozen=True, slots=True)
class Story:
    """Those who take part: captures of what the client's and the router's interface carry."""

    lab: Lab
    gateway: GatewayUnderTest
    lan: Captures
    wan: Captures

    def arrived(self, captures: Captures, wanted: Callable[[Packet], bool]) -> list[Packet]:
        """What came in on captured interfaces and is wanted."""
        captures.drain()
        frames = (frame for capture in captures.captures for frame in capture.frames if not frame.outgoing)
        packets = (packet_of(frame) for frame in frames)
        return [packet for packet in packets if packet is not None and wanted(packet)]

    def mtu_errors(self, captures: Captures) -> set[TooBig]:
        """The errors that came in and tell a smaller MTU."""
        return {error for packet in self.arrived(captures, lambda _: True) if (error := too_big(packet))}


async def set_up(lab: Lab, rules: str) -> Story:
    """The gateway with these rules, and what its neighbours see."""
    lan, wan = (watched(lab, lab.capture(*at)) for at in ((Role.CLIENT, HOST), (Role.WAN, edge.TO_GATEWAY)))
    lab.stack.callback(lab.save_captures, wan)
    return Story(lab, await start_gateway(lab, rules), lan, wan)


def watched(lab: Lab, *captures: Capture) -> Captures:
    """Drained until the end of the run."""
    made = Captures(captures)
    lab.stack.callback(made.close)
    lab.stack.callback(asyncio.create_task(made.keep_draining()).cancel)
    return made


async def start_gateway(lab: Lab, rules: str) -> GatewayUnderTest:
    """The gateway of such a network with these rules, beside a strongSwan without tunnels."""
    for role, interface in ((Role.SWITCH, edge.TO_LAN), (Role.WAN, edge.TO_GATEWAY)):
        lab.stack.callback(os.close, pass_all(lab.topology.namespace(role), interface))
    swan = await start_swan(lab, _lonely_site(lab.topology, lab.options.proposal))
    gateway = gateway_of(lab, swan, rules)
    with lab.step("start strongSwan and ipsec-gw"):
        await swan.load()
        await gateway.start()
        lab.strongswan = await swan.version()
    for pid in gateway.pids:
        lab.watch_process(pid)
    status = await gateway.status()
    engine = lab.options.engine
    lab.check("ipsec-gw runs the engine asked for", status.engine == engine, engine, f"{status.engine}: {status.note}")
    return gateway


def wan_link(lab: Lab) -> Link:
    """From the router to the gateway, for frames of our own making."""
    router, gateway = lab.topology.namespace(Role.WAN), lab.topology.namespace(Role.GATEWAY_A)
    return Link(mac_address(router, edge.TO_GATEWAY), mac_address(gateway, WAN))


def lost_on_the_wan(lab: Lab) -> int:
    """Frames that had no room between router and gateway."""
    ends = ((Role.WAN, edge.TO_GATEWAY), (Role.GATEWAY_A, WAN))
    return sum(dropped(lab.topology.namespace(role), interface) for role, interface in ends)


def _lonely_site(topology: Topology, proposal: str) -> Site:
    return Site(
        identity=Role.GATEWAY_A,
        peer=Role.GATEWAY_B,
        namespace=topology.namespace(Role.GATEWAY_A),
        local=topology.address(Role.GATEWAY_A, WAN),
        remote=topology.address(Role.SERVER, HOST),
        local_network=topology.network(Role.GATEWAY_A, LAN),
        remote_network=topology.network(Role.SERVER, HOST),
        proposal=proposal,
    )
