"""The network that reference and datapath are compared in: a machine with six interfaces, and what is around it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_network

from ipsec_gw.model.ids import IpAddress
from tests.reference.fib import Device, Fib, Kind, Route, key_bytes
from tests.reference.rules import Port

HOSTS = (10, 11, 12)
"""Last parts of the addresses of neighbours with known MACs."""
SILENT = 0x77
"""Of one that nobody knows the MAC of: 10.0.0.119 and 2001:db8:a::77."""


@dataclass(frozen=True, slots=True)
class Link:
    """An interface of the machine. ``vid`` and ``parent`` of a VLAN device."""

    name: str
    address4: IPv4Interface
    address6: IPv6Interface
    mtu: int = 1500
    parent: str = ""
    vid: int = 0
    forwarding: bool = True

    @property
    def mac(self) -> str:
        """A VLAN device has its parent's."""
        return f"02:00:00:00:00:{ord((self.parent or self.name)[-1]):02x}"

    def neighbour_mac(self, host: int) -> str:
        return f"02:00:00:00:{ord(self.name[-1]):02x}:{host:02x}"

    def host4(self, host: int) -> IpAddress:
        return self.address4.network.network_address + host

    def host6(self, host: int) -> IpAddress:
        return self.address6.network.network_address + host


def _link(name: str, v4: str, v6: str, **rest: object) -> Link:
    return Link(name, IPv4Interface(v4), IPv6Interface(v6), **rest)  # type: ignore[arg-type]


LINKS = (
    _link("fwa", "10.0.0.1/24", "2001:db8:a::1/64"),
    _link("fwb", "10.0.1.1/24", "2001:db8:b::1/64", mtu=1400),
    _link("fwc", "10.0.2.1/24", "2001:db8:c::1/64"),
    _link("fwc.100", "10.0.100.1/24", "2001:db8:100::1/64", parent="fwc", vid=100),
    _link("fwd", "198.51.100.1/24", "2001:db8:d::1/64"),
    _link("fwx", "10.0.4.1/24", "2001:db8:e::1/64", forwarding=False),
)
GATEWAY4, GATEWAY6 = ip_address("198.51.100.254"), ip_address("2001:db8:d::fe")
GATEWAY_HOST = 254

ROUTES = (
    Route(ip_network("0.0.0.0/0"), device="fwd", via=GATEWAY4),
    Route(ip_network("203.0.113.0/24"), device="fwb", via=ip_address("10.0.1.10")),
    Route(ip_network("192.0.2.0/28"), Kind.BLACKHOLE),
    Route(ip_network("192.0.2.16/28"), Kind.UNREACHABLE),
    Route(ip_network("192.0.2.32/28"), Kind.PROHIBIT),
    Route(ip_network("192.0.2.48/28"), device="fwd", via=GATEWAY4, mtu=1280),
    Route(ip_network("192.0.2.64/28"), device="fwc", via=ip_address("10.0.2.119")),
    Route(ip_network("::/0"), device="fwd", via=GATEWAY6),
    Route(ip_network("2001:db8:f0::/64"), Kind.BLACKHOLE),
    Route(ip_network("2001:db8:f1::/64"), Kind.UNREACHABLE),
    Route(ip_network("2001:db8:f2::/64"), Kind.PROHIBIT),
    Route(ip_network("2001:db8:f3::/64"), device="fwd", via=GATEWAY6, mtu=1280),
    Route(ip_network("2001:db8:f4::/64"), device="fwc", via=ip_address("2001:db8:c::77")),
)
"""Beside those of the interfaces' own networks."""

SEED = 0x5EED


def mac_bytes(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def neighbours(link: Link) -> dict[IpAddress, str]:
    """MACs of the hosts on a link."""
    hosts = (*HOSTS, GATEWAY_HOST) if link.name == "fwd" else HOSTS
    return {address(host): link.neighbour_mac(host) for host in hosts for address in (link.host4, link.host6)}


TUNNEL_PORT = "ipsecgw-up"
"""Clear packets of tunnels come out of it. No route leads there."""


TRANSLATOR_PORT = "ipsecgw-kn"
"""What VPP translates comes back by it."""


def make_fib(indexes: Mapping[str, int]) -> Fib:
    """The routes, with the machine's interface indexes."""
    devices = [
        Device(
            link.name,
            indexes[link.name],
            mac_bytes(link.mac),
            link.mtu,
            indexes[link.parent] if link.parent else 0,
            link.vid,
            link.forwarding,
        )
        for link in LINKS
    ]
    devices += [Device(name, indexes[name], bytes(6)) for name in (TUNNEL_PORT, TRANSLATOR_PORT)]
    routes = list(ROUTES)
    routes += [Route(ip_network(local), Kind.LOCAL) for local in ("127.0.0.0/8", "::1/128", "ff00::/8")]
    for link in LINKS:
        broadcast = link.address4.network.broadcast_address
        anycast = link.address6.network.network_address if link.forwarding else link.address6.ip
        routes += [Route(network, device=link.name) for network in (link.address4.network, link.address6.network)]
        routes += [
            Route(ip_network(own), Kind.LOCAL) for own in (link.address4.ip, link.address6.ip, broadcast, anycast)
        ]
    macs = {(link.name, host): mac_bytes(mac) for link in LINKS for host, mac in neighbours(link).items()}
    return Fib(tuple(devices), tuple(routes), macs)


INDEXES = {
    name: number for number, name in enumerate((*(link.name for link in LINKS), TUNNEL_PORT, TRANSLATOR_PORT), 2)
}
"""For tests without a kernel."""


def make_port(name: str, zone: str, indexes: Mapping[str, int], **rest: bool) -> Port:
    """The port of an interface, with its addresses."""
    link = next(link for link in LINKS if link.name == name)
    addresses = key_bytes(link.address4.ip), key_bytes(link.address6.ip)
    return Port(indexes[link.parent or name], link.vid, indexes[name], zone, *addresses, **rest)
