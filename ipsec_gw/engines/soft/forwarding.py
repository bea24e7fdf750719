"""What the datapath knows, as one immutable value, and what it does with a frame.

The engine builds a new :class:`Forwarding` for every change and swaps it in with one attribute write, so that the
packet path needs no lock and sees each change whole. Only the SAs inside live on from one value to the next.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from ipsec_gw.engines.soft.device_header import Wrapping
from ipsec_gw.engines.soft.drops import Dropped, DropReason
from ipsec_gw.engines.soft.esp import EspPayload, sealed_length
from ipsec_gw.engines.soft.gre import unwrap, wrap
from ipsec_gw.engines.soft.packets import (
    DSCP_MASK,
    ECN_MASK,
    PROTOCOL_ESP,
    PROTOCOL_NONE,
    PROTOCOL_UDP,
    TAGGED_BYTES,
    UDP_BYTES,
    IpPacket,
    OuterHeader,
    build_outer,
    build_udp,
    congestion_mark,
    ethertype_of,
    fragments,
    ip_header_bytes,
    parse_frame,
    parse_inner,
    parse_ipv4,
    parse_ipv6,
    parse_udp,
    vlan_of,
    with_payload,
)
from ipsec_gw.engines.soft.reassembly import Reassembly
from ipsec_gw.engines.soft.sa import InboundSa, OutboundSa
from ipsec_gw.engines.soft.vxlan import VxlanPath
from ipsec_gw.model.ids import IpNetwork
from ipsec_gw.model.objects import ANY_PORT, USUAL_COPIES, HeaderCopies, PortMatch, Selector, UdpEncap
from ipsec_gw.model.sizes import GRE_HEADER


@dataclass(frozen=True, slots=True)
class Prefix:
    """A network as the packet path compares it: integers of its family's width."""

    address_bytes: int
    network: int
    mask: int

    @classmethod
    def of(cls, network: IpNetwork) -> Prefix:
        """The prefix of a network."""
        return cls(network.max_prefixlen // 8, int(network.network_address), int(network.netmask))

    def __contains__(self, address: bytes) -> bool:
        """Whether a packed address lies inside."""
        return len(address) == self.address_bytes and int.from_bytes(address, "big") & self.mask == self.network


@dataclass(frozen=True, slots=True)
class Match:
    """A selector as the packet path compares it: for packets that come from ``source`` and go to ``destination``."""

    source: Prefix
    destination: Prefix
    protocol: int = 0
    source_port: PortMatch = ANY_PORT
    destination_port: PortMatch = ANY_PORT

    @classmethod
    def outbound(cls, selector: Selector) -> Match:
        """Plaintext that the selector sends into its tunnel."""
        networks = Prefix.of(selector.source), Prefix.of(selector.destination)
        return cls(*networks, selector.protocol, selector.source_port, selector.destination_port)

    @classmethod
    def inbound(cls, selector: Selector) -> Match:
        """Decrypted packets that may come out of the selector's tunnel: the selector mirrored."""
        return cls.outbound(selector.reversed)

    def __contains__(self, packet: IpPacket) -> bool:
        """Whether a packet fits. A fragment has no ports, as XFRM has it: they count as 0."""
        if packet.source not in self.source or packet.destination not in self.destination:
            return False
        if self.protocol and packet.protocol != self.protocol:
            return False
        if not self.source_port.mask and not self.destination_port.mask:
            return True
        source, destination = packet.ports
        return PortMatch(source, 0xFFFF).meets(self.source_port) and PortMatch(destination, 0xFFFF).meets(
            self.destination_port
        )


@dataclass(frozen=True, slots=True)
class Port:
    """Where frames leave: an interface, what stands in front of the EtherType, the largest IP packet in bytes."""

    interface: str
    addresses: bytes
    mtu: int

    @property
    def untagged(self) -> Port:
        """The same without a VLAN tag."""
        return replace(self, addresses=self.addresses[:_ADDRESSES_BYTES])

    def emit(self, packet: bytes, ethertype: bytes) -> Emission:
        """The packet as a frame. Raises Dropped (too_big)."""
        if len(packet) > self.mtu:
            raise Dropped(DropReason.TOO_BIG)
        return Emission(self.interface, self.addresses + ethertype + packet)

    def pass_on(self, frame: bytes) -> Emission:
        """A frame that has all its headers, a tag among them. Raises Dropped (too_big)."""
        if len(frame) > self.mtu + TAGGED_BYTES:
            raise Dropped(DropReason.TOO_BIG)
        return Emission(self.interface, frame)


@dataclass(frozen=True, slots=True)
class Emission:
    """A frame to send out of an interface."""

    interface: str
    frame: bytes


@dataclass(frozen=True, slots=True)
class InboundPath:
    """An SA that receives, bare or in UDP, and what may come out of it: what ``matches``, and no exception. It leaves
    by ``up``, in ``transport`` mode with the header that the ESP packet had. With ``gre`` it comes behind a GRE header,
    with a ``wrapping`` behind that; what takes the kernel to unwrap leaves untagged. ``overlays`` have packets of it.
    """

    sa: InboundSa
    matches: tuple[Match, ...]
    up: Port
    encapsulated: bool = False
    exceptions: tuple[Match, ...] = ()
    copies: HeaderCopies = USUAL_COPIES
    gre: bool = False
    transport: bool = False
    wrapping: Wrapping | None = None
    overlays: tuple[VxlanPath, ...] = ()

    def lets_out(self, packet: IpPacket) -> bool:
        """Whether this decrypted packet may come out."""
        return any(packet in match for match in self.matches) and not any(packet in one for one in self.exceptions)


@dataclass(frozen=True, slots=True)
class OutboundPath:
    """Plaintext that matches and comes behind that VLAN ID, 0 for none, goes into ``sa``, between these outer addresses
    (and UDP ports), out of ``port``; in ``transport`` mode behind its own header, with ``gre`` behind a GRE header,
    with a ``wrapping`` behind that; put together before, if only ``whole`` packets go. Of paths for the same networks
    the one with the greatest ``rank`` is tried first.
    """

    match: Match
    sa: OutboundSa
    source: bytes
    destination: bytes
    port: Port
    encap: UdpEncap | None = None
    copies: HeaderCopies = USUAL_COPIES
    vlan: int = 0
    gre: bool = False
    transport: bool = False
    rank: int = 0
    wrapping: Wrapping | None = None
    whole: bool = False

    @property
    def ends(self) -> Match:
        """What it matches, but for protocol and ports, which fragments lack."""
        return Match(self.match.source, self.match.destination)

    @property
    def header_bytes(self) -> int:
        """What goes in front of the ESP packet."""
        return ip_header_bytes(self.source) + (UDP_BYTES if self.encap else 0)


WireKey = tuple[bytes, int]
"""Outer destination (packed) and SPI."""


@dataclass(frozen=True, slots=True)
class Forwarding:
    """Everything that decides about a packet. ``outbound`` is in the order in which it is searched. ``begun`` are
    packets between hosts that have come in part, ``overlays`` those by VLAN ID.
    """

    inbound: Mapping[WireKey, InboundPath]
    outbound: tuple[OutboundPath, ...]
    begun: Reassembly = field(default_factory=Reassembly, compare=False)
    overlays: Mapping[int, VxlanPath] = field(default_factory=dict)

    @classmethod
    def build(
        cls,
        inbound: Mapping[WireKey, InboundPath],
        outbound: Iterable[OutboundPath],
        begun: Reassembly | None = None,
        overlays: Iterable[VxlanPath] = (),
    ) -> Forwarding:
        """A forwarding state that searches narrow selectors first: by destination, source, rank, then as given."""
        ordered = sorted(outbound, key=lambda path: (-path.match.destination.mask, -path.match.source.mask, -path.rank))
        by_vlan = MappingProxyType({overlay.vlan: overlay for overlay in overlays})
        return cls(MappingProxyType(dict(inbound)), tuple(ordered), begun or Reassembly(), by_vlan)

    def decapsulate(self, frame: bytes) -> tuple[Emission, ...]:
        """The decrypted packet of an ESP frame from the WAN, on its way to the kernel. Raises Dropped.

        The TTL is left alone: the kernel behind the veth is the same hop.
        """
        outer = parse_frame(frame)
        if outer.fragment:
            raise Dropped(DropReason.FRAGMENT)
        packet = _esp_of(outer)
        path = self.inbound.get((outer.destination, int.from_bytes(packet[:4], "big")))
        if path is None:
            raise Dropped(DropReason.UNKNOWN_SA)
        if path.encapsulated != (outer.protocol == PROTOCOL_UDP):
            raise Dropped(DropReason.ENCAPSULATION)
        payload = path.sa.open(packet)
        inner = _unwrapped(outer, payload) if path.transport else _inner_of(unwrap(payload) if path.gre else payload)
        path.sa.count(_counted(path, inner))
        if path.wrapping is not None:
            return (_out_of(path.wrapping, path, inner, outer.traffic_class),)
        if not path.lets_out(inner):
            raise Dropped(DropReason.SELECTOR)
        inner = _marked(path, inner, outer.traffic_class)
        inside = next((found for one in path.overlays if (found := one.unwrap(inner)) is not None), None)
        return (_whole(path.up, inner) if inside is None else path.up.pass_on(inside),)

    def encapsulate(self, frame: bytes) -> tuple[Emission, ...]:
        """The ESP packet for a plaintext frame from the kernel, on its way to the peer, in fragments if it may be and
        has to; nothing while pieces of a packet are missing that has to be whole. Raises Dropped.

        Size is checked first: what cannot leave must not use up a sequence number.
        """
        vlan = vlan_of(frame)
        overlay = self.overlays.get(vlan)
        inner, vlan = (parse_frame(frame), vlan) if overlay is None else (overlay.wrap(frame), 0)
        if inner.fragment and any(path.whole and path.vlan == vlan and inner in path.ends for path in self.outbound):
            whole_packet = self.begun.add(inner)
            if whole_packet is None:
                return ()
            inner = whole_packet
        path = next((path for path in self.outbound if path.vlan == vlan and inner in path.match), None)
        if path is None:
            raise Dropped(DropReason.NO_TUNNEL)
        if path.transport:
            return _transported(path, inner)
        if path.wrapping is not None:
            inner = path.wrapping.wrap(inner)
        outer, payload = _outer_of(path, inner), EspPayload(inner.encapsulated_as, inner.data)
        if path.gre:
            payload = wrap(payload)
        whole = outer.dont_fragment or len(outer.source) != _IPV4_ADDRESS_BYTES
        if whole and path.header_bytes + sealed_length(len(payload.data)) > path.port.mtu:
            raise Dropped(DropReason.TOO_BIG)
        packet = path.sa.seal(payload)
        if path.encap is not None:
            packet = build_udp(path.encap.source_port, path.encap.destination_port, len(packet)) + packet
        sealed = build_outer(outer, len(packet)) + packet
        return _emitted(path.port, sealed, whole=whole, source=path.source)


def _whole(port: Port, packet: IpPacket) -> Emission:
    return port.emit(packet.data, ethertype_of(packet.source))


def _marked(path: InboundPath, inner: IpPacket, traffic_class: int) -> IpPacket:
    """With the congestion mark of the header outside; in transport mode there is one header only. Raises Dropped."""
    if path.transport or not path.copies.ecn:
        return inner
    return parse_inner(inner.encapsulated_as, congestion_mark(inner, traffic_class))


def _out_of(wrapping: Wrapping, path: InboundPath, packet: IpPacket, traffic_class: int) -> Emission:
    """What is behind a device's header, or all of it if it is the kernel's to unwrap. Raises Dropped."""
    if not wrapping.has(packet):
        raise Dropped(DropReason.SELECTOR)
    packet = _marked(path, packet, traffic_class)
    inside = wrapping.unwrap(packet)
    if inside is None:
        return _whole(path.up.untagged, packet)
    if not path.lets_out(inside):
        raise Dropped(DropReason.SELECTOR)
    return path.up.emit(congestion_mark(inside, packet.traffic_class), ethertype_of(inside.source))


def _transported(path: OutboundPath, inner: IpPacket) -> tuple[Emission, ...]:
    """The packet with ESP, or ESP in UDP, in the place of its payload (RFC 4303 §3.1.1), in fragments if it may be and
    has to. Raises Dropped.
    """
    whole = inner.dont_fragment or inner.header_bytes != ip_header_bytes(inner.source)
    udp = UDP_BYTES if path.encap else 0
    if whole and inner.header_bytes + udp + sealed_length(len(inner.payload)) > path.port.mtu:
        raise Dropped(DropReason.TOO_BIG)
    packet = path.sa.seal(EspPayload(inner.protocol, inner.payload))
    protocol = PROTOCOL_ESP
    if path.encap is not None:
        packet = build_udp(path.encap.source_port, path.encap.destination_port, len(packet)) + packet
        protocol = PROTOCOL_UDP
    return _emitted(path.port, with_payload(inner, protocol, packet), whole=whole, source=inner.source)


def _emitted(port: Port, packet: bytes, *, whole: bool, source: bytes) -> tuple[Emission, ...]:
    pieces = (packet,) if whole else fragments(packet, port.mtu)
    return tuple(port.emit(piece, ethertype_of(source)) for piece in pieces)


_IPV4_ADDRESS_BYTES = 4
_ADDRESSES_BYTES = 12
"""Of an Ethernet frame."""

_identifications = itertools.count(1)
"""IPv4 identifications, unique across SAs: outer packets without DF may be fragmented on the way (RFC 6864)."""


def _outer_of(path: OutboundPath, inner: IpPacket) -> OuterHeader:
    """DSCP and DF are copied (RFC 4301 §5.1.2), ECN too (RFC 6040 §4.1, normal mode), unless the SA is told not to."""
    kept = (DSCP_MASK if path.copies.dscp else 0) | (ECN_MASK if path.copies.ecn else 0)
    return OuterHeader(
        source=path.source,
        destination=path.destination,
        protocol=PROTOCOL_UDP if path.encap else PROTOCOL_ESP,
        traffic_class=inner.traffic_class & kept,
        dont_fragment=inner.dont_fragment and path.copies.df,
        identification=next(_identifications) & 0xFFFF,
    )


def _esp_of(outer: IpPacket) -> bytes:
    """The ESP packet in an outer packet, bare or in UDP (RFC 3948); IKE and keepalives are no ESP of any SA."""
    if outer.protocol == PROTOCOL_UDP:
        return parse_udp(outer.payload)
    if outer.protocol != PROTOCOL_ESP:
        raise Dropped(DropReason.NOT_ESP)
    return outer.payload


def _counted(path: InboundPath, inner: IpPacket) -> int:
    """Bytes as the kernel counts them: what was in ESP."""
    if path.transport:
        return len(inner.payload)
    return len(inner.data) + (GRE_HEADER if path.gre else 0)


def _unwrapped(outer: IpPacket, payload: EspPayload) -> IpPacket:
    """The packet whose payload transport mode protected."""
    if payload.next_header == PROTOCOL_NONE:
        raise Dropped(DropReason.DUMMY)
    parse = parse_ipv4 if len(outer.source) == _IPV4_ADDRESS_BYTES else parse_ipv6
    return parse(with_payload(outer, payload.next_header, payload.data))


def _inner_of(payload: EspPayload) -> IpPacket:
    """The inner packet; parsing also cuts off TFC padding (RFC 4303 §2.7)."""
    if payload.next_header == PROTOCOL_NONE:
        raise Dropped(DropReason.DUMMY)
    return parse_inner(payload.next_header, payload.data)
