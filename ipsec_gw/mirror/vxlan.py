"""VXLAN devices as rtnetlink tells them (``linux/if_link.h``), and what of theirs no engine could do."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any

from ipsec_gw.model.ids import IpAddress
from ipsec_gw.model.objects import InterfaceKind, XfrmInterface
from ipsec_gw.model.snapshot import Vxlan

_VERSIONS = ("", "6")
"""What is behind the names of attributes for addresses."""

_IFF_UP = 0x1
_NTF_SELF = 0x02
"""Of an entry in the forwarding database of the device itself, and not of a bridge that it is in."""

_SMALLEST_TTL = 64
"""What engines send with, or more. A fixed TTL below is meant to end on the way."""

_EXTENSIONS = ("gbp", "gpe", "remcsum_tx", "remcsum_rx")
_ANSWERS = ("proxy", "rsc", "l2miss", "l3miss")
_DIVERTING = ("NDA_VNI", "NDA_PORT", "NDA_IFINDEX", "NDA_NH_ID")
"""What an entry of the forwarding database may have of its own, in place of what the device has."""


def vxlan(link: Any, names: Mapping[int, str]) -> Vxlan | None:
    """The device that a link is, None if it is of another kind or sends to more than one peer. ``names`` are those of
    all interfaces; of its forwarding database see :func:`elsewhere`.
    """
    if link.get(("linkinfo", "kind")) != "vxlan":
        return None
    remote = _address(link, "group")
    if remote is None or remote.is_multicast:
        return None
    return Vxlan(
        interface=XfrmInterface(int(link.get("index")), str(link.get("ifname")), InterfaceKind.VXLAN),
        local=_address(link, "local"),
        remote=remote,
        port=_number(link, "port"),
        vni=_number(link, "id"),
        up=bool(int(link.get("flags")) & _IFF_UP),
        link=names.get(_number(link, "link"), ""),
        oddity=_oddity(link),
    )


def elsewhere(entry: Any, devices: Mapping[int, Vxlan]) -> tuple[int, str] | None:
    """The index of the device from whose forwarding database an AF_BRIDGE neighbour is, and where it leads, in words;
    None if it leads to the device's remote, or is of no device of ours.
    """
    device = devices.get(int(entry["ifindex"]))
    if device is None or entry["family"] != socket.AF_BRIDGE or not int(entry["flags"]) & _NTF_SELF:
        return None
    if any(entry.get_attr(name) is not None for name in _DIVERTING):
        return device.interface.index, f"{entry.get('dst') or 'a next-hop group'} by an entry of its own kind"
    text = entry.get("dst")
    if not text or ip_address(text) == device.remote:
        return None
    return device.interface.index, str(text)


def _oddity(link: Any) -> str:
    ttl, tos, df, label = (_number(link, name) for name in ("ttl", "tos", "df", "label"))
    ports = _attribute(link, "port_range") or {}
    checks = (
        (bool(_number(link, "collect_metadata")), "is told its peers with each frame (external)"),
        (_any(link, _EXTENSIONS), "has an extension of VXLAN's header (GBP, GPE or remote checksums)"),
        (_any(link, _ANSWERS), "answers ARP, routes or tells of misses itself (proxy, rsc, l2miss, l3miss)"),
        (0 < ttl < _SMALLEST_TTL, f"has a TTL of {ttl}, and engines send with {_SMALLEST_TTL} or more"),
        (bool(tos), f"has a TOS of {tos:#04x}, and engines give their packets none"),
        (bool(df), "sets DF, and engines leave it clear"),
        (bool(label), "has a flow label"),
        (any(ports.values()), "sends from ports of its own choice (srcport)"),
    )
    return next((oddity for found, oddity in checks if found), "")


def _any(link: Any, names: tuple[str, ...]) -> bool:
    return any(_number(link, name) for name in names)


def _address(link: Any, name: str) -> IpAddress | None:
    """None for any."""
    found = next((text for version in _VERSIONS if (text := _attribute(link, name + version))), None)
    address = ip_address(found) if found else None
    return address if address and int(address) else None


def _number(link: Any, name: str) -> int:
    """0 for one that is missing."""
    return int(_attribute(link, name) or 0)


def _attribute(link: Any, name: str) -> Any:
    return link.get(("linkinfo", "data", f"vxlan_{name}"))
