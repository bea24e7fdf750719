"""IPIP tunnels (``vnet/ipip/ipip.api``): interfaces that put an IP header around packets (RFC 2003)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from vpp_conf.descriptors.base import NO_INDEX, Descriptor, to_address
from vpp_conf.descriptors.headers import FIRST_INSTANCE, Encapsulation, read_own
from vpp_conf.descriptors.interface import take_in
from vpp_conf.descriptors.ipsec_itf import POINT_TO_POINT


@dataclass(frozen=True, slots=True)
class IpipTunnel(Encapsulation):
    """One of IPIP."""


class IpipTunnelDescriptor(Descriptor[IpipTunnel]):
    """IPIP tunnels of the gateway."""

    kind = "ipip-tunnel"

    async def create(self, value: IpipTunnel) -> IpipTunnel:
        headers = value.headers
        reply = await self._api.call(
            "ipip_add_tunnel",
            tunnel={
                "instance": FIRST_INSTANCE + headers.number,
                "src": to_address(headers.source),
                "dst": to_address(headers.destination),
                "sw_if_index": NO_INDEX,
                "table_id": headers.table,
                "flags": headers.flags,
                "mode": POINT_TO_POINT,
                "dscp": 0,
            },
        )
        made = replace(value, sw_if_index=reply.sw_if_index)
        await take_in(self._api, made, self.delete)
        return made

    async def delete(self, value: IpipTunnel) -> None:
        await self._api.call("ipip_del_tunnel", sw_if_index=value.sw_if_index)

    async def retrieve(self) -> tuple[IpipTunnel, ...]:
        """Those with a number of the gateway's. Table, MTU and lender are not read back: 0."""
        found = [detail.tunnel for detail in await self._api.dump("ipip_tunnel_dump", sw_if_index=NO_INDEX)]
        return tuple(IpipTunnel(0, 0, 0, headers, index) for headers, index in read_own(found, "table_id"))
