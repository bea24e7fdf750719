"""IP packets, what the firewall should make of them, and how to compare. All addresses are text."""

from __future__ import annotations

import struct
from ipaddress import ip_address

from firewall_kit import Port
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPerror
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6PacketTooBig,
    ICMPv6ParamProblem,
    ICMPv6TimeExceeded,
    IPerror6,
    IPv6,
    IPv6ExtHdrFragment,
    _ICMPv6,
)
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from xdp_steer.sessions import Flow


def ip_layer(version: int, **fields: object) -> Packet:
    """``ttl`` also names the hop limit."""
    if version == 4:
        return IP(**fields)
    return IPv6(**{{"ttl": "hlim", "proto": "nh"}.get(name, name): value for name, value in fields.items()})


def changed(packet: Packet, *, lower_ttl: bool = False, **fields: object) -> Packet:
    """An IP packet with other addresses, ports (``sport``, ``dport``) or identifier (``id``), all checksums made anew.

    A UDP checksum that is written down stays 0.
    """
    made = packet.copy()
    layer = made[IP] if IP in made else made[IPv6]
    if IP in made:
        layer.chksum = None
        layer.ttl -= lower_ttl
    else:
        layer.hlim -= lower_ttl
    for name in ("src", "dst"):
        if name in fields:
            setattr(layer, name, fields[name])
    for kind in (TCP, UDP, ICMP):
        if kind in made and made[kind].chksum != 0:
            made[kind].chksum = None
    transport = next((made[kind] for kind in (TCP, UDP) if kind in made), None)
    for name in ("sport", "dport"):
        if name in fields:
            assert transport is not None
            setattr(transport, name, fields[name])
    if "id" in fields:
        query = made[ICMP] if ICMP in made else _icmp6(made)
        query.id = fields["id"]
    return made


def _icmp6(packet: Packet) -> Packet:
    layer = packet
    while not isinstance(layer, _ICMPv6):
        layer = layer.payload
    return layer


def flow_of(packet: Packet, zone: int) -> Flow:
    """What the session of a packet is found by, read by scapy out of the bytes."""
    layer = packet[IP] if IP in packet else packet[IPv6]
    layer = layer.__class__(bytes(layer))
    protocol = layer.proto if IP in packet else layer.nh
    ports = (0, 0)
    if protocol in (6, 17):
        ports = (layer.payload.sport, layer.payload.dport)
    elif protocol in (1, 58) and getattr(layer.payload, "id", None) is not None:
        ports = (layer.payload.id, layer.payload.id)
    return Flow(ip_address(layer.src), ip_address(layer.dst), *ports, protocol, zone)


def described(frame: bytes | Packet) -> list[str]:
    """A frame for comparison: equal if and only if the bytes are, and readable where they are not."""
    raw = bytes(frame)
    return [*Ether(raw).show(dump=True).splitlines(), raw.hex()]


def assert_sound(frame: bytes) -> None:
    """Every checksum of a frame, and of the IP header in an ICMP error, is what scapy makes of its content."""
    packet = Ether(frame)
    layer = packet[IP] if IP in packet else packet[IPv6]
    made = layer.copy()
    node = made
    while node:
        if isinstance(node, IP | TCP | UDP | ICMP) and node.chksum != 0:
            node.chksum = None
        elif isinstance(node, _ICMPv6):
            node.cksum = None
        if isinstance(node, IPerror | IPerror6):
            break  # what follows is cut off
        node = node.payload
    assert bytes(made).hex() == bytes(layer).hex()


def pseudo_sum(packet: Packet) -> int:
    """What an unfinished checksum holds: the sum of the pseudo header of a TCP or UDP packet, not complemented."""
    layer = packet[IP] if IP in packet else packet[IPv6]
    layer = layer.__class__(bytes(layer))
    protocol = layer.proto if isinstance(layer, IP) else layer.nh
    length = len(bytes(layer.payload))
    words = ip_address(layer.src).packed + ip_address(layer.dst).packed + struct.pack("!HH", protocol, length)
    total = sum(struct.unpack(f"!{len(words) // 2}H", words))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def partial(packet: Packet) -> Packet:
    """An IP packet whose TCP or UDP checksum is left to hardware."""
    made = packet.copy()
    transport = made[TCP] if TCP in made else made[UDP]
    transport.chksum = pseudo_sum(packet)
    return made


