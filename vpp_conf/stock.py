"""Takes stock of a VPP: the journal checked against VPP's dumps, leftovers swept away."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ipsec_gw.model.ids import SaKey
from vpp_conf.adoption import divert, find_tunnels, sweep_tunnels, take_tunnels
from vpp_conf.api import VppApi, VppApiError
from vpp_conf.descriptors.base import NO_INDEX, host
from vpp_conf.descriptors.neighbour import Neighbour, NeighbourDescriptor
from vpp_conf.descriptors.route import OUTER_TABLE, LocalAddressDescriptor, Route, RouteDescriptor
from vpp_conf.descriptors.sa import SadEntry, SaDescriptor, real_window
from vpp_conf.gates import GateParts, Gates, is_gate_way
from vpp_conf.inventory import (
    FIRST_SAD_ID,
    LAST_SAD_ID,
    HeldOverlay,
    HeldSa,
    HeldTunnel,
    Inventory,
    engine_sa,
)
from vpp_conf.journal import Journal
from vpp_conf.links import Links
from vpp_conf.overlays import Found, OverlayBuilder
from vpp_conf.records import SaRecord, read_hop, read_overlay, read_sa, read_tunnel
from vpp_conf.tunnels import TunnelBuilder


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
    tunnels = await find_tunnels(api, builders.tunnels, known)
    left = await take_tunnels(journal, builders.tunnels, inventory, tunnels)
    gated |= {one.way: one for held in inventory.tunnels.values() if (one := held.sending) is not None}
    recorded = bool(journal.rows("overlay"))
    found = await builders.overlays.find(recorded=recorded)
    await _take_overlays(journal, builders.overlays, inventory, found)
    await gates.adopt(gated, inventory.unwrapped)
    if recorded or found.tunnels:
        await divert(builders.tunnels, inventory)
    await builders.overlays.sweep(found, tuple(held.parts for held in inventory.overlays.values()))
    await sweep_tunnels(builders.tunnels, inventory, tunnels, left, routes)
    await _sweep_sas(api, inventory, own)
    return inventory


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
        place = (record.vlan, record.tunnel, inventory.table_of(overlay)) if whole else None
        parts = await builder.parts(overlay, *place) if place is not None else None
        if parts is None or not found.has(parts):
            journal.remove("overlay", str(overlay.key))
            continue
        inventory.overlays[overlay.key] = HeldOverlay(overlay, parts)


async def _sweep_sas(api: VppApi, inventory: Inventory, own: list[SadEntry]) -> None:
    known = {held.entry.sad_id for held in inventory.sas.values()}
    for entry in own:
        if entry.sad_id not in known:
            try:
                await SaDescriptor(api).delete(entry)
            except VppApiError:
                # A protection that somebody else made may still hold it; VPP frees it with that.
                continue
