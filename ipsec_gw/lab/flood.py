"""Many frames at a pace: sendmmsg(2) on a packet socket, from templates laid out once."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from ipsec_gw.errors import IpsecGwError
from ipsec_gw.lab.netns import inside
from ipsec_gw.lab.process import every_processor

SOL_PACKET, PACKET_QDISC_BYPASS = 263, 20
"""``linux/if_packet.h``"""

BATCH = 256
"""Frames of one call: what a veth's ring holds (``VETH_RING_SIZE``)."""

_libc = ctypes.CDLL(None, use_errno=True)


class _Vector(ctypes.Structure):
    """``struct iovec``"""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Head(ctypes.Structure):
    """``struct msghdr``"""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint32),
        ("vectors", ctypes.POINTER(_Vector)),
        ("vector_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Message(ctypes.Structure):
    """``struct mmsghdr``"""

    _fields_ = (("head", _Head), ("sent", ctypes.c_uint))


@dataclass(frozen=True, slots=True)
class Flooded:
    """How many frames the interface took, in how many seconds."""

    sent: int
    seconds: float

    @property
    def rate(self) -> float:
        """Frames per second."""
        return self.sent / self.seconds if self.seconds else 0.0


class Sender:
    """A packet socket on an interface and the frames that it sends over and over, in their order."""

    def __init__(self, namespace: str, interface: str, frames: Sequence[bytes]) -> None:
        with inside(namespace):
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._socket.setsockopt(SOL_PACKET, PACKET_QDISC_BYPASS, 1)
        self._socket.bind((interface, 0))
        self._count, self._next = len(frames), 0
        self._data = [ctypes.create_string_buffer(frame, len(frame)) for frame in frames]
        places = ((ctypes.addressof(data), len(data)) for data in self._data)
        self._vectors = (_Vector * self._count)(*(_Vector(*place) for place in places))
        self._messages = (_Message * self._count)()
        for message, vector in zip(self._messages, self._vectors, strict=True):
            message.head.vectors, message.head.vector_count = ctypes.pointer(vector), 1

    def send(self, frames: int) -> int:
        """Send so many at most, :data:`BATCH` and the end of the templates permitting; returns how many were taken."""
        wanted = min(frames, BATCH, self._count - self._next)
        first = ctypes.byref(self._messages, self._next * ctypes.sizeof(_Message))
        sent: int = _libc.sendmmsg(self._socket.fileno(), first, wanted, 0)
        if sent < 0:
            code = ctypes.get_errno()
            if code in (errno.ENOBUFS, errno.EAGAIN, errno.EINTR):
                return 0  # the ring at the other end is full
            raise IpsecGwError(f"frames cannot be sent: {os.strerror(code)}")
        self._next = (self._next + sent) % self._count
        return sent

    def rewind(self) -> None:
        """The next frame is the first one."""
        self._next = 0

    def close(self) -> None:
        """Give the socket back."""
        self._socket.close()


def flood(sender: Sender, frames: int, rate: float, stop: threading.Event) -> Flooded:
    """Send ``frames`` at ``rate`` per second, or as fast as it goes, until done or told to stop. Blocks: use a thread.

    The calling thread leaves the first processor to the rest of the lab, if there are others.
    """
    others = every_processor() - {min(every_processor())}
    os.sched_setaffinity(0, others or every_processor())
    sent, started = 0, time.monotonic()
    while sent < frames and not stop.is_set():
        due = min(frames, int((time.monotonic() - started) * rate) + 1)
        if sent >= due:
            time.sleep(BATCH / rate / 2)
            continue
        sent += sender.send(due - sent)
    return Flooded(sent, time.monotonic() - started)


@asynccontextmanager
async def flooding(sender: Sender, frames: int, rate: float) -> AsyncIterator[asyncio.Task[Flooded]]:
    """A flood as :func:`flood` makes it, meanwhile: it ends with the block, unless the block waits for the task."""
    stop = threading.Event()
    task = asyncio.create_task(asyncio.to_thread(flood, sender, frames, rate, stop))
    try:
        yield task
    finally:
        stop.set()
        await asyncio.gather(task, return_exceptions=True)
        sender.close()


def dropped(namespace: str, interface: str) -> int:
    """Frames that an interface has dropped, received and sent ones (``/proc/net/dev``)."""
    with inside(namespace):
        lines = Path("/proc/thread-self/net/dev").read_text().splitlines()
    for line in lines:
        name, _, numbers = line.partition(":")
        if name.strip() == interface:
            fields = numbers.split()
            return int(fields[3]) + int(fields[11])
    raise IpsecGwError(f"{namespace} has no interface {interface}")
