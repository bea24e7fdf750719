"""The header that a GRE or IPIP device puts around its packets (RFC 2003, RFC 2784, ``ip_tunnel.c``). Pure."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from ipsec_gw.engines.soft.drops import Dropped, DropReason
from ipsec_gw.engines.soft.esp import EspPayload
from ipsec_gw.engines.soft.gre import unwrap, wrap
from ipsec_gw.engines.soft.packets import (
    DSCP_MASK,
    PROTOCOL_IPIP,
    IpPacket,
    OuterHeader,
    build_outer,
    parse_inner,
    parse_ipv4,
    tunnel_mark,
)
from ipsec_gw.model.objects import DeviceHeader

_identifications = itertools.count(1)
"""IPv4 identifications: without DF a packet may be taken apart behind the other end of ESP."""


@dataclass(frozen=True, slots=True)
class Wrapping:
    """A device's header as the packet path compares it: packed addresses."""

    local: bytes
    remote: bytes
    protocol: int
    gre: bool
    dscp: bool

    @classmethod
    def of(cls, header: DeviceHeader) -> Wrapping:
        """That of a header."""
        return cls(header.local.packed, header.remote.packed, header.protocol, header.gre, header.dscp)

    def wrap(self, inner: IpPacket) -> IpPacket:
        """The device's packet around one that is routed to it. DF is that of the packet inside."""
        payload = EspPayload(inner.encapsulated_as, inner.data)
        behind = wrap(payload).data if self.gre else payload.data
        header = OuterHeader(
            source=self.local,
            destination=self.remote,
            protocol=self.protocol,
            traffic_class=tunnel_mark(inner) | (inner.traffic_class & DSCP_MASK if self.dscp else 0),
            dont_fragment=inner.dont_fragment,
            identification=next(_identifications) & 0xFFFF,
        )
        return parse_ipv4(build_outer(header, len(behind)) + behind)

    def sends(self, packet: IpPacket) -> bool:
        """Whether it is the device's."""
        return (packet.source, packet.destination, packet.protocol) == (self.local, self.remote, self.protocol)

    def has(self, packet: IpPacket) -> bool:
        """Whether it comes from the other end, for the device or its kernel."""
        return (packet.source, packet.destination, packet.protocol) == (self.remote, self.local, self.protocol)

    def unwrap(self, packet: IpPacket) -> IpPacket | None:
        """What is inside of one that it has; None if that takes the kernel: pieces of a packet, and GRE headers that
        are not plain. Raises Dropped (inner_malformed).
        """
        if packet.fragment:
            return None
        payload = EspPayload(self.protocol, packet.payload)
        if not self.gre:
            return parse_inner(PROTOCOL_IPIP, payload.data)
        try:
            payload = unwrap(payload)
        except Dropped as dropped:
            if dropped.reason is DropReason.NEXT_HEADER:
                return None
            raise
        return parse_inner(payload.next_header, payload.data)
