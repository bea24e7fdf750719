"""Route-based tunnels: routing sends to them by an XFRM interface, which SAs and policies name by its if_id, or by a
VTI device, which gives its packets the mark that SAs and policies ask for. Pure.

The kernel keeps those that share an interface, or whose selectors are narrower than "anything": which of its packets
belong to which tunnel is known to XFRM alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from ipaddress import ip_network

from ipsec_gw.lineages import Lineage
from ipsec_gw.model.charon import goes_by_policies
from ipsec_gw.model.objects import Selector, XfrmInterface
from ipsec_gw.model.snapshot import Snapshot, Vti, has_mark

_ANYTHING = frozenset(Selector(ip_network(net), ip_network(net)) for net in ("0.0.0.0/0", "::/0"))


def interface_of(lineage: Lineage, snapshot: Snapshot) -> XfrmInterface | None:
    """Its XFRM interface or VTI device; None of a tunnel without one."""
    vti = _vti_of(lineage, snapshot)
    return next(iter(_named_by(lineage, snapshot)), vti.interface if vti is not None else None)


def users_of(lineages: Iterable[Lineage], snapshot: Snapshot) -> Mapping[XfrmInterface, int]:
    """How many tunnels name an interface, or would send by it."""
    users: Counter[XfrmInterface] = Counter()
    for lineage in lineages:
        vti = _vti_of(lineage, snapshot)
        users.update({*_named_by(lineage, snapshot), *((vti.interface,) if vti is not None else ())})
    return users


def why_not_routed_by(lineage: Lineage, users: Mapping[XfrmInterface, int], snapshot: Snapshot) -> str:
    """Why an engine cannot have it, empty if it can or is not route-based."""
    if not lineage.routed:
        return ""
    interface = interface_of(lineage, snapshot)
    if interface is None:
        return _why_no_interface(lineage)
    narrowed = next((policy.selector for policy in lineage.policies if policy.selector not in _ANYTHING), None)
    twins = [str(one) for one in snapshot.tagged if one.vlan == interface.vlan and one != interface]
    checks = (
        (len(lineage.if_ids) > 1, "its SAs and policies have more than one if_id"),
        (any(lineage.if_ids) and bool(lineage.marks), "its SAs or policies have a mark beside their if_id"),
        (_is_foreign(lineage, snapshot), "its inbound SAs have a mark that its interface does not give"),
        (users[interface] > 1, f"{interface} has several tunnels"),
        (narrowed is not None, f"the selector {narrowed} leaves out what {interface} may send"),
        (bool(twins), f"{interface} and {', '.join(twins)} share the VLAN ID {interface.vlan}: make one of them anew"),
    )
    return next((reason for failed, reason in checks if failed), "")


def _named_by(lineage: Lineage, snapshot: Snapshot) -> list[XfrmInterface]:
    return [snapshot.interfaces[if_id] for if_id in sorted(lineage.if_ids) if if_id in snapshot.interfaces]


def _vti_of(lineage: Lineage, snapshot: Snapshot) -> Vti | None:
    """The device whose packets its policies ask for; one with a remote end goes before one without."""
    if not lineage.marks:
        return None
    fitting = (one for one in snapshot.vtis if _fits(one, lineage))
    return min(fitting, key=lambda one: (one.remote is None, one.local is None), default=None)


def _fits(vti: Vti, lineage: Lineage) -> bool:
    return (
        vti.local in {lineage.local, None}
        and vti.remote in {lineage.key.remote, None}
        and all(has_mark(vti.out_mark, mark) for mark in lineage.marks)
    )


def _is_foreign(lineage: Lineage, snapshot: Snapshot) -> bool:
    vti = _vti_of(lineage, snapshot)
    given = vti.in_mark if vti is not None else 0
    return not all(has_mark(given, mark) for mark in lineage.inbound_marks)


def _why_no_interface(lineage: Lineage) -> str:
    if any(lineage.if_ids):
        return f"no XFRM interface with if_id {max(lineage.if_ids)} is here"
    ends = f"from {lineage.local} to {lineage.key.remote}"
    return f"its policies have a mark, and no VTI device {ends} is here that gives it: what else does is the kernel's"


def why_not_seen(lineage: Lineage, snapshot: Snapshot, names: Collection[str]) -> str:
    """Why charon would take it for idle in an engine: nobody but the interface itself asks about its policies, and what
    an engine carries does not come so far.
    """
    if not lineage.routed or not goes_by_policies(snapshot.charon):
        return ""
    return (
        f"strongSwan {snapshot.charon} would take a route-based tunnel in an engine for idle: if its child has"
        f' no `inactivity`, set mode = "accelerate" under [connections.{min(names, default="NAME")}]'
    )
