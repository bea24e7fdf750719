"""A tunnel as VPP sees it: an IPsec, GRE or IPIP interface, its protection, selector check, redirect and routes."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

from ipsec_gw.model.objects import DeviceHeader, EngineSa, Selector, Tunnel
from vpp_conf.api import VppApi
from vpp_conf.descriptors.classify import Chains, Check, CheckDescriptor, Diversion, Redirect, RedirectDescriptor
from vpp_conf.descriptors.gre import GreTunnel, GreTunnelDescriptor
from vpp_conf.descriptors.headers import Headers
from vpp_conf.descriptors.ipip import IpipTunnel, IpipTunnelDescriptor
from vpp_conf.descriptors.ipsec_itf import IpsecInterface, IpsecInterfaceDescriptor
from vpp_conf.descriptors.protect import Protect, ProtectDescriptor
from vpp_conf.descriptors.route import DECAP_TABLE, ROUTED_TABLE
from vpp_conf.doors import Door, DoorBuilder
from vpp_conf.encap import networks_of
from vpp_conf.gates import GateParts, Gates
from vpp_conf.links import KERNEL_ENDS, Links
from vpp_conf.outer import Outer, OuterBuilder, headers_of

TunnelInterface = IpsecInterface | GreTunnel | IpipTunnel
"""Where a tunnel's plaintext goes in and comes out."""


