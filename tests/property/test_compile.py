"""Compiled rows decide as a walk over the rules does, one by one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from ipaddress import ip_address, ip_network

from hypothesis import given, settings
from hypothesis import strategies as st

from ipsec_gw.model.firewall import (
    SELF,
    Action,
    DestinationNat,
    Policy,
    Pool,
    Ruleset,
    Service,
    SourceNat,
    StaticNat,
    Translation,
    Zone,
)
from ipsec_gw.model.ids import IpNetwork
from tests.support.firewall_rows import Flow, first_match
from xdp_steer.compile import Ids, assign, compile_ruleset
from xdp_steer.compile.rows import Rows
from xdp_steer.flow_layout import NameKind, Nat, PolicyAction, Table

NOW = datetime(2026, 3, 4, 12, 0)
ZONES = ("a", "b", "c")
NETWORKS = [
    ip_network(text)
    for text in (
        "0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "10.1.1.0/24", "10.1.1.1/32", "192.0.2.0/24", "192.0.2.255/32",
        "::/0", "::/64", "::/97", "2001:db8::/32", "2001:db8:1::/48", "2001:db8:1::1/128", "8000::/1",
    )
]  # fmt: skip
ADDRESSES = [
    ip_address(text)
    for text in (
        "10.1.1.1", "10.1.1.2", "10.1.2.1", "10.2.0.1", "192.0.2.1", "192.0.2.255", "198.51.100.1",
        "::1", "::1:0:0:1", "2001:db8:1::1", "2001:db8:1::2", "2001:db8:2::1", "9000::1", "2001::1",
    )
]  # fmt: skip
POOLS = (
    Pool("four", ip_address("203.0.113.1"), ip_address("203.0.113.9")),
    Pool("six", ip_address("2001:db8:9::1"), ip_address("2001:db8:9::9")),
)

edges = st.sampled_from([0, 1, 79, 80, 81, 255, 256, 443, 2048, 65534, 65535])
spans = st.tuples(edges, edges).map(lambda ends: (min(ends), max(ends)))
networks = st.lists(st.sampled_from(NETWORKS), max_size=3).map(tuple)
far_zones = st.sampled_from((None, *ZONES))
services = st.one_of(
    st.just(Service()),
    st.builds(Service, st.sampled_from([6, 17]), spans, spans, st.sampled_from([None, 99])),
    st.builds(Service, st.sampled_from([6, 17, 1, 58]), spans),
    st.builds(Service, st.sampled_from([6, 47, 50, 132])),
)
service_lists = st.lists(services, min_size=1, max_size=3).map(tuple)
pairs = st.one_of(
    st.just((None, None)),
    st.tuples(st.sampled_from((*ZONES, SELF)), st.sampled_from((*ZONES, SELF))).filter(
        lambda pair: pair != (SELF, SELF)
    ),
)
flows = st.builds(
    Flow,
    st.sampled_from(ADDRESSES),
    st.sampled_from(ADDRESSES),
    st.sampled_from([1, 6, 17, 47, 58, 132]),
    edges,
    edges,
).filter(lambda flow: flow.src.version == flow.dst.version)


@st.composite
def rulesets(draw: st.DrawFn) -> Ruleset:
    inbound = st.lists(services, max_size=2).map(tuple)
    policies = [
        Policy(
            f"p{n}", draw(st.sampled_from(Action)), *draw(pairs), draw(networks), draw(networks), draw(service_lists)
        )
        for n in range(draw(st.integers(0, 8)))
    ]
    return Ruleset(
        zones=tuple(Zone(name, host_inbound=draw(inbound)) for name in ZONES),
        policies=tuple(policies),
        pools=POOLS,
        source_nat=tuple(draw(source_nat(f"s{n}")) for n in range(draw(st.integers(0, 4)))),
        destination_nat=tuple(draw(destination_nat(f"d{n}")) for n in range(draw(st.integers(0, 4)))),
        static_nat=tuple(draw(static_nat(f"t{n}")) for n in range(draw(st.integers(0, 3)))),
    )


@st.composite
def source_nat(draw: st.DrawFn, name: str) -> SourceNat:
    kind = draw(st.sampled_from(Translation))
    pool = draw(st.sampled_from(POOLS)).name if kind is Translation.POOL else None
    zones = draw(far_zones), draw(far_zones)
    return SourceNat(name, kind, *zones, draw(networks), draw(networks), draw(service_lists), pool)


@st.composite
def destination_nat(draw: st.DrawFn, name: str) -> DestinationNat:
    to_port = draw(st.sampled_from([None, 8080]))
    ported = st.builds(Service, st.sampled_from([6, 17]), st.sampled_from([(80, 80), (80, 443), (1, 256)]))
    terms = st.lists(ported, min_size=1, max_size=2).map(tuple) if to_port else service_lists
    where = draw(st.sampled_from(NETWORKS))
    return DestinationNat(name, where, moved(where), draw(far_zones), draw(networks), draw(terms), to_port)


@st.composite
def static_nat(draw: st.DrawFn, name: str) -> StaticNat:
    where = draw(st.sampled_from(NETWORKS))
    sides = (where, moved(where)) if draw(st.booleans()) else (moved(where), where)
    return StaticNat(name, draw(st.sampled_from(ZONES)), *sides)


def moved(network: IpNetwork) -> IpNetwork:
    base = "172.16.0.0" if network.version == 4 else "fd00::"
    return ip_network(f"{base}/{network.prefixlen}", strict=False)


def within(address: object, chosen: Iterable[IpNetwork]) -> bool:
    several = tuple(chosen)
    return not several or any(address in network for network in several)


def serving(terms: Iterable[Service], flow: Flow) -> Iterator[Service]:
    for term in terms:
        if term.protocol is None:
            yield term
        elif term.protocol == flow.protocol:
            ported, coded = flow.protocol in (6, 17), flow.protocol in (6, 17, 1, 58)
            code_fits = not coded or term.destination[0] <= flow.code <= term.destination[1]
            if code_fits and (not ported or term.source[0] <= flow.sport <= term.source[1]):
                yield term


def decide(ruleset: Ruleset, from_zone: str, to_zone: str, flow: Flow) -> tuple[NameKind, str, Action, int] | None:
    """Kind, name, action and timeout of the rule that decides."""
    exact = [rule for rule in ruleset.policies if (rule.from_zone, rule.to_zone) == (from_zone, to_zone)]
    general = [rule for rule in ruleset.policies if rule.from_zone is None and SELF not in (from_zone, to_zone)]
    for rule in [*exact, None, *general]:
        if rule is None:
            inbound = [zone for zone in ruleset.zones if zone.name == from_zone and to_zone == SELF]
            for zone in inbound:
                for term in serving(zone.host_inbound, flow):
                    return NameKind.HOST_INBOUND, zone.name, Action.PERMIT, term.timeout or 0
        elif within(flow.src, rule.sources) and within(flow.dst, rule.destinations):
            for term in serving(rule.services, flow):
                return NameKind.POLICY, rule.name, rule.action, term.timeout or 0
    return None


def source_translation(ruleset: Ruleset, from_zone: str, to_zone: str, flow: Flow) -> tuple[str, str] | None:
    """Name of the rule, and what the source becomes: an address, a pool or the kind of translation."""
    for static in ruleset.static_nat:
        if static.zone == to_zone and flow.src in static.internal:
            return static.name, str(static.external.network_address)
    versions = {pool.name: pool.first.version for pool in ruleset.pools}
    for rule in ruleset.source_nat:
        zones = rule.from_zone in (None, from_zone) and rule.to_zone in (None, to_zone)
        family = rule.pool is None or versions[rule.pool] == flow.src.version
        if zones and family and within(flow.src, rule.sources) and within(flow.dst, rule.destinations):
            for _ in serving(rule.services, flow):
                return rule.name, rule.pool or rule.translation.value
    return None


def destination_translation(ruleset: Ruleset, from_zone: str, flow: Flow) -> tuple[str, str, int, int] | None:
    """Name of the rule, where it leads, its port and the first one of the service."""
    for rule in ruleset.destination_nat:
        if rule.from_zone in (None, from_zone) and within(flow.src, rule.sources) and flow.dst in rule.destination:
            for term in serving(rule.services, flow):
                first = term.destination[0] if term.protocol in (6, 17) else 0
                return rule.name, str(rule.to.network_address), rule.to_port or 0, first
    for static in ruleset.static_nat:
        if static.zone == from_zone and flow.dst in static.external:
            return static.name, str(static.internal.network_address), 0, 0
    return None


class Compiled:
    """Rows and the names of their numbers."""

    def __init__(self, ruleset: Ruleset) -> None:
        self.ids: Ids = assign(Ids(), ruleset)
        self.rows: Rows = compile_ruleset(ruleset, self.ids, {}, now=NOW)
        self.pools = [pool.name for pool in ruleset.pools]
        self.names = {number: name for name, number in self.ids.rules.items()}
        self.zones = {SELF: 0, **self.ids.zones}

    def decide(self, from_zone: str, to_zone: str, flow: Flow) -> tuple[NameKind, str, Action, int] | None:
        row = first_match(self.rows.tables[Table.POLICY], self.zones[from_zone], self.zones[to_zone], flow)
        if row is None:
            return None
        return *self.names[row.rule], Action[PolicyAction(row.action).name], row.timeout

    def source_translation(self, from_zone: str, to_zone: str, flow: Flow) -> tuple[str, str] | None:
        row = first_match(self.rows.tables[Table.SNAT], self.zones[from_zone], self.zones[to_zone], flow)
        if row is None:
            return None
        kind = Nat(row.action)
        what = {Nat.POOL: self.pools[row.pool], Nat.PREFIX: str(row.to)}.get(kind, kind.name.lower())
        return self.names[row.rule][1], what

    def destination_translation(self, from_zone: str, flow: Flow) -> tuple[str, str, int, int] | None:
        row = first_match(self.rows.tables[Table.DNAT], self.zones[from_zone], 0, flow)
        return None if row is None else (self.names[row.rule][1], str(row.to), row.port, row.first_port)


@settings(max_examples=300, deadline=None, print_blob=True)
@given(rulesets(), st.lists(flows, min_size=1, max_size=12))
def test_rows_decide_as_the_rules_do(ruleset: Ruleset, packets: list[Flow]) -> None:
    compiled = Compiled(ruleset)
    for flow in packets:
        for from_zone in (*ZONES, SELF):
            for to_zone in (*ZONES, SELF):
                wanted = decide(ruleset, from_zone, to_zone, flow)
                assert compiled.decide(from_zone, to_zone, flow) == wanted


@settings(max_examples=300, deadline=None, print_blob=True)
@given(rulesets(), st.lists(flows, min_size=1, max_size=12))
def test_rows_translate_as_the_rules_do(ruleset: Ruleset, packets: list[Flow]) -> None:
    compiled = Compiled(ruleset)
    for flow in packets:
        for from_zone in ZONES:
            wanted = destination_translation(ruleset, from_zone, flow)
            assert compiled.destination_translation(from_zone, flow) == wanted
            for to_zone in ZONES:
                source = source_translation(ruleset, from_zone, to_zone, flow)
                assert compiled.source_translation(from_zone, to_zone, flow) == source
