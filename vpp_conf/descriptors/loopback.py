"""The loopback whose address the IPsec interfaces borrow: VPP drops IPv4 on an interface without one."""

from __future__ import annotations

from dataclasses import dataclass, field

from vpp_conf.descriptors.base import Descriptor
from vpp_conf.descriptors.interface import OWNER_TAG, interfaces, named

NO_MAC = "00:00:00:00:00:00"
"""VPP makes one up."""


@dataclass(frozen=True, slots=True)
class Loopback:
    """``loopN`` with N = ``instance``."""

    instance: int
    sw_if_index: int = field(default=0, compare=False)


class LoopbackDescriptor(Descriptor[Loopback]):
    """Loopbacks. The owner's tag is put on by whoever completes one."""

    kind = "loopback"

    async def create(self, value: Loopback) -> Loopback:
        """In place of one that was begun and not completed."""
        begun = await named(self._api, f"loop{value.instance}")
        if begun is not None:
            await self.delete(Loopback(value.instance, begun.sw_if_index))
        reply = await self._api.call(
            "create_loopback_instance", mac_address=NO_MAC, is_specified=True, user_instance=value.instance
        )
        return Loopback(value.instance, reply.sw_if_index)

    async def delete(self, value: Loopback) -> None:
        await self._api.call("delete_loopback", sw_if_index=value.sw_if_index)

    async def retrieve(self) -> tuple[Loopback, ...]:
        """Those that carry the gateway's tag."""
        return tuple(
            Loopback(int(interface.name.removeprefix("loop")), interface.sw_if_index)
            for interface in (await interfaces(self._api)).values()
            if interface.tag == OWNER_TAG and interface.name.startswith("loop")
        )
