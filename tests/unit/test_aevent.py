"""Bulk reading and writing of SA states, against hand-packed messages and the other codec."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address

import pytest

from ipsec_gw.errors import XfrmError
from ipsec_gw.ike import aevent
from ipsec_gw.ike.aevent import StateSocket, pack_warming, parse_state
from ipsec_gw.ike.codec import parse_sa
from ipsec_gw.ike.messages import AeventId
from ipsec_gw.model.ids import SaKey
from ipsec_gw.model.warmth import SaState, Volume, Warming
from tests.unit.test_xfrm_codec import aead, attribute, netlink, usersa

LEGACY = attribute(10, struct.pack("=III", 41, 42, 0xFF))
ESN = attribute(23, struct.pack("=6I", 4, 5, 6, 7, 8, 128) + bytes(16))
DONE = struct.pack("=IHHIIi", 20, 3, 0, 1, 0, 0)
STATE = SaState(SaKey(ip_address("10.9.8.7"), 0xDEADBEEF), 41, 42, 32, 0, Volume(22, 1111), 333, 444)


def body(*attributes: bytes, **changes: int) -> bytes:
    return bytes(usersa(*attributes, **changes).data[16:])


@pytest.mark.parametrize(("replay", "flags", "words"), [(LEGACY, 0, 0), (ESN, 0x80, 4)])
def test_a_state_is_what_the_careful_codec_reads(replay: bytes, flags: int, words: int) -> None:
    state = parse_state(body(aead(), replay, flags=flags))
    careful = parse_sa(usersa(aead(), replay, flags=flags))
    assert state is not None
    assert (state.key, state.oseq, state.seq, state.window, state.words) == (
        careful.key,
        careful.replay.oseq,
        careful.replay.seq,
        careful.replay.window,
        words,
    )
    assert state.used == Volume(careful.lifetime.packets, careful.lifetime.octets)
    assert (state.add_time, state.use_time) == (careful.lifetime.add_time, careful.lifetime.use_time)


def test_limits_are_read() -> None:
    raw = bytearray(body(LEGACY))
    struct.pack_into("=4Q", raw, 96, 1000, 2000, 30, 40)
    state = parse_state(bytes(raw))
    assert state is not None
    assert (state.soft, state.hard) == (Volume(30, 1000), Volume(40, 2000))


def test_what_cannot_be_written_to_is_left_out() -> None:
    assert parse_state(body(aead())) is None, "nothing of its numbers"
    other = bytearray(body(LEGACY))
    other[76] = 51
    assert parse_state(bytes(other)) is None, "AH"


@pytest.mark.parametrize(
    "broken",
    [attribute(10, bytes(8)), attribute(23, bytes(20)), attribute(23, ESN[4:-4]), LEGACY + b"\0", LEGACY[:-4]],
)
def test_an_sa_that_cannot_be_read_is_counted_and_holds_up_no_other(
    monkeypatch: pytest.MonkeyPatch, broken: bytes
) -> None:
    """Its mark might be missing, or its numbers be those of something else."""
    dump = netlink(0x10, body(aead(), LEGACY)) + b"".join(
        padded(netlink(0x10, body(aead(), one))) for one in (broken, LEGACY)
    )
    talk(monkeypatch, datagrams=(dump, DONE))
    malformed: list[int] = []
    assert len(StateSocket(lambda: malformed.append(1)).states()) == 2
    assert malformed == [1]


def padded(message: bytes) -> bytes:
    return message + bytes(-len(message) % 4)


def written(warm: Warming) -> AeventId:
    message = AeventId(netlink(0x1E, pack_warming(warm)))
    message.decode()
    return message


def test_a_volume_alone_touches_no_number() -> None:
    message = written(Warming(STATE, Volume(100, 9000), 555, None))
    assert (message["spi"], message["proto"], message["family"]) == (0xDEADBEEF, 50, 2)
    assert bytes(message["daddr"]) == ip_address("10.9.8.7").packed.ljust(16, b"\0")
    assert [name for name, _ in message["attrs"]] == ["XFRMA_LTIME_VAL"]
    raw = message.get_attr("XFRMA_LTIME_VAL")
    assert struct.unpack("=4Q", raw if isinstance(raw, bytes) else bytes(raw)) == (9000, 100, 333, 555)


def test_an_inbound_window_is_moved_and_shut() -> None:
    legacy = written(Warming(STATE, Volume(1, 1), 1, 77)).get_attr("XFRMA_REPLAY_VAL")
    assert (legacy["oseq"], legacy["seq"], legacy["bitmap"]) == (41, 77, 0xFFFFFFFF)
    extended = replace(STATE, oseq=5 | 7 << 32, window=128, words=4)
    raw = written(Warming(extended, Volume(1, 1), 1, 9 | 3 << 32)).get_attr("XFRMA_REPLAY_ESN_VAL")
    assert struct.unpack_from("=6I", raw) == (4, 5, 9, 7, 3, 128)
    assert raw[24:] == b"\xff" * 16


def test_an_sa_with_a_mark_is_written_to_by_it() -> None:
    """The kernel does not find it otherwise (``xfrm_state_lookup``)."""
    mark = struct.pack("=II", 42, 0xFFFFFFFF)
    state = parse_state(body(LEGACY, attribute(21, mark)))
    assert state is not None
    for warm in (Warming(state, Volume(1, 1), 1, None), Warming(state, Volume(1, 1), 1, 77)):
        assert bytes(written(warm).get_attr("XFRMA_MARK")) == mark


class Kernel:
    """A netlink socket with prepared answers: NLMSG_ERROR for each message that was sent, or what it was given."""

    def __init__(self, codes: Iterator[int], datagrams: list[bytes]) -> None:
        self.codes, self.datagrams = codes, datagrams
        self.kinds: list[int] = []

    def send(self, data: bytes) -> None:
        offset, answer = 0, b""
        while offset < len(data):
            length, kind, _, sequence, _ = struct.unpack_from("=IHHII", data, offset)
            self.kinds.append(kind)
            if kind == 0x1E:
                answer += struct.pack("=IHHIIi", 36, 2, 0, sequence, 0, -next(self.codes)) + data[offset : offset + 16]
            offset += length
        if answer:
            self.datagrams.append(answer)

    def recv(self, _size: int) -> bytes:
        if not self.datagrams:
            raise TimeoutError
        return self.datagrams.pop(0)

    def bind(self, _address: object) -> None:
        pass

    settimeout = bind

    def close(self) -> None:
        pass


def talk(monkeypatch: pytest.MonkeyPatch, *, codes: tuple[int, ...] = (), datagrams: tuple[bytes, ...] = ()) -> Kernel:
    kernel = Kernel(iter(codes), list(datagrams))
    monkeypatch.setattr(aevent.socket, "socket", lambda *_: kernel)
    return kernel


def test_what_is_gone_meanwhile_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    talk(monkeypatch, codes=(0, errno.ESRCH, 0))
    assert StateSocket().write([Warming(STATE, Volume(1, 1), 1, None)] * 3) == 2


def test_a_refusal_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    talk(monkeypatch, codes=(0, errno.EINVAL, 0))
    with pytest.raises(XfrmError, match="Invalid argument"):
        StateSocket().write([Warming(STATE, Volume(1, 1), 1, None)] * 3)


def test_a_dump_is_read_to_its_end_and_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    one = netlink(0x10, body(aead(), LEGACY))
    talk(monkeypatch, datagrams=(one + one, one, DONE))
    assert [state.seq for state in StateSocket().states()] == [42, 42, 42]


@pytest.mark.parametrize(
    ("last", "code"),
    [
        (struct.pack("=IHHIIi", 20, 3, 0, 1, 0, -errno.EINTR), errno.EINTR),
        (b"\1", errno.EBADMSG),
        (DONE[:-1], errno.EBADMSG),
        (netlink(3, b"")[:16], errno.EBADMSG),
        (netlink(0x13, body(aead(), LEGACY)), errno.EBADMSG),
    ],
)
def test_a_dump_that_broke_off_is_an_error(monkeypatch: pytest.MonkeyPatch, last: bytes, code: int) -> None:
    malformed: list[int] = []
    talk(monkeypatch, datagrams=(netlink(0x10, body(aead(), LEGACY)), last))
    with pytest.raises(XfrmError) as caught:
        StateSocket(lambda: malformed.append(1)).states()
    assert caught.value.errno == code
    assert len(malformed) == (code == errno.EBADMSG)
