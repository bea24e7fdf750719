"""Rules taken apart: one term for each (rule, application term), which becomes one row of a table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from ipaddress import IPv4Network, IPv6Network

from ipsec_gw.model.firewall import (
    ANY_PORT,
    ANY_SERVICE,
    NAT64_LENGTHS,
    NPTV6_LONGEST,
    SELF,
    Action,
    DestinationNat,
    Nat64,
    Nptv6,
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
from xdp_steer.compile.errors import CompileError
from xdp_steer.compile.ids import Ids, label
from xdp_steer.compile.rows import RuleRow
from xdp_steer.compile.schedule import active
from xdp_steer.flow_layout import NameKind, Nat, PolicyAction, RowFlag

SELF_ID = 0
ACTIONS = {Action.PERMIT: PolicyAction.PERMIT, Action.DENY: PolicyAction.DENY, Action.REJECT: PolicyAction.REJECT}
PORT_PROTOCOLS = (6, 17)
ICMP_PROTOCOLS = (1, 58)

IPV6 = 6

EVERYWHERE: dict[int, IpNetwork] = {4: IPv4Network("0.0.0.0/0"), 6: IPv6Network("::/0")}
"""All addresses of a family."""

LINK_LOCAL = IPv6Network("fe80::/10")
WELL_KNOWN = IPv6Network("64:ff9b::/96")
NOT_GLOBAL = tuple(
    map(
        IPv4Network,
        (
            "0.0.0.0/8",
            "10.0.0.0/8",
            "100.64.0.0/10",
            "127.0.0.0/8",
            "169.254.0.0/16",
            "172.16.0.0/12",
            "192.0.0.0/24",
            "192.0.2.0/24",
            "192.168.0.0/16",
            "198.18.0.0/15",
            "198.51.100.0/24",
            "203.0.113.0/24",
            "240.0.0.0/4",
        ),
    )
)
"""Addresses of IPv4 that the well-known prefix must not stand before (RFC 6052 3.1, RFC 6890)."""

_MAPPED = IPv6Network("::ffff:0:0/96")


@dataclass(frozen=True, slots=True)
class Term:
    """A row and what it is matched by. Empty ``sources`` or ``destinations`` mean any."""

    label: str
    row: RuleRow
    from_zones: frozenset[int]
    to_zones: frozenset[int]
    sources: tuple[IpNetwork, ...]
    destinations: tuple[IpNetwork, ...]
    service: Service


class Terms:
    """The terms of a ruleset's tables, in the order in which they are tried. Raises CompileError naming the rule."""

    def __init__(self, ruleset: Ruleset, ids: Ids, now: datetime) -> None:
        self._ruleset = ruleset
        self._ids = ids
        self._now = now
        self._others = frozenset(ids.zones[zone.name] for zone in ruleset.zones)
        self._pools = {pool.name: (index, pool) for index, pool in enumerate(ruleset.pools)}

    def policy(self) -> Iterator[Term]:
        """Zone pairs, then host-inbound services, then global policies."""
        holding = [policy for policy in self._ruleset.policies if active(policy.schedule, self._now)]
        for policy in holding:
            if not _is_global(policy):
                yield from self._policy(policy)
        for zone in self._ruleset.zones:
            yield from self._host_inbound(zone)
        for policy in holding:
            if _is_global(policy):
                yield from self._policy(policy)

    def snat(self) -> Iterator[Term]:
        """Static NAT, NPTv6, then source NAT."""
        for static in self._ruleset.static_nat:
            yield self._static(static, reverse=False)
        for nptv6 in self._ruleset.nptv6:
            yield self._nptv6(nptv6, reverse=False)
        for rule in self._ruleset.source_nat:
            yield from self._source_nat(rule)

    def dnat(self) -> Iterator[Term]:
        """Destination NAT, static NAT, NPTv6, then NAT64."""
        for rule in self._ruleset.destination_nat:
            yield from self._destination_nat(rule)
        for static in self._ruleset.static_nat:
            yield self._static(static, reverse=True)
        for nptv6 in self._ruleset.nptv6:
            yield self._nptv6(nptv6, reverse=True)
        for nat64 in self._ruleset.nat64:
            yield from self._nat64(nat64)

    def _policy(self, policy: Policy) -> Iterator[Term]:
        named = label(NameKind.POLICY, policy.name)
        if (policy.from_zone is None) != (policy.to_zone is None):
            raise CompileError(f"{named}: names one zone only - name both, or none to make it global")
        flags = RowFlag.LOG_OPEN * policy.log_open | RowFlag.LOG_CLOSE * policy.log_close
        row = RuleRow(self._ids.rules[NameKind.POLICY, policy.name], ACTIONS[policy.action], flags)
        zones = self._zones(named, policy.from_zone), self._zones(named, policy.to_zone)
        yield from each(named, row, zones, policy.sources, policy.destinations, policy.services, timeouts=True)

    def _host_inbound(self, zone: Zone) -> Iterator[Term]:
        if not zone.host_inbound:
            return
        row = RuleRow(self._ids.rules[NameKind.HOST_INBOUND, zone.name], PolicyAction.PERMIT)
        zones = frozenset({self._ids.zones[zone.name]}), frozenset({SELF_ID})
        named = label(NameKind.HOST_INBOUND, zone.name)
        yield from each(named, row, zones, (), (), zone.host_inbound, timeouts=True)

    def _source_nat(self, rule: SourceNat) -> Iterator[Term]:
        named = label(NameKind.SOURCE_NAT, rule.name)
        row = RuleRow(self._ids.rules[NameKind.SOURCE_NAT, rule.name], Nat[rule.translation.name])
        sources: tuple[IpNetwork, ...] = rule.sources
        if rule.translation is Translation.POOL:
            index, pool = self._pool(named, rule.pool)
            row = replace(row, pool=index)
            version = pool.first.version
            sources = tuple(net for net in sources or (EVERYWHERE[version],) if net.version == version)
            if not sources:
                return
        zones = self._zones(named, rule.from_zone), self._zones(named, rule.to_zone)
        yield from each(named, row, zones, sources, rule.destinations, rule.services)

    def _pool(self, named: str, name: str | None) -> tuple[int, Pool]:
        if name not in self._pools:
            raise CompileError(f"{named}: there is no pool {name} - define it or name another one")
        return self._pools[name]

    def _destination_nat(self, rule: DestinationNat) -> Iterator[Term]:
        named = label(NameKind.DESTINATION_NAT, rule.name)
        row = _prefix_row(named, self._ids.rules[NameKind.DESTINATION_NAT, rule.name], rule.destination, rule.to)
        zones = self._zones(named, rule.from_zone), frozenset({SELF_ID})
        for term in each(named, row, zones, rule.sources, (rule.destination,), rule.services):
            yield replace(term, row=_with_port(term, rule.to_port)) if rule.to_port else term

    def _static(self, rule: StaticNat, *, reverse: bool) -> Term:
        named = label(NameKind.STATIC_NAT, rule.name)
        matched, to = (rule.external, rule.internal) if reverse else (rule.internal, rule.external)
        row = _prefix_row(named, self._ids.rules[NameKind.STATIC_NAT, rule.name], matched, to)
        return self._both_ways(named, row, rule.zone, matched, reverse=reverse)

    def _nptv6(self, rule: Nptv6, *, reverse: bool) -> Term:
        named = label(NameKind.NPTV6, rule.name)
        matched, to = (rule.external, rule.internal) if reverse else (rule.internal, rule.external)
        row = _prefix_row(named, self._ids.rules[NameKind.NPTV6, rule.name], matched, to)
        if to.version != IPV6 or to.prefixlen > NPTV6_LONGEST:
            raise CompileError(f"{named}: {to} is no IPv6 prefix of at most {NPTV6_LONGEST} bits - write one")
        row = replace(row, action=Nat.NPTV6, adjustment=adjustment(matched, to))
        return self._both_ways(named, row, rule.zone, matched, reverse=reverse)

    def _nat64(self, rule: Nat64) -> Iterator[Term]:
        """What it must not translate comes first (RFC 6052 3.1, RFC 6146 3.5)."""
        named = label(NameKind.NAT64, rule.name)
        if rule.prefix.version != IPV6 or rule.prefix.prefixlen not in NAT64_LENGTHS:
            lengths = ", ".join(map(str, NAT64_LENGTHS))
            raise CompileError(f"{named}: {rule.prefix} is no IPv6 prefix of {lengths} bits - write one")
        zones = self._zones(named, rule.from_zone), frozenset({SELF_ID})
        row = RuleRow(self._ids.rules[NameKind.NAT64, rule.name], Nat.REFUSE)
        yield from each(named, row, zones, (rule.prefix, LINK_LOCAL), (rule.prefix,), ANY_SERVICE)
        if rule.prefix == WELL_KNOWN:
            private = tuple(map(_well_known, NOT_GLOBAL))
            yield from each(named, row, zones, (), private, ANY_SERVICE)
        row = replace(row, action=Nat.NAT64, prefixlen=rule.prefix.prefixlen, flags=RowFlag.INTERFACE)
        if rule.pool is not None:
            index, pool = self._pool(named, rule.pool)
            if pool.first.version == IPV6:
                raise CompileError(f"{named}: pool {pool.name} is IPv6 - name one of IPv4")
            row = replace(row, pool=index, flags=0)
        yield from each(named, row, zones, (), (rule.prefix,), ANY_SERVICE)

    def _both_ways(self, named: str, row: RuleRow, name: str, matched: IpNetwork, *, reverse: bool) -> Term:
        """Out into a zone by source, or in from it by destination."""
        zone = self._zones(named, name)
        zones = (zone, frozenset({SELF_ID})) if reverse else (self._others, zone)
        sources, destinations = ((), (matched,)) if reverse else ((matched,), ())
        return next(each(named, row, zones, sources, destinations, ANY_SERVICE))

    def _zones(self, named: str, zone: str | None) -> frozenset[int]:
        if zone is None:
            return self._others
        if zone == SELF:
            return frozenset({SELF_ID})
        if zone not in self._ids.zones:
            raise CompileError(f"{named}: there is no zone {zone} - define it or name another one")
        return frozenset({self._ids.zones[zone]})


