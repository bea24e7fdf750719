"""`ipsec-gw run`: the daemon in the foreground. Stopping it changes nothing in the data path."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import resource
import signal
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, replace
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from ipsec_gw import __version__
from ipsec_gw.config.model import Config, EngineChoice
from ipsec_gw.config.summary import pools_view
from ipsec_gw.device_words import device_words
from ipsec_gw.engines.port import Counters
from ipsec_gw.errors import IpsecGwError, XfrmError
from ipsec_gw.firewall.keeper import Keeper
from ipsec_gw.gateway import Gateway, Paths, build, check_machine, remove_everything, vpp_runs
from ipsec_gw.ike.watcher import CharonWatcher
from ipsec_gw.model.charon import goes_by_policies
from ipsec_gw.model.ids import EngineName, SaKey
from ipsec_gw.model.snapshot import XfrmSa
from ipsec_gw.model.warmth import NOTHING
from ipsec_gw.observe import control, lock
from ipsec_gw.observe.carriers import Carriers
from ipsec_gw.observe.sdnotify import notify, watched
from ipsec_gw.observe.sessions import CLEAR as CLEAR_QUESTION
from ipsec_gw.observe.sessions import QUESTION as SESSIONS_QUESTION
from ipsec_gw.observe.sessions import sources_of, with_translations
from ipsec_gw.observe.views import (
    Carried,
    DockView,
    EngineView,
    GuardianView,
    GuardView,
    StatusView,
    SteerView,
    record_view,
    sa_view,
)
from ipsec_gw.ownership import hand
from ipsec_gw.ownership.attendant import Attendant, Service
from ipsec_gw.ownership.demand import Demand
from ipsec_gw.ownership.presence import Presence
from ipsec_gw.ownership.sentry import Sentry
from ipsec_gw.ownership.spared import Spared
from ipsec_gw.ownership.touch import Toucher
from ipsec_gw.reconcile.loop import reconcile_forever
from vpp_conf.process import NO_CORE
from xdp_steer.gateway import Steering

log = structlog.get_logger()

_HEARTBEAT_SECONDS = 0.5
"""Well below the age at which the egress guard stops holding newborn SPIs for us."""

_PACER_SECONDS = 0.1
_LOOK_SECONDS = 1.0
_MOVES_SECONDS = 0.25
_CANCEL_SECONDS = 0.5
_MOVE_SECONDS = 30.0


class Ending(Enum):
    """Why a run of the daemon ended: told to stop, told to go out of the way, or to be put together anew."""

    STOP = "stop"
    OFF = "off"
    REBUILD = "rebuild"


class Daemon:
    """One run of the daemon: its tasks, and its answers to `show` and `off`.

    ``better`` tells that another engine has become available, so that the gateway should be built anew; ``read``
    reads the configuration file again. ``hang_seconds`` is how long a hang of the engine may keep traffic, 0 for ever,
    ``away_seconds`` how long this daemon may be silent before the kernel sends in the engine's place, 0 for ever.
    ``run_dir`` is where the operator's hand is written down. ``demand`` is for an engine that runs only while it is
    needed: when, and how it is started.
    """

    def __init__(
        self,
        gateway: Gateway,
        charon: CharonWatcher,
        better: Callable[[], bool],
        read: Callable[[], Config] = Config,
        hang_seconds: float = 0.0,
        away_seconds: float = 0.0,
        run_dir: Path = Path("/run/ipsec-gw"),
        demand: tuple[Demand, Service] | None = None,
    ) -> None:
        self._gateway = gateway
        self._run_dir = run_dir
        self._hang_seconds = hang_seconds
        self._charon = charon
        self._better = better
        self._read = read
        self._stop = asyncio.Event()
        self._lost = asyncio.Event()
        self._pass_done = asyncio.Event()
        self._toucher = Toucher()
        self._ending = Ending.STOP
        self._passes = 0
        self._needed = False
        plumbing = gateway.plumbing
        self._presence = Presence(plumbing.steering, away_seconds) if plumbing is not None else None
        if self._presence is not None:
            gateway.reconciler.before_pass = partial(self._make_up_for_absence, self._presence)
        self._attendant = self._attend(*demand) if demand is not None else None

    async def run(self) -> Ending:
        """Run until there is a reason to end."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop.set)
        ears = (self._gateway.senses.monitor, self._gateway.senses.network)
        for ear in ears:
            loop.add_reader(ear.fileno(), ear.drain)
        if self._gateway.waiting is not None:
            loop.add_reader(self._gateway.waiting.reader.fileno(), self._gateway.waiting.take)
        try:
            async with asyncio.TaskGroup() as tasks:
                running = [
                    tasks.create_task(self._charon.watch()),
                    tasks.create_task(
                        reconcile_forever(
                            self._gateway.reconciler, self._gateway.senses.dirty, after_pass=self._after_pass
                        )
                    ),
                    tasks.create_task(self._heartbeat()),
                    tasks.create_task(self._look_at_engine()),
                    tasks.create_task(self._watch_moves()),
                    tasks.create_task(self._pace_rekeys()),
                ]
                if self._gateway.plumbing is not None:
                    running.append(tasks.create_task(self._sentry(self._gateway.plumbing.steering).run()))
                if self._gateway.keeper is not None:
                    running.append(tasks.create_task(self._gateway.keeper.run()))
                if self._attendant is not None:
                    running.append(tasks.create_task(self._attendant.run()))
                await self._stop.wait()
                await _cancel(running)
        finally:
            for ear in ears:
                loop.remove_reader(ear.fileno())
            if self._gateway.waiting is not None:
                loop.remove_reader(self._gateway.waiting.reader.fileno())
        return self._ending

    async def answer(self, question: str) -> Any:
        """Answer the control socket: ``sas``, ``status``, ``history``, ``sessions``, ``clear-sessions``, ``firewall``,
        ``nat``, ``reload``, ``plan``, ``fallback``, ``return`` or ``off``.
        """
        match question:
            case "firewall" | "nat" | "plan" | "reload":
                return await self._firewall(question)
            case str() if question.partition(" ")[0] in {SESSIONS_QUESTION, CLEAR_QUESTION}:
                return await self._sessions(question)
            case "sas":
                return {"sas": await self._sas()}
            case "status":
                return (await self._status()).to_json()
            case "history":
                return {"passes": [record_view(record) for record in self._gateway.reconciler.history]}
            case _:
                return await self._act(question)

    async def _act(self, question: str) -> Any:
        match question.partition(" ")[0]:
            case "off":
                self._end(Ending.OFF)
                return {}
            case hand.FALLBACK | hand.RETURN:
                return await self._move(question)
            case _:
                raise IpsecGwError(f"the daemon does not know '{question}' - it is older than this command")

    async def _sessions(self, question: str) -> Any:
        keeper = self._keeper()
        if not question.startswith(SESSIONS_QUESTION):
            return await asyncio.to_thread(keeper.clear_sessions, question, self._carriers(keeper))
        answer = await asyncio.to_thread(keeper.sessions, question, self._carriers(keeper))
        return with_translations(answer, await keeper.pools.translated(sources_of(answer)))

    async def _firewall(self, question: str) -> Any:
        if question == "nat":
            keeper = self._keeper()
            moves = keeper.mover.view()
            pools = [{**pool, "auto": moves.get(pool["name"])} for pool in pools_view(keeper.ruleset)]
            return {"pools": pools, **await keeper.pools.view()}
        if question == "firewall":
            keeper = self._keeper()
            return {
                "rules": keeper.counters(),
                "missing": sorted(keeper.missing),
                "lostEvents": keeper.steering.lost_events(),
            }
        return await self._reload(apply=question == "reload")

    async def _move(self, question: str) -> dict[str, Any]:
        """To the kernel by the operator's hand, or back; answers how many SAs that concerns when it has been done."""
        gateway, reconciler = self._gateway, self._gateway.reconciler
        if gateway.plumbing is None:
            raise IpsecGwError("the kernel carries everything already - no engine is in use")
        moved = hand.answer(question, reconciler.settings.moved, reconciler.snapshot)
        hand.save(self._run_dir, moved)
        gateway.decide_by(replace(reconciler.settings, moved=moved))
        with contextlib.suppress(TimeoutError):  # it goes on, and `show sas` tells
            async with asyncio.timeout(_MOVE_SECONDS):
                while reconciler.decided.moved != moved:
                    self._pass_done.clear()
                    await self._pass_done.wait()
        return {"inKernel": len(reconciler.moved), "inSync": reconciler.in_sync}

    def _keeper(self) -> Keeper:
        if self._gateway.keeper is None:
            raise IpsecGwError("no firewall runs - define zones in the configuration and restart the daemon")
        return self._gateway.keeper

    async def _reload(self, *, apply: bool) -> dict[str, Any]:
        """What the file says by now against what holds: the firewall, and what the operator decided about tunnels. The
        rest of ``[gateway]`` takes a restart.
        """
        config = await asyncio.to_thread(self._read)  # a large one takes longer than a heartbeat
        keeper, reconciler = self._gateway.keeper, self._gateway.reconciler
        if (config.firewall is None) is not (keeper is None):
            what = "takes the firewall away" if config.firewall is None else "brings a firewall"
            raise IpsecGwError(f"the configuration {what} - restart the daemon for that")
        changes = list(reconciler.settings.choices.changes(config.choices))
        if keeper is not None and config.firewall is not None:
            changes += [str(change) for change in keeper.changes(config.firewall)]
        outlook = reconciler.outlook(config.choices)
        if apply:
            if keeper is not None and config.firewall is not None:
                await keeper.apply(config.firewall)
            self._gateway.decide_by(replace(reconciler.settings, choices=config.choices))
        return {
            "changes": changes,
            "operations": [str(op) for op in outlook.due],
            "observed": [str(op) for op in outlook.observed],
            "vpp": self._attendant.words() if self._attendant is not None else "",
        }

    def _carriers(self, keeper: Keeper) -> Carriers:
        """What carries sessions, as of the last pass."""
        reconciler = self._gateway.reconciler
        return Carriers(
            reconciler.snapshot.policies,
            reconciler.verdicts,
            reconciler.snapshot.names,
            self._gateway.link.engine.name,
            keeper.tunnel_zones(),
        )

    async def _sas(self) -> list[dict[str, Any]]:
        """The last decisions with counters of this moment: a decision may be seconds old."""
        reconciler, link = self._gateway.reconciler, self._gateway.link
        now = {sa.key: sa for sa in await asyncio.to_thread(self._gateway.senses.kernel.sas)}
        await link.read_counters()
        carried = _carried(self._gateway, now.values())
        rows = [
            sa_view(
                replace(verdict, sa=now.get(verdict.sa.key, verdict.sa)),
                reconciler.snapshot.names,
                link.engine.name,
                carried,
            )
            for verdict in reconciler.verdicts
        ]
        return [asdict(row) for row in rows]

    async def _status(self) -> StatusView:
        gateway, reconciler = self._gateway, self._gateway.reconciler
        steering = gateway.steering
        capabilities, offer = gateway.link.capabilities, gateway.link.offer
        return StatusView(
            version=__version__,
            strongswan=self._charon.version,
            engine=EngineView(
                name=str(offer.name),
                note=capabilities.note if capabilities else "",
                absent=": ".join(part for part in (offer.absent, gateway.link.trouble) if part) if offer.absent else "",
                life=self._attendant.words() if self._attendant is not None else "",
            ),
            inSync=gateway.reconciler.in_sync,
            wan=tuple(link.name for link in gateway.plumbing.wan) if gateway.plumbing else (),
            tunnels=len({v.sa.reqid for v in gateway.reconciler.decision.verdicts}),
            overlays=device_words(
                reconciler.snapshot,
                reconciler.decision.verdicts,
                reconciler.decision.kept_devices,
                reconciler.in_place,
                offer.name,
            ),
            steer=tuple(
                SteerView(str(key), count.engine_packets, count.kernel_packets)
                for key, count in (steering.steer_counters() if steering else {}).items()
            ),
            guard=tuple(
                GuardView(str(key), count.passed, count.dropped, gateway.through(key))
                for key, count in (steering.guard_counters() if steering else {}).items()
            ),
            docks=tuple(
                DockView(name, count.to_engine, count.fell_to_kernel)
                for name in sorted(steering.docked() if steering else ())
                for count in ((steering.dock_counts(name),) if steering else ())
            ),
            verdicts={
                reason.label: count.packets for reason, count in (steering.verdicts() if steering else {}).items()
            },
            guardian=_guardian_view(gateway),
            netlinkOverruns=gateway.senses.monitor.overruns + gateway.senses.network.overruns,
            malformedMessages=gateway.senses.kernel.malformed + self._charon.malformed,
        )

    def _after_pass(self) -> None:
        if self._gateway.waiting is not None:
            self._gateway.waiting.room.settle()
            self._gateway.waiting.room.forget({sa.key for sa in self._gateway.reconciler.snapshot.sas})
        self._passes += 1
        if self._attendant is not None:
            self._needed = self._gateway.reconciler.needs_engine
        self._pass_done.set()
        state = "in sync" if self._gateway.reconciler.in_sync else "converging"
        carried = sum(1 for v in self._gateway.reconciler.decision.verdicts if not v.reason)
        status = f"STATUS={state}: {carried} of {len(self._gateway.reconciler.decision.verdicts)} SAs accelerated"
        notify(*(["READY=1", status] if self._passes == 1 else [status]))

    async def _heartbeat(self) -> None:
        while self._presence is not None:
            if self._presence.show():
                self._gateway.senses.dirty.set()
            if self._gateway.waiting is not None:
                self._gateway.waiting.room.settle()  # what nobody decides on waits no longer than the guard holds it
            await asyncio.sleep(_HEARTBEAT_SECONDS)

    async def _make_up_for_absence(self, presence: Presence) -> None:
        """Between two passes: none may lead anything to an engine that has just lost its claims."""
        reconciler = self._gateway.reconciler
        if await presence.make_up(self._gateway.link.begin_anew):
            reconciler.history.trouble("the daemon did not run for too long: the kernel took over what goes out")
            reconciler.distrust()

    async def _watch_moves(self) -> None:
        while self._gateway.moves is not None:
            await self._gateway.moves.look()
            await asyncio.sleep(_MOVES_SECONDS)

    def _attend(self, demand: Demand, service: Service) -> Attendant:
        reconciler = self._gateway.reconciler
        return Attendant(
            self._gateway.link,
            demand,
            service,
            needed=lambda: self._needed or self._has_pools,
            empty=lambda: reconciler.empty,
            settle=self._whole_pass,
            look=self._engine_lost,
            tell=reconciler.history.trouble,
        )

    async def _whole_pass(self) -> None:
        """Until a pass that has begun after this call has ended."""
        target = self._passes + 2  # one may be under way
        while self._passes < target:
            self._pass_done.clear()
            self._gateway.senses.dirty.set()
            await self._pass_done.wait()

    @property
    def _has_pools(self) -> bool:
        """Pools of VPP need it, whatever tunnels there are."""
        return self._gateway.keeper is not None and self._gateway.keeper.pools.wanted

    def _sentry(self, steering: Steering) -> Sentry:
        return Sentry(
            self._gateway.link,
            steering,
            self._hang_seconds,
            lost=self._engine_lost,
            tell=self._gateway.reconciler.history.trouble,
        )

    def _end(self, ending: Ending) -> None:
        self._ending = ending
        self._stop.set()

    async def _look_at_engine(self) -> None:
        link, losses = self._gateway.link, 0
        while not self._better():
            self._lost.clear()
            rest = await self._keep_warm()
            if link.losses != losses:
                losses = link.losses
                await self._gateway.bury()
                self._look_again()
            elif not link.up and (self._attendant is None or self._attendant.opens):
                try:
                    await link.open()
                    self._look_again()
                except IpsecGwError as error:
                    self._gateway.reconciler.history.trouble(f"the engine cannot be opened: {error}")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(rest):
                    await self._lost.wait()
        log.info("another engine has become available")
        self._end(Ending.REBUILD)

    async def _keep_warm(self) -> float:
        """Look at the engine and let the kernel's copies follow; seconds until the next time."""
        gateway, link = self._gateway, self._gateway.link
        losses, heard = link.losses, await link.hear()
        if gateway.exhaustion is not None:
            snapshot = gateway.reconciler.snapshot
            gateway.exhaustion.look(heard.counters, snapshot.sas, snapshot.local_addresses)
        if gateway.guardian is None or not heard.counters:
            return _LOOK_SECONDS
        alone = gateway.reconciler.had_alone() if gateway.guardian.unsettled(heard.counters) else frozenset()
        try:
            tick = await asyncio.to_thread(
                gateway.guardian.tick, heard, gateway.is_local, lambda: link.up and link.losses == losses, alone
            )
        except XfrmError as error:
            gateway.reconciler.history.trouble(f"charon does not see what the engine carries: {error}")
            return _LOOK_SECONDS
        if goes_by_policies(self._charon.version):
            await asyncio.to_thread(self._touch, gateway.guardian.moved)
        return tick.rest(_LOOK_SECONDS)

    def _touch(self, moved: frozenset[SaKey]) -> None:
        reconciler = self._gateway.reconciler
        nat = {sa.key for sa in reconciler.snapshot.sas if sa.encap is not None}
        self._toucher.touch(moved, reconciler.decision.objects, nat)

    def _engine_lost(self) -> None:
        if self._gateway.keeper is not None:
            self._gateway.keeper.pools.look_again()
        self._lost.set()
        self._look_again()

    def _look_again(self) -> None:
        self._gateway.reconciler.distrust()
        self._gateway.senses.dirty.set()

    async def _pace_rekeys(self) -> None:
        reconciler, spared = self._gateway.reconciler, Spared(self._charon.never_rekeyed, time.monotonic)
        while True:
            key = await self._next_rekey(spared)
            if key is not None:
                try:
                    self._gateway.senses.kernel.expire_soft(key)
                    log.info("asked charon for a rekey", sa=str(key))
                except XfrmError as error:
                    if error.errno != errno.ESRCH:  # else a rekey came by itself
                        reconciler.history.trouble(f"charon was not asked for a rekey of SA {key}: {error}")
            await asyncio.sleep(_PACER_SECONDS)

    async def _next_rekey(self, spared: Spared) -> SaKey | None:
        reconciler = self._gateway.reconciler
        pacer = reconciler.refusals.pacer
        if pacer.waiting:
            await spared.renew()
        moved, names = reconciler.moved, reconciler.snapshot.names
        return pacer.due(time.monotonic(), lambda key: key in moved or spared.has(key, names))


