"""An AF_XDP socket in plain Python: ctypes and mmap, one queue, copy mode is good enough.

For the soft engine and for tests; VPP brings its own sockets. Numbers and structures are those of
``linux/if_xdp.h``. The socket owns its memory: the first half of the frames receives, the second half sends.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import socket
import sys
import time
from collections.abc import Sequence

from ipsec_gw.errors import EnvironmentMissing, SteeringError
from xdp_steer import libbpf

AF_XDP = 44
SOL_XDP = 283
XDP_MMAP_OFFSETS = 1
XDP_RX_RING = 2
XDP_TX_RING = 3
XDP_UMEM_REG = 4
XDP_UMEM_FILL_RING = 5
XDP_UMEM_COMPLETION_RING = 6

PGOFF_RX = 0
PGOFF_TX = 0x80000000
PGOFF_FILL = 0x100000000
PGOFF_COMPLETION = 0x180000000

_U32_MASK = 0xFFFFFFFF
_DESCRIPTOR_BYTES = 16  # struct xdp_desc {u64 addr; u32 len; u32 options}
_ADDRESS_BYTES = 8
_KICKS = 4
"""Attempts to make the kernel take what is on the transmit ring, per batch of 32 that one sendto moves."""
_KERNEL_BATCH = 32
"""TX_BATCH_SIZE of net/xdp/xsk.c: sendto in copy mode moves that many and then says EAGAIN."""
_QUEUE_RELEASE = 0.5
"""Seconds to wait for a busy queue: the kernel gives a closed socket's queue back by a worker after an RCU period,
measured 16 ms later."""
_QUEUE_RETRY = 0.002
_TRANSIENT = frozenset({errno.EAGAIN, errno.EBUSY, errno.ENOBUFS, errno.ENETDOWN})

_libc = ctypes.CDLL(None, use_errno=True)


class _RingOffset(ctypes.Structure):
    _fields_ = (
        ("producer", ctypes.c_uint64),
        ("consumer", ctypes.c_uint64),
        ("desc", ctypes.c_uint64),
        ("flags", ctypes.c_uint64),
    )


class _MmapOffsets(ctypes.Structure):
    _fields_ = (("rx", _RingOffset), ("tx", _RingOffset), ("fill", _RingOffset), ("completion", _RingOffset))


class _UmemReg(ctypes.Structure):
    """The layout up to Linux 6.7; later kernels accept the shorter structure."""

    _fields_ = (
        ("addr", ctypes.c_uint64),
        ("len", ctypes.c_uint64),
        ("chunk_size", ctypes.c_uint32),
        ("headroom", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
    )


class _SockaddrXdp(ctypes.Structure):
    _fields_ = (
        ("family", ctypes.c_uint16),
        ("flags", ctypes.c_uint16),
        ("ifindex", ctypes.c_uint32),
        ("queue_id", ctypes.c_uint32),
        ("shared_umem_fd", ctypes.c_uint32),
    )


class _Ring:
    """One of the four rings. ``size`` is a power of two; producer and consumer run freely modulo 2^32."""

    def __init__(self, fd: int, page_offset: int, offsets: _RingOffset, size: int, entry_bytes: int) -> None:
        self._map = mmap.mmap(fd, offsets.desc + size * entry_bytes, mmap.MAP_SHARED, offset=page_offset)
        self._producer = ctypes.c_uint32.from_buffer(self._map, offsets.producer)
        self._consumer = ctypes.c_uint32.from_buffer(self._map, offsets.consumer)
        words = entry_bytes // _ADDRESS_BYTES
        self._entries = (ctypes.c_uint64 * (size * words)).from_buffer(self._map, offsets.desc)
        self._words = words
        self._size = size

    @property
    def filled(self) -> int:
        return (self._producer.value - self._consumer.value) & _U32_MASK

    @property
    def room(self) -> int:
        return self._size - self.filled

    def put(self, entries: Sequence[list[int]]) -> None:
        """Write entries (their 64-bit words) and publish them. The caller checked :attr:`room`."""
        producer = self._producer.value
        for position, entry in enumerate(entries, start=producer):
            first = (position & (self._size - 1)) * self._words
            self._entries[first : first + self._words] = [*entry]
        self._producer.value = (producer + len(entries)) & _U32_MASK

    def take(self, budget: int) -> list[list[int]]:
        """Up to ``budget`` entries as their words. They stay readable until the kernel is given them again."""
        consumer = self._consumer.value
        count = min(budget, self.filled)
        taken = []
        for position in range(consumer, consumer + count):
            first = (position & (self._size - 1)) * self._words
            taken.append(self._entries[first : first + self._words])
        self._consumer.value = (consumer + count) & _U32_MASK
        return taken

    def close(self) -> None:
        del self._producer, self._consumer, self._entries
        self._map.close()


class XskSocket:
    """An AF_XDP socket bound to one queue of one interface of the current network namespace.

    ``frames`` (a power of two) of ``frame_size`` bytes (2048 or 4096) are shared half and half by both directions.
    Waits up to half a second for a queue that the kernel has not given back yet. Raises EnvironmentMissing for an
    unknown interface and SteeringError when the kernel refuses (no AF_XDP, queue taken by another socket, no such
    queue).
    """

    def __init__(self, interface: str, queue: int = 0, *, frames: int = 4096, frame_size: int = 2048) -> None:
        if frames < 4 or frames & (frames - 1):
            raise SteeringError(f"an AF_XDP socket with {frames} frames is impossible - use a power of two")
        self.interface = interface
        self.queue = queue
        self._frame_size = frame_size
        self._half = frames // 2
        self._rings: list[_Ring] = []
        try:
            ifindex = socket.if_nametoindex(interface)
        except OSError as error:
            raise EnvironmentMissing(f"interface {interface} does not exist - check `ip link`") from error
        try:
            self._socket = socket.socket(AF_XDP, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        except OSError as error:
            raise SteeringError(
                f"no AF_XDP socket for {interface} ({error.strerror}) - needs CAP_NET_RAW and CONFIG_XDP_SOCKETS"
            ) from error
        self._umem = mmap.mmap(-1, frames * frame_size)
        try:
            self._register(frames)
            self._map_rings()
            self._bind(ifindex)
        except OSError as error:
            self.close()
            raise SteeringError(
                f"AF_XDP socket on {interface} queue {queue} refused ({error.strerror}) - "
                "check that no other engine holds the queue"
            ) from error
        self._free = [(self._half + n) * frame_size for n in range(self._half)]
        self._fill.put([[n * frame_size] for n in range(self._half)])

    def _register(self, frames: int) -> None:
        anchor = ctypes.c_char.from_buffer(self._umem)
        registration = _UmemReg(
            addr=ctypes.addressof(anchor), len=frames * self._frame_size, chunk_size=self._frame_size
        )
        del anchor  # the mapping stays where it is; the reference would keep it from being closed
        self._socket.setsockopt(SOL_XDP, XDP_UMEM_REG, bytes(registration))
        size = self._half.to_bytes(4, sys.byteorder)
        for option in (XDP_UMEM_FILL_RING, XDP_UMEM_COMPLETION_RING, XDP_RX_RING, XDP_TX_RING):
            self._socket.setsockopt(SOL_XDP, option, size)

    def _map_rings(self) -> None:
        raw = self._socket.getsockopt(SOL_XDP, XDP_MMAP_OFFSETS, ctypes.sizeof(_MmapOffsets))
        if len(raw) != ctypes.sizeof(_MmapOffsets):
            raise OSError(errno.EOPNOTSUPP, "the kernel's AF_XDP is older than 5.4")
        offsets = _MmapOffsets.from_buffer_copy(raw)
        fd = self._socket.fileno()
        self._rx = _Ring(fd, PGOFF_RX, offsets.rx, self._half, _DESCRIPTOR_BYTES)
        self._rings.append(self._rx)
        self._tx = _Ring(fd, PGOFF_TX, offsets.tx, self._half, _DESCRIPTOR_BYTES)
        self._rings.append(self._tx)
        self._fill = _Ring(fd, PGOFF_FILL, offsets.fill, self._half, _ADDRESS_BYTES)
        self._rings.append(self._fill)
        self._completion = _Ring(fd, PGOFF_COMPLETION, offsets.completion, self._half, _ADDRESS_BYTES)
        self._rings.append(self._completion)

    def _bind(self, ifindex: int) -> None:
        address = _SockaddrXdp(family=AF_XDP, flags=0, ifindex=ifindex, queue_id=self.queue)
        deadline = time.monotonic() + _QUEUE_RELEASE
        while _libc.bind(self._socket.fileno(), ctypes.byref(address), ctypes.sizeof(address)):
            code = ctypes.get_errno()
            if code != errno.EBUSY or time.monotonic() > deadline:
                raise OSError(code, os.strerror(code))
            time.sleep(_QUEUE_RETRY)

    def fileno(self) -> int:
        """For ``loop.add_reader`` and poll: readable when packets wait."""
        return self._socket.fileno()

    def enter(self, xsks_map_fd: int) -> None:
        """Put this socket into an XSKMAP at its queue. The kernel takes it out when the socket is closed.

        Raises SteeringError when the map refuses it.
        """
        try:
            libbpf.map_update(xsks_map_fd, ctypes.c_uint32(self.queue), ctypes.c_uint32(self.fileno()), libbpf.MAP_ANY)
        except OSError as error:
            raise SteeringError(
                f"the XSKMAP of {self.interface} refused queue {self.queue} ({error.strerror}) - is it docked?"
            ) from error

    def receive(self, budget: int = 64) -> list[bytes]:
        """Up to ``budget`` Ethernet frames, without blocking; their memory goes back to the kernel at once."""
        descriptors = self._rx.take(min(budget, self._fill.room))
        frames = []
        returned = []
        for address, length in descriptors:
            size = length & _U32_MASK  # the upper half of the word holds the options
            frames.append(self._umem[address : address + size])
            returned.append([address - address % self._frame_size])
        if returned:
            self._fill.put(returned)
        return frames

    def send(self, frames: Sequence[bytes]) -> int:
        """Queue Ethernet frames for transmission and kick the kernel. Returns how many were queued, in order.

        Fewer than given means a full ring: try the rest later. Raises SteeringError for a frame that does not fit
        into ``frame_size`` and when the interface is gone.
        """
        self._reap()
        count = min(len(frames), len(self._free), self._tx.room)
        entries: list[list[int]] = []
        for frame in frames[:count]:
            if len(frame) > self._frame_size:
                self._free.extend(address for address, _ in entries)
                raise SteeringError(
                    f"a frame of {len(frame)} bytes does not fit into {self._frame_size} on {self.interface} - "
                    "lower the MTU"
                )
            address = self._free.pop()
            self._umem[address : address + len(frame)] = frame
            entries.append([address, len(frame)])
        if entries:
            self._tx.put(entries)
        self._kick()
        self._reap()
        return count

    def _reap(self) -> None:
        self._free.extend(address for (address,) in self._completion.take(self._half))

    def _kick(self) -> None:
        for _ in range(_KICKS + self._tx.filled // _KERNEL_BATCH):
            if not self._tx.filled:
                return
            try:
                self._socket.send(b"", socket.MSG_DONTWAIT)
            except OSError as error:
                if error.errno not in _TRANSIENT:
                    raise SteeringError(
                        f"sending on {self.interface} failed ({error.strerror}) - check `ip link`"
                    ) from error

    def close(self) -> None:
        """Close the socket and give its memory back; the packets steered to it go to the kernel from now on."""
        self._socket.close()
        for ring in self._rings:
            ring.close()
        self._rings.clear()
        if not self._umem.closed:
            self._umem.close()
