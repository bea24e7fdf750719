"""Who sends and receives the matrix's packets (in the network of :func:`ipsec_gw.lab.topology.crossroads`)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from ipaddress import ip_address

from ipsec_gw.lab.topology import Role
from ipsec_gw.model.ids import IpAddress


class End(StrEnum):
    """An address that takes part. ``2`` is a second network of a site; strangers belong to no network of a tunnel."""

    CLIENT = "client"
    CLIENT_2 = "client-2"
    STRANGER_A = "stranger-a"
    GATEWAY_A = "gateway-a"
    OUTSIDE_A = "outside-a"
    FORGER = "forger"
    OUTSIDE_B = "outside-b"
    GATEWAY_B = "gateway-b"
    STRANGER_B = "stranger-b"
    SERVER = "server"
    SERVER_2 = "server-2"
    VIRTUAL = "virtual"


@dataclass(frozen=True, slots=True)
class Place:
    """Where an end lives, and its addresses of IPv4 and IPv6."""

    role: Role
    addresses: tuple[IpAddress, IpAddress]

    def address(self, version: int) -> IpAddress:
        """Its address of an IP version."""
        return self.addresses[version == 6]


_TEXT = {
    End.CLIENT: (Role.CLIENT, "10.1.0.10", "fd01::10"),
    End.CLIENT_2: (Role.CLIENT, "10.11.0.10", "fd11::10"),
    End.STRANGER_A: (Role.CLIENT, "10.67.0.10", "fd67::10"),
    End.GATEWAY_A: (Role.GATEWAY_A, "10.1.0.1", "fd01::1"),
    End.OUTSIDE_A: (Role.GATEWAY_A, "10.0.0.1", "2001:db8::1"),
    # On the WAN, with the server's address.
    End.FORGER: (Role.WAN, "10.2.0.10", "fd02::10"),
    End.OUTSIDE_B: (Role.GATEWAY_B, "10.0.0.2", "2001:db8::2"),
    End.GATEWAY_B: (Role.GATEWAY_B, "10.2.0.1", "fd02::1"),
    End.STRANGER_B: (Role.SERVER, "10.66.0.10", "fd66::10"),
    End.SERVER: (Role.SERVER, "10.2.0.10", "fd02::10"),
    End.SERVER_2: (Role.SERVER, "10.12.0.10", "fd12::10"),
    # The first of the pool that gateway A gives addresses from.
    End.VIRTUAL: (Role.GATEWAY_B, "10.9.0.1", "fd09::1"),
}

PLACES = {end: Place(role, (ip_address(v4), ip_address(v6))) for end, (role, v4, v6) in _TEXT.items()}

LISTENERS = (Role.CLIENT, Role.GATEWAY_A, Role.GATEWAY_B, Role.SERVER)
"""Whose sockets are watched."""
