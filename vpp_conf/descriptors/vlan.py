"""VLAN subinterfaces (``vnet/interface.api``): an XFRM interface of the kernel as VPP sees it on the veth pair."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from vpp_conf.descriptors.base import Descriptor, Reference
from vpp_conf.descriptors.interface import borrow_address, bring_up, tag

VLAN_TAG = "ipsec-gw vlan"
"""Owner's tag of these: an AF_XDP interface whose kernel name has a dot looks the same but for it."""


@dataclass(frozen=True, slots=True)
class Vlan:
    """``vlan`` on the interface ``parent``, its packets looked up in ``table``, ``mtu`` in bytes of IP packet.

    ``lender`` is the interface whose address it borrows.
    """

    parent: int
    vlan: int
    table: int
    mtu: int
    lender: int
    sw_if_index: int = field(default=0, compare=False)


class VlanDescriptor(Descriptor[Vlan]):
    """VLAN subinterfaces, tagged as the gateway's."""

    kind = "vlan"

    async def create(self, value: Vlan) -> Vlan:
        reply = await self._api.call("create_vlan_subif", sw_if_index=value.parent, vlan_id=value.vlan)
        made = replace(value, sw_if_index=reply.sw_if_index)
        try:
            await tag(self._api, made.sw_if_index, VLAN_TAG)
            await bring_up(self._api, made.sw_if_index, value.table, value.mtu)
            await borrow_address(self._api, made.sw_if_index, value.lender)
        except BaseException:
            await self.delete(made)
            raise
        return made

    async def delete(self, value: Vlan) -> None:
        await self._api.call("delete_subif", sw_if_index=value.sw_if_index)

    async def retrieve(self) -> tuple[Vlan, ...]:
        """Those that carry the gateway's tag. Table, MTU and lender are not read back: 0."""
        return tuple(
            Vlan(detail.sup_sw_if_index, detail.sub_outer_vlan_id, 0, 0, 0, detail.sw_if_index)
            for detail in await self._api.dump("sw_interface_dump")
            if detail.tag == VLAN_TAG
        )

    def depends_on(self, value: Vlan) -> tuple[Reference, ...]:
        return (Reference("interface", value.parent), Reference("interface", value.lender))
