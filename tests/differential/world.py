"""The network of :mod:`tests.reference.network` as real interfaces, routes and neighbours of a namespace."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

from ipsec_gw.model.firewall import TRANSLATOR_PORT, TUNNEL_INTERFACES
from tests.reference.fib import Kind
from tests.reference.network import LINKS, ROUTES, Link, neighbours

_CONF = Path("/proc/sys/net")


def build() -> dict[str, int]:
    """Make everything in the namespace of the calling thread. Interface indexes by name."""
    (_CONF / "ipv6/conf/default/disable_ipv6").write_text("0")
    (_CONF / "ipv6/conf/all/disable_ipv6").write_text("0")
    _batch("link set lo up", *(line for link in LINKS for line in _interface(link)), *_tunnel_ports())
    (_CONF / "ipv4/ip_forward").write_text("1")
    (_CONF / "ipv6/conf/all/forwarding").write_text("1")
    for link in LINKS:
        for family in ("ipv4", "ipv6"):
            (_CONF / family / "conf" / link.name / "forwarding").write_text(str(int(link.forwarding)))
    _batch(*_routes(), *(line for link in LINKS for line in _neighbours(link)))
    names = (*(link.name for link in LINKS), *TUNNEL_INTERFACES, TUNNEL_ENTRY, TRANSLATOR_PORT)
    return {name: socket.if_nametoindex(name) for name in names}


def _batch(*lines: str) -> None:
    done = subprocess.run(["ip", "-batch", "-"], input="\n".join(lines), text=True, check=False, capture_output=True)
    if done.returncode:
        raise RuntimeError(f"the test network cannot be built ({done.stderr.strip()}) - is the kernel without IPv6?")


def _interface(link: Link) -> Iterator[str]:
    """A VLAN device is a veth too: only routes lead there, tags are the frames' own. Not every kernel has 8021q."""
    yield f"link add {link.name} address {link.mac} type veth peer name {link.name}p"
    yield f"link set {link.name}p addrgenmode none"
    yield f"link set {link.name}p up"
    yield f"link set {link.name} mtu {link.mtu}"
    yield f"link set {link.name} addrgenmode none"
    yield f"link set {link.name} up"
    yield f"addr add {link.address4} brd + dev {link.name}"
    yield f"addr add {link.address6} nodad dev {link.name}"


TUNNEL_ENTRY = "ipsecgw-ki"
PAIRS = (*zip(TUNNEL_INTERFACES, ("ipsecgw-vp", TUNNEL_ENTRY), strict=True), (TRANSLATOR_PORT, "ipsecgw-vn"))


def _tunnel_ports() -> Iterator[str]:
    for port, peer in PAIRS:
        yield f"link add {port} type veth peer name {peer}"
        for name in (port, peer):
            yield f"link set {name} addrgenmode none"
            yield f"link set {name} up"


def _routes() -> Iterator[str]:
    for route in ROUTES:
        if route.kind is not Kind.UNICAST:
            yield f"route add {route.kind.value} {route.network}"
            continue
        mtu = f" mtu lock {route.mtu}" if route.mtu else ""  # forwarding looks at no other
        yield f"route add {route.network} via {route.via} dev {route.device}{mtu}"


def _neighbours(link: Link) -> Iterator[str]:
    for address, mac in neighbours(link).items():
        yield f"neigh add {address} lladdr {mac} nud permanent dev {link.name}"
