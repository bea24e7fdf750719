"""A gateway in a hostile world: charon, the kernel, an engine and a daemon that is put together as in real life."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from ipaddress import ip_address, ip_network
from random import Random
from typing import Any, TypeVar

from ipsec_gw.desired import desired
from ipsec_gw.errors import IpsecGwError, XfrmError
from ipsec_gw.gateway import begin, spare
from ipsec_gw.lineages import tunnel_of
from ipsec_gw.model.ids import IpAddress, SaKey
from ipsec_gw.model.objects import (
    EngineSa,
    Exempt,
    Guard,
    HostsLead,
    InterfaceEntry,
    InterfaceKind,
    InterfaceLead,
    Lead,
    ManagedObject,
    NextHop,
    ObjectKey,
    Overlay,
    OverlayKey,
    Selector,
    Steer,
    Tunnel,
    UdpEncap,
    XfrmInterface,
)
from ipsec_gw.model.secret import Secret
from ipsec_gw.model.snapshot import (
    AeadKey,
    Encapsulator,
    LeadLimits,
    Lifetime,
    Mode,
    PolicyDirection,
    Replay,
    ResolvedHop,
    Snapshot,
    Template,
    Vti,
    Vxlan,
    XfrmMark,
    XfrmPolicy,
    XfrmSa,
)
from ipsec_gw.ownership.engine_link import EngineLink
from ipsec_gw.ownership.guard import GuardDriver
from ipsec_gw.ownership.hosts import HostsDriver
from ipsec_gw.ownership.interfaces import InterfaceDriver
from ipsec_gw.ownership.lead import LeadDriver
from ipsec_gw.ownership.refusals import Refusals
from ipsec_gw.ownership.rekey import RekeyPacer
from ipsec_gw.ownership.steer import SteerDriver
from ipsec_gw.reconcile.delta import DeltaTracker
from ipsec_gw.reconcile.execute import Drivers, Executor
from ipsec_gw.reconcile.loop import Reconciler
from ipsec_gw.reconcile.record import History
from tests.property.convergence_edges import (
    BETWEEN_LOOKS,
    Broken,
    Crash,
    Edge,
    FakeDevices,
    FakeEngine,
    FakeRoutes,
    FakeSteering,
    FakeTables,
    FakeXfrm,
    Law,
    Wire,
    nothing_happens,
)
from tests.support.world import SETTINGS
from xdp_steer.xfrmi import Uplink

T = TypeVar("T")

LOCALS = {4: ip_address("10.0.0.1"), 6: ip_address("2001:db8::1")}
PEERS = [ip_address(text) for text in ("10.0.0.2", "10.0.0.3", "10.0.0.4", "2001:db8::2", "2001:db8::3")]
HERE = {
    4: [ip_network(n) for n in ("192.168.0.0/16", "192.168.1.0/24", "10.8.0.0/24", "0.0.0.0/0")],
    6: [ip_network(n) for n in ("fd01::/48", "fd01:1::/64", "fd08::/64", "::/0")],
}
THERE = {
    4: [*(ip_network(f"172.16.{n}.0/24") for n in range(6)), ip_network("172.16.0.0/22"), ip_network("0.0.0.0/0")],
    6: [*(ip_network(f"fd02:{n}::/64") for n in range(6)), ip_network("fd02::/30"), ip_network("::/0")],
}
HINTS = {4: ip_address("192.168.1.1"), 6: ip_address("fd01:1::1")}
LIMITS = (
    LeadLimits(all6="no policy"),
    LeadLimits(local6="no netfilter"),
    LeadLimits(hosts="no netfilter"),
    *[LeadLimits()] * 5,
)
IF_IDS = (1, 2, 3)
"""The last one has no XFRM interface."""
MARKS = (0x41, 0x42, 0x43)
"""The last one is given by no VTI device."""
UPLINK = Uplink(7, bytes(6), bytes(6))
GRE, UDP = 47, 17
FAR_LOCAL, FAR = ip_address("198.18.0.1"), (ip_address("198.18.0.2"), ip_address("198.18.0.3"))
"""Ends of devices that are no ends of SAs."""
_FAR_INDEX = 1000
SHUNT = 0
"""The reqid of policies that no tunnel has."""

TALLIED = (
    *("call failed", "call failed for good", "daemon killed", "engine died", "both died", "engine out of reach"),
    *("charon restarted", "peer moved", "burst through the engine", "tunnel in the engine at the end"),
    *("NAT mapped anew", "the same with a gap", "encapsulated tunnel in the engine at the end"),
    *("kernel took over by itself", "kernel sent beside an engine", "exception made", "exemption in place at the end"),
    *("the same by an interface", "the same by a GRE device", "the same by a VTI device"),
    *("the same between hosts", "the same between hosts in tunnel mode"),
    *("interface made anew", "interface led at the end", "hosts led at the end"),
    *("the same by a VXLAN device", "VXLAN device led at the end"),
    *("the same behind its header", "the same of addresses of its own"),
)
"""What must not be missing in a run of many sequences."""

_REMEMBERED = 200

AWAITED = ("engine create", "engine update", "engine delete", "engine retrieve", "rule", "route", "get ", "dump")
"""Calls that the daemon waits for: only there its other tasks go on."""

BOUND = 8
"""Passes after the last disturbance until the state must be what is computed from scratch."""


def finish(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that waits for nothing: no fake does, and an event loop would cost most of the time."""
    try:
        work.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    raise AssertionError("a fake waited")


