"""SAs' numbers by a lean connection: whoever asks and whenever, against an API socket that answers as VPP does."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from ipsec_gw.errors import EngineUnavailable
from vpp_conf.raw_api import (
    FRAME,
    NAME_BYTES,
    PING,
    PING_REPLY,
    SA_DETAILS,
    SA_DUMP,
    SOCKCLNT_CREATE_REPLY,
    Numbers,
    NumbersReader,
)

IDS = {PING: 100, PING_REPLY: 101, SA_DUMP: 102, SA_DETAILS: 103}
TOLD = {7: Numbers(11, 12), 8: Numbers(0, 1 << 40)}
SECONDS = 10.0


class Vpp:
    """Answers pings and dumps. ``clients`` have registered; while ``silent``, nobody is answered."""

    def __init__(self) -> None:
        self.clients = 0
        self.silent = False
        self.asked = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            await self._next(reader)
            self.clients += 1
            table = b"".join(struct.pack(f">H{NAME_BYTES}s", number, name.encode()) for name, number in IDS.items())
            self._tell(writer, struct.pack(">HIIiIH", SOCKCLNT_CREATE_REPLY, 0, 0, 0, 1, len(IDS)) + table)
            while True:
                number, message = await self._next(reader)
                self.asked.set()
                await asyncio.sleep(0)  # others have their turn before the answer
                if not self.silent:
                    self._answer(writer, number, message)
        writer.close()

    def _answer(self, writer: asyncio.StreamWriter, number: int, message: bytes) -> None:
        if number == IDS[PING]:
            self._tell(writer, struct.pack(">HI", IDS[PING_REPLY], struct.unpack_from(">I", message, 6)[0]))
            return
        for sad_id, (outbound, inbound) in TOLD.items():
            tail = struct.pack(">IQQQII", 0, outbound, inbound, 0, 0, 0)
            self._tell(writer, struct.pack(">HII", IDS[SA_DETAILS], 0, sad_id) + tail)

    @staticmethod
    async def _next(reader: asyncio.StreamReader) -> tuple[int, bytes]:
        _, length, _ = FRAME.unpack(await reader.readexactly(FRAME.size))
        message = await reader.readexactly(length)
        return int.from_bytes(message[:2], "big"), message

    @staticmethod
    def _tell(writer: asyncio.StreamWriter, message: bytes) -> None:
        writer.write(FRAME.pack(0, len(message), 0) + message)


@asynccontextmanager
async def running(path: Path) -> AsyncIterator[Vpp]:
    vpp = Vpp()
    server = await asyncio.start_unix_server(vpp.serve, path)
    try:
        yield vpp
    finally:
        server.close()


async def test_all_who_ask_at_once_are_told(tmp_path: Path) -> None:
    async with running(tmp_path / "api") as vpp:
        reader = NumbersReader(tmp_path / "api", SECONDS)
        assert await asyncio.gather(*(reader.read() for _ in range(5))) == [TOLD] * 5
        assert vpp.clients == 1
        reader.close()


async def test_a_cancelled_question_is_not_taken_for_the_next_one(tmp_path: Path) -> None:
    async with running(tmp_path / "api") as vpp:
        reader = NumbersReader(tmp_path / "api", SECONDS)
        vpp.silent = True
        asking = asyncio.create_task(reader.read())
        await asyncio.wait_for(vpp.asked.wait(), SECONDS)
        asking.cancel()
        with suppress(asyncio.CancelledError):
            await asking
        vpp.silent = False
        assert await reader.read() == TOLD
        assert vpp.clients == 2
        reader.close()


async def test_a_vpp_that_is_silent_or_gone_is_unavailable_and_asked_anew(tmp_path: Path) -> None:
    reader = NumbersReader(tmp_path / "api", 0.05)
    with pytest.raises(EngineUnavailable, match="does not tell its numbers"):
        await reader.read()
    async with running(tmp_path / "api") as vpp:
        vpp.silent = True
        with pytest.raises(EngineUnavailable, match="does not tell its numbers"):
            await reader.read()
    patient = NumbersReader(tmp_path / "api", SECONDS)
    async with running(tmp_path / "api"):
        assert await patient.read() == TOLD
        patient.close()
