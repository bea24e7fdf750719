"""Which rule a new flow meets. Rules are tried one by one, in the order of the ruleset."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache

from ipsec_gw.model.firewall import SELF, Action, Policy, Ruleset, Service
from ipsec_gw.model.ids import IpNetwork
from tests.reference.packets import ICMP, ICMP6, TCP, UDP, V4_MAPPED

HOST_INBOUND = "host-inbound"


@dataclass(frozen=True, slots=True)
class Port:
    """A place where packets come in or go out: an interface (``vid`` 0) or one VLAN of it.

    ``l3_ifindex`` is the input interface of route lookups. Addresses have sixteen bytes, zeros for none.
    ``redirect``: it takes redirected frames. ``partial``: packets may come in with an unfinished L4 checksum. The
    filters of what comes in and goes out are names, empty for none. ``tunnel``: clear packets of tunnels.
    ``translated``: what VPP translates for its pools comes by it.
    """

    ifindex: int
    vid: int
    l3_ifindex: int
    zone: str
    addr4: bytes = bytes(16)
    addr6: bytes = bytes(16)
    redirect: bool = True
    partial: bool = False
    in_filter: str = ""
    out_filter: str = ""
    tunnel: bool = False
    translated: bool = False


@dataclass
class Ids:
    """Numbers that the datapath knows names by. ``rules`` by (kind, name); 0 is no rule."""

    zones: dict[str, int]
    rules: dict[tuple[str, str], int] = field(default_factory=dict)

    def rule(self, kind: str, name: str) -> int:
        return self.rules.get((kind, name), 0)


@dataclass(frozen=True, slots=True)
class Asked:
    """What rules are matched by. ``code16``: destination port, of ICMP type and code."""

    family: int
    src: bytes
    dst: bytes
    protocol: int
    sport: int
    code16: int


@dataclass(frozen=True, slots=True)
class Decision:
    """Of the policies. ``rule`` 0: no rule decided. ``timeout`` of the application, 0: the default."""

    action: Action
    rule: int = 0
    by_rule: bool = False
    log_close: bool = False
    timeout: int = 0


@dataclass(frozen=True, slots=True)
class Prefix:
    """A network over the sixteen bytes of keys."""

    family: int
    first: int
    bits: int

    @classmethod
    @cache
    def of(cls, network: IpNetwork) -> Prefix:
        if network.version == 6:
            return cls(6, int(network.network_address), network.prefixlen)
        return cls(4, int.from_bytes(V4_MAPPED + network.network_address.packed), 96 + network.prefixlen)

    def holds(self, address: bytes) -> bool:
        family = 4 if address.startswith(V4_MAPPED) else 6
        return family == self.family and int.from_bytes(address) >> (128 - self.bits) == self.first >> (128 - self.bits)

    def translate(self, address: bytes, to: Prefix) -> bytes:
        """The address at the same place of ``to``."""
        return (to.first + int.from_bytes(address) - self.first).to_bytes(16)


def matches_any(networks: Iterable[IpNetwork], address: bytes) -> bool:
    """None at all means any address."""
    prefixes = [Prefix.of(network) for network in networks]
    return not prefixes or any(prefix.holds(address) for prefix in prefixes)


def matching_service(services: Iterable[Service], asked: Asked) -> Service | None:
    """The first term that matches."""
    for service in services:
        if _serves(service, asked):
            return service
    return None


def _serves(service: Service, asked: Asked) -> bool:
    if service.protocol is None:
        return True
    if service.protocol != asked.protocol:
        return False
    if asked.protocol in (TCP, UDP):
        return (
            service.destination[0] <= asked.code16 <= service.destination[1]
            and service.source[0] <= asked.sport <= service.source[1]
        )
    if asked.protocol in (ICMP, ICMP6):
        return service.destination[0] <= asked.code16 <= service.destination[1]
    return True


def decide(ruleset: Ruleset, ids: Ids, from_zone: str, to_zone: str, asked: Asked) -> Decision:
    """The policies' word on a new flow. ``asked`` has the original source and the translated destination."""
    for policy in _policies(ruleset, from_zone, to_zone):
        if not matches_any(policy.sources, asked.src):
            continue
        if not matches_any(policy.destinations, asked.dst):
            continue
        service = matching_service(policy.services, asked)
        if service is None:
            continue
        rule = ids.rule("policy", policy.name)
        return Decision(policy.action, rule, True, policy.log_close, service.timeout or 0)
    if to_zone == SELF:
        return _host_inbound(ruleset, ids, from_zone, asked)
    return Decision(Action.PERMIT if from_zone == SELF else ruleset.default)


def _policies(ruleset: Ruleset, from_zone: str, to_zone: str) -> Iterator[Policy]:
    for policy in ruleset.policies:
        if (policy.from_zone, policy.to_zone) == (from_zone, to_zone):
            yield policy
    if SELF in (from_zone, to_zone):
        return
    for policy in ruleset.policies:
        if policy.from_zone is None and policy.to_zone is None:
            yield policy


def _host_inbound(ruleset: Ruleset, ids: Ids, from_zone: str, asked: Asked) -> Decision:
    for zone in ruleset.zones:
        if zone.name == from_zone:
            service = matching_service(zone.host_inbound, asked)
            if service is not None:
                rule = ids.rule(HOST_INBOUND, zone.name)
                return Decision(Action.PERMIT, rule, True, timeout=service.timeout or 0)
    return Decision(Action.DENY)
