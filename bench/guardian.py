"""What the guardian costs with many SAs that all move: `python -m bench.guardian`.

A kernel without ESP cannot hold the SAs: the bench packs and unpacks the very messages that the guardian exchanges with
one, over a socket pair whose other end answers as the kernel does. So the figures are of the guardian alone; where ESP
is there, the kernel's own share of a write (some microseconds) comes on top.
"""

from __future__ import annotations

import argparse
import socket
import statistics
import struct
import tempfile
import threading
import time
from ipaddress import ip_address
from pathlib import Path
from typing import Any, cast

from ipsec_gw.engines.port import Counters, Heard
from ipsec_gw.ike.aevent import StateSocket
from ipsec_gw.model.ids import SaKey
from ipsec_gw.ownership.guardian import Guardian
from ipsec_gw.ownership.handovers import Handovers

LOCAL, REMOTE = ip_address("10.0.0.1"), ip_address("10.0.0.2")
HEADER = struct.Struct("=IHHII")
DUMP_BYTES = 32 << 10
ROUNDS = 7


def newsa(key: SaKey) -> bytes:
    """An SA of a dump: ``xfrm_usersa_info``, an AEAD key of zeros, XFRMA_REPLAY_VAL."""
    info = bytearray(224)
    info[56:60] = key.destination.packed
    struct.pack_into(">IB", info, 72, key.spi, socket.IPPROTO_ESP)
    struct.pack_into("=4Q", info, 96, *[(1 << 64) - 1] * 4)
    struct.pack_into("=HBBB", info, 212, socket.AF_INET, 1, 32, 0)
    aead = struct.pack("=HH", 96, 18) + b"rfc4106(gcm(aes))".ljust(64, b"\0") + struct.pack("=II", 160, 128) + bytes(20)
    replay = struct.pack("=HHIII", 16, 10, 0, 0, 0)
    body = bytes(info) + aead + replay
    return HEADER.pack(HEADER.size + len(body), 0x10, 2, 0, 0) + body


class Kernel(threading.Thread):
    """The other end: answers dumps with all SAs, and every write with an acknowledgement."""

    def __init__(self, end: socket.socket, keys: list[SaKey]) -> None:
        super().__init__(daemon=True)
        self._end = end
        self._sas = [newsa(key) for key in keys]

    def run(self) -> None:
        """Until the socket is closed."""
        while request := self._end.recv(1 << 20):
            _, kind, _, sequence, _ = HEADER.unpack_from(request)
            if kind == 0x12:
                self._dump(sequence)
            else:
                self._acknowledge(request)

    def _dump(self, sequence: int) -> None:
        chunk = b""
        for sa in self._sas:
            chunk += sa[:8] + struct.pack("=I", sequence) + sa[12:]
            if len(chunk) > DUMP_BYTES - 512:
                self._end.send(chunk)
                chunk = b""
        self._end.send(chunk + struct.pack("=IHHIIi", 20, 3, 2, sequence, 0, 0))

    def _acknowledge(self, request: bytes) -> None:
        offset, answer = 0, b""
        while offset < len(request):
            length, _, _, sequence, _ = HEADER.unpack_from(request, offset)
            answer += struct.pack("=IHHIIi", 36, 2, 0, sequence, 0, 0) + request[offset : offset + HEADER.size]
            offset += length
        self._end.send(answer)


def states(keys: list[SaKey]) -> StateSocket:
    """A state socket whose kernel is ours."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
    Kernel(theirs, keys).start()
    made = cast(Any, StateSocket.__new__(StateSocket))
    made._socket, made._sequence = ours, 0
    return cast(StateSocket, made)


def measure(count: int) -> tuple[float, float, float]:
    """Milliseconds of processor time of a tick in which all move, of one in which none does, and the worst of them."""
    keys = [SaKey(LOCAL if spi % 2 else REMOTE, spi) for spi in range(256, 256 + count)]
    walls, rests = [], []
    with tempfile.TemporaryDirectory() as folder:
        guardian = Guardian(states(keys), lambda *_: None, Handovers(Path(folder), print))
        for number in range(1, ROUNDS + 1):
            heard = Heard({key: Counters(number * 1000, number * 100_000) for key in keys}, {})
            walls.append(guardian.tick(heard, lambda key: key.destination == LOCAL, lambda: True).seconds)
            rests.append(guardian.tick(heard, lambda key: key.destination == LOCAL, lambda: True).seconds)
    return statistics.median(walls) * 1000, statistics.median(rests) * 1000, max(walls) * 1000


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sas", type=int, nargs="+", default=[100, 1000, 10_000])
    counts = parser.parse_args().sas
    began = time.perf_counter()
    print(f"{'SAs':>7} {'all move':>12} {'worst':>12} {'none moves':>12}   a tick each second costs")
    for count in counts:
        moved, idle, worst = measure(count)
        share = min(moved / 1000, 0.1)
        print(f"{count:>7} {moved:>9.1f} ms {worst:>9.1f} ms {idle:>9.2f} ms   {share:.1%} of a processor")
    print(f"{ROUNDS} ticks each, medians of processor time, {time.perf_counter() - began:.1f} s")


if __name__ == "__main__":
    main()
