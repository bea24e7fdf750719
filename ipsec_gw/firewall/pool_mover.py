"""Measures what pools with the engine "auto" are asked for, and moves their new flows between XDP and VPP."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

import structlog

from ipsec_gw.firewall.pool_moves import LOOK_SECONDS, Asked, Meter, Rates, Standing, decide, seconds_to_move
from ipsec_gw.model.firewall import Moves, PoolEngine, Ruleset
from xdp_steer.compile.translators import translators_of
from xdp_steer.flow_layout import MAX_TAGS
from xdp_steer.tables import PoolCount

log = structlog.get_logger(__name__)


class Switches(Protocol):
    """The data path's side, by the tags of pools (:class:`xdp_steer.tables.PoolTable`)."""

    def is_vpps(self, tag: int) -> bool:
        """Whether new flows of that pool are VPP's."""

    def give(self, tag: int, *, to_vpp: bool) -> None:
        """Whose they are from now on."""

    def count(self, tag: int) -> PoolCount:
        """What the pool was asked for."""


@dataclass
class _Pool:
    tag: int
    moves: Moves
    standing: Standing
    meter: Meter
    rates: Rates = field(default_factory=Rates)


class PoolMover:
    """The pools with the engine "auto" of one gateway. ``clock`` are seconds that never go back, ``wall`` since 1970.

    Whether VPP is there is none of its business: while it is away, new flows of all pools are XDP's.
    """

    def __init__(
        self,
        switches: Switches,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._switches = switches
        self._clock = clock
        self._wall = wall
        self._pools: dict[str, _Pool] | None = None

    def want(self, ruleset: Ruleset) -> None:
        """From now on the pools of this ruleset. What is known of a pool by that name stays; at first, what an earlier
        daemon has left. Raises CompileError and SteeringError.
        """
        tags = {one.pool: one.tag for one in translators_of(ruleset)}
        auto = [pool for pool in ruleset.pools if pool.engine is PoolEngine.AUTO and pool.name in tags]
        self._pools = {pool.name: self._known(pool.name, tags[pool.name], pool.moves) for pool in auto}
        vpps = {pool.tag for pool in self._pools.values() if pool.standing.engine is PoolEngine.VPP}
        for tag in range(1, MAX_TAGS):  # also those that are nobody's: the next pool with the tag begins in XDP
            if self._switches.is_vpps(tag) != (tag in vpps):
                self._switches.give(tag, to_vpp=tag in vpps)

    def _known(self, name: str, tag: int, moves: Moves) -> _Pool:
        if self._pools is None:
            engine = PoolEngine.VPP if self._switches.is_vpps(tag) else PoolEngine.XDP
            return _Pool(tag, moves, Standing(engine, self._clock()), Meter())
        before = self._pools.get(name)
        if before is None:
            return _Pool(tag, moves, Standing(PoolEngine.XDP, self._clock()), Meter())
        if before.tag == tag:
            return _Pool(tag, moves, before.standing, before.meter, before.rates)
        return _Pool(tag, moves, before.standing, Meter(), before.rates)  # its counters are others now

    async def run(self) -> None:
        """Measure and move, until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(LOOK_SECONDS)

    def look(self) -> None:
        """Measure once, and move what is to be moved. Raises SteeringError."""
        for name, pool in (self._pools or {}).items():
            count, now = self._switches.count(pool.tag), self._clock()
            rates = pool.meter.add(Asked(now, count.flows, count.packets, count.refused))
            if rates is None:
                continue
            before, pool.rates = pool.standing, rates
            pool.standing = decide(before, rates, now, pool.moves)
            if pool.standing.engine is not before.engine:
                self._switches.give(pool.tag, to_vpp=pool.standing.engine is PoolEngine.VPP)
                log.info(
                    "new flows of a pool move",
                    pool=name,
                    engine=pool.standing.engine.value,
                    new_flows_per_second=round(rates.flows),
                    packets_per_second=round(rates.packets),
                    without_a_port_per_second=round(rates.refused, 1),
                )

    def view(self) -> dict[str, dict[str, Any]]:
        """For `show nat`, by the names of pools: who has new flows and since when, what is asked for in a second, what
        would move it, and in how many seconds at the soonest.
        """
        now, wall = self._clock(), self._wall()
        return {name: _view(pool, now, wall) for name, pool in (self._pools or {}).items()}


def _view(pool: _Pool, now: float, wall: float) -> dict[str, Any]:
    since = datetime.fromtimestamp(wall - (now - pool.standing.since), UTC)
    at_vpp = pool.standing.engine is PoolEngine.VPP
    return {
        "engine": pool.standing.engine.value,
        "since": since.isoformat(timespec="seconds").replace("+00:00", "Z"),
        "newFlowsPerSecond": round(pool.rates.flows),
        "packetsPerSecond": round(pool.rates.packets),
        "calm": pool.standing.calm_since is not None,
        "nextMove": {
            "engine": (PoolEngine.XDP if at_vpp else PoolEngine.VPP).value,
            "seconds": round(seconds_to_move(pool.standing, now, pool.moves), 1),
            "newFlowsPerSecond": pool.moves.demote_flows if at_vpp else pool.moves.promote_flows,
            "packetsPerSecond": pool.moves.demote_packets if at_vpp else pool.moves.promote_packets,
        },
    }
