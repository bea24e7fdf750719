"""The programs around the pipeline in a benchmark (``rearm.bpf.c``): compiled into a temporary directory, loaded, and
gone with the process.
"""

from __future__ import annotations

import ctypes
import platform
import socket
import subprocess
import tempfile
from enum import StrEnum
from ipaddress import IPv4Address
from pathlib import Path

import numpy as np

from ipsec_gw.errors import EnvironmentMissing
from xdp_steer import libbpf

_SOURCE = Path(__file__).with_name("rearm.bpf.c")
HEAD = 80
"""Bytes of a packet that are restored: no packet may be shorter."""
BASE_FLOWS = 1000
BASE_SERVER = IPv4Address("192.0.2.80")
BASE_PORT = 53


class Entry(StrEnum):
    """Where a test run begins: at the program under test, or at one that restores the packet and goes on to it."""

    DIRECT = "direct"
    SAME = "same"
    EACH = "each"


class Arm(ctypes.Structure):
    """``struct arm``."""

    _fields_ = (
        ("head", ctypes.c_uint8 * HEAD),
        ("first", ctypes.c_uint32),
        ("count", ctypes.c_uint32),
        ("number", ctypes.c_uint32),
        ("step", ctypes.c_uint32),
        ("length", ctypes.c_uint32),
        ("cut", ctypes.c_uint32),
    )


class _BaseKey(ctypes.Structure):
    _fields_ = (("daddr", ctypes.c_uint8 * 4), ("ports", ctypes.c_uint16 * 2))


_MANY_KEY = np.dtype([("saddr", ">u4"), ("daddr", ">u4"), ("sport", ">u2"), ("dport", ">u2")])


class Rearm:
    """The loaded programs. Raises EnvironmentMissing when clang is not there or refuses, OSError from the kernel."""

    def __init__(self, egress: int) -> None:
        """``egress`` is the interface that the baseline redirects to."""
        with tempfile.TemporaryDirectory() as directory:
            self._object = libbpf.BpfObject(_compile(Path(directory)), {})
        self.trivial = self._object.program("trivial")
        self.base = self._object.program("base")
        self.base_many = self._object.program("base_many")
        for number in range(BASE_FLOWS):
            ports = (ctypes.c_uint16 * 2)(socket.htons(1024 + number), socket.htons(BASE_PORT))
            key = _BaseKey((ctypes.c_uint8 * 4)(*BASE_SERVER.packed), ports)
            libbpf.map_update(self._object.map("base_flows"), key, ctypes.c_uint32(egress))

    def fill_many(self, first: int, count: int, egress: int) -> None:
        """Flows of ``base_many``: from ``count`` sources beginning with ``first`` (host order), all to one server."""
        numbers = np.arange(count, dtype=np.uint32) + np.uint32(first)
        keys, out = np.zeros(count, _MANY_KEY), np.full(count, egress, np.uint32)
        keys["saddr"], keys["daddr"] = numbers, int(BASE_SERVER)
        keys["sport"], keys["dport"] = 1024 + BASE_FLOWS // 2, BASE_PORT
        packed = (ctypes.c_uint8 * _MANY_KEY.itemsize * count).from_buffer(keys.data)
        values = (ctypes.c_uint32 * count).from_buffer(out.data)
        libbpf.map_update_batch(self._object.map("many_flows"), packed, values, count)

    def arm(self, entry: Entry, program: int, arm: Arm) -> int:
        """The program to run: ``program`` itself, or one that restores what ``arm`` says and goes on to it."""
        if entry is Entry.DIRECT:
            return program
        libbpf.map_update(self._object.map("arms"), ctypes.c_uint32(0), arm)
        libbpf.map_update(self._object.map("target"), ctypes.c_uint32(0), ctypes.c_uint32(program))
        return self._object.program(entry.value)

    def number(self) -> int:
        """The number of the packet that would come next."""
        return int(libbpf.map_lookup(self._object.map("arms"), ctypes.c_uint32(0), Arm()).number)

    def close(self) -> None:
        """Unload."""
        self._object.close()


def _compile(directory: Path) -> Path:
    result = directory / "rearm.bpf.o"
    include = f"-I/usr/include/{platform.machine()}-linux-gnu"
    command = ["clang", "-O2", "-g", "-Wall", "-Werror", "-target", "bpf", include, "-c", _SOURCE, "-o", result]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise EnvironmentMissing("clang is not installed - run `make setup`") from error
    except subprocess.CalledProcessError as error:
        raise EnvironmentMissing(f"{_SOURCE.name} does not compile - run `make setup`\n{error.stderr}") from error
    return result
