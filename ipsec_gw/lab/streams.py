"""A TCP conversation that goes on for the whole of a scenario, and tells how long it ever waited."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import time

from ipsec_gw.lab.netns import inside
from ipsec_gw.lab.traffic import Host, TrafficError

BLOCK_BYTES = 512
PAUSE_SECONDS = 0.1
PATIENCE_SECONDS = 60.0


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
        with inside(self._server.namespace):
            listening = socket.create_server((str(self._server.address), self._port))
        with inside(self._client.namespace):
            connecting = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        for one in (listening, connecting):
            one.setblocking(False)
        connecting.bind((str(self._client.address), 0))
        serving = await asyncio.start_server(_echo, sock=listening)
        try:
            async with serving:
                await self._talk(connecting)
        except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
            raise TrafficError(f"the TCP stream broke after {self.blocks} blocks: {error!r}") from error
        finally:
            connecting.close()

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


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while block := await reader.read(65536):
            writer.write(block)
            await writer.drain()
    writer.close()
