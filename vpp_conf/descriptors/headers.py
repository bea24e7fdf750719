"""What VPP's own tunnels put in front of packets, whatever kind of tunnel it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ipsec_gw.model.ids import IpAddress
from vpp_conf.descriptors.base import from_address
from vpp_conf.descriptors.route import OUTER_TABLE
from vpp_conf.descriptors.sa import COPY_DSCP, COPY_ECN, DECAP_COPY_ECN

FIRST_INSTANCE, LAST_INSTANCE = 0x4000_0000, 0x4000_FFFF
"""The gateway's own numbers: VPP has no two tunnels with the same ends, so one that was only begun must be found again,
and it has its number from the first.
"""


@dataclass(frozen=True, slots=True)
class Headers:
    """Addresses of the outer header, the FIB ``table`` that it is looked up in, and whether it gets the packet's DSCP.
    ``number`` is the gateway's own, from 0.
    """

    number: int
    source: IpAddress
    destination: IpAddress
    dscp: bool
    table: int = OUTER_TABLE

    @property
    def flags(self) -> int:
        """``vl_api_tunnel_encap_decap_flags_t``; DF is left clear."""
        return COPY_ECN | DECAP_COPY_ECN | (COPY_DSCP if self.dscp else 0)


@dataclass(frozen=True, slots=True)
class Encapsulation:
    """A tunnel's interface. ``table``, ``mtu`` and ``lender`` as
    :class:`~vpp_conf.descriptors.ipsec_itf.IpsecInterface` has them.
    """

    table: int
    mtu: int
    lender: int
    headers: Headers
    sw_if_index: int = field(default=0, compare=False)


def read_own(tunnels: Iterable[Any], table: str) -> Iterator[tuple[Headers, int]]:
    """Headers and ``sw_if_index`` of those in a dump that have a number of the gateway's; ``table`` is what the message
    calls the FIB table.
    """
    for tunnel in tunnels:
        if FIRST_INSTANCE <= tunnel.instance <= LAST_INSTANCE:
            yield (
                Headers(
                    number=tunnel.instance - FIRST_INSTANCE,
                    source=from_address(tunnel.src),
                    destination=from_address(tunnel.dst),
                    dscp=bool(tunnel.flags & COPY_DSCP),
                    table=getattr(tunnel, table),
                ),
                tunnel.sw_if_index,
            )
