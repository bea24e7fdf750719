"""The kernel's IPsec policies as the firewall looks them up: far networks, each with the policies that cover it.

XFRM takes the matching policy of the lowest priority number, however long its prefixes are. The list of a far network
therefore holds every policy that covers it, in that order, and the longest far network of an address finds the list.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_network

from ipsec_gw.model.ids import IpNetwork
from ipsec_gw.model.objects import PortMatch
from ipsec_gw.model.snapshot import PolicyDirection, XfrmPolicy
from xdp_steer.flow_layout import MAX_TUNNELS_OF_NET, TunnelAction, TunnelSide

_SIDES = {PolicyDirection.OUT: TunnelSide.OUT, PolicyDirection.IN: TunnelSide.IN}
"""A forwarding policy has the selectors of the one for incoming packets."""

FarNet = tuple[TunnelSide, IpNetwork]


@dataclass(frozen=True, slots=True)
class TunnelRow:
    """Of ``tunnels``: what a policy asks of a packet whose far address is covered already."""

    near: IpNetwork
    near_port: PortMatch
    far_port: PortMatch
    protocol: int
    reqid: int
    action: TunnelAction


@dataclass(frozen=True, slots=True)
class TunnelLists:
    """``lists`` by far network; ``cut`` are those that would have had more than MAX_TUNNELS_OF_NET policies."""

    lists: Mapping[FarNet, tuple[TunnelRow, ...]]
    cut: tuple[IpNetwork, ...] = ()


def tunnel_lists(policies: Iterable[XfrmPolicy]) -> TunnelLists:
    """The lists of all far networks. Policies of XFRM interfaces and of marks match no packet that has neither."""
    rows: dict[FarNet, list[tuple[int, int, TunnelRow]]] = {}
    for number, policy in enumerate(policies):
        side = _SIDES.get(policy.direction)
        if side is None or policy.if_id or policy.mark is not None:
            continue
        far = policy.destination if side is TunnelSide.OUT else policy.source
        rows.setdefault((side, far), []).append((policy.priority, number, _row(policy, side)))
    lists, cut = {}, []
    for side, far in rows:
        covering = sorted(entry for wider in _wider(far) for entry in rows.get((side, wider), ()))
        if len(covering) > MAX_TUNNELS_OF_NET:
            cut.append(far)
        lists[side, far] = tuple(row for _, _, row in covering[:MAX_TUNNELS_OF_NET])
    return TunnelLists(lists, tuple(cut))


def _row(policy: XfrmPolicy, side: TunnelSide) -> TunnelRow:
    out = side is TunnelSide.OUT
    protects = policy.allow and bool(policy.templates)
    return TunnelRow(
        near=policy.source if out else policy.destination,
        near_port=policy.source_port if out else policy.destination_port,
        far_port=policy.destination_port if out else policy.source_port,
        protocol=policy.upper,
        reqid=policy.templates[0].reqid if protects else 0,
        action=TunnelAction.PROTECT if protects else TunnelAction.CLEAR,
    )


def _wider(network: IpNetwork) -> list[IpNetwork]:
    """A network and all that contain it."""
    return [network, *(ip_network(network.supernet(new_prefix=bits)) for bits in range(network.prefixlen))]
