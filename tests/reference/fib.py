"""Routes, neighbours and interfaces of a machine, and how the kernel's lookup for XDP answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address

from ipsec_gw.model.ids import IpAddress, IpNetwork
from tests.reference.packets import V4_MAPPED, mapped


class Kind(Enum):
    """What a route leads to."""

    UNICAST = "unicast"
    LOCAL = "local"
    BLACKHOLE = "blackhole"
    UNREACHABLE = "unreachable"
    PROHIBIT = "prohibit"


@dataclass(frozen=True, slots=True)
class Device:
    """A layer 3 interface. A VLAN device has the index of its parent and its VLAN id."""

    name: str
    ifindex: int
    mac: bytes
    mtu: int = 1500
    parent: int = 0
    vid: int = 0
    forwarding: bool = True

    @property
    def port(self) -> tuple[int, int]:
        """Where its frames are seen on the wire: physical interface and VLAN id."""
        return (self.parent, self.vid) if self.parent else (self.ifindex, 0)


@dataclass(frozen=True, slots=True)
class Route:
    """``mtu`` 0: the device's."""

    network: IpNetwork
    kind: Kind = Kind.UNICAST
    device: str = ""
    via: IpAddress | None = None
    mtu: int = 0


@dataclass(frozen=True, slots=True)
class Found:
    """The answer: a kind, and for unicast where to. Without a neighbour MACs are zeros and the MTU is unknown (0)."""

    kind: Kind
    port: tuple[int, int] = (0, 0)
    smac: bytes = bytes(6)
    dmac: bytes = bytes(6)
    mtu: int = 0

    @property
    def reachable(self) -> bool:
        """The neighbour is known."""
        return self.mtu != 0


NEITHER = Found(Kind.LOCAL)
"""No route at all: the kernel's lookup does not tell that from its own addresses."""


@dataclass
class Fib:
    """``neighbours``: MACs by (device, address)."""

    devices: tuple[Device, ...]
    routes: tuple[Route, ...]
    neighbours: dict[tuple[str, IpAddress], bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._devices = {device.name: device for device in self.devices}
        self._by_index = {device.ifindex: device for device in self.devices}
        self._routes = sorted(self.routes, key=lambda route: -route.network.prefixlen)
        self._lookup = lru_cache(maxsize=4096)(self._find)

    def lookup(self, source: bytes, destination: bytes, l3_ifindex: int) -> Found | None:
        """For a packet that came in by an interface; None when that does not forward.

        IPv6 from or to addresses of a link is never forwarded, which the kernel says as it does for its own ones.
        """
        device = self._by_index.get(l3_ifindex)
        if device is None or not device.forwarding:
            return None
        if _is_of_link(source) or _is_of_link(destination):
            return NEITHER
        return self._lookup(destination)

    def _find(self, destination: bytes) -> Found:
        address = address_of(destination)
        for route in self._routes:
            if address.version == route.network.version and address in route.network:
                return self._follow(route, address)
        return NEITHER

    def _follow(self, route: Route, address: IpAddress) -> Found:
        if route.kind is not Kind.UNICAST:
            return Found(route.kind)
        device = self._devices[route.device]
        mac = self.neighbours.get((device.name, route.via or address))
        if mac is None:
            return Found(Kind.UNICAST, device.port)
        return Found(Kind.UNICAST, device.port, device.mac, mac, route.mtu or device.mtu)


def _is_of_link(packed: bytes) -> bool:
    """IPv6 multicast, link-local or loopback."""
    return packed[0] == 0xFF or (packed[0] == 0xFE and packed[1] & 0xC0 == 0x80) or packed == bytes(15) + b"\1"


def address_of(packed: bytes) -> IpAddress:
    """Of the sixteen bytes in a key."""
    return IPv4Address(packed[12:]) if packed.startswith(V4_MAPPED) else IPv6Address(packed)


def key_bytes(address: IpAddress | str) -> bytes:
    """The sixteen bytes of an address in a key."""
    return mapped(ip_address(str(address)).packed)
