"""The kernel's links at one moment, and what they are to tunnels (rtnetlink, ``linux/if_link.h``). Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from ipsec_gw.engines.port import Link
from ipsec_gw.mirror.encapsulators import encapsulator
from ipsec_gw.mirror.vti import vti
from ipsec_gw.mirror.vxlan import vxlan
from ipsec_gw.model.objects import XfrmInterface
from ipsec_gw.model.snapshot import Encapsulator, Vti, Vxlan

ARPHRD_ETHER = 1
_XFRM_KIND = "xfrm"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Interface:
    """A link with its index; ``ethernet`` is False for loopback, tunnels and PPP."""

    link: Link
    index: int
    ethernet: bool


class Links:
    """One dump of them: what is read from it belongs together."""

    def __init__(self, messages: Iterable[Any]) -> None:
        self._messages = tuple(messages)
        self.names = {_index(link): _name(link) for link in self._messages}
        """By index."""

    def interfaces(self) -> dict[str, Interface]:
        """All of them by name."""
        return {_name(link): _interface(link) for link in self._messages}

    def xfrm_interfaces(self) -> dict[int, XfrmInterface]:
        """The XFRM interfaces by their if_id. One without takes what others tell it (external)."""
        return {
            int(if_id): XfrmInterface(_index(link), _name(link))
            for link in self._messages
            if link.get(("linkinfo", "kind")) == _XFRM_KIND and (if_id := link.get(("linkinfo", "data", "xfrm_if_id")))
        }

    def vtis(self) -> tuple[Vti, ...]:
        """VTI devices, of IPv4 and of IPv6."""
        return self._made(vti)

    def encapsulators(self) -> tuple[Encapsulator, ...]:
        """GRE and IPIP devices, whatever they are like."""
        return self._made(lambda link: encapsulator(link, self.names))

    def vxlans(self) -> tuple[Vxlan, ...]:
        """VXLAN devices that send to one peer; a link does not tell where their forwarding databases lead besides."""
        return self._made(lambda link: vxlan(link, self.names))

    def _made(self, make: Callable[[Any], T | None]) -> tuple[T, ...]:
        return tuple(made for link in self._messages if (made := make(link)) is not None)


def _index(link: Any) -> int:
    return int(link.get("index"))


def _name(link: Any) -> str:
    return str(link.get("ifname"))


def _interface(link: Any) -> Interface:
    name = _name(link)
    return Interface(
        link=Link(name=name, mac=str(link.get("address") or ""), mtu=int(link.get("mtu") or 0)),
        index=_index(link),
        ethernet=int(link.get("ifi_type")) == ARPHRD_ETHER and name != "lo",
    )
