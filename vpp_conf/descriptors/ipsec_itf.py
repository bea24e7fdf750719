"""IPsec interfaces (``vnet/ipsec/ipsec_itf.h``): the routed side of a protected tunnel."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from vpp_conf.descriptors.base import Descriptor
from vpp_conf.descriptors.interface import OWNER_TAG, interfaces, take_in

NAME_PREFIX = "ipsec"
POINT_TO_POINT = 0
"""``TUNNEL_API_MODE_P2P``."""


@dataclass(frozen=True, slots=True)
class IpsecInterface:
    """``table`` is the FIB that decrypted packets are looked up in, ``mtu`` in bytes of inner IP packet.

    ``lender`` is the interface whose address it borrows.
    """

    table: int
    mtu: int
    lender: int
    sw_if_index: int = field(default=0, compare=False)


class IpsecInterfaceDescriptor(Descriptor[IpsecInterface]):
    """IPsec interfaces, tagged as the gateway's."""

    kind = "ipsec-interface"

    async def create(self, value: IpsecInterface) -> IpsecInterface:
        reply = await self._api.call("ipsec_itf_create", itf={"user_instance": 0xFFFFFFFF, "mode": POINT_TO_POINT})
        made = replace(value, sw_if_index=reply.sw_if_index)
        await take_in(self._api, made, self.delete)
        return made

    async def delete(self, value: IpsecInterface) -> None:
        await self._api.call("ipsec_itf_delete", sw_if_index=value.sw_if_index)

    async def retrieve(self) -> tuple[IpsecInterface, ...]:
        """Those that carry the gateway's tag. Table, MTU and lender are not read back: 0."""
        return tuple(
            IpsecInterface(0, 0, 0, interface.sw_if_index)
            for interface in (await interfaces(self._api)).values()
            if interface.tag == OWNER_TAG and interface.name.startswith(NAME_PREFIX)
        )
