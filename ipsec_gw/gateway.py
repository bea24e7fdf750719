"""The composition of a gateway: which parts there are and how they are joined. The only place that builds them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import structlog
from pyroute2 import AsyncIPRoute

from ipsec_gw.config.model import Config, EngineChoice
from ipsec_gw.desired import Moved, Settings
from ipsec_gw.engines.kernel import KernelEngine
from ipsec_gw.engines.port import Capabilities, Engine, EngineContext, Link
from ipsec_gw.errors import EngineUnavailable, EnvironmentMissing, IpsecGwError, XfrmError
from ipsec_gw.firewall.keeper import Keeper, prepare
from ipsec_gw.firewall.pools import TranslatorEngine
from ipsec_gw.ike.aevent import StateSocket
from ipsec_gw.ike.observer import Observer
from ipsec_gw.ike.watcher import CharonWatcher
from ipsec_gw.ike.xfrm import XfrmMonitor, XfrmSocket
from ipsec_gw.mirror import proxy
from ipsec_gw.mirror.changes import NetworkMonitor
from ipsec_gw.mirror.kernel import KernelView
from ipsec_gw.mirror.links import Interface
from ipsec_gw.model.algorithms import ALGORITHMS
from ipsec_gw.model.choices import PolicyMode
from ipsec_gw.model.ids import EngineName, SaKey
from ipsec_gw.model.objects import ManagedObject, ObjectKey
from ipsec_gw.model.snapshot import LeadLimits, Snapshot, XfrmPolicy
from ipsec_gw.model.warmth import NOTHING, Volume
from ipsec_gw.ownership import hand, handovers
from ipsec_gw.ownership.bypass import Bypass, remove_bypass
from ipsec_gw.ownership.engine_link import EngineLink
from ipsec_gw.ownership.exhaustion import Exhaustion
from ipsec_gw.ownership.guard import GuardDriver
from ipsec_gw.ownership.guardian import Guardian, expirer
from ipsec_gw.ownership.handovers import Handovers
from ipsec_gw.ownership.hosts import HostsDriver
from ipsec_gw.ownership.interfaces import InterfaceDriver
from ipsec_gw.ownership.lead import LeadDriver
from ipsec_gw.ownership.moves import MoveWatch
from ipsec_gw.ownership.refusals import Refusals
from ipsec_gw.ownership.rekey import RekeyPacer
from ipsec_gw.ownership.steer import SteerDriver
from ipsec_gw.ownership.uplink import (
    ENGINE_END,
    KERNEL_END,
    raise_uplink,
    remove_translator,
    remove_tunnel_port,
    remove_uplink,
)
from ipsec_gw.ownership.waiting import WaitingRoom
from ipsec_gw.ownership.ways import PacketWays
from ipsec_gw.reconcile.delta import DeltaTracker
from ipsec_gw.reconcile.execute import Drivers, Executor
from ipsec_gw.reconcile.loop import Reconciler
from ipsec_gw.reconcile.record import History
from vpp_conf.paths import VppPaths
from xdp_steer.gateway import Role, Steering
from xdp_steer.waiting import WaitingReader
from xdp_steer.xfrmi import Uplink

log = structlog.get_logger()


NOT_MOVED = Moved()

VPP_ABILITIES = Capabilities(
    algorithms=frozenset(ALGORITHMS),
    esn=True,
    udp_encap=True,
    max_replay_window=4096,
    steers=True,
    note="",
    gre=True,
    vxlan=True,
)
"""What a VPP that has not run yet is started for. Once it has run, what it told holds."""

AT_A_TIME = 256
"""Packets that waited, between two other things that the daemon does."""

WHOLE_RING = 4096
"""No more have room in the ring at a time."""


@dataclass(frozen=True, slots=True)
class Paths:
    """Where a gateway keeps its runtime files and its pins."""

    run_dir: Path
    pins: Path


def check_machine(paths: Paths) -> None:
    """Raise EnvironmentMissing, before anything is touched, if this process could not do its work."""
    if os.geteuid() != 0:
        raise EnvironmentMissing("not root - XDP, AF_XDP and XFRM need it: run with sudo or by systemd")
    bpffs = paths.pins.parent
    if not _is_bpffs(bpffs):
        raise EnvironmentMissing(f"{bpffs} is not a bpffs - mount it: mount -t bpf bpf {bpffs}")


def _is_bpffs(path: Path) -> bool:
    mounts = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
    points = [fields[1] for fields in map(str.split, mounts) if len(fields) > 2 and fields[2] == "bpf"]
    return any(path == Path(point) or Path(point) in path.parents for point in points)


@dataclass(frozen=True, slots=True)
class Senses:
    """What a gateway hears and sees: the kernel's XFRM, what it and the network notify of, the joined snapshots."""

    kernel: XfrmSocket
    monitor: XfrmMonitor
    network: NetworkMonitor
    observer: Observer
    dirty: asyncio.Event


