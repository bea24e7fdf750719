"""Transport mode: the gateway itself and its peer talk, and their packets keep their header (RFC 4303 §3.1.1). Pure.

What XFRM is to transform between the two is routed to the engine, whatever protocol it is: nothing but XFRM's own
choice tells it from IKE and from ESP, which are between the same addresses. So no other policy may have a part in it.
"""

from __future__ import annotations

from ipaddress import ip_network
from itertools import chain

from ipsec_gw.lineages import Lineage, tunnel_of
from ipsec_gw.model.ids import IpAddress, IpNetwork
from ipsec_gw.model.objects import Selector
from ipsec_gw.model.prefixes import PrefixIndex
from ipsec_gw.model.snapshot import Mode, PolicyDirection, Snapshot, XfrmPolicy


class HostPolicies:
    """The outbound policies of a snapshot, to find those that have a part in what two hosts say to each other."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._limit = snapshot.limits.hosts
        outbound = [
            policy for policy in snapshot.policies if policy.direction is PolicyDirection.OUT and policy.templates
        ]
        self._by_destination = PrefixIndex((policy.destination, policy) for policy in outbound)
        self._nameless = {
            template.reqid
            for policy in snapshot.policies
            for template in policy.templates
            if template.mode is Mode.TRANSPORT and template.destination.is_unspecified
        }

    def why_not(self, lineage: Lineage) -> str:
        """Why an engine cannot have a tunnel of transport mode; empty if it can."""
        hosts = Selector(_host(lineage.local), _host(lineage.key.remote))
        checks = (
            (lineage.local.version != 4, "transport mode over IPv6 is left to the kernel"),
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
        reason = next((reason for failed, reason in checks if failed), "")
        if reason:
            return reason
        other = self._other(hosts, lineage)
        return f"transport mode beside another policy for its hosts ({other.selector})" if other else self._limit

    def _other(self, hosts: Selector, lineage: Lineage) -> XfrmPolicy | None:
        """One that has XFRM transform packets between them for another tunnel."""
        candidates = chain.from_iterable(self._by_destination.overlapping(hosts.destination))
        return next((policy for policy in candidates if _has_part(policy, hosts, lineage)), None)


def _host(address: IpAddress) -> IpNetwork:
    return ip_network((address, address.max_prefixlen))


def _has_part(policy: XfrmPolicy, hosts: Selector, lineage: Lineage) -> bool:
    return policy.selector.networks_meet(hosts) and all(
        tunnel_of(template) != lineage.key for template in policy.templates
    )
