"""A lean connection to VPP's API socket, for what must be quick beside vpp_papi's: pings, and all SAs' numbers.

A message is ``>QII`` (unused, length, unused; ``msgbuf_t``) and its bytes, whose number VPP tells when a client
registers (``memclnt.api``). Requests of a connection are made one after the other; after a
cancelled one it is of no use.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import NamedTuple, Self

from ipsec_gw.errors import EngineUnavailable

FRAME = struct.Struct(">QII")
SOCKCLNT_CREATE, SOCKCLNT_CREATE_REPLY = 15, 16
"""Fixed message numbers (``vlibmemory/memclnt.api``)."""

NAME = b"ipsec-gw-pulse"
NAME_BYTES = 64
LARGEST = 1 << 20
"""Bytes of a message; the longest by far is the list of message numbers."""

PING, PING_REPLY = "control_ping_51077d14", "control_ping_reply_f6b0b8ca"
SA_DUMP, SA_DETAILS = "ipsec_sa_v5_dump_2076c2f4", "ipsec_sa_v5_details_3cfecfbd"
"""Names with the digests of their layouts: with other ones VPP is another release, and they are not used."""

ALL_SAS = 0xFFFFFFFF
_CREATED = struct.Struct(">HIIiIH")
_TABLE_ENTRY = struct.Struct(f">H{NAME_BYTES}s")
_REQUEST = struct.Struct(">HII")
_SAD_ID_OFFSET = 6
_SA_TAIL = struct.Struct(">IQQQII")
"""The end of ``ipsec_sa_v5_details``: interface, outbound and inbound number, window, thread, place in the counters."""


class Numbers(NamedTuple):
    """The last sequence number that an SA sent, and the highest authentic one that it received."""

    outbound: int
    inbound: int


class RawApi:
    """One connection. Use :meth:`connect`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._index = 0
        self._context = 0
        self._ids: dict[str, int] = {}

    @classmethod
    async def connect(cls, path: Path) -> Self:
        """Register as a client. Raises EngineUnavailable if no VPP answers."""
        try:
            reader, writer = await asyncio.open_unix_connection(path)
        except OSError as error:
            raise EngineUnavailable(f"VPP's API socket {path} does not answer ({error})") from None
        api = cls(reader, writer)
        try:
            await api._register()
        except BaseException:
            api.close()
            raise
        return api

    def close(self) -> None:
        """Hang up; VPP notices by itself."""
        self._writer.close()

    @property
    def tells_numbers(self) -> bool:
        """Whether this release of VPP has the messages of :meth:`numbers`."""
        return {SA_DUMP, SA_DETAILS} <= self._ids.keys()

    async def ping(self) -> None:
        """Wait until VPP's main thread has answered. Raises EngineUnavailable when it is gone."""
        async for _ in self._until_pong(b""):
            pass

    async def numbers(self) -> Mapping[int, Numbers]:
        """By ``sad_id``. Raises EngineUnavailable when VPP is gone."""
        found: dict[int, Numbers] = {}
        wanted = self._ids[SA_DETAILS]
        request = _REQUEST.pack(self._ids[SA_DUMP], self._index, 0) + struct.pack(">I", ALL_SAS)
        async for number, message in self._until_pong(_frame(request)):
            if number == wanted:
                _, outbound, inbound, *_ = _SA_TAIL.unpack_from(message, len(message) - _SA_TAIL.size)
                (sad_id,) = struct.unpack_from(">I", message, _SAD_ID_OFFSET)
                found[sad_id] = Numbers(outbound, inbound)
        return found

    async def _register(self) -> None:
        self._writer.write(_frame(struct.pack(">HI", SOCKCLNT_CREATE, 0) + NAME.ljust(NAME_BYTES, b"\0")))
        number, message = await self._receive()
        if number != SOCKCLNT_CREATE_REPLY or len(message) < _CREATED.size:
            raise EngineUnavailable(f"VPP answers a registration with message {number} - is it a VPP?")
        *_, self._index, count = _CREATED.unpack_from(message)
        table = message[_CREATED.size : _CREATED.size + count * _TABLE_ENTRY.size]
        for entry, name in _TABLE_ENTRY.iter_unpack(table):
            self._ids[name.split(b"\0", 1)[0].decode("ascii", "replace")] = entry
        if not {PING, PING_REPLY} <= self._ids.keys():
            raise EngineUnavailable("VPP has no control_ping as this version knows it - it cannot be watched")

    async def _until_pong(self, before: bytes) -> AsyncIterator[tuple[int, bytes]]:
        """Send ``before`` and a ping; everything that comes until its answer."""
        self._context += 1
        try:
            self._writer.write(before + _frame(_REQUEST.pack(self._ids[PING], self._index, self._context)))
            await self._writer.drain()
        except OSError as error:
            raise EngineUnavailable(f"VPP's API connection broke ({error})") from None
        while True:
            number, message = await self._receive()
            if number == self._ids[PING_REPLY] and struct.unpack_from(">I", message, 2)[0] == self._context:
                return
            yield number, message

    async def _receive(self) -> tuple[int, bytes]:
        try:
            _, length, _ = FRAME.unpack(await self._reader.readexactly(FRAME.size))
            if not 2 <= length <= LARGEST:
                raise EngineUnavailable(f"VPP's API sends a message of {length} bytes")
            message = await self._reader.readexactly(length)
        except (OSError, asyncio.IncompleteReadError) as error:
            raise EngineUnavailable(f"VPP's API connection broke ({type(error).__name__})") from None
        return int.from_bytes(message[:2], "big"), message


class NumbersReader:
    """Reads the numbers of all SAs by a connection that it makes when it is needed. Who asks while another one does has
    to wait. VPP may take ``seconds`` for an answer.
    """

    def __init__(self, path: Path, seconds: float) -> None:
        self._path = path
        self._seconds = seconds
        self._api: RawApi | None = None
        self._asking = asyncio.Lock()

    async def read(self) -> Mapping[int, Numbers]:
        """By ``sad_id``; nothing of a release of VPP that does not tell them. Raises EngineUnavailable."""
        async with self._asking:
            try:
                return await self._read()
            except (EngineUnavailable, TimeoutError) as error:
                self.close()
                raise EngineUnavailable(f"VPP does not tell its numbers ({error})") from None
            except asyncio.CancelledError:
                self.close()
                raise

    def close(self) -> None:
        """Hang up; the next one who reads connects anew."""
        if self._api is not None:
            self._api.close()
            self._api = None

    async def _read(self) -> Mapping[int, Numbers]:
        if self._api is None:
            self._api = await RawApi.connect(self._path)
        if not self._api.tells_numbers:
            return {}
        async with asyncio.timeout(self._seconds):
            return await self._api.numbers()


def _frame(message: bytes) -> bytes:
    return FRAME.pack(0, len(message), 0) + message
