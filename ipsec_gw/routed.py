"""Route-based tunnels: routing sends to them by an XFRM interface, which SAs and policies name by its if_id, or by a
VTI device, which gives its packets the mark that SAs and policies ask for. Pure.

The kernel keeps those that share an interface, or whose selectors are narrower than "anything": which of its packets
belong to which tunnel is known to XFRM alone.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from ipaddress import ip_network

from ipsec_gw.lineages import Lineage
from ipsec_gw.model.charon import goes_by_policies
from ipsec_gw.model.ids import IpAddress
from ipsec_gw.model.objects import Selector, XfrmInterface
from ipsec_gw.model.snapshot import Snapshot, Vti, has_mark

_ANYTHING = frozenset(Selector(ip_network(net), ip_network(net)) for net in ("0.0.0.0/0", "::/0"))


class Routes:
    """The interfaces of the tunnels of a snapshot; each is looked up once and not once for every tunnel."""

    def __init__(self, lineages: Iterable[Lineage], snapshot: Snapshot) -> None:
        self._interfaces = snapshot.interfaces
        self._vtis: dict[tuple[IpAddress | None, IpAddress | None], list[Vti]] = defaultdict(list)
        self._by_vlan: dict[int, list[XfrmInterface]] = defaultdict(list)
        for vti in snapshot.vtis:
            self._vtis[vti.local, vti.remote].append(vti)
        for interface in snapshot.tagged:
            self._by_vlan[interface.vlan].append(interface)
        self._users = Counter(interface for lineage in lineages for interface in self._concerned(lineage))

    def of(self, lineage: Lineage) -> XfrmInterface | None:
        """Its XFRM interface or VTI device; None of a tunnel without one."""
        vti = self._vti_of(lineage)
        return next(iter(self._named_by(lineage)), vti.interface if vti is not None else None)

    def why_not(self, lineage: Lineage) -> str:
        """Why an engine cannot have it, empty if it can or is not route-based."""
        if not lineage.routed:
            return ""
        interface = self.of(lineage)
        if interface is None:
            return _why_no_interface(lineage)
        narrowed = next((policy.selector for policy in lineage.policies if policy.selector not in _ANYTHING), None)
        twins = [str(one) for one in self._by_vlan[interface.vlan] if one != interface]
        checks = (
            (len(lineage.if_ids) > 1, "its SAs and policies have more than one if_id"),
            (any(lineage.if_ids) and bool(lineage.marks), "its SAs or policies have a mark beside their if_id"),
            (self._is_foreign(lineage), "its inbound SAs have a mark that its interface does not give"),
            (self._users[interface] > 1, f"{interface} has several tunnels"),
            (narrowed is not None, f"the selector {narrowed} leaves out what {interface} may send"),
            (
                bool(twins),
                f"{interface} and {', '.join(twins)} share the VLAN ID {interface.vlan}: make one of them anew",
            ),
        )
        return next((reason for failed, reason in checks if failed), "")

    def _concerned(self, lineage: Lineage) -> set[XfrmInterface]:
        """What it names, or would send by."""
        vti = self._vti_of(lineage)
        return {*self._named_by(lineage), *((vti.interface,) if vti is not None else ())}

    def _named_by(self, lineage: Lineage) -> list[XfrmInterface]:
        return [self._interfaces[if_id] for if_id in sorted(lineage.if_ids) if if_id in self._interfaces]

    def _vti_of(self, lineage: Lineage) -> Vti | None:
        """The device whose packets its policies ask for; one with a remote end goes before one without."""
        marks = lineage.marks
        if not marks:
            return None
        local, remote = lineage.local, lineage.key.remote
        ends = ((local, remote), (None, remote), (local, None), (None, None))
        candidates = (vti for pair in ends for vti in self._vtis.get(pair, ()))
        return next((vti for vti in candidates if all(has_mark(vti.out_mark, mark) for mark in marks)), None)

    def _is_foreign(self, lineage: Lineage) -> bool:
        vti = self._vti_of(lineage)
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