@dataclass(frozen=True, slots=True)
class Plumbing:
    """What a gateway put into the packet path: XDP and TC, policy routing, and the interfaces. ``up_index`` is
    that of ``ipsecgw-up``, ``up`` the links of both ends of that pair, the kernel's first.
    """

    steering: Steering
    lead: LeadDriver
    hosts: HostsDriver
    interfaces: InterfaceDriver
    wan: tuple[Link, ...]
    up_index: int
    up: tuple[Link, Link]


@dataclass(frozen=True, slots=True)
class Queue:
    """Packets that the guard held back: out of the ring, into the room where they wait."""

    reader: WaitingReader
    room: WaitingRoom

    def take(self) -> None:
        """Some of what is in the ring by now, and send what can be sent: milliseconds, so that nothing else is late."""
        self.room.add(self.reader.read(AT_A_TIME))

    def send(self, key: SaKey, above: int) -> None:
        """The kernel is about to get an SA: what waits of it leaves first, if its number is above that one."""
        self.room.add(self.reader.read(WHOLE_RING))
        self.room.send(key, above)


@dataclass(frozen=True, slots=True)
class Gateway:
    """Everything of one running gateway; ``plumbing``, ``guard``, ``moves``, ``guardian``, ``waiting`` and
    ``exhaustion`` are None with the kernel engine, that only watches, ``keeper`` without a firewall.
    """

    senses: Senses
    link: EngineLink
    reconciler: Reconciler
    plumbing: Plumbing | None
    guard: GuardDriver | None = None
    moves: MoveWatch | None = None
    keeper: Keeper | None = None
    guardian: Guardian | None = None
    waiting: Queue | None = None
    exhaustion: Exhaustion | None = None

    def is_local(self, key: SaKey) -> bool:
        """Whether an SA is inbound, as the last snapshot has it."""
        return key.destination in self.reconciler.snapshot.local_addresses

    def through(self, key: SaKey) -> int:
        """Packets of an outbound SA that the guard held back and that went on their way in the end."""
        return self.waiting.room.through(key).packets if self.waiting is not None else 0

    async def bury(self) -> None:
        """Give the kernel's copies the last counters of an engine that is gone, or is about to go."""
        if self.guardian is None:
            return
        try:
            await asyncio.to_thread(self.guardian.bury, self.link.counters(), self.is_local)
        except XfrmError as error:
            self.reconciler.history.trouble(f"charon does not see what the engine carried last: {error}")

    def decide_by(self, settings: Settings) -> None:
        """From the next pass on these hold."""
        self.senses.observer.names_decide = settings.by_name
        self.reconciler.settings = settings
        self.senses.dirty.set()

    @property
    def steering(self) -> Steering | None:
        """The XDP side, with an engine or with a firewall."""
        if self.plumbing is not None:
            return self.plumbing.steering
        return self.keeper.steering if self.keeper is not None else None


async def find_wan(config: Config, view: KernelView, charon: CharonWatcher) -> tuple[Link, ...]:
    """The interfaces that ESP comes and goes by, in this order: configured; holding the local addresses of charon's
    connections; those of the default routes. Raises EnvironmentMissing if there is none.
    """
    names = list(config.gateway.wan)
    if not names:
        holders = {str(address): name for address, name in (await view.holders()).items()}
        names = [holders[address] for address in await charon.local_addresses() if address in holders]
        names = [name for name in names if name != "lo"] or await view.default_interfaces()
    if not names:
        raise EnvironmentMissing(
            "no WAN interface found: no connection has a local address of this machine and there is no default route"
            " - name it: wan = [...] under [gateway], or --wan"
        )
    found = [await view.interface(name) for name in dict.fromkeys(names)]
    for interface in found:
        if not interface.ethernet:
            raise EnvironmentMissing(
                f"interface {interface.link.name} is not Ethernet and XDP cannot steer on it"
                " - name the Ethernet device that carries it: wan = [...] under [gateway], or --wan"
            )
    return tuple(interface.link for interface in found)


