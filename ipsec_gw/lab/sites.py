"""A topology's two sites as strongSwan sees them."""

from __future__ import annotations

from ipsec_gw.lab.strongswan import Site
from ipsec_gw.lab.topology import LAN, WAN, Role, Topology


def site_of(topology: Topology, role: Role, proposal: str) -> Site:
    """The configuration of gateway A or B."""
    other = Role.GATEWAY_B if role is Role.GATEWAY_A else Role.GATEWAY_A
    return Site(
        identity=role,
        peer=other,
        namespace=topology.namespace(role),
        local=topology.address(role, WAN),
        remote=topology.address(other, WAN),
        local_network=topology.network(role, LAN),
        remote_network=topology.network(other, LAN),
        proposal=proposal,
    )
