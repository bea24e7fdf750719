"""The outer tunnel of a GRE or IPIP device over tunnel mode: what encrypts whole packets of the device's.

::

    plaintext   door ~> device's tunnel: its header -> table of the device -> IPsec interface: encrypts -> WAN
    ESP         IPsec interface: decrypts -> check -> table of the device: local -> device's tunnel ~> door

A protection of the device's tunnel itself would not do: VPP sends what that has encrypted where a route to the device's
far end leads, and lets a packet out of it that is in ESP without the device's header. So the IPsec interface is one as
any tunnel has, and its check lets the device's packets out and no others: those that VPP can take apart into the table,
in which the device's own address is local (:func:`plain`), and pieces and odd ones to the kernel, as they are.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

from ipsec_gw.model.objects import DeviceHeader, Selector
from ipsec_gw.model.sizes import GRE_HEADER
from vpp_conf.api import VppApi
from vpp_conf.descriptors.base import host
from vpp_conf.descriptors.classify import (
    CARRY_ON,
    FRAGMENT_MASK,
    HEADERS,
    VERSIONS,
    Chains,
    Check,
    CheckDescriptor,
    Diversion,
    Redirect,
    RedirectDescriptor,
)
from vpp_conf.descriptors.headers import Headers
from vpp_conf.descriptors.ipsec_itf import IpsecInterface, IpsecInterfaceDescriptor
from vpp_conf.descriptors.route import DECAP_TABLE, DEVICE_TABLES, Route, RouteDescriptor, Table, TableDescriptor
from vpp_conf.links import ANYWHERE, KERNEL_ENDS, Links

_ETHERTYPES = (0x0800, 0x86DD)


def headers_of(header: DeviceHeader, vlan: int) -> Headers:
    """Those of a device whose packets have this VLAN ID between kernel and engine: in a table of its own."""
    return Headers(vlan, header.local, header.remote, header.dscp, DEVICE_TABLES[vlan - 1])


@dataclass(frozen=True, slots=True)
class Outer:
    """Its VPP objects."""

    interface: IpsecInterface
    table: Table
    routes: tuple[Route, ...]
    redirects: tuple[Redirect, ...]
    check: Check

    @property
    def sw_if_index(self) -> int:
        """Of the IPsec interface."""
        return self.interface.sw_if_index


class OuterBuilder:
    """Makes and removes them as a whole: a step that fails takes the earlier ones back."""

    def __init__(self, api: VppApi, links: Links, mtu: int) -> None:
        self._links = links
        self._mtu = mtu
        self._interfaces = IpsecInterfaceDescriptor(api)
        self._tables = TableDescriptor(api, DEVICE_TABLES)
        self._routes = RouteDescriptor(api)
        self._redirects = RedirectDescriptor(api)
        self._checks = CheckDescriptor(api)

    def outer(
        self,
        header: DeviceHeader,
        vlan: int,
        sw_if_index: int,
        chains: Chains = Chains(),  # noqa: B008 - a value
    ) -> Outer:
        """What that of a device with this header consists of, at this IPsec interface."""
        links, table = self._links, headers_of(header, vlan).table
        whole = Selector(host(header.remote), host(header.local), header.protocol)
        return Outer(
            IpsecInterface(DECAP_TABLE, self._mtu, links.lenders[DECAP_TABLE], sw_if_index),
            Table(table, VERSIONS[0]),
            (
                Route(table, host(header.local), local=True),
                Route(table, host(header.remote), sw_if_index),
                # Nothing goes there. But ip4-local looks for the sources of multicast in the table that the check has
                # named, which IPIP, other than GRE, does not take back.
                Route(table, ANYWHERE[VERSIONS[0]], sw_if_index),
            ),
            tuple(Redirect(sw_if_index, end.version, links.up, end) for end in KERNEL_ENDS),
            Check(sw_if_index, frozenset({whole}), links.punts, links.shut, chains, diversions=plain(header, table)),
        )

    async def build(self, header: DeviceHeader, vlan: int) -> Outer:
        """It has no SAs yet."""
        async with AsyncExitStack() as undo:
            begun = self.outer(header, vlan, 0)
            await self._tables.create(begun.table)
            undo.push_async_callback(self._tables.delete, begun.table)
            interface = await self._interfaces.create(begun.interface)
            undo.push_async_callback(self._interfaces.delete, interface)
            made = self.outer(header, vlan, interface.sw_if_index)
            for route in made.routes:
                await self._routes.create(route)
                undo.push_async_callback(self._routes.delete, route)
            for redirect in made.redirects:
                await self._redirects.create(redirect)
                undo.push_async_callback(self._redirects.delete, redirect)
            check = await self._checks.create(made.check)
            undo.pop_all()
            return replace(made, check=check)

    async def demolish(self, outer: Outer) -> None:
        """It may have no SAs any more, and nothing is sent into it."""
        await self._checks.delete(outer.check)
        for redirect in outer.redirects:
            await self._redirects.delete(redirect)
        for route in outer.routes:
            await self._routes.delete(route)
        await self._interfaces.delete(outer.interface)
        await self._tables.delete(outer.table)

    async def sweep_tables(self, kept: frozenset[Table]) -> None:
        """Remove those of no device, with the routes in them."""
        for table in await self._tables.retrieve():
            if table not in kept:
                await self._tables.flush(table)
                await self._tables.delete(table)


def plain(header: DeviceHeader, table: int) -> frozenset[Diversion]:
    """What the device's tunnel takes its header off, of what comes from the other end: whole packets, of GRE those
    without options.
    """
    behind = [bytes(2) + ethertype.to_bytes(2, "big") for ethertype in _ETHERTYPES] if header.gre else [b""]
    ends = header.remote.packed, header.local.packed, header.protocol
    seen = HEADERS[VERSIONS[0]].bytes_of
    mask = seen(b"\xff" * 4, b"\xff" * 4, 0xFF, b"\xff" * GRE_HEADER if header.gre else b"")
    mask[6:8] = FRAGMENT_MASK
    return frozenset(Diversion(bytes(mask), bytes(seen(*ends, one)), CARRY_ON, table=table) for one in behind)
