"""Two interfaces that hand each other every Ethernet frame (``vnet/l2/l2.api``)."""

from __future__ import annotations

from dataclasses import dataclass

from vpp_conf.api import VppApi
from vpp_conf.descriptors.base import Descriptor, Reference

POP_1 = 3
"""``L2_VTR_POP_1``: one tag less on the way in, and one more on the way out."""

_DOT1Q = 1


@dataclass(frozen=True, slots=True)
class CrossConnect:
    """What comes in by ``rx`` goes out by ``tx``."""

    rx: int
    tx: int

    @property
    def reversed(self) -> CrossConnect:
        """The other way."""
        return CrossConnect(self.tx, self.rx)


class CrossConnectDescriptor(Descriptor[CrossConnect]):
    """Cross connects, one for each way."""

    kind = "cross-connect"

    async def create(self, value: CrossConnect) -> CrossConnect:
        await self._set(value, enable=True)
        return value

    async def delete(self, value: CrossConnect) -> None:
        await self._set(value, enable=False)

    async def retrieve(self) -> tuple[CrossConnect, ...]:
        """Whoever made them."""
        found = await self._api.dump("l2_xconnect_dump")
        return tuple(CrossConnect(one.rx_sw_if_index, one.tx_sw_if_index) for one in found)

    def depends_on(self, value: CrossConnect) -> tuple[Reference, ...]:
        return (Reference("interface", value.rx), Reference("interface", value.tx))

    async def _set(self, value: CrossConnect, *, enable: bool) -> None:
        await self._api.call(
            "sw_interface_set_l2_xconnect", rx_sw_if_index=value.rx, tx_sw_if_index=value.tx, enable=enable
        )


async def pop_tag(api: VppApi, sw_if_index: int) -> None:
    """Take the tag of a cross-connected VLAN subinterface off what comes in, and put it on what goes out."""
    await api.call(
        "l2_interface_vlan_tag_rewrite", sw_if_index=sw_if_index, vtr_op=POP_1, push_dot1q=_DOT1Q, tag1=0, tag2=0
    )


async def popping(api: VppApi) -> frozenset[int]:
    """The interfaces that do so."""
    return frozenset(one.sw_if_index for one in await api.dump("sw_interface_dump") if one.vtr_op == POP_1)
