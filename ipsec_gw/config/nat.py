"""NAT: pools and rules with references resolved; what could never translate anything is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ipsec_gw.config.context import Context, Names, Shadows, elements, tables
from ipsec_gw.config.firewall import DestinationNatShape, Nat64Shape, Nptv6Shape, SourceNatShape, StaticNatShape
from ipsec_gw.config.nat64 import nat64_rule
from ipsec_gw.config.pools import Pools
from ipsec_gw.config.positions import Path
from ipsec_gw.config.prefix_nat import destination_rule, nptv6_rule, static_rule
from ipsec_gw.config.problems import Report
from ipsec_gw.config.section import unknown
from ipsec_gw.config.source_nat import source_rule
from ipsec_gw.config.vpp_pools import VppPools
from ipsec_gw.model.firewall import DestinationNat, Nat64, Nptv6, Pool, SourceNat, StaticNat

_TABLES = ["pools", "source", "destination", "static", "nptv6", "nat64"]


@dataclass(frozen=True)
class Nat:
    """What ``[nat]`` becomes in a Ruleset."""

    pools: tuple[Pool, ...] = ()
    source: tuple[SourceNat, ...] = ()
    destination: tuple[DestinationNat, ...] = ()
    static: tuple[StaticNat, ...] = ()
    nptv6: tuple[Nptv6, ...] = ()
    nat64: tuple[Nat64, ...] = ()


def resolve_nat(raw: object, context: Context) -> Nat:
    """``[nat]``; what is wrong goes to the report. Names of rules are unique over all kinds."""
    report = context.report
    parts = tables(raw, ("nat",), report)
    for name in parts:
        if name not in _TABLES:
            report.refuse(("nat", name), unknown(name, _TABLES))
    pools = Pools(parts.get("pools", {}), context)
    names = Names(report)
    outside = Outside(report)
    nat = Nat(
        pools=tuple(pools.found.values()),
        source=_source(parts.get("source", []), context, pools, names),
        destination=_destination(parts.get("destination", []), context, names),
        static=_static(parts.get("static", []), context, names, outside),
        nptv6=_nptv6(parts.get("nptv6", []), context, names, outside),
        nat64=_nat64(parts.get("nat64", []), context, pools, names),
    )
    _check_vpp(nat, parts, VppPools(pools.found, context))
    return nat


def _check_vpp(nat: Nat, parts: Mapping[str, Any], pools: VppPools) -> None:
    """Rules as they are used with pools of VPP, each at its place in the file."""

    def path(kind: str, name: str) -> Path:
        rules = parts.get(kind, [])
        return ("nat", kind, next(place for place, rule in enumerate(rules) if rule.get("name") == name))

    for source in nat.source:
        pools.check_source(path("source", source.name), source.pool, source.to_zone)
    for nat64 in nat.nat64:
        pools.check_nat64(path("nat64", nat64.name), nat64.pool)
    for destination in nat.destination:
        pools.check_apart((*path("destination", destination.name), "destination"), destination.destination)
    for static in nat.static:
        pools.check_apart((*path("static", static.name), "external"), static.external)


def _source(raw: object, context: Context, pools: Pools, names: Names) -> tuple[SourceNat, ...]:
    shadows, rules = Shadows(context.report), []
    for path, shape in elements(SourceNatShape, raw, ("nat", "source"), context.report):
        fresh = names.check(path, shape.name)
        rule = source_rule(path, shape, context, pools)
        if rule is not None and fresh:
            shadows.check_nat(path, rule, rule.destinations)
            rules.append(rule)
    return tuple(rules)


def _destination(raw: object, context: Context, names: Names) -> tuple[DestinationNat, ...]:
    shadows, rules = Shadows(context.report), []
    for path, shape in elements(DestinationNatShape, raw, ("nat", "destination"), context.report):
        fresh = names.check(path, shape.name)
        rule = destination_rule(path, shape, context)
        if rule is not None and fresh:
            shadows.check_nat(path, rule, (rule.destination,))
            rules.append(rule)
    return tuple(rules)


def _static(raw: object, context: Context, names: Names, outside: Outside) -> tuple[StaticNat, ...]:
    rules: list[StaticNat] = []
    for path, shape in elements(StaticNatShape, raw, ("nat", "static"), context.report):
        fresh = names.check(path, shape.name)
        rule = static_rule(path, shape, context)
        if rule is not None and fresh:
            outside.check(path, rule)
            rules.append(rule)
    return tuple(rules)


def _nptv6(raw: object, context: Context, names: Names, outside: Outside) -> tuple[Nptv6, ...]:
    rules: list[Nptv6] = []
    for path, shape in elements(Nptv6Shape, raw, ("nat", "nptv6"), context.report):
        fresh = names.check(path, shape.name)
        rule = nptv6_rule(path, shape, context)
        if rule is not None and fresh:
            outside.check(path, rule)
            rules.append(rule)
    return tuple(rules)


def _nat64(raw: object, context: Context, pools: Pools, names: Names) -> tuple[Nat64, ...]:
    rules: list[Nat64] = []
    lines: dict[str, int] = {}
    for path, shape in elements(Nat64Shape, raw, ("nat", "nat64"), context.report):
        fresh = names.check(path, shape.name)
        rule = nat64_rule(path, shape, context, pools)
        if rule is None or not fresh:
            continue
        for other in rules:
            if other.prefix.overlaps(rule.prefix) and _meet(other.from_zone, rule.from_zone):
                message = f"{rule.prefix} overlaps {other.prefix} of {other.name!r} (line {lines[other.name]})"
                context.report.add((*path, "prefix"), message, "a prefix belongs to one rule of a zone")
        lines[rule.name] = context.report.line((*path, "prefix"))
        rules.append(rule)
    return tuple(rules)


def _meet(one: str | None, two: str | None) -> bool:
    """Is there a zone that both rules hold for? None is every zone."""
    return one is None or two is None or one == two


@dataclass
class Outside:
    """External addresses of static NAT and NPTv6, with the line of each."""

    report: Report
    seen: list[tuple[StaticNat | Nptv6, int]] = field(default_factory=list)

    def check(self, path: Path, rule: StaticNat | Nptv6) -> None:
        """Remember a rule; one that shares external addresses with an earlier one of its zone is told."""
        for other, line in self.seen:
            if other.zone == rule.zone and other.external.overlaps(rule.external):
                message = f"{rule.external} overlaps {other.external} of {other.name!r} (line {line})"
                self.report.add((*path, "external"), message, "an external address belongs to one rule of a zone")
        self.seen.append((rule, self.report.line((*path, "external"))))
