"""VXLAN devices as rtnetlink tells them (``linux/if_link.h``)."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

from ipsec_gw.model.ids import IpAddress
from ipsec_gw.model.snapshot import Vxlan

_VERSIONS = ("", "6")
"""What is behind the names of attributes for addresses."""


def vxlan(link: Any) -> Vxlan | None:
    """The device that a link is, None if it is of another kind or sends to more than one peer."""
    if link.get(("linkinfo", "kind")) != "vxlan":
        return None
    remote = _address(link, "group")
    if remote is None or remote.is_multicast:
        return None
    return Vxlan(str(link.get("ifname")), _address(link, "local"), remote, int(_attribute(link, "port") or 0))


def _address(link: Any, name: str) -> IpAddress | None:
    """None for any."""
    found = next((text for version in _VERSIONS if (text := _attribute(link, name + version))), None)
    address = ip_address(found) if found else None
    return address if address and int(address) else None


def _attribute(link: Any, name: str) -> Any:
    return link.get(("linkinfo", "data", f"vxlan_{name}"))
