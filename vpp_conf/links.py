"""The interfaces that the gateway gives to VPP: WAN sockets and the veth end that faces the kernel."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network

from ipsec_gw.model.ids import IpAddress
from vpp_conf.api import VppApi
from vpp_conf.descriptors.af_xdp import AfXdp, AfXdpDescriptor, Reception
from vpp_conf.descriptors.classify import (
    VERSIONS,
    Check,
    CheckDescriptor,
    Pair,
    Redirect,
    RedirectDescriptor,
    punt_next_indices,
)
from vpp_conf.descriptors.interface import OWNER_TAG, bind, bring_up, tag
from vpp_conf.descriptors.loopback import Loopback, LoopbackDescriptor
from vpp_conf.descriptors.multicast import Groups, GroupsDescriptor
from vpp_conf.descriptors.neighbour import Neighbour, NeighbourDescriptor
from vpp_conf.descriptors.route import (
    DECAP_TABLE,
    ENCAP_TABLE,
    OUTER_TABLE,
    ROUTED_TABLE,
    LocalAddress,
    LocalAddressDescriptor,
    Route,
    RouteDescriptor,
)

KERNEL_ENDS = (ip_address("169.254.254.1"), ip_address("100::1"))
"""Stand for the kernel's end of the veth pair in VPP's neighbour table; they are on no packet (the IPv6 ones are of the
discard-only block, RFC 6666)."""

ENGINE_ENDS = (ip_address("169.254.254.2"), ip_address("100::2"))
"""VPP's own end: without an address of an IP version VPP drops its packets on an interface."""

DECAP_ENDS = (ip_address("169.254.254.3"), ip_address("100::3"))
"""On a loopback in each table of IPsec interfaces, lent to those there (a lender has to be in the same table)."""

LOOPBACK_MTU = 1500
ANYWHERE = {4: ip_network("0.0.0.0/0"), 6: ip_network("::/0")}
TABLE_NAMES = {ENCAP_TABLE: "ipsec-gw encap", DECAP_TABLE: "ipsec-gw decap", ROUTED_TABLE: "ipsec-gw routed"}


@dataclass(frozen=True, slots=True)
class HostLink:
    """A docked kernel interface and its MTU in bytes."""

    name: str
    mtu: int


@dataclass(frozen=True, slots=True)
class Links:
    """``sw_if_index`` of the WAN interfaces by kernel name, of the engine's veth end, and of the loopbacks that lend
    their addresses to IPsec interfaces, by table; ``kernel_mac`` is the address of the kernel's veth end. ``punts`` are
    the arcs from the input classifiers to the punt nodes, ``shut`` the classifier tables that let nothing pass.
    """

    wan: Mapping[str, int]
    up: int
    lenders: Mapping[int, int]
    kernel_mac: str
    punts: Pair
    shut: Pair

    def wan_name(self, sw_if_index: int) -> str | None:
        """The kernel's name of a WAN interface."""
        return next((name for name, index in self.wan.items() if index == sw_if_index), None)


async def take_links(
    api: VppApi,
    wan: Sequence[HostLink],
    up: HostLink,
    kernel_mac: str,
    taking: Callable[[], Awaitable[None]],
    reception: Reception,
) -> Links:
    """Make what is missing of the gateway's tables and interfaces, and adopt what an earlier daemon left.

    ``taking`` is awaited before each interface that is new to VPP. Raises EngineError naming the interface that VPP
    refuses.
    """
    for table, name in TABLE_NAMES.items():
        for version6 in (False, True):
            await api.call("ip_table_add_del", is_add=True, table={"table_id": table, "is_ip6": version6, "name": name})
    sockets = AfXdpDescriptor(api)
    held = {interface.host_interface: interface for interface in await sockets.retrieve()}
    taken: dict[str, int] = {}
    for link, table in (*((link, OUTER_TABLE) for link in wan), (up, ENCAP_TABLE)):
        interface = held.get(link.name)
        if interface is None:
            await taking()
            interface = await sockets.create(AfXdp(link.name, reception))
            await bring_up(api, interface.sw_if_index, table, link.mtu)
            await tag(api, interface.sw_if_index, OWNER_TAG)
        taken[link.name] = interface.sw_if_index
    up_index = taken.pop(up.name)
    await _complete(api, up_index, ENCAP_TABLE, ENGINE_ENDS)
    for address in KERNEL_ENDS:
        await NeighbourDescriptor(api).create(Neighbour(up_index, address, kernel_mac))
    punts = await punt_next_indices(api)
    await _keep_ttl(api, up_index, punts)
    await CheckDescriptor(api).drop_options()
    for version in VERSIONS:
        await GroupsDescriptor(api).create(Groups(ROUTED_TABLE, version))
        # VPP's local stack takes nothing from a source that it has no route to. Nothing is sent by this one.
        await RouteDescriptor(api).create(Route(ROUTED_TABLE, ANYWHERE[version], up_index))
    lenders = {table: await _lender(api, table) for table in (DECAP_TABLE, ROUTED_TABLE)}
    for table, lender in lenders.items():
        await _complete(api, lender, table, DECAP_ENDS)
    shut = await CheckDescriptor(api).shut_tables(lenders[DECAP_TABLE])
    return Links(taken, up_index, lenders, kernel_mac, punts, shut)


async def _lender(api: VppApi, table: int) -> int:
    loopbacks = LoopbackDescriptor(api)
    for held in await loopbacks.retrieve():
        if held.instance == table:
            return held.sw_if_index
    made = await loopbacks.create(Loopback(table))
    await bring_up(api, made.sw_if_index, table, LOOPBACK_MTU)
    await tag(api, made.sw_if_index, OWNER_TAG)
    return made.sw_if_index


async def _complete(api: VppApi, sw_if_index: int, table: int, addresses: Sequence[IpAddress]) -> None:
    """The addresses that are missing; an interface that a version without IPv6 has made has to be bound for it."""
    present = {held.address for held in await LocalAddressDescriptor(api).retrieve_on([sw_if_index])}
    for address in addresses:
        if address not in present:
            await bind(api, sw_if_index, table, address.version)
            await LocalAddressDescriptor(api).create(LocalAddress(sw_if_index, address))


async def _keep_ttl(api: VppApi, up: int, punts: Pair) -> None:
    """Plaintext to encrypt takes the punt path into the encap table: the kernel has counted this hop already."""
    redirects, checks = RedirectDescriptor(api), CheckDescriptor(api)
    present = {(redirect.rx_sw_if_index, redirect.version) for redirect in await redirects.retrieve()}
    for version in VERSIONS:
        if (up, version) not in present:
            await redirects.create(Redirect(up, version, table=ENCAP_TABLE))
    held = Check(up, frozenset(), punts, None, await checks.chains_of(up))
    if not held.chains.whole:
        await checks.delete(held)
        await checks.create(held)
