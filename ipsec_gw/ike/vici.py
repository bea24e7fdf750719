"""An asyncio vici session over ``vici.protocol`` (the package's own Session is synchronous).

One reader demultiplexes: events may arrive at any time, also between a request and its answer. Every wait has a
time-out, so a hung charon never blocks anybody.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

import structlog
from vici.exception import DeserializationException
from vici.protocol import FiniteStream, Message, Packet

from ipsec_gw.errors import IkeError
from ipsec_gw.model.snapshot import ChildName, ConfiguredChild

ViciSection = Mapping[str, Any]
"""A parsed vici message: values are bytes, lists of bytes, or sections."""

DEFAULT_SOCKET = "unix:///var/run/charon.vici"
T = TypeVar("T")
U = TypeVar("U")
log = structlog.get_logger()

_MAX_MESSAGE = 512 * 1024
_CLOSED = -1
_SPACE = ord(" ")
_NAMED = frozenset({Message.SECTION_START, Message.KEY_VALUE, Message.LIST_START})
_WITH_VALUE = frozenset({Message.KEY_VALUE, Message.LIST_ITEM})
_ELEMENTS = _NAMED | _WITH_VALUE | {Message.SECTION_END, Message.LIST_END}
_EVENTS = ("ike-updown", "ike-rekey", "child-updown", "child-rekey")


class ViciSession:
    """A connection to charon. Create it with :meth:`connect`; all failures are IkeError.

    ``malformed`` is called for every message that cannot be read. One that breaks the stream closes the connection.
    """

    def __init__(
        self,
        uri: str,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        seconds: float,
        malformed: Callable[[], None] = lambda: None,
    ) -> None:
        self._uri = uri
        self._reader = reader
        self._writer = writer
        self._seconds = seconds
        self._malformed = malformed
        self._turn = asyncio.Lock()
        self._answers: asyncio.Queue[tuple[int, ViciSection]] = asyncio.Queue()
        self._on_event: Callable[[str, ViciSection], None] = lambda _name, _section: None
        self._listener = asyncio.create_task(self._listen(), name="vici reader")
        self.closed = asyncio.Event()

    @classmethod
    async def connect(
        cls, uri: str = DEFAULT_SOCKET, seconds: float = 10.0, malformed: Callable[[], None] = lambda: None
    ) -> ViciSession:
        """Connect to ``unix:///path``. ``seconds`` bounds every later wait for an answer as well."""
        path = uri.removeprefix("unix://")
        try:
            async with asyncio.timeout(seconds):
                reader, writer = await asyncio.open_unix_connection(path, limit=_MAX_MESSAGE)
        except (FileNotFoundError, ConnectionRefusedError):
            raise IkeError(
                f"vici socket {path} is absent - is charon running (systemctl status strongswan) with the vici plugin?"
            ) from None
        except (OSError, TimeoutError) as error:
            reason = f"cannot be used ({error or 'timed out'})"
            raise IkeError(
                f"vici socket {path} {reason} - is charon running (systemctl status strongswan) with the vici plugin?"
            ) from None
        return cls(uri, reader, writer, seconds, malformed)

    async def close(self) -> None:
        """Close the connection."""
        self._listener.cancel()
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def version(self) -> str:
        """Charon's version, for instance ``5.9.8``."""
        return self._read(_version, await self._request("version"))

    async def subscribe(self, on_event: Callable[[str, ViciSection], None]) -> None:
        """Call ``on_event(name, section)`` for every change of an IKE_SA or CHILD_SA from now on."""
        self._on_event = on_event
        for name in _EVENTS:
            await self._register(name)

    async def child_names(self) -> dict[int, ChildName]:
        """What the CHILD_SAs are called, by both of their SPIs (``list-sas``)."""
        return self._read(_names, await self._streamed("list-sas", "list-sa"))

    async def local_addresses(self) -> list[str]:
        """The ``local_addrs`` of all loaded connections, as written (``list-conns``)."""
        return self._read(_local_addresses, await self._streamed("list-conns", "list-conn"))

    async def never_rekeyed(self) -> frozenset[ConfiguredChild]:
        """Children that are configured never to be rekeyed by time or volume (``list-conns``)."""
        return self._read(_never_rekeyed, await self._streamed("list-conns", "list-conn"))

    def _read(self, parse: Callable[[T], U], what: T) -> U:
        """Parse an answer. One that is not what charon sends is counted and taken for no answer."""
        try:
            return parse(what)
        except (AttributeError, TypeError, ValueError) as error:
            self._malformed()
            raise IkeError(f"charon's vici answer cannot be read ({error}) - is it strongSwan 5.9 or newer?") from None

    async def _request(self, command: str) -> ViciSection:
        async with self._turn:
            return await self._exchange(Packet.request(command), Packet.CMD_RESPONSE, command)

    async def _register(self, event: str) -> None:
        async with self._turn:
            await self._exchange(Packet.register_event(event), Packet.EVENT_CONFIRM, f"event {event}")

    async def _streamed(self, command: str, event: str) -> list[ViciSection]:
        """A command whose answer comes as events (vici README, "streamed")."""
        sections: list[ViciSection] = []
        async with self._turn:
            previous = self._on_event

            def collect(name: str, section: ViciSection) -> None:
                if name == event:
                    sections.append(section)
                else:
                    previous(name, section)

            self._on_event = collect
            try:
                await self._exchange(Packet.register_event(event), Packet.EVENT_CONFIRM, f"event {event}")
                await self._exchange(Packet.request(command), Packet.CMD_RESPONSE, command)
                await self._exchange(Packet.unregister_event(event), Packet.EVENT_CONFIRM, f"event {event}")
            finally:
                self._on_event = previous
        return sections

    async def _exchange(self, packet: bytes, expected: int, what: str) -> ViciSection:
        if self.closed.is_set():
            raise IkeError(f"vici connection {self._uri} was closed by charon - it reconnects when charon is back")
        self._drop_unasked()
        self._writer.write(struct.pack("!I", len(packet)) + packet)
        try:
            async with asyncio.timeout(self._seconds):
                await self._writer.drain()
                kind, section = await self._answers.get()
        except (OSError, TimeoutError):
            await self.close()
            self.closed.set()
            raise IkeError(
                f"charon did not answer vici '{what}' within {self._seconds:g} s - it hangs or is overloaded; "
                "the data path goes on, restart charon if it does not recover"
            ) from None
        if kind == _CLOSED:
            raise IkeError(f"charon closed the vici connection {self._uri} - it reconnects when charon is back")
        if kind != expected:
            raise IkeError(f"charon does not know vici '{what}' - strongSwan 5.9 or newer is needed")
        return section

    def _drop_unasked(self) -> None:
        """An answer that nobody asked for must not be taken for that of the next question."""
        while not self._answers.empty():
            self._answers.get_nowait()
            self._malformed()

    async def _listen(self) -> None:
        """Read packets for ever: answers go to whoever waits, events to the subscriber."""
        try:
            while True:
                (length,) = struct.unpack("!I", await self._reader.readexactly(4))
                if length > _MAX_MESSAGE:
                    raise ValueError(f"{length} bytes are announced")
                stream = _Exact(await self._reader.readexactly(length))
                kind = stream.read(1)[0]
                if kind == Packet.EVENT:
                    name = stream.read(stream.read(1)[0]).decode()
                    self._on_event(name, _payload(stream))
                else:
                    self._answers.put_nowait((kind, _payload(stream)))
        except (OSError, asyncio.IncompleteReadError):
            pass  # `closed` tells the rest; the owner reconnects
        except (DeserializationException, struct.error, ValueError) as error:
            self._malformed()
            log.warning("a vici message cannot be read, the connection is closed", reason=str(error))
        finally:
            self.closed.set()
            self._answers.put_nowait((_CLOSED, {}))
            self._on_event("closed", {})


