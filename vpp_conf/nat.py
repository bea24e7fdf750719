"""NAT pools in VPP: made as wanted, adopted from an earlier daemon, swept when they are wanted no more.

By one interface (VPP's end of a veth pair) VPP gets what is to be translated and sends what it has translated, with a
VLAN tag for each pool and one for all that is outside. Each pool is an inside of its own, with a FIB table of its own:
VPP takes the addresses that were given for the table that a flow comes by.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from vpp_conf.api import VppApi
from vpp_conf.descriptors.af_xdp import AfXdp, AfXdpDescriptor, Reception
from vpp_conf.descriptors.interface import OWNER_TAG, UP_FLAG, bind, tag
from vpp_conf.descriptors.nat import (
    NatAddress,
    NatAddressDescriptor,
    NatInterface,
    NatInterfaceDescriptor,
    NatTable,
    NatTableDescriptor,
    NatTimeouts,
    NatTimeoutsDescriptor,
)
from vpp_conf.descriptors.neighbour import Neighbour, NeighbourDescriptor
from vpp_conf.descriptors.route import LocalAddress, LocalAddressDescriptor, Route, RouteDescriptor
from vpp_conf.descriptors.subif import SubInterface, SubInterfaceDescriptor

FIRST_TABLE = 4970
"""FIB table of the outside; the tables of pools are this plus the pool's tag."""

KERNEL_END, VPP_END = IPv4Address("169.254.253.1"), IPv4Address("169.254.253.2")
"""The two ends of every tag. They are on no packet."""

EVERYWHERE = IPv4Network("0.0.0.0/0")


@dataclass(frozen=True, slots=True)
class NatPool:
    """Addresses that flows by a VLAN tag are translated to, first and last included."""

    tag: int
    first: IPv4Address
    last: IPv4Address

    @property
    def table(self) -> int:
        """The FIB table that its flows come by."""
        return FIRST_TABLE + self.tag

    def addresses(self) -> frozenset[NatAddress]:
        """Each of them."""
        return frozenset(
            NatAddress(IPv4Address(number), self.table) for number in range(int(self.first), int(self.last) + 1)
        )


@dataclass(frozen=True, slots=True)
class NatPlan:
    """What VPP shall translate. ``interface`` is its veth end, ``kernel_mac`` the address of the other one, ``outside``
    the tag of what is outside, ``sessions`` the most translations of a thread, ``mtu`` in bytes.
    """

    interface: str
    kernel_mac: str
    outside: int
    mtu: int
    sessions: int
    timeouts: NatTimeouts
    pools: tuple[NatPool, ...]


async def hold_nat(api: VppApi, plan: NatPlan, reception: Reception) -> bool:
    """Make VPP's NAT what is wanted.

    True if translations of pools that were there before may have ended. Raises EngineError.
    """
    parent = await _interface(api, plan, reception)
    subs = await _sub_interfaces(api, plan, parent)
    ended = await _table(api, NatTable(plan.sessions, FIRST_TABLE))
    wanted = {NatInterface(sub.sw_if_index, sub.vid != plan.outside) for sub in subs.values()}
    interfaces = NatInterfaceDescriptor(api)
    present = set(await interfaces.retrieve())
    for gone in present - wanted:
        await interfaces.delete(gone)
    for new in wanted - present:
        await interfaces.create(new)
    timeouts = NatTimeoutsDescriptor(api)
    if plan.timeouts not in await timeouts.retrieve():
        await timeouts.create(plan.timeouts)
    return await _addresses(api, plan.pools) or ended


async def drop_nat(api: VppApi, outside: int) -> None:
    """Take all of it away but the interface, which VPP could not open a second time. Nothing there is no error."""
    for table in await NatTableDescriptor(api).retrieve():
        await NatTableDescriptor(api).delete(table)
    for sub in await SubInterfaceDescriptor(api).retrieve():
        await _forget(api, sub, outside)


