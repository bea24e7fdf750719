"""NAT: pools and rules with references resolved; what could never translate anything is refused."""

from __future__ import annotations

from dataclasses import dataclass

from ipsec_gw.config.context import Context, Names, Shadows, elements, tables
from ipsec_gw.config.firewall import DestinationNatShape, SourceNatShape, StaticNatShape
from ipsec_gw.config.pools import Pools
from ipsec_gw.config.prefix_nat import destination_rule, static_rule
from ipsec_gw.config.section import unknown
from ipsec_gw.config.source_nat import source_rule
from ipsec_gw.model.firewall import DestinationNat, Pool, SourceNat, StaticNat

_TABLES = ["pools", "source", "destination", "static"]


@dataclass(frozen=True)
class Nat:
    """What ``[nat]`` becomes in a Ruleset."""

    pools: tuple[Pool, ...] = ()
    source: tuple[SourceNat, ...] = ()
    destination: tuple[DestinationNat, ...] = ()
    static: tuple[StaticNat, ...] = ()


def resolve_nat(raw: object, context: Context) -> Nat:
    """``[nat]``; what is wrong goes to the report. Names of rules are unique over all kinds."""
    report = context.report
    parts = tables(raw, ("nat",), report)
    for name in parts:
        if name not in _TABLES:
            report.refuse(("nat", name), unknown(name, _TABLES))
    pools = Pools(parts.get("pools", {}), context)
    names = Names(report)
    return Nat(
        pools=tuple(pools.found.values()),
        source=_source(parts.get("source", []), context, pools, names),
        destination=_destination(parts.get("destination", []), context, names),
        static=_static(parts.get("static", []), context, names),
    )


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


def _static(raw: object, context: Context, names: Names) -> tuple[StaticNat, ...]:
    rules: list[StaticNat] = []
    lines: dict[str, int] = {}
    for path, shape in elements(StaticNatShape, raw, ("nat", "static"), context.report):
        fresh = names.check(path, shape.name)
        rule = static_rule(path, shape, context)
        if rule is None or not fresh:
            continue
        for other in rules:
            if other.zone == rule.zone and other.external.overlaps(rule.external):
                message = f"{rule.external} overlaps {other.external} of {other.name!r} (line {lines[other.name]})"
                context.report.add((*path, "external"), message, "an external address belongs to one rule of a zone")
        lines[rule.name] = context.report.line((*path, "external"))
        rules.append(rule)
    return tuple(rules)
