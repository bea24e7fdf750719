"""The lab's network as one value: who is there, how they are wired, what addresses and routes they have.

Everything here is pure. :mod:`ipsec_gw.lab.netns` makes it real with the commands that :func:`batches` renders.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network, ip_interface

from ipsec_gw.model.ids import IpAddress, IpNetwork

MTU = 1500
"""Bytes, on every link: what an Ethernet WAN has."""

MAX_INTERFACE_NAME = 15
"""IFNAMSIZ - 1 (``linux/if.h``)."""


class Role(StrEnum):
    """The machines of a lab."""

    CLIENT = "client"
    INNER = "inner"
    SWITCH = "switch"
    GATEWAY_A = "gwa"
    WAN = "wan"
    NAT = "nat"
    GATEWAY_B = "gwb"
    ROAD_1 = "rw1"
    ROAD_2 = "rw2"
    ROAD_3 = "rw3"
    SERVER = "server"


@dataclass(frozen=True, slots=True)
class Port:
    """One end of a wire: an interface of ``role``, with an address or (on the bridge) without.

    ``wire_checksums`` switches transmit checksum and segmentation offload off, so that complete packets of wire size
    leave this end: an AF_XDP socket or an engine at the other end sees what a real NIC would give it. ``further`` are
    addresses besides those two.
    """

    role: Role
    name: str
    address: IPv4Interface | None = None
    address6: IPv6Interface | None = None
    wire_checksums: bool = True
    further: tuple[IPv4Interface | IPv6Interface, ...] = ()


@dataclass(frozen=True, slots=True)
class Wire:
    """A veth pair."""

    left: Port
    right: Port


@dataclass(frozen=True, slots=True)
class Route:
    """A static route of ``role``, without ``via`` a black hole. What is forwarded along it is at most ``mtu`` bytes
    long, if given.
    """

    role: Role
    destination: IPv4Network | IPv6Network
    via: IPv4Address | IPv6Address | None
    mtu: int | None = None


@dataclass(frozen=True, slots=True)
class Bridge:
    """Joins the ports of ``role`` that have no address. On the WAN, ``address`` is the provider's router."""

    role: Role
    name: str
    address: IPv4Interface | None = None
    address6: IPv6Interface | None = None


@dataclass(frozen=True, slots=True)
class Topology:
    """A lab network. ``tag`` makes every namespace name unique to its run. IPv6 is off unless a port has it."""

    tag: str
    roles: tuple[Role, ...]
    wires: tuple[Wire, ...]
    bridge: Bridge
    routes: tuple[Route, ...]
    forwarding: tuple[Role, ...]

    def namespace(self, role: Role) -> str:
        """Name of the network namespace that plays ``role``."""
        return f"{self.tag}-{role}"

    @property
    def namespaces(self) -> tuple[str, ...]:
        """All namespace names."""
        return tuple(self.namespace(role) for role in self.roles)

    @property
    def ipv6(self) -> bool:
        """Whether any port has an IPv6 address."""
        return any(port.address6 for role in self.roles for port in self.ports(role))

    def ports(self, role: Role) -> tuple[Port, ...]:
        """The interfaces of ``role``, in the order of the wires."""
        return tuple(port for wire in self.wires for port in (wire.left, wire.right) if port.role is role)

    def port(self, role: Role, name: str) -> Port:
        """One interface. Raises KeyError if ``role`` has no such interface."""
        for port in self.ports(role):
            if port.name == name:
                return port
        raise KeyError(f"{role} has no interface {name}")

    def address(self, role: Role, name: str) -> IPv4Address:
        """The address of an interface. Raises KeyError if there is none."""
        address = self.port(role, name).address
        if address is None:
            raise KeyError(f"{role} has no address on {name}")
        return address.ip

    def address6(self, role: Role, name: str) -> IPv6Address:
        """The IPv6 address of an interface. Raises KeyError if there is none."""
        address = self.port(role, name).address6
        if address is None:
            raise KeyError(f"{role} has no IPv6 address on {name}")
        return address.ip

    def addresses(self, role: Role, name: str) -> tuple[IpAddress, ...]:
        """The addresses of an interface, of both IP versions."""
        port = self.port(role, name)
        return tuple(address.ip for address in (port.address, port.address6) if address is not None)

    def networks(self, role: Role, name: str) -> tuple[IpNetwork, ...]:
        """The connected networks of an interface, of both IP versions."""
        port = self.port(role, name)
        return tuple(address.network for address in (port.address, port.address6) if address is not None)

    def behind(self, role: Role) -> tuple[IpNetwork, ...]:
        """All networks that a gateway has on its inner side."""
        further = (address.network for address in self.port(role, LAN).further)
        return (*self.networks(role, LAN), *further)

    def network(self, role: Role, name: str) -> IPv4Network:
        """The connected network of an interface. Raises KeyError if it has no address."""
        address = self.port(role, name).address
        if address is None:
            raise KeyError(f"{role} has no address on {name}")
        return address.network

    def network6(self, role: Role, name: str) -> IPv6Network:
        """The connected IPv6 network of an interface. Raises KeyError if it has no IPv6 address."""
        address = self.port(role, name).address6
        if address is None:
            raise KeyError(f"{role} has no IPv6 address on {name}")
        return address.network


