"""The production engine: fd.io VPP.

The objects of the port become, in VPP: an SA in the SAD; a next hop as a static neighbour, a host route and our own
address in the outer table; a tunnel as an IPsec interface with protection, selector check, punt redirect and routes
in the encap table, or as entries of an SPD behind a gate (:mod:`vpp_conf.gates`). A journal without keys and VPP's
dumps together tell what is there (:mod:`vpp_conf.stock`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack

import structlog

from ipsec_gw.engines.port import Capabilities, Counters, EngineContext, Vitals
from ipsec_gw.engines.vpp_overlays import VppOverlays
from ipsec_gw.errors import EngineError, EngineUnavailable
from ipsec_gw.model.choices import PolicyMode
from ipsec_gw.model.ids import Direction, EngineName, IpAddress, SaKey, TunnelId
from ipsec_gw.model.objects import (
    MAX_INBOUND,
    EngineKey,
    EngineObject,
    EngineSa,
    NextHop,
    Overlay,
    OverlayKey,
    Tunnel,
    XfrmInterface,
)
from vpp_conf.api import REPLY_SECONDS, VppApi
from vpp_conf.crypto import crypto_handlers
from vpp_conf.descriptors.base import host
from vpp_conf.descriptors.gre import MESSAGE as GRE
from vpp_conf.descriptors.neighbour import Neighbour, NeighbourDescriptor
from vpp_conf.descriptors.route import OUTER_TABLE, LocalAddress, LocalAddressDescriptor, Route, RouteDescriptor
from vpp_conf.descriptors.sa import SadEntry, SaDescriptor, check_lengths
from vpp_conf.encap_routes import EncapRoutes
from vpp_conf.gates import GateParts, Gates, is_whole_way, may_pass
from vpp_conf.inventory import (
    LAST_SAD_ID,
    HeldSa,
    HeldTunnel,
    Inventory,
    sad_entry,
)
from vpp_conf.journal import Journal
from vpp_conf.links import HostLink, Links, take_links
from vpp_conf.locate import locate_vpp
from vpp_conf.overlays import OverlayBuilder
from vpp_conf.paths import VppPaths
from vpp_conf.raw_api import NumbersReader
from vpp_conf.reality import planned_reception
from vpp_conf.recorder import Recorder
from vpp_conf.records import SaRecord, hop_row, sa_row, tunnel_row
from vpp_conf.stock import Builders, take_inventory
from vpp_conf.traffic import TrafficReader
from vpp_conf.tunnels import TunnelBuilder, Wanted
from vpp_conf.used_keys import UsedKeys
from vpp_conf.vitals import VppVitals

MAX_REPLAY_WINDOW = 4096
"""VPP takes any power of two; this is what strongSwan's users ask for at most, and what is tested."""

SAD_ID_BLOCK = 1024
"""``sad_id``s are reserved in the journal by this many: after a restart of the daemon the next block begins."""

BY_SPD = "; policies by SPD: what comes out of a tunnel is held to the selectors of all of them"

log = structlog.get_logger(__name__)


