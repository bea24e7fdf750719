"""The gateway itself and its peer talk: transport mode, and tunnel mode between the two ends of its SAs alone. Pure.

What XFRM is to transform between the two is routed to the engine, whatever protocol it is: nothing but XFRM's own
choice tells it from IKE and from ESP, which are between the same addresses. Several tunnels may have parts of it, by
protocol and ports, as the two children of a VXLAN device have: one by the port it sends to, one by the port it sends
from. What belongs to those that are not in the engine is exempted. Where two have packets in common, XFRM's order says
whose they are, and the engine has that order as ranks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from ipaddress import ip_network
from itertools import chain

from ipsec_gw.encapsulated import Devices, is_transport
from ipsec_gw.lineages import Lineage, tunnel_of
from ipsec_gw.model.ids import IpAddress, IpNetwork, TunnelId
from ipsec_gw.model.objects import Selector
from ipsec_gw.model.prefixes import PrefixIndex
from ipsec_gw.model.snapshot import PolicyDirection, Snapshot, XfrmPolicy
from ipsec_gw.precedence import why_not_routed


def is_of_hosts(lineage: Lineage) -> bool:
    """What its ends say to each other is all that it is for. Of tunnel mode that is not known before its policies."""
    if is_transport(lineage):
        return True
    of_ends = (policy.of_ends and policy.templates[0].source == lineage.local for policy in lineage.policies)
    return bool(lineage.policies) and not lineage.routed and all(of_ends)


class HostPolicies:
    """The outbound policies of a snapshot, to find those that have a part in what two hosts say to each other."""

    def __init__(self, snapshot: Snapshot, devices: Devices) -> None:
        self._limit, self._devices = snapshot.limits.hosts, devices
        outbound = [
            policy for policy in snapshot.policies if policy.direction is PolicyDirection.OUT and policy.templates
        ]
        self._by_destination = PrefixIndex((policy.destination, policy) for policy in outbound)
        self._of_more = {
            tunnel_of(template) for policy in outbound if not policy.of_ends for template in policy.templates
        }
        self._nameless = {
            template.reqid
            for policy in snapshot.policies
            for template in policy.templates
            if policy.transports and template.destination.is_unspecified
        }

    def why_not(self, lineage: Lineage) -> str:
        """Why an engine cannot have a tunnel that is of hosts, whatever becomes of others; empty if it can."""
        hosts = _between(lineage)
        if lineage.local.version != 4:
            return f"{_mode(lineage)} over IPv6 is left to the kernel"
        if reason := self._why_not_transport(lineage, hosts) if is_transport(lineage) else "":
            return reason
        if reason := next(filter(None, map(why_not_routed, lineage.selectors)), ""):
            return reason
        other = self._other(hosts, lineage)
        return _beside(lineage, other) if other else self._limit

    def _why_not_transport(self, lineage: Lineage, hosts: Selector) -> str:
        checks = (
            (
                any(sa.encap is not None for sa in lineage.sas),
                "transport mode in UDP is left to the kernel: behind NAT it has to mend checksums",
            ),
            (any(lineage.if_ids), "transport mode with an if_id is left to the kernel"),
            (
                # A policy for networks: XFRM takes the SA's addresses from each packet.
                lineage.key.reqid in self._nameless
                or any(policy.selector.networks != hosts for policy in lineage.policies),
                "transport mode is left to the kernel unless its selectors are the two gateways' own addresses",
            ),
        )
        return next((reason for failed, reason in checks if failed), "")

    def _other(self, hosts: Selector, lineage: Lineage) -> XfrmPolicy | None:
        """One that has XFRM transform packets between them for another tunnel, and cannot stand beside this one."""
        candidates = chain.from_iterable(self._by_destination.overlapping(hosts.destination))
        return next(
            (
                policy
                for policy in candidates
                if _has_part(policy, hosts, lineage) and not self._stands_beside(policy, hosts, lineage)
            ),
            None,
        )

    def _stands_beside(self, policy: XfrmPolicy, hosts: Selector, lineage: Lineage) -> bool:
        """It is for other packets of the same hosts, all or most of them, and a routing rule can take them from the
        rest. Of one that has all packets of the other, or lies inside, it would take too much.
        """
        selector = policy.selector
        return (
            policy.of_ends
            and selector.networks == hosts
            and not any(tunnel_of(template) in self._of_more for template in policy.templates)
            and not (policy.bound or policy.mark or policy.if_id)
            and not why_not_routed(selector)
            and not self._devices.send(lineage, policy)
            and not any(own.covers(selector) or selector.covers(own) for own in lineage.selectors)
        )


class Together:
    """The tunnels that stand side by side, between the same hosts."""

    def __init__(self, lineages: Iterable[Lineage]) -> None:
        """``lineages`` are those of hosts, without those of devices."""
        self._by_hosts: dict[Selector, list[Lineage]] = defaultdict(list)
        for lineage in lineages:
            self._by_hosts[_between(lineage)].append(lineage)

    def why_not(self, kept: Mapping[TunnelId, str]) -> Mapping[TunnelId, str]:
        """``kept``, and why further ones stay in the kernel: for the sake of one that does, or as nothing tells which
        of two has a packet that fits both.
        """
        found = dict(kept)
        for group in self._by_hosts.values():
            while beside := _kept_beside(group, found):
                found |= beside
        return found

    def ranks(self, carried: Set[TunnelId]) -> Mapping[TunnelId, int]:
        """Of the tunnels that an engine has: greater than that of each that XFRM tries later for a packet of both."""
        found: dict[TunnelId, int] = {}
        for group in self._by_hosts.values():
            here = [one for one in group if one.key in carried]
            for one in sorted(here, key=_place, reverse=True):
                later = [found[other.key] for _, other, _ in _in_common(one, here) if other.key in found]
                found[one.key] = 1 + max(later, default=-1)
        return found

    def exempted(self, carried: Set[TunnelId]) -> frozenset[Selector]:
        """What XFRM's way is for, although something between the same hosts is led to an engine."""
        return frozenset(
            selector
            for group in self._by_hosts.values()
            if any(one.key in carried for one in group)
            for one in group
            if one.key not in carried
            for selector in one.selectors
        )


