"""Bit-vector classification: values of a dimension that the same rows match share a class."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from ipsec_gw.model.firewall import ANY_PORT, Range, Service
from ipsec_gw.model.ids import IpNetwork
from xdp_steer.compile.errors import CompileError
from xdp_steer.compile.rows import PrefixRow, Segments
from xdp_steer.compile.terms import EVERYWHERE, Term
from xdp_steer.flow_layout import MAX_CLASSES, MAX_ZONES, Dimension, ServiceKind

_KINDS = {6: ServiceKind.TCP, 17: ServiceKind.UDP, 1: ServiceKind.ICMP, 58: ServiceKind.ICMP6}
_SERVICE_KINDS = (*_KINDS.values(), ServiceKind.OTHER)
_SOURCE_KINDS = {6: ServiceKind.TCP_SOURCE, 17: ServiceKind.UDP_SOURCE}
_V4_MAPPED = 0xFFFF << 32


class Classes:
    """The classes of one dimension: one for each set of rows, class 0 for ``default``."""

    def __init__(self, terms: Sequence[Term], dimension: Dimension, default: int) -> None:
        self._terms = terms
        self._dimension = dimension
        self._numbers = {default: 0}

    def of(self, rows: int) -> int:
        """The class of a set of rows. Raises CompileError naming the last rule of it when there are too many."""
        if rows not in self._numbers:
            if len(self._numbers) == MAX_CLASSES:
                raise CompileError(
                    f"{self._terms[rows.bit_length() - 1].label}: more than {MAX_CLASSES} combinations of "
                    f"{self._dimension.name.lower().replace('_', ' ')} - merge rules or prefixes"
                )
            self._numbers[rows] = len(self._numbers)
        return self._numbers[rows]

    def bits(self) -> tuple[int, ...]:
        """The set of rows of every class."""
        return tuple(self._numbers)


def zone_bits(terms: Sequence[Term]) -> tuple[int, ...]:
    """The set of rows of every zone pair, ``from * 64 + to``."""
    groups: dict[tuple[frozenset[int], frozenset[int]], int] = {}
    for number, term in enumerate(terms):
        pair = (term.from_zones, term.to_zones)
        groups[pair] = groups.get(pair, 0) | 1 << number
    bits = [0] * (MAX_ZONES * MAX_ZONES)
    for (from_zones, to_zones), rows in groups.items():
        for from_zone in from_zones:
            for to_zone in to_zones:
                bits[from_zone * MAX_ZONES + to_zone] |= rows
    return tuple(bits)


def prefix_rows(terms: Sequence[Term], dimension: Dimension) -> tuple[tuple[int, ...], tuple[PrefixRow, ...]]:
    """Classes of source or destination addresses: the sets of rows, and the prefixes that lead to them.

    A prefix also has the rows of every prefix around it. One that adds none to those is left out.
    """
    anywhere = 0
    own: dict[IpNetwork, int] = {}
    for number, term in enumerate(terms):
        networks = term.sources if dimension is Dimension.SOURCE else term.destinations
        anywhere |= 0 if networks else 1 << number
        for network in networks:
            own[network] = own.get(network, 0) | 1 << number
    classes = Classes(terms, dimension, anywhere)
    found = _nested(own, anywhere)
    rows = tuple(PrefixRow(network, classes.of(bits)) for network, bits in found.items())
    return classes.bits(), rows


def _nested(own: dict[IpNetwork, int], anywhere: int) -> dict[IpNetwork, int]:
    found: dict[IpNetwork, int] = {}
    ordered = sorted((net.version, int(net.network_address), net.prefixlen, net) for net in own)
    mapped_covered = False
    for version, family in groupby(ordered, key=lambda item: item[0]):
        around: list[tuple[int, int]] = []  # (last address, rows) of the prefixes around, outermost first
        for _, first, _, network in family:
            while around and around[-1][0] < first:
                around.pop()
            inherited = around[-1][1] if around else anywhere
            bits = own[network] | inherited
            last = int(network.broadcast_address)
            around.append((last, bits))
            if bits != inherited:
                found[network] = bits
                mapped_covered |= version == 6 and first <= _V4_MAPPED <= last
    if mapped_covered:
        # IPv4 lies inside of it as ::ffff:0:0/96 and must not match IPv6 prefixes.
        found.setdefault(EVERYWHERE[4], anywhere)
    return found


def service_rows(terms: Sequence[Term]) -> tuple[tuple[int, ...], dict[ServiceKind, Segments]]:
    """Classes of protocols and destination ports; class 0 has the rows of any service."""
    spans = {kind: [_span(term.service, kind) for term in terms] for kind in _SERVICE_KINDS}
    default = rows_of(term.service.protocol is None for term in terms)
    return _segments(terms, Dimension.SERVICE, default, spans)


def source_port_rows(terms: Sequence[Term]) -> tuple[tuple[int, ...], dict[ServiceKind, Segments]]:
    """Classes of source ports; class 0 has the rows that do not ask for them."""
    spans: dict[ServiceKind, list[Range | None]] = {}
    for protocol, kind in _SOURCE_KINDS.items():
        services = (term.service for term in terms)
        spans[kind] = [
            service.source if service.source == ANY_PORT or service.protocol == protocol else None
            for service in services
        ]
    default = rows_of(term.service.source == ANY_PORT for term in terms)
    return _segments(terms, Dimension.SOURCE_PORT, default, spans)


def _span(service: Service, kind: ServiceKind) -> Range | None:
    """The indices of a kind that a service matches. By OTHER a packet is looked up whose ports are not known."""
    if service.protocol is None:
        return ANY_PORT
    known = _KINDS.get(service.protocol, ServiceKind.OTHER)
    if kind is ServiceKind.OTHER and (known is kind or service.destination == service.source == ANY_PORT):
        return (service.protocol, service.protocol)
    return service.destination if known is kind else None


def rows_of(chosen: Iterable[bool]) -> int:
    """The set of the rows that are chosen, one after the other."""
    return sum(1 << number for number, wanted in enumerate(chosen) if wanted)


def _segments(
    terms: Sequence[Term], dimension: Dimension, default: int, spans: dict[ServiceKind, list[Range | None]]
) -> tuple[tuple[int, ...], dict[ServiceKind, Segments]]:
    classes = Classes(terms, dimension, default)
    found: dict[ServiceKind, Segments] = {}
    for kind, ranges in spans.items():
        toggles = {0: 0}  # first index -> rows that begin or end to match there
        for number, span in enumerate(ranges):
            if span is not None:
                toggles[span[0]] = toggles.get(span[0], 0) ^ 1 << number
                toggles[span[1] + 1] = toggles.get(span[1] + 1, 0) ^ 1 << number
        found[kind] = tuple(_sweep(toggles, classes))
    return classes.bits(), found


def _sweep(toggles: dict[int, int], classes: Classes) -> Iterator[tuple[int, int]]:
    rows, current = 0, None
    for index in sorted(toggles):
        rows ^= toggles[index]
        if index <= ANY_PORT[1] and (number := classes.of(rows)) != current:
            current = number
            yield index, number
