"""Overlays as objects of VPP's engine: what they need is there, and what is made of them is written down."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import replace

from ipsec_gw.errors import EngineError
from ipsec_gw.model.ids import TunnelId
from ipsec_gw.model.objects import Overlay, OverlayKey
from vpp_conf.descriptors.classify import Check, CheckDescriptor
from vpp_conf.gates import Gates
from vpp_conf.inventory import HeldOverlay, HeldTunnel, Inventory
from vpp_conf.journal import Journal
from vpp_conf.overlays import OverlayBuilder
from vpp_conf.records import OverlayRecord, overlay_row
from vpp_conf.tunnels import TunnelParts


class VppOverlays:
    """Of one VPP. All calls raise EngineError on refusal and change nothing then."""

    def __init__(self, builder: OverlayBuilder, checks: CheckDescriptor, gates: Gates, journal: Journal) -> None:
        self.builder = builder
        self._checks = checks
        self._gates = gates
        self._journal = journal

    async def create(self, overlay: Overlay, inventory: Inventory) -> None:
        """Make one, and hold it."""
        if overlay.key in inventory.overlays:
            raise EngineError(f"{overlay.key} exists already")
        self._check(overlay, inventory)
        async with AsyncExitStack() as undo:
            parts = await self.builder.open(overlay, inventory.table_of(overlay))
            undo.push_async_callback(self.builder.close, parts)
            inventory.overlays[overlay.key] = HeldOverlay(overlay, parts)
            undo.callback(inventory.overlays.pop, overlay.key)
            await self._lead_out(overlay, inventory)
            undo.pop_all()
        record = OverlayRecord(overlay, parts.vlan.sw_if_index, parts.tunnel.sw_if_index)
        self._journal.put("overlay", str(overlay.key), overlay_row(record))

    async def update(self, overlay: Overlay, inventory: Inventory) -> None:
        """Make it anew: VPP changes nothing of a VXLAN tunnel."""
        await self.delete(overlay.key, inventory)
        await self.create(overlay, inventory)

    async def delete(self, key: OverlayKey, inventory: Inventory) -> None:
        """First what leads packets to it: from then on the kernel has them."""
        held = inventory.overlays.get(key)
        if held is None:
            raise EngineError(f"{key} is unknown to VPP")
        del inventory.overlays[key]
        try:
            await self._lead_out(held.overlay, inventory)
        except BaseException:
            inventory.overlays[key] = held
            raise
        self._journal.remove("overlay", str(key))
        await self.builder.close(held.parts)

    async def _lead_out(self, overlay: Overlay, inventory: Inventory) -> None:
        """Of what comes out of its tunnels, have overlays take what they are to, and nothing else."""
        async with AsyncExitStack() as undo:
            for key in overlay.tunnels:
                held = inventory.tunnels[key]
                if isinstance(held.parts, TunnelParts):
                    wanted = replace(held.parts.check, diversions=inventory.diversions(key))
                    check = await self._checks.update(held.parts.check, wanted)
                    inventory.hold(replace(held, parts=replace(held.parts, check=check)))
                    undo.push_async_callback(self._put_back, held, check, inventory)
            if inventory.gated(overlay):
                await self._gates.unwrap(inventory.unwrapped)
            undo.pop_all()

    async def _put_back(self, held: HeldTunnel, check: Check, inventory: Inventory) -> None:
        assert isinstance(held.parts, TunnelParts)
        former = await self._checks.update(check, held.parts.check)
        inventory.hold(replace(held, parts=replace(held.parts, check=former)))

    def _check(self, overlay: Overlay, inventory: Inventory) -> None:
        """Raises EngineError for what is missing or taken."""
        if not self.builder.able:
            raise EngineError(f"{overlay.key}: VPP has no VXLAN - restart it with its plugin (`ipsec-gw vpp restart`)")
        if overlay.local.version != 4 or overlay.remote.version != 4:
            raise EngineError(f"{overlay.key} is over IPv6 - leave it to the kernel")
        if not overlay.tunnels:
            raise EngineError(f"{overlay.key} has no tunnel - leave it to the kernel")
        if (holder := _holder(overlay.vlan, inventory)) is not None:
            raise EngineError(f"{overlay.key} has the VLAN ID of {holder}")
        for key in overlay.tunnels:
            held = inventory.tunnels.get(key)
            if held is None:
                raise EngineError(f"{overlay.key}: there is no tunnel {key} - create it first")
            if not overlay.fits(held.tunnel):
                raise EngineError(f"{overlay.key}: tunnel {key} is not for its two ends - leave it to the kernel")


def _holder(vlan: int, inventory: Inventory) -> TunnelId | OverlayKey | None:
    """What has a VLAN ID."""
    found: list[TunnelId | OverlayKey] = [key for key in inventory.overlays if key.interface.vlan == vlan]
    found += [
        key
        for key, held in inventory.tunnels.items()
        if held.tunnel.interface is not None and held.tunnel.interface.vlan == vlan
    ]
    return next(iter(found), None)
