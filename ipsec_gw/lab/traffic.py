"""Traffic whose every byte is known: steady numbered UDP, TCP and ICMP echo with seeded payloads.

All sockets live in this process but are opened inside their host's namespace: nothing has to be started, and
nothing can be left behind.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from ipsec_gw.errors import IpsecGwError
from ipsec_gw.lab.netns import inside

NUMBER = struct.Struct(">II")
"""Every UDP payload starts with its flow's id and its own number."""

RECEIVE_BYTES = 4 << 20
SO_RCVBUFFORCE = 33
ICMP_ECHO, ICMP_ECHO_REPLY = 8, 0
ICMP6_ECHO, ICMP6_ECHO_REPLY = 128, 129


class TrafficError(IpsecGwError):
    """Traffic did not come through, or not as it was sent."""


@dataclass(frozen=True, slots=True)
class Host:
    """An end of a conversation: a namespace and one of its addresses."""

    namespace: str
    address: IPv4Address | IPv6Address

    @property
    def family(self) -> socket.AddressFamily:
        """Of its sockets."""
        return socket.AF_INET if self.address.version == 4 else socket.AF_INET6

    def __str__(self) -> str:
        return str(self.address)


async def until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait for a condition. Raises TrafficError naming ``what`` after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TrafficError(f"{what}: not within {seconds:.0f} s")
        await asyncio.sleep(0.02)


@dataclass(frozen=True, slots=True)
class Tally:
    """What became of the packets of a flow within a span of numbers."""

    sent: int
    received: int
    lost: int
    duplicated: int
    corrupted: int

    @property
    def perfect(self) -> bool:
        """Something was sent, and all of it arrived once and intact."""
        return self.sent > 0 and (self.lost, self.duplicated, self.corrupted) == (0, 0, 0)

    def __str__(self) -> str:
        return f"{self.sent} sent, {self.lost} lost, {self.duplicated} twice, {self.corrupted} corrupted"


class UdpFlow:
    """Steady UDP in one direction. ``rate`` is in packets per second, ``size`` in bytes of payload."""

    def __init__(self, number: int, source: Host, destination: Host, *, rate: float, size: int, port: int) -> None:
        self.source, self.destination, self.port = source, destination, port
        self._id, self._rate, self._size = number, rate, size
        self._pool = random.Random(number).randbytes(size + 256)  # noqa: S311 - repeatable, not secret
        self._next = 0
        self._received: Counter[int] = Counter()
        self._corrupted: Counter[int] = Counter()
        self._running = asyncio.Event()
        self._running.set()
        self._out = self._socket(source, 0)
        self._in = self._socket(destination, port)

    @staticmethod
    def _socket(host: Host, port: int) -> socket.socket:
        with inside(host.namespace):
            opened = socket.socket(host.family, socket.SOCK_DGRAM)
        opened.setblocking(False)
        opened.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BYTES)
        opened.bind((str(host.address), port))
        return opened

    def payload(self, sequence: int) -> bytes:
        """What packet ``sequence`` carries."""
        start = sequence % 256
        return NUMBER.pack(self._id, sequence) + self._pool[start : start + self._size - NUMBER.size]

    @property
    def rate(self) -> float:
        """Packets per second."""
        return self._rate

    @property
    def next(self) -> int:
        """The number of the next packet to send: a mark for :meth:`tally`."""
        return self._next

    async def run(self) -> None:
        """Send until cancelled, at the flow's pace; after a stall it does not catch up in a burst."""
        due = time.monotonic()
        while True:
            await self._running.wait()
            self.send_one()
            now = time.monotonic()
            due = max(due + 1 / self._rate, now)
            await asyncio.sleep(due - now)
            self.drain()

    def send_one(self) -> None:
        """Send the next packet now."""
        payload = self.payload(self._next)
        self._next += 1
        try:
            self._out.sendto(payload, (str(self.destination.address), self.port))
        except OSError:
            # Refused by our own side (no route yet): it counts as sent and lost, which is what it is.
            return

    def pause(self) -> None:
        """Send nothing until :meth:`resume`."""
        self._running.clear()

    def resume(self) -> None:
        """Go on sending."""
        self._running.set()

    def drain(self) -> None:
        """Take in what arrived."""
        while True:
            try:
                data = self._in.recv(65535)
            except BlockingIOError:
                return
            number, sequence = NUMBER.unpack_from(data) if len(data) >= NUMBER.size else (0, 0)
            if number == self._id and data == self.payload(sequence):
                self._received[sequence] += 1
            else:
                self._corrupted[sequence] += 1

    def tally(self, first: int, last: int | None = None) -> Tally:
        """Packets ``first`` to before ``last`` (default: all sent so far)."""
        self.drain()
        span = range(first, self._next if last is None else last)
        arrived = sum(1 for n in span if self._received[n])
        extra = sum(self._received[n] - 1 for n in span if self._received[n] > 1)
        return Tally(len(span), arrived, len(span) - arrived, extra, self._corrupted.total())

    def missing(self, first: int, last: int | None = None) -> list[int]:
        """Numbers that did not arrive."""
        self.drain()
        return [n for n in range(first, self._next if last is None else last) if not self._received[n]]

    async def settle(self, first: int, seconds: float = 5.0) -> Tally:
        """The tally once everything arrived, or after ``seconds``."""
        last = self._next
        deadline = time.monotonic() + seconds
        while True:
            if not self.missing(first, last) or time.monotonic() > deadline:
                return self.tally(first, last)
            await asyncio.sleep(0.05)

    def close(self) -> None:
        """Give the sockets back."""
        self._out.close()
        self._in.close()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


