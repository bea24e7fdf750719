"""Screens on their way into the maps: rows, port flags, what `plan` says of them."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from datetime import datetime

import pytest

from ipsec_gw.model.firewall import Ruleset, Zone
from ipsec_gw.model.screens import Screens
from xdp_steer import screen_layout as sl
from xdp_steer.compile.changes import plan
from xdp_steer.compile.errors import CompileError
from xdp_steer.compile.ids import Ids, assign
from xdp_steer.compile.pack import bank_writes
from xdp_steer.compile.rows import PortInfo, Rows, ScreenRow
from xdp_steer.compile.ruleset import compile_ruleset
from xdp_steer.compile.screens import limited_zones
from xdp_steer.flow_layout import MAX_ZONES, PortFlag
from xdp_steer.reasons import Reason
from xdp_steer.screen_layout import Screen, ScreenFlag, ScreenLeaf

OUTSIDE = Screens("outside", land=True, tear_drop=True)
RULES = Ruleset(zones=(Zone("lan", ("lan0",)), Zone("wan", ("wan0",), screen="outside")), screens=(OUTSIDE,))
COUNTED = Screens("outside", land=True, syn_flood=100, ip_sweep=30, sessions_destination=7, window=5)
COUNTING = replace(RULES, screens=(COUNTED,))
PORTS = {"lan0": PortInfo(4, 4), "wan0": PortInfo(5, 5)}
SIZE = ctypes.sizeof(ScreenLeaf)
LEADS = PortFlag.SCREEN | PortFlag.SCREEN_UDP | PortFlag.SCREEN_ICMP | PortFlag.SCREEN_NEW | PortFlag.SESSION_LIMIT
"""Flags that lead packets to stages of the screens."""


def compiled(rules: Ruleset) -> tuple[Rows, Ids]:
    ids = assign(Ids(), rules)
    return compile_ruleset(rules, ids, PORTS, now=datetime(2026, 1, 1)), ids


def test_a_zone_gets_the_screens_of_its_profile() -> None:
    rows, ids = compiled(RULES)
    assert rows.screens == {ids.zones["wan"]: ScreenRow(frozenset({Screen.LAND, Screen.TEAR_DROP}), ScreenFlag(0))}
    assert [PortFlag.SCREEN in port.flags for port in rows.ports] == [False, True]


def test_thresholds_and_their_window() -> None:
    rows, ids = compiled(COUNTING)
    row = rows.screens[ids.zones["wan"]]
    assert row.wanted == {Screen.LAND, Screen.SYN_FLOOD, Screen.IP_SWEEP, Screen.SESSIONS_DESTINATION}
    assert row.thresholds == {Screen.SYN_FLOOD: 100, Screen.IP_SWEEP: 30, Screen.SESSIONS_DESTINATION: 7}
    assert row.window == 5
    (write,) = (write for write in bank_writes(rows, 0) if write.spec is sl.SCREENS)
    leaf = ScreenLeaf.from_buffer_copy(write.values, SIZE * ids.zones["wan"])
    assert leaf.window == 5
    assert {screen: leaf.thresholds[screen] for screen in Screen if leaf.thresholds[screen]} == row.thresholds


@pytest.mark.parametrize(
    ("screen", "flags"),
    [
        ({"winnuke": True}, PortFlag.SCREEN),
        ({"syn_flood": 1}, PortFlag.SCREEN),
        ({"syn_source": 1}, PortFlag.SCREEN),
        ({"syn_destination": 1}, PortFlag.SCREEN),
        ({"icmp_flood": 1}, PortFlag.SCREEN | PortFlag.SCREEN_ICMP),
        ({"udp_flood": 1}, PortFlag.SCREEN | PortFlag.SCREEN_UDP),
        ({"port_scan": 1}, PortFlag.SCREEN_NEW),
        ({"ip_sweep": 1}, PortFlag.SCREEN_NEW),
        ({"sessions_source": 1}, PortFlag.SESSION_LIMIT),
        ({"sessions_destination": 1}, PortFlag.SESSION_LIMIT),
    ],
    ids=lambda value: next(iter(value), None) if isinstance(value, dict) else None,
)
def test_packets_are_led_to_the_stages_that_have_something_to_look_at(screen: dict[str, int], flags: PortFlag) -> None:
    rows, _ = compiled(replace(RULES, screens=(Screens("outside", **screen),)))
    assert [port.flags & LEADS for port in rows.ports] == [PortFlag(0), flags]


def test_every_screen_has_one_place() -> None:
    kinds = (sl.AT_ARRIVAL, sl.WITHOUT_SESSION, sl.OF_SESSIONS)
    assert sorted(screen for kind in kinds for screen in kind) == sorted(Screen)


def test_zones_that_limit_sessions() -> None:
    rows, ids = compiled(COUNTING)
    assert limited_zones(rows.screens) == {(ids.zones["wan"], Screen.SESSIONS_DESTINATION)}
    assert limited_zones(compiled(RULES)[0].screens) == frozenset()


def test_alarm_only() -> None:
    rows, ids = compiled(replace(RULES, screens=(replace(OUTSIDE, alarm_only=True),)))
    assert rows.screens[ids.zones["wan"]].flags is ScreenFlag.ALARM_ONLY


@pytest.mark.parametrize("bank", [0, 1])
def test_every_zone_of_the_bank_is_written(bank: int) -> None:
    rows, ids = compiled(RULES)
    (write,) = (write for write in bank_writes(rows, bank) if write.spec is sl.SCREENS)
    leaves = [ScreenLeaf.from_buffer_copy(write.values, SIZE * zone) for zone in range(MAX_ZONES)]
    wanted = {ids.zones["wan"]: 1 << Screen.LAND | 1 << Screen.TEAR_DROP}
    assert {zone: leaf.wanted for zone, leaf in enumerate(leaves) if leaf.wanted} == wanted
    keys = [int.from_bytes(key, "little") for key in write.each_key()]
    assert keys == list(range(bank * MAX_ZONES, (bank + 1) * MAX_ZONES))


def test_screens_that_are_not_there() -> None:
    with pytest.raises(CompileError, match="zone wan: there are no screens outside - "):
        compiled(replace(RULES, screens=()))


def test_what_plan_says() -> None:
    changed = replace(RULES, screens=(replace(OUTSIDE, land=False), Screens("more", winnuke=True)))
    assert [str(change) for change in plan(RULES, changed)] == [
        "screens outside: changed: land yes -> no",
        "screens more: added",
    ]
    higher = replace(COUNTING, screens=(replace(COUNTED, syn_flood=200, ip_sweep=None, window=1),))
    assert [str(change) for change in plan(COUNTING, higher)] == [
        "screens outside: changed: syn flood 100 -> 200; ip sweep 30 -> none; window 5 -> 1"
    ]
    bare = replace(RULES, zones=(RULES.zones[0], replace(RULES.zones[1], screen=None)))
    assert [str(change) for change in plan(RULES, bare)] == ["zone wan: changed: screen outside -> none"]


def test_screens_fit_their_word_and_the_reasons() -> None:
    assert max(Screen) < sl.MAX_SCREENS
    assert [Reason(Reason.SCREEN_LAND + screen).name for screen in Screen] == [f"SCREEN_{s.name}" for s in Screen]
