"""VXLAN tunnels (``plugins/vxlan/vxlan.api``): interfaces that put Ethernet frames into UDP (RFC 7348)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from ipsec_gw.model.ids import IpAddress
from vpp_conf.descriptors.base import NO_INDEX, Descriptor, from_address, to_address
from vpp_conf.descriptors.interface import OWNER_TAG, tag

MESSAGE = "vxlan_add_del_tunnel_v3"
"""VPP knows it while its VXLAN plugin is enabled."""

FIRST_INSTANCE, LAST_INSTANCE = 0x4000_0000, 0x4000_FFFF
"""The gateway's own numbers, as tunnels of GRE have some: one that was only begun must be found again."""


@dataclass(frozen=True, slots=True)
class VxlanTunnel:
    """What is sent by it goes from ``source`` to a ``port`` of ``destination`` with this ``vni``, by a FIB ``table``.
    It receives what VPP's node for VXLAN is given in the same table. ``number`` is the gateway's own, from 0.
    """

    number: int
    vni: int
    source: IpAddress
    destination: IpAddress
    port: int
    table: int
    sw_if_index: int = field(default=0, compare=False)


class VxlanTunnelDescriptor(Descriptor[VxlanTunnel]):
    """VXLAN tunnels of the gateway."""

    kind = "vxlan-tunnel"

    async def create(self, value: VxlanTunnel) -> VxlanTunnel:
        reply = await self._add_del(value, is_add=True)
        made = replace(value, sw_if_index=reply.sw_if_index)
        await tag(self._api, made.sw_if_index, OWNER_TAG)
        return made

    async def delete(self, value: VxlanTunnel) -> None:
        await self._add_del(value, is_add=False)

    async def retrieve(self) -> tuple[VxlanTunnel, ...]:
        """Those with a number of the gateway's, none without the plugin."""
        if not self._api.knows(MESSAGE):
            return ()
        found = await self._api.dump("vxlan_tunnel_v2_dump", sw_if_index=NO_INDEX)
        return tuple(
            VxlanTunnel(
                number=one.instance - FIRST_INSTANCE,
                vni=one.vni,
                source=from_address(one.src_address),
                destination=from_address(one.dst_address),
                port=one.dst_port,
                table=one.encap_vrf_id,
                sw_if_index=one.sw_if_index,
            )
            for one in found
            if FIRST_INSTANCE <= one.instance <= LAST_INSTANCE
        )

    async def _add_del(self, value: VxlanTunnel, *, is_add: bool) -> Any:
        """The source port of the message is the one that is received by: what is sent has a hash of its flow."""
        return await self._api.call(
            MESSAGE,
            is_add=is_add,
            instance=FIRST_INSTANCE + value.number,
            src_address=to_address(value.source),
            dst_address=to_address(value.destination),
            src_port=value.port,
            dst_port=value.port,
            mcast_sw_if_index=NO_INDEX,
            encap_vrf_id=value.table,
            decap_next_index=NO_INDEX,
            vni=value.vni,
            is_l3=False,
        )
