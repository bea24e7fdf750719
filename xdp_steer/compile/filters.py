"""Filters and policers as rows: terms are matched like policies, with the number of the filter in place of zones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ipsec_gw.model.filters import Colour, Filter, FilterAction, FilterTerm, Policer
from ipsec_gw.model.firewall import Ruleset
from xdp_steer import filter_layout as layout
from xdp_steer.compile.classify import rows_of
from xdp_steer.compile.errors import CompileError
from xdp_steer.compile.ids import Ids, label
from xdp_steer.compile.rows import FilterRow, FilterRows, PolicerRow, PortInfo, RuleRow
from xdp_steer.compile.terms import SELF_ID, Term, each
from xdp_steer.filter_layout import MAX_FILTERS, MAX_POLICERS, PolicerKind
from xdp_steer.flow_layout import NameKind, RowFlag

_ACTIONS = {
    FilterAction.ACCEPT: layout.FilterAction.ACCEPT,
    FilterAction.DISCARD: layout.FilterAction.DISCARD,
    FilterAction.REJECT: layout.FilterAction.REJECT,
}
_COLOURS = {Colour.ACCEPT: layout.KEEP_DSCP, Colour.DISCARD: layout.DISCARD_COLOUR}
_DSCPS, _FLAG_SETS = 64, 256


@dataclass(frozen=True, slots=True)
class Bound:
    """The number of the filter of each interface, by direction, and of the host filter (0: none)."""

    input: Mapping[str, int] = field(default_factory=dict)
    output: Mapping[str, int] = field(default_factory=dict)
    host: int = 0


def bind(ruleset: Ruleset) -> Bound:
    """Who looks where. Raises CompileError for two filters in one place, or too many."""
    if len(ruleset.filters) >= MAX_FILTERS:
        raise CompileError(
            f"filter {ruleset.filters[MAX_FILTERS - 1].name}: {len(ruleset.filters)} filters, "
            f"{MAX_FILTERS - 1} are possible - merge some"
        )
    places: dict[tuple[str, str], int] = {}
    for number, each_filter in enumerate(ruleset.filters, 1):
        for place in _places(each_filter):
            if place in places:
                there = f"{place[0]} {place[1]}".strip()
                other = ruleset.filters[places[place] - 1].name
                raise CompileError(
                    f"filter {each_filter.name}: {other} looks at {there} already - name it in one of them"
                )
            places[place] = number
    sides = {
        side: {name: number for (kind, name), number in places.items() if kind == side} for side in ("input", "output")
    }
    return Bound(sides["input"], sides["output"], places.get(("host", ""), 0))


def _places(one: Filter) -> Iterator[tuple[str, str]]:
    yield from (("input", name) for name in one.input)
    yield from (("output", name) for name in one.output)
    if one.host:
        yield "host", ""


def filter_terms(ruleset: Ruleset, ids: Ids, interfaces: Mapping[str, PortInfo]) -> tuple[list[Term], FilterRows]:
    """The terms of the filters' table, and what their rows do beside; to an interface that ``interfaces`` does not have
    nothing is mirrored. Raises CompileError naming the term.
    """
    numbers = {one.name: number for number, one in enumerate(ruleset.filters, 1)}
    policers = {policer.name: place for place, policer in enumerate(ruleset.policers)}
    terms: list[Term] = []
    rows: list[FilterRow] = []
    asked: list[FilterTerm] = []
    for term in ruleset.filter_terms:
        named = label(NameKind.FILTER_TERM, term.name)
        if term.filter not in numbers:
            raise CompileError(f"{named}: there is no filter {term.filter} - define it")
        if term.policer is not None and term.policer not in policers:
            raise CompileError(f"{named}: there is no policer {term.policer} - define it or name another one")
        flags = RowFlag.LOG_OPEN if term.log else RowFlag(0)
        row = RuleRow(ids.rules[NameKind.FILTER_TERM, term.name], _ACTIONS[term.action], flags)
        zones = frozenset({numbers[term.filter]}), frozenset({SELF_ID})
        target = interfaces.get(term.mirror) if term.mirror else None
        mirror = target.l3_ifindex if target else 0
        more = FilterRow(None if term.policer is None else policers[term.policer], term.mark, mirror)
        for made in each(named, row, zones, term.sources, term.destinations, term.services):
            terms.append(made)
            rows.append(more)
            asked.append(term)
    found = FilterRows(tuple(rows), _classes(asked), tuple(_policers(ruleset.policers, ids)), bind(ruleset).host)
    return terms, found


def _classes(terms: Sequence[FilterTerm]) -> tuple[int, ...]:
    """The rows of every DSCP, whole and in fragments, then of every set of TCP flags, then of no flags at all."""
    if not terms:
        return ()
    marks = [
        rows_of(_has_mark(term, dscp, fragment=fragment) for term in terms)
        for dscp in range(_DSCPS)
        for fragment in (False, True)
    ]
    flags = [rows_of(_has_flags(term, flags) for term in terms) for flags in range(_FLAG_SETS)]
    return (*marks, *flags, rows_of(not term.flags_set and not term.flags_clear for term in terms))


def _has_mark(term: FilterTerm, dscp: int, *, fragment: bool) -> bool:
    return (not term.dscp or dscp in term.dscp) and term.fragment in (None, fragment)


def _has_flags(term: FilterTerm, flags: int) -> bool:
    return flags & term.flags_set == term.flags_set and not flags & term.flags_clear


def _policers(policers: Sequence[Policer], ids: Ids) -> Iterator[PolicerRow]:
    if len(policers) > MAX_POLICERS:
        raise CompileError(
            f"policer {policers[MAX_POLICERS].name}: {len(policers)} policers, {MAX_POLICERS} are possible - merge some"
        )
    for policer in policers:
        row = PolicerRow(
            number=ids.rules[NameKind.POLICER, policer.name],
            yellow_rule=ids.rules.get((NameKind.POLICER_YELLOW, policer.name), 0),
            kind=PolicerKind.TWO_COLOURS,
            aware=policer.aware,
            yellow=_fate(policer.yellow),
            red=_fate(policer.red),
            rate=policer.rate,
            burst=policer.burst,
        )
        if policer.peak_rate is not None:
            peak = policer.peak_burst or policer.burst
            yield replace(row, kind=PolicerKind.TWO_RATES, peak_rate=policer.peak_rate, peak_burst=peak)
        elif policer.excess_burst is not None:
            yield replace(row, kind=PolicerKind.ONE_RATE, peak_rate=policer.rate, peak_burst=policer.excess_burst)
        else:
            yield row


def _fate(colour: Colour | int) -> int:
    return _COLOURS[colour] if isinstance(colour, Colour) else colour
