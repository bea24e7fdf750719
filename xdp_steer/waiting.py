"""Packets that the guard has held back, out of their ring buffer: ESP that the kernel encrypted and nobody has sent."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from ipsec_gw.model.ids import SaKey
from xdp_steer import libbpf
from xdp_steer.layout import WaitingLeaf

_RECORD_BYTES = ctypes.sizeof(WaitingLeaf)
_FRAME_OFFSET = WaitingLeaf.frame.offset


@dataclass(frozen=True, slots=True)
class WaitingPacket:
    """``frame`` was to leave by the interface with that index, ``seen_ns`` is CLOCK_MONOTONIC. Its IP header begins at
    ``l3`` (0: the interface has no Ethernet), ESP at ``esp``.
    """

    key: SaKey
    seen_ns: int
    ifindex: int
    l3: int
    esp: int
    frame: bytes

    @classmethod
    def of(cls, raw: bytes) -> WaitingPacket:
        """Decode one record. Raises ValueError for one of another version of the guard."""
        if len(raw) != _RECORD_BYTES:
            raise ValueError(f"a waiting packet of {len(raw)} bytes, expected {_RECORD_BYTES}")
        leaf = WaitingLeaf.from_buffer_copy(raw)
        frame = raw[_FRAME_OFFSET : _FRAME_OFFSET + leaf.length]
        if not leaf.l3 < leaf.esp < len(frame) == leaf.length:
            raise ValueError(f"a waiting packet of {leaf.length} bytes, IP at {leaf.l3}, ESP at {leaf.esp}")
        return cls(leaf.key.key(), leaf.seen_ns, leaf.ifindex, leaf.l3, leaf.esp, frame)


class WaitingReader:
    """Reads the ring buffer map behind ``fd``, which stays the caller's; nobody else may read it meanwhile.

    For asyncio: ``loop.add_reader(reader, callback)``; it stays readable until everything is read. Raises OSError if
    the map is no ring.
    """

    def __init__(self, fd: int) -> None:
        self._ring = libbpf.RingBuffer(fd)

    def fileno(self) -> int:
        """Readable while packets wait."""
        return self._ring.fileno()

    def read(self, limit: int = 1024) -> list[WaitingPacket]:
        """Up to ``limit`` packets in their order, without what cannot be decoded; never waits."""
        packets = []
        for raw in self._ring.consume(limit):
            try:
                packets.append(WaitingPacket.of(raw))
            except ValueError:
                continue
        return packets

    def close(self) -> None:
        """Give the ring back. What was not read stays in it."""
        self._ring.close()