@dataclass
class Child:
    """A CHILD_SA lineage as charon keeps it: SPI pairs (in, out), and steps of exchanges that are under way."""

    peer: IpAddress
    reqid: int
    selectors: tuple[Selector, ...]
    pairs: list[tuple[int, int]] = field(default_factory=list)
    steps: list[Callable[[], None]] = field(default_factory=list)
    port: int = 0
    ours: int = 0
    if_id: int = 0
    mark: XfrmMark | None = None
    mode: Mode = Mode.TUNNEL

    def encap(self, *, inbound: bool) -> UdpEncap | None:
        """Its ports behind a NAT: the peer's, and ours."""
        if not self.port:
            return None
        return UdpEncap(self.port, self.ours) if inbound else UdpEncap(self.ours, self.port)

    @property
    def local(self) -> IpAddress:
        """Our end."""
        return LOCALS[self.peer.version]


class Daemon:
    """The control plane, put together as the gateway does it."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.link = EngineLink(world.engine)
        self.refusals = Refusals(RekeyPacer())
        self.losses = 0
        self.was_away = False
        self.history = History(clock=world.now)
        self.link.tell = self.history.trouble
        guard = GuardDriver(
            world.steering, world.xfrm, sent=self.link.sent, refuse=self.refusals.add, tell=self.history.trouble
        )
        steer = SteerDriver(world.steering)
        hosts = HostsDriver(world.routes, kernel_index=7, tables=world.tables)
        ends = {"engine_name": "vp", "engine_mac": "02:00:00:00:00:07"}
        self.lead = lead = LeadDriver(world.routes, kernel_index=7, after_exempt=hosts.mark, **ends)
        interfaces = InterfaceDriver(world.devices, UPLINK, world.name_of)
        tracker: DeltaTracker[ObjectKey, ManagedObject] = DeltaTracker()

        async def retrieve() -> Mapping[ObjectKey, ManagedObject]:
            found: dict[ObjectKey, ManagedObject] = {}
            for driver in (self.link, guard, steer, lead, hosts, interfaces):
                found |= await driver.retrieve()  # type: ignore[operator]
            return found

        async def drain(_seconds: float) -> None:
            world.edge.between()
            world.steering.undrained.clear()

        self.reconciler = Reconciler(
            source=world,
            link=self.link,
            settings=SETTINGS,
            tracker=tracker,
            executor=Executor(
                Drivers(engine=self.link, guard=guard, steer=steer, lead=lead, hosts=hosts, interface=interfaces),
                tracker,
                sleep=drain,
                clock=world.now,
            ),
            retrieve=retrieve,
            refusals=self.refusals,
            follow=guard.follow,
            clock=world.now,
            history=self.history,
        )
        self.reconciler.before_pass = self._make_up
        self.link.on_counters = guard.keep_ahead
        self.link.on_open = partial(begin, world.steering, guard, lead, hosts, interfaces)
        world.engine.taking = partial(spare, steer, lead, hosts, interfaces)

    async def look(self) -> None:
        """As the daemon's task looks at its engine."""
        failures = self._world.edge.failures
        await self.link.look()
        if self.link.up and self._world.edge.failures == failures:
            self._world.looked()
        if self.link.losses != self.losses:
            self.losses = self.link.losses
            self.reconciler.distrust()
        elif not self.link.up:
            try:
                await self.link.open()
            except IpsecGwError as error:
                self.history.trouble(f"the engine cannot be opened: {error}")
                return
            self.reconciler.distrust()

    async def _make_up(self) -> None:
        """As the daemon does it before a pass."""
        if self.was_away:
            await self.link.begin_anew()
            self.reconciler.distrust()
            self.was_away = False


