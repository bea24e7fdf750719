"""Counts of sessions for the limits of screens: what the collector writes, on real maps."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_network

import numpy as np
import pytest

from ipsec_gw.firewall.ageing import MAX_INTERVAL, RECOUNT_INTERVAL, SECOND, Close, CloseReason, Filter
from ipsec_gw.firewall.collector import Collector
from ipsec_gw.model.firewall import Sessions
from xdp_steer import libbpf
from xdp_steer.flow_layout import SESSIONS, SessionFlag, SessionLeaf, State
from xdp_steer.layout import AddressLeaf, MapSpec
from xdp_steer.screen_layout import SESSION_COUNTS, Limited, Screen, ScreenKeyLeaf
from xdp_steer.session_counts import SessionCounts
from xdp_steer.sessions import KEY, ROW, Batch, Flow, SessionTable

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]

START, TIMEOUT = 100_000 * SECOND, 3600
LAN, DMZ, WAN = 1, 2, 3
SOURCE, DESTINATION = Screen.SESSIONS_SOURCE, Screen.SESSIONS_DESTINATION
BOTH = frozenset({(LAN, SOURCE), (LAN, DESTINATION)})
SETTINGS = Sessions(maximum=1000)
Counted = dict[tuple[int, Screen, str], int]


@pytest.fixture
def maps() -> Iterator[dict[str, int]]:
    made = {spec.name: create(spec) for spec in (replace(SESSIONS, entries=1024), SESSION_COUNTS)}
    yield made
    for fd in made.values():
        os.close(fd)


def create(spec: MapSpec) -> int:
    sizes = ctypes.sizeof(spec.key), ctypes.sizeof(spec.value)
    return libbpf.map_create(spec.kind, spec.name, *sizes, spec.entries, flags=spec.flags)


@dataclass
class Desk:
    """A table, its collector, and the counts."""

    maps: dict[str, int]
    reported: list[Close] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.table = SessionTable(self.maps[SESSIONS.name], batch=16)
        counts = SessionCounts(self.maps[SESSION_COUNTS.name])
        self.collector = Collector(self.table, SETTINGS, self.reported.extend, lambda: 0.0, counts)

    def limit(self, limited: Limited) -> None:
        self.collector.configure(SETTINGS, limited)

    def add(self, number: int, source: str, destination: str, zone: int = LAN, *, seen: int = START) -> None:
        """A session in both directions, its source translated."""
        flow = Flow(ip_address(source), ip_address(destination), number, 443, 6, zone)
        hidden = ip_address("203.0.113.1" if flow.source.version == 4 else "2001:db8:ffff::1")
        became = replace(flow, source=hidden, zone=WAN)
        back = Flow(became.destination, became.source, 443, number, 6, WAN)
        forth, fro = became.leaf(), Flow(flow.destination, flow.source, 443, number, 6, zone).leaf()
        common = {
            "id": number,
            "created_ns": START,
            "last_seen_ns": seen,
            "state": State.ESTABLISHED,
            "timeout": TIMEOUT,
        }
        for key, leaf, flags in ((flow, forth, 0), (back, fro, SessionFlag.REVERSE)):
            sides = {name: getattr(leaf, name) for name in ("saddr", "daddr", "sport", "dport")}
            row = SessionLeaf(**common, **sides, out_zone=leaf.zone, flags=flags)
            assert self.table.insert(key.leaf(), row)

    def counted(self) -> Counted:
        fd = self.maps[SESSION_COUNTS.name]
        return {
            (int(key.zone), Screen(key.screen), str(key.addr.address())): libbpf.map_lookup(
                fd, key, ctypes.c_int64()
            ).value
            for key in list(libbpf.map_keys(fd, ScreenKeyLeaf))
        }

    def plant(self, zone: int, screen: Screen, address: str, count: int) -> None:
        """As the datapath may have counted."""
        key = ScreenKeyLeaf(Flow(ip_address(address), ip_address(address), 0, 0, 6, 0).leaf().saddr, zone, screen)
        libbpf.map_update(self.maps[SESSION_COUNTS.name], key, ctypes.c_int64(count))


@pytest.fixture
def desk(maps: dict[str, int]) -> Desk:
    made = Desk(maps)
    for number, (source, destination) in enumerate(
        [
            ("10.0.0.1", "192.0.2.1"),
            ("10.0.0.1", "192.0.2.2"),
            ("10.0.0.2", "192.0.2.1"),
            ("2001:db8::1", "2001:db8:2::1"),
        ]
    ):
        made.add(number, source, destination)
    for number in range(10, 50):  # more than a batch
        made.add(number, "10.0.0.9", f"192.0.2.{number}", DMZ)
    return made


OF_LAN: Counted = {
    (LAN, SOURCE, "10.0.0.1"): 2,
    (LAN, SOURCE, "10.0.0.2"): 1,
    (LAN, SOURCE, "2001:db8::1"): 1,
    (LAN, DESTINATION, "192.0.2.1"): 2,
    (LAN, DESTINATION, "192.0.2.2"): 1,
    (LAN, DESTINATION, "2001:db8:2::1"): 1,
}
"""The initiator's view: neither translated addresses nor replies."""


