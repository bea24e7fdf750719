"""What all rules refer to, and the checks that they share."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from typing import TypeVar

from pydantic import BaseModel

from ipsec_gw.config.addresses import AddressBook
from ipsec_gw.config.applications import Applications
from ipsec_gw.config.names import check_name
from ipsec_gw.config.ports import ICMP, ICMP6, IGMP
from ipsec_gw.config.positions import Path
from ipsec_gw.config.problems import Refused, Report, dotted, one_of
from ipsec_gw.config.section import read, wrong_type
from ipsec_gw.model.firewall import SELF, DestinationNat, Policy, Schedule, Service, SourceNat, Zone
from ipsec_gw.model.ids import IpNetwork

ShapeT = TypeVar("ShapeT", bound=BaseModel)
BOTH = frozenset({4, 6})


@dataclass(frozen=True)
class Context:
    """Definitions of a file. ``zone_names`` and ``schedule_names`` also hold the ones that are broken: a reference to
    one is no further error. ``crossing``: there is NAT64, so that flows from IPv6 to IPv4 exist.
    """

    report: Report
    addresses: AddressBook
    applications: Applications
    zones: tuple[Zone, ...]
    zone_names: frozenset[str]
    schedules: Mapping[str, Schedule]
    schedule_names: frozenset[str]
    crossing: bool = False

    def check_zone(self, path: Path, name: str | None, *, self_allowed: bool = False) -> bool:
        """Is it a zone, or none at all? An unknown one goes to the report."""
        if name is None or name in self.zone_names or (name == SELF and self_allowed):
            return True
        if name == SELF:
            self.report.add(
                path, "self is not translated", "name a zone: traffic of this machine has its own addresses"
            )
        else:
            way_out = f"define [{dotted(('zones', name))}] or write one of: {one_of(sorted(self.zone_names))}"
            self.report.add(path, f"unknown zone {name!r}", way_out)
        return False


@dataclass
class Names:
    """Names that must be different, with the path of their first use."""

    report: Report
    seen: dict[str, Path] = field(default_factory=dict)

    def check(self, path: Path, name: str) -> bool:
        """Is it a name, and new?"""
        try:
            check_name(name)
        except Refused as refused:
            self.report.refuse((*path, "name"), refused)
            return False
        first = self.seen.setdefault(name, path)
        if first != path:
            message = f"the name {name!r} is taken (line {self.report.line((*first, 'name'))})"
            self.report.add((*path, "name"), message, "choose another: counters and logs go by it")
        return first == path


@dataclass
class Shadows:
    """What rules match. A second rule that matches the same is never reached."""

    report: Report
    seen: dict[Hashable, tuple[Path, str]] = field(default_factory=dict)

    def check_policy(self, path: Path, policy: Policy) -> None:
        """Remember a policy, or report the earlier one that leaves it nothing."""
        zones = (policy.from_zone, policy.to_zone)
        match = (zones, policy.sources, policy.destinations, _matched(policy.services))
        self._check(path, policy.name, (*match, None), (*match, policy.schedule))

    def check_nat(self, path: Path, rule: SourceNat | DestinationNat, destinations: tuple[IpNetwork, ...]) -> None:
        """Remember a rule, or report the earlier one that leaves it nothing: of the same zones, or of any."""
        to_zone = rule.to_zone if isinstance(rule, SourceNat) else None
        match = (rule.sources, destinations, _matched(rule.services))
        zones = product((None, rule.from_zone), (None, to_zone))
        self._check(path, rule.name, *((*pair, *match) for pair in zones))

    def _check(self, path: Path, name: str, *keys: Hashable) -> None:
        """``keys``: what hides this rule if an earlier one has it; the last one is what it matches itself."""
        for key in keys:
            if key in self.seen:
                first, other = self.seen[key]
                message = f"never reached: {other!r} (line {self.report.line(first)}) matches the same"
                self.report.add(path, message, "remove one of them")
                return
        self.seen[keys[-1]] = (path, name)


def _matched(services: tuple[Service, ...]) -> frozenset[Service]:
    """Services without what does not match."""
    return frozenset(replace(service, timeout=None) for service in services)


def tables(raw: object, path: Path, report: Report) -> Mapping[str, object]:
    """The entries of a table of tables; nothing, and a problem, if it is something else."""
    if isinstance(raw, Mapping):
        return raw
    report.refuse(path, wrong_type("a table"))
    return {}


def elements(kind: type[ShapeT], raw: object, path: Path, report: Report) -> Iterator[tuple[Path, ShapeT]]:
    """Path and shape of each good element of an array of tables."""
    if not isinstance(raw, list):
        report.add(path, "must be an array of tables", f"write [[{'.'.join(map(str, path))}]]")
        return
    for index, element in enumerate(raw):
        shape = read(kind, element, (*path, index), report)
        if shape is not None:
            yield (*path, index), shape


def address_families(prefixes: tuple[IpNetwork, ...]) -> frozenset[int]:
    """4 and 6 as they occur; both of no prefixes, which are any."""
    return frozenset(prefix.version for prefix in prefixes) or BOTH


def service_families(services: tuple[Service, ...]) -> frozenset[int]:
    """Families of IP that the services exist in."""
    one = {ICMP: frozenset({4}), IGMP: frozenset({4}), ICMP6: frozenset({6})}
    return frozenset().union(*(one.get(-1 if s.protocol is None else s.protocol, BOTH) for s in services))


def check_families(
    report: Report,
    path: Path,
    sources: tuple[IpNetwork, ...],
    destinations: tuple[IpNetwork, ...],
    services: tuple[Service, ...],
    *,
    crossing: bool = False,
) -> bool:
    """Can there be a packet that all three match? If not, the report says why. ``crossing``: IPv6 may go to IPv4."""
    common = address_families(sources) & address_families(destinations)
    if crossing and 6 in address_families(sources) and 4 in address_families(destinations):
        common |= {6}
    if not common:
        message = "matches nothing: source and destination have no common family (IPv4 or IPv6)"
        report.add((*path, "destination"), message, "write addresses of one family")
    elif not common & service_families(services):
        message = "matches nothing: the application does not exist in the family of the addresses"
        report.add((*path, "application"), message, "icmp goes with IPv4, icmpv6 with IPv6")
    return bool(common & service_families(services))
