"""XFRM interfaces as a driver: what they send goes to the engine, what the engine decrypts comes in by them. So it is
with VTI, GRE, IPIP and VXLAN devices, of which the last have frames.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from typing import Protocol

from ipsec_gw.model.objects import (
    OF_IPSEC_ALONE,
    EntryKey,
    InterfaceEntry,
    InterfaceLead,
    ManagedObject,
    XfrmInterface,
)
from xdp_steer.xfrmi import Uplink


class InterfaceMaps(Protocol):
    """The part of the steering that this driver needs (:class:`xdp_steer.xfrmi.XfrmiTable`)."""

    def admit(self, index: int, vlan: int, versions: frozenset[int], *, policed: bool = False) -> None:
        """Let in what the engine tags so; XFRM's policies judge it if ``policed``."""

    def shut(self, index: int, vlan: int) -> None:
        """Let nothing in any more."""

    def admitted(self) -> Mapping[int, tuple[int, frozenset[int]]]:
        """VLAN ID and IP versions by index."""

    def lead(self, index: int, vlan: int, mtu: int, versions: frozenset[int], uplink: Uplink) -> None:
        """Lead what goes out to the engine."""

    def unlead(self, index: int) -> None:
        """Leave it to the kernel."""

    def led(self) -> Mapping[int, tuple[int, int, frozenset[int]]]:
        """VLAN ID, MTU and IP versions by index."""


class InterfaceDriver:
    """Keeps entries and leads of XFRM interfaces. ``uplink`` is the veth pair to the engine, ``name_of`` tells what an
    index is called now (OSError: nothing).
    """

    def __init__(
        self, maps: InterfaceMaps, uplink: Uplink, name_of: Callable[[int], str] = socket.if_indextoname
    ) -> None:
        self._maps = maps
        self._uplink = uplink
        self._name_of = name_of

    async def retrieve(self) -> Mapping[XfrmInterface | EntryKey, InterfaceEntry | InterfaceLead]:
        """What is in place. What lacks a part, or has another VLAN ID, differs from all that could be wanted."""
        found: dict[XfrmInterface | EntryKey, InterfaceEntry | InterfaceLead] = {}
        for index, (vlan, versions) in self._maps.admitted().items():
            interface = self._interface(index)
            key = EntryKey(interface)
            found[key] = InterfaceEntry(key, versions if vlan == interface.vlan else frozenset())
        for index, (vlan, mtu, versions) in self._maps.led().items():
            interface = self._interface(index)
            found[interface] = InterfaceLead(interface, mtu if vlan == interface.vlan else 0, versions)
        return found

    async def create(self, obj: ManagedObject) -> None:
        """Put an entry or a lead in place."""
        match obj:
            case InterfaceEntry():
                interface = obj.key.interface
                policed = interface.kind not in OF_IPSEC_ALONE
                self._maps.admit(interface.index, interface.vlan, obj.versions, policed=policed)
            case InterfaceLead():
                self._maps.lead(obj.key.index, obj.key.vlan, obj.mtu, obj.versions, self._uplink)
            case _:
                raise _stranger(obj)

    async def update(self, obj: ManagedObject) -> None:
        """Other IP versions, or another MTU, in place."""
        await self.create(obj)

    async def delete(self, obj: ManagedObject) -> None:
        """Take an entry or a lead away."""
        match obj:
            case InterfaceEntry():
                self._maps.shut(obj.key.interface.index, obj.key.interface.vlan)
            case InterfaceLead():
                self._maps.unlead(obj.key.index)
            case _:
                raise _stranger(obj)

    async def clear(self) -> None:
        """Stop leading altogether: an engine begins that holds nothing yet."""
        for obj in (await self.retrieve()).values():
            if isinstance(obj, InterfaceLead):
                await self.delete(obj)

    def _interface(self, index: int) -> XfrmInterface:
        """One that is gone has a name that none can have."""
        try:
            return XfrmInterface(index, self._name_of(index))
        except OSError:
            return XfrmInterface(index, "")


def _stranger(obj: ManagedObject) -> TypeError:
    return TypeError(f"{obj!r} is of no XFRM interface")