@dataclass(frozen=True, slots=True)
class Batch:
    """Lines for ``ip -batch``, in a namespace or (None) in the caller's."""

    namespace: str | None
    lines: tuple[str, ...]


LAN = "lan0"
WAN = "wan0"
HOST = "eth0"
OUTSIDE, INSIDE = "out", "in"
"""The interfaces of a NAT router."""


def site_to_site(tag: str) -> Topology:
    """Client - gateway A - WAN - gateway B - server; each gateway's default route is the provider's router.

    The router forwards nothing, as a provider drops private addresses: without a tunnel the sites cannot talk,
    but what a gateway lets out in clear is seen on the WAN.
    """
    client, server = IPv4Interface("10.1.0.10/24"), IPv4Interface("10.2.0.10/24")
    lan_a, lan_b = IPv4Interface("10.1.0.1/24"), IPv4Interface("10.2.0.1/24")
    wan_a, wan_b = IPv4Interface("10.0.0.1/24"), IPv4Interface("10.0.0.2/24")
    provider = IPv4Interface("10.0.0.254/24")
    anywhere = IPv4Network("0.0.0.0/0")
    return Topology(
        tag=tag,
        roles=(Role.CLIENT, Role.GATEWAY_A, Role.WAN, Role.GATEWAY_B, Role.SERVER),
        wires=(
            Wire(Port(Role.CLIENT, HOST, client), Port(Role.GATEWAY_A, LAN, lan_a, wire_checksums=False)),
            Wire(Port(Role.GATEWAY_A, WAN, wan_a, wire_checksums=False), Port(Role.WAN, "to-a")),
            Wire(Port(Role.WAN, "to-b"), Port(Role.GATEWAY_B, WAN, wan_b)),
            Wire(Port(Role.GATEWAY_B, LAN, lan_b), Port(Role.SERVER, HOST, server)),
        ),
        bridge=Bridge(Role.WAN, "br0", provider),
        routes=(
            Route(Role.CLIENT, anywhere, lan_a.ip),
            Route(Role.GATEWAY_A, anywhere, provider.ip),
            Route(Role.GATEWAY_B, anywhere, provider.ip),
            Route(Role.SERVER, anywhere, lan_b.ip),
        ),
        forwarding=(Role.GATEWAY_A, Role.GATEWAY_B),
    )


def overlapping(tag: str) -> Topology:
    """:func:`site_to_site` with the same network at both sites, and a host of the same address in it."""
    plain = site_to_site(tag)
    given = {
        (Role.GATEWAY_B, LAN): plain.port(Role.GATEWAY_A, LAN).address,
        (Role.SERVER, HOST): plain.port(Role.CLIENT, HOST).address,
    }

    def same(port: Port) -> Port:
        return replace(port, address=given.get((port.role, port.name), port.address))

    kept = (route for route in plain.routes if route.role is not Role.SERVER)
    anywhere = IPv4Network("0.0.0.0/0")
    return replace(
        plain,
        wires=tuple(Wire(same(wire.left), same(wire.right)) for wire in plain.wires),
        routes=(*kept, Route(Role.SERVER, anywhere, plain.address(Role.GATEWAY_A, LAN))),
    )


def one_network(tag: str) -> Topology:
    """:func:`site_to_site` with one network at both sites, every host and gateway in it with an address of its own."""
    plain = site_to_site(tag)
    given = {(Role.GATEWAY_B, LAN): IPv4Interface("10.1.0.2/24"), (Role.SERVER, HOST): IPv4Interface("10.1.0.20/24")}

    def moved(port: Port) -> Port:
        return replace(port, address=given.get((port.role, port.name), port.address))

    kept = tuple(route for route in plain.routes if route.role in (Role.GATEWAY_A, Role.GATEWAY_B))
    return replace(plain, wires=tuple(Wire(moved(wire.left), moved(wire.right)) for wire in plain.wires), routes=kept)


