"""The session map and the collector on a real map, the time made up."""

from __future__ import annotations

import asyncio
import ctypes
import os
import random
from collections.abc import Iterator
from ipaddress import ip_address, ip_network

import numpy as np
import pytest

from ipsec_gw.firewall.ageing import SECOND, Close, CloseReason, Filter
from ipsec_gw.firewall.collector import Collector, run
from ipsec_gw.model.firewall import Sessions
from xdp_steer import libbpf
from xdp_steer.flow_layout import FlowKeyLeaf, SessionFlag, SessionLeaf, State
from xdp_steer.sessions import KEY, ROW, Batch, Flow, SessionTable, Traffic, partner_key

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]

ENTRIES = 4096
START = 1_000 * SECOND
LAN, WAN = 1, 2
INSIDE = Flow(ip_address("10.0.0.1"), ip_address("192.0.2.80"), 40000, 443, 6, LAN)
OUTSIDE = Flow(ip_address("198.51.100.1"), ip_address("192.0.2.80"), 2000, 443, 6, WAN)


@pytest.fixture
def fd() -> Iterator[int]:
    key, row = ctypes.sizeof(FlowKeyLeaf), ctypes.sizeof(SessionLeaf)
    fd = libbpf.map_create(libbpf.MAP_HASH, "sessions_test", key, row, ENTRIES, flags=libbpf.BPF_F_NO_PREALLOC)
    yield fd
    os.close(fd)


@pytest.fixture
def table(fd: int) -> SessionTable:
    return SessionTable(fd, batch=64)


class World:
    """A table, a collector with a small maximum, and what it reported."""

    def __init__(self, table: SessionTable) -> None:
        self.table = table
        self.reported: list[Close] = []
        settings = Sessions(maximum=100, high_water=90, low_water=75, early_ageout=20)
        self.collector = Collector(table, settings, self.reported.extend, clock=lambda: 0.0)

    def keys(self) -> set[Flow]:
        return {Flow.of(Batch.key(batch.keys, i)) for batch in self.table.batches() for i in range(len(batch.keys))}


@pytest.fixture
def world(table: SessionTable) -> World:
    return World(table)


def nth(number: int, flow: Flow = INSIDE) -> Flow:
    return Flow(ip_address(f"10.1.{number >> 8}.{number & 255}"), *_rest(flow))


def _rest(flow: Flow) -> tuple:
    return flow.destination, flow.source_port, flow.destination_port, flow.protocol, flow.zone


def add(
    table: SessionTable,
    number: int,
    flow: Flow = INSIDE,
    became: Flow | None = None,
    *,
    seen: tuple[int, int] = (START, START),
    state: State = State.ESTABLISHED,
    timeout: int = 60,
    rule: int = 7,
    snat: int = 0,
    only: str = "both",
    created: int = START,
) -> tuple[FlowKeyLeaf, FlowKeyLeaf]:
    """Write a session, or one entry of it. ``seen`` is of the forward and the reverse direction."""
    became = became or Flow(*(flow.source, *_rest(flow)[:-1]), WAN)
    target, key = became.leaf(), flow.leaf()
    common = dict(id=number, created_ns=created, state=state, timeout=timeout, rule=rule, snat_rule=snat)
    forward = SessionLeaf(
        **common,
        last_seen_ns=seen[0],
        own_packets=1,
        far_packets=2,
        own_octets=100,
        far_octets=200,
        out_zone=became.zone,
        saddr=target.saddr,
        daddr=target.daddr,
        sport=target.sport,
        dport=target.dport,
        flags=SessionFlag.LOG_CLOSE,
    )
    back = partner_key(key, forward)
    reverse = SessionLeaf(
        **common,
        last_seen_ns=seen[1],
        own_packets=2,
        own_octets=200,
        out_zone=flow.zone,
        saddr=key.daddr,
        daddr=key.saddr,
        sport=key.dport,
        dport=key.sport,
        flags=SessionFlag.REVERSE,
    )
    if only != "reverse":
        assert table.insert(key, forward)
    if only != "forward":
        assert table.insert(back, reverse)
    return key, back


