"""Many flows to one server, all open at a time, from hosts that use the same source ports."""

from __future__ import annotations

import asyncio
import random
import resource
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass

from ipsec_gw.lab.talk import BLOCK, Address, endpoint
from ipsec_gw.lab.traffic import Host, TrafficError

FIRST_PORT = 20_000
"""The hosts' lowest source port."""

PAYLOAD_BYTES = 700
OPEN_SECONDS, ALL_SECONDS = 10.0, 60.0
"""For one flow to begin, and for all payloads."""

FILES = 8192
"""Open files that a crowd may need."""


@dataclass(frozen=True, slots=True)
class Met:
    """Flows of one protocol: who the server took each for, and how many payloads were not what was sent."""

    seen: tuple[tuple[str, int], ...]
    wrong: int

    @property
    def twice(self) -> int:
        """Flows that the server could not tell from another one."""
        return len(self.seen) - len(set(self.seen))


@asynccontextmanager
async def crowd(
    hosts: Sequence[Host], called: tuple[Address, int], server: Host, count: int, seed: int
) -> AsyncIterator[tuple[Met, Met]]:
    """So many flows of UDP and as many of TCP, the hosts taking turns; they stay open meanwhile. Each sends a seeded
    payload and gets it back reversed. Raises TrafficError.
    """
    _allow_files()
    chance = random.Random(seed)  # noqa: S311 - repeatable, not secret
    payloads = [chance.randbytes(PAYLOAD_BYTES) for _ in range(count)]
    async with AsyncExitStack() as stack:

        def opened(one: socket.socket) -> socket.socket:
            return stack.enter_context(closing(one))

        def callers(kind: socket.SocketKind) -> Iterable[socket.socket]:
            places = (divmod(number, len(hosts)) for number in range(count))
            return (opened(endpoint(hosts[which], kind, FIRST_PORT + port)) for port, which in places)

        answering = opened(endpoint(server, socket.SOCK_DGRAM, called[1]))
        listening = opened(endpoint(server, socket.SOCK_STREAM, called[1]))
        listening.listen()
        to = (str(called[0]), called[1])
        try:
            udp = await _udp(list(callers(socket.SOCK_DGRAM)), to, answering, payloads)
            tcp = await _tcp(list(callers(socket.SOCK_STREAM)), to, listening, payloads, opened)
        except (TimeoutError, OSError) as error:
            raise TrafficError(f"{count} flows to {called[0]}: {error!r}") from error
        yield udp, tcp


async def _udp(
    callers: Sequence[socket.socket], to: tuple[str, int], answering: socket.socket, payloads: Sequence[bytes]
) -> Met:
    loop, wrong = asyncio.get_running_loop(), 0
    seen = []
    for caller, payload in zip(callers, payloads, strict=True):
        caller.connect(to)
        caller.send(payload)
        async with asyncio.timeout(OPEN_SECONDS):
            there, peer = await loop.sock_recvfrom(answering, BLOCK)
        wrong += there != payload
        seen.append(peer)
    async with asyncio.timeout(ALL_SECONDS):
        for caller, peer, payload in zip(callers, seen, payloads, strict=True):
            await loop.sock_sendto(answering, payload[::-1], peer)
            wrong += await loop.sock_recv(caller, BLOCK) != payload[::-1]
    return Met(tuple(seen), wrong)


async def _tcp(
    callers: Sequence[socket.socket],
    to: tuple[str, int],
    listening: socket.socket,
    payloads: Sequence[bytes],
    opened: Callable[[socket.socket], socket.socket],
) -> Met:
    loop = asyncio.get_running_loop()
    seen, pairs = [], []
    for caller in callers:
        async with asyncio.timeout(OPEN_SECONDS):
            await loop.sock_connect(caller, to)
            answering, peer = await loop.sock_accept(listening)
        pairs.append((caller, opened(answering)))
        seen.append(peer)
    async with asyncio.timeout(ALL_SECONDS):
        right = await asyncio.gather(
            *(_there_and_back(*pair, data) for pair, data in zip(pairs, payloads, strict=True))
        )
    return Met(tuple(seen), right.count(False))


async def _there_and_back(caller: socket.socket, answering: socket.socket, payload: bytes) -> bool:
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(caller, payload)
    there = await _exactly(answering, len(payload))
    await loop.sock_sendall(answering, there[::-1])
    return there == payload and await _exactly(caller, len(payload)) == payload[::-1]


async def _exactly(one: socket.socket, size: int) -> bytes:
    got = b""
    while len(got) < size and (block := await asyncio.get_running_loop().sock_recv(one, size - len(got))):
        got += block
    return got


def _allow_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(FILES, hard)), hard))
