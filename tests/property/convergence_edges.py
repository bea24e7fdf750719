"""Everything outside of the control plane, as fakes that know what reaches the wire.

Each call of the control plane crosses an :class:`Edge`: there it may fail once, the daemon may die, and the world may
go on in between. What must hold at every step (:class:`Law`) is checked at every such crossing.
"""

from __future__ import annotations

import functools
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from ipaddress import ip_network
from random import Random
from typing import Any

from pyroute2.netlink.exceptions import NetlinkError

from ipsec_gw.engines.port import Capabilities, Counters
from ipsec_gw.errors import EngineError, EngineUnavailable, IpsecGwError, SteeringError, UsedKeyError, XfrmError
from ipsec_gw.mirror.nftables import Table
from ipsec_gw.model.algorithms import ALGORITHMS
from ipsec_gw.model.ids import Direction, EngineName, IpNetwork, SaKey
from ipsec_gw.model.objects import EngineKey, EngineObject, EngineSa, Overlay, OverlayKey, Selector, Tunnel, UdpPeer
from ipsec_gw.model.snapshot import XfrmSa
from ipsec_gw.ownership.guard import HAND_BACK_MARGIN, KEPT_AHEAD
from ipsec_gw.ownership.hosts import TABLE as HOSTS_TABLE
from ipsec_gw.ownership.lead import TABLE
from xdp_steer.xfrmi import Uplink

ANY = "0.0.0.0/0"


class Crash(BaseException):
    """The daemon is killed here."""


class Broken(AssertionError):
    """An invariant of DESIGN.md, section 3, does not hold."""


def nothing_happens() -> bool:
    """Between two calls."""
    return False


class Edge:
    """Where the control plane meets the world. Countdowns of calls until one fails, and until the daemon dies.

    ``broken`` is a call that fails again and again. ``between`` is what the world does before a call, and tells if it
    did anything; ``law`` is what holds at every step. ``failures`` counts the calls that failed; ``loses_answers`` is
    how probable it is that a call is done and not answered. ``what`` is the call that crosses now.
    """

    def __init__(self, random: Random, note: Callable[[str], None]) -> None:
        self.random = random
        self.note = note
        self.fails_in = self.dies_in = -1
        self.failures = 0
        self.broken = self.what = ""
        self.loses_answers = 0.01
        self.between: Callable[[], bool] = nothing_happens
        self.law: Callable[[], None] = lambda: None

    def cross(self, what: str, error: Callable[[str], Exception]) -> None:
        self.law()
        self.what = what
        self.note(f"    {what}")
        if self.between():
            self.law()
        self.dies_in -= 1
        self.fails_in -= 1
        if self.dies_in == 0:
            self.note(f"  the daemon dies before {what}")
            raise Crash
        if self.fails_in == 0 or what == self.broken:
            self.note(f"  {what} fails")
            self.failures += 1
            raise error(f"{what} refused by the test")

    def calm(self) -> None:
        self.fails_in = self.dies_in = -1
        self.broken = ""
        self.between = nothing_happens


class Wire:
    """What left, by key material: no number twice, whoever sends (a nonce used again would be the end)."""

    def __init__(self) -> None:
        self.sent: dict[bytes, list[tuple[int, int]]] = {}

    def emit(self, who: str, material: bytes, first: int, count: int) -> None:
        last = first + count - 1
        for earlier, until in self.sent.setdefault(material, []):
            if first <= until and earlier <= last:
                raise Broken(f"{who} sends numbers {first} to {last} with a key that has sent {earlier} to {until}")
        self.sent[material].append((first, last))


@dataclass
class Seen:
    passed: int = 0
    dropped: int = 0


