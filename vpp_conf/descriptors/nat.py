"""NAT of IPv4 by VPP's endpoint-dependent plugin (``plugins/nat/nat44-ed/nat44_ed.api``)."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address

from vpp_conf.api import VppApi
from vpp_conf.descriptors.base import Descriptor, Reference

_INSIDE, _OUTSIDE = 0x20, 0x10
"""``NAT_IS_INSIDE``, ``NAT_IS_OUTSIDE`` (``nat/lib/nat_types.api``)."""


@dataclass(frozen=True, slots=True)
class NatTable:
    """The plugin with its table: ``sessions`` is how many a thread may have, at the most. Addresses outside are of the
    FIB table ``outside``; flows from inside have a table for each pool.
    """

    sessions: int
    outside: int


@dataclass(frozen=True, slots=True)
class NatTimeouts:
    """Idle seconds after which a translation may go; ``tcp_transitory`` before a connection is established, and after
    its end.
    """

    udp: int
    tcp_established: int
    tcp_transitory: int
    icmp: int


@dataclass(frozen=True, slots=True, order=True)
class NatAddress:
    """An address to translate to, for flows that come from inside by a FIB table."""

    address: IPv4Address
    table: int


@dataclass(frozen=True, slots=True)
class NatInterface:
    """An interface whose packets are translated, from inside or from outside."""

    sw_if_index: int
    inside: bool


@dataclass(frozen=True, slots=True)
class Translation:
    """A flow as it is inside and as it is outside; ``far`` is the other side. Ports of ICMP are identifiers."""

    table: int
    protocol: int
    inside: tuple[IPv4Address, int]
    outside: tuple[IPv4Address, int]
    far: tuple[IPv4Address, int]


class NatTableDescriptor(Descriptor[NatTable]):
    """The plugin itself; there is one table. Disabled, it forgets all of it."""

    kind = "nat-table"

    async def create(self, value: NatTable) -> NatTable:
        await self._switch(value, enable=True)
        return value

    async def delete(self, value: NatTable) -> None:
        """Addresses and interfaces go with it."""
        await self._switch(value, enable=False)

    async def retrieve(self) -> tuple[NatTable, ...]:
        """One or none. VPP tells what it was enabled with; disabled, all of that is 0."""
        told = await self._api.call("nat44_show_running_config")
        return (NatTable(told.sessions, told.outside_vrf),) if told.sessions else ()

    async def _switch(self, value: NatTable, *, enable: bool) -> None:
        await self._api.call(
            "nat44_ed_plugin_enable_disable",
            inside_vrf=value.outside,
            outside_vrf=value.outside,
            sessions=value.sessions,
            session_memory=0,
            enable=enable,
            flags=0,
        )


class NatTimeoutsDescriptor(Descriptor[NatTimeouts]):
    """The timeouts. There are always some, VPP's own without others."""

    kind = "nat-timeouts"

    async def create(self, value: NatTimeouts) -> NatTimeouts:
        await self._api.call(
            "nat_set_timeouts",
            udp=value.udp,
            tcp_established=value.tcp_established,
            tcp_transitory=value.tcp_transitory,
            icmp=value.icmp,
        )
        return value

    async def update(self, old: NatTimeouts, new: NatTimeouts) -> NatTimeouts:
        return await self.create(new)

    async def delete(self, value: NatTimeouts) -> None:
        """They go with the table."""

    async def retrieve(self) -> tuple[NatTimeouts, ...]:
        told = (await self._api.call("nat44_show_running_config")).timeouts
        return (NatTimeouts(told.udp, told.tcp_established, told.tcp_transitory, told.icmp),)

    def depends_on(self, value: NatTimeouts) -> tuple[Reference, ...]:
        return (Reference("nat-table", None),)


class NatAddressDescriptor(Descriptor[NatAddress]):
    """Addresses of pools. With one that is deleted its translations end."""

    kind = "nat-address"

    async def create(self, value: NatAddress) -> NatAddress:
        await self._add_del(value, is_add=True)
        return value

    async def delete(self, value: NatAddress) -> None:
        await self._add_del(value, is_add=False)

    async def retrieve(self) -> tuple[NatAddress, ...]:
        return tuple(
            NatAddress(IPv4Address(detail.ip_address), detail.vrf_id)
            for detail in await self._api.dump("nat44_address_dump")
        )

    def depends_on(self, value: NatAddress) -> tuple[Reference, ...]:
        return (Reference("nat-table", None),)

    async def _add_del(self, value: NatAddress, *, is_add: bool) -> None:
        await self._api.call(
            "nat44_add_del_address_range",
            first_ip_address=value.address.packed,
            last_ip_address=value.address.packed,
            vrf_id=value.table,
            is_add=is_add,
            flags=0,
        )


class NatInterfaceDescriptor(Descriptor[NatInterface]):
    """The NAT feature of interfaces."""

    kind = "nat-interface"

    async def create(self, value: NatInterface) -> NatInterface:
        await self._add_del(value, is_add=True)
        return value

    async def delete(self, value: NatInterface) -> None:
        await self._add_del(value, is_add=False)

    async def retrieve(self) -> tuple[NatInterface, ...]:
        return tuple(
            NatInterface(detail.sw_if_index, bool(detail.flags & _INSIDE))
            for detail in await self._api.dump("nat44_interface_dump")
        )

    def depends_on(self, value: NatInterface) -> tuple[Reference, ...]:
        return (Reference("nat-table", None), Reference("sub-interface", value.sw_if_index))

    async def _add_del(self, value: NatInterface, *, is_add: bool) -> None:
        await self._api.call(
            "nat44_interface_add_del_feature",
            is_add=is_add,
            flags=_INSIDE if value.inside else _OUTSIDE,
            sw_if_index=value.sw_if_index,
        )


async def translations(api: VppApi, table: int, inside: IPv4Address) -> list[Translation]:
    """What VPP translates for one address inside that comes by a FIB table. VPP stops its workers for it."""
    details = await api.dump("nat44_user_session_v3_dump", ip_address=inside.packed, vrf_id=table)
    return [
        Translation(
            table,
            detail.protocol,
            (inside, detail.inside_port),
            (IPv4Address(detail.outside_ip_address), detail.outside_port),
            (IPv4Address(str(from_address_of(detail.ext_host_address))), detail.ext_host_port),
        )
        for detail in details
        if not detail.is_timed_out
    ]


def from_address_of(value: object) -> object:
    """vpp_papi hands out ``ipaddress`` objects, or bytes."""
    return IPv4Address(value) if isinstance(value, bytes) else value
