"""A Ruleset in words: the model behind ``ipsec-gw check``, for tables and JSON alike."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from ipsec_gw.config.dscp import codepoint_text
from ipsec_gw.config.firewall import DAYS
from ipsec_gw.config.ports import ICMP, ICMP6, PROTOCOLS
from ipsec_gw.config.rates import rate_text
from ipsec_gw.model.filters import Colour, Filter, FilterTerm, Policer
from ipsec_gw.model.firewall import (
    ANY_PORT,
    DestinationNat,
    Nat64,
    Nptv6,
    Policy,
    Pool,
    PoolEngine,
    Range,
    Ruleset,
    Schedule,
    Service,
    SourceNat,
    StaticNat,
    Translation,
    Zone,
)
from ipsec_gw.model.ids import IpAddress, IpNetwork
from ipsec_gw.model.screens import Screens

_NAMES = {number: name for name, number in PROTOCOLS.items()}
_ANY = "any"
_SCREENS = [field.name for field in fields(Screens) if field.name not in {"name", "alarm_only", "window"}]


def describe(rules: Ruleset) -> dict[str, Any]:
    """Zones, policies in the order in which they are tried, the default, NAT, pools, screens, filters and policers."""
    pairs = [rule for rule in rules.policies if rule.from_zone is not None]
    everywhere = [rule for rule in rules.policies if rule.from_zone is None]
    return {
        "zones": [_zone(zone) for zone in rules.zones],
        "policies": [_policy(rule) for rule in (*pairs, *everywhere)],
        "default": rules.default.value,
        "nat": [
            *map(_destination, rules.destination_nat),
            *map(_static, rules.static_nat),
            *map(_nptv6, rules.nptv6),
            *map(_nat64, rules.nat64),
            *map(_source, rules.source_nat),
        ],
        "pools": pools_view(rules),
        "screens": [_screens(screens) for screens in rules.screens],
        "filters": [_filter(one) for one in rules.filters],
        "filterTerms": [_filter_term(term) for term in rules.filter_terms],
        "policers": [_policer(policer) for policer in rules.policers],
        "sessions": {"maximum": rules.sessions.maximum},
    }


def pools_view(rules: Ruleset) -> list[dict[str, Any]]:
    """The pools of NAT."""
    return [_pool(pool) for pool in rules.pools]


def service_text(service: Service) -> str:
    """``tcp/80``, ``udp/1000-2000 from 53``, ``icmp type 8``, ``gre``, ``any``."""
    if service.protocol is None:
        return _ANY
    name = _NAMES.get(service.protocol, str(service.protocol))
    if service.protocol in (ICMP, ICMP6):
        return name if service.destination == ANY_PORT else f"{name} type {_icmp(service.destination)}"
    port = "" if service.destination == ANY_PORT else f"/{_span(service.destination)}"
    source = "" if service.source == ANY_PORT else f" from {_span(service.source)}"
    return name + port + source


def _icmp(span: Range) -> str:
    (first, code), (last, last_code) = divmod(span[0], 256), divmod(span[1], 256)
    if first != last:
        return f"{first}-{last}"
    return str(first) if (code, last_code) == (0, 255) else f"{first} code {_span((code, last_code))}"


def _span(span: Range) -> str:
    return str(span[0]) if span[0] == span[1] else f"{span[0]}-{span[1]}"


def _prefixes(prefixes: tuple[IpNetwork, ...]) -> list[str]:
    return [_prefix(prefix) for prefix in prefixes] or [_ANY]


def _prefix(prefix: IpNetwork) -> str:
    return str(prefix.network_address) if prefix.prefixlen == prefix.max_prefixlen else str(prefix)


def _services(services: tuple[Service, ...]) -> list[str]:
    return [service_text(service) for service in services]


def _zone(zone: Zone) -> dict[str, Any]:
    options = [] if zone.syn_check else ["no syn check"]
    options += ["tcp reset"] if zone.tcp_reset else []
    options += [f"mss {zone.tcp_mss}"] if zone.tcp_mss is not None else []
    options += ["tunnels"] if zone.tunnels else []
    options += [f"screens {zone.screen}"] if zone.screen else []
    return {
        "name": zone.name,
        "interfaces": list(zone.interfaces),
        "hostInbound": _services(zone.host_inbound),
        "options": options,
    }


def _policy(rule: Policy) -> dict[str, Any]:
    return {
        "name": rule.name,
        "from": rule.from_zone or _ANY,
        "to": rule.to_zone or _ANY,
        "source": _prefixes(rule.sources),
        "destination": _prefixes(rule.destinations),
        "application": _services(rule.services),
        "action": rule.action.value,
        "log": [word for word, wanted in (("open", rule.log_open), ("close", rule.log_close)) if wanted],
        "schedule": _schedule(rule.schedule) if rule.schedule else None,
    }


def _schedule(schedule: Schedule) -> str:
    days = ", ".join(DAYS[day] for day in sorted(schedule.days)) or "daily"
    start, end = (f"{minute // 60:02}:{minute % 60:02}" for minute in (schedule.start, schedule.end))
    return f"{days} {start}-{end}"


def _source(rule: SourceNat) -> dict[str, Any]:
    becomes = f"pool {rule.pool}" if rule.translation is Translation.POOL else rule.translation.value
    match = [
        *(f"source {text}" for text in _prefixes(rule.sources)),
        *(f"destination {_prefix(prefix)}" for prefix in rule.destinations),
    ]
    return _nat(rule.name, "source", rule.from_zone, rule.to_zone, [*match, *_named(rule.services)], becomes)


def _destination(rule: DestinationNat) -> dict[str, Any]:
    match = [_prefix(rule.destination), *(f"source {_prefix(prefix)}" for prefix in rule.sources)]
    becomes = _prefix(rule.to) + ("" if rule.to_port is None else f" port {rule.to_port}")
    return _nat(rule.name, "destination", rule.from_zone, None, [*match, *_named(rule.services)], becomes)


def _static(rule: StaticNat) -> dict[str, Any]:
    return _nat(rule.name, "static", rule.zone, None, [_prefix(rule.external)], _prefix(rule.internal))


def _nptv6(rule: Nptv6) -> dict[str, Any]:
    return _nat(rule.name, "nptv6", rule.zone, None, [_prefix(rule.external)], _prefix(rule.internal))


def _nat64(rule: Nat64) -> dict[str, Any]:
    becomes = f"pool {rule.pool}" if rule.pool else "interface"
    return _nat(rule.name, "nat64", rule.from_zone, None, [_prefix(rule.prefix)], becomes)


def _named(services: tuple[Service, ...]) -> list[str]:
    return [text for text in _services(services) if text != _ANY]


def _nat(
    name: str, kind: str, from_zone: str | None, to_zone: str | None, match: list[str], becomes: str
) -> dict[str, Any]:
    zones = {"from": from_zone or _ANY, "to": to_zone or _ANY}
    return {"name": name, "kind": kind, **zones, "match": match, "becomes": becomes}


def _screens(screens: Screens) -> dict[str, Any]:
    """Options that are on, thresholds with their number."""
    given = {name.replace("_", " "): getattr(screens, name) for name in _SCREENS}
    on = [name if value is True else f"{name} {value}" for name, value in given.items() if value]
    action = "alarm" if screens.alarm_only else "drop"
    return {"name": screens.name, "action": action, "window": screens.window, "screens": on}


def _filter(one: Filter) -> dict[str, Any]:
    return {"name": one.name, "input": list(one.input), "output": list(one.output), "host": one.host}


def _filter_term(term: FilterTerm) -> dict[str, Any]:
    match = [*(f"source {_prefix(prefix)}" for prefix in term.sources)]
    match += [f"destination {_prefix(prefix)}" for prefix in term.destinations]
    match += _named(term.services)
    match += [f"dscp {codepoint_text(number)}" for number in sorted(term.dscp)]
    match += [f"tcp flags {_flags(term)}"] if term.flags_set or term.flags_clear else []
    match += {None: [], True: ["fragments"], False: ["no fragments"]}[term.fragment]
    then = [term.action.value]
    then += [f"policer {term.policer}"] if term.policer else []
    then += [f"mark {codepoint_text(term.mark)}"] if term.mark is not None else []
    then += ["log"] if term.log else []
    then += [f"mirror {term.mirror}"] if term.mirror else []
    return {"name": term.name, "match": match, "then": then}


def _flags(term: FilterTerm) -> str:
    names = ("fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr")
    wanted = [name for bit, name in enumerate(names) if term.flags_set >> bit & 1]
    return " ".join(wanted + [f"!{name}" for bit, name in enumerate(names) if term.flags_clear >> bit & 1])


def _policer(policer: Policer) -> dict[str, Any]:
    buckets = [f"{rate_text(policer.rate)} burst {policer.burst}"]
    if policer.excess_burst is not None:
        buckets.append(f"excess burst {policer.excess_burst}")
    if policer.peak_rate is not None:
        buckets.append(f"peak {rate_text(policer.peak_rate)} burst {policer.peak_burst}")
    colours = {"yellow": policer.yellow, "red": policer.red} if policer.three_colours else {"red": policer.red}
    fates = [f"{name} {_fate(fate)}" for name, fate in colours.items()]
    return {"name": policer.name, "buckets": buckets, "colours": fates + (["aware"] if policer.aware else [])}


def _fate(fate: Colour | int) -> str:
    return fate.value if isinstance(fate, Colour) else f"mark {codepoint_text(fate)}"


def _pool(pool: Pool) -> dict[str, Any]:
    options = ["persistent"] if pool.persistent else []
    options += [f"overflow {pool.overflow}"] if pool.overflow else []
    if pool.blocks:
        options += [f"{pool.blocks.size} ports for each of {pool.blocks.subscribers}"]
    if pool.of_vpp:
        options += [f"VPP has {_addresses(pool.of_vpp)}", f"XDP {_addresses(pool.of_xdp)}"]
    if pool.engine is PoolEngine.AUTO:
        moves = pool.moves
        options += [f"to VPP from {moves.promote_flows} new flows/s or {moves.promote_packets} packets/s"]
        options += [f"back below {moves.demote_flows} and {moves.demote_packets} for {moves.dwell} s"]
    return {
        "name": pool.name,
        "addresses": _addresses((pool.first, pool.last)),
        "ports": _span(pool.ports),
        "engine": pool.engine.value,
        "options": options,
    }


def _addresses(span: tuple[IpAddress, IpAddress]) -> str:
    first, last = span
    return str(first) if first == last else f"{first}-{last}"
