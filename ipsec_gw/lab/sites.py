"""A topology's two sites as strongSwan sees them."""

from __future__ import annotations

from ipsec_gw.lab.strongswan import Site
from ipsec_gw.lab.topology import LAN, WAN, Role, Topology


def site_of_versions(topology: Topology, role: Role, proposal: str, outer: int, inner: tuple[int, ...]) -> Site:
    """The configuration of gateway A or B for a tunnel of IP version ``outer`` with networks of each in ``inner``."""
    other = Role.GATEWAY_B if role is Role.GATEWAY_A else Role.GATEWAY_A
    local, remote = (
        next(address for address in topology.addresses(who, WAN) if address.version == outer) for who in (role, other)
    )
    (local_network, remote_network), *more = (
        (
            next(network for network in topology.networks(role, LAN) if network.version == version),
            next(network for network in topology.networks(other, LAN) if network.version == version),
        )
        for version in inner
    )
    return Site(
        identity=role,
        peer=other,
        namespace=topology.namespace(role),
        local=local,
        remote=remote,
        local_network=local_network,
        remote_network=remote_network,
        proposal=proposal,
        more=tuple(more),
    )


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
