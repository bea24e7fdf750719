"""What the gateway holds in a VPP: the journal checked against VPP's dumps, leftovers swept away."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ipsec_gw.model.ids import Direction, IpAddress, SaKey, TunnelId
from ipsec_gw.model.objects import EngineSa, HeaderCopies, NextHop, Overlay, OverlayKey, Tunnel
from vpp_conf.api import VppApi, VppApiError
from vpp_conf.descriptors.base import NO_INDEX, host
from vpp_conf.descriptors.classify import VERSIONS, Chains, RedirectDescriptor
from vpp_conf.descriptors.gre import GreHeaders
from vpp_conf.descriptors.ipsec_itf import IpsecInterfaceDescriptor
from vpp_conf.descriptors.neighbour import Neighbour, NeighbourDescriptor
from vpp_conf.descriptors.protect import Protect, ProtectDescriptor
from vpp_conf.descriptors.route import (
    OUTER_TABLE,
    LocalAddressDescriptor,
    Route,
    RouteDescriptor,
)
from vpp_conf.descriptors.sa import SadEntry, SaDescriptor, real_window
from vpp_conf.descriptors.subif import SubInterface
from vpp_conf.doors import Door
from vpp_conf.gates import GateParts, Gates, is_gate_way
from vpp_conf.journal import Journal
from vpp_conf.links import Links
from vpp_conf.overlays import Found, OverlayBuilder, OverlayParts
from vpp_conf.records import SaRecord, TunnelRecord, read_hop, read_overlay, read_sa, read_tunnel
from vpp_conf.sieve import Sift
from vpp_conf.tunnels import TunnelBuilder, TunnelParts, Wanted

FIRST_SAD_ID = 0x4000_0000
LAST_SAD_ID = 0x7FFF_FFFF
"""The gateway's own range: an SA with another ``sad_id`` is somebody else's."""


@dataclass(frozen=True, slots=True)
class HeldSa:
    """An SA as asked for, and what VPP made of it."""

    sa: EngineSa
    entry: SadEntry


@dataclass(frozen=True, slots=True)
class HeldTunnel:
    """A tunnel as asked for, and its parts in VPP."""

    tunnel: Tunnel
    parts: TunnelParts | GateParts


@dataclass(frozen=True, slots=True)
class HeldOverlay:
    """An overlay as asked for, and its parts in VPP."""

    overlay: Overlay
    parts: OverlayParts


@dataclass(slots=True)
class Inventory:
    """All objects of the gateway in one VPP. ``locals`` are the addresses ESP is received for, by interface."""

    sas: dict[SaKey, HeldSa] = field(default_factory=dict)
    hops: dict[IpAddress, NextHop] = field(default_factory=dict)
    tunnels: dict[TunnelId, HeldTunnel] = field(default_factory=dict)
    overlays: dict[OverlayKey, HeldOverlay] = field(default_factory=dict)
    locals: dict[IpAddress, int] = field(default_factory=dict)
    highest_sad_id: int = FIRST_SAD_ID

    def hold(self, held: HeldTunnel) -> None:
        """Add a tunnel, or put it in the place of the one with its key."""
        self.tunnels[held.tunnel.key] = held

    def drop(self, key: TunnelId) -> None:
        """Forget a tunnel; an unknown one is fine."""
        self.tunnels.pop(key, None)

    @property
    def unwrapped(self) -> frozenset[Sift]:
        """What overlays take of what comes out of tunnels."""
        return frozenset(held.parts.sift for held in self.overlays.values())

    def at(self, way: int) -> TunnelId:
        """The tunnel of an IPsec interface, or of a number behind the gate. Raises KeyError if there is none."""
        for key, held in self.tunnels.items():
            if held.parts.way == way:
                return key
        raise KeyError(way)

    def over(self, key: TunnelId) -> list[OverlayKey]:
        """Overlays that need this tunnel."""
        return [one for one, held in self.overlays.items() if key in held.overlay.tunnels]

    def users(self, key: SaKey | IpAddress) -> list[TunnelId]:
        """Tunnels that need this SA or next hop."""
        return [
            tunnel_id
            for tunnel_id, held in self.tunnels.items()
            if key in (held.tunnel.outbound, held.tunnel.remote, *held.tunnel.inbound)
        ]


@dataclass(frozen=True, slots=True)
class Builders:
    """What makes tunnels with an interface, and overlays."""

    tunnels: TunnelBuilder
    overlays: OverlayBuilder


async def take_inventory(
    api: VppApi, journal: Journal, links: Links, builders: Builders, gates: Gates, known: Inventory
) -> Inventory:
    """Everything that the journal names and VPP really holds. What only one of them knows is removed from both.

    ``known`` is the inventory before this one: VPP is not asked again for the classifier tables of its tunnels.
    """
    inventory = Inventory()
    own = await _take_sas(api, journal, inventory)
    routes = frozenset(await RouteDescriptor(api).retrieve())  # once: every table of ours is dumped
    await _take_hops(api, journal, links, inventory, routes)
    gated = _take_gated(journal, inventory)
    found = await builders.overlays.find(recorded=bool(journal.rows("overlay")))
    await _take_overlays(journal, builders.overlays, inventory, found)
    await gates.adopt(gated, inventory.unwrapped)
    await builders.overlays.sweep(found, tuple(held.parts for held in inventory.overlays.values()))
    await _take_tunnels(api, journal, builders.tunnels, inventory, known, routes)
    await _sweep_sas(api, inventory, own)
    return inventory


def engine_sa(entry: SadEntry, record: SaRecord) -> EngineSa:
    """The SA that this entry was made from, with what was asked for."""
    return EngineSa(
        key=SaKey(entry.destination, entry.spi),
        direction=Direction.IN if entry.inbound else Direction.OUT,
        source=entry.source,
        algorithm=entry.algorithm,
        secret=entry.secret,
        salt=entry.salt,
        esn=entry.esn,
        replay_window=record.window,
        encap=entry.encap,
        copies=HeaderCopies(entry.dscp, entry.ecn, record.df),
        transport=record.is_transport,
        gre=record.gre is not None,
    )


def sad_entry(sa: EngineSa, sad_id: int) -> SadEntry:
    """The entry to make for an SA."""
    return SadEntry(
        sad_id=sad_id,
        spi=sa.key.spi,
        inbound=sa.direction is Direction.IN,
        source=sa.source,
        destination=sa.key.destination,
        algorithm=sa.algorithm,
        secret=sa.secret,
        salt=sa.salt,
        esn=sa.esn,
        window=real_window(sa.replay_window),
        encap=sa.encap,
        dscp=sa.copies.dscp,
        ecn=sa.copies.ecn,
        transport=sa.transport or sa.gre,
    )


async def _take_sas(api: VppApi, journal: Journal, inventory: Inventory) -> list[SadEntry]:
    """Fill in the SAs. Returns all entries with a number of ours."""
    own = [entry for entry in await SaDescriptor(api).retrieve() if FIRST_SAD_ID <= entry.sad_id <= LAST_SAD_ID]
    entries = {entry.sad_id: entry for entry in own}
    inventory.highest_sad_id = max((FIRST_SAD_ID, *entries, *(row["highest"] for row in journal.rows("sad-ids"))))
    for row in journal.rows("sa"):
        record: SaRecord = read_sa(row)
        entry = _with_record(entries.get(record.sad_id), record)
        if (
            entry is None
            or SaKey(entry.destination, entry.spi) != record.key
            or entry.window != real_window(record.window)
        ):
            journal.remove("sa", str(record.key))
            continue
        inventory.sas[record.key] = HeldSa(engine_sa(entry, record), entry)
    return own


def _with_record(entry: SadEntry | None, record: SaRecord) -> SadEntry | None:
    """With what VPP does not tell of an SA in transport mode. None if it is not of the mode that is recorded."""
    if entry is None or entry.transport != (record.source is not None):
        return None
    if record.source is None:
        return entry
    dscp = record.gre.dscp if record.gre is not None else entry.dscp
    return replace(entry, source=record.source, destination=record.key.destination, dscp=dscp)


async def _take_hops(
    api: VppApi, journal: Journal, links: Links, inventory: Inventory, routes: frozenset[Route]
) -> None:
    neighbours = {found for found in await NeighbourDescriptor(api).retrieve() if links.wan_name(found.sw_if_index)}
    present = await LocalAddressDescriptor(api).retrieve_on(links.wan.values())
    addresses = {address.address: address for address in present}
    for hop in map(read_hop, journal.rows("hop")):
        index = links.wan.get(hop.interface, NO_INDEX)
        neighbour = Neighbour(index, hop.gateway, hop.mac.lower())
        route = Route(OUTER_TABLE, host(hop.key), index, hop.gateway)
        if hop.local in addresses and neighbour in neighbours and route in routes:
            inventory.hops[hop.key] = hop
            inventory.locals[hop.local] = addresses[hop.local].sw_if_index
            continue
        journal.remove("hop", str(hop.key))
        if route in routes:
            await RouteDescriptor(api).delete(route)
    needed = {(links.wan[hop.interface], hop.gateway) for hop in inventory.hops.values()}
    for neighbour in neighbours:
        if (neighbour.sw_if_index, neighbour.address) not in needed:
            await NeighbourDescriptor(api).delete(neighbour)
    for address in present:
        if address.address not in inventory.locals:
            await LocalAddressDescriptor(api).delete(address)


@dataclass(frozen=True, slots=True)
class _Found:
    """What VPP holds of tunnels: protections and VLAN subinterfaces by ``sw_if_index``, redirects by interface and IP
    version, IPsec interfaces, headers of GRE interfaces; and the classifier chains that are known already.
    """

    protects: Mapping[int, Protect]
    doors: Mapping[int, SubInterface]
    redirects: frozenset[tuple[int, int]]
    interfaces: frozenset[int]
    gres: Mapping[int, GreHeaders]
    chains: Mapping[int, Chains]

    def redirected(self, sw_if_index: int) -> bool:
        """In both IP versions."""
        return all((sw_if_index, version) in self.redirects for version in VERSIONS)

    def has(self, sw_if_index: int, gre: GreHeaders | None) -> bool:
        """Such a GRE interface, or an IPsec interface if it is to be none."""
        return sw_if_index in self.interfaces if gre is None else self.gres.get(sw_if_index) == gre


async def _find_tunnels(api: VppApi, builder: TunnelBuilder, known: Inventory) -> _Found:
    parts = [held.parts for held in known.tunnels.values() if isinstance(held.parts, TunnelParts)]
    checks = [part.check for part in parts] + [part.door.check for part in parts if part.door is not None]
    return _Found(
        protects={protect.sw_if_index: protect for protect in await ProtectDescriptor(api).retrieve()},
        doors={vlan.sw_if_index: vlan for vlan in await builder.doors.vlans.retrieve()},
        redirects=frozenset((one.rx_sw_if_index, one.version) for one in await RedirectDescriptor(api).retrieve()),
        interfaces=frozenset(one.sw_if_index for one in await IpsecInterfaceDescriptor(api).retrieve()),
        gres={one.sw_if_index: one.headers for one in await builder.gres.retrieve()},
        chains={check.sw_if_index: check.chains for check in checks},
    )


def _take_gated(journal: Journal, inventory: Inventory) -> dict[int, GateParts]:
    """Fill in the tunnels without an interface, whose SAs VPP has. Returns their parts by number."""
    found: dict[int, GateParts] = {}
    for record in map(read_tunnel, journal.rows("tunnel")):
        tunnel = record.tunnel
        if not is_gate_way(record.sw_if_index):
            continue
        if any(key not in inventory.sas for key in (tunnel.outbound, *tunnel.inbound)):
            journal.remove("tunnel", str(tunnel.key))
            continue
        inbound = [inventory.sas[key].entry for key in tunnel.inbound]
        parts = GateParts.of(record.sw_if_index, tunnel, inventory.sas[tunnel.outbound].entry, inbound)
        found[parts.way] = parts
        inventory.hold(HeldTunnel(tunnel, parts))
    return found


async def _take_overlays(journal: Journal, builder: OverlayBuilder, inventory: Inventory, found: Found) -> None:
    """Fill in the overlays whose tunnels are there already, and of which VPP has all parts."""
    for record in map(read_overlay, journal.rows("overlay")):
        overlay = record.overlay
        whole = builder.able and overlay.tunnels <= inventory.tunnels.keys()
        parts = await builder.parts(overlay, record.vlan, record.tunnel) if whole else None
        if parts is None or not found.has(parts):
            journal.remove("overlay", str(overlay.key))
            continue
        inventory.overlays[overlay.key] = HeldOverlay(overlay, parts)


async def _take_tunnels(
    api: VppApi,
    journal: Journal,
    builder: TunnelBuilder,
    inventory: Inventory,
    known: Inventory,
    routes: frozenset[Route],
) -> None:
    found = await _find_tunnels(api, builder, known)
    leftovers, doors = {*found.interfaces, *found.gres}, dict(found.doors)
    for row in journal.rows("tunnel"):
        record: TunnelRecord = read_tunnel(row)
        if is_gate_way(record.sw_if_index):
            continue
        parts = await _parts_of(record, builder, inventory, found)
        if parts is None or record.sw_if_index not in leftovers:
            journal.remove("tunnel", str(record.tunnel.key))
            continue
        leftovers.discard(record.sw_if_index)
        if parts.door is not None:
            doors.pop(parts.door.sw_if_index, None)
        inventory.hold(HeldTunnel(record.tunnel, parts))
    wanted = {held.parts.way: held.parts.selectors for held in inventory.tunnels.values()}
    await builder.encap.adopt(wanted, routes, found.interfaces)
    for vlan in doors.values():
        await builder.doors.sweep(vlan)
    for sw_if_index in leftovers:
        await builder.sweep(sw_if_index, found.gres.get(sw_if_index))


async def _parts_of(
    record: TunnelRecord, builder: TunnelBuilder, inventory: Inventory, found: _Found
) -> TunnelParts | None:
    """A recorded tunnel's parts if VPP has all of them, else None."""
    tunnel, index = record.tunnel, record.sw_if_index
    if any(key not in inventory.sas for key in (tunnel.outbound, *tunnel.inbound)):
        return None
    wanted = Wanted.of(tunnel, inventory.sas[tunnel.outbound].sa)
    if not found.has(index, wanted.gre) or not found.redirected(index):
        return None
    chains = await _chains_of(index, builder, found)
    door = await _door_of(record, builder, found)
    if not chains.whole or (tunnel.interface is not None and door is None):
        return None
    parts = builder.parts(
        index,
        inventory.sas[tunnel.outbound].entry.sad_id,
        frozenset(inventory.sas[key].entry.sad_id for key in tunnel.inbound),
        wanted,
        chains,
        door,
    )
    return parts if found.protects.get(index) == parts.protect else None


async def _door_of(record: TunnelRecord, builder: TunnelBuilder, found: _Found) -> Door | None:
    """The door of its XFRM interface if VPP has all of it, else None."""
    tunnel, index = record.tunnel, record.door
    if tunnel.interface is None or index is None or index not in found.doors or not found.redirected(index):
        return None
    chains = await _chains_of(index, builder, found)
    if not chains.whole or found.doors[index].vid != tunnel.interface.vlan:
        return None
    return builder.doors.door(tunnel.interface.vlan, record.sw_if_index, frozenset(tunnel.selectors), index, chains)


async def _chains_of(sw_if_index: int, builder: TunnelBuilder, found: _Found) -> Chains:
    chains = found.chains.get(sw_if_index, Chains())
    return chains if chains.whole else await builder.checks.chains_of(sw_if_index)


async def _sweep_sas(api: VppApi, inventory: Inventory, own: list[SadEntry]) -> None:
    known = {held.entry.sad_id for held in inventory.sas.values()}
    for entry in own:
        if entry.sad_id not in known:
            try:
                await SaDescriptor(api).delete(entry)
            except VppApiError:
                # A protection that somebody else made may still hold it; VPP frees it with that.
                continue
