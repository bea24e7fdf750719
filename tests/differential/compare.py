"""One sequence through both, the reference and the real thing, compared after every packet."""

from __future__ import annotations

import dataclasses
import socket
import struct
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from random import Random

from ipsec_gw.model.firewall import PoolEngine, Ruleset
from tests.differential.datapath import SESSION_ENTRIES, Datapath, coarse_now_ns
from tests.reference.checksums import header_checksum
from tests.reference.egress import Egress
from tests.reference.fib import Fib
from tests.reference.filters import Unsure
from tests.reference.flows import parse
from tests.reference.model import Outcome, Pipeline
from tests.reference.network import SEED, TRANSLATOR_PORT, TUNNEL_PORT, make_port
from tests.reference.packets import ESP, UDP, Key, Malformed, parse_ethernet
from tests.reference.rules import Ids, Port
from tests.reference.rulesets import WINDOW, Configuration, Traits, configuration
from tests.reference.sessions import SECOND, Entry
from tests.reference.traffic import Age, Move, Replace, Send, Step, Traffic
from tests.reference.translator import OUTSIDE, Vpp
from xdp_steer.flow_layout import SessionLeaf
from xdp_steer.reasons import Reason
from xdp_steer.screen_layout import Screen

STEPS = 20
NAT_T = 4500
PER_CONFIGURATION = 100
"""Sequences with seeds of the same hundred share a configuration."""
STALL_NS = SECOND // 5
"""A sequence that took longer says nothing about time, nor does one in which a window of screens ended."""
ATTEMPTS = 20
"""At a sequence that differs, until one of them is told of that did not take too long."""

_PLAIN = ("packets", "octets", "timeout", "ack", "flags", "state", "out_zone", "mss", "app_timeout")
_PLAIN += ("rule", "snat_rule", "dnat_rule", "out_ifindex", "embedded")
_ROUTE = ("out_vid", "mtu")


@dataclass(eq=False)
class Difference(Exception):
    """What differs at which step."""

    step: int
    what: str
    steps: list[Step]
    outcome: Outcome | None = None


@dataclass(frozen=True)
class Setting:
    """A configuration that holds in the real thing, and what a reference of it is made from."""

    configuration: Configuration
    ids: Ids
    ports: tuple[Port, ...]
    zoned: tuple[str, ...]

    def reference(self, fib: Fib) -> Pipeline:
        made = Pipeline(self.configuration.ruleset, self.ids, self.ports, fib, SEED, self.configuration.tunnels)
        made.sessions.maximum = SESSION_ENTRIES
        made.vpp, made.vpp_at_times = self.configuration.vpp, self.configuration.vpp_at_times
        return made


