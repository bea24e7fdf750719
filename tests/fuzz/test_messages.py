"""Whatever kernel and charon send: an error that is counted, never a crash, never a wrong SA or name."""

from __future__ import annotations

import asyncio
import errno
import struct
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from vici.protocol import Message, Packet

from ipsec_gw.errors import IkeError, XfrmError
from ipsec_gw.ike import xfrm
from ipsec_gw.ike.codec import UNREADABLE
from ipsec_gw.ike.vici import ViciSession
from ipsec_gw.ike.xfrm import XfrmSocket
from ipsec_gw.model.ids import SaKey
from ipsec_gw.model.snapshot import ChildName, XfrmSa
from tests.unit.test_vici import SAS, frame

NEWSA, ERROR, DONE, MULTI = 0x10, 2, 3, 2
KEY = bytes(range(1, 21))


def attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(data), kind) + data + b"\0" * (-len(data) % 4)


def netlink(kind: int, body: bytes) -> bytes:
    """With sequence number 1: the first request of a socket."""
    return struct.pack("=IHHII", 16 + len(body), kind, MULTI, 1, 0) + body


def newsa(spi: int, key: bytes = KEY, bits: int | None = None) -> bytes:
    """An SA of AES-GCM between two addresses, with legacy replay state and a mark."""
    address = ip_address("10.0.0.2").packed.ljust(16, b"\0")
    identity = address + struct.pack(">IB3x", spi, 50) + ip_address("10.0.0.1").packed.ljust(16, b"\0")
    tail = struct.pack("=4Q12xIIHBBB7x", 1, 2, 3, 4, 0, 77, 2, 1, 32, 0)
    aead = b"rfc4106(gcm(aes))".ljust(64, b"\0") + struct.pack("=II", len(key) * 8 if bits is None else bits, 128) + key
    attributes = attribute(18, aead) + attribute(10, struct.pack("=III", 41, 42, 7)) + attribute(21, bytes(8))
    return netlink(NEWSA, bytes(56) + identity + bytes(64) + tail + attributes)


END = netlink(DONE, struct.pack("=i", 0))


class Kernel:
    """An XFRM socket that answers with prepared datagrams; then nothing comes any more."""

    def __init__(self, datagrams: list[bytes]) -> None:
        self.datagrams = list(datagrams)

    def bind(self, *_: object) -> None:
        pass

    settimeout = setsockopt = send = bind

    def recv(self, size: int) -> bytes:
        if not self.datagrams:
            raise TimeoutError
        return self.datagrams.pop(0)[:size]

    def close(self) -> None:
        pass


