"""Conversations through a firewall, IPv4 and IPv6: who is reached, who the caller seems to be, what is refused and how.

Unlike :mod:`ipsec_gw.lab.traffic`, the address that is called need not be the one that answers.
"""

from __future__ import annotations

import asyncio
import errno
import random
import select
import socket
import struct
from collections.abc import Awaitable
from contextlib import closing, suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TypeVar

from ipsec_gw.lab.netns import inside
from ipsec_gw.lab.traffic import Host, TrafficError, echo_request, until

Address = IPv4Address | IPv6Address

SECONDS = 30.0
"""How long an answer may take."""

IP_MTU_DISCOVER, IP_MTU, IPV6_MTU_DISCOVER, IPV6_MTU = 10, 14, 23, 24
"""``linux/in.h``, ``linux/in6.h``."""

BLOCK = 1 << 16
Got = TypeVar("Got")


@dataclass(frozen=True, slots=True)
class Heard:
    """How a conversation looked: the caller's address and port as the server saw them, and the path's MTU in bytes as
    the caller knew it in the end.
    """

    peer: Address
    port: int
    mtu: int


def endpoint(host: Host, kind: socket.SocketKind, port: int = 0, protocol: int = 0) -> socket.socket:
    """A socket on a host, bound to its address; it never blocks."""
    family = socket.AF_INET6 if host.address.version == 6 else socket.AF_INET
    with inside(host.namespace):
        made = socket.socket(family, kind, protocol)
    made.setblocking(False)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind((str(host.address), port))
    return made


async def _within(what: str, seconds: float, work: Awaitable[Got]) -> Got:
    try:
        async with asyncio.timeout(seconds):
            return await work
    except (TimeoutError, OSError) as error:
        raise TrafficError(f"{what}: {error or f'no answer within {seconds:.0f} s'}") from error


def _seen(name: tuple[str, int], caller: socket.socket) -> Heard:
    six = caller.family == socket.AF_INET6
    option = (socket.IPPROTO_IPV6, IPV6_MTU) if six else (socket.IPPROTO_IP, IP_MTU)
    return Heard(ip_address(name[0]), name[1], caller.getsockopt(*option))


async def tcp(
    client: Host,
    called: tuple[Address, int],
    server: Host,
    port: int,
    *,
    size: int,
    seed: int,
    seconds: float = SECONDS,
) -> Heard:
    """Call an address, reach ``server`` at ``port``, and get ``size`` seeded bytes back. Raises TrafficError."""
    data = random.Random(seed).randbytes(size)  # noqa: S311 - repeatable, not secret
    what = f"TCP {client} -> {called[0]} port {called[1]}"
    with (
        closing(endpoint(server, socket.SOCK_STREAM, port)) as listening,
        closing(endpoint(client, socket.SOCK_STREAM)) as caller,
    ):
        listening.listen()
        return await _within(what, seconds, _tcp(caller, called, listening, data, what))


async def _tcp(
    caller: socket.socket, called: tuple[Address, int], listening: socket.socket, data: bytes, what: str
) -> Heard:
    loop = asyncio.get_running_loop()
    await loop.sock_connect(caller, (str(called[0]), called[1]))
    answering, name = await loop.sock_accept(listening)
    with answering:
        echo = asyncio.create_task(_echo(answering))
        sending = asyncio.create_task(send_all(caller, data))
        try:
            back = await read_all(caller, len(data))
            await sending
            heard = _seen(name, caller)
        finally:
            for task in (echo, sending):
                task.cancel()
            await asyncio.gather(echo, sending, return_exceptions=True)
    if back != data:
        raise TrafficError(f"{what}: {len(back)} of {len(data)} bytes came back, or others than were sent")
    return heard


