"""NAT pools in the VPP of a runtime directory, by a connection of their own: ESP's is busy with SAs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from ipaddress import IPv4Address
from pathlib import Path

from ipsec_gw.errors import EngineError, EngineUnavailable
from ipsec_gw.firewall.pools import Held, Translated
from ipsec_gw.model.firewall import Ruleset, Service
from ipsec_gw.ownership.uplink import TRANSLATOR_END
from vpp_conf.api import VppApi
from vpp_conf.descriptors.nat import NatTableDescriptor, NatTimeouts, Translation, translations
from vpp_conf.locate import locate_vpp
from vpp_conf.nat import FIRST_TABLE, NatPlan, NatPool, drop_nat, hold_nat
from vpp_conf.paths import VppPaths
from vpp_conf.reality import planned_reception
from vpp_conf.stats import StatsSegment
from xdp_steer.compile.translators import Translator, translators_of
from xdp_steer.flow_layout import TRANSLATOR_MTU, TRANSLATOR_OUTSIDE, TRANSLATOR_PORT_MAC

TRANSLATION_BYTES = 512
"""Of VPP's heap; 470 were measured with VPP 26.06. VPP sets them aside for all translations at once, and ends itself if
they are not there.
"""

HEAP_SHARE = 2
"""Of the free heap, translations get one part in so many."""

HEAP, HEAP_FREE = "/mem/main heap", 2
"""A counter of VPP's, and the place in it (``STAT_MEM_FREE``, ``vlib/stats/provider_mem.c``)."""

TRANSLATIONS = "/nat44-ed/total-sessions"

_TCP, _UDP = 6, 17


class VppTranslator:
    """Holds pools in VPP. Connects when it is asked for something, also after a restart of VPP."""

    def __init__(self, run_dir: Path) -> None:
        self._paths = VppPaths(run_dir.resolve())
        self._api = VppApi(self._paths.api_socket, locate_vpp().api_dir)
        self._plan: NatPlan | None = None
        self._life = 0

    async def hold(self, ruleset: Ruleset) -> Held:
        """Make VPP translate with the pools of a ruleset that are VPP's. Raises EngineError and EngineUnavailable."""
        life = await self._connect()
        sessions = await self._room(ruleset.sessions.maximum)
        plan = nat_plan(ruleset, sessions)
        ended = await hold_nat(self._api, plan, planned_reception(self._paths))
        moved = self._plan is not None and self._life == life and _moved(self._plan.pools, plan.pools)
        self._plan, self._life = plan, life
        return Held(life, ended=ended or moved, sessions=sessions)

    async def look(self) -> int:
        """The life of the VPP that answers. Raises EngineUnavailable."""
        return await self._connect()

    async def release(self) -> None:
        """VPP translates no more. Raises EngineError and EngineUnavailable."""
        await self._connect()
        await drop_nat(self._api, TRANSLATOR_OUTSIDE)
        self._plan = None

    async def translated(self, sources: Iterable[IPv4Address], tags: Iterable[int]) -> list[Translated]:
        """What VPP makes of flows from these addresses; it is asked for each of them and pool. Raises EngineError."""
        found: list[Translated] = []
        for tag in tags:
            for source in sources:
                told = await translations(self._api, FIRST_TABLE + tag, source)
                found += [_translated(one) for one in told]
        return found

    async def count(self) -> int:
        """How many translations VPP has. Raises EngineError."""
        return sum(await asyncio.to_thread(self._told, TRANSLATIONS))

    async def close(self) -> None:
        """Disconnect; VPP carries on with what it has."""
        await self._api.close()

    async def _connect(self) -> int:
        await self._api.connect()
        if not self._api.epoch:
            raise EngineUnavailable("the VPP that answers has no process here")
        return self._api.epoch

    async def _room(self, wanted: int) -> int:
        """How many translations a thread may have: what is wanted, if VPP's heap holds so many. A table that there is
        goes with all of its translations when it gets another size.
        """
        tables = await NatTableDescriptor(self._api).retrieve()
        present = tables[0].sessions if tables else 0
        heap = await asyncio.to_thread(self._told, HEAP)  # asked by the CLI, VPP would stand still for half a second
        if not any(heap):
            raise EngineError("VPP does not tell its memory yet")
        free = heap[HEAP_FREE]
        threads = len((await self._api.call("show_threads")).thread_data)  # the main one has room set aside as well
        return room(wanted, present, free // threads)

    def _told(self, name: str) -> list[int]:
        """Counters out of VPP's statistics, without asking VPP. Raises EngineError."""
        segment = StatsSegment(self._paths.stats_socket)
        try:
            return segment.simple(name)
        finally:
            segment.close()


def room(wanted: int, present: int, free: int) -> int:
    """Translations of a thread. A table for ``present`` ones (or 0) is there, and ``free`` bytes of VPP's heap."""
    if present >= wanted:
        return wanted
    most = present + free // HEAP_SHARE // TRANSLATION_BYTES
    return wanted if most >= wanted else present or most


def nat_plan(ruleset: Ruleset, sessions: int) -> NatPlan:
    """What VPP shall translate for a ruleset, with room for so many translations of a thread."""
    return NatPlan(
        interface=TRANSLATOR_END,
        kernel_mac=TRANSLATOR_PORT_MAC.hex(":"),
        outside=TRANSLATOR_OUTSIDE,
        mtu=TRANSLATOR_MTU,
        sessions=sessions,
        timeouts=nat_timeouts(ruleset),
        pools=tuple(_pool(one) for one in translators_of(ruleset)),
    )


def nat_timeouts(ruleset: Ruleset) -> NatTimeouts:
    """Those of the firewall's sessions, which end first: VPP has one for all services of a protocol, so the longest."""
    timeouts = ruleset.sessions.timeouts
    return NatTimeouts(
        udp=max(timeouts.udp, *_of_applications(ruleset, _UDP)),
        tcp_established=max(timeouts.tcp_established, *_of_applications(ruleset, _TCP)),
        tcp_transitory=max(timeouts.tcp_opening, timeouts.tcp_closing, timeouts.tcp_time_wait, timeouts.tcp_closed),
        icmp=timeouts.icmp,
    )


def _of_applications(ruleset: Ruleset, protocol: int) -> list[int]:
    services: list[Service] = [service for policy in ruleset.policies for service in policy.services]
    return [0, *(one.timeout for one in services if one.timeout and one.protocol in (protocol, None))]


def _pool(one: Translator) -> NatPool:
    return NatPool(one.tag, one.first, one.last)


def _moved(before: tuple[NatPool, ...], now: tuple[NatPool, ...]) -> bool:
    """Does a tag stand for other addresses than before? More of them are fine."""
    known = {pool.tag: pool for pool in now}
    return any(
        (other := known.get(pool.tag)) is None or other.first > pool.first or other.last < pool.last for pool in before
    )


def _translated(one: Translation) -> Translated:
    return Translated(one.protocol, one.inside, one.outside, one.far)
