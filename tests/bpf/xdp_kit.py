"""Namespaces, wires and packets for the tests of xdp_steer."""

from __future__ import annotations

import errno
import select
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from scapy.layers.inet import IP
from scapy.layers.ipsec import ESP
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from tests.support.netns import ip, namespace
from xdp_steer.gateway import Steering

__all__ = ["ip", "namespace"]

BPFFS = Path("/sys/fs/bpf")
DEADLINE = 10.0
ETH_P_ALL = 0x0003


@dataclass
class Wire:
    """Both ends of a veth as packet sockets: what the kernel gets on ``near``, what arrives at ``far``."""

    near: str
    far: str

    def __post_init__(self) -> None:
        self._near = _listen(self.near)
        self._far = _listen(self.far)

    def inject(self, packet: Packet) -> None:
        """From outside towards ``near``."""
        self._far.send(bytes(packet))

    def emit(self, packet: Packet) -> None:
        """From this machine out by ``near``, past TC egress. A drop there is reported as ENOBUFS."""
        try:
            self._near.send(bytes(packet))
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise

    def kernel_got(self, last: Packet) -> list[bytes]:
        return _until(self._near, bytes(last))

    def peer_got(self, last: Packet) -> list[bytes]:
        return _until(self._far, bytes(last))

    def close(self) -> None:
        self._near.close()
        self._far.close()


def _listen(interface: str) -> socket.socket:
    listener = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    listener.bind((interface, 0))
    listener.settimeout(DEADLINE)
    return listener


def _until(listener: socket.socket, last: bytes) -> list[bytes]:
    """Frames received before ``last``, in order; what this host sent itself left out."""
    found = []
    while True:
        frame, address = listener.recvfrom(4096)
        if address[2] == socket.PACKET_OUTGOING:
            continue
        if frame == last:
            return found
        found.append(frame)


def await_frames(xsk, count: int) -> list[bytes]:
    """``count`` frames out of an AF_XDP socket, or what came before the deadline."""
    frames: list[bytes] = []
    end = time.monotonic() + DEADLINE
    while len(frames) < count and (left := end - time.monotonic()) > 0:
        select.select([xsk], [], [], left)
        frames += xsk.receive()
    return frames


MARKER = Ether(src="02:00:00:00:00:02", dst="02:00:00:00:00:01", type=0x88B5) / Raw(b"end of the test" * 4)
"""Not IP: whatever happens to the rest, this one passes, and everything before it has then arrived."""


def esp(spi: int, destination: str = "192.0.2.1", seq: int = 1) -> Packet:
    outer = Ether(src="02:00:00:00:00:02", dst="02:00:00:00:00:01") / IP(src="192.0.2.2", dst=destination)
    return outer / ESP(spi=spi, seq=seq, data=bytes(64))


def clear_entries(steering: Steering) -> None:
    for key in steering.steered():
        steering.unsteer(key)
    for key in steering.guard_counters().keys() | steering.claimed():
        steering.forget(key)
