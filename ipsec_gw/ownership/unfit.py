"""SAs that an engine could not carry on with, though it could do all that they ask for."""

from __future__ import annotations

from collections.abc import Container, Mapping

from ipsec_gw.model.ids import SaKey, TunnelId
from ipsec_gw.model.objects import ObjectKey
from ipsec_gw.model.snapshot import Snapshot, XfrmSa

_ON_THE_WIRE = (1 << 32) - 1


def too_far(snapshot: Snapshot, in_place: Container[ObjectKey]) -> Mapping[SaKey, str]:
    """Inbound SAs whose numbers need more than 32 bits, with the reason. An engine begins with 0, and the upper half is
    not on the wire (RFC 4303, 2.2.1): it would never find it. What it has already is ``in_place``.
    """
    return {
        sa.key: f"the peer is at number {sa.replay.seq}, an engine would begin with 0: a rekey brings a fresh one"
        for sa in snapshot.sas
        if sa.replay.seq > _ON_THE_WIRE and sa.key.destination in snapshot.local_addresses and sa.key not in in_place
    }


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
        if self._tunnels:
            named = (one for policy in snapshot.policies for one in policy.templates if one.spi != 0)
            self._tunnels -= {TunnelId(one.reqid, one.destination) for one in named}
        why = "the kernel sends with it by a policy that names no SA (`policies = no`, `per_cpu_sas`)"
        return {sa.key: why for sa in snapshot.sas if _tunnel_of(sa) in self._tunnels}


def _tunnel_of(sa: XfrmSa) -> TunnelId:
    """Of an outbound one."""
    return TunnelId(sa.reqid, sa.key.destination)
