"""Which tunnels with an interface VPP has as the journal names them; what else there is of such goes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from vpp_conf.api import VppApi
from vpp_conf.descriptors.classify import VERSIONS, Chains, RedirectDescriptor
from vpp_conf.descriptors.ipsec_itf import IpsecInterface
from vpp_conf.descriptors.protect import Protect, ProtectDescriptor
from vpp_conf.descriptors.route import Route
from vpp_conf.descriptors.subif import SubInterface
from vpp_conf.doors import Door
from vpp_conf.gates import GateParts, is_gate_way
from vpp_conf.inventory import HeldTunnel, Inventory
from vpp_conf.journal import Journal
from vpp_conf.outer import Outer
from vpp_conf.overlays import OVERLAY_MASK
from vpp_conf.records import TunnelRecord, read_tunnel
from vpp_conf.tunnels import TunnelBuilder, TunnelInterface, TunnelParts, Wanted


@dataclass(frozen=True, slots=True)
class FoundTunnels:
    """What VPP holds of tunnels: protections, VLAN subinterfaces and interfaces by ``sw_if_index``, redirects by
    interface and IP version; and the classifier chains that are known already.
    """

    protects: Mapping[int, Protect]
    doors: Mapping[int, SubInterface]
    redirects: frozenset[tuple[int, int]]
    interfaces: Mapping[int, TunnelInterface]
    chains: Mapping[int, Chains]

    def redirected(self, sw_if_index: int) -> bool:
        """In both IP versions."""
        return all((sw_if_index, version) in self.redirects for version in VERSIONS)

    def has(self, sw_if_index: int, wanted: Wanted) -> bool:
        """Such an interface, and what leads on from it."""
        found = self.interfaces.get(sw_if_index)
        return found is not None and wanted.begins_with(found) and self.redirected(sw_if_index)

    @property
    def of_ipsec(self) -> frozenset[int]:
        """The IPsec interfaces."""
        return frozenset(key for key, one in self.interfaces.items() if isinstance(one, IpsecInterface))


async def find_tunnels(api: VppApi, builder: TunnelBuilder, known: Inventory) -> FoundTunnels:
    parts = [held.parts for held in known.tunnels.values() if isinstance(held.parts, TunnelParts)]
    checks = [part.check for part in parts] + [part.door.check for part in parts if part.door is not None]
    checks += [part.outer.check for part in parts if part.outer is not None]
    return FoundTunnels(
        protects={protect.sw_if_index: protect for protect in await ProtectDescriptor(api).retrieve()},
        doors={vlan.sw_if_index: vlan for vlan in await builder.doors.vlans.retrieve()},
        redirects=frozenset((one.rx_sw_if_index, one.version) for one in await RedirectDescriptor(api).retrieve()),
        interfaces={one.sw_if_index: one for one in await builder.retrieve()},
        chains={check.sw_if_index: check.chains for check in checks},
    )


@dataclass(frozen=True, slots=True)
class Leftovers:
    """What VPP has of tunnels that are none: interfaces and doors that no record explains."""

    interfaces: tuple[TunnelInterface, ...]
    doors: tuple[SubInterface, ...]


async def take_tunnels(
    journal: Journal, builder: TunnelBuilder, inventory: Inventory, found: FoundTunnels
) -> Leftovers:
    """Fill in the tunnels with an interface of which VPP has all parts. Returns what no such tunnel has."""
    interfaces, doors = dict(found.interfaces), dict(found.doors)
    for row in journal.rows("tunnel"):
        record: TunnelRecord = read_tunnel(row)
        if is_gate_way(record.sw_if_index):
            continue
        parts = await _parts_of(record, builder, inventory, found)
        if parts is None or not _indices(parts) <= interfaces.keys():
            journal.remove("tunnel", str(record.tunnel.key))
            continue
        for index in _indices(parts):
            del interfaces[index]
        if parts.door is not None:
            doors.pop(parts.door.sw_if_index, None)
        inventory.hold(HeldTunnel(record.tunnel, parts))
    return Leftovers(tuple(interfaces.values()), tuple(doors.values()))


def _indices(parts: TunnelParts) -> set[int]:
    return {parts.interface.sw_if_index, *(() if parts.outer is None else (parts.outer.sw_if_index,))}


async def sweep_tunnels(
    builder: TunnelBuilder, inventory: Inventory, found: FoundTunnels, left: Leftovers, routes: frozenset[Route]
) -> None:
    """Remove what is left, and have the routes that tunnels need."""
    held = inventory.tunnels.values()
    await builder.encap.adopt({one.parts.way: one.parts.selectors for one in held}, routes, found.of_ipsec)
    for vlan in left.doors:
        await builder.doors.sweep(vlan)
    for interface in left.interfaces:
        await builder.sweep(interface)
    parts = [one.parts for one in held if isinstance(one.parts, TunnelParts)]
    await builder.outers.sweep_tables(frozenset(one.outer.table for one in parts if one.outer is not None))


async def divert(builder: TunnelBuilder, inventory: Inventory) -> None:
    """Have overlays take what they are to take of what comes out of tunnels with an interface, and nothing else."""
    for key, held in list(inventory.tunnels.items()):
        if not isinstance(held.parts, TunnelParts) or not any(one.of_hosts for one in held.tunnel.selectors):
            continue
        check, wanted = held.parts.check, inventory.diversions(key)
        there = replace(check, diversions=await builder.checks.diversions_of(check.chains, OVERLAY_MASK))
        made = await builder.checks.update(there, replace(there, diversions=wanted))
        inventory.hold(HeldTunnel(held.tunnel, replace(held.parts, check=made)))


async def _parts_of(
    record: TunnelRecord, builder: TunnelBuilder, inventory: Inventory, found: FoundTunnels
) -> TunnelParts | None:
    """A recorded tunnel's parts if VPP has all of them, else None."""
    tunnel, index = record.tunnel, record.sw_if_index
    if any(key not in inventory.sas for key in (tunnel.outbound, *tunnel.inbound)):
        return None
    outbound = inventory.sas[tunnel.outbound]
    gate = None if record.gate is None else GateParts.of(record.gate, tunnel, outbound.entry, ())
    wanted = Wanted.of(tunnel, outbound.sa, gate=gate)
    if not found.has(index, wanted):
        return None
    chains = await _chains_of(index, builder, found)
    door, outer = await _door_of(record, builder, found), await _outer_of(record, builder, found)
    if not chains.whole or (tunnel.interface is not None and door is None):
        return None
    if tunnel.header is not None and outer is None:
        return None
    parts = builder.parts(
        index,
        outbound.entry.sad_id,
        frozenset(inventory.sas[key].entry.sad_id for key in tunnel.inbound),
        wanted,
        chains,
        door,
        outer,
    )
    return parts if found.protects.get(parts.protect.sw_if_index) == parts.protect else None