@pytest.mark.parametrize(
    ("limited", "expected"),
    [
        (BOTH, OF_LAN),
        ({(LAN, DESTINATION)}, {place: n for place, n in OF_LAN.items() if place[1] is DESTINATION}),
        ({(DMZ, SOURCE)}, {(DMZ, SOURCE, "10.0.0.9"): 40}),
        ({(WAN, SOURCE)}, {}),
    ],
    ids=["both", "destinations", "another zone", "a zone of replies"],
)
def test_sessions_are_counted_where_there_are_limits(desk: Desk, limited: Limited, expected: Counted) -> None:
    desk.limit(frozenset(limited))
    assert desk.counted() == expected
    desk.collector.sweep(START)
    assert desk.counted() == expected


def test_without_limits_nothing_is_written(desk: Desk) -> None:
    desk.plant(LAN, SOURCE, "10.0.0.1", 77)
    desk.limit(frozenset())
    desk.collector.sweep(START)
    assert desk.counted() == {(LAN, SOURCE, "10.0.0.1"): 77}


def test_a_sweep_corrects_and_forgets(desk: Desk) -> None:
    desk.limit(BOTH)
    desk.plant(LAN, SOURCE, "10.0.0.1", 77)
    desk.plant(LAN, SOURCE, "10.0.0.2", -1)
    desk.plant(LAN, SOURCE, "10.0.0.200", 5)
    desk.plant(DMZ, SOURCE, "10.0.0.9", 5)
    desk.collector.sweep(START)
    assert desk.counted() == OF_LAN


def test_of_more_addresses_than_room_those_with_the_most_sessions_are_written(maps: dict[str, int]) -> None:
    counts = SessionCounts(maps[SESSION_COUNTS.name])
    counts.limited = frozenset({(LAN, SOURCE)})
    keys, rows = np.zeros(SESSION_COUNTS.entries + 5000, KEY), np.zeros(SESSION_COUNTS.entries + 5000, ROW)
    keys["zone"] = LAN
    keys["saddr"]["addr"][:, 3] = np.arange(len(keys))
    keys["saddr"]["addr"][-300:, 3] = 7 << 16  # the last in order, were it not for their number
    counts.begin()
    counts.add(Batch(keys, rows))
    counts.write()
    busy = ScreenKeyLeaf(AddressLeaf((ctypes.c_uint32 * 4)(0, 0, 0, 7 << 16)), LAN, SOURCE)
    assert libbpf.map_lookup(maps[SESSION_COUNTS.name], busy, ctypes.c_uint64()).value == 300


def test_what_a_sweep_ends_is_not_counted(desk: Desk) -> None:
    desk.limit(BOTH)
    desk.add(100, "10.0.0.1", "192.0.2.7", seen=START - 2 * TIMEOUT * SECOND)
    desk.limit(BOTH)
    assert desk.counted()[LAN, SOURCE, "10.0.0.1"] == 3
    desk.collector.sweep(START)
    assert [close.session.id for close in desk.reported] == [100]
    assert desk.counted() == OF_LAN


def test_what_is_closed_is_not_counted(desk: Desk) -> None:
    desk.limit(BOTH)
    desk.collector.close(Filter(prefix=ip_network("10.0.0.1/32")), CloseReason.CLEARED, START)
    assert desk.counted() == {
        (LAN, SOURCE, "10.0.0.2"): 1,
        (LAN, SOURCE, "2001:db8::1"): 1,
        (LAN, DESTINATION, "192.0.2.1"): 1,
        (LAN, DESTINATION, "2001:db8:2::1"): 1,
    }


def test_limits_call_for_sweeps(desk: Desk) -> None:
    """No session ends that soon."""
    assert desk.collector.sweep(START).next_seconds == MAX_INTERVAL
    desk.limit(BOTH)
    assert desk.collector.sweep(START).next_seconds == RECOUNT_INTERVAL


def test_a_refusal_leaves_the_counts_alone(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of a look is no count."""
    desk.limit(BOTH)
    whole = desk.table.batches

    def half() -> Iterator[object]:
        yield next(whole())
        raise OSError(5, "broken")

    monkeypatch.setattr(desk.table, "batches", half)
    with pytest.raises(OSError, match="broken"):
        desk.collector.sweep(START)
    with pytest.raises(OSError, match="broken"):
        desk.collector.close(Filter(zone=99), CloseReason.CLEARED, START)
    assert desk.counted() == OF_LAN