async def build(config: Config, paths: Paths, charon: CharonWatcher, stack: AsyncExitStack) -> Gateway:
    """Put a gateway together. What this call itself made is undone if it fails; what was in place before stays."""
    route = await stack.enter_async_context(AsyncIPRoute())
    if config.firewall is None:
        await proxy.remove(route)  # of a former life, and so is the veth pair
        await remove_tunnel_port(route)
    senses = _senses(config, route, charon, stack)
    choice = _choose(config, paths)
    if choice is EngineName.KERNEL:
        nowhere = Link("none", "00:00:00:00:00:00", 0)
        context = EngineContext(paths.run_dir, (), nowhere, nowhere, lambda _name: -1)
        link = EngineLink(KernelEngine(context))
        await link.open()
        gateway = _join(config, senses, link, None)
        if config.firewall is None:
            if Steering.had_firewall(paths.pins):  # of a former life
                (await asyncio.to_thread(_open_steering, config, paths.pins)).close()
            return gateway
        return replace(gateway, keeper=await _firewall_alone(config, paths, route, senses, charon, stack))
    wan = await find_wan(config, KernelView(route), charon)
    adopting = paths.pins.exists()
    async with AsyncExitStack() as undo:
        plumbing, context = await _plumb(config, paths, wan, route, undo)
        undo.callback(plumbing.steering.close)
        engine = _engine(choice, context, config.gateway.policy_mode)
        undo.push_async_callback(engine.close)
        moved = hand.load(paths.run_dir)
        expected = VPP_ABILITIES if config.gateway.starts_vpp else None
        gateway = _join(config, senses, EngineLink(engine, expected), plumbing, moved)
        senses.observer.names_decide = gateway.reconciler.settings.by_name
        await _open_engine(gateway.link, patient=adopting or config.gateway.starts_vpp)
        translator = _translator(choice, paths)
        if translator is not None:
            undo.push_async_callback(translator.close)
        keeper = await _wall(config, plumbing.steering, wan, senses.kernel, translator)
        undo.pop_all()
    stack.callback(plumbing.steering.close)
    stack.push_async_callback(engine.close)
    if translator is not None:
        stack.push_async_callback(translator.close)
    waiting = _queue(plumbing, gateway.reconciler, senses.dirty, config.gateway.hold_seconds, stack)
    if gateway.guard is not None:
        gateway.guard.before_release = waiting.send
    history = gateway.reconciler.history
    guardian = _guardian(senses.kernel, history, paths, stack, waiting.room.through)
    exhaustion = Exhaustion(gateway.reconciler.refusals.pacer.request, history.trouble, time.monotonic)
    return replace(gateway, keeper=keeper, guardian=guardian, waiting=waiting, exhaustion=exhaustion)


def _queue(
    plumbing: Plumbing, reconciler: Reconciler, dirty: asyncio.Event, hold_seconds: float, stack: AsyncExitStack
) -> Queue:
    """What waited in the ring before is too old by now."""
    kernel_end, engine_end = plumbing.up
    mark = secrets.randbits(32) | 1  # not 0, that is no mark
    plumbing.steering.set_waited_mark(mark)
    ways = PacketWays(kernel_end.name, kernel_end.mac, engine_end.mac, mark)
    stack.callback(ways.close)
    reader = WaitingReader(plumbing.steering.waiting_map)
    stack.callback(reader.close)
    while reader.read():
        pass

    def forsaken(key: SaKey) -> None:
        reconciler.forsake(key)
        dirty.set()

    room = WaitingRoom(
        ways,
        is_released=plumbing.steering.is_released,
        is_claimed=plumbing.steering.is_claimed,
        carried=reconciler.carried,
        tell=reconciler.history.trouble,
        forsaken=forsaken,
        hold=hold_seconds,
    )
    return Queue(reader, room)


def _guardian(
    kernel: XfrmSocket,
    history: History,
    paths: Paths,
    stack: AsyncExitStack,
    waited: Callable[[SaKey], Volume] = lambda _key: NOTHING,
) -> Guardian:
    ledger = Handovers(paths.run_dir, history.trouble)
    sas = stack.enter_context(StateSocket(kernel.count_malformed))
    return Guardian(sas, expirer(kernel, history.trouble), ledger, waited)