async def _door_of(record: TunnelRecord, builder: TunnelBuilder, found: FoundTunnels) -> Door | None:
    """The door of its XFRM interface if VPP has all of it, else None."""
    tunnel, index = record.tunnel, record.door
    if tunnel.interface is None or index is None or index not in found.doors or not found.redirected(index):
        return None
    chains = await _chains_of(index, builder, found)
    if not chains.whole or found.doors[index].vid != tunnel.interface.vlan:
        return None
    return builder.doors.door(tunnel.interface.vlan, record.sw_if_index, frozenset(tunnel.selectors), index, chains)


async def _outer_of(record: TunnelRecord, builder: TunnelBuilder, found: FoundTunnels) -> Outer | None:
    """The outer tunnel of its device if VPP has all of it, else None."""
    header, interface, index = record.tunnel.header, record.tunnel.interface, record.outer
    if header is None or interface is None or index not in found.of_ipsec or not found.redirected(index):
        return None
    chains = await _chains_of(index, builder, found)
    return builder.outers.outer(header, interface.vlan, index, chains) if chains.whole else None


async def _chains_of(sw_if_index: int, builder: TunnelBuilder, found: FoundTunnels) -> Chains:
    chains = found.chains.get(sw_if_index, Chains())
    return chains if chains.whole else await builder.checks.chains_of(sw_if_index)