class _Exact(FiniteStream):  # type: ignore[misc]
    """A message that never gives less than was asked for: half a number would be another number."""

    def read(self, size: int | None = -1, /) -> bytes:
        data = bytes(super().read(size))
        if size is not None and len(data) < size:
            raise DeserializationException(f"{size} bytes were announced, {len(data)} are there")
        return data


def _version(section: ViciSection) -> str:
    return _text(section.get("version", b"unknown"))


def _names(answers: list[ViciSection]) -> dict[int, ChildName]:
    names: dict[int, ChildName] = {}
    for sections in answers:
        for connection, ike in sections.items():
            for child in ike.get("child-sas", {}).values():
                name = ChildName(
                    connection=connection,
                    child=_text(child.get("name", b"?")),
                    ike_id=int(ike.get("uniqueid", b"0")),
                    child_id=int(child.get("uniqueid", b"0")),
                    state=_text(child.get("state", b"?")),
                )
                for side in ("spi-in", "spi-out"):
                    if side in child:
                        names[int(child[side], 16)] = name
    return names


def _local_addresses(answers: list[ViciSection]) -> list[str]:
    return [
        _text(address)
        for sections in answers
        for connection in sections.values()
        for address in connection.get("local_addrs", ())
    ]


def _never_rekeyed(answers: list[ViciSection]) -> frozenset[ConfiguredChild]:
    return frozenset(
        ConfiguredChild(name, child)
        for sections in answers
        for name, connection in sections.items()
        for child, section in connection.get("children", {}).items()
        if all(int(section.get(limit, b"1")) == 0 for limit in ("rekey_time", "rekey_bytes", "rekey_packets"))
    )


def _payload(stream: FiniteStream) -> ViciSection:
    start = stream.tell()
    while stream.has_more():
        _skip(stream)
    stream.seek(start)
    return cast(ViciSection, Message.deserialize(stream))


def _skip(stream: FiniteStream) -> None:
    """Read over an element. Raises DeserializationException or ValueError: the package passes over bytes that are no
    type of one.
    """
    kind = stream.read(1)[0]
    if kind not in _ELEMENTS:
        raise DeserializationException(f"{kind} is no type of an element")
    if kind in _NAMED:
        _text(stream.read(stream.read(1)[0]))
    if kind in _WITH_VALUE:
        stream.read(int.from_bytes(stream.read(2), "big"))


def _text(value: bytes) -> str:
    """Raises ValueError for more than text: with a wrong length, the elements that follow would be a part of it."""
    if any(byte < _SPACE for byte in value):
        raise ValueError("control characters")
    return value.decode("utf-8", "replace")
