"""Tunnel protection (``vnet/ipsec/ipsec_tun.h``): the SAs of an IPsec interface."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address

from ipsec_gw.errors import EngineError
from ipsec_gw.model.objects import MAX_INBOUND
from vpp_conf.descriptors.base import NO_INDEX, Descriptor, Reference, to_address

NO_NEXT_HOP = IPv4Address(0)
"""A point-to-point interface has one protection, for no particular next hop."""


@dataclass(frozen=True, slots=True)
class Protect:
    """One outbound SA and up to four inbound ones, by ``sad_id``; the order of ``inbound`` means nothing."""

    sw_if_index: int
    outbound: int
    inbound: frozenset[int]


class ProtectDescriptor(Descriptor[Protect]):
    """Protections. An update swaps all SAs at once, without a gap: this is what a rekey is for VPP."""

    kind = "protect"

    async def create(self, value: Protect) -> Protect:
        if not 1 <= len(value.inbound) <= MAX_INBOUND:
            raise EngineError(f"a tunnel has 1 to {MAX_INBOUND} inbound SAs, not {len(value.inbound)}")
        await self._api.call(
            "ipsec_tunnel_protect_update",
            tunnel={
                "sw_if_index": value.sw_if_index,
                "nh": to_address(NO_NEXT_HOP),
                "sa_out": value.outbound,
                "n_sa_in": len(value.inbound),
                "sa_in": sorted(value.inbound),
            },
        )
        return value

    async def update(self, old: Protect, new: Protect) -> Protect:
        if old.sw_if_index != new.sw_if_index:
            return await super().update(old, new)
        return old if self.equal(old, new) else await self.create(new)

    async def delete(self, value: Protect) -> None:
        await self._api.call("ipsec_tunnel_protect_del", sw_if_index=value.sw_if_index, nh=to_address(NO_NEXT_HOP))

    async def retrieve(self) -> tuple[Protect, ...]:
        details = await self._api.dump("ipsec_tunnel_protect_dump", sw_if_index=NO_INDEX)
        return tuple(
            Protect(detail.tun.sw_if_index, detail.tun.sa_out, frozenset(detail.tun.sa_in[: detail.tun.n_sa_in]))
            for detail in details
        )

    def depends_on(self, value: Protect) -> tuple[Reference, ...]:
        sas = (Reference("sa", sad_id) for sad_id in (value.outbound, *sorted(value.inbound)))
        return (Reference("ipsec-interface", value.sw_if_index), *sas)