def _kept_beside(group: Sequence[Lineage], kept: Mapping[TunnelId, str]) -> Mapping[TunnelId, str]:
    """Those that ``kept`` lacks."""
    free = [one for one in group if not kept[one.key]]
    return {one.key: reason for one in free if (reason := _why_beside(one, group, kept))}


def _why_beside(one: Lineage, group: Sequence[Lineage], kept: Mapping[TunnelId, str]) -> str:
    for policy, other, its in _in_common(one, group):
        if kept[other.key]:
            return _beside(one, its)
        if (_order(policy) < _order(its)) is not (_place(one) < _place(other)):
            return f"no order tells the selectors {policy.selector} and {its.selector} apart"
    return ""


def _in_common(one: Lineage, group: Sequence[Lineage]) -> Iterator[tuple[XfrmPolicy, Lineage, XfrmPolicy]]:
    """Its policies that share packets with a policy of another tunnel, which is told with its owner."""
    return (
        (policy, other, its)
        for other in group
        if other is not one
        for policy in one.policies
        for its in other.policies
        if policy.selector.meets(its.selector)
    )


def _order(policy: XfrmPolicy) -> tuple[int, int]:
    """XFRM tries the lowest first."""
    return policy.priority, policy.index


def _place(lineage: Lineage) -> tuple[int, int]:
    return min(map(_order, lineage.policies), default=(0, 0))


def _between(lineage: Lineage) -> Selector:
    return Selector(_host(lineage.local), _host(lineage.key.remote))


def _host(address: IpAddress) -> IpNetwork:
    return ip_network((address, address.max_prefixlen))


def _mode(lineage: Lineage) -> str:
    return "transport mode" if is_transport(lineage) else "tunnel mode between its own ends"


def _beside(lineage: Lineage, other: XfrmPolicy) -> str:
    return f"{_mode(lineage)} beside another policy for its hosts ({other.selector})"


def _has_part(policy: XfrmPolicy, hosts: Selector, lineage: Lineage) -> bool:
    return policy.selector.networks_meet(hosts) and all(
        tunnel_of(template) != lineage.key for template in policy.templates
    )