async def _echo(answering: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    with suppress(OSError):  # the caller reports what it misses
        while block := await loop.sock_recv(answering, BLOCK):
            await loop.sock_sendall(answering, block)
        answering.shutdown(socket.SHUT_WR)


async def send_all(caller: socket.socket, data: bytes) -> None:
    """Send it, and that it was all."""
    await asyncio.get_running_loop().sock_sendall(caller, data)
    caller.shutdown(socket.SHUT_WR)


async def read_all(caller: socket.socket, size: int) -> bytes:
    """What comes until the other side has ended, or has sent more than ``size`` bytes."""
    back = bytearray()
    while len(back) <= size and (block := await asyncio.get_running_loop().sock_recv(caller, BLOCK)):
        back += block
    return bytes(back)


async def udp(
    client: Host,
    called: tuple[Address, int],
    server: Host,
    port: int,
    *,
    sizes: tuple[int, ...],
    seed: int,
    seconds: float = SECONDS,
) -> Heard:
    """As :func:`tcp`, with a datagram of each size there and back; long ones are sent as fragments."""
    source = random.Random(seed)  # noqa: S311 - repeatable, not secret
    what = f"UDP {client} -> {called[0]} port {called[1]}"
    with (
        closing(endpoint(server, socket.SOCK_DGRAM, port)) as answering,
        closing(endpoint(client, socket.SOCK_DGRAM)) as caller,
    ):
        for one in (answering, caller):
            six = one.family == socket.AF_INET6
            one.setsockopt(*((socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER) if six else (0, IP_MTU_DISCOVER)), 0)
        caller.connect((str(called[0]), called[1]))
        heard = None
        for size in sizes:
            heard = await _within(what, seconds, _udp(caller, answering, source.randbytes(size), what))
    if heard is None:
        raise TrafficError(f"{what}: no sizes, nothing sent")
    return heard


async def _udp(caller: socket.socket, answering: socket.socket, data: bytes, what: str) -> Heard:
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(caller, data)
    there, name = await loop.sock_recvfrom(answering, BLOCK)
    await loop.sock_sendto(answering, there[::-1], name)
    back = await loop.sock_recv(caller, BLOCK)
    if (there, back) != (data, data[::-1]):
        raise TrafficError(f"{what}: {len(data)} bytes came over changed")
    return _seen(name, caller)


class Echo:
    """An ICMP echo request that waits for its answer."""

    def __init__(self, client: Host, called: Address, identifier: int, size: int) -> None:
        self._six = called.version == 6
        protocol = socket.IPPROTO_ICMPV6 if self._six else socket.IPPROTO_ICMP
        self._raw = endpoint(client, socket.SOCK_RAW, protocol=protocol)
        self._payload = random.Random(identifier).randbytes(size)  # noqa: S311 - repeatable, not secret
        self._identifier, self._called = identifier, str(called)
        request = echo_request(identifier, 1, self._payload)
        if self._six:
            request = struct.pack(">BBHHH", 128, 0, 0, identifier, 1) + self._payload  # the kernel's checksum
        self._raw.sendto(request, (self._called, 0))

    def answered(self) -> bool:
        """Whether the answer has come by now, unchanged, and from the address that was called."""
        wanted = (129 if self._six else 0, self._identifier, 1, self._payload, self._called)
        with suppress(BlockingIOError):
            while True:
                packet, name = self._raw.recvfrom(BLOCK)
                message = packet if self._six else packet[(packet[0] & 0xF) * 4 :]
                kind, _, _, identifier, sequence = struct.unpack_from(">BBHHH", message)
                if (kind, identifier, sequence, message[8:], name[0]) == wanted:
                    return True
        return False

    def close(self) -> None:
        """Give the socket back."""
        self._raw.close()


async def ping(client: Host, called: Address, *, identifier: int, size: int, seconds: float = SECONDS) -> str:
    """One echo there and back. Raises TrafficError."""
    with closing(Echo(client, called, identifier, size)) as echo:
        await until(echo.answered, seconds, f"ICMP {client} -> {called}: an answer")
    return f"{size} bytes answered by {called}"


class Attempt:
    """A TCP connection and a datagram to a port where they should not get through. ``tcp`` and ``udp`` tell by the name
    of the error (``ECONNREFUSED``) what came of them: empty for no answer, ``answered`` for one.
    """

    def __init__(self, client: Host, called: Address, port: int) -> None:
        self._connection, self._datagram = (endpoint(client, kind) for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM))
        self.port = port
        self.tcp = self.udp = ""
        self._connection.connect_ex((str(called), port))
        self._datagram.connect((str(called), port))
        self._datagram.send(b"let me through")

    def look(self) -> Attempt:
        """Take in what came since."""
        waiting = select.poll()
        waiting.register(self._connection, select.POLLOUT)
        if not self.tcp and waiting.poll(0):
            failed = self._connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            self.tcp = errno.errorcode.get(failed, str(failed)) if failed else "answered"
        if not self.udp:
            try:
                self._datagram.recv(BLOCK)
                self.udp = "answered"
            except BlockingIOError:
                pass
            except OSError as error:
                self.udp = errno.errorcode.get(error.errno or 0, str(error))
        return self

    @property
    def refused(self) -> bool:
        """Whether both were answered with an error."""
        self.look()
        return bool(self.tcp and self.udp)

    def __str__(self) -> str:
        return f"TCP {self.tcp or 'silence'}, UDP {self.udp or 'silence'}"

    def close(self) -> None:
        """Give the sockets back."""
        self._connection.close()
        self._datagram.close()