async def _interface(api: VppApi, plan: NatPlan, reception: Reception) -> int:
    sockets = AfXdpDescriptor(api)
    for held in await sockets.retrieve():
        if held.host_interface == plan.interface:
            return held.sw_if_index
    made = await sockets.create(AfXdp(plan.interface, reception))
    await api.call("sw_interface_set_flags", sw_if_index=made.sw_if_index, flags=UP_FLAG)
    await tag(api, made.sw_if_index, OWNER_TAG)
    return made.sw_if_index


async def _sub_interfaces(api: VppApi, plan: NatPlan, parent: int) -> Mapping[int, SubInterface]:
    """By tag. What packets leave by, whatever their destination, is the neighbour at the kernel's end."""
    subs = SubInterfaceDescriptor(api)
    wanted = {plan.outside, *(pool.tag for pool in plan.pools)}
    found = {sub.vid: sub for sub in await subs.retrieve() if sub.parent == parent}
    for vid in found.keys() - wanted:
        await _forget(api, found[vid], plan.outside)
    for vid in wanted - found.keys():
        found[vid] = await subs.create(SubInterface(parent, vid))
        await _complete(api, found[vid], _table_of(vid, plan.outside), plan.mtu)
    for vid in wanted:
        index, table = found[vid].sw_if_index, _table_of(vid, plan.outside)
        await NeighbourDescriptor(api).create(Neighbour(index, KERNEL_END, plan.kernel_mac))
        await RouteDescriptor(api).create(Route(table, EVERYWHERE, index, KERNEL_END))
    return {vid: found[vid] for vid in wanted}


def _table_of(vid: int, outside: int) -> int:
    return FIRST_TABLE if vid == outside else FIRST_TABLE + vid


async def _complete(api: VppApi, sub: SubInterface, table: int, mtu: int) -> None:
    wanted = {"table_id": table, "is_ip6": False, "name": f"ipsec-gw nat {table - FIRST_TABLE}"}
    await api.call("ip_table_add_del", is_add=True, table=wanted)
    await bind(api, sub.sw_if_index, table, 4)
    await api.call("sw_interface_set_mtu", sw_if_index=sub.sw_if_index, mtu=[mtu, 0, 0, 0])
    await api.call("sw_interface_set_flags", sw_if_index=sub.sw_if_index, flags=UP_FLAG)
    await LocalAddressDescriptor(api).create(LocalAddress(sub.sw_if_index, VPP_END))
    await tag(api, sub.sw_if_index, OWNER_TAG)


async def _forget(api: VppApi, sub: SubInterface, outside: int) -> None:
    """What names it goes first: the route would stay, and lead nowhere also when there is such an interface again."""
    for held in await NatInterfaceDescriptor(api).retrieve():
        if held.sw_if_index == sub.sw_if_index:
            await NatInterfaceDescriptor(api).delete(held)
    await RouteDescriptor(api).delete(Route(_table_of(sub.vid, outside), EVERYWHERE, sub.sw_if_index, KERNEL_END))
    await NeighbourDescriptor(api).delete(Neighbour(sub.sw_if_index, KERNEL_END, "00:00:00:00:00:00"))
    await SubInterfaceDescriptor(api).delete(sub)


async def _table(api: VppApi, wanted: NatTable) -> bool:
    """True if there was another one."""
    tables = NatTableDescriptor(api)
    present = await tables.retrieve()
    if wanted in present:
        return False
    for other in present:
        await tables.delete(other)
    await tables.create(wanted)
    return bool(present)


async def _addresses(api: VppApi, pools: Iterable[NatPool]) -> bool:
    """True if there were others."""
    addresses = NatAddressDescriptor(api)
    wanted = frozenset(address for pool in pools for address in pool.addresses())
    present = frozenset(await addresses.retrieve())
    for gone in sorted(present - wanted):
        await addresses.delete(gone)
    for new in sorted(wanted - present):
        await addresses.create(new)
    return bool(present - wanted)
