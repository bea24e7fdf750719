"""TCP between hosts: one that goes on for the whole of a scenario, and clients that call a server that stays."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import time
from collections.abc import AsyncIterator

from ipsec_gw.lab.talk import endpoint, read_all, send_all
from ipsec_gw.lab.traffic import Host, TrafficError

BLOCK_BYTES = 512
PAUSE_SECONDS = 0.1
PATIENCE_SECONDS = 60.0
CALLS, BACKLOG = 3, 1024
"""How often a client calls that is reset, and how many connections may wait to be accepted."""


class TcpStream:
    """Blocks of seeded bytes from client to server and back, one after the other, until :meth:`finish`.

    ``longest`` is how long the slowest block took there and back, in seconds: a gap in traffic shows as TCP's own wait
    for a retransmission.
    """

    def __init__(self, client: Host, server: Host, *, port: int, seed: int) -> None:
        self._client, self._server, self._port = client, server, port
        self._random = random.Random(seed)  # noqa: S311 - repeatable, not secret
        self._stop = asyncio.Event()
        self.blocks = 0
        self.longest = 0.0

    async def run(self) -> None:
        """Talk until told to stop. Raises TrafficError as soon as a block does not come back, or not as it was sent."""
        with contextlib.closing(endpoint(self._client, socket.SOCK_STREAM)) as connecting:
            try:
                async with serving(self._server, self._port):
                    await self._talk(connecting)
            except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
                raise TrafficError(f"the TCP stream broke after {self.blocks} blocks: {error!r}") from error

    async def _talk(self, connecting: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.wait_for(loop.sock_connect(connecting, (str(self._server.address), self._port)), PATIENCE_SECONDS)
        reader, writer = await asyncio.open_connection(sock=connecting)
        while not self._stop.is_set():
            block, began = self._random.randbytes(BLOCK_BYTES), time.monotonic()
            writer.write(block)
            back = await asyncio.wait_for(reader.readexactly(BLOCK_BYTES), PATIENCE_SECONDS)
            if back != block:
                raise TrafficError(f"the TCP stream brought block {self.blocks} back changed")
            self.blocks += 1
            self.longest = max(self.longest, time.monotonic() - began)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), PAUSE_SECONDS)
        writer.close()

    def finish(self) -> None:
        """Let :meth:`run` return after the block that is under way."""
        self._stop.set()


@contextlib.asynccontextmanager
async def serving(host: Host, port: int) -> AsyncIterator[None]:
    """A TCP server that sends back what comes, to any number of clients."""
    with contextlib.closing(endpoint(host, socket.SOCK_STREAM, port)) as listening:
        async with await asyncio.start_server(_echo, sock=listening, backlog=BACKLOG):
            yield


async def call(client: Host, server: Host, port: int, *, size: int, seed: int) -> int:
    """``size`` seeded bytes there and back over one connection, as :func:`serving` does it. Whoever is reset before
    any of it came calls again. Returns how many connections were reset; raises TrafficError.
    """
    data = random.Random(seed).randbytes(size)  # noqa: S311 - repeatable, not secret
    for resets in range(CALLS):
        with contextlib.closing(endpoint(client, socket.SOCK_STREAM)) as caller:
            try:
                async with asyncio.timeout(PATIENCE_SECONDS):
                    await asyncio.get_running_loop().sock_connect(caller, (str(server.address), port))
                    _, back = await asyncio.gather(send_all(caller, data), read_all(caller, len(data)))
            except ConnectionResetError:
                continue
            except (OSError, TimeoutError) as error:
                raise TrafficError(f"TCP {client} -> {server} port {port}: {error!r}") from error
        if back != data:
            raise TrafficError(f"TCP {client} -> {server} port {port}: {len(back)} of {size} bytes, or changed")
        return resets
    raise TrafficError(f"TCP {client} -> {server} port {port}: {CALLS} connections were reset")


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while block := await reader.read(65536):
            writer.write(block)
            await writer.drain()
    writer.close()
