"""What is found without a hash, or counted without atomic additions, and the slower way beside it: ports that share a
place, directions that change their CPU.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import pytest
from firewall_kit import LAN, VLAN, WAN, World, ifindex, zones
from firewall_packets import udp
from scapy.layers.inet import UDP
from scapy.layers.l2 import Dot1Q, Ether

from ipsec_gw.model.firewall import Action, Policy, Ruleset, Zone
from xdp_steer.compile.rows import PortInfo
from xdp_steer.flow_layout import MAX_NEAR_PORTS
from xdp_steer.prog_run import XdpAction
from xdp_steer.reasons import Reason
from xdp_steer.sessions import Traffic

pytestmark = pytest.mark.root

OPEN = Ruleset(zones=zones(), policies=(Policy("all", Action.PERMIT),))


@dataclass
class Twin:
    """A VLAN of wan0 whose place is that of another port."""

    vid: int

    @property
    def info(self) -> PortInfo:
        return PortInfo(ifindex(WAN), ifindex(WAN), vid=self.vid, redirect=True)

    def frame(self, packet):
        return Ether(src=WAN.host_mac, dst=WAN.mac) / Dot1Q(vlan=self.vid) / packet


def twin_of(port) -> Twin:
    return Twin((ifindex(port) + port.vid - ifindex(WAN)) % MAX_NEAR_PORTS + MAX_NEAR_PORTS)


@pytest.mark.parametrize("first", [True, False], ids=["first", "second"])
@pytest.mark.parametrize("rival", [LAN, VLAN], ids=["untagged", "vlan"])
def test_ports_of_one_place_are_told_apart(world: World, rival, *, first: bool) -> None:
    """From the twin, from its rival, and out by the rival: the policies of their own zones decide."""
    twin = twin_of(rival)
    name = f"wan0.{twin.vid}"
    twins = (Zone("twin", (name,)),)
    listed = (*twins, *zones()) if first else (*zones(), *twins)
    home = next(zone.name for zone in zones() if rival.name in zone.interfaces)
    policies = (
        Policy("from-twin", Action.PERMIT, "twin", home),
        Policy("from-rival", Action.PERMIT, home, "wan"),
    )
    world.apply(Ruleset(zones=listed, policies=policies), {name: twin.info})
    into = world.send(WAN, twin.frame(udp(WAN.host(4), rival.host(4))))
    assert (into.action, into.reason) == (XdpAction.REDIRECT, Reason.FORWARDED)
    assert world.session().flow.zone == world.zone("twin")
    world.clear()
    out = world.send(rival, udp(rival.host(4), WAN.host(4)))
    assert (out.action, out.reason) == (XdpAction.REDIRECT, Reason.FORWARDED)
    assert world.session().flow.zone == world.zone(home)
    stranger = Twin(twin.vid + MAX_NEAR_PORTS)  # the same place again, and no port at all
    assert world.send(WAN, stranger.frame(udp(WAN.host(4), rival.host(4)))).reason is Reason.NO_ZONE


def test_a_direction_is_counted_on_every_cpu(world: World) -> None:
    """Its own counter on the CPU that had the first packet, and another on the rest; both together are what it had."""
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        pytest.skip("needs two CPUs")
    world.apply(OPEN)
    out, back = udp(LAN.host4, WAN.host4), udp(WAN.host4, LAN.host4, dport=40000)
    back[UDP].sport = 5000
    size = len(out)
    try:
        for cpu in (cpus[0], cpus[0], cpus[1], cpus[1], cpus[1], cpus[0]):
            os.sched_setaffinity(0, {cpu})
            assert world.send(LAN, out).reason is Reason.FORWARDED
        for cpu in (cpus[1], cpus[0]):
            os.sched_setaffinity(0, {cpu})
            assert world.send(WAN, back).reason is Reason.FORWARDED
    finally:
        os.sched_setaffinity(0, cpus)
    rows = {flow.zone: row for flow, row in world.entries().items()}
    forward, reverse = rows[world.zone("lan")], rows[world.zone("wan")]
    assert (forward.owner, forward.own_packets, forward.far_packets) == (cpus[0] + 1, 3, 3)
    assert (reverse.owner, reverse.own_packets, reverse.far_packets) == (cpus[1] + 1, 1, 1)
    assert (forward.own_octets, forward.far_octets) == (3 * size, 3 * size)
    session = world.session()
    assert session.forward == Traffic(6, 6 * size)
    assert session.reverse == Traffic(2, 2 * size)
