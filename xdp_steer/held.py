"""Frames that the guard held back while their SA changed hands."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from ipsec_gw.model.ids import SaKey
from xdp_steer import libbpf
from xdp_steer.layout import HeldFrameLeaf

_HEAD_BYTES = HeldFrameLeaf.frame.offset


@dataclass(frozen=True, slots=True)
class HeldFrame:
    """An Ethernet frame with ESP, as the kernel was about to send it, at ``seen_ns`` of CLOCK_MONOTONIC."""

    key: SaKey
    ifindex: int
    seen_ns: int
    frame: bytes

    @classmethod
    def of(cls, raw: bytes) -> HeldFrame:
        """Decode one record. Raises ValueError for a length that no record has."""
        if not _HEAD_BYTES < len(raw) <= ctypes.sizeof(HeldFrameLeaf):
            raise ValueError(f"a held frame of {len(raw)} bytes")
        leaf = HeldFrameLeaf.from_buffer_copy(raw.ljust(ctypes.sizeof(HeldFrameLeaf), b"\0"))
        return cls(leaf.key.key(), leaf.ifindex, leaf.seen_ns, raw[_HEAD_BYTES:])


class HeldReader:
    """Reads the ring buffer map behind ``fd``, which stays the caller's; nobody else may read it meanwhile.

    For asyncio: ``loop.add_reader(reader, callback)``. Raises OSError if the map is no ring.
    """

    def __init__(self, fd: int) -> None:
        self._ring = libbpf.RingBuffer(fd)

    def fileno(self) -> int:
        """Readable while there are frames."""
        return self._ring.fileno()

    def read(self, limit: int = 1024) -> tuple[HeldFrame, ...]:
        """Up to ``limit`` frames, oldest first; never waits. Records of another version's programs are left out."""
        found = []
        for raw in self._ring.consume(limit):
            try:
                found.append(HeldFrame.of(raw))
            except ValueError:
                continue
        return tuple(found)

    def close(self) -> None:
        """Give the ring back."""
        self._ring.close()
