"""VLAN sub-interfaces (``vnet/interface.api``)."""

from __future__ import annotations

from dataclasses import dataclass, field

from vpp_conf.api import VppApi
from vpp_conf.descriptors.base import Descriptor, Reference
from vpp_conf.descriptors.interface import OWNER_TAG

NO_VLAN = 0


@dataclass(frozen=True, slots=True)
class SubInterface:
    """What a parent interface gets with one VLAN tag, and sends with it."""

    parent: int
    vid: int
    sw_if_index: int = field(default=0, compare=False)


class SubInterfaceDescriptor(Descriptor[SubInterface]):
    """Sub-interfaces with an owner's tag, which is put on by whoever completes one."""

    kind = "sub-interface"

    def __init__(self, api: VppApi, owner: str = OWNER_TAG) -> None:
        super().__init__(api)
        self._owner = owner

    async def create(self, value: SubInterface) -> SubInterface:
        """In place of one that was begun and not completed."""
        for begun in await self._of(""):
            if (begun.parent, begun.vid) == (value.parent, value.vid):
                await self.delete(begun)
        reply = await self._api.call("create_vlan_subif", sw_if_index=value.parent, vlan_id=value.vid)
        return SubInterface(value.parent, value.vid, reply.sw_if_index)

    async def delete(self, value: SubInterface) -> None:
        await self._api.call("delete_subif", sw_if_index=value.sw_if_index)

    async def retrieve(self) -> tuple[SubInterface, ...]:
        """Those that carry the tag."""
        return await self._of(self._owner)

    async def _of(self, owner: str) -> tuple[SubInterface, ...]:
        return tuple(
            SubInterface(detail.sup_sw_if_index, detail.sub_outer_vlan_id, detail.sw_if_index)
            for detail in await self._api.dump("sw_interface_dump")
            if detail.tag == owner and detail.sub_outer_vlan_id != NO_VLAN
        )

    def depends_on(self, value: SubInterface) -> tuple[Reference, ...]:
        return (Reference("af_xdp", value.parent),)
