"""The objects that the contract is tested with, and the independent ESP: scapy's."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network

from scapy.layers.inet import IP, UDP
from scapy.layers.ipsec import ESP, SecurityAssociation
from scapy.packet import Packet, Raw

from ipsec_gw.engines.port import Engine
from ipsec_gw.model.algorithms import AES_GCM_128, CHACHA20_POLY1305, EspAlgorithm
from ipsec_gw.model.ids import Direction, SaKey, TunnelId
from ipsec_gw.model.objects import EngineSa, NextHop, Selector, Tunnel, UdpEncap
from ipsec_gw.model.secret import Secret
from tests.contract.world import GATEWAY_MAC, WAN

LOCAL = ip_address("192.0.2.1")
PEER = ip_address("198.51.100.7")
GATEWAY = ip_address("192.0.2.254")
LAN = ip_network("10.1.0.0/16")
REMOTE = ip_network("10.2.0.0/16")
HERE = "10.1.0.5"
THERE = "10.2.0.9"
HOP = NextHop(key=PEER, local=LOCAL, interface=WAN, gateway=GATEWAY, mac=GATEWAY_MAC)
TUNNEL_ID = TunnelId(reqid=7, remote=PEER)
SELECTORS = (Selector(LAN, REMOTE),)

_spis = itertools.count(0xC0000001)
_keys = itertools.count(1)


def secret(length: int) -> Secret:
    """Bytes that no other call gave out and that differ from their own reversal."""
    return Secret((next(_keys).to_bytes(2, "big") * 16)[: length - 1] + bytes([length]))


def make_sa(
    direction: Direction, algorithm: EspAlgorithm = AES_GCM_128, window: int = 64, esn: bool = False
) -> EngineSa:
    """An SA with an SPI and keys of its own."""
    source, destination = (PEER, LOCAL) if direction is Direction.IN else (LOCAL, PEER)
    return EngineSa(
        key=SaKey(destination, next(_spis)),
        direction=direction,
        source=source,
        algorithm=algorithm,
        secret=secret(algorithm.key_bytes),
        salt=Secret(next(_keys).to_bytes(4, "big")),
        esn=esn,
        replay_window=window,
    )


def encapsulated(sa: EngineSa, port: int, ours: int = 4500) -> EngineSa:
    """The same SA in UDP, its peer at this port."""
    ports = UdpEncap(port, ours) if sa.direction is Direction.IN else UdpEncap(ours, port)
    return replace(sa, encap=ports)


def oracle(sa: EngineSa) -> SecurityAssociation:
    """The peer's side of an SA."""
    name = "CHACHA20-POLY1305" if sa.algorithm == CHACHA20_POLY1305 else "AES-GCM"
    return SecurityAssociation(
        ESP,
        spi=sa.key.spi,
        crypt_algo=name,
        crypt_key=sa.secret.reveal() + sa.salt.reveal(),
        tunnel_header=IP(src=str(sa.source), dst=str(sa.key.destination)),
        esn_en=sa.esn,
        nat_t_header=UDP(sport=sa.encap.source_port, dport=sa.encap.destination_port) if sa.encap else None,
    )


def inbound_packet(ident: int, **fields: object) -> IP:
    """A packet of the remote LAN, told apart by its IP identification."""
    return IP(bytes(IP(src=THERE, dst=HERE, id=ident, **fields) / UDP(sport=1000, dport=2000) / Raw(b"in" * 20)))


def outbound_packet(ident: int, **fields: object) -> IP:
    """A packet of our LAN."""
    return IP(bytes(IP(src=HERE, dst=THERE, id=ident, **fields) / UDP(sport=2000, dport=1000) / Raw(b"out" * 15)))


def resolved(packet: Packet) -> Packet:
    """The packet as it is on the wire: lengths and checksums filled in."""
    return type(packet)(bytes(packet))


def inner(frame_or_packet: Packet) -> bytes:
    """The bytes of the IP packet, without the padding that short frames have."""
    packet = frame_or_packet[IP]
    return bytes(packet)[: packet.len]


@dataclass(frozen=True)
class Site:
    """A tunnel that stands in an engine."""

    inbound: EngineSa
    outbound: EngineSa
    tunnel: Tunnel


async def make_site(engine: Engine, algorithm: EspAlgorithm = AES_GCM_128, window: int = 64, esn: bool = False) -> Site:
    """One tunnel between the two LANs, created in the port's order."""
    incoming = make_sa(Direction.IN, algorithm, window, esn)
    outgoing = make_sa(Direction.OUT, algorithm, window, esn)
    tunnel = Tunnel(TUNNEL_ID, LOCAL, PEER, (incoming.key,), outgoing.key, SELECTORS)
    for obj in (HOP, incoming, outgoing, tunnel):
        await engine.create(obj)
    return Site(incoming, outgoing, tunnel)
