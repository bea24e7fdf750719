"""Identities shared by strongSwan, the kernel, XDP and the engines."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

IpAddress = IPv4Address | IPv6Address
IpNetwork = IPv4Network | IPv6Network


class Direction(StrEnum):
    """Of an SA as this gateway sees it."""

    IN = "in"
    OUT = "out"


class EngineName(StrEnum):
    """Who does the ESP work of an SA."""

    VPP = "vpp"
    SOFT = "soft"
    KERNEL = "kernel"


@dataclass(frozen=True, slots=True, order=True)
class SaKey:
    """What RFC 4301 §4.1 makes an SA unique by on the wire: outer destination and SPI (host order)."""

    destination: IpAddress
    spi: int

    def __hash__(self) -> int:
        """As quick as it can be: with many SAs, looking them up is most of the work, and an address hashes slowly."""
        return hash((int(self.destination), self.spi))

    def __str__(self) -> str:
        return f"{self.destination}/{self.spi:08x}"


@dataclass(frozen=True, slots=True, order=True)
class TunnelId:
    """One CHILD_SA lineage: its reqid survives every rekey. ``remote`` keeps reused reqids apart."""

    reqid: int
    remote: IpAddress

    def __str__(self) -> str:
        return f"{self.remote}#{self.reqid}"
