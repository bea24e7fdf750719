"""The firewall's machine with tunnels: the ports of clear packets, and IPsec policies as the kernel would have them."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_network
from pathlib import Path

from firewall_kit import LAN, Port, Result, World, firewall_world
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from ipsec_gw.model.firewall import Ruleset
from ipsec_gw.model.snapshot import Mode, PolicyDirection, Template, XfrmPolicy
from tests.support.netns import ip
from xdp_steer.compile.rows import PortInfo
from xdp_steer.compile.tunnels import tunnel_lists
from xdp_steer.flow_layout import TUNNEL_PORT_MAC
from xdp_steer.tunnels import TunnelTable

OUT, IN = PolicyDirection.OUT, PolicyDirection.IN
NEAR = {4: "10.1.0.0/24", 6: "2001:db8:1::/64"}
REMOTE = {4: "203.0.113.0/24", 6: "2001:db8:f::/64"}


def policy(direction, near, far, *, priority=1000, reqid=1, protects=True, allow=True, **more):
    source, destination = (near, far) if direction is OUT else (far, near)
    template = Template(ip_network(source)[0], ip_network(destination)[0], 0, 50, reqid, Mode.TUNNEL)
    return XfrmPolicy(
        direction,
        ip_network(source),
        ip_network(destination),
        priority,
        allow,
        (template,) if protects else (),
        **more,
    )


def pair(version, **more):
    return [policy(direction, NEAR[version], REMOTE[version], **more) for direction in (OUT, IN)]


class Tunnels:
    """A world with the tunnels' ports, and IPsec policies."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.port = Port("ipsecgw-kd", "", "", TUNNEL_PORT_MAC.hex(":"), "02:00:00:00:00:00")
        self.more = {
            name: PortInfo(socket.if_nametoindex(name), socket.if_nametoindex(name))
            for name in ("ipsecgw-kd", "ipsecgw-up")
        }
        self.table = TunnelTable(world.maps)
        world.steering.set_tunnel_port(socket.if_nametoindex("ipsecgw-ki"), socket.if_nametoindex("ipsecgw-kd"))

    def apply(self, rules: Ruleset, *policies: XfrmPolicy) -> None:
        self.world.apply(rules, self.more)
        self.table.replace(tunnel_lists(policies).lists)

    def lan(self, packet: Packet) -> Result:
        return self.world.send(LAN, packet)

    def out(self, packet: Packet, zone: int = 0) -> Result:
        """A packet comes out of a tunnel of the kernel."""
        return self.world.send(self.port, Ether(src=f"02:00:00:00:00:{zone:02x}", dst=self.port.mac) / packet)


@contextmanager
def tunnels_world(pins: Path) -> Iterator[Tunnels]:
    """``pins`` as for :func:`firewall_world`."""
    with firewall_world(pins) as made:
        for entry, port in (("ipsecgw-ki", "ipsecgw-kd"), ("ipsecgw-vp", "ipsecgw-up")):
            ip(f"link add {entry} type veth peer name {port}")
            for name in (entry, port):
                ip(f"link set {name} up")
        yield Tunnels(made)
        made.steering.set_tunnel_port(0, 0)