def two_networks(tag: str) -> Topology:
    """:func:`site_to_site` with a second network behind gateway B, and a second address of the server in it."""
    plain = site_to_site(tag)
    second = {
        (Role.GATEWAY_B, LAN): (IPv4Interface("10.3.0.1/24"),),
        (Role.SERVER, HOST): (IPv4Interface("10.3.0.10/24"),),
    }

    def more(port: Port) -> Port:
        return replace(port, further=second.get((port.role, port.name), ()))

    return replace(plain, wires=tuple(Wire(more(wire.left), more(wire.right)) for wire in plain.wires))


def two_families(tag: str) -> Topology:
    """:func:`site_to_site` with IPv6 beside IPv4 everywhere."""
    plain = site_to_site(tag)
    client, server = IPv6Interface("fd01::10/64"), IPv6Interface("fd02::10/64")
    lan_a, lan_b = IPv6Interface("fd01::1/64"), IPv6Interface("fd02::1/64")
    wan_a, wan_b = IPv6Interface("2001:db8::1/64"), IPv6Interface("2001:db8::2/64")
    anywhere, provider = IPv6Network("::/0"), IPv6Interface("2001:db8::fe/64")
    given = {
        (Role.CLIENT, HOST): client,
        (Role.GATEWAY_A, LAN): lan_a,
        (Role.GATEWAY_A, WAN): wan_a,
        (Role.GATEWAY_B, WAN): wan_b,
        (Role.GATEWAY_B, LAN): lan_b,
        (Role.SERVER, HOST): server,
    }

    def both(port: Port) -> Port:
        return replace(port, address6=given.get((port.role, port.name)))

    return replace(
        plain,
        wires=tuple(Wire(both(wire.left), both(wire.right)) for wire in plain.wires),
        bridge=replace(plain.bridge, address6=provider),
        routes=(
            *plain.routes,
            Route(Role.CLIENT, anywhere, lan_a.ip),
            Route(Role.GATEWAY_A, anywhere, provider.ip),
            Route(Role.GATEWAY_B, anywhere, provider.ip),
            Route(Role.SERVER, anywhere, lan_b.ip),
        ),
    )


_CROSSROADS = {
    (Role.CLIENT, HOST): ("10.11.0.10/24", "10.67.0.10/24", "fd11::10/64", "fd67::10/64"),
    (Role.GATEWAY_A, LAN): ("10.11.0.1/24", "10.67.0.1/24", "fd11::1/64", "fd67::1/64"),
    (Role.GATEWAY_B, LAN): ("10.12.0.1/24", "10.66.0.1/24", "fd12::1/64", "fd66::1/64"),
    (Role.SERVER, HOST): ("10.12.0.10/24", "10.66.0.10/24", "fd12::10/64", "fd66::10/64"),
}


def crossroads(tag: str) -> Topology:
    """:func:`two_families` with several networks at each site, and a provider whose router forwards all of them: what
    leaves in clear arrives, and is seen to have been in clear.
    """
    plain = two_families(tag)
    further = {place: tuple(ip_interface(text) for text in texts) for place, texts in _CROSSROADS.items()}

    def more(port: Port) -> Port:
        return replace(port, further=further.get((port.role, port.name), ()))

    wired = replace(plain, wires=tuple(Wire(more(wire.left), more(wire.right)) for wire in plain.wires))
    routes = [
        Route(Role.WAN, network, next(via for via in plain.addresses(role, WAN) if via.version == network.version))
        for role in (Role.GATEWAY_A, Role.GATEWAY_B)
        for network in wired.behind(role)
    ]
    return replace(wired, routes=(*plain.routes, *routes), forwarding=(*plain.forwarding, Role.WAN))


def guarded(tag: str) -> Topology:
    """:func:`crossroads` as careful operators have it: what finds no tunnel goes into a black hole, not to the WAN.

    Charon's own routes (table 220) go before it while there is a tunnel.
    """
    plain = crossroads(tag)
    pairs = ((Role.GATEWAY_A, Role.GATEWAY_B), (Role.GATEWAY_B, Role.GATEWAY_A))
    holes = [Route(here, network, None) for here, there in pairs for network in plain.behind(there)]
    return replace(plain, routes=(*plain.routes, *holes))


