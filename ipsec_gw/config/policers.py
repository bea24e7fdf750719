"""``[policers.NAME]``: how much is let through, and what becomes of what is beyond."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, PlainValidator

from ipsec_gw.config.context import tables
from ipsec_gw.config.dscp import codepoint_of
from ipsec_gw.config.limits import MAX_POLICERS
from ipsec_gw.config.names import check_name
from ipsec_gw.config.positions import Path
from ipsec_gw.config.problems import Refused, Report, dotted, one_of
from ipsec_gw.config.rates import rate_of
from ipsec_gw.config.section import Section, read
from ipsec_gw.model.filters import Colour, Policer

POLICERS = "policers"
MAX_BURST = 1_000_000_000
"""Bytes."""
SMALLEST_BURST = 1500
"""Bytes: less lets no full packet through, ever."""


def _fate(value: Any) -> Colour | int:
    return Colour(value) if value in (Colour.ACCEPT.value, Colour.DISCARD.value) else codepoint_of(value)


Rate = Annotated[int, PlainValidator(rate_of)]
Burst = Annotated[int, Field(ge=SMALLEST_BURST, le=MAX_BURST)]
Fate = Annotated[Colour | int, PlainValidator(_fate)]


class PolicerShape(Section):
    """``[policers.NAME]``."""

    rate: Rate
    burst: Burst
    excess_burst: Burst | None = None
    peak_rate: Rate | None = None
    peak_burst: Burst | None = None
    yellow: Fate = Colour.ACCEPT
    red: Fate = Colour.DISCARD
    aware: bool = False


class Policers:
    """``[policers]``; what is wrong with it goes to the report when it is made. ``found`` are the good ones."""

    def __init__(self, raw: object, report: Report) -> None:
        self._report = report
        entries = tables(raw, (POLICERS,), report)
        self._names = frozenset(entries)
        found = {name: self._policer(name, value) for name, value in entries.items()}
        self.found = tuple(policer for policer in found.values() if policer is not None)
        if len(entries) > MAX_POLICERS:
            path: Path = (POLICERS, list(entries)[MAX_POLICERS])
            report.add(
                path, f"{len(entries)} policers are too many", f"{MAX_POLICERS} is the most: let terms share one"
            )

    def check(self, path: Path, name: str | None) -> None:
        """An unknown name goes to the report."""
        if name is not None and name not in self._names:
            known = f" or write one of: {one_of(sorted(self._names))}" if self._names else ""
            self._report.add(path, f"unknown policer {name!r}", f"define [{dotted((POLICERS, name))}]{known}")

    def _policer(self, name: str, value: object) -> Policer | None:
        path: Path = (POLICERS, name)
        try:
            check_name(name)
        except Refused as refused:
            self._report.refuse(path, refused)
            return None
        shape = read(PolicerShape, value, path, self._report)
        if shape is None or not self._check_colours(path, shape):
            return None
        return Policer(name, **{option: getattr(shape, option) for option in PolicerShape.model_fields})

    def _check_colours(self, path: Path, shape: PolicerShape) -> bool:
        """Which of the RFCs is it?"""
        peak = shape.peak_rate is not None or shape.peak_burst is not None
        given = shape.model_fields_set
        problem: tuple[str, str, str] | None = None
        if peak and shape.excess_burst is not None:
            problem = "excess_burst", "one rate has an excess burst, two rates have a peak", "remove one of them"
        elif shape.peak_rate is None and peak:
            problem = "peak_burst", "a peak burst belongs to a peak rate", "add peak_rate"
        elif shape.peak_burst is None and peak:
            problem = "peak_rate", "a peak rate needs a burst", "add peak_burst, in bytes"
        elif shape.peak_rate is not None and shape.peak_rate < shape.rate:
            problem = "peak_rate", "the peak rate is below the rate", "write at least the rate (RFC 2698 2)"
        elif not peak and shape.excess_burst is None:
            colours = [option for option in ("yellow", "aware") if option in given]
            if colours:
                way_out = "add excess_burst (RFC 2697), or peak_rate and peak_burst (RFC 2698)"
                problem = colours[0], "there are two colours only, green and red", way_out
        if problem is not None:
            option, message, way_out = problem
            self._report.add((*path, option), message, way_out)
        return problem is None