async def tcp_echo(client: Host, server: Host, *, port: int, size: int, seed: int, seconds: float = 60.0) -> str:
    """Send ``size`` seeded bytes by TCP and get them back. Returns a summary; raises TrafficError."""
    data = random.Random(seed).randbytes(size)  # noqa: S311 - repeatable, not secret
    what = f"TCP {client} -> {server}"
    with inside(server.namespace):
        listening = socket.create_server((str(server.address), port), family=server.family)
    with inside(client.namespace):
        connecting = socket.socket(client.family, socket.SOCK_STREAM)
    listening.setblocking(False)
    connecting.setblocking(False)
    connecting.bind((str(client.address), 0))
    serving = await asyncio.start_server(_echo, sock=listening)
    try:
        async with asyncio.timeout(seconds), serving:
            back = await _converse(connecting, (str(server.address), port), data)
    except (TimeoutError, OSError) as error:
        raise TrafficError(f"{what}: {error or f'not done within {seconds:.0f} s'}") from error
    finally:
        connecting.close()
    if back != data:
        raise TrafficError(f"{what}: sent {_digest(data)} ({size} bytes), got {_digest(back)} ({len(back)} bytes)")
    return f"{size} bytes there and back, sha256 {_digest(back)}"


async def _converse(connecting: socket.socket, address: tuple[str, int], data: bytes) -> bytes:
    await asyncio.get_running_loop().sock_connect(connecting, address)
    reader, writer = await asyncio.open_connection(sock=connecting)
    try:
        writer.write(data)
        writer.write_eof()
        return await reader.read(-1)
    finally:
        writer.close()


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while block := await reader.read(65536):
            writer.write(block)
            await writer.drain()
    except OSError:
        return  # the other side reports what it missed
    finally:
        writer.close()


async def udp_echo(client: Host, server: Host, *, port: int, sizes: tuple[int, ...], seed: int) -> str:
    """Send one datagram of each size, twice around; all must come back as they were. Raises TrafficError."""
    source = random.Random(seed)  # noqa: S311 - repeatable, not secret
    loop = asyncio.get_running_loop()
    here, there = UdpFlow._socket(client, 0), UdpFlow._socket(server, port)
    try:
        for size in sizes:
            data = source.randbytes(size)
            here.sendto(data, (str(server.address), port))
            try:
                async with asyncio.timeout(10.0):
                    heard, peer = await loop.sock_recvfrom(there, 65535)
                    there.sendto(heard, peer)
                    back = await loop.sock_recv(here, 65535)
            except TimeoutError:
                raise TrafficError(f"UDP {client} -> {server}: {size} bytes did not come back") from None
            if (heard, back) != (data, data):
                raise TrafficError(f"UDP {client} -> {server}: {size} bytes came back changed")
    finally:
        here.close()
        there.close()
    return f"{len(sizes)} datagrams of {min(sizes)} to {max(sizes)} bytes there and back"


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return 0xFFFF - total


def echo_request(identifier: int, sequence: int, payload: bytes) -> bytes:
    """An ICMP echo request (RFC 792)."""
    head = struct.pack(">BBHHH", ICMP_ECHO, 0, 0, identifier, sequence)
    return head[:2] + struct.pack(">H", checksum(head + payload)) + head[4:] + payload


def echo_request6(identifier: int, sequence: int, payload: bytes) -> bytes:
    """An ICMPv6 echo request (RFC 4443); the kernel fills in its checksum."""
    return struct.pack(">BBHHH", ICMP6_ECHO, 0, 0, identifier, sequence) + payload


async def ping(client: Host, target: Host, *, identifier: int, sizes: tuple[int, ...], seed: int) -> str:
    """One ICMP echo of each payload size, answered by ``target``'s kernel, payloads compared. Raises TrafficError."""
    source = random.Random(seed)  # noqa: S311 - repeatable, not secret
    with inside(client.namespace):
        protocol = socket.IPPROTO_ICMP if client.address.version == 4 else socket.IPPROTO_ICMPV6
        raw = socket.socket(client.family, socket.SOCK_RAW, protocol)
    raw.setblocking(False)
    raw.bind((str(client.address), 0))
    try:
        for sequence, size in enumerate(sizes):
            payload = source.randbytes(size)
            request = echo_request if client.address.version == 4 else echo_request6
            raw.sendto(request(identifier, sequence, payload), (str(target.address), 0))
            try:
                async with asyncio.timeout(10.0):
                    await _await_reply(raw, identifier, sequence, payload)
            except TimeoutError:
                raise TrafficError(f"ICMP {client} -> {target}: no answer to {size} bytes") from None
    finally:
        raw.close()
    return f"{len(sizes)} echoes of {min(sizes)} to {max(sizes)} bytes answered"


async def _await_reply(raw: socket.socket, identifier: int, sequence: int, payload: bytes) -> None:
    loop = asyncio.get_running_loop()
    reply = ICMP_ECHO_REPLY if raw.family == socket.AF_INET else ICMP6_ECHO_REPLY
    wanted = (reply, identifier, sequence)
    while True:
        packet = await loop.sock_recv(raw, 65535)
        # IPv4 gives the header along, IPv6 does not (RFC 3542 §3).
        message = packet[(packet[0] & 0xF) * 4 :] if raw.family == socket.AF_INET else packet
        kind, _, _, got_identifier, got_sequence = struct.unpack_from(">BBHHH", message)
        if (kind, got_identifier, got_sequence) == wanted:
            if message[8:] != payload:
                raise TrafficError(f"ICMP echo {sequence}: {len(payload)} bytes came back changed")
            return
