"""Screens of zones as rows of ``screens``."""

from __future__ import annotations

from collections.abc import Mapping

from ipsec_gw.model.firewall import Ruleset
from ipsec_gw.model.screens import Screens
from xdp_steer.compile.errors import CompileError
from xdp_steer.compile.ids import Ids
from xdp_steer.compile.rows import ScreenRow
from xdp_steer.flow_layout import PortFlag
from xdp_steer.screen_layout import AT_ARRIVAL, OF_SESSIONS, WITHOUT_SESSION, Limited, Screen, ScreenFlag


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
    given = {screen: getattr(screens, screen.name.lower()) for screen in Screen}
    thresholds = {
        screen: value for screen, value in given.items() if Screen.SYN_FLOOD <= screen < Screen.SYN_COOKIE and value
    }
    flags = ScreenFlag.ALARM_ONLY if screens.alarm_only else ScreenFlag(0)
    wanted = frozenset(screen for screen, value in given.items() if value)
    return ScreenRow(wanted, flags, screens.window, thresholds)


def limited_zones(rows: Mapping[int, ScreenRow]) -> Limited:
    """Zones that limit sessions."""
    return frozenset((zone, screen) for zone, row in rows.items() for screen in row.wanted & OF_SESSIONS)


def screen_flags(row: ScreenRow | None) -> PortFlag:
    """How packets of a zone's ports are led by its screens."""
    if row is None:
        return PortFlag(0)
    flags = {
        PortFlag.SCREEN: row.wanted & AT_ARRIVAL,
        PortFlag.SCREEN_UDP: row.wanted & {Screen.UDP_FLOOD},
        PortFlag.SCREEN_ICMP: row.wanted & {Screen.ICMP_FLOOD},
        PortFlag.SCREEN_NEW: row.wanted & WITHOUT_SESSION,
        PortFlag.SESSION_LIMIT: row.wanted & OF_SESSIONS,
    }
    return PortFlag(sum(flag for flag, wanted in flags.items() if wanted))
