"""Transport mode: the gateway itself and its peer talk, and their packets keep their header (RFC 4303 §3.1.1). Pure.

What XFRM is to transform between the two is routed to the engine, whatever protocol it is: nothing but XFRM's own
choice tells it from IKE and from ESP, which are between the same addresses. So no other policy may have a part in it.
"""

from __future__ import annotations

from ipaddress import ip_network

from ipsec_gw.lineages import Lineage, tunnel_of
from ipsec_gw.model.ids import IpAddress, IpNetwork
from ipsec_gw.model.objects import Selector
from ipsec_gw.model.snapshot import Mode, PolicyDirection, Snapshot, XfrmPolicy


def is_between_hosts(lineage: Lineage) -> bool:
    """Its SAs are of transport mode."""
    return any(sa.mode is Mode.TRANSPORT for sa in lineage.sas)


def why_not_hosts(lineage: Lineage, snapshot: Snapshot) -> str:
    """Why an engine cannot have a tunnel of transport mode; empty if it can."""
    hosts = Selector(_host(lineage.local), _host(lineage.key.remote))
    other = next((policy for policy in snapshot.policies if _has_part(policy, hosts, lineage)), None)
    checks = (
        (lineage.local.version != 4, "transport mode over IPv6 is left to the kernel"),
        (
            any(sa.encap is not None for sa in lineage.sas),
            "transport mode in UDP is left to the kernel: behind NAT it has to mend checksums",
        ),
        (any(lineage.if_ids), "transport mode with an if_id is left to the kernel"),
        (
            _is_nameless(lineage, snapshot) or any(policy.selector.networks != hosts for policy in lineage.policies),
            "transport mode is left to the kernel unless its selectors are the two gateways' own addresses",
        ),
        (other is not None, f"transport mode beside another policy for its hosts ({other and other.selector})"),
        (bool(snapshot.limits.hosts), snapshot.limits.hosts),
    )
    return next((reason for failed, reason in checks if failed), "")


def _host(address: IpAddress) -> IpNetwork:
    return ip_network((address, address.max_prefixlen))


def _has_part(policy: XfrmPolicy, hosts: Selector, lineage: Lineage) -> bool:
    """Whether it has XFRM transform packets between them for another tunnel."""
    return (
        policy.direction is PolicyDirection.OUT
        and bool(policy.templates)
        and all(tunnel_of(template) != lineage.key for template in policy.templates)
        and policy.selector.networks_meet(hosts)
    )


def _is_nameless(lineage: Lineage, snapshot: Snapshot) -> bool:
    """Its policy is for networks: XFRM takes the SA's addresses from each packet."""
    return any(
        template.reqid == lineage.key.reqid and template.mode is Mode.TRANSPORT and template.destination.is_unspecified
        for policy in snapshot.policies
        for template in policy.templates
    )