def reasons(world: World) -> dict[int, CloseReason]:
    """By session; every one at most once."""
    ids = [close.session.id for close in world.reported]
    assert len(ids) == len(set(ids))
    return {close.session.id: close.reason for close in world.reported}


def test_each_direction_leads_to_the_other(table: SessionTable) -> None:
    key, back = add(table, 1, INSIDE, OUTSIDE)
    assert Flow.of(back) == Flow(
        ip_address("192.0.2.80"), ip_address("198.51.100.1"), 443, 2000, 6, WAN
    )  # the reply as it will arrive
    forward, reverse = table.get(key), table.get(back)
    assert forward is not None
    assert reverse is not None
    assert bytes(partner_key(back, reverse)) == bytes(key)
    partner = table.partner(back, reverse)
    assert partner is not None
    assert partner.packets == forward.packets


@pytest.mark.parametrize("batch", [1, 7, 64, ENTRIES * 2])
def test_batches_hold_every_entry_once(fd: int, batch: int) -> None:
    """Also with arrays smaller than a hash bucket, which the kernel refuses."""
    table = SessionTable(fd, batch)
    for number in range(500):
        add(table, number, nth(number))
    ids = np.concatenate([found.rows["id"].copy() for found in table.batches()])
    assert sorted(ids.tolist()) == sorted([*range(500), *range(500)])


def test_an_empty_map_has_no_entries(table: SessionTable) -> None:
    assert [len(batch.keys) for batch in table.batches()] == [0]


def test_filled_rows_come_back_as_sessions(table: SessionTable) -> None:
    keys, rows = np.zeros(2, KEY), np.zeros(2, ROW)
    keys["protocol"] = 17
    keys["sport"] = (1, 2)
    rows["state"], rows["id"] = State.ESTABLISHED, (5, 6)
    keys.flags.writeable = False
    table.fill(keys, rows)
    assert {session.id: session.flow.protocol for session in table.sessions()} == {5: 17, 6: 17}
    assert [session.id for session in table.sessions(lambda batch: batch.rows["id"] == 6)] == [6]


def test_take_removes_only_the_session_that_was_meant(table: SessionTable) -> None:
    key, _ = add(table, 1)
    assert table.take(key, 2) is None
    found = table.get(key)
    assert found is not None
    assert found.id == 1
    taken = table.take(key, 1)
    assert taken is not None
    assert taken.packets == 3
    assert table.get(key) is None
    assert table.take(key, 1) is None


def test_removal_in_batches_passes_over_what_is_gone(fd: int, table: SessionTable) -> None:
    pairs = [add(table, number, nth(number)) for number in range(10)]
    keys = (FlowKeyLeaf * 10)(*(pair[0] for pair in pairs))
    for gone in (0, 4, 5, 9):
        assert table.take(pairs[gone][0], gone) is not None
    assert libbpf.map_delete_batch(fd, keys, 10) == 6
    assert not list(table.sessions())


def test_a_session_ends_when_both_directions_are_idle(world: World) -> None:
    add(world.table, 1, nth(1), seen=(START, START))
    add(world.table, 2, nth(2), seen=(START, START + 50 * SECOND))
    add(world.table, 3, nth(3), seen=(START + 50 * SECOND, START))
    assert world.collector.sweep(START + 62 * SECOND).ended == {}  # the timeout and the grace, to the nanosecond
    sweep = world.collector.sweep(START + 62 * SECOND + 1)
    assert sweep.ended == {CloseReason.IDLE: 1}
    assert sweep.counts.sessions == 2
    world.collector.sweep(START + 112 * SECOND + 1)
    assert reasons(world) == dict.fromkeys((1, 2, 3), CloseReason.IDLE)
    assert world.keys() == set()