class FakeXfrm:
    """The kernel's SAs (:class:`ipsec_gw.ownership.guard.KernelSas`)."""

    def __init__(self, edge: Edge) -> None:
        self.edge = edge
        self.sas: dict[SaKey, XfrmSa] = {}
        self.expired: list[SaKey] = []
        self.steering: FakeSteering

    def sa(self, key: SaKey) -> XfrmSa | None:
        self.edge.cross(f"GETSA {key}", XfrmError)
        return self.sas.get(key)

    def raise_oseq(self, key: SaKey, oseq: int) -> None:
        self.edge.cross(f"NEWAE {key}", XfrmError)
        sa = self.sas.get(key)
        if sa is None:
            raise XfrmError(f"SA {key} is gone from the kernel")
        if self.steering.owner.get(key) != "engine":
            raise Broken(f"the number of {key} is written, which is the kernel's own (invariant 4)")
        if oseq > sa.replay.oseq:
            if oseq < sa.replay.oseq + HAND_BACK_MARGIN // 2:
                raise Broken(f"the number of {key} is written so near that the kernel may pass it (invariant 4)")
            self.sas[key] = replace(sa, replay=replace(sa.replay, oseq=oseq))

    def expire_soft(self, key: SaKey) -> None:
        self.edge.cross(f"EXPIRE {key}", XfrmError)
        if key not in self.sas:
            raise XfrmError(f"SA {key} is gone from the kernel")
        self.expired.append(key)


class FakeSteering:
    """Guard and steering maps, and the programs that read them."""

    def __init__(self, edge: Edge, wire: Wire, xfrm: FakeXfrm) -> None:
        self.edge, self.wire, self.xfrm = edge, wire, xfrm
        self.owner: dict[SaKey, str] = {}
        self.seen: dict[SaKey, Seen] = {}
        self.entries: dict[SaKey, UdpPeer | None] = {}
        self.ports: frozenset[int] = frozenset()
        self.undrained: set[SaKey | int] = set()
        """SAs, and the indices of VXLAN devices whose frames may be on their way to the engine."""
        self.holding = True
        self.gone = False
        self.engine: FakeEngine
        self.routes: FakeRoutes
        self.devices: FakeDevices

    def kernel_sends(self, key: SaKey, count: int) -> None:
        """The kernel gives out numbers; the guard lets them pass or holds them back."""
        sa = self.xfrm.sas[key]
        first = sa.replay.oseq + 1
        self.xfrm.sas[key] = replace(sa, replay=replace(sa.replay, oseq=sa.replay.oseq + count))
        seen = self.seen.setdefault(key, Seen())
        claimed = self.owner.get(key) == "engine" and not self.gone
        if claimed or (key not in self.owner and self.holding):
            seen.dropped += count
            return
        seen.passed += count
        assert sa.aead is not None
        self.wire.emit("the kernel", sa.aead.secret.reveal(), first, count)

    def plaintext_falls(self) -> None:
        """Plaintext that is led to an engine finds no socket, or no daemon: its dock says so."""
        self.gone = True

    @property
    def gives(self) -> bool:
        """Whether the engine gets plaintext that is led to it."""
        return self.engine.works and not self.gone

    def set_engine(self, on: bool) -> None:
        self.edge.cross(f"engine: {on}", SteeringError)

    def engine_gone(self) -> bool:
        self.edge.cross("engine gone?", SteeringError)
        return self.gone

    def set_engine_gone(self, gone: bool) -> None:
        self.edge.cross(f"engine gone: {gone}", SteeringError)
        self.gone = gone

    def claim(self, key: SaKey) -> None:
        self.edge.cross(f"claim {key}", SteeringError)
        self.owner[key] = "engine"

    def release(self, key: SaKey) -> None:
        self.edge.cross(f"release {key}", SteeringError)
        self._nobody_else_sends(key)
        self.owner[key] = "kernel"

    def forget(self, key: SaKey) -> None:
        self.edge.cross(f"forget {key}", SteeringError)
        if key in self.xfrm.sas:
            self._nobody_else_sends(key)
        self.owner.pop(key, None)
        self.seen.pop(key, None)

    def claimed(self) -> frozenset[SaKey]:
        self.edge.cross("claimed", SteeringError)
        return frozenset(key for key, owner in self.owner.items() if owner == "engine")

    def guarded(self) -> frozenset[SaKey]:
        self.edge.cross("guarded", SteeringError)
        return frozenset({*self.owner, *self.seen})

    def guard_counters(self) -> dict[SaKey, Seen]:
        self.edge.cross("guard counters", SteeringError)
        return {key: replace(seen) for key, seen in self.seen.items()}

    def set_local(self, addresses: frozenset[object]) -> None:
        self.edge.cross("set local", SteeringError)

    def nat_t_ports(self) -> frozenset[int]:
        self.edge.cross("ports", SteeringError)
        return self.ports

    def set_nat_t_ports(self, ports: frozenset[int]) -> None:
        self.edge.cross("set ports", SteeringError)
        self.ports = ports

    def steer(self, key: SaKey, peer: UdpPeer | None) -> None:
        self.edge.cross(f"steer {key}", SteeringError)
        self.entries[key] = peer

    def unsteer(self, key: SaKey) -> None:
        self.edge.cross(f"unsteer {key}", SteeringError)
        if key in self.entries and self.engine.works:
            self.undrained.add(key)
        self.entries.pop(key, None)

    def peers(self) -> dict[SaKey, UdpPeer | None]:
        self.edge.cross("peers", SteeringError)
        return dict(self.entries)

    def _nobody_else_sends(self, key: SaKey) -> None:
        if self.gone:
            return
        for tunnel in self.engine.tunnels():
            if tunnel.outbound == key and is_led(tunnel, self.routes, self.devices, self.engine.overlays()):
                raise Broken(f"the guard of {key} opens while plaintext is led to its engine (invariant 3)")