def tcp(source: str, destination: str, dport: int = 80, flags: str = "S", ttl: int = 64, **fields: object) -> Packet:
    version = ip_address(source).version
    layer = ip_layer(version, src=source, dst=destination, ttl=ttl)
    return layer / TCP(sport=40000, dport=dport, flags=flags, seq=1000, **fields)


def udp(source: str, destination: str, dport: int = 5000, octets: int = 20, ttl: int = 64) -> Packet:
    version = ip_address(source).version
    return ip_layer(version, src=source, dst=destination, ttl=ttl) / UDP(sport=40000, dport=dport) / Raw(b"u" * octets)


def other(source: str, destination: str, protocol: int = 47) -> Packet:
    return ip_layer(ip_address(source).version, src=source, dst=destination, proto=protocol) / Raw(bytes(range(20)))


def echo(source: str, destination: str, *, reply: bool = False) -> Packet:
    version = ip_address(source).version
    layer = ip_layer(version, src=source, dst=destination)
    if version == 4:
        return layer / ICMP(type=0 if reply else 8, id=7700, seq=3) / Raw(b"ping")
    kind = ICMPv6EchoReply if reply else ICMPv6EchoRequest
    return layer / kind(id=7700, seq=3, data=b"ping")


def later(source: str, destination: str) -> Packet:
    """A fragment that is not the first."""
    if ip_address(source).version == 4:
        return IP(src=source, dst=destination, id=9, frag=3, proto=17) / Raw(b"\x11" * 24)
    return IPv6(src=source, dst=destination) / IPv6ExtHdrFragment(id=9, offset=3, nh=17) / Raw(b"\x11" * 24)


def answer(packet: Packet, port: Port, source: str, kind: str, mtu: int = 0) -> Packet:
    """The frame with an ICMP error about a packet that came in by a port."""
    if IP in packet:
        header = IP(src=source, dst=packet.src, ttl=64, id=0, flags="DF")
        error = {
            "host": ICMP(type=3, code=1),
            "prohibited": ICMP(type=3, code=13),
            "ttl": ICMP(type=11, code=0),
            "big": ICMP(type=3, code=4, nexthopmtu=mtu),
        }[kind]
        quoted = bytes(packet)[: packet.__class__(bytes(packet)).ihl * 4 + 8]
    else:
        header = IPv6(src=source, dst=packet.src, hlim=64)
        error = {
            "host": ICMPv6DestUnreach(code=0),
            "prohibited": ICMPv6DestUnreach(code=1),
            "ttl": ICMPv6TimeExceeded(code=0),
            "big": ICMPv6PacketTooBig(mtu=mtu),
            "source": ICMPv6ParamProblem(code=0, ptr=8),
            "destination": ICMPv6ParamProblem(code=0, ptr=24),
        }[kind]
        quoted = bytes(packet)[:1232]  # the error is not longer than 1280 bytes
    return port.sent(header / error / Raw(quoted))


def reset(packet: Packet, port: Port) -> Packet:
    """The frame with the RST for a TCP packet without payload."""
    segment = packet[TCP]
    header = ip_layer(4 if IP in packet else 6, src=packet.dst, dst=packet.src, ttl=64)
    if IP in packet:
        header.id, header.flags = 0, "DF"
    counted = ("S" in segment.flags) + ("F" in segment.flags)
    made = TCP(sport=segment.dport, dport=segment.sport, window=0, flags="R", seq=segment.ack)
    if "A" not in segment.flags:
        made.flags, made.seq, made.ack = "RA", 0, segment.seq + counted
    return port.sent(header / made)


def about(inner: Packet, source: str, destination: str) -> Packet:
    """Fragmentation needed, packet too big: an ICMP error that somebody sends about a packet."""
    if IP in inner:
        return IP(src=source, dst=destination) / ICMP(type=3, code=4, nexthopmtu=1300) / Raw(bytes(inner)[:28])
    return IPv6(src=source, dst=destination) / ICMPv6PacketTooBig(mtu=1300) / Raw(bytes(inner)[:48])


def routed(packet: Packet, out: Port, **fields: object) -> Packet:
    """The frame that XDP sends to the neighbour."""
    return out.sent(changed(packet, lower_ttl=True, **fields))
