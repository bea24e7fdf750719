"""Route-based tunnels: routing sends to them by an XFRM interface, which SAs and policies name by its if_id. Pure.

The kernel keeps those that share an interface, or whose selectors are narrower than "anything": which of its packets
belong to which tunnel is known to XFRM alone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from ipaddress import ip_network

from ipsec_gw.lineages import Lineage
from ipsec_gw.model.charon import goes_by_policies
from ipsec_gw.model.objects import Selector, XfrmInterface
from ipsec_gw.model.snapshot import Snapshot

_ANYTHING = frozenset(Selector(ip_network(net), ip_network(net)) for net in ("0.0.0.0/0", "::/0"))


def interface_of(lineage: Lineage, snapshot: Snapshot) -> XfrmInterface | None:
    """Its XFRM interface; None of a tunnel without one."""
    return next((snapshot.interfaces[if_id] for if_id in lineage.if_ids if if_id in snapshot.interfaces), None)


def why_not_routed_by(lineage: Lineage, users: Mapping[int, int], snapshot: Snapshot) -> str:
    """Why an engine cannot have it, empty if it can or is not route-based. ``users`` counts the tunnels of an if_id."""
    if not any(lineage.if_ids):
        return ""
    interface = interface_of(lineage, snapshot)
    if interface is None:
        return f"no XFRM interface with if_id {max(lineage.if_ids)} is here"
    narrowed = next((policy.selector for policy in lineage.policies if policy.selector not in _ANYTHING), None)
    twins = [str(one) for one in snapshot.interfaces.values() if one.vlan == interface.vlan and one != interface]
    checks = (
        (len(lineage.if_ids) > 1, "its SAs and policies have more than one if_id"),
        (max(users[if_id] for if_id in lineage.if_ids) > 1, f"{interface} has several tunnels"),
        (narrowed is not None, f"the selector {narrowed} leaves out what {interface} may send"),
        (bool(twins), f"{interface} and {', '.join(twins)} share the VLAN ID {interface.vlan}: make one of them anew"),
    )
    return next((reason for failed, reason in checks if failed), "")


def why_not_seen(lineage: Lineage, snapshot: Snapshot, names: Collection[str]) -> str:
    """Why charon would take it for idle in an engine: nobody but the XFRM interface itself asks about its policies, and
    what an engine carries does not come so far.
    """
    if not any(lineage.if_ids) or not goes_by_policies(snapshot.charon):
        return ""
    return (
        f"strongSwan {snapshot.charon} would take a tunnel of an XFRM interface in an engine for idle: if its child has"
        f' no `inactivity`, set mode = "accelerate" under [connections.{min(names, default="NAME")}]'
    )