def test_the_record_tells_all(world: World) -> None:
    add(world.table, 9, INSIDE, OUTSIDE, snat=4)
    world.collector.sweep(START + 70 * SECOND)
    (close,) = world.reported
    session = close.session
    assert (session.flow, session.translated) == (INSIDE, OUTSIDE)
    assert (session.forward, session.reverse) == (Traffic(3, 300), Traffic(2, 200))
    assert (session.rule, session.snat_rule, session.dnat_rule) == (7, 4, 0)
    assert close.duration_ns == 70 * SECOND
    assert close.logged


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (State.OPENING, CloseReason.IDLE),
        (State.CLOSING, CloseReason.IDLE),
        (State.TIME_WAIT, CloseReason.TCP_FIN),
        (State.CLOSED, CloseReason.TCP_RST),
    ],
)
def test_the_state_tells_the_reason(world: World, state: State, reason: CloseReason) -> None:
    add(world.table, 1, state=state)
    world.collector.sweep(START + 63 * SECOND)
    assert reasons(world) == {1: reason}


def test_a_session_that_is_used_again_meanwhile_stays(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A packet comes after the collector saw the entries and before it reads them once more."""
    key, back = add(world.table, 1, seen=(START, START))
    now = START + 100 * SECOND
    get = world.table.get

    def late_packet(asked: FlowKeyLeaf) -> SessionLeaf | None:
        row = get(asked)
        if row is not None and bytes(asked) == bytes(back):
            row.last_seen_ns = now
        return row

    monkeypatch.setattr(world.table, "get", late_packet)
    assert world.collector.sweep(now).ended == {}
    monkeypatch.undo()
    assert world.table.get(key) is not None
    assert world.collector.sweep(now).ended == {CloseReason.IDLE: 1}


def test_a_new_session_with_the_same_key_is_left_alone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The datapath ended the old one and reported it: no second record, and the new entry stays."""
    key, _ = add(world.table, 1)
    get = world.table.get

    def replaced(asked: FlowKeyLeaf) -> SessionLeaf | None:
        row = get(asked)
        if row is not None:
            row.id = 2
        return row

    monkeypatch.setattr(world.table, "get", replaced)
    world.collector.sweep(START + 100 * SECOND)
    assert world.reported == []
    monkeypatch.undo()
    assert world.table.get(key) is not None


def test_whoever_removes_the_forward_entry_reports(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    key, back = add(world.table, 1)
    take = world.table.take

    def datapath_first(asked: FlowKeyLeaf, session: int) -> SessionLeaf | None:
        take(key, session)  # and reports the end by an event
        return take(asked, session)

    monkeypatch.setattr(world.table, "take", datapath_first)
    world.collector.sweep(START + 100 * SECOND)
    assert world.reported == []
    assert world.table.get(back) is None


def test_sessions_of_the_same_number_are_told_apart_by_their_keys(world: World) -> None:
    """Numbers start over with every version of the programs, sessions outlive it."""
    add(world.table, 1, nth(1), seen=(START, START + 50 * SECOND))
    add(world.table, 1, nth(2), seen=(START + 50 * SECOND, START))
    add(world.table, 1, nth(3), seen=(START, START))
    assert world.collector.sweep(START + 70 * SECOND).ended == {CloseReason.IDLE: 1}
    assert [close.session.flow for close in world.reported] == [nth(3)]
    assert world.collector.sweep(START + 113 * SECOND).ended == {CloseReason.IDLE: 2}
    assert world.keys() == set()


def test_an_orphan_ends_at_the_second_look(world: World) -> None:
    add(world.table, 1, nth(1), only="forward", timeout=1800)
    add(world.table, 2, nth(2), timeout=1800)
    assert world.collector.sweep(START + 4 * SECOND).ended == {}
    assert world.collector.sweep(START + 5 * SECOND).ended == {}  # may still be in the making
    sweep = world.collector.sweep(START + 5 * SECOND + 1)
    assert sweep.ended == {CloseReason.ORPHAN: 1}
    assert reasons(world) == {1: CloseReason.ORPHAN}
    assert world.reported[0].session.reverse == Traffic(0, 0)
    assert sweep.counts.sessions == 1


def test_a_suspect_calls_for_another_look_soon(world: World) -> None:
    add(world.table, 1, only="forward", timeout=1800)
    assert world.collector.sweep(START).next_seconds == 5.0


def test_a_lone_reverse_entry_is_removed_and_belongs_to_no_session(world: World) -> None:
    _, back = add(world.table, 1, only="reverse")
    assert world.collector.sweep(START + 10 * SECOND).strays == 0
    sweep = world.collector.sweep(START + 11 * SECOND)
    assert (sweep.strays, sweep.ended, world.reported) == (1, {}, [])
    assert world.table.get(back) is None


def test_a_suspect_that_gets_its_partner_stays(world: World) -> None:
    add(world.table, 1, only="forward", timeout=1800)
    world.collector.sweep(START + 10 * SECOND)
    add(world.table, 1, only="reverse", timeout=1800)
    assert world.collector.sweep(START + 20 * SECOND).ended == {}
    assert len(world.keys()) == 2


def test_an_idle_orphan_is_reported_once(world: World) -> None:
    add(world.table, 1, only="forward")
    for second in range(100, 104):
        world.collector.sweep(START + second * SECOND)
    assert reasons(world) == {1: CloseReason.ORPHAN}


def test_early_ageing_between_the_water_marks(world: World) -> None:
    """Of 100 sessions at most: 92 are too many, those idle for more than 20 seconds (and the grace) go at once."""
    now = START + 30 * SECOND
    for number in range(92):
        seen = START if number < 10 else now
        add(world.table, number, nth(number), seen=(seen, seen), timeout=1800)
    sweep = world.collector.sweep(now)
    assert sweep.ended == {CloseReason.AGED_OUT: 10}
    assert (sweep.counts.sessions, sweep.under_pressure, sweep.next_seconds) == (82, True, 1.0)
    later = now + 22 * SECOND
    assert world.collector.sweep(later).under_pressure  # 82 is above the low water mark still
    sweep = world.collector.sweep(later + 1)
    assert (sweep.counts.sessions, sweep.under_pressure) == (0, False)
    add(world.table, 500, nth(500), seen=(later, later), timeout=1800)
    assert world.collector.sweep(later + 100 * SECOND).ended == {}


def test_the_high_water_mark_itself_is_no_pressure(world: World) -> None:
    for number in range(90):
        add(world.table, number, nth(number), timeout=1800)
    sweep = world.collector.sweep(START + 100 * SECOND)
    assert (sweep.ended, sweep.under_pressure) == ({}, False)


def test_the_next_sweep_is_when_the_next_session_is_over(world: World) -> None:
    add(world.table, 1, nth(1), seen=(START, START), timeout=10)
    add(world.table, 2, nth(2), seen=(START, START + 5 * SECOND), timeout=10)
    assert world.collector.sweep(START).next_seconds == 12.0
    assert world.collector.sweep(START + 12 * SECOND + 1).next_seconds == pytest.approx(5.0, abs=1e-6)
    assert reasons(world) == {1: CloseReason.IDLE}


def test_counts(world: World) -> None:
    add(world.table, 1, nth(1))
    add(world.table, 2, nth(2), state=State.TIME_WAIT)
    add(world.table, 3, Flow(*INSIDE_TUPLE, 5), state=State.TIME_WAIT)
    counts = world.collector.sweep(START).counts
    assert (counts.sessions, counts.maximum, counts.utilisation) == (3, 100, 3.0)
    assert counts.by_state == {State.ESTABLISHED: 1, State.TIME_WAIT: 2}
    assert counts.by_zone == {LAN: 2, 5: 1}
    world.collector.close(Filter(zone=5), CloseReason.CLEARED, START)
    assert world.collector.counts.by_zone == {LAN: 2}
    assert world.collector.counts.by_state == {State.ESTABLISHED: 1, State.TIME_WAIT: 1}


INSIDE_TUPLE = (INSIDE.source, *_rest(INSIDE)[:-1])
V6 = Flow(ip_address("2001:db8::1"), ip_address("2001:db8:1::2"), 7, 7, 58, 3)


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        (Filter(), {1, 2, 3}),
        (Filter(zone=LAN), {1, 2}),
        (Filter(zone=WAN), {1, 2, 3}),
        (Filter(zone=9), set()),
        (Filter(prefix=ip_network("10.1.0.0/16")), {2}),
        (Filter(prefix=ip_network("198.51.100.1")), {1}),
        (Filter(prefix=ip_network("192.0.2.0/24")), {1, 2}),
        (Filter(prefix=ip_network("0.0.0.0/0")), {1, 2}),
        (Filter(prefix=ip_network("::/0")), {3}),
        (Filter(prefix=ip_network("2001:db8:1::/48")), {3}),
        (Filter(prefix=ip_network("2001:db8:2::/48")), set()),
        (Filter(port=443), {1, 2}),
        (Filter(port=2000), {1}),
        (Filter(port=7), {3}),
        (Filter(protocol=58), {3}),
        (Filter(protocol=6, port=2000), {1}),
        (Filter(protocol=6, port=7), set()),
        (Filter(rules=frozenset({4})), {1}),
        (Filter(rules=frozenset({7, 8})), {1, 2, 3}),
        (Filter(rules=frozenset({0})), set()),
        (Filter(rules=frozenset()), set()),
        (Filter(zones=frozenset({LAN, 9})), {1, 2}),
        (Filter(zones=frozenset()), set()),
        (Filter(ids=frozenset({2, 3, 4})), {2, 3}),
        (Filter(ids=frozenset()), set()),
        (Filter(after_ns=START), {1, 2, 3}),
        (Filter(after_ns=START + 1), set()),
        (Filter(before_ns=START), {1, 2, 3}),
        (Filter(before_ns=START - 1), set()),
        (Filter(before_ns=-1), set()),
    ],
    ids=str,
)
def test_close_by_filter(world: World, chosen: Filter, expected: set[int]) -> None:
    add(world.table, 1, INSIDE, OUTSIDE, snat=4)
    add(world.table, 2, nth(2))
    add(world.table, 3, V6, rule=8)
    assert {session.id for session in world.table.sessions(chosen)} == expected
    assert world.collector.close(chosen, CloseReason.POLICY_REMOVED, START) == len(expected)
    assert reasons(world) == dict.fromkeys(expected, CloseReason.POLICY_REMOVED)
    assert len(world.keys()) == 2 * (3 - len(expected))


