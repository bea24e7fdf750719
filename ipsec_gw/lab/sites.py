"""A topology's two sites as strongSwan sees them."""

from __future__ import annotations

from ipaddress import IPv4Address

from ipsec_gw.lab.strongswan import Site
from ipsec_gw.lab.topology import LAN, OUTSIDE, WAN, Role, Topology
from ipsec_gw.model.ids import IpAddress


def seen_addresses(topology: Topology, role: Role) -> tuple[IpAddress, ...]:
    """All that the WAN sees a gateway send from."""
    if role is Role.GATEWAY_B and Role.NAT in topology.roles:
        return (seen_address(topology, role),)
    return topology.addresses(role, WAN)


def seen_address(topology: Topology, role: Role) -> IPv4Address:
    """What the WAN sees a gateway send from: of one behind a NAT, the router's address."""
    if role is Role.GATEWAY_B and Role.NAT in topology.roles:
        return topology.address(Role.NAT, OUTSIDE)
    return topology.address(role, WAN)


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
        remote=seen_address(topology, other),
        local_network=topology.network(role, LAN),
        remote_network=topology.network(other, LAN),
        proposal=proposal,
    )