def set_up(datapath: Datapath, indexes: dict[str, int], seed: int) -> Setting:
    """Apply the configuration of a sequence's seed."""
    made = configuration(Random(seed // PER_CONFIGURATION))
    ids = datapath.apply(made)
    zoned = {name: zone.name for zone in made.ruleset.zones for name in zone.interfaces}
    ports = [_port(name, zone, indexes, made.traits[name], made.ruleset) for name, zone in zoned.items()]
    inner = [zone.name for zone in made.ruleset.zones if zone.tunnels]
    index = indexes[TUNNEL_PORT]
    ports += [Port(index, 0, index, zone, redirect=False, tunnel=True) for zone in inner]
    return Setting(made, ids, (*ports, *_of_vpp(made.ruleset, indexes[TRANSLATOR_PORT])), tuple(zoned))


def _of_vpp(ruleset: Ruleset, index: int) -> Iterator[Port]:
    """By the tags of its pools, and by that of the outside."""
    for tag, pool in enumerate(ruleset.pools, 1):
        zone = ruleset.zone_of_pool(pool.name)
        if pool.engine is not PoolEngine.XDP and zone is not None:
            for vid in (tag, OUTSIDE):
                yield Port(index, vid, index, zone, redirect=False, translated=True)


def _port(name: str, zone: str, indexes: dict[str, int], traits: Traits, ruleset: Ruleset) -> Port:
    arriving = next((one.name for one in ruleset.filters if name in one.input), "")
    leaving = next((one.name for one in ruleset.filters if name in one.output), "")
    redirect = traits.redirect and not leaving  # the kernel sends what is filtered as it leaves
    port = make_port(name, zone, indexes, redirect=redirect, partial=traits.partial)
    port = dataclasses.replace(port, in_filter=arriving, out_filter=leaving)
    addresses = {"addr4": port.addr4 if traits.address4 else bytes(16)}
    addresses["addr6"] = port.addr6 if traits.address6 else bytes(16)
    return dataclasses.replace(port, **addresses)


class Sequence:
    """A run of one seed. ``thorough`` compares the whole session table after every step."""

    def __init__(
        self, datapath: Datapath, setting: Setting, fib: Fib, indexes: dict[str, int], seed: int, *, thorough: bool
    ) -> None:
        self._datapath = datapath
        self._reference = setting.reference(fib)
        self._leaving = Egress(self._reference)
        self._ports = tuple(port for port in setting.ports if not port.translated)
        self._translator = indexes[TRANSLATOR_PORT]
        self._random = Random(seed)
        timeouts = dataclasses.astuple(setting.configuration.ruleset.sessions.timeouts)
        prefixes = tuple(rule.prefix for rule in setting.configuration.ruleset.nat64)
        self._tunnels = setting.configuration.tunnels
        vpp = Vpp(setting.configuration.ruleset)
        pools = setting.configuration.ruleset.pools
        self._pools = tuple(tag for tag, pool in enumerate(pools, 1) if pool.engine is not PoolEngine.XDP)
        self._at_times = setting.configuration.vpp_at_times
        moves = any(pool.engine is PoolEngine.AUTO for pool in pools)
        given = (Random(seed), indexes, setting.zoned, timeouts, prefixes, self._tunnels, vpp)
        self._traffic = Traffic(*given, moves=moves)
        self._rules = set(setting.ids.rules.values())
        zones = {setting.ids.zones[zone.name] for zone in setting.configuration.ruleset.zones if zone.screen}
        self._screens = tuple(product(zones, Screen))
        self._policers = setting.configuration.ruleset.policers
        self._thorough = thorough
        self._steps: list[Step] = []
        self._seen: set[Key] = set()
        self._shift = 0
        self.reasons: Counter[Reason] = Counter()

    def run(self) -> None:
        """Raises Difference."""
        rules = {rule: self._datapath.rule_count(rule) for rule in self._rules}
        screened = {place: self._datapath.screen_count(*place) for place in self._screens}
        asked = {tag: self._datapath.pool_count(tag) for tag in self._pools}
        try:
            for _ in range(STEPS):
                self._step(self._traffic.next())
            self._check(self._table(self._reference.sessions.entries))
            self._check(self._rule_counters(rules))
            self._check(self._screen_counters(screened))
            self._check(self._pool_counters(asked))
        finally:
            self._datapath.replace_tunnels(self._tunnels)
            self._datapath.move(self._at_times)
            self._datapath.fill_policers(self._policers)
            fragments = bool(self._reference.fragments.entries or self._leaving.let_out)
            left = self._datapath.forget(self._seen, fragments=fragments, screens=bool(self._screens))
        self._check(f"session {key.hex()} is only in the datapath" for key in left)

    def _check(self, differences: Iterator[str]) -> None:
        what = "\n".join(differences)
        if what:
            raise Difference(len(self._steps) - 1, what, self._steps)

    def _now(self) -> int:
        return coarse_now_ns() + self._shift

    def _step(self, step: Step) -> None:
        self._steps.append(step)
        sessions = self._reference.sessions
        if isinstance(step, Replace):
            self._reference.generation += self._datapath.replace_tunnels(step.tunnels)
            self._reference.tunnels = step.tunnels
            return
        if isinstance(step, Move):
            self._datapath.move(step.to_vpp)
            self._reference.vpp_at_times = step.to_vpp
            return
        if isinstance(step, Age):
            self._shift += int(step.seconds * SECOND)
            self._datapath.age(sessions.entries, step.seconds)
            self._datapath.age_policers(self._policers, step.seconds)
            if self._screens:
                self._datapath.next_window()
            self._reference.windows.clear()
            return
        outcome = self._reference.packet(step.ingress, step.frame, self._now())
        action, frame = self._datapath.run(step.ingress, step.frame)
        if outcome.any_identification:
            outcome = dataclasses.replace(outcome, frame=with_identification(outcome.frame, frame))
        self.reasons[outcome.reason] += 1
        self._seen |= sessions.touched
        what = list(self._verdict(outcome, action, frame))
        what += self._table(sessions.entries if self._thorough else sessions.touched)
        if what:
            raise Difference(len(self._steps) - 1, "\n".join(what), self._steps, outcome)
        self._egress(step, outcome)
        self._traffic.saw(step, outcome)

    def _egress(self, step: Send, outcome: Outcome) -> None:
        """The same packet as one that the kernel forwards: by the port that was found, or, not let in, by any port."""
        went = outcome.action in ("PASS", "REDIRECT") and outcome.egress is not None
        port = next((port for port in self._ports if (port.ifindex, port.vid) == outcome.egress), None)
        if port is None and not self._ports:
            return
        port = port or self._random.choice(self._ports)
        frame = leaving(outcome.frame if went else step.frame, port.vid)
        if frame is None:
            return
        from_vpp = step.ingress == self._translator
        expected, wanted_frame = self._leaving.forwarded(port, frame, self._now(), from_vpp=from_vpp)
        action, left = self._datapath.run_egress((port.ifindex, port.vid), step.ingress, frame)
        reasons = self._datapath.counted(expected)
        self.reasons[expected] += 1
        wanted = "UNSPEC" if expected is Reason.EGRESS_SESSION else "SHOT"
        if action != wanted or reasons != [expected]:
            found = ", ".join(reason.name for reason in reasons)
            what = f"egress by {port}: {action} {found}; reference: {wanted} {expected.name}\n{frame.hex()}"
            raise Difference(len(self._steps) - 1, what, self._steps, outcome)
        if wanted == "UNSPEC" and left != wanted_frame:
            what = f"egress by {port}: frames differ\ndatapath:  {left.hex()}\nreference: {wanted_frame.hex()}"
            raise Difference(len(self._steps) - 1, what, self._steps, outcome)

    def _verdict(self, outcome: Outcome, action: str, frame: bytes) -> Iterator[str]:
        reasons = self._datapath.counted(outcome.reason)
        if action != outcome.action or reasons != [outcome.reason]:
            found = ", ".join(reason.name for reason in reasons)
            yield f"datapath: {action} {found}; reference: {outcome.action} {outcome.reason.name}"
        elif action != "DROP" and frame != outcome.frame:
            yield f"frames differ\ndatapath:  {frame.hex()}\nreference: {outcome.frame.hex()}"

    def _table(self, keys: set[Key] | dict[Key, Entry]) -> Iterator[str]:
        for key in keys:
            ours, real = self._reference.sessions.entries.get(key), self._datapath.entry(key)
            if ours is None or real is None:
                if ours is not real:
                    yield f"session {key} is only in the {'datapath' if ours is None else 'reference'}"
                continue
            fields = [
                f"{name} {there}, reference {here}" for name, there, here in self._fields(ours, real) if there != here
            ]
            if fields:
                yield f"session {key}: " + "; ".join(fields)

    def _fields(self, ours: Entry, real: SessionLeaf) -> Iterator[tuple[str, object, object]]:
        for name in _PLAIN:
            yield name, getattr(real, name), int(getattr(ours, name))
        for there, here in (("saddr", ours.src), ("daddr", ours.dst)):
            yield there, bytes(getattr(real, there)).hex(), here.hex()
        yield "sport", socket.ntohs(real.sport), ours.sport
        yield "dport", socket.ntohs(real.dport), ours.dport
        if ours.out_ifindex:
            for name in _ROUTE:
                yield name, getattr(real, name), getattr(ours, name)
            yield "dmac", bytes(real.dmac).hex(), ours.dmac.hex()
            yield "smac", bytes(real.smac).hex(), ours.smac.hex()
            yield from self._age("route's age", ours.routed_ns, real.fib_ns)
        yield from self._age("idle time", ours.last_seen_ns, real.last_seen_ns)

    def _age(self, name: str, ours: int, real: int) -> Iterator[tuple[str, object, object]]:
        ages = self._now() - ours, coarse_now_ns() - real
        if abs(ages[0] - ages[1]) > STALL_NS:
            yield f"{name} in ns", ages[1], ages[0]

    def _rule_counters(self, before: dict[int, tuple[int, int]]) -> Iterator[str]:
        for rule, (packets, octets) in before.items():
            now = self._datapath.rule_count(rule)
            real = (now[0] - packets, now[1] - octets)
            ours = self._reference.counters.get(rule, (0, 0))
            if real != ours:
                yield f"rule {rule} counted {real} packets and octets, reference {ours}"

    def _screen_counters(self, before: dict[tuple[int, Screen], tuple[int, int]]) -> Iterator[str]:
        for place, (packets, octets) in before.items():
            now = self._datapath.screen_count(*place)
            real = (now[0] - packets, now[1] - octets)
            ours = self._reference.screened.get(place, (0, 0))
            if real != ours:
                yield f"screen {place[1].label} of zone {place[0]} counted {real}, reference {ours}"

    def _pool_counters(self, before: dict[int, tuple[int, int, int]]) -> Iterator[str]:
        for tag, counts in before.items():
            real = tuple(now - was for now, was in zip(self._datapath.pool_count(tag), counts, strict=True))
            ours = self._reference.asked.get(tag, (0, 0, 0))
            if real != ours:
                yield f"pool {tag} counted {real} new flows, packets and refused flows, reference {ours}"


def with_identification(frame: bytes, other: bytes) -> bytes:
    """An IPv4 frame with the identification of another one."""
    ethernet = parse_ethernet(frame)
    if ethernet is None or len(other) != len(frame):
        return frame
    at = ethernet.l3 + 4
    made = bytearray(frame[:at] + other[at : at + 2] + frame[at + 2 :])
    header_checksum(frame, made, ethernet.l3)
    return bytes(made)


def leaving(frame: bytes, vid: int) -> bytes | None:
    """A frame with the tag of its egress port; None if it is no sound IP, or ESP, which others decide on."""
    ethernet = parse_ethernet(frame)
    try:
        packet = parse(frame)
    except Malformed:
        return None
    if ethernet is None or packet is None:
        return None
    if packet.protocol == ESP or (packet.protocol == UDP and packet.sport == NAT_T):
        return None
    tag = struct.pack("!HH", 0x8100, vid) if vid else b""
    return frame[:12] + tag + struct.pack("!H", ethernet.ethertype) + frame[ethernet.l3 :]


def run_sequence(
    datapath: Datapath, setting: Setting, fib: Fib, indexes: dict[str, int], seed: int
) -> tuple[Counter[Reason], Difference | None]:
    """What was seen, and the first difference, found once more with the whole table compared after every step."""
    found: Difference | None = None
    for _ in range(ATTEMPTS):
        sequence = Sequence(datapath, setting, fib, indexes, seed, thorough=found is not None)
        begun, window = time.monotonic_ns(), coarse_now_ns() // (WINDOW * SECOND)
        try:
            sequence.run()
        except Unsure:
            return sequence.reasons, None  # as far as it came
        except Difference as difference:
            stalled = time.monotonic_ns() - begun > STALL_NS
            stalled |= coarse_now_ns() // (WINDOW * SECOND) != window
            if not stalled and found is not None:
                return sequence.reasons, difference
            found = found or difference
            continue
        return sequence.reasons, None
    return Counter(), found
