"""Which sessions end: the pure half, against plain models of it."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address, ip_network

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipsec_gw.firewall import ageing
from ipsec_gw.firewall.ageing import SECOND, CloseReason, Columns, Counts, Filter
from ipsec_gw.model.firewall import Sessions
from xdp_steer.flow_layout import SessionFlag, SessionLeaf, State
from xdp_steer.sessions import KEY, ROW, Batch, Flow, Session, Traffic

NOW = 10_000 * SECOND
NONE = np.empty(0, np.uint64)
SETTINGS = Sessions(maximum=100, high_water=90, low_water=75, early_ageout=20)


@dataclass(frozen=True)
class Entry:
    id: int
    reverse: bool
    idle: int
    """Seconds."""
    timeout: int = 60
    zone: int = 1
    state: State = State.ESTABLISHED


def batch_of(entries: list[Entry]) -> Batch:
    """The source port is the place in the list."""
    keys, rows = np.zeros(len(entries), KEY), np.zeros(len(entries), ROW)
    for index, entry in enumerate(entries):
        keys[index]["sport"], keys[index]["zone"] = index, entry.zone
        rows[index]["id"], rows[index]["timeout"], rows[index]["state"] = entry.id, entry.timeout, entry.state
        rows[index]["last_seen_ns"] = NOW - entry.idle * SECOND
        rows[index]["flags"] = SessionFlag.REVERSE if entry.reverse else 0
    return Batch(keys, rows)


def look(*batches: list[Entry], cap: int = ageing.NO_CAP, suspects: tuple[int, ...] = ()) -> Columns:
    columns = Columns(NOW, cap, np.array(suspects, np.uint64))
    for batch in batches:
        columns.add(batch_of(batch))
    return columns


def both(number: int, idle: int, back_idle: int, **rest) -> list[Entry]:
    return [Entry(number, False, idle, **rest), Entry(number, True, back_idle, **rest)]


def test_nothing_in_the_table() -> None:
    found = look([]).result()
    assert (found.ended.size, found.suspected.size, found.suspects.size, found.next_ns) == (0, 0, 0, None)


def test_directions_in_different_batches_belong_together() -> None:
    forward, reverse = both(5, 100, 100)
    found = look([reverse], [forward]).result()
    assert found.ended_ids.tolist() == [5]
    assert found.suspects.size == 0


def test_the_arrays_of_a_batch_may_be_used_again() -> None:
    columns = Columns(NOW, ageing.NO_CAP, NONE)
    batch = batch_of(both(5, 100, 100))
    columns.add(batch)
    batch.rows["id"], batch.keys["sport"] = 99, 99
    found = columns.result()
    assert found.ended_ids.tolist() == [5]
    assert found.ended["sport"].tolist() == [0]


def test_a_row_of_the_future_is_not_idle() -> None:
    """A packet after the clock was read, or a clock coarser than ours."""
    assert look(both(5, -10, 100)).result().ended.size == 0


def test_only_suspects_keep_their_keys() -> None:
    found = look([*both(1, 0, 0), Entry(2, False, 0), Entry(3, True, 0)], suspects=(2,)).result()
    assert found.suspected["sport"].tolist() == [2]
    assert found.suspects.tolist() == [2, 3]


@given(
    st.lists(
        st.tuples(st.integers(0, 200), st.integers(0, 200), st.sampled_from([5, 60, 1800]), st.integers(0, 3)),
        max_size=30,
    ),
    st.sampled_from([ageing.NO_CAP, 20]),
    st.randoms(use_true_random=False),
)
def test_against_a_plain_model(sessions: list[tuple[int, int, int, int]], cap: int, dice) -> None:
    """A session is (idle forward, idle reverse, timeout, kind): 2 lacks the reverse, 3 the forward entry."""
    entries: list[Entry] = []
    for number, (idle, back_idle, timeout, kind) in enumerate(sessions, 1):
        forward, reverse = both(number, idle, back_idle, timeout=timeout)
        entries += {2: [forward], 3: [reverse]}.get(kind, [forward, reverse])
    dice.shuffle(entries)
    cut = dice.randint(0, len(entries))
    found = look(entries[:cut], entries[cut:], cap=cap).result()

    pairs = {number: s for number, s in enumerate(sessions, 1) if s[3] < 2}
    left = {number: min(s[2], cap) + 2 - min(s[0], s[1]) for number, s in pairs.items()}
    assert set(found.ended_ids.tolist()) == {number for number, seconds in left.items() if seconds < 0}
    assert len(found.ended) == len(found.ended_ids)
    assert set(found.suspects.tolist()) == {number for number, s in enumerate(sessions, 1) if s[3] >= 2}
    alive = [seconds for seconds in left.values() if seconds >= 0]
    if alive:
        assert found.next_ns is not None
        assert found.next_ns <= NOW + min(alive) * SECOND
        assert found.next_ns >= NOW


def test_the_next_end_is_exact_when_the_forward_direction_is_the_later_one() -> None:
    found = look([*both(1, 10, 30), *both(2, 20, 90)]).result()
    assert found.next_ns == NOW + (60 + 2 - 20) * SECOND


def test_the_next_end_of_a_session_that_only_replies_keep_alive() -> None:
    assert look(both(1, 100, 10)).result().next_ns == NOW + (60 + 2 - 10) * SECOND


def test_counts() -> None:
    one = Entry(3, False, 0, zone=63, state=State.CLOSED)
    counts = look([*both(1, 0, 0), *both(2, 0, 0)], [one]).counts(100)
    assert counts == Counts(3, 100, {State.ESTABLISHED: 2, State.CLOSED: 1}, {1: 2, 63: 1})
    assert counts.utilisation == 3.0
    assert Counts().utilisation == 0.0


def a_session(zone: int, state: State) -> Session:
    flow = Flow(ip_address("10.0.0.1"), ip_address("192.0.2.1"), 1, 2, 6, zone)
    none = Traffic(0, 0)
    return Session(1, flow, flow, state, 60, 0, 0, none, none, 0, 0, 0, SessionFlag(0))


def test_counts_without_what_ended() -> None:
    counts = Counts(3, 100, {State.ESTABLISHED: 2, State.CLOSED: 1}, {1: 2, 63: 1})
    left = counts.without([a_session(63, State.CLOSED), a_session(1, State.ESTABLISHED)])
    assert left == Counts(1, 100, {State.ESTABLISHED: 1}, {1: 1})


def row(idle: float, timeout: int = 60, state: State = State.ESTABLISHED) -> SessionLeaf:
    return SessionLeaf(last_seen_ns=NOW - int(idle * SECOND), timeout=timeout, state=state)


@pytest.mark.parametrize(
    ("forward", "reverse", "cap", "expected"),
    [
        (row(62), row(62), ageing.NO_CAP, None),
        (row(62.1), row(62.1), ageing.NO_CAP, CloseReason.IDLE),
        (row(100), row(62), ageing.NO_CAP, None),
        (row(62), row(100), ageing.NO_CAP, None),
        (row(23), row(23), 20, CloseReason.AGED_OUT),
        (row(22), row(23), 20, None),
        (row(63), row(63), 20, CloseReason.IDLE),
        (row(8, 5), row(8, 5), 20, CloseReason.IDLE),
        (row(63, state=State.TIME_WAIT), row(63), ageing.NO_CAP, CloseReason.TCP_FIN),
        (row(23, state=State.TIME_WAIT), row(23), 20, CloseReason.TCP_FIN),
        (row(63, state=State.CLOSED), row(63), ageing.NO_CAP, CloseReason.TCP_RST),
        (row(63, state=State.CLOSING), row(63), ageing.NO_CAP, CloseReason.IDLE),
        (row(-5), row(-5), ageing.NO_CAP, None),
    ],
)
def test_verdict(forward: SessionLeaf, reverse: SessionLeaf, cap: int, expected: CloseReason | None) -> None:
    assert ageing.verdict(forward, reverse, NOW, cap) is expected


def test_an_orphan_is_older_than_five_seconds() -> None:
    assert not ageing.is_orphan(SessionLeaf(created_ns=NOW - 5 * SECOND), NOW)
    assert ageing.is_orphan(SessionLeaf(created_ns=NOW - 5 * SECOND - 1), NOW)


@pytest.mark.parametrize(
    ("sessions", "before", "expected"),
    [(90, False, False), (91, False, True), (80, True, True), (75, True, True), (74, True, False), (80, False, False)],
)
def test_pressure_has_hysteresis(sessions: int, before: bool, expected: bool) -> None:
    assert ageing.pressed(Counts(sessions, 100), before, SETTINGS) is expected


@pytest.mark.parametrize(
    ("due", "took", "under_pressure", "expected"),
    [
        ([], 0, False, 30.0),
        ([12.5, 20], 0, False, 12.5),
        ([0.1], 0, False, 1.0),
        ([-3], 0, False, 1.0),
        ([500], 0, False, 30.0),
        ([1], 0.5, False, 9.5),  # 5 percent of a CPU
        ([1], 60, False, 30.0),
        ([20], 0.1, True, 1.0),
        ([20], 2.0, True, 4.0),
    ],
)
def test_interval(due: list[float], took: float, under_pressure: bool, expected: float) -> None:
    assert ageing.interval(due, took, under_pressure=under_pressure) == expected


def test_a_filling_table_is_looked_at_before_it_is_full() -> None:
    """From 10 to 30 percent in 10 seconds: 90 are 30 seconds away."""
    assert ageing.seconds_to_high_water(Counts(10, 100), Counts(30, 100), 10, SETTINGS) == pytest.approx(30)
    assert ageing.seconds_to_high_water(Counts(30, 100), Counts(30, 100), 10, SETTINGS) is None
    assert ageing.seconds_to_high_water(Counts(30, 100), Counts(10, 100), 10, SETTINGS) is None
    assert ageing.seconds_to_high_water(Counts(10, 100), Counts(95, 100), 10, SETTINGS) == 0


ADDRESSES = st.one_of(
    st.integers(0x0A000000, 0x0A0000FF).map(ip_address),
    st.integers(0, 255).map(lambda low: ip_address((0x20010DB8 << 96) + low)),
)
PREFIXES = st.one_of(
    st.tuples(st.integers(0x0A000000, 0x0A0000FF), st.integers(0, 32)).map(lambda p: ip_network(p, strict=False)),
    st.tuples(st.integers(0, 255).map(lambda low: (0x20010DB8 << 96) + low), st.integers(0, 128)).map(
        lambda p: ip_network(p, strict=False)
    ),
)


@given(st.lists(st.tuples(ADDRESSES, ADDRESSES), min_size=1, max_size=10), PREFIXES)
def test_prefixes_as_ipaddress_has_them(pairs, prefix) -> None:
    keys, rows = np.zeros(len(pairs), KEY), np.zeros(len(pairs), ROW)
    for index, (source, new_source) in enumerate(pairs):
        key = Flow(source, source, 1, 2, 6, 1).leaf()
        keys[index] = np.frombuffer(bytes(key), KEY)[0]
        became = Flow(new_source, new_source, 1, 2, 6, 1).leaf()
        rows[index]["saddr"] = rows[index]["daddr"] = np.frombuffer(bytes(became), KEY)[0]["saddr"]
    expected = [any(address in prefix for address in pair) for pair in pairs]
    assert Filter(prefix=prefix)(Batch(keys, rows)).tolist() == expected
