"""SAs that an engine cannot take over, though it could do all that they ask for."""

from __future__ import annotations

from collections.abc import Container, Mapping

from ipsec_gw.model.ids import SaKey, TunnelId
from ipsec_gw.model.objects import ObjectKey
from ipsec_gw.model.snapshot import Snapshot, XfrmSa

_ON_THE_WIRE = (1 << 32) - 1


def received(snapshot: Snapshot, in_place: Container[ObjectKey]) -> Mapping[SaKey, str]:
    """Inbound SAs that the kernel has received with, and that no engine can begin with, with the reason: engines begin
    at 0. What the engine has already is ``in_place``.

    Beyond 32 bits it would not find the number, half of which is not on the wire (RFC 4303, 2.2.1). Below, it would
    take packets again that the kernel has had, until a newer one comes. A tunnel with a successor needs nothing of the
    old SA; one without would have to wait for a rekey, for packets that came before anybody had seen the SA.
    """
    newest: dict[TunnelId, XfrmSa] = {}
    inbound = [sa for sa in snapshot.sas if sa.key.destination in snapshot.local_addresses]
    for sa in sorted(inbound, key=lambda sa: sa.lifetime.add_time):
        newest[TunnelId(sa.reqid, sa.source)] = sa
    found: dict[SaKey, str] = {}
    for sa in inbound:
        if sa.replay.seq == 0 or sa.key in in_place:
            continue
        if sa.replay.seq > _ON_THE_WIRE:
            found[sa.key] = f"the peer is at number {sa.replay.seq}, and an engine would begin with 0"
        elif newest[TunnelId(sa.reqid, sa.source)].lifetime.add_time > sa.lifetime.add_time:
            found[sa.key] = "the kernel has received with it, and the tunnel has a newer one"
    return found


class Unnamed:
    """Tunnels whose outbound SAs the kernel finds by the reqid alone: no policy names one, so that no engine knows what
    belongs to it. charon's traps are like that until the SA is there, and an operator's own policies for good.
    """

    def __init__(self) -> None:
        self._tunnels: frozenset[TunnelId] = frozenset()

    def add(self, snapshot: Snapshot, key: SaKey) -> None:
        """The kernel has encrypted with this outbound SA for too long, and no policy has come to name it."""
        self._tunnels |= {_tunnel_of(sa) for sa in snapshot.sas if sa.key == key}

    def reasons(self, snapshot: Snapshot) -> Mapping[SaKey, str]:
        """Their SAs, with the reason. Of a tunnel that a policy names after all there are none any more."""
        if not self._tunnels:
            return {}
        named = (one for policy in snapshot.policies for one in policy.templates if one.spi != 0)
        self._tunnels -= {TunnelId(one.reqid, one.destination) for one in named}
        why = "the kernel sends with it by a policy that names no SA (`policies = no`, `per_cpu_sas`)"
        return {sa.key: why for sa in snapshot.sas if _tunnel_of(sa) in self._tunnels}


def _tunnel_of(sa: XfrmSa) -> TunnelId:
    """Of an outbound one."""
    return TunnelId(sa.reqid, sa.key.destination)
