"""Fragments of IPv4 and IPv6 packets become whole again: transport mode protects whole packets (RFC 4303 §3.1.1), and
of what hosts say to each other a port may tell which SA has it.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from ipsec_gw.engines.soft.drops import Dropped, DropReason
from ipsec_gw.engines.soft.packets import IpPacket, parse_ipv4, parse_ipv6, with_payload

SECONDS = 5.0
"""How long the pieces of one packet may take: they come from this machine."""

MOST = 64
"""Packets that are put together at a time: the oldest has to go for one more."""

_LONGEST = 0xFFFF
_UNIT = 8  # bytes: what offsets are counted in
_OFFSET_MASK, _MORE4 = 0x1FFF, 0x2000
_MORE6 = 1
_FRAGMENT6 = struct.Struct("!BxHI")
"""RFC 8200 §4.5: next header, offset in units of eight bytes and the M flag, identification."""


@dataclass(frozen=True, slots=True)
class _Piece:
    key: tuple[bytes, bytes, int, int]
    protocol: int
    offset: int
    last: bool
    data: bytes


@dataclass(slots=True)
class _Begun:
    since: float
    pieces: dict[int, _Piece] = field(default_factory=dict)
    first: IpPacket | None = None


class Reassembly:
    """Packets that have not come in all their pieces yet. Pieces that overlap make their packet never whole."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._begun: dict[tuple[bytes, bytes, int, int], _Begun] = {}

    def add(self, fragment: IpPacket) -> IpPacket | None:
        """The whole packet if this was its last missing piece. Raises Dropped (malformed)."""
        piece = _piece4(fragment) if _is_ipv4(fragment) else _piece6(fragment)
        self._make_room()
        begun = self._begun.setdefault(piece.key, _Begun(self._clock()))
        begun.pieces[piece.offset] = piece
        if piece.offset == 0:
            begun.first = fragment
        payload = _payload(begun)
        if payload is None or begun.first is None:
            return None
        del self._begun[piece.key]
        return _whole(begun.first, begun.pieces[0].protocol, payload)

    def _make_room(self) -> None:
        oldest = self._clock() - SECONDS
        for key in [key for key, begun in self._begun.items() if begun.since < oldest]:
            del self._begun[key]
        while len(self._begun) >= MOST:
            del self._begun[next(iter(self._begun))]


def _piece4(fragment: IpPacket) -> _Piece:
    identification, flags = struct.unpack_from("!HH", fragment.data, 4)
    key = (fragment.source, fragment.destination, fragment.protocol, identification)
    offset = (flags & _OFFSET_MASK) * _UNIT
    return _checked(_Piece(key, fragment.protocol, offset, not flags & _MORE4, fragment.payload))


def _piece6(fragment: IpPacket) -> _Piece:
    if len(fragment.payload) < _FRAGMENT6.size:
        raise Dropped(DropReason.MALFORMED)
    protocol, place, identification = _FRAGMENT6.unpack_from(fragment.payload)
    key = (fragment.source, fragment.destination, protocol, identification)
    data = fragment.payload[_FRAGMENT6.size :]
    return _checked(_Piece(key, protocol, place & ~(_UNIT - 1), not place & _MORE6, data))


def _checked(piece: _Piece) -> _Piece:
    if piece.offset + len(piece.data) > _LONGEST or (not piece.last and len(piece.data) % _UNIT):
        raise Dropped(DropReason.MALFORMED)
    return piece


def _payload(begun: _Begun) -> bytes | None:
    """What the pieces hold, None while one is missing."""
    payload = b""
    for offset in sorted(begun.pieces):
        if offset != len(payload):
            return None
        payload += begun.pieces[offset].data
        if begun.pieces[offset].last:
            return payload
    return None


def _whole(first: IpPacket, protocol: int, payload: bytes) -> IpPacket:
    """The first piece's header in front of all of it."""
    if len(payload) + first.header_bytes > _LONGEST:
        raise Dropped(DropReason.MALFORMED)
    if not _is_ipv4(first):
        return parse_ipv6(with_payload(first, protocol, payload))
    unfragmented = replace(first, data=first.data[:6] + bytes(2) + first.data[8:])
    return parse_ipv4(with_payload(unfragmented, protocol, payload))


def _is_ipv4(packet: IpPacket) -> bool:
    return packet.data[0] >> 4 == 4