async def _open_engine(link: EngineLink, *, patient: bool) -> None:
    """Beside what an earlier life left, an engine may be away: what it had is given back, and it may come later. So may
    one that is started when it is needed.
    """
    try:
        await link.open()
    except EngineUnavailable as error:
        if not patient:
            raise
        link.trouble = str(error)
        log.info("the engine is away", reason=link.trouble)


def _open_steering(config: Config | None, pins: Path) -> Steering:
    """With the firewall if one is configured; without a configuration, as an earlier life left it."""
    if config is None:
        return Steering.open(pins, firewall=Steering.had_firewall(pins))
    hold = round(config.gateway.hold_seconds * 1000)
    if config.firewall is None:
        steering = Steering.open(pins, hold, firewall=False)
        for name in steering.docked(Role.INSIDE):
            steering.undock(name)
        return steering
    return Steering.open(pins, hold, sessions=2 * config.firewall.sessions.maximum)


async def _wall(
    config: Config,
    steering: Steering,
    wan: tuple[Link, ...],
    kernel: XfrmSocket,
    translator: TranslatorEngine | None = None,
) -> Keeper | None:
    if config.firewall is None:
        return None
    prepare(steering)
    keeper = Keeper(steering, config.firewall, frozenset(link.name for link in wan), kernel, translator)
    await keeper.follow_policies()  # first: what is protected is known before anything is let through
    await keeper.apply()
    return keeper


async def _firewall_alone(
    config: Config, paths: Paths, route: AsyncIPRoute, senses: Senses, charon: CharonWatcher, stack: AsyncExitStack
) -> Keeper | None:
    """The firewall beside the kernel engine."""
    try:
        wan = await find_wan(config, KernelView(route), charon)
    except EnvironmentMissing as error:
        wan = ()
        log.info("no WAN interface: no packet is left to the kernel to encrypt", reason=str(error))
    async with AsyncExitStack() as undo:
        if not paths.pins.exists():
            undo.callback(Steering.remove_leftovers, paths.pins)
        steering = await asyncio.to_thread(_open_steering, config, paths.pins)
        undo.callback(steering.close)
        keeper = await _wall(config, steering, wan, senses.kernel)
        undo.pop_all()
    stack.callback(steering.close)
    return keeper


def _senses(config: Config, route: AsyncIPRoute, charon: CharonWatcher, stack: AsyncExitStack) -> Senses:
    dirty = asyncio.Event()
    charon.on_change(dirty.set)
    kernel = stack.enter_context(XfrmSocket())
    monitor = XfrmMonitor(dirty.set)
    stack.callback(monitor.close)
    network = NetworkMonitor(dirty.set)
    stack.callback(network.close)
    observer = Observer(
        kernel, monitor, KernelView(route), charon, network.watch, names_decide=config.choices.by_name, named=dirty.set
    )
    return Senses(kernel, monitor, network, observer, dirty)


def vpp_runs(paths: Paths) -> bool:
    """True if a VPP was started for this runtime directory."""
    return VppPaths(paths.run_dir).api_socket.exists()


def _choose(config: Config, paths: Paths) -> EngineName:
    choice = config.gateway.engine
    if choice is not EngineChoice.AUTO:
        return EngineName(choice.value)
    if vpp_runs(paths) or config.gateway.starts_vpp:
        return EngineName.VPP
    log.info("no VPP runs here: the kernel keeps all SAs", way_out="start one with `ipsec-gw vpp up`")
    return EngineName.KERNEL


def _engine(name: EngineName, context: EngineContext, policy_mode: PolicyMode = PolicyMode.AUTO) -> Engine:
    """Engines are imported when they are chosen: a gateway without VPP needs none of its packages."""
    if name is EngineName.VPP:
        from ipsec_gw.engines.vpp import VppEngine  # noqa: PLC0415

        return VppEngine(context, policy_mode)
    from ipsec_gw.engines.soft.engine import SoftEngine  # noqa: PLC0415

    return SoftEngine(context)


def _translator(name: EngineName, paths: Paths) -> TranslatorEngine | None:
    """VPP for pools of NAT; other engines translate nothing."""
    if name is not EngineName.VPP:
        return None
    from ipsec_gw.engines.vpp_nat import VppTranslator  # noqa: PLC0415

    return VppTranslator(paths.run_dir)


