"""``[screens.NAME]``: profiles that zones refer to."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ipsec_gw.config.context import tables
from ipsec_gw.config.names import check_name
from ipsec_gw.config.positions import Path
from ipsec_gw.config.problems import Refused, Report, dotted, one_of
from ipsec_gw.config.section import Section, read
from ipsec_gw.model.screens import Screens

SCREENS = "screens"
MAX_THRESHOLD = 1_000_000_000
"""Packets or sessions: counts stay far from the 32 bits that the datapath has for them."""
MAX_DIFFERENT = 65535
"""Of ports that are scanned, or destinations that are swept: there are no more ports."""
MAX_WINDOW = 60
"""Seconds."""
_SETTINGS = {"window", "alarm_only", "syn_cookie"}
"""Options that are no screens."""
_COUNTED = ("syn_flood", "icmp_flood", "udp_flood", "syn_source", "syn_destination", "port_scan", "ip_sweep")
"""Screens with a window."""

Threshold = Annotated[int, Field(ge=1, le=MAX_THRESHOLD)]
Different = Annotated[int, Field(ge=1, le=MAX_DIFFERENT)]


class ScreensShape(Section):
    """``[screens.NAME]``."""

    land: bool = False
    syn_fin: bool = False
    no_flag: bool = False
    fin_no_ack: bool = False
    winnuke: bool = False
    syn_fragment: bool = False
    tear_drop: bool = False
    source_route: bool = False
    ping_of_death: bool = False
    syn_flood: Threshold | None = None
    icmp_flood: Threshold | None = None
    udp_flood: Threshold | None = None
    syn_source: Threshold | None = None
    syn_destination: Threshold | None = None
    port_scan: Different | None = None
    ip_sweep: Different | None = None
    sessions_source: Threshold | None = None
    sessions_destination: Threshold | None = None
    syn_cookie: bool = False
    window: Annotated[int, Field(ge=1, le=MAX_WINDOW)] = 1
    alarm_only: bool = False


class Profiles:
    """``[screens]``; what is wrong with it goes to the report when it is made. ``found`` are the good ones."""

    def __init__(self, raw: object, report: Report) -> None:
        self._report = report
        entries = tables(raw, (SCREENS,), report)
        self._names = frozenset(entries)
        found = {name: _profile(name, value, report) for name, value in entries.items()}
        self.found = tuple(screens for screens in found.values() if screens is not None)

    def check(self, path: Path, name: str | None) -> None:
        """An unknown name goes to the report."""
        if name is not None and name not in self._names:
            known = f" or write one of: {one_of(sorted(self._names))}" if self._names else ""
            self._report.add(path, f"unknown screens {name!r}", f"define [{dotted((SCREENS, name))}]{known}")


def _profile(name: str, value: object, report: Report) -> Screens | None:
    path: Path = (SCREENS, name)
    try:
        check_name(name)
    except Refused as refused:
        report.refuse(path, refused)
        return None
    shape = read(ScreensShape, value, path, report)
    if shape is None:
        return None
    if not any(value for option, value in shape if option not in _SETTINGS):
        report.add(path, "screens nothing", "switch a screen on, for example land = true")
        return None
    if "window" in shape.model_fields_set and not any(getattr(shape, option) for option in _COUNTED):
        report.add((*path, "window"), "nothing is counted in it", f"remove it, or set one of {one_of(_COUNTED)}")
        return None
    if shape.syn_cookie and (shape.syn_flood is None or shape.alarm_only):
        why = "syn_flood says from when on" if shape.syn_flood is None else "alarm_only answers nothing"
        way_out = "add syn_flood = ..." if shape.syn_flood is None else "remove one of them"
        report.add((*path, "syn_cookie"), f"has no effect: {why}", way_out)
        return None
    return Screens(name, **shape.model_dump())