def adjustment(matched: IpNetwork, to: IpNetwork) -> int:
    """What a 16-bit word behind a prefix is added when the prefix becomes another one, so that the one's complement sum
    of the address stays (RFC 6296, 3.1): 0 to 0xfffe.
    """
    return (int(matched.network_address) - int(to.network_address)) % 0xFFFF


def _is_global(policy: Policy) -> bool:
    return policy.from_zone is None


def _well_known(network: IPv4Network) -> IPv6Network:
    return IPv6Network((int(WELL_KNOWN.network_address) + int(network.network_address), 96 + network.prefixlen))


def _prefix_row(named: str, rule: int, matched: IpNetwork, to: IpNetwork) -> RuleRow:
    if (matched.version, matched.prefixlen) != (to.version, to.prefixlen):
        raise CompileError(f"{named}: {matched} cannot become {to} - give both the same family and prefix length")
    prefixlen = to.prefixlen + (96 if to.version == 4 else 0)
    return RuleRow(rule, Nat.PREFIX, prefixlen=prefixlen, to=to.network_address)


def _with_port(term: Term, to_port: int) -> RuleRow:
    first, last = term.service.destination
    if term.service.protocol not in PORT_PROTOCOLS:
        raise CompileError(f"{term.label}: only TCP and UDP have ports - name a protocol or leave the new port out")
    if to_port + last - first > ANY_PORT[1]:
        raise CompileError(f"{term.label}: ports {first}-{last} do not fit from {to_port} on - choose a lower port")
    return replace(term.row, port=to_port)


