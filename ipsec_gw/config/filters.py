"""``[filters.NAME]``: terms, and the interfaces where they look."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainValidator

from ipsec_gw.config.context import Context, Names, check_families, tables
from ipsec_gw.config.dscp import codepoint_of
from ipsec_gw.config.firewall import Interface, Listed, listed
from ipsec_gw.config.limits import MAX_FILTERS
from ipsec_gw.config.literals import without
from ipsec_gw.config.names import check_name
from ipsec_gw.config.policers import Policers
from ipsec_gw.config.positions import Path
from ipsec_gw.config.problems import Refused, Report
from ipsec_gw.config.section import Section, read
from ipsec_gw.model.filters import Filter, FilterAction, FilterTerm
from ipsec_gw.model.firewall import TUNNEL_INTERFACES
from ipsec_gw.model.ids import IpNetwork

FILTERS = "filters"
_NAME_LENGTH = 63
_FLAGS = {"fin": 1, "syn": 2, "rst": 4, "psh": 8, "ack": 16, "urg": 32, "ece": 64, "cwr": 128}


def _flag(value: Any) -> tuple[int, bool]:
    """The bit, and whether it must be set."""
    name = value.removeprefix("!") if isinstance(value, str) else ""
    if name not in _FLAGS:
        raise Refused(f"{value!r} is no TCP flag", f"write {', '.join(_FLAGS)}, or with ! before it for one not set")
    return _FLAGS[name], name == value


Interfaces = Annotated[list[Interface], BeforeValidator(listed)]
Codepoint = Annotated[int, PlainValidator(codepoint_of)]
Codepoints = Annotated[list[Codepoint], BeforeValidator(listed), Field(min_length=1)]
Flags = Annotated[
    list[Annotated[tuple[int, bool], PlainValidator(_flag)]], BeforeValidator(listed), Field(min_length=1)
]


class FilterTermShape(Section):
    """``[[filters.NAME.terms]]``."""

    name: str
    action: Literal["accept", "discard", "reject"] = "accept"
    source: Listed | None = None
    source_except: Listed | None = None
    destination: Listed | None = None
    destination_except: Listed | None = None
    application: Listed | None = None
    dscp: Codepoints | None = None
    tcp_flags: Flags | None = None
    fragment: bool | None = None
    policer: str | None = None
    mark: Codepoint | None = None
    log: bool = False
    mirror: Interface | None = None


class FilterShape(Section):
    """``[filters.NAME]``."""

    terms: Annotated[list[FilterTermShape], Field(min_length=1)]
    input: Interfaces = Field(default_factory=list)
    output: Interfaces = Field(default_factory=list)
    host: bool = False


def resolve_filters(
    raw: object, context: Context, policers: Policers
) -> tuple[tuple[Filter, ...], tuple[FilterTerm, ...]]:
    """The good filters of the file, and the terms of all of them."""
    report = context.report
    entries = tables(raw, (FILTERS,), report)
    if len(entries) > MAX_FILTERS:
        path: Path = (FILTERS, list(entries)[MAX_FILTERS])
        report.add(path, f"{len(entries)} filters are too many", f"{MAX_FILTERS} is the most: merge some")
    places = _Places(context)
    filters: list[Filter] = []
    terms: list[FilterTerm] = []
    for name, value in entries.items():
        shape = _shape((FILTERS, name), name, value, report)
        if shape is None:
            continue
        places.take((FILTERS, name), name, shape)
        filters.append(Filter(name, tuple(shape.input), tuple(shape.output), shape.host))
        terms += _terms((FILTERS, name), name, shape, context, policers)
    return tuple(filters), tuple(terms)


def _shape(path: Path, name: str, value: object, report: Report) -> FilterShape | None:
    try:
        check_name(name)
    except Refused as refused:
        report.refuse(path, refused)
        return None
    return read(FilterShape, value, path, report)


class _Places:
    """Who looks where, and where the file says so."""

    def __init__(self, context: Context) -> None:
        self._report = context.report
        self._zoned = {name for zone in context.zones for name in zone.interfaces}
        self._whole = len(context.zones) == len(context.zone_names)
        self._taken: dict[tuple[str, str], tuple[str, Path]] = {}

    def take(self, path: Path, name: str, shape: FilterShape) -> None:
        if not shape.input and not shape.output and not shape.host:
            self._report.add(path, "looks nowhere", "add input or output with interfaces, or host = true")
        for option in ("input", "output"):
            for index, interface in enumerate(getattr(shape, option)):
                self._take((*path, option, index), name, option, interface)
        if shape.host:
            self._take((*path, "host"), name, "host", "")

    def _take(self, path: Path, name: str, option: str, interface: str) -> None:
        if interface in TUNNEL_INTERFACES:
            self._report.add(path, f"{interface} comes and goes with the tunnels", "name interfaces of zones")
        elif interface and self._whole and interface not in self._zoned:
            self._report.add(path, f"{interface} is in no zone", "name an interface of a zone")
        elif (option, interface) in self._taken:
            owner, first = self._taken[option, interface]
            message = f"filter {owner} looks there already (line {self._report.line(first)})"
            self._report.add(path, message, "one filter looks in one place: put its terms into the other one")
        else:
            self._taken[option, interface] = name, path


def _terms(path: Path, name: str, shape: FilterShape, context: Context, policers: Policers) -> list[FilterTerm]:
    names = Names(context.report)
    found = []
    for index, term in enumerate(shape.terms):
        place: Path = (*path, "terms", index)
        if names.check(place, term.name):
            _check_name(place, name, term.name, context.report)
        _check_mirror((*place, "mirror"), term.mirror, shape, context)
        made = _term(place, name, term, context, policers)
        if shape.output and term.action == "reject":
            message = "what leaves cannot be rejected: nobody would be answered"
            context.report.add((*place, "action"), message, 'write "discard", or reject it where it comes in')
        found += [made] if made is not None else []
    return found


def _check_mirror(path: Path, interface: str | None, shape: FilterShape, context: Context) -> None:
    """A copy is no packet that a policy has let out."""
    if interface is None:
        return
    if shape.output or shape.host:
        message = "only what comes in is mirrored, as it arrives"
        context.report.add(path, message, "write the term in a filter with input alone")
    if interface in TUNNEL_INTERFACES or any(interface in zone.interfaces for zone in context.zones):
        message = f"{interface} is in a zone: the firewall would stop the copies"
        context.report.add(path, message, "name an interface of no zone")


def _check_name(path: Path, filter_name: str, term: str, report: Report) -> None:
    """Counters go by both names together."""
    if len(f"{filter_name}/{term}") > _NAME_LENGTH:
        message = f"{filter_name}/{term} is longer than {_NAME_LENGTH} characters"
        report.add((*path, "name"), message, "shorten the name of the term or of the filter")


def _term(path: Path, name: str, shape: FilterTermShape, context: Context, policers: Policers) -> FilterTerm | None:
    policers.check((*path, "policer"), shape.policer)
    _check_action(path, shape, context.report)
    sources = _addresses(path, "source", shape.source, shape.source_except, context)
    destinations = _addresses(path, "destination", shape.destination, shape.destination_except, context)
    services = context.applications.lookup((*path, "application"), shape.application)
    if sources is None or destinations is None or services is None:
        return None
    if not check_families(context.report, path, sources, destinations, services):
        return None
    flags = shape.tcp_flags or []
    if {bit for bit, wanted in flags if wanted} & {bit for bit, wanted in flags if not wanted}:
        context.report.add(
            (*path, "tcp_flags"), "matches nothing: a flag is to be set and not set", "remove one of them"
        )
    return FilterTerm(
        name=f"{name}/{shape.name}",
        filter=name,
        action=FilterAction(shape.action),
        sources=sources,
        destinations=destinations,
        services=services,
        dscp=frozenset(shape.dscp or ()),
        flags_set=sum({bit for bit, wanted in flags if wanted}),
        flags_clear=sum({bit for bit, wanted in flags if not wanted}),
        fragment=shape.fragment,
        policer=shape.policer,
        mark=shape.mark,
        log=shape.log,
        mirror=shape.mirror,
    )


def _check_action(path: Path, shape: FilterTermShape, report: Report) -> None:
    for option in ("policer", "mark"):
        if getattr(shape, option) is not None and shape.action != "accept":
            message = f"has no effect on what the term {shape.action}s"
            report.add((*path, option), message, 'remove it, or write action = "accept"')


def _addresses(
    path: Path, option: str, given: list[str] | None, excepted: list[str] | None, context: Context
) -> tuple[IpNetwork, ...] | None:
    """What is given without what is excepted. None if the report has an error."""
    wanted = context.addresses.lookup((*path, option), given)
    if wanted is None or excepted is None:
        return wanted
    place = (*path, f"{option}_except")
    unwanted = context.addresses.lookup(place, excepted)
    if unwanted is None:
        return None
    left = without(wanted, unwanted)
    if not left:
        context.report.add(place, "leaves no addresses", "except less, or remove the term")
        return None
    return left
