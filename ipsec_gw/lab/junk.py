"""Junk as the internet sends it to a firewall: forged packets, each with the reason to drop it. Pure.

Sources are nobody's (RFC 2544, RFC 5180).
"""

from __future__ import annotations

import random
import struct
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Network

from ipsec_gw.lab.capture import IPPROTO_UDP
from ipsec_gw.lab.packets import icmp4, ipv4, tcp4, udp4

SOURCES, SOURCES6 = IPv4Network("198.18.0.0/15"), IPv6Network("2001:2::/48")
FIN, SYN, RST, PUSH, ACK = 0x01, 0x02, 0x04, 0x08, 0x10
NOT_SYN = (ACK, FIN | ACK, RST, PUSH | ACK, SYN | ACK)
UNREACHABLE, ECHO_REPLY, ECHO, EXCEEDED = 3, 0, 8, 11
IPV4_TYPE, IPV6_TYPE = b"\x08\x00", b"\x86\xdd"
MORE_BEYOND = 0x2000 | 185
"""A fragment from the middle of a packet."""


@dataclass(frozen=True, slots=True)
class Link:
    """Between a router that forwards forged packets and the firewall."""

    from_mac: bytes
    to_mac: bytes


def frame(link: Link, packet: bytes) -> bytes:
    """An IP packet on its way to the firewall."""
    return link.to_mac + link.from_mac + (IPV4_TYPE if packet[0] >> 4 == 4 else IPV6_TYPE) + packet


@dataclass(frozen=True, slots=True)
class Junk:
    """A frame, and the verdict of `show status` that it must get."""

    frame: bytes
    verdict: str


@dataclass(frozen=True, slots=True)
class Aim:
    """Where junk goes: by which link, the firewall's own address, a network behind it, and ports to leave alone."""

    link: Link
    own: IPv4Address
    behind: IPv4Network
    spared: frozenset[int]


def templates(aim: Aim, count: int, seed: int) -> tuple[Junk, ...]:
    """So many frames, of all kinds in turn; the same for the same seed."""
    chance = random.Random(seed)  # noqa: S311 - repeatable, not secret
    made = []
    for number in range(count):
        make, verdict = KINDS[number % len(KINDS)]
        made.append(Junk(frame(aim.link, make(aim, chance)), verdict))
    return tuple(made)


def verdicts(junk: Sequence[Junk], sent: int) -> Counter[str]:
    """What must be counted when ``sent`` frames went out, the templates over and over."""
    whole, rest = divmod(sent, len(junk))
    counted = Counter(one.verdict for one in junk[:rest])
    for verdict, often in Counter(one.verdict for one in junk).items():
        counted[verdict] += whole * often
    return counted


def _source(chance: random.Random) -> IPv4Address:
    return SOURCES[chance.randrange(1, SOURCES.num_addresses - 1)]


def _behind(aim: Aim, chance: random.Random) -> IPv4Address:
    return aim.behind[chance.randrange(2, aim.behind.num_addresses - 1)]


def _anywhere(aim: Aim, chance: random.Random) -> IPv4Address:
    return aim.own if chance.randrange(2) else _behind(aim, chance)


def _port(aim: Aim, chance: random.Random) -> int:
    while (port := chance.randrange(1, 1 << 16)) in aim.spared:
        pass
    return port


def _udp(aim: Aim, chance: random.Random) -> bytes:
    ends = _source(chance), _port(aim, chance), _anywhere(aim, chance), _port(aim, chance)
    return udp4(*ends, chance.randbytes(chance.randrange(64)))


def _syn(aim: Aim, chance: random.Random) -> bytes:
    return tcp4(_source(chance), _port(aim, chance), _anywhere(aim, chance), _port(aim, chance), SYN)


def _not_syn(aim: Aim, chance: random.Random) -> bytes:
    ends = _source(chance), _port(aim, chance), _anywhere(aim, chance), _port(aim, chance)
    return tcp4(*ends, chance.choice(NOT_SYN))


def _echo(aim: Aim, chance: random.Random) -> bytes:
    return icmp4(_source(chance), _anywhere(aim, chance), ECHO, 0, chance.randbytes(12))


def _reply(aim: Aim, chance: random.Random) -> bytes:
    return icmp4(_source(chance), _anywhere(aim, chance), ECHO_REPLY, 0, chance.randbytes(12))


def _error(aim: Aim, chance: random.Random) -> bytes:
    """About a packet that nobody sent."""
    about = udp4(aim.own, _port(aim, chance), _source(chance), _port(aim, chance), b"")
    return icmp4(_source(chance), aim.own, chance.choice((UNREACHABLE, EXCEEDED)), 0, bytes(4) + about)


def _fragment(aim: Aim, chance: random.Random) -> bytes:
    return ipv4(_source(chance), _behind(aim, chance), IPPROTO_UDP, chance.randbytes(32), MORE_BEYOND)


def _malformed(aim: Aim, chance: random.Random) -> bytes:
    """The header promises more than there is."""
    packet = _udp(aim, chance)
    return packet[:2] + struct.pack(">H", len(packet) + 1000) + packet[4:]


KINDS: tuple[tuple[Callable[[Aim, random.Random], bytes], str], ...] = (
    (_udp, "default-deny"),
    (_syn, "default-deny"),
    (_not_syn, "tcp-not-syn"),
    (_echo, "default-deny"),
    (_reply, "icmp-unsolicited"),
    (_error, "icmp-no-session"),
    (_fragment, "fragment-unknown"),
    (_malformed, "malformed"),
)
"""How a kind is made, and the verdict on it."""