def each(
    named: str,
    row: RuleRow,
    zones: tuple[frozenset[int], frozenset[int]],
    sources: tuple[IpNetwork, ...],
    destinations: tuple[IpNetwork, ...],
    services: tuple[Service, ...],
    *,
    timeouts: bool = False,
) -> Iterator[Term]:
    """A row for each service. Raises CompileError for what the packet parser does not look at."""
    for network in sources + destinations:
        if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
            raise CompileError(f"{named}: {network} is IPv4 written as IPv6 - write it as IPv4")
    for service in services:
        _check_service(named, service)
        timeout = service.timeout or 0 if timeouts else 0
        term_row = replace(row, timeout=timeout, first_port=service.destination[0] if _has_ports(service) else 0)
        yield Term(named, term_row, *zones, sources, destinations, service)


def _has_ports(service: Service) -> bool:
    return service.protocol in PORT_PROTOCOLS


def _check_service(named: str, service: Service) -> None:
    """Refuse what the packet parser does not look at: ports of other protocols, ports of no protocol."""
    if service.source != ANY_PORT and not _has_ports(service):
        raise CompileError(f"{named}: only TCP and UDP have source ports here - name one of them as the protocol")
    if service.destination != ANY_PORT and service.protocol not in PORT_PROTOCOLS + ICMP_PROTOCOLS:
        which = "any protocol" if service.protocol is None else f"protocol {service.protocol}"
        raise CompileError(f"{named}: ports of {which} cannot be matched - leave them out or name TCP or UDP")
