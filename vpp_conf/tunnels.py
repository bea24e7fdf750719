"""A tunnel as VPP sees it: an IPsec or GRE interface, its protection, selector check, redirect and routes."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

from ipsec_gw.model.objects import EngineSa, Selector, Tunnel
from vpp_conf.api import VppApi
from vpp_conf.descriptors.classify import Chains, Check, CheckDescriptor, Redirect, RedirectDescriptor
from vpp_conf.descriptors.gre import GreHeaders, GreTunnel, GreTunnelDescriptor
from vpp_conf.descriptors.ipsec_itf import IpsecInterface, IpsecInterfaceDescriptor
from vpp_conf.descriptors.protect import Protect, ProtectDescriptor
from vpp_conf.descriptors.route import DECAP_TABLE, ROUTED_TABLE
from vpp_conf.doors import Door, DoorBuilder
from vpp_conf.encap import networks_of
from vpp_conf.encap_routes import EncapRoutes
from vpp_conf.links import KERNEL_ENDS, Links


@dataclass(frozen=True, slots=True)
class TunnelParts:
    """The VPP objects of one tunnel; the ``door`` is that of its XFRM interface, if it has one."""

    interface: IpsecInterface | GreTunnel
    protect: Protect
    check: Check
    redirects: tuple[Redirect, ...]
    selectors: frozenset[Selector]
    door: Door | None = None

    @property
    def gre(self) -> GreHeaders | None:
        """What it puts between ESP and packets; None for nothing."""
        return self.interface.headers if isinstance(self.interface, GreTunnel) else None

    @property
    def way(self) -> int:
        """What stands for it among the encap routes."""
        return self.interface.sw_if_index


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a tunnel is to encrypt, and what may not come out of it although it fits; outbound selectors both. With a
    ``vlan`` all of it comes and goes by that VLAN ID, with ``gre`` behind these headers.
    """

    selectors: frozenset[Selector]
    exceptions: frozenset[Selector] = frozenset()
    vlan: int = 0
    gre: GreHeaders | None = None

    @classmethod
    def of(cls, tunnel: Tunnel, outbound: EngineSa) -> Wanted:
        """What a tunnel that sends with this SA asks for."""
        vlan = 0 if tunnel.interface is None else tunnel.interface.vlan
        gre = GreHeaders(vlan, tunnel.local, tunnel.remote, outbound.copies.dscp) if outbound.gre else None
        return cls(frozenset(tunnel.selectors), frozenset(tunnel.exceptions), vlan, gre)