def ask(datagrams: list[bytes]) -> tuple[XfrmSocket, list[XfrmSa] | XfrmError]:
    """What a dump of all SAs comes to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(xfrm.socket, "socket", lambda *_: Kernel(datagrams))
        with XfrmSocket() as socket:
            try:
                return socket, socket.sas()
            except XfrmError as error:
                return socket, error


def understood(*datagrams: bytes) -> list[XfrmSa]:
    answer = ask(list(datagrams))[1]
    assert isinstance(answer, list), answer
    return answer


GOOD = {sa.key: sa for sa in understood(newsa(1) + newsa(2), newsa(3), END)}


def never_wrong(answer: list[XfrmSa] | XfrmError) -> None:
    """Every SA with a key is one that was sent."""
    if isinstance(answer, list):
        for sa in answer:
            assert sa.aead is None or sa == GOOD.get(sa.key)


def test_a_dump_is_read() -> None:
    assert {key.spi for key in GOOD} == {1, 2, 3}
    sa = GOOD[SaKey(ip_address("10.0.0.2"), 1)]
    assert sa.aead is not None
    assert (sa.aead.secret.reveal(), sa.replay.oseq, sa.reqid) == (KEY, 41, 77)


@pytest.mark.parametrize("code", [errno.ENOBUFS, errno.EINTR, errno.EMSGSIZE])
def test_a_dump_that_broke_off_is_not_taken_for_all_there_is(code: int) -> None:
    answer = ask([newsa(1), netlink(DONE, struct.pack("=i", -code))])[1]
    assert isinstance(answer, XfrmError)
    assert answer.errno == code


def test_a_dump_without_its_end_is_no_answer() -> None:
    answer = ask([newsa(1), newsa(2)])[1]
    assert isinstance(answer, XfrmError)
    assert answer.errno == errno.ETIMEDOUT


def test_a_dump_of_twenty_thousand_sas_is_read() -> None:
    spis = range(1, 20_001)
    datagrams = [b"".join(map(newsa, spis[n : n + 100])) for n in range(0, len(spis), 100)]
    assert [sa.key.spi for sa in understood(*datagrams, END)] == list(spis)


def test_an_aead_key_that_is_cut_off_is_none_at_all() -> None:
    """The first part of an AES-256 key would pass for an AES-128 key."""
    (sa,) = understood(newsa(1, KEY, bits=36 * 8), END)
    assert sa.aead is None
    assert sa.extras == {UNREADABLE}
    assert sa.key.spi == 1, "it is there, and the kernel's"


def test_an_answer_of_another_type_is_none() -> None:
    """Read as an SA, a policy would be one."""
    socket, answer = ask([newsa(1)[:4] + b"\x13" + newsa(1)[5:], END])
    assert isinstance(answer, XfrmError)
    assert socket.malformed == 1


def test_what_cannot_be_read_is_counted() -> None:
    whole = newsa(1)
    socket, answer = ask([whole[:-8], END])
    assert isinstance(answer, XfrmError)
    assert socket.malformed == 1
    assert KEY.hex() not in str(answer)
    assert repr(KEY)[2:-1] not in str(answer)


@given(st.data())
def test_a_dump_that_is_cut_anywhere_gives_no_wrong_sa(data: st.DataObject) -> None:
    whole = [newsa(1) + newsa(2), newsa(3), END]
    victim = data.draw(st.integers(0, 2))
    length = data.draw(st.integers(0, len(whole[victim]) - 1))
    never_wrong(ask([*whole[:victim], whole[victim][:length], *whole[victim + 1 :]])[1])


@given(st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=4), st.booleans())
def test_a_dump_with_any_bytes_changed_is_read_or_refused(changes: list[tuple[int, int]], heads: bool) -> None:
    """Lengths and kinds above all: the contents of an SA are as the kernel says."""
    whole = bytearray(newsa(1) + newsa(2))
    one = len(whole) // 2
    places = [0, 4, 240, 242, 240 + 96, 242 + 96] if heads else range(len(whole))
    for place, value in changes:
        whole[(places[place % len(places)] + (place // len(places) % 2) * one) % len(whole)] = value
    socket, answer = ask([bytes(whole), END])
    if isinstance(answer, XfrmError):
        assert answer.errno
        assert socket.malformed <= 1
    else:
        assert all(isinstance(sa, XfrmSa) for sa in answer)


@given(st.lists(st.binary(max_size=400), max_size=4))
@example([b"\x10\0\0\0\x02\0\0\0\x01\0\0\0\0\0\0\0"])
@example([netlink(ERROR, b"\0")])
@example([netlink(NEWSA, bytes(100)), END])
def test_any_datagrams_are_an_error_that_is_told(datagrams: list[bytes]) -> None:
    answer = ask(datagrams)[1]
    assert answer == [] or isinstance(answer, XfrmError)


# vici

Ask = Callable[[ViciSession], Awaitable[Any]]


class Writer:
    """Where a session writes its questions."""

    def write(self, _data: bytes) -> None:
        pass

    def close(self) -> None:
        pass

    async def drain(self) -> None:
        pass

    wait_closed = drain


async def answer_of(ask: Ask, chunks: Sequence[bytes], one_by_one: bool) -> tuple[Any, int, bool]:
    """What a question makes of a stream, how many messages were unreadable, and if the connection was closed."""
    reader = asyncio.StreamReader()
    malformed: list[int] = []
    session = ViciSession("test", reader, Writer(), 5.0, lambda: malformed.append(1))  # type: ignore[arg-type]
    asking = asyncio.ensure_future(ask(session))
    for chunk in chunks:
        for _ in range(5):
            await asyncio.sleep(0)  # each answer comes after its question
        for part in [chunk[n : n + 1] for n in range(len(chunk))] if one_by_one else [chunk]:
            reader.feed_data(part)
    for _ in range(5):
        await asyncio.sleep(0)
    reader.feed_eof()
    try:
        answer: Any = await asking
    except IkeError as error:
        answer = error
    await asyncio.wait([session._listener])
    assert session._listener.exception() is None
    return answer, len(malformed), session.closed.is_set()


def listen(*chunks: bytes, one_by_one: bool = False, ask: Ask = ViciSession.child_names) -> tuple[Any, int]:
    answer, malformed, closed = asyncio.run(answer_of(ask, chunks, one_by_one))
    assert closed
    return answer, malformed


CONFIRM = frame(Packet.EVENT_CONFIRM)
HEALTHY = (CONFIRM, frame(Packet.EVENT, SAS, "list-sa"), frame(Packet.CMD_RESPONSE), CONFIRM)
NAMES = {spi: ChildName("site", "net", 7, 3, "INSTALLED") for spi in (0xC0000011, 0xC0000022)}


def packet(body: bytes) -> bytes:
    return struct.pack("!I", len(body)) + body


def test_an_answer_is_read_however_it_arrives() -> None:
    assert listen(*HEALTHY) == (NAMES, 0)
    assert listen(*HEALTHY, one_by_one=True) == (NAMES, 0)


@pytest.mark.parametrize(
    "sections",
    [
        {"site": "no section"},
        {"site": {"child-sas": "no section"}},
        {"site": {"child-sas": {"net": "no section"}}},
        {"site": {"uniqueid": "seven", "child-sas": {"net": {"spi-in": "11"}}}},
        {"site": {"child-sas": {"net": {"spi-in": "no number"}}}},
        {"site": {"child-sas": {"net": {"spi-in": ["a", "list"]}}}},
        {"site": {"child-sas": {"net": {"name": {"a": "section"}, "spi-in": "11"}}}},
    ],
)
def test_an_answer_of_another_shape_is_a_counted_error(sections: dict[str, Any]) -> None:
    answer, malformed = listen(CONFIRM, frame(Packet.EVENT, sections, "list-sa"), frame(Packet.CMD_RESPONSE), CONFIRM)
    assert isinstance(answer, IkeError)
    assert malformed == 1


@pytest.mark.parametrize(
    "broken",
    [
        packet(b""),
        packet(struct.pack("!BB", Packet.EVENT, 200) + b"short"),
        packet(struct.pack("!BB", Packet.EVENT, 2) + b"\xff\xfe"),
        packet(bytes([Packet.CMD_RESPONSE, Message.KEY_VALUE, 1])),
        packet(bytes([Packet.CMD_RESPONSE, Message.SECTION_END])),
        packet(bytes([Packet.CMD_RESPONSE, Message.SECTION_START, 1, 65])),
        packet(bytes([Packet.CMD_RESPONSE, Message.LIST_START, 1, 65, 9])),
        packet(bytes([Packet.CMD_RESPONSE, 110])),
        packet(bytes([Packet.CMD_RESPONSE, Message.KEY_VALUE, 2, 65, Message.KEY_VALUE, 0, 0])),
        struct.pack("!I", 1 << 30),
    ],
)
def test_a_broken_message_is_counted_and_ends_the_connection(broken: bytes) -> None:
    answer, malformed = listen(CONFIRM, broken)
    assert isinstance(answer, IkeError)
    assert malformed == 1


def test_ten_thousand_children_are_named() -> None:
    events = b"".join(
        frame(Packet.EVENT, {"c": {"child-sas": {"n": {"name": "n", "spi-in": f"{spi:x}"}}}}, "list-sa")
        for spi in range(1, 10_001)
    )
    answer, malformed = listen(CONFIRM, events + HEALTHY[2], CONFIRM)
    assert isinstance(answer, dict)
    assert answer.keys() == set(range(1, 10_001))
    assert malformed == 0


def test_an_answer_that_nobody_asked_for_is_not_taken_for_the_next() -> None:
    assert listen(CONFIRM, *HEALTHY[1:3], CONFIRM) == (NAMES, 0)
    answer, malformed = listen(CONFIRM + frame(Packet.CMD_RESPONSE, {"stale": "1"}), *HEALTHY[1:])
    assert (answer, malformed) == (NAMES, 1)


def test_a_value_that_is_cut_off_is_no_value() -> None:
    """The packet is framed well, and its last value says that it is longer than what is there."""
    value = b"\x07version" + struct.pack("!H", 6) + b"5.9.14"
    whole, cut = (packet(bytes([Packet.CMD_RESPONSE, Message.KEY_VALUE]) + value[:n]) for n in (None, -1))
    assert listen(whole, ask=ViciSession.version) == ("5.9.14", 0)
    answer, malformed = listen(cut, ask=ViciSession.version)
    assert isinstance(answer, IkeError)
    assert malformed == 1


@given(st.integers(0, sum(map(len, HEALTHY)) - 1))
def test_a_stream_that_is_cut_anywhere_gives_no_names(length: int) -> None:
    stream = b"".join(HEALTHY)[:length]
    pieces, offset = [], 0
    for one in HEALTHY:
        pieces.append(stream[offset : offset + len(one)])
        offset += len(one)
    assert isinstance(listen(*pieces)[0], IkeError)


@given(st.lists(st.binary(max_size=120).map(packet) | st.binary(max_size=40), max_size=5))
def test_any_stream_is_an_error_or_names(chunks: list[bytes]) -> None:
    answer, _ = listen(*chunks)
    assert isinstance(answer, IkeError) or all(isinstance(name, ChildName) for name in answer.values())


@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 255)), min_size=1, max_size=3))
def test_an_answer_with_any_bytes_changed_is_an_error_or_names(changes: list[tuple[int, int]]) -> None:
    event = bytearray(HEALTHY[1])
    for place, value in changes:
        event[4 + place % (len(event) - 4)] = value
    answer, _ = listen(CONFIRM, bytes(event), HEALTHY[2], CONFIRM)
    assert isinstance(answer, IkeError) or all(isinstance(name, ChildName) for name in answer.values())