@dataclass(frozen=True, slots=True)
class TunnelParts:
    """The VPP objects of one tunnel; the ``door`` is that of its XFRM interface or device, if it has one. Its interface
    has the protection itself, or the ``outer`` one that a device's own header is sent by. With a ``gate`` it only
    receives, and that sends.
    """

    interface: TunnelInterface
    protect: Protect
    check: Check
    redirects: tuple[Redirect, ...]
    selectors: frozenset[Selector]
    door: Door | None = None
    outer: Outer | None = None
    gate: GateParts | None = None

    @property
    def way(self) -> int:
        """What stands for it among the encap routes."""
        return self.interface.sw_if_index if self.gate is None else self.gate.way


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a tunnel is to encrypt, and what may not come out of it although it fits; outbound selectors both. With a
    ``vlan`` all of it comes and goes by that VLAN ID. It is behind GRE in transport mode (``gre``), or behind a
    device's ``header`` in tunnel mode. Of what comes out, ``diversions`` have some. A ``gate`` sends in its place.
    """

    selectors: frozenset[Selector]
    exceptions: frozenset[Selector] = frozenset()
    vlan: int = 0
    gre: Headers | None = None
    header: DeviceHeader | None = None
    diversions: frozenset[Diversion] = frozenset()
    gate: GateParts | None = None

    @classmethod
    def of(
        cls,
        tunnel: Tunnel,
        outbound: EngineSa,
        diversions: frozenset[Diversion] = frozenset(),
        gate: GateParts | None = None,
    ) -> Wanted:
        """What a tunnel that sends with this SA asks for."""
        vlan = 0 if tunnel.interface is None else tunnel.interface.vlan
        gre = Headers(vlan, tunnel.local, tunnel.remote, outbound.copies.dscp) if outbound.gre else None
        selectors, exceptions = frozenset(tunnel.selectors), frozenset(tunnel.exceptions)
        return cls(selectors, exceptions, vlan, gre, tunnel.header, diversions, gate)

    @property
    def headers(self) -> Headers | None:
        """What its interface puts in front of packets; None for nothing."""
        return self.gre if self.header is None else headers_of(self.header, self.vlan)

    def begins_with(self, interface: TunnelInterface) -> bool:
        """Whether that is such an interface: with the same headers, which do not change."""
        headers = None if isinstance(interface, IpsecInterface) else interface.headers
        return type(interface) is self.kind and headers == self.headers

    @property
    def kind(self) -> type[TunnelInterface]:
        """Of its interface."""
        if self.header is not None:
            return GreTunnel if self.header.gre else IpipTunnel
        return IpsecInterface if self.gre is None else GreTunnel


class TunnelBuilder:
    """Makes, changes and removes tunnels as a whole: a step that fails takes the earlier ones back."""

    def __init__(self, api: VppApi, links: Links, mtu: int, gates: Gates) -> None:
        self._links = links
        self._gates = gates
        self._mtu = mtu
        self.interfaces = IpsecInterfaceDescriptor(api)
        self.gres = GreTunnelDescriptor(api)
        self.ipips = IpipTunnelDescriptor(api)
        self.outers = OuterBuilder(api, links, mtu)
        self.protects = ProtectDescriptor(api)
        self.checks = CheckDescriptor(api)
        self.redirects = RedirectDescriptor(api)
        self.encap = gates.encap
        self.doors = DoorBuilder(api, links, mtu)

    def parts(
        self,
        sw_if_index: int,
        outbound: int,
        inbound: frozenset[int],
        wanted: Wanted,
        chains: Chains = Chains(),  # noqa: B008 - a value
        door: Door | None = None,
        outer: Outer | None = None,
    ) -> TunnelParts:
        """What a tunnel on this interface, with this door and this outer tunnel, consists of."""
        way_out = self._links.up if door is None else door.sw_if_index
        return TunnelParts(
            interface=self._interface(wanted, sw_if_index),
            protect=Protect(sw_if_index if outer is None else outer.sw_if_index, outbound, inbound),
            check=self._check(sw_if_index, wanted, chains),
            redirects=tuple(Redirect(sw_if_index, end.version, way_out, end) for end in KERNEL_ENDS),
            selectors=frozenset() if wanted.vlan else networks_of(wanted.selectors),
            door=None if door is None else replace(door, check=replace(door.check, selectors=wanted.selectors)),
            outer=outer,
            gate=wanted.gate,
        )

    def _interface(self, wanted: Wanted, sw_if_index: int = 0) -> TunnelInterface:
        table = ROUTED_TABLE if wanted.vlan else DECAP_TABLE
        lender = self._links.lenders[table]
        if wanted.headers is None:
            return IpsecInterface(table, self._mtu, lender, sw_if_index)
        kind = GreTunnel if wanted.kind is GreTunnel else IpipTunnel
        return kind(table, self._mtu, lender, wanted.headers, sw_if_index)

    async def _raise(self, interface: TunnelInterface) -> TunnelInterface:
        match interface:
            case GreTunnel():
                return await self.gres.create(interface)
            case IpipTunnel():
                return await self.ipips.create(interface)
            case IpsecInterface():
                return await self.interfaces.create(interface)

    async def _remove(self, interface: TunnelInterface) -> None:
        match interface:
            case GreTunnel():
                await self.gres.delete(interface)
            case IpipTunnel():
                await self.ipips.delete(interface)
            case IpsecInterface():
                await self.interfaces.delete(interface)

    async def retrieve(self) -> tuple[TunnelInterface, ...]:
        """All interfaces of tunnels that VPP has, those of outer ones too."""
        return (*await self.interfaces.retrieve(), *await self.gres.retrieve(), *await self.ipips.retrieve())

    def _check(self, sw_if_index: int, wanted: Wanted, chains: Chains) -> Check:
        selectors, exceptions = _mirrored(wanted.selectors), _mirrored(wanted.exceptions)
        links = self._links
        return Check(sw_if_index, selectors, links.punts, links.shut, chains, exceptions, wanted.diversions)

    async def build(self, outbound: int, inbound: frozenset[int], wanted: Wanted) -> TunnelParts:
        """Routes last: nothing is sent before the answers can be received. By a door nothing is sent before the SAs are
        in place.
        """
        async with AsyncExitStack() as undo:
            outer = await self._build_outer(wanted, undo)
            interface = await self._raise(self._interface(wanted))
            undo.push_async_callback(self._remove, interface)
            door = await self._open_door(interface.sw_if_index, wanted, undo)
            parts = self.parts(interface.sw_if_index, outbound, inbound, wanted, door=door, outer=outer)
            for redirect in parts.redirects:
                await self.redirects.create(redirect)
                undo.push_async_callback(self.redirects.delete, redirect)
            check = await self.checks.create(parts.check)
            undo.push_async_callback(self.checks.delete, check)
            await self.protects.create(parts.protect)
            undo.push_async_callback(self.protects.delete, parts.protect)
            await self._lead_to(parts)
            undo.pop_all()
            return replace(parts, interface=interface, check=check)

    async def _build_outer(self, wanted: Wanted, undo: AsyncExitStack) -> Outer | None:
        if wanted.header is None:
            return None
        outer = await self.outers.build(wanted.header, wanted.vlan)
        undo.push_async_callback(self.outers.demolish, outer)
        return outer

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
            await self._lead_to(new)
            undo.push_async_callback(self._lead_to, old)
            check = await self.checks.update(old.check, new.check)
            door = new.door
            if old.door is not None and new.door is not None:
                door = await self.doors.update(old.door, new.door)
            undo.pop_all()
            return replace(new, protect=protect, check=check, door=door)

    async def demolish(self, parts: TunnelParts) -> None:
        """Routes first: nothing is sent into a tunnel that is being taken apart."""
        await self._lead_away(parts)
        await self.protects.delete(parts.protect)
        await self.checks.delete(parts.check)
        for redirect in parts.redirects:
            await self.redirects.delete(redirect)
        if parts.door is not None:
            await self.doors.close(parts.door)
        await self._remove(parts.interface)
        if parts.outer is not None:
            await self.outers.demolish(parts.outer)

    async def _lead_to(self, parts: TunnelParts) -> None:
        """Have what it encrypts come to its interface, or to the gates."""
        if parts.gate is None:
            await self.encap.change(parts.way, parts.selectors)
        else:
            await self._gates.change(parts.way, parts.gate)

    async def _lead_away(self, parts: TunnelParts) -> None:
        if parts.gate is None:
            await self.encap.change(parts.way, frozenset())
        else:
            await self._gates.change(parts.way, None)

    async def sweep(self, interface: TunnelInterface) -> None:
        """Remove an interface of ours that no record explains (a crash half-way). Nothing leads to it any more."""
        sw_if_index = interface.sw_if_index
        for protect in await self.protects.retrieve():
            if protect.sw_if_index == sw_if_index:
                await self.protects.delete(protect)
        chains = await self.checks.chains_of(sw_if_index)
        await self.checks.empty(chains)
        await self.checks.delete(self._check(sw_if_index, Wanted(frozenset()), chains))
        for redirect in await self.redirects.retrieve():
            if redirect.rx_sw_if_index == sw_if_index:
                await self.redirects.delete(redirect)
        await self._remove(interface)


def _mirrored(selectors: frozenset[Selector]) -> frozenset[Selector]:
    return frozenset(selector.reversed for selector in selectors)
