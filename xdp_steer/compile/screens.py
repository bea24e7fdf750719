"""Screens of zones as rows of ``screens``."""

from __future__ import annotations

from collections.abc import Mapping

from ipsec_gw.model.firewall import Ruleset
from ipsec_gw.model.screens import Screens
from xdp_steer.compile.errors import CompileError
from xdp_steer.compile.ids import Ids
from xdp_steer.compile.rows import ScreenRow
from xdp_steer.screen_layout import Screen, ScreenFlag


def screen_rows(ruleset: Ruleset, ids: Ids) -> Mapping[int, ScreenRow]:
    """What each zone screens, by its number. Raises CompileError for a zone with screens that there are none of."""
    profiles = {screens.name: screens for screens in ruleset.screens}
    rows = {}
    for zone in ruleset.zones:
        if zone.screen is None:
            continue
        if zone.screen not in profiles:
            raise CompileError(f"zone {zone.name}: there are no screens {zone.screen} - define them")
        rows[ids.zones[zone.name]] = _row(profiles[zone.screen])
    return rows


def _row(screens: Screens) -> ScreenRow:
    wanted = {screen for screen in Screen if getattr(screens, screen.name.lower())}
    return ScreenRow(frozenset(wanted), ScreenFlag.ALARM_ONLY if screens.alarm_only else ScreenFlag(0))
