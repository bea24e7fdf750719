"""A topology's two sites as strongSwan sees them."""

from __future__ import annotations

from ipaddress import IPv4Address

from ipsec_gw.lab.strongswan import Site
from ipsec_gw.lab.topology import LAN, OUTSIDE, WAN, Role, Topology


def seen_address(topology: Topology, role: Role) -> IPv4Address:
    """What the WAN sees a gateway send from: of one behind a NAT, the router's address."""
    if role is Role.GATEWAY_B and Role.NAT in topology.roles:
        return topology.address(Role.NAT, OUTSIDE)
    return topology.address(role, WAN)


def site_of(topology: Topology, role: Role, proposal: str) -> Site:
    """The configuration of gateway A or B."""
    other = Role.GATEWAY_B if role is Role.GATEWAY_A else Role.GATEWAY_A
    return Site(
        identity=role,
        peer=other,
        namespace=topology.namespace(role),
        local=topology.address(role, WAN),
        remote=seen_address(topology, other),
        local_network=topology.network(role, LAN),
        remote_network=topology.network(other, LAN),
        proposal=proposal,
    )