async def _plumb(
    config: Config, paths: Paths, wan: tuple[Link, ...], route: AsyncIPRoute, undo: AsyncExitStack
) -> tuple[Plumbing, EngineContext]:
    """Veth pair, docks, guards and the fixed rules. An earlier life's are adopted, and then not undone on failure."""
    fresh = not paths.pins.exists()
    paths.run_dir.mkdir(mode=0o750, parents=True, exist_ok=True)
    if fresh:
        undo.push_async_callback(remove_uplink, route)
    up_kernel, up_engine = await raise_uplink(route)
    if fresh:
        undo.callback(Steering.remove_leftovers, paths.pins)
    steering = await asyncio.to_thread(_open_steering, config, paths.pins)
    for link in wan:
        steering.dock(link.name, Role.WAN)
    steering.dock(ENGINE_END, Role.TO_ENGINE)
    steering.join_uplink(KERNEL_END, ENGINE_END)
    steering.set_engine(True)
    plumbing, context = _pipes(paths, route, steering, wan, (up_kernel, up_engine))
    if fresh:
        undo.callback(remove_bypass)
        undo.push_async_callback(plumbing.lead.remove)
        undo.push_async_callback(plumbing.hosts.clear)
    await plumbing.lead.prepare()
    return plumbing, context


Leads = LeadDriver | HostsDriver | InterfaceDriver


async def lead_nothing(*leads: Leads) -> None:
    """What goes out is the kernel's from now on. Raises IpsecGwError."""
    for driver in leads:
        await driver.clear()


async def spare(steer: SteerDriver, *leads: Leads) -> None:
    """Steer and lead nothing any more: an engine begins that holds nothing yet. Raises IpsecGwError."""
    steer.clear()
    await lead_nothing(*leads)


def _pipes(
    paths: Paths, route: AsyncIPRoute, steering: Steering, wan: tuple[Link, ...], uplink: tuple[Interface, Interface]
) -> tuple[Plumbing, EngineContext]:
    """The same parts as the control loop sees them and as an engine does. Touches nothing."""
    kernel_end, engine_end = uplink
    hosts = HostsDriver(route, kernel_index=kernel_end.index)
    lead = LeadDriver(
        route,
        kernel_index=kernel_end.index,
        engine_name=ENGINE_END,
        engine_mac=engine_end.link.mac,
        after_exempt=hosts.mark,
    )
    ends = Uplink(kernel_end.index, *(bytes.fromhex(end.link.mac.replace(":", "")) for end in uplink))
    interfaces = InterfaceDriver(steering.xfrm_interfaces, ends)
    taking = partial(spare, SteerDriver(steering), lead, hosts, interfaces)
    context = EngineContext(paths.run_dir, wan, kernel_end.link, engine_end.link, steering.xsks_map, taking)
    up = (kernel_end.link, engine_end.link)
    return Plumbing(steering, lead, hosts, interfaces, wan, kernel_end.index, up), context


def _limits(bypass: Bypass, hosts: HostsDriver, policies: Sequence[XfrmPolicy]) -> LeadLimits:
    """What cannot be led. What marks packets for it is put back first, if somebody took it away."""
    hosts.renew()
    return bypass.limits(policies)