class FakeEngine:
    """The engine port. ``alive`` is the process, ``reachable`` its API; ``restarted`` until the daemon has noticed.

    ``taken`` is the process that has the interfaces: they are lost with it, and taken by opening it.
    """

    name = EngineName.VPP

    def __init__(self, edge: Edge, wire: Wire) -> None:
        self.edge, self.wire = edge, wire
        self.objects: dict[EngineKey, EngineObject] = {}
        self.sent: dict[SaKey, int] = {}
        self.left: dict[SaKey, int] = {}
        self.process = 1
        self.seen_process = 1
        self.taken = 0
        self.alive = self.reachable = True
        self.used: set[bytes] = set()
        self.taking: Callable[[], Awaitable[None]]
        self.being_read: Callable[[], None] = lambda: None
        self.steering: FakeSteering

    @property
    def epoch(self) -> int:
        """Of the process that was reached last, as the port has it."""
        return self.seen_process

    @property
    def works(self) -> bool:
        """Packets that are steered or led to it get into it, whether its API answers or not."""
        return self.alive and self.taken == self.process

    @property
    def restarted(self) -> bool:
        return self.seen_process != self.process

    def sa(self, key: SaKey) -> EngineSa:
        found = self.objects[key]
        assert isinstance(found, EngineSa)
        return found

    def tunnels(self) -> list[Tunnel]:
        return [obj for obj in self.objects.values() if isinstance(obj, Tunnel)]

    def overlays(self) -> list[Overlay]:
        return [obj for obj in self.objects.values() if isinstance(obj, Overlay)]

    def die(self) -> None:
        if self.seen_process == self.process:
            self.left = dict(self.sent)
        self.objects.clear()
        self.sent.clear()
        self.alive = self.reachable = False

    def start(self) -> None:
        if not self.alive:
            self.process += 1
        self.alive = self.reachable = True

    def encrypts(self, key: SaKey, count: int) -> None:
        self.wire.emit("the engine", material(self.sa(key)), self.sent[key] + 1, count)
        self.sent[key] += count

    async def open(self) -> Capabilities:
        self._cross("open")
        if self.taken != self.process:
            await self.taking()
        self.seen_process = self.taken = self.process
        self._remember()
        return Capabilities(frozenset(ALGORITHMS), True, True, 4096, True, "fake", gre=True, vxlan=True)

    async def close(self) -> None:
        pass

    async def retrieve(self) -> Mapping[EngineKey, EngineObject]:
        self._cross("retrieve")
        self._remember()
        return dict(self.objects)

    async def create(self, obj: EngineObject) -> None:
        self._change(f"create {obj.key}", lambda: self._create(obj))

    async def update(self, obj: EngineObject) -> None:
        self._change(f"update {obj.key}", lambda: self._update(obj))

    async def delete(self, key: EngineKey) -> None:
        self._change(f"delete {key}", lambda: self._delete(key))

    async def counters(self) -> Mapping[SaKey, Counters]:
        self._cross("counters")
        self.being_read()
        return {key: Counters(count, count) for key, count in self.sent.items()}

    async def numbers(self) -> Mapping[SaKey, int]:
        return {}

    async def vitals(self) -> None:
        return None

    def last_counters(self) -> Mapping[SaKey, Counters]:
        """Of the process that was reached last, dead or alive; now and then its memory cannot be read."""
        if self.edge.random.random() < 0.5:
            return {}
        last = self.left if self.restarted or not self.alive else self.sent
        return {key: Counters(count, count) for key, count in last.items()}

    def _cross(self, what: str) -> None:
        self.edge.cross(f"engine {what}", EngineError)
        if not self.reachable:
            raise EngineUnavailable("the API socket is gone")
        if self.restarted and what != "open":
            raise EngineUnavailable("the connection was to another process")

    def _change(self, what: str, change: Callable[[], None]) -> None:
        """The connection may break after the change was made: the caller cannot tell."""
        self._cross(what)
        change()
        if self.edge.random.random() < self.edge.loses_answers and self.edge.fails_in >= 0:
            self.reachable = False
            self.edge.note(f"  engine {what} was done, but the answer is lost")
            raise EngineUnavailable("no answer")

    def _create(self, obj: EngineObject) -> None:
        if obj.key in self.objects:
            raise EngineError(f"{obj.key} exists")
        if isinstance(obj, EngineSa):
            self._accept(obj)
            self.sent[obj.key] = 0
        self._check(obj)
        self.objects[obj.key] = obj

    def _accept(self, sa: EngineSa) -> None:
        if sa.direction is Direction.IN:
            return
        if material(sa) in self.used:
            raise UsedKeyError(f"{sa.key} has a key that was here before")
        # What charon moves to another address between the check and this call is sent on behind the raised number.
        if any(first <= KEPT_AHEAD for first, _ in self.wire.sent.get(material(sa), ())):
            raise Broken(f"a used key is given to the engine with {sa.key} (invariant 3)")
        if self.steering.owner.get(sa.key) != "engine":
            raise Broken(f"the engine gets {sa.key} before its guard is closed (invariant 3)")
        self.used.add(material(sa))

    def _update(self, obj: EngineObject) -> None:
        old = self.objects.get(obj.key)
        if old is None:
            raise EngineError(f"{obj.key} does not exist")
        if isinstance(obj, EngineSa):
            if not isinstance(old, EngineSa) or replace(old, source=obj.source, encap=obj.encap) != obj:
                raise EngineError(f"{obj.key}: only the source and the ports can change")
            if (old.encap is None) != (obj.encap is None):
                raise EngineError(f"{obj.key}: encapsulated it is or not")
            if old.source != obj.source and any(obj.key in tunnel.inbound for tunnel in self.tunnels()):
                raise EngineError(f"{obj.key}: its source does not move while a tunnel uses it")
        self._check(obj)
        if isinstance(old, Tunnel) and isinstance(obj, Tunnel):
            for key in set(old.inbound) - set(obj.inbound):
                self._drained(key)
        self.objects[obj.key] = obj

    def _drained(self, key: EngineKey) -> None:
        if isinstance(key, OverlayKey) and key.interface.index in self.steering.undrained:
            raise Broken(f"{key} leaves the engine while frames that were led to it are on their way")
        for one in self.objects[key].inbound if isinstance(self.objects[key], Tunnel) else (key,):
            if one in self.steering.undrained:
                raise Broken(f"{one} leaves the engine while packets that were steered to it are on their way")

    def _check(self, obj: EngineObject) -> None:
        if isinstance(obj, Overlay) and not obj.tunnels <= {one.key for one in self.tunnels() if obj.fits(one)}:
            raise EngineError(f"{obj.key} is over what is not there")
        if not isinstance(obj, Tunnel):
            return
        if not {*obj.inbound, obj.outbound, obj.remote} <= self.objects.keys():
            raise EngineError(f"{obj.key} refers to what is not there")
        for other in self.tunnels():
            if other.key != obj.key and set(other.inbound) & set(obj.inbound):
                raise EngineError(f"{obj.key}: an inbound SA belongs to {other.key}")

    def _delete(self, key: EngineKey) -> None:
        if key not in self.objects:
            raise EngineError(f"{key} does not exist")
        for other in self.tunnels():
            if key in {*other.inbound, other.outbound, other.remote}:
                raise EngineError(f"{key} is used by {other.key}")
        for overlay in self.overlays():
            if key in overlay.tunnels:
                raise EngineError(f"{key} is used by {overlay.key}")
        self._drained(key)
        gone = self.objects.pop(key)
        if isinstance(gone, EngineSa) and not self.sent.pop(gone.key) and gone.direction is Direction.OUT:
            self.used.discard(material(gone))

    def _remember(self) -> None:
        self.used |= {material(o) for o in self.objects.values() if isinstance(o, EngineSa) and o.direction == "out"}


