"""Applications: predefined ones, terms, and sets of other applications."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

from ipsec_gw.config.firewall import ApplicationShape, TermShape
from ipsec_gw.config.limits import MAX_TERM_SERVICES
from ipsec_gw.config.names import check_application_name
from ipsec_gw.config.ports import ICMP, ICMP6, TCP, UDP, merged
from ipsec_gw.config.positions import Path
from ipsec_gw.config.problems import Refused, Report, dotted
from ipsec_gw.config.section import read
from ipsec_gw.config.services import PREDEFINED
from ipsec_gw.config.sets import resolution_order
from ipsec_gw.model.firewall import ANY_PORT, ANY_SERVICE, Range, Service

APPLICATIONS = "applications"
Services = tuple[Service, ...]


class Applications:
    """``[applications]`` and the predefined ones. What is wrong with it goes to the report when it is made."""

    def __init__(self, raw: Mapping[str, object], report: Report) -> None:
        self._report = report
        shapes = {name: self._entry(name, value) for name, value in raw.items()}
        self._broken = {name for name, shape in shapes.items() if shape is None}
        self._known: dict[str, Services] = dict(PREDEFINED)
        sets: dict[str, list[str]] = {}
        for name, shape in shapes.items():
            if shape is not None and shape.members is not None:
                sets[name] = shape.members
            elif shape is not None:
                self._remember(name, self._terms(name, shape))
        self._resolve_sets(sets)

    def lookup(self, path: Path, names: list[str] | None) -> Services | None:
        """The terms of the applications at ``path``, each once. None if the report has an error."""
        if names is None:
            return ANY_SERVICE
        services: dict[Service, None] = {}
        whole = True
        for index, name in enumerate(names):
            found = self._known.get(name)
            if found is None and name not in self._broken:
                way_out = f"define it under [{dotted((APPLICATIONS, name))}] or use a predefined one"
                self._report.add((*path, index), f"unknown application {name!r}", way_out)
            whole = whole and found is not None
            services |= dict.fromkeys(found or ())
        if not whole:
            return None
        return ANY_SERVICE if ANY_SERVICE[0] in services else tuple(services)

    def _entry(self, name: str, value: object) -> ApplicationShape | None:
        path: Path = (APPLICATIONS, name)
        try:
            check_application_name(name)
        except Refused as refused:
            self._report.refuse(path, refused)
            return None
        shape = read(ApplicationShape, value, path, self._report)
        if shape is None:
            return None
        given = shape.model_fields_set
        kinds = [bool(given - {"terms", "members"}), "terms" in given, "members" in given]
        if sum(kinds) != 1:
            message = "no terms at all" if not any(kinds) else "more than one of a protocol, terms and members"
            self._report.add(path, message, "give protocol and ports, or terms = [...], or members = [...]")
            return None
        return shape

    def _remember(self, name: str, services: Services | None) -> None:
        if services is None:
            self._broken.add(name)
        else:
            self._known[name] = services

    def _terms(self, name: str, shape: ApplicationShape) -> Services | None:
        path: Path = (APPLICATIONS, name)
        if shape.terms is None:
            return self._term(path, shape)
        found = [self._term((*path, "terms", index), term) for index, term in enumerate(shape.terms)]
        if any(services is None for services in found):
            return None
        return tuple(dict.fromkeys(service for services in found for service in services or ()))

    def _term(self, path: Path, term: TermShape) -> Services | None:
        try:
            return services_of(term)
        except _TermRefused as refused:
            self._report.refuse((*path, refused.option), refused)
            return None

    def _resolve_sets(self, sets: dict[str, list[str]]) -> None:
        order, cycles = resolution_order(sets)
        for cycle in cycles:
            self._broken |= set(cycle)
            message = f"the set contains itself: {' -> '.join(cycle)}"
            self._report.add((APPLICATIONS, cycle[0], "members"), message, "break the circle")
        for name in order:
            self._remember(name, self.lookup((APPLICATIONS, name, "members"), sets[name]))


class _TermRefused(Refused):
    """An option of a term that cannot hold."""

    def __init__(self, option: str, message: str, way_out: str) -> None:
        super().__init__(message, way_out)
        self.option = option


def services_of(term: TermShape) -> Services:
    """One term: each range of destination ports with each range of source ports. Raises Refused."""
    _check_options(term)
    if term.icmp_type is not None:
        code = term.icmp_code
        low, high = (0, 255) if code is None else (code, code)
        return (Service(term.protocol, (term.icmp_type << 8 | low, term.icmp_type << 8 | high), timeout=term.timeout),)
    destinations, sources = _spans(term.destination_port), _spans(term.source_port)
    if len(destinations) * len(sources) > MAX_TERM_SERVICES:
        message = f"{len(destinations)} destination by {len(sources)} source port ranges are too many"
        raise _TermRefused("source_port", message, "leave source_port out or write fewer ranges")
    return tuple(Service(term.protocol, *spans, timeout=term.timeout) for spans in product(destinations, sources))


def _check_options(term: TermShape) -> None:
    for option in ("destination_port", "source_port"):
        if getattr(term, option) is not None and term.protocol not in (TCP, UDP):
            raise _TermRefused(option, "ports are matched of tcp and udp only", "set protocol to tcp or udp")
    if term.icmp_type is not None and term.protocol not in (ICMP, ICMP6):
        raise _TermRefused("icmp_type", "types are of icmp and icmpv6", "set protocol to icmp or icmpv6")
    if term.icmp_code is not None and term.icmp_type is None:
        raise _TermRefused("icmp_code", "a code belongs to a type", "add icmp_type")


def _spans(ports: list[Range] | None) -> tuple[Range, ...]:
    return merged(ports) if ports is not None else (ANY_PORT,)
