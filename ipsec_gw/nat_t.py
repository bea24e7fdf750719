"""UDP encapsulation (RFC 3948) as SAs have it: which ports are ours, and where a peer's packets come from."""

from __future__ import annotations

from ipsec_gw.model.objects import MAX_NAT_T_PORTS, NAT_T_PORT, UdpPeer
from ipsec_gw.model.snapshot import Snapshot, XfrmSa


def local_port(sa: XfrmSa, *, inbound: bool) -> int:
    """Our UDP port, 0 for bare ESP."""
    if sa.encap is None:
        return 0
    return sa.encap.destination_port if inbound else sa.encap.source_port


def udp_peer(sa: XfrmSa) -> UdpPeer | None:
    """Where the packets of an inbound SA come from; None for bare ESP."""
    return UdpPeer(sa.source, sa.encap.source_port) if sa.encap else None


def further_ports(snapshot: Snapshot) -> frozenset[int]:
    """Our ports besides 4500 that are steered and guarded: those that SAs have, the lowest ones if they are many."""
    here = snapshot.local_addresses
    found = {local_port(sa, inbound=sa.key.destination in here) for sa in snapshot.sas}
    return frozenset(sorted(found - {0, NAT_T_PORT})[:MAX_NAT_T_PORTS])
