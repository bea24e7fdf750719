"""The vici session against a scripted charon on a real socket."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from vici.protocol import Message, Packet

from ipsec_gw.errors import IkeError
from ipsec_gw.ike.vici import ViciSession

SAS = {
    "site": {
        "uniqueid": "7",
        "child-sas": {
            "net-1": {
                "name": "net",
                "uniqueid": "3",
                "state": "INSTALLED",
                "spi-in": "c0000011",
                "spi-out": "c0000022",
            }
        },
    }
}


def frame(kind: int, message: dict[str, Any] | None = None, name: str = "") -> bytes:
    body = struct.pack("!B", kind)
    if name:
        body += struct.pack("!B", len(name)) + name.encode()
    body += Message.serialize(message or {})
    return struct.pack("!I", len(body)) + body


NO_REKEY = {"mode": "TUNNEL", "rekey_time": "0", "rekey_bytes": "0", "rekey_packets": "0", "local-ts": ["dynamic"]}
CHILDREN = {"client": {}, "timed": {"rekey_time": "3600"}, "counted": {"rekey_packets": "1000000"}}

Script = Callable[[int, str], list[bytes]]


@asynccontextmanager
async def charon(path: Path, script: Script) -> AsyncIterator[str]:
    """A server that answers every named packet with what ``script(kind, name)`` returns."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                (length,) = struct.unpack("!I", await reader.readexactly(4))
                packet = await reader.readexactly(length)
                name = packet[2 : 2 + packet[1]].decode()
                for answer in script(packet[0], name):
                    writer.write(answer)
        except asyncio.IncompleteReadError:
            writer.close()

    server = await asyncio.start_unix_server(serve, path)
    try:
        yield f"unix://{path}"
    finally:
        server.close()


def healthy(kind: int, name: str) -> list[bytes]:
    if kind in (Packet.EVENT_REGISTER, Packet.EVENT_UNREGISTER):
        return [frame(Packet.EVENT_CONFIRM)]
    if name == "list-sas":
        return [frame(Packet.EVENT, SAS, "list-sa"), frame(Packet.CMD_RESPONSE)]
    if name == "list-conns":
        children = {name: {**NO_REKEY, **changes} for name, changes in CHILDREN.items()}
        conns = {"site": {"local_addrs": ["10.0.0.1", "%any"], "children": children}}
        return [frame(Packet.EVENT, conns, "list-conn"), frame(Packet.CMD_RESPONSE)]
    return [frame(Packet.CMD_RESPONSE, {"version": "5.9.8"})]


async def test_names_by_both_spis(tmp_path: Path) -> None:
    async with charon(tmp_path / "v", healthy) as uri:
        session = await ViciSession.connect(uri)
        names = await session.child_names()
        assert names.keys() == {0xC0000011, 0xC0000022}
        name = names[0xC0000011]
        assert (name.connection, name.child, name.ike_id, name.child_id, name.state) == (
            "site",
            "net",
            7,
            3,
            "INSTALLED",
        )
        assert await session.version() == "5.9.8"
        assert await session.local_addresses() == ["10.0.0.1", "%any"]
        assert await session.never_rekeyed() == {("site", "client")}
        await session.close()


async def test_an_event_between_request_and_answer_reaches_the_subscriber(tmp_path: Path) -> None:
    def interrupting(kind: int, name: str) -> list[bytes]:
        event = frame(Packet.EVENT, {"net": {"up": "yes"}}, "child-updown")
        return [event, *healthy(kind, name)]

    async with charon(tmp_path / "v", interrupting) as uri:
        session = await ViciSession.connect(uri)
        heard: list[str] = []
        await session.subscribe(lambda name, _section: heard.append(name))
        assert await session.version() == "5.9.8"
        assert (await session.child_names()).keys() == {0xC0000011, 0xC0000022}
        assert heard.count("child-updown") >= 4
        assert "list-sa" not in heard
        await session.close()


async def test_an_absent_socket_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(IkeError, match="is absent - is charon running"):
        await ViciSession.connect(f"unix://{tmp_path}/nowhere")


async def test_a_socket_that_nobody_serves_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(IkeError, match="vici socket"):
        await ViciSession.connect(f"unix://{tmp_path}/file")


async def test_a_hung_charon_is_given_up_after_the_time_out(tmp_path: Path) -> None:
    async with charon(tmp_path / "v", lambda _kind, _name: []) as uri:
        session = await ViciSession.connect(uri, seconds=0.05)
        with pytest.raises(IkeError, match=r"did not answer vici 'version' within 0.05 s"):
            await session.version()
        assert session.closed.is_set(), "a late answer must not be taken for the next one"


async def test_a_charon_that_dies_ends_the_wait(tmp_path: Path) -> None:
    async with charon(tmp_path / "v", lambda _kind, _name: [b"\xff\xff\xff\xff"]) as uri:
        session = await ViciSession.connect(uri)
        with pytest.raises(IkeError, match="closed the vici connection"):
            await session.version()


async def test_an_unknown_command_is_reported(tmp_path: Path) -> None:
    async with charon(tmp_path / "v", lambda _kind, _name: [frame(Packet.CMD_UNKNOWN)]) as uri:
        session = await ViciSession.connect(uri)
        with pytest.raises(IkeError, match="does not know vici 'version'"):
            await session.version()
        await session.close()
