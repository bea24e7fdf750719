"""GRE and IPIP devices as rtnetlink tells them (``linux/if_tunnel.h``), and what of theirs no engine could do."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any

from ipsec_gw.model.ids import IpAddress
from ipsec_gw.model.objects import InterfaceKind, XfrmInterface
from ipsec_gw.model.snapshot import Encapsulator

_PREFIXES = {"gre": "gre", "gretap": "gre", "erspan": "", "ipip": "ipip"}
"""Of their attributes, by kind; pyroute2 does not take those of ``erspan`` apart."""

_IFF_UP = 0x1
_FROM_INSIDE = 1
"""Bit of the TOS: that of the packet inside (``tos inherit``)."""

_SMALLEST_TTL = 64
"""What engines send with, or more. A fixed TTL below is meant to end on the way."""

_IPIP_PROTOCOLS = {0, 4}
"""What an IPIP device carries: any, IPv4."""


def encapsulator(link: Any, names: Mapping[int, str]) -> Encapsulator | None:
    """The device that a link is, None if it is of another kind. ``names`` are those of all interfaces."""
    kind = link.get(("linkinfo", "kind"))
    if kind not in _PREFIXES:
        return None
    data = {name: _attribute(link, _PREFIXES[kind], name) for name in _ASKED}
    return Encapsulator(
        interface=XfrmInterface(
            int(link.get("index")),
            str(link.get("ifname")),
            InterfaceKind.IPIP if kind == "ipip" else InterfaceKind.GRE,
        ),
        local=_address(data["local"]),
        remote=_address(data["remote"]),
        dscp=bool(_number(data["tos"]) & _FROM_INSIDE),
        up=bool(int(link.get("flags")) & _IFF_UP),
        link=names.get(_number(data["link"]), ""),
        oddity=_oddity(kind, data),
    )


_ASKED = (
    *("local", "remote", "ttl", "tos", "link", "iflags", "oflags", "ikey", "okey", "proto"),
    *("encap_type", "collect_metadata", "fwmark"),
)


def _attribute(link: Any, prefix: str, name: str) -> Any:
    return link.get(("linkinfo", "data", f"{prefix}_{name}")) if prefix else None


def _oddity(kind: str, data: Mapping[str, Any]) -> str:
    ttl, tos = _number(data["ttl"]), _number(data["tos"])
    checks = (
        (kind not in {"gre", "ipip"}, f"is a {kind} device, for Ethernet"),
        (data["collect_metadata"] is not None, "is told its end points with each packet (external)"),
        (bool(_number(data["encap_type"])), "puts UDP around its packets (encap)"),
        (any(_number(data[name]) for name in ("iflags", "oflags", "ikey", "okey")), "has a key, checksums or numbers"),
        (kind == "ipip" and _number(data["proto"]) not in _IPIP_PROTOCOLS, "carries something else than IPv4"),
        (0 < ttl < _SMALLEST_TTL, f"has a TTL of {ttl}, and engines send with {_SMALLEST_TTL} or more"),
        (tos > _FROM_INSIDE, f"has a TOS of {tos:#04x}, and engines give theirs none, or that of the packet inside"),
        (bool(_number(data["fwmark"])), "has a mark by which its packets may be routed otherwise"),
    )
    return next((oddity for found, oddity in checks if found), "")


def _number(value: Any) -> int:
    """Of an attribute that may be missing, in whatever byte order: only 0 is told from the rest of flags and keys."""
    return int(value or 0)


def _address(text: Any) -> IpAddress | None:
    """None for any."""
    found = ip_address(text) if text else None
    return found if found and int(found) else None