class World:
    """Charon, kernel and engine, the daemon among them, and the seed that decides what happens."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.log: list[str] = []
        self.tally: Counter[str] = Counter(dict.fromkeys(TALLIED, 0))
        self.clock = 1000.0
        self.edge = Edge(self.random, self.log.append)
        self.wire = Wire()
        self.xfrm = FakeXfrm(self.edge)
        self.steering = FakeSteering(self.edge, self.wire, self.xfrm)
        self.engine = FakeEngine(self.edge, self.wire)
        self.routes = FakeRoutes(self.edge)
        self.tables = FakeTables(self.edge)
        self.devices = FakeDevices(self.edge)
        self.interfaces = {if_id: XfrmInterface(10 + if_id, f"ipsec{if_id}") for if_id in IF_IDS[:-1]}
        self.vtis = {
            mark: Vti(XfrmInterface(18 + n, f"vti{n}", InterfaceKind.VTI), None, None, 0, mark)
            for n, mark in enumerate(MARKS[:-1])
        }
        ends = {peer: (n, LOCALS[4]) for n, peer in enumerate(PEERS) if peer.version == 4}
        ends |= {far: (_FAR_INDEX + n, FAR_LOCAL) for n, far in enumerate(FAR)}
        self.encapsulators = {
            remote: Encapsulator(XfrmInterface(15 + n, f"gre{n}", InterfaceKind.GRE), local, remote)
            for remote, (n, local) in ends.items()
        }
        self.vxlans = {
            remote: Vxlan(XfrmInterface(2 + n, f"vxlan{n}", InterfaceKind.VXLAN), local, remote, 4789, 42)
            for remote, (n, local) in ends.items()
        }
        self.steering.engine, self.steering.routes, self.engine.steering = self.engine, self.routes, self.steering
        self.steering.devices, self.devices.steering = self.devices, self.steering
        self.xfrm.steering = self.steering
        self.law = Law(self.xfrm, self.steering, self.engine, self.routes, self.devices, self.has_interface)
        self.edge.law = self.law.check
        self.moved = False
        self.budget, self.sent_since_read = BETWEEN_LOOKS, 0
        self.engine.being_read = self._read
        self.children: list[Child] = []
        self.policies: dict[tuple[int, Selector], XfrmPolicy] = {}
        self.spi, self.reqid, self.key, self.index = 0x100, 0, 0, 20
        self.hops = {peer: ResolvedHop("wan0", peer, "02:00:00:00:00:02", 1500) for peer in PEERS}
        self.unresolved: set[IpAddress] = set()
        self.limits = LeadLimits()
        self.unrest = self.random.choice([0.0, 0.02, 0.2])
        self.daemon = Daemon(self)
        self.start_daemon()

    def now(self) -> float:
        return self.clock

    # What the control plane sees

    async def snapshot(self) -> Snapshot:
        """Policies are dumped first, as in real life; the kernel may change before the SAs are."""
        self.edge.cross("dump policies", XfrmError)
        policies = tuple(self.policies.values())
        self.edge.cross("dump SAs", XfrmError)
        return self._shown(policies)

    def _shown(self, policies: tuple[XfrmPolicy, ...]) -> Snapshot:
        return Snapshot(
            sas=tuple(self.xfrm.sas.values()),
            policies=policies,
            local_addresses=frozenset({*LOCALS.values(), *HINTS.values()}),
            next_hops={peer: hop for peer, hop in self.hops.items() if peer not in self.unresolved},
            sources={network: HINTS[version] for version, networks in THERE.items() for network in networks},
            limits=self.limits,
            interfaces=dict(self.interfaces),
            encapsulators=tuple(self.encapsulators.values()),
            vtis=tuple(self.vtis.values()),
            vxlans=tuple(self.vxlans.values()),
        )

    def name_of(self, index: int) -> str:
        """As the kernel tells it."""
        devices = (*self.encapsulators.values(), *self.vtis.values(), *self.vxlans.values())
        for interface in (*self.interfaces.values(), *(one.interface for one in devices)):
            if interface.index == index:
                return interface.name
        raise OSError(f"no interface {index}")

    def has_interface(self, index: int) -> bool:
        """Whether one of that index is there."""
        try:
            return bool(self.name_of(index))
        except OSError:
            return False

    # Charon

    def establish(self) -> None:
        self.reqid += 1
        peer = self.random.choice(PEERS)
        selectors: list[Selector] = []
        for version in self.random.choice([(4,), (4,), (6,), (4, 6)]):
            here = self.random.sample(HERE[version], self.random.choice([1, 1, 1, 2]))
            there = self.random.choice(THERE[version])
            protocol = self.random.choice([0, 0, 0, 17]) if version == 4 else 0
            selectors += [Selector(one, there, protocol) for one in here]
        port = self.random.choice([0, 0, 4500, self.random.randint(1024, 65000)])
        ours = self.random.choice([4500, 4500, 4501, 4502])
        if_id = self.random.choice([0] * 9 + list(IF_IDS))
        mark = None if if_id else self._some_mark()
        if (if_id or mark) and self.random.random() < 0.8:
            selectors = [
                Selector(net, net) for net in map(ip_network, ("0.0.0.0/0", "::/0")[: self.random.choice([1, 2])])
            ]
        child = Child(peer, self.reqid, tuple(selectors), port=port, ours=ours, if_id=if_id, mark=mark)
        if peer.version == 4 and self.random.random() < 0.25:
            wide = self.random.random() < 0.25  # for more than the two: the kernel's
            ends = ip_network((child.local, 32)), ip_network((peer, 31 if wide else 32), strict=False)
            protocol = self.random.choice([GRE, GRE, 0, 17, 17, 6])
            own = (Selector(*ends, protocol),)
            child = (
                Child(peer, self.reqid, own, mode=Mode.TRANSPORT)
                if self.random.random() < 0.5
                else Child(peer, self.reqid, own, port=port, ours=ours)
            )
        elif self.random.random() < 0.25:
            far = ip_network(FAR_LOCAL), ip_network(self.random.choice(FAR))
            protocol = self.random.choice([GRE, GRE, 0, 17, 17, 6])
            child = Child(peer, self.reqid, (Selector(*far, protocol),), port=port, ours=ours)
        self.children.append(child)
        self._bring(child)

    def _some_mark(self) -> XfrmMark | None:
        value = self.random.choice([0] * 9 + list(MARKS))
        return (value, 0xFFFFFFFF) if value else None

    def _bring(self, child: Child) -> None:
        """A new pair of SAs, inbound first, then the switch of the policies, then what was there before goes."""
        old = list(child.pairs)
        pair = (self._new_spi(), self._new_spi())
        child.pairs.append(pair)
        child.steps += [
            lambda: self._install(child, pair[0], inbound=True),
            lambda: self._install(child, pair[1], inbound=False),
            lambda: self._switch(child, pair[1]),
            *(lambda gone=gone: self._remove(child, gone) for gone in old),  # type: ignore[misc]
        ]

    def rekey(self, child: Child) -> None:
        self._bring(child)
        if self.random.random() < 0.2:  # both sides at once: the loser's pair comes and goes unused
            pair = (self._new_spi(), self._new_spi())
            child.pairs.append(pair)
            child.steps[0:0] = [
                lambda: self._install(child, pair[0], inbound=True),
                lambda: self._install(child, pair[1], inbound=False),
            ]
            child.steps.append(lambda: self._remove(child, pair))

    def except_something(self) -> None:
        """A pass policy for a part of what some tunnel has, before the tunnel's own."""
        self.tally["exception made"] += 1
        version = self.random.choice([4, 4, 6])
        here, there = (self.random.choice(networks[version]) for networks in (HERE, THERE))
        part = next(there.subnets(new_prefix=there.prefixlen + self.random.choice([1, 2])))
        protocol = self.random.choice([0, 0, 6, 17]) if version == 4 else 0
        selector = Selector(self.random.choice([here, *here.subnets()]), part, protocol)
        self.policies[SHUNT, selector] = XfrmPolicy(
            PolicyDirection.OUT, selector.source, selector.destination, 1000, True, (), upper=protocol
        )

    def drop_exceptions(self) -> None:
        self.policies = {key: value for key, value in self.policies.items() if key[0] != SHUNT}

    def terminate(self, child: Child) -> None:
        for pair in list(child.pairs):
            self._remove(child, pair)
        self.policies = {key: value for key, value in self.policies.items() if key[0] != child.reqid}
        self.children.remove(child)

    def restart_charon(self) -> None:
        self.tally["charon restarted"] += 1
        self.xfrm.sas.clear()
        self.policies.clear()
        count, self.reqid = len(self.children), 0
        self.children.clear()
        for _ in range(count):
            self.establish()

    def move(self, child: Child) -> None:
        """MOBIKE or a NAT's new mind: every SA is deleted and installed again with the same key and numbers."""
        if child.mode is Mode.TRANSPORT:
            return
        self.moved = True
        self.tally["peer moved"] += 1
        others = [peer for peer in PEERS if peer != child.peer and peer.version == child.peer.version]
        old, child.peer = child.peer, self.random.choice(others)
        for inbound, outbound in child.pairs:
            if (sa := self.xfrm.sas.get(SaKey(child.local, inbound))) is not None:
                self.xfrm.sas[sa.key] = replace(sa, source=child.peer)
            if (sa := self.xfrm.sas.pop(SaKey(old, outbound), None)) is not None:
                key = SaKey(child.peer, outbound)
                self.xfrm.sas[key] = replace(sa, key=key)
        for selector in child.selectors:
            if (policy := self.policies.get((child.reqid, selector))) is not None:
                self._put_policy(child, selector, policy.templates[0].spi)

    def map_anew(self, child: Child) -> None:
        """The NAT in front of the peer has chosen another port. Between the delete and the add of charon's update a
        dump may fall.
        """
        if child.mode is Mode.TRANSPORT:
            return
        self.tally["NAT mapped anew"] += 1
        child.port = self.random.randint(1024, 65000)
        here, there = [pair[0] for pair in child.pairs], [pair[1] for pair in child.pairs]
        keys = [*(SaKey(child.local, spi) for spi in here), *(SaKey(child.peer, spi) for spi in there)]
        moved = [
            replace(sa, encap=child.encap(inbound=key.destination == child.local))
            for key in keys
            if (sa := self.xfrm.sas.get(key)) is not None
        ]
        if self.random.random() < 0.3:
            self.tally["the same with a gap"] += 1
            self.moved = True
            for sa in moved:
                del self.xfrm.sas[sa.key]
            child.steps.append(lambda: self.xfrm.sas.update({sa.key: sa for sa in moved}))
        else:
            self.xfrm.sas |= {sa.key: sa for sa in moved}

    def charon_works(self, child: Child) -> None:
        if child.steps:
            child.steps.pop(0)()

    def hear_expiries(self) -> None:
        """Charon rekeys what the kernel says is expiring, unless it is at it already or does not know it."""
        for key in self.xfrm.expired:
            for child in self.children:
                if not child.steps and child.pairs and key == SaKey(child.peer, child.pairs[-1][1]):
                    self.rekey(child)
        self.xfrm.expired.clear()

    def _new_spi(self) -> int:
        """Now and then one that was there before, and is not any more."""
        taken = {sa.spi for sa in self.xfrm.sas} | {
            spi for child in self.children for pair in child.pairs for spi in pair
        }
        again = self.random.randrange(0x101, self.spi + 2)
        if self.random.random() < 0.02 and again not in taken:
            return again
        self.spi += 1
        return self.spi

    def _install(self, child: Child, spi: int, *, inbound: bool) -> None:
        self.key += 1
        key = SaKey(child.local if inbound else child.peer, spi)
        self.xfrm.sas[key] = XfrmSa(
            key=key,
            source=child.peer if inbound else child.local,
            protocol=50,
            mode=child.mode,
            reqid=child.reqid,
            aead=AeadKey("rfc4106(gcm(aes))", Secret(self.key.to_bytes(20, "big")), 128),
            algorithm="rfc4106(gcm(aes)) icv 128",
            replay=Replay(oseq=0, seq=0, window=32, esn=False, extended=False),
            lifetime=Lifetime(0, 0, self.key, 0),
            encap=child.encap(inbound=inbound),
            if_id=child.if_id,
            mark=None if inbound else child.mark,
        )

    def _remove(self, child: Child, pair: tuple[int, int]) -> None:
        for key in (SaKey(child.peer, pair[1]), SaKey(child.local, pair[0])):
            sa = self.xfrm.sas.get(key)
            if sa is not None and sa.reqid == child.reqid:
                del self.xfrm.sas[key]
        if pair in child.pairs:
            child.pairs.remove(pair)

    def _switch(self, child: Child, spi: int) -> None:
        for selector in child.selectors:
            self._put_policy(child, selector, spi)

    def _put_policy(self, child: Child, selector: Selector, spi: int) -> None:
        template = Template(child.local, child.peer, spi, 50, child.reqid, child.mode)
        priority = 400000 - 100 * selector.source.prefixlen
        self.policies[child.reqid, selector] = XfrmPolicy(
            PolicyDirection.OUT,
            selector.source,
            selector.destination,
            priority,
            True,
            (template,),
            upper=selector.protocol,
            if_id=child.if_id,
            mark=child.mark,
        )

    # Packets

    def plaintext(self) -> None:
        """Packets of a selector: to the engine if they are led to one that takes them, else XFRM's way."""
        leading = [policy for policy in self.policies.values() if policy.templates]
        if not leading:
            return
        policy = self.random.choice(leading)
        if policy.upper in {0, UDP} and self.random.random() < 0.5 and self._frames(policy):
            return
        way = self._way_of(policy)
        led = self._is_led(policy, way)
        if self.random.random() < 0.8 and led and self.steering.gives:
            count = self._burst()
            for tunnel in self.engine.tunnels():
                if count and self._has(tunnel, policy, way):
                    self.tally["burst through the engine"] += 1
                    self.tally["the same by an interface"] += way is not None
                    self.tally["the same by a GRE device"] += way is not None and way.kind is InterfaceKind.GRE
                    self.tally["the same behind its header"] += tunnel.header is not None
                    self.tally["the same by a VTI device"] += way is not None and way.kind is InterfaceKind.VTI
                    self.tally["the same between hosts"] += tunnel.hosts
                    self.tally["the same between hosts in tunnel mode"] += tunnel.hosts and not policy.transports
                    self.engine.encrypts(tunnel.outbound, count)
            return
        if led and not self.engine.works:
            self.steering.plaintext_falls()
            self.tally["kernel took over by itself"] += 1
        elif led and self.steering.gone:
            self.tally["kernel sent beside an engine"] += 1
        key = SaKey(tunnel_of(policy.templates[0]).remote, policy.templates[0].spi)
        if key in self.xfrm.sas:
            self.steering.kernel_sends(key, self.random.randint(1, 3))

    def _frames(self, policy: XfrmPolicy) -> bool:
        """A VXLAN device's, if they are led to an engine that takes them; else it is the kernel that does VXLAN."""
        between = self.vxlans.get(_remote_of(policy))
        if between is None or between.interface.index not in self.devices.leads:
            return False
        device = between.interface
        if not self.steering.gives:
            self.steering.plaintext_falls()
            return False
        overlay = self.engine.objects[OverlayKey(device)]
        assert isinstance(overlay, Overlay)
        count = self._burst()
        if count:
            tunnel = self.random.choice([one for one in self.engine.tunnels() if one.key in overlay.tunnels])
            self.tally["the same by a VXLAN device"] += 1
            self.tally["the same of addresses of its own"] += not policy.of_ends
            self.engine.encrypts(tunnel.outbound, count)
        return True

    def _way_of(self, policy: XfrmPolicy) -> XfrmInterface | None:
        """The interface into which routing sends its packets; None if there is none. In tunnel mode what the kernel has
        made of them for a device may be led as other packets are.
        """
        if policy.upper == GRE:
            device = self.encapsulators[_remote_of(policy)].interface
            return device if policy.transports or device.index in self.devices.leads else None
        if policy.mark is not None and policy.mark[0] in self.vtis:
            return self.vtis[policy.mark[0]].interface
        return self.interfaces.get(policy.if_id)

    def _is_led(self, policy: XfrmPolicy, way: XfrmInterface | None) -> bool:
        if way is not None:
            return way.index in self.devices.leads
        if policy.transports or policy.of_ends:
            ends = str(policy.source), str(policy.destination)
            return ends in self.routes.hosts() and not self.routes.exempts(policy.selector)
        return self.routes.leads(policy.selector)

    @staticmethod
    def _has(tunnel: Tunnel, policy: XfrmPolicy, way: XfrmInterface | None) -> bool:
        """Whether a tunnel of the engine encrypts the packets of a policy."""
        if policy.transports or policy.of_ends or (way is not None and way.kind is InterfaceKind.GRE):
            return tunnel.interface == way and tunnel.key == tunnel_of(policy.templates[0])
        return tunnel.interface == way and not tunnel.hosts and policy.selector in tunnel.selectors

    def _burst(self) -> int:
        count = min(self.budget, self.random.choice([1, 3, BETWEEN_LOOKS // 2, BETWEEN_LOOKS]))
        self.budget -= count
        self.sent_since_read += count
        return count

    def _read(self) -> None:
        self.sent_since_read = 0

    # The daemon

    def start_daemon(self) -> None:
        self.daemon = Daemon(self)
        self.steering.holding = True
        self._guarded(self.daemon.look())

    def looked(self) -> None:
        """A look came through, at what its engine had sent by the time it was read. When charon has moved an SA, a pass
        has to follow before the next.
        """
        if not self.moved:
            self.budget = BETWEEN_LOOKS - self.sent_since_read

    def run_pass(self) -> bool:
        """One pass as the daemon's loop runs it; True if it left nothing to do."""

        async def once() -> bool:
            try:
                record = await self.daemon.reconciler.run_pass()
            except IpsecGwError as error:
                self.log.append(f"  pass failed: {error}")
                self.daemon.reconciler.distrust()
                return False
            self.log.extend(f"  = {step.op}: {step.outcome} {step.detail}" for step in record.steps)
            self.moved = self.moved and bool(record.failures)
            return not record.failures and self.daemon.reconciler.in_sync

        return bool(self._guarded(once()))

    def look(self) -> None:
        self._guarded(self.daemon.look())

    def pace(self) -> None:
        """As the daemon's task asks for rekeys."""
        key = self.daemon.refusals.pacer.due(self.clock)
        if key is None:
            return
        try:
            self.xfrm.expire_soft(key)
        except XfrmError as error:
            self.daemon.history.trouble(f"charon was not asked for a rekey of SA {key}: {error}")
        except Crash:
            self._die()

    def _guarded(self, work: Coroutine[Any, Any, T]) -> T | None:
        try:
            return finish(work)
        except Crash:
            self._die()
            return None

    def _die(self) -> None:
        """The daemon is gone for a while: nobody holds newborn SPIs, and the world goes on."""
        self.tally["daemon killed"] += 1
        self.edge.calm()
        self.steering.undrained.clear()  # a restart takes longer than that
        self.steering.holding = self.random.random() < 0.5
        if self.random.random() < 0.3:
            self.engine.die()
            self.tally["both died"] += 1
        if self.random.random() < 0.3:
            self.steering.plaintext_falls()  # it is away for too long
        for _ in range(self.random.randint(0, 6)):
            self.random.choice([self.plaintext, self.something_of_charon])()
        if self.random.random() < 0.5:
            self.engine.start()
        self.start_daemon()

    def pause_daemon(self) -> None:
        """It is kept from running for too long, and then sees to what the kernel has taken over, or tries again."""
        self.daemon.was_away = True
        self.steering.plaintext_falls()
        for _ in range(self.random.randint(0, 8)):
            self.random.choice([self.plaintext, self.plaintext, self.something_of_charon])()

    # Disturbances

    def something_of_charon(self) -> None:
        chance = self.random.random()
        busy = [child for child in self.children if child.steps]
        idle = [child for child in self.children if not child.steps]
        if self.random.random() < 0.06:
            self.random.choice([self.except_something, self.except_something, self.drop_exceptions])()
        elif busy and chance < 0.6:
            self.charon_works(self.random.choice(busy))
        elif idle and chance < 0.75:
            self.rekey(self.random.choice(idle))
        elif len(self.children) < 4 and chance < 0.88:
            self.establish()
        elif idle and chance < 0.92:
            self.move(self.random.choice(idle))
        elif (behind := [child for child in idle if child.port]) and chance < 0.96:
            self.map_anew(self.random.choice(behind))
        elif self.children and chance < 0.98:
            self.terminate(self.random.choice(self.children))
        else:
            self.restart_charon()

    def something_of_the_engine(self) -> None:
        chance = self.random.random()
        if not self.engine.reachable:
            self.engine.start()
        elif chance < 0.4:
            self.engine.die()
            self.tally["engine died"] += 1
            if self.random.random() < 0.5:
                self.engine.start()
        else:
            self.tally["engine out of reach"] += 1
            self.engine.reachable = False

    def something_of_the_network(self) -> None:
        peer = self.random.choice(PEERS)
        mac = f"02:00:00:00:00:{self.random.randint(2, 5):02x}"
        self.hops[peer] = replace(self.hops[peer], mac=mac)
        self.unresolved ^= {self.random.choice(PEERS)}
        self.limits = self.random.choice(LIMITS)
        if self.random.random() < 0.2:
            self._make_interface_anew()

    def _make_interface_anew(self) -> None:
        """Or take it away, or bring it back. The programs on it go with it, what is noted of it stays. A GRE device may
        also get another TOS, or a key.
        """
        self.tally["interface made anew"] += 1
        if self.random.random() < 0.5:
            self.random.choice([self._change_device, self._change_vxlan])()
            return
        self.index += 1
        if self.random.random() < 0.3:
            mark = self.random.choice(MARKS[:-1])
            vti = self.vtis[mark]
            self.vtis[mark] = replace(vti, interface=replace(vti.interface, index=self.index))
            return
        if_id = self.random.choice(IF_IDS[:-1])
        if self.random.random() < 0.3:
            self.interfaces.pop(if_id, None)
        else:
            self.interfaces[if_id] = XfrmInterface(self.index, f"ipsec{if_id}")

    def _change_device(self) -> None:
        self.index += 1
        peer = self.random.choice(list(self.encapsulators))
        device = self.encapsulators[peer]
        anew = XfrmInterface(self.index, device.interface.name, device.interface.kind)
        self.encapsulators[peer] = self.random.choice(
            [
                replace(device, interface=anew),
                replace(device, dscp=not device.dscp),
                replace(device, oddity="" if device.oddity else "has a key"),
            ]
        )

    def _change_vxlan(self) -> None:
        """Made anew, with another VNI, down or up, and its forwarding database with an entry more or less."""
        self.index += 1
        peer = self.random.choice(list(self.vxlans))
        device = self.vxlans[peer]
        self.vxlans[peer] = self.random.choice(
            [
                replace(device, interface=replace(device.interface, index=self.index)),
                replace(device, vni=device.vni + 1),
                replace(device, up=not device.up),
                replace(device, elsewhere=() if device.elsewhere else ("10.0.0.9",)),
            ]
        )

    def break_something(self) -> None:
        self.edge.fails_in = self.random.randint(1, 30)

    def break_for_good(self) -> None:
        """A call that was made before fails from now on, until the daemon is killed or something else breaks."""
        calls = [line.strip() for line in self.log[-_REMEMBERED:] if line.startswith("    ")]
        self.edge.broken = self.random.choice(calls or [""])
        self.tally["call failed for good"] += bool(calls)

    def kill_soon(self) -> None:
        self.edge.dies_in = self.random.randint(1, 60)

    def _meanwhile(self) -> bool:
        """Between two calls of the daemon the world goes on, and so do its other tasks, now and then."""
        if self.random.random() >= self.unrest:
            return False
        between, self.edge.between = self.edge.between, nothing_happens
        try:
            kinds = [self.plaintext, self.plaintext, self.something_of_charon, self.something_of_the_engine]
            kinds += [self._look] if self.edge.what.startswith(AWAITED) else []
            kind = self.random.choice(kinds)
            self.log.append(f"  meanwhile {kind.__name__}")
            kind()
        finally:
            self.edge.between = between
        return True

    def _look(self) -> None:
        finish(self.daemon.look())

    def disturb(self, events: int) -> None:
        """Random events. A lost one is followed by no pass, a duplicated one by several."""
        weighted = [
            (self.something_of_charon, 30),
            (self.run_pass, 30),
            (self.plaintext, 14),
            (self.look, 10),
            (self.pace, 6),
            (self.hear_expiries, 4),
            (self.something_of_the_engine, 4),
            (self.break_something, 6),
            (self.break_for_good, 2),
            (self.kill_soon, 2),
            (self.pause_daemon, 3),
            (self.something_of_the_network, 3),
        ]
        kinds = [kind for kind, _ in weighted]
        for kind in self.random.choices(kinds, [weight for _, weight in weighted], k=events):
            self.clock += self.random.choice([0.0, 0.1, 1.0])
            self.edge.between = self._meanwhile
            self.log.append(kind.__name__)
            kind()

    # The end

    def settle(self) -> int:
        """No more disturbances: how many passes it took until the state was the one computed from scratch."""
        self.edge.calm()
        self.unresolved.clear()
        self.engine.start()
        for passes in range(1, BOUND + 1):
            self.clock += 400.0
            self.log.append(f"settle {passes}")
            for child in self.children:
                while child.steps:
                    self.charon_works(child)
            self.look()
            self.run_pass()
            for _ in range(2 * len(self.xfrm.sas)):
                self.pace()
                self.clock += 1.0
            self.hear_expiries()
            for _ in range(4):
                self.plaintext()
            if not self.differences() and self.run_pass() and not self.differences():
                self.tally["call failed"] = self.edge.failures
                self.tally["tunnel in the engine at the end"] = len(self.engine.tunnels())
                self.tally["interface led at the end"] = len(self.devices.leads)
                frames = {one.interface.index for one in self.vxlans.values()}
                self.tally["VXLAN device led at the end"] = len(self.devices.leads.keys() & frames)
                self.tally["hosts led at the end"] = len(self.routes.hosts())
                exempt = [one for one in self.routes.rules if one.get("goto") == 219 and "iifname" not in one]
                self.tally["exemption in place at the end"] = len(exempt)
                encapsulated = [t for t in self.engine.tunnels() if self.engine.sa(t.outbound).encap]
                self.tally["encapsulated tunnel in the engine at the end"] = len(encapsulated)
                return passes
        raise Broken("; ".join(self.differences()) or "a system in sync plans operations")

    def differences(self) -> list[str]:
        """Everything that is not as computed from scratch, with no memory of what happened."""
        if any(child.steps for child in self.children):
            return ["charon is at work"]
        offer = self.daemon.link.offer
        wanted = desired(offer, SETTINGS, self._shown(tuple(self.policies.values()))).objects
        engine = {key: obj for key, obj in wanted.items() if isinstance(obj, EngineSa | NextHop | Tunnel | Overlay)}
        claimed = {obj.key.sa for obj in wanted.values() if isinstance(obj, Guard)}
        held = {key for key, owner in self.steering.owner.items() if owner == "engine"}
        ideal = FakeRoutes(Edge(self.random, lambda _note: None))
        tables = FakeTables(ideal.edge)
        hosts = HostsDriver(ideal, kernel_index=7, tables=tables)
        writer = LeadDriver(ideal, kernel_index=7, engine_name="vp", engine_mac="", after_exempt=hosts.mark)
        for obj in wanted.values():
            if isinstance(obj, Lead | Exempt):
                finish(writer.create(obj))
            elif isinstance(obj, HostsLead):
                finish(hosts.create(obj))
        devices = FakeDevices(ideal.edge)
        interfaces = InterfaceDriver(devices, UPLINK)
        for obj in wanted.values():
            if isinstance(obj, InterfaceEntry | InterfaceLead):
                finish(interfaces.create(obj))
        checks = {
            "XFRM interfaces": (self.devices.facts(), devices.facts()),
            "engine": (self.engine.objects, engine),
            "guard": (held, claimed),
            "steering": (
                self.steering.entries,
                {o.key.sa: o.peer for o in wanted.values() if isinstance(o, Steer)},
            ),
            "rules and routes": (self.routes.facts(), ideal.facts()),
            "marks": (self.tables.facts(), tables.facts()),
            "rest until the next pass": (self.daemon.reconciler.rest(0.5, 5.0), 5.0),
            "leftovers of the daemon": (
                {*self.daemon.refusals.reasons(), *self.daemon.link.counters()} - self.xfrm.sas.keys(),
                set(),
            ),
            "guard open to the kernel": (self.steering.gone, False),
            "leftovers of the guard": ({*self.steering.owner, *self.steering.seen} - self.xfrm.sas.keys(), set()),
        }
        return [f"{what}: {_difference(*pair)}" for what, pair in checks.items() if pair[0] != pair[1]]


def _remote_of(policy: XfrmPolicy) -> IpAddress:
    """The other end of what a device sends by it."""
    return tunnel_of(policy.templates[0]).remote if policy.transports else policy.destination.network_address


def _difference(here: Any, there: Any) -> str:
    """What is in place and not wanted, and the other way round."""
    if isinstance(here, dict):
        here, there = set(here.items()), set(there.items())
    if isinstance(here, set):
        return f"{sorted(map(str, here - there))} instead of {sorted(map(str, there - here))}"
    return f"{here} instead of {there}"
