"""VPP's stats segment: shared memory that is read without asking VPP, also after its death.

Layout: ``vlib/stats/shared.h``. Header of six 64-bit words (version, base, epoch, in_progress, directory, errors),
directory entries of 144 bytes (type, 8 bytes of value, name of 128), vectors with their length eight bytes ahead.
"""

from __future__ import annotations

import mmap
import os
import socket
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ipsec_gw.errors import EngineError, EngineUnavailable

HEADER = struct.Struct("=6Q")
ENTRY = struct.Struct("=I4xQ128s")
SUPPORTED_VERSION = 2
LENGTH_OFFSET = 8
SIMPLE = 2
COMBINED = 3
"""``STAT_DIR_TYPE_COUNTER_VECTOR_SIMPLE`` and ``_COMBINED``."""

RETRIES = 100
CONNECT_SECONDS = 2.0


class Combined(NamedTuple):
    """One element of a combined counter, summed over VPP's threads."""

    packets: int
    octets: int


class StatsSegment:
    """A mapping of one VPP's segment. Raises EngineUnavailable if the socket is not served."""

    def __init__(self, path: Path) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
            client.settimeout(CONNECT_SECONDS)
            try:
                client.connect(str(path))
                _, descriptors, _, _ = socket.recv_fds(client, 1, 1)
            except OSError as error:
                raise EngineUnavailable(f"VPP's stats socket {path} does not answer ({error})") from None
        try:
            self._memory = mmap.mmap(descriptors[0], os.fstat(descriptors[0]).st_size, mmap.MAP_SHARED, mmap.PROT_READ)
        finally:
            os.close(descriptors[0])
        self._places: dict[str, int] = {}
        version = self._header()[0]
        if version != SUPPORTED_VERSION:
            raise EngineError(f"VPP's stats segment has layout {version}, not {SUPPORTED_VERSION} - use another VPP")

    def close(self) -> None:
        """Unmap."""
        self._memory.close()

    def combined(self, name: str) -> list[Combined]:
        """A combined counter vector by index. Raises EngineError if VPP has no such counter."""
        pairs = self._consistent(name, COMBINED, 2)
        return [Combined(*pair) for pair in pairs]

    def simple(self, name: str) -> list[int]:
        """A simple counter vector by index. Raises EngineError if VPP has no such counter."""
        return [single[0] for single in self._consistent(name, SIMPLE, 1)]

    def _consistent(self, name: str, kind: int, width: int) -> list[tuple[int, ...]]:
        """Read between two equal epochs: VPP moves vectors only while ``in_progress`` is set."""
        for _ in range(RETRIES):
            before = self._header()
            if before[3]:
                continue
            try:
                rows = self._sum(name, kind, width)
            except (struct.error, IndexError, ValueError):
                continue
            if self._header()[2:4] == before[2:4]:
                return rows
        raise EngineError(f"VPP's counter {name} did not hold still - is VPP being reconfigured without a pause?")

    def _sum(self, name: str, kind: int, width: int) -> list[tuple[int, ...]]:
        threads = self._offset(self._find(name, kind))
        rows = []
        for thread in range(self._length(threads)):
            row = self._offset(struct.unpack_from("=Q", self._memory, threads + 8 * thread)[0])
            rows.append(np.frombuffer(self._memory, np.uint64, self._length(row) * width, row))
        total = np.zeros(max((row.size for row in rows), default=0), np.uint64)
        for values in rows:
            total[: values.size] += values
        return list(map(tuple, total.reshape(-1, width).tolist()))

    def _find(self, name: str, kind: int) -> int:
        """The value of a counter's entry, which mostly is where it was last time."""
        directory = self._offset(self._header()[4])
        entries = range(self._length(directory))
        wanted = name.encode()
        likely = self._places.get(name, 0)
        for index in (*([likely] if likely in entries else []), *entries):
            entry_kind, value, raw = ENTRY.unpack_from(self._memory, directory + index * ENTRY.size)
            if entry_kind == kind and raw.split(b"\0", 1)[0] == wanted:
                self._places[name] = index
                return int(value)
        raise EngineError(f"VPP has no counter {name} - this release names it differently")

    def _header(self) -> tuple[int, ...]:
        return HEADER.unpack_from(self._memory, 0)

    def _offset(self, pointer: int) -> int:
        return int(pointer - self._header()[1])

    def _length(self, offset: int) -> int:
        return int(struct.unpack_from("=I", self._memory, offset - LENGTH_OFFSET)[0])