class TunnelBuilder:
    """Makes, changes and removes tunnels as a whole: a step that fails takes the earlier ones back."""

    def __init__(self, api: VppApi, links: Links, mtu: int) -> None:
        self._links = links
        self._mtu = mtu
        self.interfaces = IpsecInterfaceDescriptor(api)
        self.gres = GreTunnelDescriptor(api)
        self.protects = ProtectDescriptor(api)
        self.checks = CheckDescriptor(api)
        self.redirects = RedirectDescriptor(api)
        self.encap = EncapRoutes(api)
        self.doors = DoorBuilder(api, links, mtu)

    def parts(
        self,
        sw_if_index: int,
        outbound: int,
        inbound: frozenset[int],
        wanted: Wanted,
        chains: Chains = Chains(),  # noqa: B008 - a value
        door: Door | None = None,
    ) -> TunnelParts:
        """What a tunnel on this interface, with this door, consists of."""
        way_out = self._links.up if door is None else door.sw_if_index
        return TunnelParts(
            interface=self._interface(wanted, sw_if_index),
            protect=Protect(sw_if_index, outbound, inbound),
            check=self._check(sw_if_index, wanted, chains),
            redirects=tuple(Redirect(sw_if_index, end.version, way_out, end) for end in KERNEL_ENDS),
            selectors=frozenset() if wanted.vlan else networks_of(wanted.selectors),
            door=None if door is None else replace(door, check=replace(door.check, selectors=wanted.selectors)),
        )

    def _interface(self, wanted: Wanted, sw_if_index: int = 0) -> IpsecInterface | GreTunnel:
        table = ROUTED_TABLE if wanted.vlan else DECAP_TABLE
        lender = self._links.lenders[table]
        if wanted.gre is not None:
            return GreTunnel(table, self._mtu, lender, wanted.gre, sw_if_index)
        return IpsecInterface(table, self._mtu, lender, sw_if_index)

    async def _raise(self, interface: IpsecInterface | GreTunnel) -> IpsecInterface | GreTunnel:
        if isinstance(interface, GreTunnel):
            return await self.gres.create(interface)
        return await self.interfaces.create(interface)

    async def _remove(self, interface: IpsecInterface | GreTunnel) -> None:
        if isinstance(interface, GreTunnel):
            await self.gres.delete(interface)
        else:
            await self.interfaces.delete(interface)

    def _check(self, sw_if_index: int, wanted: Wanted, chains: Chains) -> Check:
        selectors, exceptions = _mirrored(wanted.selectors), _mirrored(wanted.exceptions)
        return Check(sw_if_index, selectors, self._links.punts, self._links.shut, chains, exceptions)

    async def build(self, outbound: int, inbound: frozenset[int], wanted: Wanted) -> TunnelParts:
        """Routes last: nothing is sent before the answers can be received. By a door nothing is sent before the SAs are
        in place.
        """
        async with AsyncExitStack() as undo:
            interface = await self._raise(self._interface(wanted))
            undo.push_async_callback(self._remove, interface)
            door = await self._open_door(interface.sw_if_index, wanted, undo)
            parts = self.parts(interface.sw_if_index, outbound, inbound, wanted, door=door)
            for redirect in parts.redirects:
                await self.redirects.create(redirect)
                undo.push_async_callback(self.redirects.delete, redirect)
            check = await self.checks.create(parts.check)
            undo.push_async_callback(self.checks.delete, check)
            await self.protects.create(parts.protect)
            undo.push_async_callback(self.protects.delete, parts.protect)
            await self.encap.change(interface.sw_if_index, parts.selectors)
            undo.pop_all()
            return replace(parts, interface=interface, check=check)

    async def _open_door(self, tunnel: int, wanted: Wanted, undo: AsyncExitStack) -> Door | None:
        if not wanted.vlan:
            return None
        door = await self.doors.open(wanted.vlan, tunnel, wanted.selectors)
        undo.push_async_callback(self.doors.close, door)
        return door

    async def change(self, old: TunnelParts, new: TunnelParts) -> TunnelParts:
        """New SAs by one message, without a gap; selectors only where they differ. The door is the same."""
        async with AsyncExitStack() as undo:
            protect = await self.protects.update(old.protect, new.protect)
            undo.push_async_callback(self.protects.update, new.protect, old.protect)
            await self.encap.change(new.interface.sw_if_index, new.selectors)
            undo.push_async_callback(self.encap.change, old.interface.sw_if_index, old.selectors)
            check = await self.checks.update(old.check, new.check)
            door = new.door
            if old.door is not None and new.door is not None:
                door = await self.doors.update(old.door, new.door)
            undo.pop_all()
            return replace(new, protect=protect, check=check, door=door)

    async def demolish(self, parts: TunnelParts) -> None:
        """Routes first: nothing is sent into a tunnel that is being taken apart."""
        await self.encap.change(parts.interface.sw_if_index, frozenset())
        await self.protects.delete(parts.protect)
        await self.checks.delete(parts.check)
        for redirect in parts.redirects:
            await self.redirects.delete(redirect)
        if parts.door is not None:
            await self.doors.close(parts.door)
        await self._remove(parts.interface)

    async def sweep(self, sw_if_index: int, gre: GreHeaders | None = None) -> None:
        """Remove an IPsec or GRE interface of ours that no record explains (a crash half-way). Nothing leads to it any
        more.
        """
        for protect in await self.protects.retrieve():
            if protect.sw_if_index == sw_if_index:
                await self.protects.delete(protect)
        chains = await self.checks.chains_of(sw_if_index)
        await self.checks.delete(self._check(sw_if_index, Wanted(frozenset()), chains))
        for redirect in await self.redirects.retrieve():
            if redirect.rx_sw_if_index == sw_if_index:
                await self.redirects.delete(redirect)
        await self._remove(self._interface(Wanted(frozenset(), gre=gre), sw_if_index))


def _mirrored(selectors: frozenset[Selector]) -> frozenset[Selector]:
    return frozenset(selector.reversed for selector in selectors)
