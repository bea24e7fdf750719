"""The door of an XFRM interface: a VLAN of the veth pair by which one tunnel's plaintext comes and goes.

What comes in by it and fits the tunnel's selectors goes into the tunnel's IPsec interface, by the punt path like all
plaintext; what comes out of the tunnel leaves by it.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

from ipsec_gw.model.objects import Selector
from vpp_conf.api import VppApi
from vpp_conf.descriptors.classify import VERSIONS, Chains, Check, CheckDescriptor, Redirect, RedirectDescriptor
from vpp_conf.descriptors.interface import borrow_address, bring_up, tag
from vpp_conf.descriptors.neighbour import Neighbour, NeighbourDescriptor
from vpp_conf.descriptors.route import ROUTED_TABLE
from vpp_conf.descriptors.subif import SubInterface, SubInterfaceDescriptor
from vpp_conf.links import KERNEL_ENDS, Links

DOOR_TAG = "ipsec-gw door"
"""Owner's tag of their sub-interfaces: pools of NAT have some, too."""


@dataclass(frozen=True, slots=True)
class Door:
    """Its VPP objects."""

    vlan: SubInterface
    neighbours: tuple[Neighbour, ...]
    redirects: tuple[Redirect, ...]
    check: Check

    @property
    def sw_if_index(self) -> int:
        """Of the VLAN subinterface."""
        return self.vlan.sw_if_index


class DoorBuilder:
    """Makes and removes doors as a whole: a step that fails takes the earlier ones back."""

    def __init__(self, api: VppApi, links: Links, mtu: int) -> None:
        self._api = api
        self._links = links
        self._mtu = mtu
        self.vlans = SubInterfaceDescriptor(api, DOOR_TAG)
        self.neighbours = NeighbourDescriptor(api)
        self.redirects = RedirectDescriptor(api)
        self.checks = CheckDescriptor(api)

    def door(
        self,
        vlan: int,
        tunnel: int,
        selectors: frozenset[Selector],
        sw_if_index: int,
        chains: Chains = Chains(),  # noqa: B008 - a value
    ) -> Door:
        """What the door of a VLAN ID into the IPsec interface ``tunnel`` consists of, at that subinterface."""
        links = self._links
        return Door(
            SubInterface(links.up, vlan, sw_if_index),
            tuple(Neighbour(sw_if_index, end, links.kernel_mac) for end in KERNEL_ENDS),
            tuple(Redirect(sw_if_index, version, tunnel) for version in VERSIONS),
            Check(sw_if_index, selectors, links.punts, links.shut, chains),
        )

    async def open(self, vlan: int, tunnel: int, selectors: frozenset[Selector]) -> Door:
        """The check comes last: without it nothing passes."""
        async with AsyncExitStack() as undo:
            made = await self.vlans.create(SubInterface(self._links.up, vlan))
            undo.push_async_callback(self.vlans.delete, made)
            await self._complete(made.sw_if_index)
            door = self.door(vlan, tunnel, selectors, made.sw_if_index)
            for neighbour in door.neighbours:
                await self.neighbours.create(neighbour)
                undo.push_async_callback(self.neighbours.delete, neighbour)
            for redirect in door.redirects:
                await self.redirects.create(redirect)
                undo.push_async_callback(self.redirects.delete, redirect)
            check = await self.checks.create(door.check)
            undo.pop_all()
            return replace(door, check=check)

    async def _complete(self, sw_if_index: int) -> None:
        await tag(self._api, sw_if_index, DOOR_TAG)
        await bring_up(self._api, sw_if_index, ROUTED_TABLE, self._mtu)
        await borrow_address(self._api, sw_if_index, self._links.lenders[ROUTED_TABLE])

    async def update(self, old: Door, new: Door) -> Door:
        """Let other selectors in."""
        return replace(new, check=await self.checks.update(old.check, new.check))

    async def close(self, door: Door) -> None:
        """The check goes first."""
        await self.checks.delete(door.check)
        for redirect in door.redirects:
            await self.redirects.delete(redirect)
        for neighbour in door.neighbours:
            await self.neighbours.delete(neighbour)
        await self.vlans.delete(door.vlan)

    async def sweep(self, vlan: SubInterface) -> None:
        """Remove a subinterface of ours that no record explains, with what is on it."""
        index = vlan.sw_if_index
        chains = await self.checks.chains_of(index)
        await self.checks.delete(self.door(vlan.vid, 0, frozenset(), index, chains).check)
        for redirect in await self.redirects.retrieve():
            if redirect.rx_sw_if_index == index:
                await self.redirects.delete(redirect)
        for neighbour in await self.neighbours.retrieve():
            if neighbour.sw_if_index == index:
                await self.neighbours.delete(neighbour)
        await self.vlans.delete(vlan)
