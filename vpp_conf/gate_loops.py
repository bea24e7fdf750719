"""The loopbacks that gates are (:mod:`vpp_conf.gates`), with all that is on them whatever tunnels there are.

Each is made once in the life of a VPP, and its tag comes last: what was begun by a daemon that died is made anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address

from vpp_conf.api import VppApi
from vpp_conf.descriptors.classify import VERSIONS, Check, CheckDescriptor, Redirect, RedirectDescriptor
from vpp_conf.descriptors.interface import OWNER_TAG, borrow_address, bring_up, tag
from vpp_conf.descriptors.loopback import Loopback, LoopbackDescriptor
from vpp_conf.descriptors.neighbour import Neighbour, NeighbourDescriptor
from vpp_conf.descriptors.route import (
    DECAP_TABLE,
    OUTER_TABLE,
    LocalAddress,
    LocalAddressDescriptor,
    RouteDescriptor,
)
from vpp_conf.descriptors.spd import Spd, SpdDescriptor
from vpp_conf.encap import Hop
from vpp_conf.links import ANYWHERE, KERNEL_ENDS, Links

OUT, IN, WHOLE = 4704, 4705, 4706
"""Instances of the loopbacks, and numbers of the SPDs that the first two have and of the third one's table."""

GATE_ENDS = {
    OUT: (ip_address("169.254.254.4"), ip_address("100::4")),
    WHOLE: (ip_address("169.254.254.8"), ip_address("100::8")),
}
"""Their own addresses. IN borrows: with one of its own it would belong to groups, and VPP itself would take multicast
that comes out of tunnels."""

BEHIND = {
    OUT: (ip_address("169.254.254.5"), ip_address("100::5")),
    IN: (ip_address("169.254.254.7"), ip_address("100::7")),
    WHOLE: (ip_address("169.254.254.9"), ip_address("100::9")),
}
"""Stand for the loopbacks themselves as next hops; they are on no packet."""

GATE_MTU = 0xFFFF
"""Packets that are too long are taken apart, or told of, at the WAN."""

FULL = 0
"""``IP_REASS_TYPE_FULL``."""

REASSEMBLY = {
    "max_reassemblies": 1024,
    "max_reassembly_length": 64,
    "timeout_ms": 1000,
    "expire_walk_interval_ms": 1000,
}
"""The longest datagram (65,535 bytes) comes in 64 pieces where the path takes 1,052 bytes and more."""


async def raise_gates(api: VppApi, links: Links) -> Mapping[int, int]:
    """Make what is missing of the gates. Returns ``sw_if_index`` by instance."""
    held = {one.instance: one.sw_if_index for one in await LoopbackDescriptor(api).retrieve()}
    index: dict[int, int] = {}
    for instance in (OUT, IN, WHOLE):
        index[instance] = held[instance] if instance in held else await _make(api, links, instance, index)
    await _redirect(api, links, index)
    await _let_out(api, links, index[OUT])
    return index


def next_hop(instance: int, sw_if_index: int) -> Hop:
    """The way into a gate."""
    return Hop(sw_if_index, *BEHIND[instance])


async def _make(api: VppApi, links: Links, instance: int, others: Mapping[int, int]) -> int:
    spds = SpdDescriptor(api)
    if Spd(instance) in await spds.retrieve():
        await spds.delete(Spd(instance))
    if instance == WHOLE:
        await _make_table(api)
    made = (await LoopbackDescriptor(api).create(Loopback(instance))).sw_if_index
    await bring_up(api, made, WHOLE if instance == WHOLE else DECAP_TABLE, GATE_MTU)
    if instance == IN:
        await borrow_address(api, made, links.lenders[DECAP_TABLE])
    for address in GATE_ENDS.get(instance, ()):
        await LocalAddressDescriptor(api).create(LocalAddress(made, address))
    mac = str((await api.call("sw_interface_get_mac_address", sw_if_index=made)).mac_address)
    for behind in BEHIND[instance]:
        await NeighbourDescriptor(api).create(Neighbour(made, behind, mac))
    if instance == WHOLE:
        await _put_together(api, made, next_hop(OUT, others[OUT]))
    else:
        await spds.create(Spd(instance, made))
    await tag(api, made, OWNER_TAG)
    return made


async def _make_table(api: VppApi) -> None:
    for version6 in (False, True):
        table = {"table_id": WHOLE, "is_ip6": version6, "name": "ipsec-gw whole"}
        await api.call("ip_table_add_del", is_add=True, table=table)


async def _put_together(api: VppApi, whole: int, out: Hop) -> None:
    """Fragments that come in by gate WHOLE; what is whole then goes to gate OUT."""
    for version6 in (False, True):
        await api.call("ip_reassembly_set", is_ip6=version6, type=FULL, **REASSEMBLY)
    await api.call("ip_reassembly_enable_disable", sw_if_index=whole, enable_ip4=True, enable_ip6=True, type=FULL)
    for net in ANYWHERE.values():
        await RouteDescriptor(api).create(out.route(WHOLE, net))


async def _redirect(api: VppApi, links: Links, index: Mapping[int, int]) -> None:
    redirects = RedirectDescriptor(api)
    present = {(one.rx_sw_if_index, one.version) for one in await redirects.retrieve()}
    wanted = [Redirect(index[IN], end.version, links.up, end) for end in KERNEL_ENDS]
    wanted += [Redirect(index[OUT], version, table=OUTER_TABLE) for version in VERSIONS]
    for wan in links.wan.values():
        wanted += [Redirect(wan, end.version, index[IN], end) for end in BEHIND[IN]]
    for redirect in wanted:
        if (redirect.rx_sw_if_index, redirect.version) not in present:
            await redirects.create(redirect)


async def _let_out(api: VppApi, links: Links, out: int) -> None:
    """What comes in by gate OUT has just been encrypted, in transport mode."""
    checks = CheckDescriptor(api)
    held = Check(out, frozenset(), links.punts, None, await checks.chains_of(out))
    if not held.chains.whole:
        await checks.delete(held)
        await checks.create(held)
