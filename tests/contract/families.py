"""Tunnels and packets in all combinations of IP versions outside and inside."""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network

from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.ipsec import ESP, SecurityAssociation
from scapy.packet import Packet, Raw

from ipsec_gw.engines.port import Engine
from ipsec_gw.model.ids import Direction, IpAddress, SaKey, TunnelId
from ipsec_gw.model.objects import EngineSa, NextHop, Selector, Tunnel
from tests.contract.values import make_sa
from tests.contract.world import GATEWAY_MAC, WAN


@dataclass(frozen=True)
class Outside:
    """The tunnel's end points, and the gateway towards the peer."""

    local: IpAddress
    peer: IpAddress
    gateway: IpAddress

    @property
    def hop(self) -> NextHop:
        return NextHop(self.peer, self.local, WAN, self.gateway, GATEWAY_MAC)


@dataclass(frozen=True)
class Inside:
    """A selector, a host on either side, and an address that is in neither network."""

    selector: Selector
    here: str
    there: str
    stray: str

    @property
    def version(self) -> int:
        return self.selector.source.version


OUTSIDES = {
    4: Outside(ip_address("192.0.2.1"), ip_address("198.51.100.7"), ip_address("192.0.2.254")),
    # A gateway by its link-local address, as router advertisements and most protocols give it.
    6: Outside(ip_address("2001:db8:a::1"), ip_address("2001:db8:b::7"), ip_address("fe80::254")),
}
INSIDES = {
    4: Inside(Selector(ip_network("10.1.0.0/16"), ip_network("10.2.0.0/16")), "10.1.0.5", "10.2.0.9", "10.9.0.1"),
    6: Inside(Selector(ip_network("fd01::/48"), ip_network("fd02::/56")), "fd01::1:5", "fd02::9", "fd09::1"),
}


@dataclass(frozen=True)
class Site:
    """A tunnel that stands in an engine."""

    outside: Outside
    inbound: EngineSa
    outbound: EngineSa
    tunnel: Tunnel
    entering: SecurityAssociation
    leaving: SecurityAssociation

    @classmethod
    def of(cls, outside: Outside, inbound: EngineSa, outbound: EngineSa, tunnel: Tunnel) -> Site:
        """With the peer's side of both SAs."""
        return cls(outside, inbound, outbound, tunnel, oracle(inbound), oracle(outbound))

    def objects(self) -> dict[object, object]:
        return {obj.key: obj for obj in (self.outside.hop, self.inbound, self.outbound, self.tunnel)}


async def make_site(
    engine: Engine, outer: int, *inner: int, reqid: int = 7, selectors: tuple[Selector, ...] = ()
) -> Site:
    """One tunnel with the selectors of these IP versions, or with others."""
    outside = OUTSIDES[outer]
    incoming, outgoing = make_sa(Direction.IN), make_sa(Direction.OUT)
    incoming = replace(incoming, key=SaKey(outside.local, incoming.key.spi), source=outside.peer)
    outgoing = replace(outgoing, key=SaKey(outside.peer, outgoing.key.spi), source=outside.local)
    selectors = selectors or tuple(INSIDES[version].selector for version in inner)
    key = TunnelId(reqid, outside.peer)
    tunnel = Tunnel(key, outside.local, outside.peer, (incoming.key,), outgoing.key, selectors)
    for obj in (outside.hop, incoming, outgoing, tunnel):
        await engine.create(obj)
    return Site.of(outside, incoming, outgoing, tunnel)


def oracle(sa: EngineSa) -> SecurityAssociation:
    """The peer's side of an SA."""
    header = IP if sa.source.version == 4 else IPv6
    return SecurityAssociation(
        ESP,
        spi=sa.key.spi,
        crypt_algo="AES-GCM",
        crypt_key=sa.secret.reveal() + sa.salt.reveal(),
        tunnel_header=header(src=str(sa.source), dst=str(sa.key.destination)),
    )


def packet(source: str, destination: str, ident: int, *, ttl: int = 64, tos: int = 0, octets: int = 40) -> Packet:
    """A UDP packet told apart by its source port."""
    if ":" in source:
        head: Packet = IPv6(src=source, dst=destination, hlim=ttl, tc=tos, fl=0xABCDE)
    else:
        head = IP(src=source, dst=destination, ttl=ttl, tos=tos, id=ident)
    return type(head)(bytes(head / UDP(sport=ident, dport=2000) / Raw(b"p" * octets)))


def bytes_of(found: Packet) -> bytes:
    """The bytes of an IP packet, without the padding that short frames have."""
    length = found.plen + 40 if isinstance(found, IPv6) else found.len
    return bytes(found)[:length]


def ident_of(frame: Packet) -> int | None:
    """Which one of ours it is, None for any other."""
    return frame[UDP].sport if UDP in frame else None
