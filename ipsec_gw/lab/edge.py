"""The network around a firewall without tunnels: a LAN with two hosts, the internet's first router, a server behind it.

client, inner -- (switch) -- lan0 [gateway A] wan0 -- router (WAN) -- server

:func:`crowded`, :func:`beside_ipv4` and :func:`renumbered` are the same network with a difference.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network

from ipsec_gw.lab.junk import SOURCES, SOURCES6
from ipsec_gw.lab.topology import HOST, LAN, WAN, Bridge, Port, Role, Route, Topology, Wire

PATH_MTU = 1300
"""Bytes: what the router's route to the server takes, although all links take more."""

LAN_PATH_MTU = 1400
"""Bytes: the same of the gateway's route to the client of :func:`renumbered`."""

POOL, POOL6 = IPv4Network("203.0.113.16/30"), IPv6Network("2001:db8:113::/126")
"""Addresses of source NAT that are routed to the gateway."""

TO_GATEWAY, TO_SERVER, TO_LAN = "to-a", "to-server", "p0"
"""The router's interfaces, and the switch's towards the gateway."""

BEHIND_LAN = IPv4Network("10.1.0.0/16"), IPv6Network("2001:db8:1::/48")
"""What the router sends to the gateway: the LAN, and addresses around it that nobody has."""


LAN6 = IPv6Network("2001:db8:1::/64")

INSIDE6, OUTSIDE6 = IPv6Network("fd12:3456:789a::/48"), BEHIND_LAN[1]
"""NPTv6: the prefix of the LAN of :func:`renumbered`, and what it is on the WAN."""

CALLERS = 40
"""Addresses of the server in :func:`crowded`, in each family, besides its own."""


def edge(tag: str, network6: IPv6Network = LAN6) -> Topology:
    """The network. The router has a route to the LAN, so that the gateway alone decides what gets in."""
    client, inner, lan = (IPv4Interface(f"10.1.0.{host}/24") for host in (10, 20, 1))
    client6, inner6, lan6 = (
        IPv6Interface((network6.network_address + host, network6.prefixlen)) for host in (0x10, 0x20, 1)
    )
    wan, router = (IPv4Interface(f"192.0.2.{host}/24") for host in (1, 254))
    wan6, router6 = (IPv6Interface(f"2001:db8:2::{host}/64") for host in (1, 254))
    beyond, server = (IPv4Interface(f"198.51.100.{host}/24") for host in (1, 10))
    beyond6, server6 = (IPv6Interface(f"2001:db8:4::{host}/64") for host in (1, 10))
    anywhere, anywhere6 = IPv4Network("0.0.0.0/0"), IPv6Network("::/0")
    gateways = ((Role.CLIENT, lan, lan6), (Role.INNER, lan, lan6), (Role.GATEWAY_A, router, router6))
    return Topology(
        tag=tag,
        roles=(Role.CLIENT, Role.INNER, Role.SWITCH, Role.GATEWAY_A, Role.WAN, Role.SERVER),
        wires=(
            Wire(Port(Role.CLIENT, HOST, client, client6), Port(Role.SWITCH, "p1")),
            Wire(Port(Role.INNER, HOST, inner, inner6), Port(Role.SWITCH, "p2")),
            Wire(Port(Role.SWITCH, TO_LAN), Port(Role.GATEWAY_A, LAN, lan, lan6, wire_checksums=False)),
            Wire(
                Port(Role.GATEWAY_A, WAN, wan, wan6, wire_checksums=False),
                Port(Role.WAN, TO_GATEWAY, router, router6),
            ),
            Wire(Port(Role.WAN, TO_SERVER, beyond, beyond6), Port(Role.SERVER, HOST, server, server6)),
        ),
        bridge=Bridge(Role.SWITCH, "br0"),
        routes=(
            *(Route(role, anywhere, via.ip) for role, via, _ in gateways),
            *(Route(role, anywhere6, via.ip) for role, _, via in gateways),
            Route(Role.SERVER, anywhere, beyond.ip),
            Route(Role.SERVER, anywhere6, beyond6.ip),
            *(Route(Role.WAN, network, wan.ip) for network in (BEHIND_LAN[0], POOL)),
            *(Route(Role.WAN, network, wan6.ip) for network in (BEHIND_LAN[1], POOL6)),
            # By way of itself: its own entry beside the link's network, to hold the MTU of a longer path.
            Route(Role.WAN, IPv4Network(server.ip), server.ip, PATH_MTU),
            Route(Role.WAN, IPv6Network(server6.ip), server6.ip, PATH_MTU),
        ),
        forwarding=(Role.GATEWAY_A, Role.WAN),
    )


def crowded(tag: str) -> Topology:
    """:func:`edge` with :data:`CALLERS` further addresses of the server. The router drops what is sent to nobody's
    addresses (:data:`ipsec_gw.lab.junk.SOURCES`).
    """
    plain = edge(tag)
    own, own6 = plain.address(Role.SERVER, HOST), plain.address6(Role.SERVER, HOST)
    numbers = range(1, CALLERS + 1)
    further: tuple[IPv4Interface | IPv6Interface, ...] = (
        *(IPv4Interface((own + number, 24)) for number in numbers),
        *(IPv6Interface((own6 + number, 64)) for number in numbers),
    )
    return replace(
        _changed(plain, Role.SERVER, lambda port: replace(port, further=further)),
        routes=(*plain.routes, *(Route(Role.WAN, network, None) for network in (SOURCES, SOURCES6))),
    )


def beside_ipv4(tag: str) -> Topology:
    """:func:`edge`, but the inner host has no IPv4."""
    plain = edge(tag)
    kept = (route for route in plain.routes if route.role is not Role.INNER or route.destination.version == 6)
    return replace(_changed(plain, Role.INNER, lambda port: replace(port, address=None)), routes=tuple(kept))


def renumbered(tag: str) -> Topology:
    """:func:`edge` with a LAN in :data:`INSIDE6`, unknown outside, and a narrow way to the client."""
    plain = edge(tag, IPv6Network((int(INSIDE6.network_address) + (1 << 64), 64)))
    client = plain.address6(Role.CLIENT, HOST)
    narrow = Route(Role.GATEWAY_A, IPv6Network(client), client, LAN_PATH_MTU)
    return replace(plain, routes=(*plain.routes, narrow))


def _changed(plain: Topology, role: Role, change: Callable[[Port], Port]) -> Topology:
    """The same with the ports of a role changed."""

    def one(port: Port) -> Port:
        return change(port) if port.role is role else port

    return replace(plain, wires=tuple(Wire(one(wire.left), one(wire.right)) for wire in plain.wires))