def test_random_sessions_end_as_a_plain_model_says(world: World) -> None:
    """Sessions at random, swept at random times, against one dictionary."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    world.collector.configure(Sessions(maximum=ENTRIES))
    alive: dict[int, int] = {}
    now, number = START, 0
    for _ in range(30):
        now += dice.randrange(1, 40 * SECOND)
        for _ in range(dice.randrange(20)):
            number += 1
            seen = (now - dice.randrange(20 * SECOND), now - dice.randrange(20 * SECOND))
            timeout = dice.choice([5, 30, 60])
            add(world.table, number, nth(number), seen=seen, timeout=timeout, created=min(seen))
            alive[number] = max(seen) + (timeout + 2) * SECOND
        sweep = world.collector.sweep(now)
        over = {session for session, end in alive.items() if end < now}
        assert sum(sweep.ended.values()) == len(over)
        alive = {session: end for session, end in alive.items() if session not in over}
        assert {session.id for session in world.table.sessions()} == alive.keys()
        assert sweep.counts.sessions == len(alive)
    assert len(reasons(world)) == number - len(alive)


async def test_the_loop_sweeps_and_survives_a_refusal(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    add(world.table, 1)
    rests: list[float] = []
    times = iter([START, START + 1, START + 100 * SECOND])
    sweep = world.collector.sweep

    def refused_once(now_ns: int):
        if now_ns == START + 1:
            raise OSError(12, "Cannot allocate memory")
        return sweep(now_ns)

    async def wait(seconds: float) -> None:
        rests.append(seconds)
        if len(rests) == 3:
            raise asyncio.CancelledError

    monkeypatch.setattr(world.collector, "sweep", refused_once)
    with pytest.raises(asyncio.CancelledError):
        await run(world.collector, lambda: next(times), wait)
    assert rests == [30.0, 30.0, 30.0]
    assert reasons(world) == {1: CloseReason.IDLE}