class VppEngine:
    """ESP by VPP. One instance per gateway; calls are carried out one after the other. The ``policy_mode`` decides what
    new tunnels become; those that are there stay what they are.
    """

    def __init__(self, context: EngineContext, policy_mode: PolicyMode = PolicyMode.AUTO) -> None:
        self._context = context
        self._paths = VppPaths(context.run_dir.resolve())
        self._api = VppApi(self._paths.api_socket, locate_vpp().api_dir)
        self._journal = Journal(self._paths.journal)
        self._lock = asyncio.Lock()
        self._inventory = Inventory()
        self._used_keys = UsedKeys()
        self._traffic = TrafficReader()
        self._numbers = NumbersReader(self._paths.api_socket, REPLY_SECONDS)
        self._sad_id = 0
        self._reserved = 0
        self._by_spd = policy_mode is PolicyMode.SPD
        self._links: Links | None = None
        self._tunnels: TunnelBuilder | None = None
        self._gates: Gates | None = None
        self._overlays: VppOverlays | None = None

    @property
    def name(self) -> EngineName:
        """Always ``vpp``."""
        return EngineName.VPP

    @property
    def epoch(self) -> int:
        """Identity of the VPP process that :meth:`open` reached last. After EngineUnavailable, open again."""
        return self._api.epoch

    async def open(self) -> Capabilities:
        """Connect, make or adopt the interfaces, and take stock. May be called again after a lost connection.

        Raises EngineUnavailable if no VPP answers, EngineError naming an interface that VPP refuses.
        """
        async with self._lock:
            await self._api.connect()
            await asyncio.to_thread(self._traffic.open, self._paths.stats_socket)
            self._numbers.close()
            self._inventory = Inventory()
            self._journal.load(self._api.epoch)
            context = self._context
            wan = [HostLink(link.name, link.mtu) for link in context.wan]
            up = HostLink(context.up_engine.name, context.up_engine.mtu)
            self._links = await take_links(
                self._api, wan, up, context.up_kernel.mac.lower(), context.taking, planned_reception(self._paths)
            )
            self._gates = Gates(self._api, self._journal, self._links, EncapRoutes(self._api))
            self._tunnels = TunnelBuilder(self._api, self._links, context.up_engine.mtu, self._gates)
            self._overlays = VppOverlays(
                OverlayBuilder(self._api, self._links), self._tunnels.checks, self._gates, self._journal
            )
            await self._take_stock()
            self._sad_id = self._reserved = self._inventory.highest_sad_id
            handlers = await crypto_handlers(self._api)
        engines = ", ".join(f"{algorithm.name} by {engine}" for algorithm, engine in handlers.items())
        log.info("vpp.open", version=self._api.version, tunnels=len(self._inventory.tunnels))
        policies = BY_SPD if self._by_spd else ""
        return Capabilities(
            algorithms=frozenset(handlers),
            esn=True,
            udp_encap=True,
            max_replay_window=MAX_REPLAY_WINDOW,
            steers=True,
            note=f"VPP {self._api.version}: {engines}{policies}",
            gre=self._api.knows(GRE),
            vxlan=self._overlays.builder.able,
        )

    async def close(self) -> None:
        """Disconnect; VPP carries on with what it has."""
        async with self._lock:
            self._numbers.close()
            await self._api.close()

    async def retrieve(self) -> Mapping[EngineKey, EngineObject]:
        """From VPP's dumps, checked against the journal; half-made leftovers are removed on the way."""
        async with self._lock:
            await self._take_stock()
            held = self._inventory
            found: dict[EngineKey, EngineObject] = {key: sa.sa for key, sa in held.sas.items()}
            found |= {peer: hop for peer, hop in held.hops.items()}
            found |= {key: tunnel.tunnel for key, tunnel in held.tunnels.items()}
            found |= {key: overlay.overlay for key, overlay in held.overlays.items()}
            return found

    async def create(self, obj: EngineObject) -> None:
        """Put one object in place."""
        async with self._lock:
            self._opened()
            match obj:
                case EngineSa():
                    await self._create_sa(obj)
                case NextHop():
                    await self._create_hop(obj)
                case Tunnel():
                    await self._create_tunnel(obj)
                case Overlay():
                    await self._opened_overlays().create(obj, self._inventory)

    async def update(self, obj: EngineObject) -> None:
        """Tunnels and next hops change without a gap; of an SA only the outer addresses and ports move, and an overlay
        is made anew.
        """
        async with self._lock:
            self._opened()
            match obj:
                case EngineSa():
                    await self._update_sa(obj)
                case NextHop():
                    await self._update_hop(obj)
                case Tunnel():
                    await self._update_tunnel(obj)
                case Overlay():
                    await self._opened_overlays().update(obj, self._inventory)

    async def delete(self, key: EngineKey) -> None:
        """Remove one object; one that a tunnel still uses is refused, VPP itself would not."""
        async with self._lock:
            self._opened()
            self._check_unused(key)
            match key:
                case SaKey():
                    await self._delete_sa(key)
                case TunnelId():
                    await self._delete_tunnel(key)
                case OverlayKey():
                    await self._opened_overlays().delete(key, self._inventory)
                case _:
                    await self._delete_hop(key)

    def _check_unused(self, key: EngineKey) -> None:
        if isinstance(key, TunnelId):
            if over := self._inventory.over(key):
                raise EngineError(f"tunnel {key} is still used by {over[0]} - delete the overlay first")
        elif not isinstance(key, OverlayKey) and (users := self._inventory.users(key)):
            raise EngineError(f"{key} is still used by tunnel {users[0]} - delete the tunnel first")

    async def counters(self) -> Mapping[SaKey, Counters]:
        """From the stats segment, after a ping: its mapping would outlive VPP. Raises EngineUnavailable.

        ``packets`` is exact. ``octets`` are up to three bytes per packet too high, since VPP counts ESP padding
        (:func:`vpp_conf.traffic.inner_traffic`).
        """
        await self._api.call("control_ping")
        return await asyncio.to_thread(self._counted, self._entries())

    def last_counters(self) -> Mapping[SaKey, Counters]:
        """From the mapped segment alone: of a VPP that has died, the very last ones. Outbound they are at least the
        last sequence number that left.
        """
        try:
            return self._counted(self._entries())
        except EngineError as error:
            log.warning("vpp.counters", reason=str(error))
            return {}

    async def numbers(self) -> Mapping[SaKey, int]:
        """From a dump by a connection of its own: vpp_papi would take seconds for thousands of SAs."""
        told = await self._numbers.read()
        return {
            key: told[held.entry.sad_id].inbound
            for key, held in self._inventory.sas.items()
            if held.entry.inbound and held.entry.sad_id in told
        }

    async def vitals(self) -> Vitals:
        """Of the VPP process that is connected."""
        recorder = Recorder(self._paths, self._api)
        return await VppVitals.open(self._paths, self._api.process, self._traffic, recorder)

    def _entries(self) -> dict[SaKey, SadEntry]:
        return {key: held.entry for key, held in self._inventory.sas.items()}

    def _counted(self, entries: Mapping[SaKey, SadEntry]) -> Mapping[SaKey, Counters]:
        return {key: Counters(*value) for key, value in self._traffic.read(entries).items()}

    def _opened(self) -> tuple[Links, TunnelBuilder]:
        if self._links is None or self._tunnels is None:
            raise EngineUnavailable("the VPP engine is not open - open it first")
        return self._links, self._tunnels

    async def _take_stock(self) -> None:
        links, tunnels = self._opened()
        gates, builders = self._opened_gates(), Builders(tunnels, self._opened_overlays().builder)
        self._inventory = await take_inventory(self._api, self._journal, links, builders, gates, self._inventory)
        for held in self._inventory.sas.values():
            if held.sa.direction is Direction.OUT:
                self._used_keys.remember(held.sa)

    def _opened_gates(self) -> Gates:
        if self._gates is None:
            raise EngineUnavailable("the VPP engine is not open - open it first")
        return self._gates

    def _opened_overlays(self) -> VppOverlays:
        if self._overlays is None:
            raise EngineUnavailable("the VPP engine is not open - open it first")
        return self._overlays

    # SAs

    async def _create_sa(self, sa: EngineSa) -> None:
        if sa.key in self._inventory.sas:
            raise EngineError(f"SA {sa.key} exists already")
        if sa.encap is not None and sa.key.destination.version != 4:
            raise EngineError(f"SA {sa.key}: UDP encapsulation over IPv6 is not done - leave it to the kernel")
        if sa.replay_window > MAX_REPLAY_WINDOW:
            raise EngineError(f"SA {sa.key}: a replay window of {sa.replay_window} is above {MAX_REPLAY_WINDOW}")
        if sa.gre and (sa.encap is not None or sa.key.destination.version != 4 or not self._api.knows(GRE)):
            raise EngineError(f"SA {sa.key}: GRE in UDP, over IPv6 or without VPP's plugin is left to the kernel")
        check_lengths(sad_entry(sa, 0))
        if sa.direction is Direction.OUT:
            self._used_keys.refuse(sa)
        entry = await SaDescriptor(self._api).create(sad_entry(sa, self._next_sad_id()))
        if sa.direction is Direction.OUT:
            self._used_keys.remember(sa)
        self._hold_sa(sa, entry)

    async def _update_sa(self, sa: EngineSa) -> None:
        held = self._inventory.sas.get(sa.key)
        if held is None:
            raise EngineError(f"SA {sa.key} is unknown to VPP")
        if sa.gre and sa != held.sa:
            raise EngineError(f"SA {sa.key} is behind GRE and is not changed in place - its tunnel has its addresses")
        peer_moves = sa.source != held.sa.source and sa.direction is Direction.IN
        if peer_moves and (users := self._inventory.users(sa.key)):
            # VPP would move its own look-up key, and then not find it when the tunnel goes (ipsec_tun.c).
            raise EngineError(f"SA {sa.key} cannot come from {sa.source} while tunnel {users[0]} uses it")
        self._hold_sa(sa, await SaDescriptor(self._api).update(held.entry, sad_entry(sa, held.entry.sad_id)))
        for user in self._inventory.users(sa.key):
            tunnel = self._inventory.tunnels[user]
            if isinstance(tunnel.parts, GateParts):  # its packets look otherwise now
                await self._update_tunnel(tunnel.tunnel)

    def _hold_sa(self, sa: EngineSa, entry: SadEntry) -> None:
        self._inventory.sas[sa.key] = HeldSa(sa, entry)
        self._journal.put("sa", str(sa.key), sa_row(SaRecord.of(sa, entry.sad_id)))

    async def _delete_sa(self, key: SaKey) -> None:
        held = self._inventory.sas.get(key)
        if held is None:
            raise EngineError(f"SA {key} is unknown to VPP")
        await SaDescriptor(self._api).delete(held.entry)
        if held.sa.direction is Direction.OUT and not await self._has_sent(key, held):
            self._used_keys.forget(held.sa)
        del self._inventory.sas[key]
        self._journal.remove("sa", str(key))

    async def _has_sent(self, key: SaKey, held: HeldSa) -> bool:
        """VPP zeroes a counter when its place is taken by a new SA, so it can still be read after the delete."""
        try:
            traffic = await asyncio.to_thread(self._traffic.read, {key: held.entry})
        except EngineError:
            return True
        return traffic[key].packets > 0

    def _next_sad_id(self) -> int:
        self._sad_id += 1
        if self._sad_id > LAST_SAD_ID:
            raise EngineError("VPP's SA numbers are used up - restart VPP")
        if self._sad_id > self._reserved:
            self._reserved = self._sad_id + SAD_ID_BLOCK
            self._journal.put("sad-ids", "", {"highest": self._reserved})
        return self._sad_id

    # Next hops

    async def _create_hop(self, hop: NextHop) -> None:
        if hop.key in self._inventory.hops:
            raise EngineError(f"next hop for {hop.key} exists already")
        await self._place_hop(hop)

    async def _place_hop(self, hop: NextHop) -> None:
        links, _ = self._opened()
        index = links.wan.get(hop.interface)
        if index is None:
            raise EngineError(f"next hop for {hop.key}: {hop.interface} is not one of the WAN interfaces")
        async with AsyncExitStack() as undo:
            if hop.local not in self._inventory.locals:
                address = LocalAddress(index, hop.local)
                await LocalAddressDescriptor(self._api).create(address)
                undo.push_async_callback(LocalAddressDescriptor(self._api).delete, address)
            neighbour = Neighbour(index, hop.gateway, hop.mac.lower())
            await NeighbourDescriptor(self._api).create(neighbour)
            await RouteDescriptor(self._api).create(Route(OUTER_TABLE, host(hop.key), index, hop.gateway))
            undo.pop_all()
        self._inventory.locals.setdefault(hop.local, index)
        self._inventory.hops[hop.key] = hop
        self._journal.put("hop", str(hop.key), hop_row(hop))

    async def _update_hop(self, hop: NextHop) -> None:
        old = self._inventory.hops.get(hop.key)
        if old is None:
            raise EngineError(f"next hop for {hop.key} is unknown to VPP")
        await self._place_hop(hop)
        await self._release_hop(old)

    async def _delete_hop(self, key: IpAddress) -> None:
        hop = self._inventory.hops.get(key)
        if hop is None:
            raise EngineError(f"next hop for {key} is unknown to VPP")
        links, _ = self._opened()
        await RouteDescriptor(self._api).delete(Route(OUTER_TABLE, host(key), links.wan[hop.interface], hop.gateway))
        del self._inventory.hops[key]
        self._journal.remove("hop", str(key))
        await self._release_hop(hop)

    async def _release_hop(self, hop: NextHop) -> None:
        """Take away the neighbour and our own address once no other next hop needs them."""
        links, _ = self._opened()
        others = self._inventory.hops.values()
        if not any((other.interface, other.gateway) == (hop.interface, hop.gateway) for other in others):
            await NeighbourDescriptor(self._api).delete(
                Neighbour(links.wan[hop.interface], hop.gateway, hop.mac.lower())
            )
        if not any(other.local == hop.local for other in others):
            index = self._inventory.locals.pop(hop.local)
            await LocalAddressDescriptor(self._api).delete(LocalAddress(index, hop.local))

    # Tunnels

    async def _create_tunnel(self, tunnel: Tunnel) -> None:
        if tunnel.key in self._inventory.tunnels:
            raise EngineError(f"tunnel {tunnel.key} exists already")
        _, builder = self._opened()
        outbound, inbound = self._resolve(tunnel)
        way = self._opened_gates().next_way(whole=self._is_whole(tunnel))
        if self._is_transport(tunnel) or (self._by_spd and tunnel.interface is None and may_pass(inbound)):
            await self._change_gated(tunnel, way, outbound, inbound)
            return
        parts = await builder.build(outbound.sad_id, _sad_ids(inbound), self._wanted(tunnel, way, outbound))
        self._hold_tunnel(HeldTunnel(tunnel, parts))

    async def _change_gated(self, tunnel: Tunnel, way: int, outbound: SadEntry, inbound: tuple[SadEntry, ...]) -> None:
        parts = GateParts.of(way, tunnel, outbound, inbound)
        await self._opened_gates().change(way, parts)
        self._hold_tunnel(HeldTunnel(tunnel, parts))

    async def _update_tunnel(self, tunnel: Tunnel) -> None:
        held = self._inventory.tunnels.get(tunnel.key)
        if held is None:
            raise EngineError(f"tunnel {tunnel.key} is unknown to VPP")
        _, builder = self._opened()
        outbound, inbound = self._resolve(tunnel)
        wanted = self._wanted(tunnel, held.parts.way, outbound)
        if _vlan(tunnel) != _vlan(held.tunnel) or not self._goes_on(held, tunnel, wanted, inbound):
            await self._make_anew(tunnel)
            return
        if isinstance(held.parts, GateParts):
            await self._change_gated(tunnel, held.parts.way, outbound, inbound)
            return
        door, index = held.parts.door, held.parts.interface.sw_if_index
        parts = builder.parts(index, outbound.sad_id, _sad_ids(inbound), wanted, door=door, outer=held.parts.outer)
        self._hold_tunnel(HeldTunnel(tunnel, await builder.change(held.parts, parts)))

    async def _make_anew(self, tunnel: Tunnel) -> None:
        """With the overlays over it: they may have to send another way."""
        overlays, over = self._opened_overlays(), self._inventory.over(tunnel.key)
        held = [self._inventory.overlays[key].overlay for key in over]
        for overlay in held:
            await overlays.delete(overlay.key, self._inventory)
        await self._delete_tunnel(tunnel.key)
        await self._create_tunnel(tunnel)
        for overlay in held:
            await overlays.create(overlay, self._inventory)

    async def _delete_tunnel(self, key: TunnelId) -> None:
        held = self._inventory.tunnels.get(key)
        if held is None:
            raise EngineError(f"tunnel {key} is unknown to VPP")
        _, builder = self._opened()
        if isinstance(held.parts, GateParts):
            await self._opened_gates().change(held.parts.way, None)
        else:
            await builder.demolish(held.parts)
        self._inventory.drop(key)
        self._journal.remove("tunnel", str(key))

    def _goes_on(self, held: HeldTunnel, tunnel: Tunnel, wanted: Wanted, inbound: tuple[SadEntry, ...]) -> bool:
        """Whether a tunnel can have its SAs where it stands: in the same mode, of hosts or not as before, and with the
        same headers before ESP.
        """
        if self._is_transport(held.tunnel) is not self._is_transport(tunnel):
            return False
        if is_whole_way(held.parts.way) is not self._is_whole(tunnel):
            return False
        return may_pass(inbound) if isinstance(held.parts, GateParts) else wanted.begins_with(held.parts.interface)

    def _is_whole(self, tunnel: Tunnel) -> bool:
        return tunnel.hosts or self._is_transport(tunnel)

    def _is_transport(self, tunnel: Tunnel) -> bool:
        return self._inventory.sas[tunnel.outbound].sa.transport

    def _wanted(self, tunnel: Tunnel, way: int, outbound: SadEntry) -> Wanted:
        """What is to be by an interface of its own; one of hosts sends by the gates, as this ``way``."""
        sa = self._inventory.sas[tunnel.outbound].sa
        gate = GateParts.of(way, tunnel, outbound, ()) if tunnel.hosts else None
        return Wanted.of(tunnel, sa, self._inventory.diversions(tunnel.key), gate)

    def _hold_tunnel(self, held: HeldTunnel) -> None:
        self._inventory.hold(held)
        self._journal.put("tunnel", str(held.tunnel.key), tunnel_row(held.record))

    def _resolve(self, tunnel: Tunnel) -> tuple[SadEntry, tuple[SadEntry, ...]]:
        """The SAs of a tunnel. Raises EngineError for what is missing, misdirected or taken."""
        if tunnel.remote not in self._inventory.hops:
            raise EngineError(f"tunnel {tunnel.key}: no next hop for {tunnel.remote} - create it first")
        if not 1 <= len(tunnel.inbound) <= MAX_INBOUND:
            raise EngineError(f"tunnel {tunnel.key}: {len(tunnel.inbound)} inbound SAs, VPP takes 1 to {MAX_INBOUND}")
        self._check_overlap(tunnel)
        inbound = tuple(self._entry_of(tunnel, key, Direction.IN) for key in tunnel.inbound)
        outbound = self._entry_of(tunnel, tunnel.outbound, Direction.OUT)
        sas = [self._inventory.sas[key].sa for key in (tunnel.outbound, *tunnel.inbound)]
        if len({sa.transport for sa in sas}) > 1:
            raise EngineError(f"tunnel {tunnel.key} has SAs of both modes - leave it to the kernel")
        if sas[0].transport and tunnel.interface is not None:
            raise EngineError(
                f"tunnel {tunnel.key} of {tunnel.interface} is of transport mode - leave it to the kernel"
            )
        if tunnel.header is not None:
            self._check_header(tunnel, sas[0])
        gre = {sa.gre for sa in sas}
        if len(gre) > 1 or (True in gre and tunnel.interface is None):
            raise EngineError(f"tunnel {tunnel.key}: GRE is of all SAs of a tunnel with an interface")
        return outbound, inbound

    def _check_header(self, tunnel: Tunnel, sa: EngineSa) -> None:
        if tunnel.interface is None or sa.gre or sa.transport:
            raise EngineError(f"tunnel {tunnel.key}: a device's header is of tunnel mode with an interface")
        if tunnel.header is not None and tunnel.header.gre and not self._api.knows(GRE):
            raise EngineError(f"tunnel {tunnel.key}: GRE without VPP's plugin is left to the kernel")

    def _check_overlap(self, tunnel: Tunnel) -> None:
        """Raises EngineError if a packet would match two tunnels."""
        if tunnel.interface is not None:
            self._check_interface(tunnel, tunnel.interface)
            return
        held = self._inventory.tunnels.get(tunnel.key)
        itself = held.parts.way if held else None
        _, builder = self._opened()
        if found := builder.encap.map.conflict(itself, tunnel.selectors, whole=tunnel.hosts):
            selector, other = found
            raise EngineError(
                f"tunnel {tunnel.key}: packets of {selector} belong to tunnel {self._inventory.at(other)} as well"
                " - leave it to the kernel"
            )

    def _check_interface(self, tunnel: Tunnel, interface: XfrmInterface) -> None:
        for other in self._inventory.tunnels.values():
            if other.tunnel.key != tunnel.key and _vlan(other.tunnel) == interface.vlan:
                raise EngineError(f"tunnel {tunnel.key}: {interface} is that of tunnel {other.tunnel.key}")
        for key in self._inventory.overlays:
            if key.interface.vlan == interface.vlan:
                raise EngineError(f"tunnel {tunnel.key}: {interface} has the VLAN ID of the {key}")

    def _entry_of(self, tunnel: Tunnel, key: SaKey, direction: Direction) -> SadEntry:
        held = self._inventory.sas.get(key)
        if held is None:
            raise EngineError(f"tunnel {tunnel.key}: SA {key} is missing - create it first")
        if held.sa.direction is not direction:
            raise EngineError(f"tunnel {tunnel.key}: SA {key} is not {direction}bound")
        return held.entry


def _vlan(tunnel: Tunnel) -> int:
    return 0 if tunnel.interface is None else tunnel.interface.vlan


def _sad_ids(entries: Iterable[SadEntry]) -> frozenset[int]:
    return frozenset(entry.sad_id for entry in entries)