def material(sa: EngineSa) -> bytes:
    return sa.secret.reveal() + sa.salt.reveal()


class Message(dict[str, Any]):
    """A netlink message as pyroute2 shows it."""

    def get_attr(self, name: str) -> Any:
        return self.get(name)


ANYWHERE = {socket.AF_INET: ANY, socket.AF_INET6: "::/0"}
FOREIGN_RULES: list[dict[str, Any]] = [
    {"family": family, "priority": priority, "src": here, "dst": there, "table": table}
    for family, here, there in (
        (socket.AF_INET, "192.168.1.0/24", "172.16.1.0/24"),
        (socket.AF_INET6, "fd01:1::/64", "fd02:1::/64"),
    )
    for priority, table in ((199, 100), (169, TABLE), (220, 220))
]
FOREIGN_ROUTES: list[dict[str, Any]] = [
    {"table": table, "dst": dst, "metrics": {"mtu": 1400}}
    for table in (100, 220, 254)
    for dst in ("172.16.1.0/24", "fd02:1::/64")
]
"""An administrator's, and charon's."""


class FakeRoutes:
    """The part of AsyncIPRoute that the drivers of leads use: rules, and the routes of all tables."""

    def __init__(self, edge: Edge) -> None:
        self.edge = edge
        self.rules = list(FOREIGN_RULES)
        self.table = {(route["table"], route["dst"]): route for route in FOREIGN_ROUTES}

    def leads(self, selector: Selector) -> bool:
        source, destination = _text(selector.source), _text(selector.destination)
        return (TABLE, destination) in self.table and any(
            (rule["src"], rule["dst"], rule.get("table")) == (source, destination, TABLE)
            and rule.get("ip_proto", 0) == selector.protocol
            and "iifname" not in rule
            for rule in self.rules
            if rule not in FOREIGN_RULES
        )

    def led(self) -> set[tuple[str, str]]:
        """Sources and destinations that are led."""
        return {
            (rule["src"], rule["dst"])
            for rule in self.rules
            if rule not in FOREIGN_RULES
            and (rule.get("table"), "iifname" in rule) == (TABLE, False)
            and (TABLE, rule["dst"]) in self.table
        }

    def exempts(self, selector: Selector) -> bool:
        ends = {"src": str(selector.source), "dst": str(selector.destination)}
        wanted = ends | ({"ip_proto": selector.protocol} if selector.protocol else {})
        return any(rule.get("goto") is not None and wanted.items() <= rule.items() for rule in self.rules)

    def hosts(self) -> set[tuple[str, str]]:
        """This machine's addresses and peers' between which what they say themselves is led."""
        if (HOSTS_TABLE, ANY) not in self.table:
            return set()
        return {(rule["src"], rule["dst"]) for rule in self.rules if rule.get("table") == HOSTS_TABLE}

    def facts(self) -> set[str]:
        """To compare with others."""
        return {str(sorted(rule.items())) for rule in self.rules} | {str(route) for route in self.table.values()}

    async def rule(self, command: str, **rule: Any) -> None:
        """As the kernel looks for a rule: what is not asked for, an address above all, may be whatever it is."""
        self.edge.cross(f"rule {command} {rule}", lambda _text: NetlinkError(105))
        anywhere = ANYWHERE[rule["family"]]
        if anywhere in {rule.get("src"), rule.get("dst")}:
            raise NetlinkError(22)
        for side in ("src", "dst"):
            if ip_network(rule.get(side, anywhere)).version != ip_network(anywhere).version:
                raise NetlinkError(22)
        found = next((one for one in self.rules if rule.items() <= one.items()), None)
        if command == "add":
            if found is not None:
                raise NetlinkError(17)
            self.rules.append({"src": anywhere, "dst": anywhere, **rule})
        elif found is None:
            raise NetlinkError(2)
        else:
            if found in FOREIGN_RULES:
                raise Broken(f"{found} is deleted, which belongs to somebody else")
            self.rules.remove(found)

    async def route(self, command: str, **route: Any) -> None:
        self.edge.cross(f"route {command} {route['dst']}", lambda _text: NetlinkError(105))
        if route["dst"] == "default":
            route["dst"] = ANYWHERE[route["family"]]
        key = (route["table"], route["dst"])
        if self.table.get(key) in FOREIGN_ROUTES:
            raise Broken(f"{command} of {self.table[key]}, which belongs to somebody else")
        if command == "replace":
            self.table[key] = route
        elif self.table.pop(key, None) is None:
            raise NetlinkError(3)

    async def get_rules(self, *, family: int) -> AsyncIterator[Message]:
        self.edge.cross("get rules", lambda _text: NetlinkError(105))
        return self._each([self._rule(rule) for rule in self.rules if rule["family"] == family])

    async def get_routes(self, *, table: int, family: int) -> AsyncIterator[Message]:
        self.edge.cross("get routes", lambda _text: NetlinkError(105))
        version = ip_network(ANYWHERE[family]).version
        return self._each(
            [
                self._route(route)
                for (where, destination), route in self.table.items()
                if where == table and ip_network(destination).version == version
            ]
        )

    @staticmethod
    async def _each(messages: list[Message]) -> AsyncIterator[Message]:
        for message in messages:
            yield message

    @staticmethod
    def _rule(rule: dict[str, Any]) -> Message:
        told = {name: rule.get(name) for name in ("table", "goto", "ip_proto", "sport_range", "dport_range", "iifname")}
        shown = Message(priority=rule["priority"], **told)
        for side in ("src", "dst"):
            network = ip_network(rule[side])
            shown |= {side: str(network.network_address), f"{side}_len": network.prefixlen}
        return Message(shown)

    @staticmethod
    def _route(route: dict[str, Any]) -> Message:
        network = ip_network(route["dst"])
        return Message(
            dst=str(network.network_address),
            dst_len=network.prefixlen,
            prefsrc=route.get("prefsrc"),
            RTA_METRICS={"attrs": [("RTAX_MTU", route.get("metrics", {}).get("mtu"))]},
        )


