"""VTI devices as rtnetlink tells them (``linux/if_tunnel.h``)."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

from ipsec_gw.model.ids import IpAddress
from ipsec_gw.model.objects import InterfaceKind, XfrmInterface
from ipsec_gw.model.snapshot import Vti

_KINDS = frozenset({"vti", "vti6"})


def vti(link: Any) -> Vti | None:
    """The device that a link is, None if it is of another kind."""
    if link.get(("linkinfo", "kind")) not in _KINDS:
        return None
    return Vti(
        interface=XfrmInterface(int(link.get("index")), str(link.get("ifname")), InterfaceKind.VTI),
        local=_address(_attribute(link, "local")),
        remote=_address(_attribute(link, "remote")),
        in_mark=int(_attribute(link, "ikey") or 0),
        out_mark=int(_attribute(link, "okey") or 0),
    )


def _attribute(link: Any, name: str) -> Any:
    return link.get(("linkinfo", "data", f"vti_{name}"))


def _address(text: Any) -> IpAddress | None:
    """None for any."""
    found = ip_address(text) if text else None
    return found if found and int(found) else None
