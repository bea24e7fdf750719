"""GRE tunnels (``plugins/gre/gre.api``): interfaces that put an IP header and a GRE header around packets."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from vpp_conf.descriptors.base import NO_INDEX, Descriptor, to_address
from vpp_conf.descriptors.headers import FIRST_INSTANCE, Encapsulation, read_own
from vpp_conf.descriptors.interface import take_in
from vpp_conf.descriptors.ipsec_itf import POINT_TO_POINT

MESSAGE = "gre_tunnel_add_del"
"""VPP knows it while its GRE plugin is enabled."""

_LAYER_3 = 0
"""``GRE_API_TUNNEL_TYPE_L3``."""


@dataclass(frozen=True, slots=True)
class GreTunnel(Encapsulation):
    """One of GRE."""


class GreTunnelDescriptor(Descriptor[GreTunnel]):
    """GRE tunnels of the gateway."""

    kind = "gre-tunnel"

    async def create(self, value: GreTunnel) -> GreTunnel:
        reply = await self._add_del(value, is_add=True)
        made = replace(value, sw_if_index=reply.sw_if_index)
        await take_in(self._api, made, self.delete)
        return made

    async def delete(self, value: GreTunnel) -> None:
        await self._add_del(value, is_add=False)

    async def retrieve(self) -> tuple[GreTunnel, ...]:
        """Those with a number of the gateway's, none without the plugin. Table, MTU and lender are not read back: 0."""
        if not self._api.knows(MESSAGE):
            return ()
        found = [detail.tunnel for detail in await self._api.dump("gre_tunnel_dump", sw_if_index=NO_INDEX)]
        return tuple(GreTunnel(0, 0, 0, headers, index) for headers, index in read_own(found, "outer_table_id"))

    async def _add_del(self, value: GreTunnel, *, is_add: bool) -> Any:
        headers = value.headers
        return await self._api.call(
            MESSAGE,
            is_add=is_add,
            tunnel={
                "type": _LAYER_3,
                "mode": POINT_TO_POINT,
                "flags": headers.flags,
                "session_id": 0,
                "instance": FIRST_INSTANCE + headers.number,
                "outer_table_id": headers.table,
                "sw_if_index": NO_INDEX,
                "src": to_address(headers.source),
                "dst": to_address(headers.destination),
            },
        )