class FakeTables:
    """The kernel's tables of nf_tables, as many as there are names."""

    def __init__(self, edge: Edge) -> None:
        self.edge = edge
        self.tables: dict[str, Table] = {}

    def keep(self, table: Table) -> None:
        self.edge.cross(f"keep {table.name}", IpsecGwError)
        self.tables[table.name] = table
        if not table.has_rules:
            del self.tables[table.name]

    def change(self, table: Table, former: Table) -> None:
        if self.tables.get(table.name) not in {former, None}:
            raise Broken(f"{table.name} is not what it is taken for")
        self.keep(table)

    def facts(self) -> set[Table]:
        """To compare with others."""
        return set(self.tables.values())


class FakeDevices:
    """What the XDP side keeps of XFRM interfaces, by their index: entries and leads."""

    def __init__(self, edge: Edge) -> None:
        self.edge = edge
        self.entries: dict[int, tuple[int, frozenset[int]]] = {}
        self.leads: dict[int, tuple[int, int, frozenset[int]]] = {}
        self.steering: FakeSteering | None = None

    def facts(self) -> set[str]:
        """To compare with others."""
        return {f"entry {one}" for one in self.entries.items()} | {f"lead {one}" for one in self.leads.items()}

    def admit(self, index: int, vlan: int, versions: frozenset[int], *, policed: bool = False) -> None:
        self.edge.cross(f"admit {index}", SteeringError)
        self.entries[index] = (vlan, versions)

    def shut(self, index: int, vlan: int) -> None:
        self.edge.cross(f"shut {index} {vlan}", SteeringError)
        self.entries.pop(index, None)

    def admitted(self) -> dict[int, tuple[int, frozenset[int]]]:
        self.edge.cross("admitted", SteeringError)
        return dict(self.entries)

    def lead(self, index: int, vlan: int, mtu: int, versions: frozenset[int], _uplink: Uplink) -> None:
        self.edge.cross(f"lead {index}", SteeringError)
        self.leads[index] = (vlan, mtu, versions)

    def unlead(self, index: int) -> None:
        self.edge.cross(f"unlead {index}", SteeringError)
        if index in self.leads and self.steering is not None and self.steering.engine.works:
            self.steering.undrained.add(index)
        self.leads.pop(index, None)

    def led(self) -> dict[int, tuple[int, int, frozenset[int]]]:
        self.edge.cross("led", SteeringError)
        return dict(self.leads)


