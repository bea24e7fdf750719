"""Keeps the firewall in the data path as configured: rows, docks, routes, schedules. Ends sessions, tells of them."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from datetime import datetime
from typing import Any

import structlog
from pyroute2 import AsyncIPRoute

from ipsec_gw.errors import IpsecGwError
from ipsec_gw.firewall import collector as collecting
from ipsec_gw.firewall.ageing import Close, CloseReason, Filter
from ipsec_gw.firewall.collector import Collector
from ipsec_gw.firewall.pool_mover import PoolMover
from ipsec_gw.firewall.pools import PoolWatch, TranslatorEngine, doubts
from ipsec_gw.ike.messages import XFRMNLGRP_POLICY
from ipsec_gw.ike.xfrm import XfrmMonitor, XfrmSocket
from ipsec_gw.mirror import proxy
from ipsec_gw.mirror.kernel import KernelView
from ipsec_gw.mirror.ports import INTERFACES, ROUTES, Changes, local_addresses, port_infos
from ipsec_gw.model.firewall import TRANSLATOR_PORT, TUNNEL_INTERFACES, Ruleset
from ipsec_gw.observe.carriers import Carriers
from ipsec_gw.observe.flowlog import Decoder, to_json
from ipsec_gw.observe.sessions import Query, by_engine, chosen_by, sessions_view
from ipsec_gw.ownership.uplink import (
    KERNEL_END,
    TRANSLATOR_END,
    TUNNEL_PORT,
    raise_translator,
    raise_tunnel_port,
)
from xdp_steer.compile.changes import Change, plan
from xdp_steer.compile.ids import Ids, assign
from xdp_steer.compile.rows import PortInfo
from xdp_steer.compile.ruleset import compile_ruleset
from xdp_steer.compile.schedule import next_change
from xdp_steer.compile.screens import limited_zones
from xdp_steer.compile.translators import translators_of
from xdp_steer.compile.tunnels import tunnel_lists
from xdp_steer.events import EventReader
from xdp_steer.gateway import Role, Steering
from xdp_steer.mirror import Mirror
from xdp_steer.session_counts import SessionCounts
from xdp_steer.sessions import SessionTable

_SETTLE_SECONDS = 0.05
"""Changes that come together are followed together."""
_RETRY_SECONDS = 0.5
_ANSWERS_PER_SECOND = 1000

log = structlog.get_logger()
flow_log = structlog.get_logger("flow")


class Keeper:
    """The firewall of a running gateway. ``wan`` are interfaces that ESP comes and goes by; ``kernel`` tells the IPsec
    policies, None for no IPsec at all; ``translator`` is VPP, for the pools that are its own.
    """

    def __init__(
        self,
        steering: Steering,
        ruleset: Ruleset,
        wan: frozenset[str],
        kernel: XfrmSocket | None = None,
        translator: TranslatorEngine | None = None,
    ) -> None:
        self.steering = steering
        self._firewall = steering.firewall
        self._wan = wan
        self._kernel = kernel
        self._tunnels = steering.tunnels
        self._table = SessionTable(steering.sessions_map)
        counts = SessionCounts(steering.session_counts_map)
        self._collector = Collector(self._table, ruleset.sessions, self._tell_closed, session_counts=counts)
        self._offset_ns = time.time_ns() - time.monotonic_ns()
        self.pools = PoolWatch(steering, translator, self._dock_translator)
        self.mover = PoolMover(steering.pools)
        self._dirty = asyncio.Event()
        self._routes = asyncio.Event()
        self._policies = asyncio.Event()
        self._lock = asyncio.Lock()
        self._unmirrored = 0
        self._doubted: set[str] = set()
        self._former: Ids | None = None  # what numbers meant, while sessions of what is gone are ended
        self.ruleset = ruleset
        self.missing: frozenset[str] = frozenset()

    async def apply(self, ruleset: Ruleset | None = None) -> None:
        """Make a ruleset (or the present one on the interfaces of this moment) hold, without a gap.

        Raises CompileError and SteeringError; the one before holds on then.
        """
        async with self._lock, AsyncIPRoute() as route:  # a socket of its own: on one, two dumps at once are refused
            wanted = ruleset or self.ruleset
            before = self._firewall.ids()
            ids = assign(before, wanted)
            self.steering.set_tunnel_port(*await raise_tunnel_port(route))
            if translators_of(wanted):
                self.steering.set_translator_port(await raise_translator(route))
            infos = await self._infos(route, wanted)
            mirrors = {term.mirror for term in wanted.filter_terms if term.mirror}  # not docked: they are in no zone
            others = await port_infos(route, mirrors, self.steering.is_generic, self._wan)
            rows = compile_ruleset(wanted, ids, {**others, **infos}, now=datetime.now())
            here = await local_addresses(route)
            self.steering.set_local(here)
            self._warn(doubts(translators_of(wanted), here, []))
            changed = self._firewall.apply(rows, ids)
            await self._dock(route, infos)
            self.pools.want(wanted)
            self.mover.want(wanted)
            if not changed and wanted == self.ruleset:
                await proxy.hold(route, (await proxy.wanted(route, wanted)).given)
                return
            self.ruleset = wanted
            await asyncio.to_thread(self._collector.configure, wanted.sessions, limited_zones(rows.screens))
            if self._wan and not any(zone.tunnels for zone in wanted.zones):
                log.warning("no zone has tunnels = true: what comes out of tunnels is dropped, nothing goes into them")
            await asyncio.to_thread(self._end_orphaned, before, ids)
            await proxy.hold(route, (await proxy.wanted(route, wanted)).given)  # last: nobody is attracted before
            log.info("firewall applied", zones=len(wanted.zones), policies=len(wanted.policies))

    async def follow_policies(self) -> None:
        """Bring the IPsec policies of this moment to the data path. Raises XfrmError and SteeringError."""
        if self._kernel is None:
            return
        policies = await asyncio.to_thread(self._kernel.policies)
        self._warn(doubts(translators_of(self.ruleset), frozenset(), policies))
        found = tunnel_lists(policies)
        if self._tunnels.replace(found.lists):
            self.steering.routes_changed()
            for network in found.cut:
                log.warning("too many IPsec policies cover a network, the rest is left out", network=str(network))

    def changes(self, ruleset: Ruleset) -> list[Change]:
        """What a ruleset would change."""
        return plan(self.ruleset, ruleset)

    async def run(self) -> None:
        """Follow the kernel, the clock and the data path, until cancelled. Call :meth:`apply` once before."""
        loop = asyncio.get_running_loop()
        async with AsyncExitStack() as stack:
            events = EventReader(self.steering.events_map, self.steering.lost_events)
            stack.callback(events.close)
            self._listen(loop, stack, events.fileno(), lambda: self._tell_events(events))
            mirror = self.steering.mirror()
            stack.callback(mirror.close)
            self._listen(loop, stack, mirror.fileno(), lambda: self._mirror(mirror))
            for groups, event in ((INTERFACES, self._dirty), (ROUTES, self._routes)):
                changes = Changes(groups, event.set)
                stack.callback(changes.close)
                self._listen(loop, stack, changes.fileno(), changes.drain)
            if self._kernel is not None:
                monitor = XfrmMonitor(self._policies.set, (XFRMNLGRP_POLICY,))
                stack.callback(monitor.close)
                self._listen(loop, stack, monitor.fileno(), monitor.drain)
                self._policies.set()  # what changed before anybody listened
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(collecting.run(self._collector))
                tasks.create_task(self._follow_routes())
                tasks.create_task(self._follow_interfaces())
                tasks.create_task(self._follow_policies())
                tasks.create_task(self.pools.run())
                tasks.create_task(self.mover.run())

    def tunnel_zones(self) -> frozenset[int]:
        """Numbers of the zones that packets of tunnels come from and go to."""
        numbers = self._firewall.ids().zones
        return frozenset(numbers[zone.name] for zone in self.ruleset.zones if zone.tunnels and zone.name in numbers)

    def sessions(self, question: str, carriers: Carriers) -> dict[str, Any]:
        """The answer to `show sessions`. Raises ConfigError for a question that is none."""
        ids = self._firewall.ids()
        view = sessions_view(
            self._table,
            self._collector.counts,
            Query.parse(question),
            self._decoder(ids),
            {**ids.zones, "self": 0},
            carriers,
            time.monotonic_ns(),
        )
        return view.to_json()

    def clear_sessions(self, question: str, carriers: Carriers) -> dict[str, Any]:
        """End the sessions that `clear sessions` asks about; the answer says how many. Raises ConfigError."""
        query, now = Query.parse(question), time.monotonic_ns()
        chosen = chosen_by(query, {**self._firewall.ids().zones, "self": 0}, carriers, now)
        chosen = by_engine(self._table, chosen, query, carriers)
        return {"cleared": self._collector.close(chosen, CloseReason.CLEARED, now)}

    def counters(self) -> list[dict[str, Any]]:
        """Packets and octets of every rule, and of the screens that were hit, for `show firewall`."""
        rules = [
            (kind.name.lower().replace("_", "-"), name, count)
            for (kind, name), count in self._firewall.rule_counts().items()
        ]
        screens = [
            ("screen", f"{zone} {screen.label}", count)
            for (zone, screen), count in self._firewall.screen_counts().items()
            if count.packets
        ]
        return [
            {"kind": kind, "name": name, "packets": count.packets, "octets": count.octets}
            for kind, name, count in rules + screens
        ]

    async def _infos(self, route: AsyncIPRoute, ruleset: Ruleset) -> dict[str, PortInfo]:
        names = [TUNNEL_PORT, *(name for zone in ruleset.zones for name in zone.ports)]
        names += [TRANSLATOR_PORT] if translators_of(ruleset) else []
        infos = await port_infos(route, names, self.steering.is_generic, self._wan)
        missing = frozenset(names) - infos.keys() - {TUNNEL_INTERFACES[0]}  # that one comes with an engine
        if missing != self.missing:
            log.warning("interfaces of zones do not exist (yet)", interfaces=sorted(missing))
        self.missing = missing
        return infos

    async def _dock(self, route: AsyncIPRoute, infos: dict[str, PortInfo]) -> None:
        """A dock wherever there is a zone, after the rows that decide there; none where there is no zone any more."""
        names = (await KernelView(route).links()).names
        wanted = {names[info.ifindex] for info in infos.values() if info.ethernet}
        routed = {name for name, info in infos.items() if not info.ethernet}
        present = self.steering.docked(Role.WAN) | self.steering.docked(Role.INSIDE)
        for name in sorted(wanted - present):
            self.steering.dock(name, Role.WAN if name in self._wan else Role.INSIDE)
        for name in sorted(wanted - {KERNEL_END}):  # that one has settings of its own
            self.steering.relax(name)
        for name in sorted(name for name in routed if not self.steering.is_tapped(name)):
            self.steering.tap(name)
        for name in sorted(self.steering.docked(Role.INSIDE) - wanted):
            self.steering.undock(name)
        for name in sorted(self.steering.tapped() - routed):
            self.steering.untap(name)

    def _warn(self, warnings: Iterable[str]) -> None:
        """Each of them once."""
        for warning in warnings:
            if warning not in self._doubted:
                log.warning(warning)
            self._doubted.add(warning)

    async def _dock_translator(self) -> None:
        """VPP's end of the pair of NAT, before VPP takes it."""
        self.steering.dock(TRANSLATOR_END, Role.TO_TRANSLATOR)

    def _end_orphaned(self, before: Ids, now: Ids) -> None:
        """A number may be given to another zone or rule later: no session keeps that of one that is gone."""
        rules = frozenset(before.rules[name] for name in before.rules.keys() - now.rules.keys())
        zones = [Filter(zone=before.zones[name]) for name in before.zones.keys() - now.zones.keys()]
        self._former = before
        try:
            for chosen in (*zones, *([Filter(rules=rules)] if rules else [])):
                self._collector.close(chosen, CloseReason.POLICY_REMOVED, time.monotonic_ns())
        finally:
            self._former = None

    @staticmethod
    def _listen(loop: asyncio.AbstractEventLoop, stack: AsyncExitStack, fd: int, callback: Callable[[], None]) -> None:
        loop.add_reader(fd, callback)
        stack.callback(loop.remove_reader, fd)

    async def _follow_routes(self) -> None:
        while True:
            await self._routes.wait()
            self._routes.clear()
            self.steering.routes_changed()
            await asyncio.sleep(_SETTLE_SECONDS)

    async def _follow_policies(self) -> None:
        while True:
            await self._policies.wait()
            self._policies.clear()
            try:
                await self.follow_policies()
            except IpsecGwError as error:
                log.error("IPsec policies cannot be followed", reason=str(error))
                self._policies.set()
                await asyncio.sleep(_RETRY_SECONDS)

    async def _follow_interfaces(self) -> None:
        """Also when a schedule begins or ends."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._dirty.wait(), self._seconds_to_change())
            await asyncio.sleep(_SETTLE_SECONDS)
            self._dirty.clear()
            await self.apply()

    def _seconds_to_change(self) -> float | None:
        now = datetime.now()
        change = next_change(self.ruleset, now)
        return None if change is None else max(0.0, (change - now).total_seconds())

    def _decoder(self, *known: Ids) -> Decoder:
        """Names by number; the last that knows one decides."""
        zones = {number: name for ids in known for name, number in ids.zones.items()}
        rules = {number: name for ids in known for (_, name), number in ids.rules.items()}
        return Decoder(zones, rules, self._offset_ns)

    def _mirror(self, mirror: Mirror) -> None:
        mirror.send()
        lost = mirror.lost()
        if lost > self._unmirrored:
            log.warning("copies of packets are missing", since_the_start=lost)
        self._unmirrored = lost

    def _tell_events(self, events: EventReader) -> None:
        drained = events.read()
        if drained.lost or drained.malformed:
            log.warning("flow records are missing", ring_was_full=drained.lost, undecodable=drained.malformed)
        decoder = self._decoder(self._firewall.ids())
        for event in drained.events:
            flow_log.info("flow", record=to_json(decoder.event(event)))

    def _tell_closed(self, closed: Sequence[Close]) -> None:
        wanted = [close for close in closed if close.logged]
        if not wanted:
            return
        former = self._former
        decoder = self._decoder(self._firewall.ids(), *([former] if former else []))
        for close in wanted:
            flow_log.info("flow", record=to_json(decoder.close(close)))


def prepare(steering: Steering) -> None:
    """Numbers that are chosen once for the life of the maps: the seed of NAT's choices, the rate of answers."""
    steering.seed_firewall(secrets.randbits(32) or 1, _ANSWERS_PER_SECOND)
