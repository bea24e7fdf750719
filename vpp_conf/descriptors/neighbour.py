"""Static neighbours (``vnet/ip-neighbor/ip_neighbor.api``): VPP sees no ARP replies, the kernel keeps those."""

from __future__ import annotations

from dataclasses import dataclass

from ipsec_gw.model.ids import IpAddress
from vpp_conf.descriptors.af_xdp import KIND as AF_XDP
from vpp_conf.descriptors.base import Descriptor, Reference, af, from_address

STATIC = 1
"""``IP_API_NEIGHBOR_FLAG_STATIC``."""


@dataclass(frozen=True, slots=True)
class Neighbour:
    """An address behind an interface and its MAC, in colon notation and lower case."""

    sw_if_index: int
    address: IpAddress
    mac: str


class NeighbourDescriptor(Descriptor[Neighbour]):
    """Static neighbours; creating one over another replaces the MAC."""

    kind = "neighbour"

    async def create(self, value: Neighbour) -> Neighbour:
        await self._api.call("ip_neighbor_add_del", is_add=True, neighbor=_to_neighbour(value))
        return value

    async def update(self, old: Neighbour, new: Neighbour) -> Neighbour:
        """A new MAC for the same address takes effect between two packets."""
        if (old.sw_if_index, old.address) != (new.sw_if_index, new.address):
            return await super().update(old, new)
        return await self.create(new)

    async def delete(self, value: Neighbour) -> None:
        await self._api.call("ip_neighbor_add_del", is_add=False, neighbor=_to_neighbour(value))

    async def retrieve(self) -> tuple[Neighbour, ...]:
        found = []
        for family in (0, 1):
            for detail in await self._api.dump("ip_neighbor_dump", af=family):
                entry = detail.neighbor
                if entry.flags & STATIC:
                    found.append(
                        Neighbour(entry.sw_if_index, from_address(entry.ip_address), str(entry.mac_address).lower())
                    )
        return tuple(found)

    def depends_on(self, value: Neighbour) -> tuple[Reference, ...]:
        return (Reference(AF_XDP, value.sw_if_index),)


def _to_neighbour(value: Neighbour) -> dict[str, object]:
    return {
        "sw_if_index": value.sw_if_index,
        "flags": STATIC,
        "mac_address": value.mac,
        "ip_address": {"af": af(value.address), "un": {f"ip{value.address.version}": value.address.packed}},
    }
