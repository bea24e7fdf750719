"""An asyncio vici session over ``vici.protocol`` (the package's own Session is synchronous).

One reader demultiplexes: events may arrive at any time, also between a request and its answer. Every wait has a
time-out, so a hung charon never blocks anybody.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import Callable, Mapping
from typing import Any, cast

from vici.exception import DeserializationException
from vici.protocol import FiniteStream, Message, Packet

from ipsec_gw.errors import IkeError
from ipsec_gw.model.snapshot import ChildName

ViciSection = Mapping[str, Any]
"""A parsed vici message: values are bytes, lists of bytes, or sections."""

DEFAULT_SOCKET = "unix:///var/run/charon.vici"
_MAX_MESSAGE = 512 * 1024
_CLOSED = -1
_EVENTS = ("ike-updown", "ike-rekey", "child-updown", "child-rekey")


class ViciSession:
    """A connection to charon. Create it with :meth:`connect`; all failures are IkeError."""

    def __init__(self, uri: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seconds: float) -> None:
        self._uri = uri
        self._reader = reader
        self._writer = writer
        self._seconds = seconds
        self._turn = asyncio.Lock()
        self._answers: asyncio.Queue[tuple[int, ViciSection]] = asyncio.Queue()
        self._on_event: Callable[[str, ViciSection], None] = lambda _name, _section: None
        self._listener = asyncio.create_task(self._listen(), name="vici reader")
        self.closed = asyncio.Event()

    @classmethod
    async def connect(cls, uri: str = DEFAULT_SOCKET, seconds: float = 10.0) -> ViciSession:
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
        return cls(uri, reader, writer, seconds)

    async def close(self) -> None:
        """Close the connection."""
        self._listener.cancel()
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def version(self) -> str:
        """Charon's version, for instance ``5.9.8``."""
        return _text((await self._request("version")).get("version", b"unknown"))

    async def subscribe(self, on_event: Callable[[str, ViciSection], None]) -> None:
        """Call ``on_event(name, section)`` for every change of an IKE_SA or CHILD_SA from now on."""
        self._on_event = on_event
        for name in _EVENTS:
            await self._register(name)

    async def child_names(self) -> dict[int, ChildName]:
        """What the CHILD_SAs are called, by both of their SPIs (``list-sas``)."""
        names: dict[int, ChildName] = {}
        for sections in await self._streamed("list-sas", "list-sa"):
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

    async def local_addresses(self) -> list[str]:
        """The ``local_addrs`` of all loaded connections, as written (``list-conns``)."""
        found: list[str] = []
        for sections in await self._streamed("list-conns", "list-conn"):
            for connection in sections.values():
                found += [_text(address) for address in connection.get("local_addrs", ())]
        return found

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

    async def _listen(self) -> None:
        """Read packets for ever: answers go to whoever waits, events to the subscriber."""
        try:
            while True:
                (length,) = struct.unpack("!I", await self._reader.readexactly(4))
                if length > _MAX_MESSAGE:
                    raise OSError(f"vici message of {length} bytes")
                packet = Packet.parse(await self._reader.readexactly(length))
                if packet.response_type == Packet.EVENT:
                    name = packet.event_type.decode()
                    self._on_event(name, cast(ViciSection, Message.deserialize(packet.payload)))
                else:
                    self._answers.put_nowait((packet.response_type, _payload(packet.payload)))
        except (OSError, asyncio.IncompleteReadError, DeserializationException):
            pass  # `closed` tells the rest; the owner reconnects
        finally:
            self.closed.set()
            self._answers.put_nowait((_CLOSED, {}))
            self._on_event("closed", {})


def _payload(stream: FiniteStream) -> ViciSection:
    return cast(ViciSection, Message.deserialize(stream))


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")