def behind_nat(tag: str) -> Topology:
    """The same two sites, but gateway B has a private address, behind a router with NAT on the WAN."""
    open_ = site_to_site(tag)
    outside, inside = IPv4Interface("10.0.0.2/24"), IPv4Interface("192.168.77.1/24")
    wan_b, lan_b, server = (IPv4Interface(a) for a in ("192.168.77.2/24", "10.2.0.1/24", "10.2.0.10/24"))
    anywhere = IPv4Network("0.0.0.0/0")
    provider = open_.bridge.address
    assert provider is not None
    kept = [route for route in open_.routes if route.role is not Role.GATEWAY_B]
    return replace(
        open_,
        roles=(Role.CLIENT, Role.GATEWAY_A, Role.WAN, Role.NAT, Role.GATEWAY_B, Role.SERVER),
        wires=(
            *open_.wires[:2],
            Wire(Port(Role.WAN, "to-b"), Port(Role.NAT, OUTSIDE, outside)),
            Wire(Port(Role.NAT, INSIDE, inside), Port(Role.GATEWAY_B, WAN, wan_b)),
            Wire(Port(Role.GATEWAY_B, LAN, lan_b), Port(Role.SERVER, HOST, server)),
        ),
        routes=(*kept, Route(Role.NAT, anywhere, provider.ip), Route(Role.GATEWAY_B, anywhere, inside.ip)),
        forwarding=(*open_.forwarding, Role.NAT),
    )


def roadwarriors(tag: str) -> Topology:
    """Client - gateway A - WAN, and three single hosts: two behind one router with NAT, one on the WAN itself."""
    open_ = site_to_site(tag)
    outside, third = IPv4Interface("10.0.0.2/24"), IPv4Interface("10.0.0.3/24")
    sides = {"1": Role.ROAD_1, "2": Role.ROAD_2}
    routers = {number: IPv4Interface(f"192.168.7{number}.1/24") for number in sides}
    hosts = {number: IPv4Interface(f"192.168.7{number}.2/24") for number in sides}
    anywhere = IPv4Network("0.0.0.0/0")
    provider = open_.bridge.address
    assert provider is not None
    return replace(
        open_,
        roles=(Role.CLIENT, Role.GATEWAY_A, Role.WAN, Role.NAT, *sides.values(), Role.ROAD_3),
        wires=(
            *open_.wires[:2],
            Wire(Port(Role.WAN, "to-nat"), Port(Role.NAT, OUTSIDE, outside)),
            Wire(Port(Role.WAN, "to-rw3"), Port(Role.ROAD_3, WAN, third)),
            *(Wire(Port(Role.NAT, INSIDE + n, routers[n]), Port(role, WAN, hosts[n])) for n, role in sides.items()),
        ),
        routes=(
            *(route for route in open_.routes if route.role in (Role.CLIENT, Role.GATEWAY_A)),
            *(Route(role, anywhere, provider.ip) for role in (Role.NAT, Role.ROAD_3)),
            *(Route(role, anywhere, routers[number].ip) for number, role in sides.items()),
        ),
        forwarding=(Role.GATEWAY_A, Role.NAT),
    )


def batches(topology: Topology) -> tuple[Batch, ...]:
    """What builds the wires and configures each namespace, in order; the namespaces themselves exist already."""
    wires = tuple(
        f"link add name {wire.left.name} netns {topology.namespace(wire.left.role)} mtu {MTU} type veth "
        f"peer name {wire.right.name} netns {topology.namespace(wire.right.role)} mtu {MTU}"
        for wire in topology.wires
    )
    return (
        Batch(None, wires),
        *(Batch(topology.namespace(role), _configure(topology, role)) for role in topology.roles),
    )


def _configure(topology: Topology, role: Role) -> tuple[str, ...]:
    lines = ["link set dev lo up"]
    bridge = topology.bridge if topology.bridge.role is role else None
    if bridge:
        # No spanning tree: its forwarding delay would eat the first fifteen seconds of every run.
        lines.append(f"link add name {bridge.name} type bridge forward_delay 0 stp_state 0 mcast_snooping 0")
        if bridge.address is not None:
            lines.append(f"addr add {bridge.address} dev {bridge.name}")
        if bridge.address6 is not None:
            lines.append(f"addr add {bridge.address6} dev {bridge.name} nodad")
    for port in topology.ports(role):
        if port.address is not None:
            lines.append(f"addr add {port.address} dev {port.name}")
        if port.address6 is not None:
            lines.append(f"addr add {port.address6} dev {port.name} nodad")
        for further in port.further:
            lines.append(f"addr add {further} dev {port.name}" + (" nodad" if further.version == 6 else ""))
        if bridge and port.address is None:
            lines.append(f"link set dev {port.name} master {bridge.name}")
        lines.append(f"link set dev {port.name} up")
    if bridge:
        lines.append(f"link set dev {bridge.name} up")
    lines += [_route(route) for route in topology.routes if route.role is role]
    return tuple(lines)


def _route(route: Route) -> str:
    if route.via is None:
        return f"route add blackhole {route.destination}"
    return f"route add {route.destination} via {route.via}" + (f" mtu lock {route.mtu}" if route.mtu else "")
