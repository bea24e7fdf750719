"""The numbers of zones and rules. They stay with the name, so that sessions, counters and logs keep their meaning."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from ipsec_gw.model.firewall import SELF, Ruleset
from xdp_steer.compile.errors import CompileError
from xdp_steer.flow_layout import MAX_RULES, MAX_ZONES, NAME_BYTES, NameKind

RuleName = tuple[NameKind, str]
"""Kind and name of a rule. Names are unique within a kind."""

Name = TypeVar("Name")


@dataclass(frozen=True, slots=True)
class Ids:
    """Zones have 1 to 63 (0 is this machine), rules of all kinds together 1 to 8191."""

    zones: Mapping[str, int] = field(default_factory=dict)
    rules: Mapping[RuleName, int] = field(default_factory=dict)

    def names(self) -> dict[tuple[NameKind, int], str]:
        """The name of every number."""
        zones = {(NameKind.ZONE, number): name for name, number in self.zones.items()}
        return zones | {(kind, number): name for (kind, name), number in self.rules.items()}

    @classmethod
    def of_names(cls, names: Mapping[tuple[NameKind, int], str]) -> Ids:
        """The reverse of :meth:`names`."""
        zones = {name: number for (kind, number), name in names.items() if kind is NameKind.ZONE}
        rules: dict[RuleName, int] = {
            (kind, name): number for (kind, number), name in names.items() if kind is not NameKind.ZONE
        }
        return cls(zones, rules)


def assign(previous: Ids, ruleset: Ruleset) -> Ids:
    """Numbers for a ruleset: a name keeps its number, a new one gets the lowest that ``previous`` does not use.

    Only when those run out, a number is taken over from a name that is gone. Raises CompileError when there are too
    many zones or rules, when a name is longer than 63 bytes, or used twice for the same kind.
    """
    zones = [zone.name for zone in ruleset.zones]
    rules = list(_rule_names(ruleset))
    for kind, name in [(NameKind.ZONE, name) for name in zones] + rules:
        _check_name(kind, name)
    _check_unique((NameKind.ZONE, name) for name in zones)
    _check_unique(rules)
    return Ids(
        _number(previous.zones, zones, MAX_ZONES, "zones"),
        _number(previous.rules, rules, MAX_RULES, "rules"),
    )


def _rule_names(ruleset: Ruleset) -> Iterator[RuleName]:
    for policy in ruleset.policies:
        yield NameKind.POLICY, policy.name
    for zone in ruleset.zones:
        if zone.host_inbound:
            yield NameKind.HOST_INBOUND, zone.name
    for source in ruleset.source_nat:
        yield NameKind.SOURCE_NAT, source.name
    for destination in ruleset.destination_nat:
        yield NameKind.DESTINATION_NAT, destination.name
    for static in ruleset.static_nat:
        yield NameKind.STATIC_NAT, static.name
    for nptv6 in ruleset.nptv6:
        yield NameKind.NPTV6, nptv6.name
    for nat64 in ruleset.nat64:
        yield NameKind.NAT64, nat64.name
    for term in ruleset.filter_terms:
        yield NameKind.FILTER_TERM, term.name
    for policer in ruleset.policers:
        yield NameKind.POLICER, policer.name
        if policer.three_colours:
            yield NameKind.POLICER_YELLOW, policer.name


def label(kind: NameKind, name: str) -> str:
    """A rule or zone in a sentence: ``source nat out``."""
    return f"{kind.name.lower().replace('_', ' ')} {name}"


def _check_name(kind: NameKind, name: str) -> None:
    if len(name.encode()) >= NAME_BYTES or not name or "\0" in name:
        raise CompileError(f"{label(kind, name)}: a name has 1 to {NAME_BYTES - 1} bytes - choose another one")
    if kind is NameKind.ZONE and name == SELF:
        raise CompileError(f"zone {SELF} is this machine and has no interfaces - choose another name")


def _check_unique(names: Iterable[RuleName]) -> None:
    seen = set()
    for name in names:
        if name in seen:
            raise CompileError(f"{label(*name)}: there are two of that name - rename one of them")
        seen.add(name)


def _number(previous: Mapping[Name, int], names: list[Name], limit: int, what: str) -> dict[Name, int]:
    if len(names) >= limit:
        raise CompileError(f"{len(names)} {what}, {limit - 1} are possible - remove some from {names[limit - 1]} on")
    kept = {name: previous[name] for name in names if name in previous}
    unused = set(range(1, limit)) - set(previous.values())
    left_over = set(range(1, limit)) - set(kept.values()) - unused
    free = iter(sorted(unused) + sorted(left_over))
    return {name: kept[name] if name in kept else next(free) for name in names}