def is_led(tunnel: Tunnel, routes: FakeRoutes, devices: FakeDevices, overlays: list[Overlay]) -> bool:
    """Whether plaintext comes to the tunnel."""
    if any(one.key.interface.index in devices.leads for one in overlays if tunnel.key in one.tunnels):
        return True
    if tunnel.hosts:
        return hosts_of(tunnel) in routes.hosts()
    if tunnel.interface is not None:
        return tunnel.interface.index in devices.leads
    return any(map(routes.leads, tunnel.selectors))


def hosts_of(tunnel: Tunnel) -> tuple[str, str]:
    """Its two ends, as a rule of routing has them."""
    return f"{tunnel.local}/32", f"{tunnel.remote}/32"


@functools.cache
def _text(network: IpNetwork) -> str:
    return str(network)


@dataclass
class Law:
    """What holds at every step (DESIGN.md, section 3). Numbers used twice are :class:`Wire`'s business. ``exists`` says
    whether there is an interface of an index: by one that is gone nothing comes in whatever anybody does.
    """

    xfrm: FakeXfrm
    steering: FakeSteering
    engine: FakeEngine
    routes: FakeRoutes
    devices: FakeDevices
    exists: Callable[[int], bool]

    def check(self) -> None:
        if not self.engine.works:
            return
        tunnels = self.engine.tunnels()
        held = {key for tunnel in tunnels for key in tunnel.inbound}
        if not self.steering.entries.keys() <= held:
            strangers = ", ".join(map(str, self.steering.entries.keys() - held))
            raise Broken(f"XDP steers {strangers}, which the engine does not hold (invariant 2)")
        self._nobody_led_astray(tunnels)
        for tunnel in tunnels:
            self._one_owner(tunnel)
            self._way_in(tunnel)
        for overlay in self.engine.overlays():
            self._way_of_frames(overlay, tunnels)

    def _nobody_led_astray(self, tunnels: list[Tunnel]) -> None:
        """Plaintext that comes to an engine without a tunnel for it is lost."""
        known = {(_text(one.source), _text(one.destination)) for tunnel in tunnels for one in tunnel.selectors}
        interfaces = {tunnel.interface.index for tunnel in tunnels if tunnel.interface is not None}
        interfaces |= {overlay.key.interface.index for overlay in self.engine.overlays()}
        hosts = {hosts_of(tunnel) for tunnel in tunnels if tunnel.hosts}
        strangers = [
            *self.routes.led() - known,
            *self.devices.leads.keys() - interfaces,
            *self.routes.hosts() - hosts,
        ]
        if strangers:
            raise Broken(f"plaintext of {strangers} is led, and the engine has no tunnel for it (invariant 2)")

    def _way_in(self, tunnel: Tunnel) -> None:
        interface = tunnel.interface
        if interface is None or self.steering.entries.keys().isdisjoint(tunnel.inbound):
            return
        if interface.index not in self.devices.entries and self.exists(interface.index):
            raise Broken(f"what {tunnel.key} decrypts has no way in by {interface}")

    def _way_of_frames(self, overlay: Overlay, tunnels: list[Tunnel]) -> None:
        inbound = {key for tunnel in tunnels if tunnel.key in overlay.tunnels for key in tunnel.inbound}
        steered = not self.steering.entries.keys().isdisjoint(inbound)
        index = overlay.key.interface.index
        if steered and index not in self.devices.entries and self.exists(index):
            raise Broken(f"frames out of {overlay.key} have no way in")

    def _one_owner(self, tunnel: Tunnel) -> None:
        sa = self.xfrm.sas.get(tunnel.outbound)
        if sa is None or sa.aead is None or sa.aead.secret.reveal() != material(self.engine.sa(tunnel.outbound)):
            return
        claimed = self.steering.owner.get(tunnel.outbound) == "engine" and not self.steering.gone
        if not claimed and self.steering.gives and is_led(tunnel, self.routes, self.devices, self.engine.overlays()):
            raise Broken(f"the kernel and the engine may both send with {tunnel.outbound} (invariant 3)")
        encap = self.engine.sa(tunnel.outbound).encap
        if claimed and encap and encap.source_port not in {4500, *self.steering.ports}:
            raise Broken(f"the guard does not look at port {encap.source_port} of {tunnel.outbound} (invariant 3)")
        sent = self.engine.sent[tunnel.outbound]
        if claimed and sa.replay.oseq <= sent:
            raise Broken(f"the kernel's number of {tunnel.outbound} is not ahead of the engine's (invariant 4)")


BETWEEN_LOOKS = HAND_BACK_MARGIN - 1
"""Packets that an engine sends at most between two looks at its counters: the margin is chosen above it."""
