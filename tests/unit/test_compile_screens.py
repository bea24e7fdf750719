"""Screens on their way into the maps: rows, port flags, what `plan` says of them."""

from __future__ import annotations

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
from xdp_steer.flow_layout import MAX_ZONES, PortFlag
from xdp_steer.reasons import Reason
from xdp_steer.screen_layout import Screen, ScreenFlag, ScreenLeaf

OUTSIDE = Screens("outside", land=True, tear_drop=True)
RULES = Ruleset(zones=(Zone("lan", ("lan0",)), Zone("wan", ("wan0",), screen="outside")), screens=(OUTSIDE,))
PORTS = {"lan0": PortInfo(4, 4), "wan0": PortInfo(5, 5)}


def compiled(rules: Ruleset) -> tuple[Rows, Ids]:
    ids = assign(Ids(), rules)
    return compile_ruleset(rules, ids, PORTS, now=datetime(2026, 1, 1)), ids


def test_a_zone_gets_the_screens_of_its_profile() -> None:
    rows, ids = compiled(RULES)
    assert rows.screens == {ids.zones["wan"]: ScreenRow(frozenset({Screen.LAND, Screen.TEAR_DROP}), ScreenFlag(0))}
    assert [PortFlag.SCREEN in port.flags for port in rows.ports] == [False, True]


def test_alarm_only() -> None:
    rows, ids = compiled(replace(RULES, screens=(replace(OUTSIDE, alarm_only=True),)))
    assert rows.screens[ids.zones["wan"]].flags is ScreenFlag.ALARM_ONLY


@pytest.mark.parametrize("bank", [0, 1])
def test_every_zone_of_the_bank_is_written(bank: int) -> None:
    rows, ids = compiled(RULES)
    (write,) = (write for write in bank_writes(rows, bank) if write.spec is sl.SCREENS)
    leaves = [ScreenLeaf.from_buffer_copy(write.values, 8 * zone) for zone in range(MAX_ZONES)]
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
    bare = replace(RULES, zones=(RULES.zones[0], replace(RULES.zones[1], screen=None)))
    assert [str(change) for change in plan(RULES, bare)] == ["zone wan: changed: screen outside -> none"]


def test_screens_fit_their_word_and_the_reasons() -> None:
    assert max(Screen) < sl.MAX_SCREENS
    assert [Reason(Reason.SCREEN_LAND + screen).name for screen in Screen] == [f"SCREEN_{s.name}" for s in Screen]
