"""VXLAN as a device of the kernel has it (RFC 7348, ``drivers/net/vxlan``): frames in UDP between two hosts. Pure."""

from __future__ import annotations

import itertools
import struct
import zlib
from dataclasses import dataclass

from ipsec_gw.engines.soft.drops import Dropped, DropReason
from ipsec_gw.engines.soft.packets import (
    ECN_MASK,
    PROTOCOL_UDP,
    TAGGED_BYTES,
    UDP_BYTES,
    IpPacket,
    OuterHeader,
    build_outer,
    build_udp,
    congestion_mark,
    parse_frame,
    parse_ipv4,
    parse_udp,
    tunnel_mark,
    vlan_tag,
)
from ipsec_gw.model.objects import Overlay

_HEADER = struct.Struct("!II")
_FLAG_I = 0x0800_0000
"""The VNI is valid; all other bits of the first word are reserved."""

_VNI_SHIFT = 8
_ADDRESSES_BYTES, _ETHERNET_BYTES, _TAG_BYTES = 12, 14, 4
_FIRST_PORT, _LAST_PORT = 32768, 60999
"""``net.ipv4.ip_local_port_range`` as it is unless somebody changes it."""

_identifications = itertools.count(1)
"""IPv4 identifications: what is too long for the way is taken apart, and DF is clear."""


@dataclass(frozen=True, slots=True)
class VxlanPath:
    """An overlay as the packet path compares it: packed addresses, and the VLAN ID of its frames."""

    vlan: int
    vni: int
    local: bytes
    remote: bytes
    port: int

    @classmethod
    def of(cls, overlay: Overlay) -> VxlanPath:
        """That of an overlay."""
        return cls(overlay.vlan, overlay.vni, overlay.local.packed, overlay.remote.packed, overlay.port)

    def wrap(self, frame: bytes) -> IpPacket:
        """The packet that carries a frame, which is behind the VLAN tag. Raises Dropped (malformed)."""
        if len(frame) < TAGGED_BYTES:
            raise Dropped(DropReason.MALFORMED)
        inside = frame[:_ADDRESSES_BYTES] + frame[_ADDRESSES_BYTES + _TAG_BYTES :]
        packet = _packet_in(inside)
        payload = _HEADER.pack(_FLAG_I, self.vni << _VNI_SHIFT) + inside
        outer = OuterHeader(
            source=self.local,
            destination=self.remote,
            protocol=PROTOCOL_UDP,
            traffic_class=tunnel_mark(packet) if packet is not None else 0,
            dont_fragment=False,
            identification=next(_identifications) & 0xFFFF,
        )
        udp = build_udp(_source_port(inside, packet), self.port, len(payload))
        return parse_ipv4(build_outer(outer, len(udp) + len(payload)) + udp + payload)

    def unwrap(self, packet: IpPacket) -> bytes | None:
        """The frame in a packet, tagged; None if the packet is none of this overlay's. Raises Dropped (malformed), and
        (congestion) for a mark that the packet inside cannot carry (RFC 6040 §4.2).
        """
        if packet.protocol != PROTOCOL_UDP or packet.fragment or packet.ports[1] != self.port:
            return None
        if (packet.source, packet.destination) != (self.remote, self.local):
            return None
        if len(packet.payload) < UDP_BYTES + _HEADER.size:
            return None
        payload = parse_udp(packet.payload)
        if payload[: _HEADER.size] != _HEADER.pack(_FLAG_I, self.vni << _VNI_SHIFT):
            return None
        frame = payload[_HEADER.size :]
        if len(frame) < _ETHERNET_BYTES:
            raise Dropped(DropReason.MALFORMED)
        frame = _marked(frame, packet.traffic_class)
        return frame[:_ADDRESSES_BYTES] + vlan_tag(self.vlan) + frame[_ADDRESSES_BYTES:]


def _packet_in(frame: bytes) -> IpPacket | None:
    try:
        return parse_frame(frame)
    except Dropped:  # ARP and the like, or what its receiver will drop
        return None


def _source_port(frame: bytes, packet: IpPacket | None) -> int:
    """By a hash of the flow, so that networks can spread flows and keep each in order."""
    flow = frame[:_ADDRESSES_BYTES]
    if packet is not None:
        flow = packet.source + packet.destination + struct.pack("!BHH", packet.protocol, *packet.ports)
    return _FIRST_PORT + zlib.crc32(flow) % (_LAST_PORT - _FIRST_PORT + 1)


def _marked(frame: bytes, traffic_class: int) -> bytes:
    packet = _packet_in(frame) if traffic_class & ECN_MASK else None
    if packet is None:
        return frame
    start = frame.index(packet.data, _ETHERNET_BYTES)
    return frame[:start] + congestion_mark(packet, traffic_class) + frame[start + len(packet.data) :]
