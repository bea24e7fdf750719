"""Rows in real maps: what the kernel finds there, and that no failure touches the bank that holds."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from ipaddress import ip_address, ip_network
from pathlib import Path
from random import Random

import pytest

from ipsec_gw.errors import SteeringError
from ipsec_gw.model.firewall import (
    SELF,
    Action,
    DestinationNat,
    Policy,
    Pool,
    Ruleset,
    Service,
    SourceNat,
    StaticNat,
    Translation,
    Zone,
)
from tests.support.firewall_rows import KINDS, SOURCE_KINDS, Flow, first_match
from xdp_steer import flow_layout as fl
from xdp_steer import libbpf, tables
from xdp_steer.compile import Ids, PortInfo, Rows, assign, compile_ruleset
from xdp_steer.firewall import Firewall
from xdp_steer.flow_layout import Dimension, NameKind, ServiceKind, Table, TableAny
from xdp_steer.layout import AddressLeaf, Control
from xdp_steer.tables import Count

NOW = datetime(2026, 3, 2, 12, 0)
PORTS = {
    "lan0": PortInfo(3, 3, address4=ip_address("10.0.0.1"), address6=ip_address("2001:db8::1"), redirect=True),
    "wan0": PortInfo(4, 4),
    "wan0.7": PortInfo(4, 9, vid=7, vlan=True),
}
HTTP, DNS = Service(6, (80, 80)), Service(17, (53, 53), (1024, 65535))
NETWORKS = [
    ip_network(text) for text in ("10.0.0.0/8", "10.1.0.0/16", "10.1.1.1/32", "0.0.0.0/0", "::/0", "2001:db8::/32")
]
ADDRESSES = [ip_address(text) for text in ("10.1.1.1", "10.1.2.2", "10.2.0.1", "192.0.2.1", "2001:db8::5", "2001::1")]

FIRST = Ruleset(
    zones=(Zone("lan", ("lan0",), (HTTP,)), Zone("wan", ("wan0", "wan0.7"))),
    policies=(
        Policy("office", Action.DENY, "lan", "wan", (NETWORKS[1],), (), (HTTP, DNS), log_open=True),
        Policy("all", Action.PERMIT, "lan", "wan", (NETWORKS[0], NETWORKS[5])),
        Policy("in", Action.REJECT, "wan", SELF, (), (NETWORKS[2],)),
        Policy("rest", Action.PERMIT, services=(DNS,)),
    ),
    pools=(
        Pool("p", ip_address("192.0.2.8"), ip_address("192.0.2.9"), (2000, 3000), True, "q"),
        Pool("q", ip_address("192.0.2.10"), ip_address("192.0.2.10")),
    ),
    source_nat=(
        SourceNat("out", Translation.POOL, "lan", "wan", pool="p"),
        SourceNat("six", Translation.INTERFACE, sources=(NETWORKS[5],)),
    ),
    destination_nat=(DestinationNat("web", NETWORKS[2], ip_network("10.9.9.9/32"), "wan", (), (HTTP,), 8080),),
    static_nat=(StaticNat("one", "wan", NETWORKS[1], ip_network("172.16.0.0/16")),),
)
SECOND = replace(
    FIRST,
    zones=(Zone("lan", ("lan0",)), Zone("dmz", ("wan0",))),
    policies=(Policy("only", Action.PERMIT, "dmz", "lan", (NETWORKS[4],), (), (HTTP,)),),
    pools=FIRST.pools[1:],
    source_nat=(),
    destination_nat=(replace(FIRST.destination_nat[0], from_zone="dmz"),),
    static_nat=(),
)  # fmt: skip


def compiled(ruleset: Ruleset, previous: Ids | None = None) -> tuple[Rows, Ids]:
    ids = assign(previous or Ids(), ruleset)
    return compile_ruleset(ruleset, ids, PORTS, now=NOW), ids


@dataclass
class World:
    """The maps, the firewall that writes them, and a look at them as the datapath has it."""

    maps: dict[str, int]

    def __post_init__(self) -> None:
        self.firewall = Firewall(self.maps, self.maps["control"])

    def apply(self, ruleset: Ruleset) -> tuple[Rows, Ids]:
        rows, ids = compiled(ruleset, self.firewall.ids())
        assert self.firewall.apply(rows, ids)
        return rows, ids

    def control(self, slot: Control) -> int:
        return libbpf.map_lookup(self.maps["control"], ctypes.c_uint32(slot), ctypes.c_uint64()).value

    def get(self, spec, key, value):
        return libbpf.map_lookup(self.maps[spec.name], key if not isinstance(key, int) else ctypes.c_uint32(key), value)

    def header(self, bank: int | None = None) -> fl.RulesetLeaf:
        return self.get(fl.RULESETS, self.control(Control.BANK) if bank is None else bank, fl.RulesetLeaf())

    def match(self, table: Table, zones: tuple[int, int], flow: Flow) -> fl.RuleRowLeaf | None:
        """The first matching row of the bank that holds, out of the maps."""
        bank = self.control(Control.BANK)
        header = self.header().tables[table]
        kind = KINDS.get(flow.protocol, ServiceKind.OTHER)
        classes = {
            Dimension.ZONES: zones[0] * fl.MAX_ZONES + zones[1],
            Dimension.SERVICE: self._service(table, kind, flow.protocol if kind is ServiceKind.OTHER else flow.code),
        }
        if not header.flags & TableAny.SOURCE:
            classes[Dimension.SOURCE] = self._prefix(fl.side(table, destination=False), flow.src)
        if not header.flags & TableAny.DESTINATION:
            classes[Dimension.DESTINATION] = self._prefix(fl.side(table, destination=True), flow.dst)
        if not header.flags & TableAny.SOURCE_PORT and flow.protocol in SOURCE_KINDS:
            classes[Dimension.SOURCE_PORT] = self._service(table, SOURCE_KINDS[flow.protocol], flow.sport)
        rows = [
            self.get(fl.RULE_BITS, fl.bits_index(bank, table, dimension, number), fl.BitRowLeaf()).words
            for dimension, number in classes.items()
        ]
        for word in range(header.words):
            bits = rows[0][word]
            for row in rows[1:]:
                bits &= row[word]
            if bits:
                number = word * 64 + (bits & -bits).bit_length() - 1
                return self.get(fl.RULE_ROWS, fl.row_index(bank, table, number), fl.RuleRowLeaf())
        return None

    def _service(self, table: Table, kind: ServiceKind, index: int) -> int:
        place = fl.service_index(self.control(Control.BANK), table, kind, index // fl.SERVICE_CHUNK)
        return self.get(fl.SERVICES, place, fl.ServiceRowLeaf()).classes[index % fl.SERVICE_CHUNK]

    def _prefix(self, side: int, address) -> int:
        key = fl.PrefixKeyLeaf(160, self.control(Control.BANK), side, AddressLeaf.of(address))
        try:
            return self.get(fl.PREFIXES, key, ctypes.c_uint32()).value
        except FileNotFoundError:
            return 0

    def assert_holds(self, rows: Rows, random: Random) -> None:
        """Random flows meet in the maps what they meet in the rows."""
        for _ in range(60):
            src = random.choice(ADDRESSES)
            dst = random.choice([address for address in ADDRESSES if address.version == src.version])
            flow = Flow(
                src, dst, random.choice([6, 17, 1, 58, 47]), random.choice([53, 80, 2048]), random.choice([9, 4000])
            )
            zones = random.randrange(4), random.randrange(4)
            for table in Table:
                wanted, found = first_match(rows.tables[table], *zones, flow), self.match(table, zones, flow)
                assert (found is None) == (wanted is None)
                if wanted is not None:
                    assert (found.rule, found.action, found.timeout) == (wanted.rule, wanted.action, wanted.timeout)

    def bank_entries(self, bank: int) -> dict[str, object]:
        """All that a bank has, as bytes."""
        found: dict[str, object] = {}
        for spec in (fl.RULESETS, fl.SERVICES, fl.RULE_BITS, fl.RULE_ROWS, fl.POOLS):
            found[spec.name] = self.half(spec, bank)
        for spec, leaf in ((fl.PORTS, fl.PortKeyLeaf), (fl.PREFIXES, fl.PrefixKeyLeaf)):
            found[spec.name] = sorted(
                entry for entry in self.entries(spec) if leaf.from_buffer_copy(entry[0]).bank == bank
            )
        return found

    def half(self, spec, bank: int) -> bytes:
        """The values of an array that belong to a bank."""
        size = spec.entries // fl.MAX_BANKS
        keys, values = (spec.key * size)(), (spec.value * size)()
        place = ctypes.c_uint32(bank * size - 1 if bank else 0)
        libbpf.map_lookup_batch(self.maps[spec.name], place, keys, values, first=not bank)
        assert (keys[0], keys[size - 1]) == (bank * size, (bank + 1) * size - 1)
        return bytes(values)

    def entries(self, spec) -> list[tuple[bytes, bytes]]:
        return libbpf.map_entries(
            self.maps[spec.name], ctypes.sizeof(spec.key), ctypes.sizeof(spec.value), spec.entries
        )


@pytest.fixture
def world(bpffs: Path) -> Iterator[World]:
    directory = bpffs / f"ipsec-gw-firewall-test-{os.getpid()}"
    maps = tables.open_maps(directory, sessions=64)
    yield World(maps)
    tables.close_maps(maps)
    for pin in directory.iterdir():
        pin.unlink()
    directory.rmdir()


@pytest.fixture
def random() -> Random:
    seed = int.from_bytes(os.urandom(4))
    print("seed", seed)
    return Random(seed)


def test_an_apply_fills_the_other_bank_and_switches(world: World, random: Random) -> None:
    rows, _ = world.apply(FIRST)
    assert (world.control(Control.BANK), world.control(Control.FIREWALL)) == (1, 1)
    assert world.control(Control.FIB_GENERATION) == 1
    world.assert_holds(rows, random)
    rows, _ = world.apply(SECOND)
    assert (world.control(Control.BANK), world.control(Control.FIB_GENERATION)) == (0, 2)
    world.assert_holds(rows, random)


def test_what_a_bank_held_before_shows_no_more(world: World, random: Random) -> None:
    for ruleset in (FIRST, SECOND, FIRST, Ruleset(), SECOND, Ruleset(), FIRST):
        rows, _ = world.apply(ruleset)
        world.assert_holds(rows, random)
        assert world.bank_entries(1 - world.control(Control.BANK))["ports"] == []
        assert world.bank_entries(1 - world.control(Control.BANK))["prefixes"] == []


def test_header_ports_vlan_ports_and_pools(world: World) -> None:
    _, ids = world.apply(FIRST)
    bank = world.control(Control.BANK)
    assert list(world.header().timeouts) == [1800, 30, 30, 120, 10, 60, 30, 60]
    assert world.header().default_action == fl.PolicyAction.DENY
    lan0 = world.get(fl.PORTS, fl.PortKeyLeaf(3, 0, bank), fl.PortLeaf())
    assert (lan0.l3_ifindex, lan0.zone, lan0.flags) == (
        3,
        ids.zones["lan"],
        fl.PortFlag.SYN_CHECK | fl.PortFlag.REDIRECT,
    )
    assert (lan0.addr4.address(), lan0.addr6.address()) == (ip_address("10.0.0.1"), ip_address("2001:db8::1"))
    vlan = world.get(fl.PORTS, fl.PortKeyLeaf(4, 7, bank), fl.PortLeaf())
    assert (vlan.l3_ifindex, vlan.zone, bytes(vlan.addr4)) == (9, ids.zones["wan"], bytes(16))
    wire = world.get(fl.VLAN_PORTS, 9, fl.VlanPortLeaf())
    assert (wire.ifindex, wire.vid) == (4, 7)
    pool = world.get(fl.POOLS, fl.pool_index(bank, 0), fl.PoolLeaf())
    assert (pool.first.address(), pool.addresses, pool.low, pool.high) == (ip_address("192.0.2.8"), 2, 2000, 3000)
    assert (pool.persistent, pool.overflow) == (1, 2)
    web = world.match(Table.DNAT, (ids.zones["wan"], 0), Flow(ADDRESSES[3], ADDRESSES[0], 6, 80))
    assert (web.to.address(), web.prefixlen) == (ip_address("10.9.9.9"), 128)
    assert (socket.ntohs(web.port), socket.ntohs(web.first_port)) == (8080, 80)
    world.apply(SECOND)
    assert world.entries(fl.VLAN_PORTS) == []
    assert world.get(fl.POOLS, fl.pool_index(1 - bank, 1), fl.PoolLeaf()).addresses == 0


def test_the_same_rows_are_not_written_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.apply(FIRST)
    monkeypatch.setattr(libbpf, "map_update_batch", refuse)
    assert not world.firewall.apply(*compiled(FIRST))
    world.firewall.clear()
    assert world.control(Control.FIREWALL) == 0
    with pytest.raises(SteeringError, match="refused by the kernel"):
        world.firewall.apply(*compiled(FIRST))


def refuse(*_: object, **__: object) -> None:
    raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))


@dataclass
class Fault:
    """The n-th batch is done by half and then refused."""

    countdown: int
    real: dict[str, Callable]

    def wrap(self, name: str) -> Callable:
        def call(fd: int, *arguments: object) -> object:
            self.countdown -= 1
            if self.countdown:
                return self.real[name](fd, *arguments)
            if fd != self.control:
                self.real[name](fd, *arguments[:-1], arguments[-1] // 2)
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

        return call

    control: int = -1


def with_fault(world: World, step: int, ruleset: Ruleset, patch: pytest.MonkeyPatch) -> bool:
    """Apply with the ``step``-th batch failing; False when there is no such step."""
    names = ("map_update_batch", "map_delete_batch")
    fault = Fault(step, {name: getattr(libbpf, name) for name in names}, world.maps["control"])
    rows, ids = compiled(ruleset, world.firewall.ids())
    with patch.context() as inner:
        for name in names:
            inner.setattr(libbpf, name, fault.wrap(name))
        if fault.countdown > 0:
            try:
                world.firewall.apply(rows, ids)
            except SteeringError:
                return True
    return False


def test_a_failure_at_any_step_leaves_the_old_bank_or_the_new_one(
    world: World, random: Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = FIRST, SECOND
    kept = switched = 0
    for step in range(1, 200):
        rows, ids = compiled(old, world.firewall.ids())
        world.firewall.apply(rows, ids)
        bank, before = world.control(Control.BANK), world.bank_entries(world.control(Control.BANK))
        generation = world.control(Control.FIB_GENERATION)
        if not with_fault(world, step, new, monkeypatch):
            break
        if world.control(Control.BANK) == bank:
            kept += 1
            assert world.bank_entries(bank) == before
            assert world.control(Control.FIB_GENERATION) == generation
            names = world.firewall.ids().names()
            assert all(names[place] == name for place, name in ids.names().items())
        else:
            switched += 1
        again, _ = world.apply(new)
        world.assert_holds(again, random)
        assert world.bank_entries(1 - world.control(Control.BANK))["prefixes"] == []
    assert kept > 40, "every map write before the switch"
    assert switched >= 4, "ports, prefixes, VLAN ports, names"


def test_the_old_bank_is_emptied_when_no_packet_looks_into_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.apply(FIRST)
    before, seen = world.bank_entries(1), []
    wait = libbpf.wait_for_programs

    def watched() -> None:
        seen.append((world.control(Control.BANK), world.bank_entries(1)))
        wait()

    monkeypatch.setattr(libbpf, "wait_for_programs", watched)
    world.apply(SECOND)
    assert seen == [(0, before)]


def test_left_over_entries_of_a_daemon_that_died_while_filling_do_not_match(world: World, random: Random) -> None:
    world.apply(FIRST)
    resting = 1 - world.control(Control.BANK)
    key = fl.PrefixKeyLeaf(160, resting, fl.side(Table.POLICY, destination=False), AddressLeaf.of(ADDRESSES[0]))
    libbpf.map_update(world.maps["prefixes"], key, ctypes.c_uint32(5))
    libbpf.map_update(world.maps["ports"], fl.PortKeyLeaf(77, 0, resting), fl.PortLeaf(zone=1))
    again = World(world.maps)
    rows, _ = again.apply(SECOND)
    again.assert_holds(rows, random)
    assert again.bank_entries(resting)["ports"] == sorted(
        entry for entry in again.entries(fl.PORTS) if fl.PortKeyLeaf.from_buffer_copy(entry[0]).ifindex in (3, 4)
    )


def count(world: World, number: int, packets: int) -> None:
    values = (fl.VerdictCountLeaf * libbpf.possible_cpus())()
    values[0] = fl.VerdictCountLeaf(packets, packets * 100)
    values[len(values) - 1].packets += 1
    libbpf.map_update(world.maps["rule_counts"], ctypes.c_uint32(number), values)


def test_a_restarted_daemon_finds_names_and_counters(world: World) -> None:
    _, ids = world.apply(FIRST)
    number = ids.rules[NameKind.POLICY, "office"]
    count(world, number, 7)
    after = World(world.maps)
    assert after.firewall.ids() == ids
    assert after.firewall.rule_counts()[NameKind.POLICY, "office"] == Count(8, 700)
    assert after.firewall.rule_counts()[NameKind.POLICY, "all"] == Count(0, 0)
    changed = replace(FIRST, policies=(Policy("new", Action.PERMIT), *FIRST.policies[:1]))
    _, ids = after.apply(changed)
    assert ids.rules[NameKind.POLICY, "office"] == number
    assert after.firewall.ids() == ids
    counts = after.firewall.rule_counts()
    assert (counts[NameKind.POLICY, "office"], counts[NameKind.POLICY, "new"]) == (Count(8, 700), Count(0, 0))
    assert (NameKind.POLICY, "all") not in counts


def test_a_number_that_gets_another_name_counts_from_zero(world: World) -> None:
    _, ids = world.apply(FIRST)
    number = ids.rules[NameKind.POLICY, "office"]
    count(world, number, 7)
    renamed = replace(FIRST, policies=(replace(FIRST.policies[0], name="branch"), *FIRST.policies[1:]))
    names = {("branch" if name == "office" else name): (kind, number) for (kind, name), number in ids.rules.items()}
    taken = Ids(ids.zones, {(kind, name): number for name, (kind, number) in names.items()})
    assert taken.rules[NameKind.POLICY, "branch"] == number
    world.firewall.apply(compile_ruleset(renamed, taken, PORTS, now=NOW), taken)
    assert world.firewall.rule_counts()[NameKind.POLICY, "branch"] == Count(0, 0)


def test_many_prefixes_and_rules_fit(world: World, random: Random) -> None:
    rules = tuple(
        Policy(
            f"p{n}", Action.PERMIT, "lan", "wan", (ip_network((10 << 24 | n << 8, 24)),), (), (Service(6, (n, n + 9)),)
        )
        for n in range(1000)
    )
    rows, _ = world.apply(replace(FIRST, policies=rules))
    for n in random.sample(range(1000), 50):
        flow = Flow(ip_address(10 << 24 | n << 8 | 5), ADDRESSES[3], 6, n)
        found = world.match(Table.POLICY, (1, 2), flow)
        assert found is not None
        assert found.rule == first_match(rows.tables[Table.POLICY], 1, 2, flow).rule
    world.apply(SECOND)
    assert world.bank_entries(1 - world.control(Control.BANK))["prefixes"] == []
