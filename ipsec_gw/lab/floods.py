"""Floods from nobody: frames of one kind, each from another forged source. Pure."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv6Address

from ipsec_gw.lab.junk import ECHO, SOURCES, SOURCES6, SYN, Link, frame
from ipsec_gw.lab.packets import Address, icmp4, tcp4, tcp6, udp4

DATA = b"flood" * 4


def syns(link: Link, victims: Sequence[Address], port: int, count: int, seed: int) -> list[bytes]:
    """TCP SYNs to a port of some hosts in turn, of either family."""

    def syn(ends: tuple[Address, Address], source_port: int) -> bytes:
        source, victim = ends
        return (tcp4 if victim.version == 4 else tcp6)(source, source_port, victim, port, SYN)

    return _frames(link, victims, count, seed, syn)


def datagrams(link: Link, victim: IPv4Address, port: int, count: int, seed: int) -> list[bytes]:
    """UDP to a port of a host."""
    return _frames(link, [victim], count, seed, lambda ends, other: udp4(ends[0], other, ends[1], port, DATA))


def echoes(link: Link, victim: IPv4Address, count: int, seed: int) -> list[bytes]:
    """Pings of a host."""

    def ping(ends: tuple[Address, Address], identifier: int) -> bytes:
        return icmp4(*ends, ECHO, 0, identifier.to_bytes(2, "big") + bytes(2) + DATA)

    return _frames(link, [victim], count, seed, ping)


def from_nobody(address: Address) -> bool:
    """Whether it is one of the forged sources."""
    return address in (SOURCES if address.version == 4 else SOURCES6)


def _frames(
    link: Link,
    victims: Sequence[Address],
    count: int,
    seed: int,
    make: Callable[[tuple[Address, Address], int], bytes],
) -> list[bytes]:
    chance = random.Random(seed)  # noqa: S311 - repeatable, not secret
    made = []
    for number in range(count):
        victim = victims[number % len(victims)]
        source = _source(chance, six=victim.version == 6)
        made.append(frame(link, make((source, victim), chance.randrange(1024, 1 << 16))))
    return made


def _source(chance: random.Random, *, six: bool) -> Address:
    if six:
        return IPv6Address(int(SOURCES6.network_address) + chance.randrange(1, 1 << 64))
    return SOURCES[chance.randrange(1, SOURCES.num_addresses - 1)]