def _join(
    config: Config, senses: Senses, link: EngineLink, plumbing: Plumbing | None, moved: Moved = NOT_MOVED
) -> Gateway:
    """Tie the parts together. ``moved`` is what the operator had moved to the kernel."""
    tracker: DeltaTracker[ObjectKey, ManagedObject] = DeltaTracker()
    drivers = Drivers(engine=link, guard=link, steer=link, lead=link, hosts=link, interface=link)
    follow: Callable[[Snapshot, frozenset[SaKey]], None] | None = None
    moves: MoveWatch | None = None
    guard: GuardDriver | None = None
    readers: list[Callable[[], Awaitable[Mapping[Any, ManagedObject]]]] = []
    pacer = RekeyPacer()
    refusals = Refusals(pacer)
    history = History()
    link.tell = history.trouble
    if plumbing is not None:
        steer = SteerDriver(plumbing.steering)
        guard = GuardDriver(
            plumbing.steering,
            senses.kernel,
            sent=link.sent,
            refuse=refusals.add,
            tell=history.trouble,
        )
        interfaces = plumbing.interfaces
        lead, hosts = plumbing.lead, plumbing.hosts
        drivers = Drivers(engine=link, guard=guard, steer=steer, lead=lead, hosts=hosts, interface=interfaces)
        follow = guard.follow
        senses.observer.limits = partial(_limits, Bypass(senses.kernel, plumbing.up_index), hosts)
        link.on_counters = guard.keep_ahead
        moves = MoveWatch(plumbing.steering, senses.kernel, received=link.received, tell=history.trouble)
        link.on_open = partial(begin, plumbing.steering, guard, lead, hosts, interfaces)
        readers = [link.retrieve, guard.retrieve, steer.retrieve]
        readers += [lead.retrieve, hosts.retrieve, interfaces.retrieve]

    async def retrieve() -> Mapping[ObjectKey, ManagedObject]:
        return {key: obj for read in readers for key, obj in (await read()).items()}

    reconciler = Reconciler(
        source=senses.observer,
        link=link,
        settings=Settings(
            frozenset(wan.name for wan in plumbing.wan) if plumbing else frozenset(),
            config.choices,
            moved,
            config.firewall is not None,
        ),
        tracker=tracker,
        executor=Executor(drivers, tracker),
        retrieve=retrieve,
        refusals=refusals,
        follow=follow,
        history=history,
    )
    return Gateway(senses, link, reconciler, plumbing, guard, moves)


async def begin(steering: Steering, guard: GuardDriver, *leads: Leads) -> None:
    """An engine has its sockets: it may be steered to, and the kernel takes nothing over until it goes. Of what the
    kernel has taken over nothing is led to it, not for a moment: its numbers are behind the kernel's.
    """
    if steering.engine_gone():
        await lead_nothing(*leads)
    await guard.begin()
    steering.set_engine(True)


async def hand_back(paths: Paths) -> None:
    """Without a daemon: give all SAs back to the kernel, behind the numbers of the engine that still holds them.

    Where the engine is gone its last numbers are not known: the kernel skips a margin, and a rekey is asked for.
    """
    async with AsyncExitStack() as stack:
        route = await stack.enter_async_context(AsyncIPRoute())
        if not paths.pins.exists() or not await route.link_lookup(ifname=KERNEL_END):
            return
        senses = _senses(Config(), route, CharonWatcher(""), stack)  # withdrawal asks charon nothing
        steering = await asyncio.to_thread(_open_steering, None, paths.pins)
        stack.callback(steering.close)
        view = KernelView(route)
        wan = tuple([(await view.interface(name)).link for name in sorted(steering.docked(Role.WAN))])
        plumbing, context = _pipes(paths, route, steering, wan, await raise_uplink(route))
        link = EngineLink(_engine(EngineName.VPP, context) if vpp_runs(paths) else KernelEngine(context))
        stack.push_async_callback(link.engine.close)
        with contextlib.suppress(IpsecGwError):  # off must not depend on an engine that is gone or refuses
            await link.open()
            await link.look()
        gateway = _join(Config(), senses, link, plumbing)
        guardian, here = _guardian(senses.kernel, gateway.reconciler.history, paths, stack), await view.addresses()
        with contextlib.suppress(XfrmError):
            await asyncio.to_thread(guardian.bury, link.counters(), lambda key: key.destination in here)
        await gateway.reconciler.withdraw()
        for key in gateway.reconciler.refusals.reasons():
            with contextlib.suppress(XfrmError):  # it is gone already
                senses.kernel.expire_soft(key)


async def remove_everything(paths: Paths) -> None:
    """Take rules, docks, guards, pins and the veth pair away, whoever left them. Needs no engine and no charon."""
    async with AsyncIPRoute() as route:
        await proxy.remove(route)
        for index in await route.link_lookup(ifname=KERNEL_END):
            await LeadDriver(route, kernel_index=index, engine_name=ENGINE_END, engine_mac="").remove()
            await HostsDriver(route, kernel_index=index).clear()
        remove_bypass()
        await asyncio.to_thread(Steering.remove_leftovers, paths.pins)
        hand.forget(paths.run_dir)
        handovers.forget(paths.run_dir)
        await remove_uplink(route)
        await remove_tunnel_port(route)
        await remove_translator(route)
