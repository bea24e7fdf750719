"""Copies of frames that filters mirror: out of the ring, and out by their interface."""

from __future__ import annotations

import ctypes
import socket
from collections.abc import Callable

from xdp_steer import libbpf
from xdp_steer.events import lost_events
from xdp_steer.filter_layout import CopyLeaf

_BATCH = 256
_PROTO_NONE = 0
"""A packet socket of it receives nothing."""


class Mirror:
    """Sends the copies in the ring buffer map ``copies``, in the network namespace of the thread that makes it.

    For asyncio: ``loop.add_reader(mirror, mirror.send)``. The descriptors stay the caller's; nobody else may read the
    ring meanwhile. Raises OSError (no ring, no packet sockets).
    """

    def __init__(self, copies: int, lost: int) -> None:
        self._ring = libbpf.RingBuffer(copies)
        self._lost: Callable[[], int] = lambda: lost_events(lost)
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, _PROTO_NONE)
        self.unsent = 0
        """Copies that their interface did not take: it is gone, down, or its queue is full."""

    def fileno(self) -> int:
        """Readable while there are copies."""
        return self._ring.fileno()

    def send(self) -> int:
        """Send what is there, a batch at most. Returns how many copies."""
        sent = 0
        for raw in self._ring.consume(_BATCH):
            copy = CopyLeaf.from_buffer_copy(raw)
            try:
                name = socket.if_indextoname(copy.ifindex)
                self._socket.sendto(ctypes.string_at(copy.frame, copy.length), (name, _PROTO_NONE))
                sent += 1
            except OSError:
                self.unsent += 1
        return sent

    def lost(self) -> int:
        """Copies that the datapath had no room for, or that could not be sent."""
        return self._lost() + self.unsent

    def close(self) -> None:
        """Give the ring back."""
        self._ring.close()
        self._socket.close()
