"""The interfaces that the gateway gives to VPP: WAN sockets and the veth end that faces the kernel."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address

from vpp_conf.api import VppApi
from vpp_conf.descriptors.af_xdp import AfXdp, AfXdpDescriptor
from vpp_conf.descriptors.classify import Check, CheckDescriptor, Redirect, RedirectDescriptor, punt_next_index
from vpp_conf.descriptors.interface import OWNER_TAG, bring_up, tag
from vpp_conf.descriptors.loopback import Loopback, LoopbackDescriptor
from vpp_conf.descriptors.neighbour import Neighbour, NeighbourDescriptor
from vpp_conf.descriptors.route import DECAP_TABLE, ENCAP_TABLE, OUTER_TABLE, LocalAddress, LocalAddressDescriptor

KERNEL_END = IPv4Address("169.254.254.1")
"""Stands for the kernel's end of the veth pair in VPP's neighbour table; it is on no packet."""

ENGINE_END = IPv4Address("169.254.254.2")
"""VPP's own end: without an address VPP drops IPv4 on an interface."""

DECAP_END = IPv4Address("169.254.254.3")
"""On a loopback in the decap table, lent to the IPsec interfaces there (a lender has to be in the same table)."""

LOOPBACK_MTU = 1500
TABLE_NAMES = {ENCAP_TABLE: "ipsec-gw encap", DECAP_TABLE: "ipsec-gw decap"}


@dataclass(frozen=True, slots=True)
class HostLink:
    """A docked kernel interface and its MTU in bytes."""

    name: str
    mtu: int


@dataclass(frozen=True, slots=True)
class Links:
    """``sw_if_index`` of the WAN interfaces by kernel name, of the engine's veth end, and of the loopback that lends

    its address to IPsec interfaces; ``punt_index`` is the arc from the input classifier to ip4-punt.
    """

    wan: Mapping[str, int]
    up: int
    lender: int
    punt_index: int

    def wan_name(self, sw_if_index: int) -> str | None:
        """The kernel's name of a WAN interface."""
        return next((name for name, index in self.wan.items() if index == sw_if_index), None)


async def take_links(
    api: VppApi, wan: Sequence[HostLink], up: HostLink, kernel_mac: str, taking: Callable[[], None]
) -> Links:
    """Make what is missing of the gateway's tables and interfaces, and adopt what an earlier daemon left.

    ``taking`` is called before each interface that is new to VPP. Raises EngineError naming the interface that VPP
    refuses.
    """
    for table, name in TABLE_NAMES.items():
        await api.call("ip_table_add_del", is_add=True, table={"table_id": table, "is_ip6": False, "name": name})
    sockets = AfXdpDescriptor(api)
    held = {interface.host_interface: interface for interface in await sockets.retrieve()}
    taken: dict[str, int] = {}
    for link, table in (*((link, OUTER_TABLE) for link in wan), (up, ENCAP_TABLE)):
        interface = held.get(link.name)
        if interface is None:
            taking()
            interface = await sockets.create(AfXdp(link.name))
            await bring_up(api, interface.sw_if_index, table, link.mtu)
            if link is up:
                await LocalAddressDescriptor(api).create(LocalAddress(interface.sw_if_index, ENGINE_END))
            await tag(api, interface.sw_if_index, OWNER_TAG)
        taken[link.name] = interface.sw_if_index
    up_index = taken.pop(up.name)
    await NeighbourDescriptor(api).create(Neighbour(up_index, KERNEL_END, kernel_mac))
    punt_index = await punt_next_index(api)
    await _keep_ttl(api, up_index, punt_index)
    return Links(taken, up_index, await _lender(api), punt_index)


async def _lender(api: VppApi) -> int:
    loopbacks = LoopbackDescriptor(api)
    for held in await loopbacks.retrieve():
        if held.instance == DECAP_TABLE:
            return held.sw_if_index
    made = await loopbacks.create(Loopback(DECAP_TABLE))
    await bring_up(api, made.sw_if_index, DECAP_TABLE, LOOPBACK_MTU)
    await LocalAddressDescriptor(api).create(LocalAddress(made.sw_if_index, DECAP_END))
    await tag(api, made.sw_if_index, OWNER_TAG)
    return made.sw_if_index


async def _keep_ttl(api: VppApi, up: int, punt_index: int) -> None:
    """Plaintext to encrypt takes the punt path into the encap table: the kernel has counted this hop already."""
    redirects, checks = RedirectDescriptor(api), CheckDescriptor(api)
    if not any(redirect.rx_sw_if_index == up for redirect in await redirects.retrieve()):
        await redirects.create(Redirect(up, table=ENCAP_TABLE))
    if not await checks.tables_of(up):
        await checks.create(Check(up, frozenset(), punt_index))
