"""The shape that all descriptors share, and the VPP types that several of them speak."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Any, Generic, TypeVar

from ipsec_gw.errors import EngineError
from ipsec_gw.model.ids import IpAddress, IpNetwork
from vpp_conf.api import VppApi

NO_INDEX = 0xFFFFFFFF
"""VPP's ``~0``: no interface, no table, any."""

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Reference:
    """An object that another one needs: the descriptor's ``kind`` and the object's identity in VPP."""

    kind: str
    identity: object


class Descriptor(ABC, Generic[Value]):
    """A kind of VPP object. All calls raise EngineError as :class:`~vpp_conf.api.VppApi` does."""

    kind: str

    def __init__(self, api: VppApi) -> None:
        self._api = api

    @abstractmethod
    async def create(self, value: Value) -> Value:
        """Put the object in place; what comes back also holds the indices that VPP gave it."""

    @abstractmethod
    async def delete(self, value: Value) -> None:
        """Remove the object."""

    @abstractmethod
    async def retrieve(self) -> tuple[Value, ...]:
        """All objects of this kind that VPP holds, foreign ones included."""

    async def update(self, old: Value, new: Value) -> Value:
        """Change the object in place. Kinds that VPP cannot change say so."""
        if self.equal(old, new):
            return old
        raise EngineError(f"VPP cannot change {self.kind} in place - delete and create it")

    def equal(self, wanted: Value, found: Value) -> bool:
        """True if ``found`` does what ``wanted`` asks for; indices are left out of comparisons."""
        return wanted == found

    def depends_on(self, value: Value) -> tuple[Reference, ...]:
        """What must exist before ``create`` and outlive ``delete``."""
        return ()


def af(address: IpAddress) -> int:
    """``vl_api_address_family_t``."""
    return 0 if address.version == 4 else 1


def to_address(address: IpAddress) -> dict[str, Any]:
    """``vl_api_address_t``."""
    return {"af": af(address), "un": {f"ip{address.version}": address.packed}}


def from_address(value: Any) -> IpAddress:
    """The address that vpp_papi decoded; it hands out ``ipaddress`` objects."""
    if isinstance(value, IPv4Address | IPv6Address):
        return value
    return IPv4Address(value.un.ip4) if value.af == 0 else IPv6Address(value.un.ip6)


def to_prefix(network: IpNetwork) -> dict[str, Any]:
    """``vl_api_prefix_t``."""
    return {"address": to_address(network.network_address), "len": network.prefixlen}


def from_prefix(value: Any) -> IpNetwork:
    """The prefix that vpp_papi decoded."""
    if isinstance(value, IPv4Network | IPv6Network):
        return value
    return ip_network((from_address(value.address), value.len), strict=False)


def host(address: IpAddress) -> IpNetwork:
    """The network of this one address."""
    return ip_network((address, address.max_prefixlen))


def to_path(
    version: int, sw_if_index: int = NO_INDEX, next_hop: IpAddress | None = None, table: int = 0
) -> dict[str, Any]:
    """``vl_api_fib_path_t``: by interface (and next hop), or without both a second look-up in ``table``."""
    address = {f"ip{version}": next_hop.packed if next_hop else bytes(4 if version == 4 else 16)}
    return {
        "sw_if_index": sw_if_index,
        "table_id": table,
        "rpf_id": NO_INDEX,
        "weight": 1,
        "preference": 0,
        "type": 0,
        "flags": 0,
        "proto": 0 if version == 4 else 1,
        "nh": {"address": address, "via_label": 0, "obj_id": NO_INDEX, "classify_table_index": NO_INDEX},
        "n_labels": 0,
        "label_stack": [{}] * 16,
    }