def _guardian_view(gateway: Gateway) -> GuardianView | None:
    if gateway.guardian is None or gateway.plumbing is None:
        return None
    last = gateway.guardian.last
    return GuardianView(last.carried, last.written, round(last.seconds, 4), gateway.plumbing.steering.engine_gone())


def _carried(gateway: Gateway, sas: Iterable[XfrmSa]) -> Mapping[SaKey, Carried]:
    """What the engine carried of each SA, and the kernel past the guard."""
    counters, guardian = gateway.link.counters(), gateway.guardian
    passed = gateway.steering.guard_counters() if gateway.steering else {}
    found = {}
    for sa in sas:
        total, guarded = counters.get(sa.key, Counters(0, 0)), passed.get(sa.key)
        told = guardian.told(sa.key, total) if guardian else NOTHING
        untold = guardian.untold(sa.key, total) if guardian else NOTHING
        own = guarded.passed if guarded else max(sa.lifetime.packets - told.packets, 0)
        found[sa.key] = Carried(total, untold, own)
    return found


async def _cancel(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Cancel until all have ended: a library below may swallow one cancellation."""
    while pending := [task for task in tasks if not task.done()]:
        for task in pending:
            task.cancel()
        await asyncio.wait(pending, timeout=_CANCEL_SECONDS)


async def run(config: Config, paths: Paths, read: Callable[[], Config] = Config) -> Ending:
    """Run the gateway in this process until it is told to stop, or off. Raises IpsecGwError if it cannot start.

    ``read`` reads the configuration again when a reload is asked for.
    """
    check_machine(paths)
    resource.setrlimit(resource.RLIMIT_CORE, NO_CORE)  # keys are going to be in our memory
    with lock.hold(paths.run_dir):
        async with watched():
            ending = await _run_until_told(config, paths, read)
    notify("STOPPING=1")
    return ending


async def _run_until_told(config: Config, paths: Paths, read: Callable[[], Config]) -> Ending:
    while (ending := await _run_once(config, paths, read)) is Ending.REBUILD:
        try:
            config = config.following(read())
        except IpsecGwError as error:
            log.warning("the configuration file cannot be used, what held goes on", reason=str(error))
    return ending


def _service(paths: Paths) -> Service:
    """What starts VPP is imported where it is needed: a daemon that comes back is to be there soon."""
    from vpp_conf.service import VppService  # noqa: PLC0415

    return VppService(paths.run_dir)


async def _run_once(config: Config, paths: Paths, read: Callable[[], Config]) -> Ending:
    charon = CharonWatcher(config.gateway.vici, seconds=config.gateway.vici_timeout)
    async with AsyncExitStack() as stack:
        await charon.connect()
        stack.push_async_callback(charon.close)
        gateway = await build(config, paths, charon, stack)
        waits_for_vpp = config.gateway.engine is EngineChoice.AUTO and gateway.plumbing is None
        service = _service(paths) if config.gateway.starts_vpp and gateway.plumbing is not None else None
        daemon = Daemon(
            gateway,
            charon,
            lambda: waits_for_vpp and vpp_runs(paths),
            read,
            hang_seconds=config.gateway.hang_seconds,
            away_seconds=config.gateway.daemon_away_seconds,
            run_dir=paths.run_dir,
            demand=(Demand(config.gateway.vpp_idle_seconds), service) if service is not None else None,
        )
        server = await control.serve(paths.run_dir, daemon.answer)
        stack.callback(lambda: control.socket_path(paths.run_dir).unlink(missing_ok=True))
        stack.callback(server.close)
        log.info(
            "running",
            engine=str(gateway.link.engine.name),
            wan=[link.name for link in gateway.plumbing.wan] if gateway.plumbing else [],
        )
        ending = await daemon.run()
        if ending is Ending.OFF or gateway.link.engine.name is EngineName.SOFT:
            # The soft engine ends with this process: what it carries is the kernel's before it goes.
            await gateway.link.read_counters()
            await gateway.bury()
            await gateway.reconciler.withdraw()
        if ending is Ending.OFF:
            await remove_everything(paths)
            if service is not None:
                await asyncio.to_thread(service.stop)
            log.info("off: everything is the kernel's again")
        return ending
