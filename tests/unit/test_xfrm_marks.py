"""SAs with marks: the kernel finds them by these alone (``xfrm_state_lookup``), so every request has to name them."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

import pytest

from ipsec_gw.ike import xfrm
from ipsec_gw.ike.messages import AeventId, UserExpire, UserSaId, XfrmMessage
from ipsec_gw.ike.xfrm import XfrmSocket
from ipsec_gw.model.ids import SaKey
from tests.fuzz.test_messages import END, attribute, newsa

GETSA, EXPIRE, NEWAE = 0x12, 0x18, 0x1E
MARKED, PLAIN = 1, 2
MARK = (42, 0xFFFFFFFF)


def with_mark(spi: int) -> bytes:
    raw = newsa(spi)
    return raw.replace(attribute(21, bytes(8)), attribute(21, struct.pack("=II", *MARK)))


def without(spi: int) -> bytes:
    raw = bytearray(newsa(spi).replace(attribute(21, bytes(8)), b""))
    struct.pack_into("=I", raw, 0, len(raw))
    return bytes(raw)


SAS = {MARKED: with_mark(MARKED), PLAIN: without(PLAIN)}


class Kernel:
    """A netlink socket that has two SAs, and finds one by its mark alone."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, bytes]] = []
        self._answers: list[bytes] = []

    def send(self, data: bytes) -> None:
        _, kind, flags, sequence, _ = struct.unpack_from("=IHHII", data)
        body = data[16:]
        self.asked.append((kind, body))
        if kind == GETSA and flags & 0x300:
            self._answers = [_numbered(raw, sequence) for raw in (*SAS.values(), END)]
        elif kind == GETSA:
            found = decoded(UserSaId, kind, body)
            raw = SAS[found["spi"]]
            known = mark_of(found) == (MARK if found["spi"] == MARKED else None)
            self._answers = [_numbered(raw, sequence)] if known else [_error(3, sequence)]
        else:
            self._answers = [_error(0, sequence)]

    def recv(self, _size: int) -> bytes:
        return self._answers.pop(0)

    def bind(self, _address: object) -> None:
        pass

    def settimeout(self, _seconds: float) -> None:
        pass

    def close(self) -> None:
        pass


def _numbered(raw: bytes, sequence: int) -> bytes:
    changed = bytearray(raw)
    struct.pack_into("=I", changed, 8, sequence)
    return bytes(changed)


def _error(code: int, sequence: int) -> bytes:
    return struct.pack("=IHHIIi", 36, 2, 0, sequence, 0, -code) + bytes(16)


def decoded(kind: type[XfrmMessage], number: int, body: bytes) -> XfrmMessage:
    message = kind(struct.pack("=IHHII", 16 + len(body), number, 0, 1, 0) + body)
    message.decode()
    return message


def mark_of(message: XfrmMessage) -> tuple[int, int] | None:
    raw = message.get_attr("XFRMA_MARK")
    return struct.unpack("=II", bytes(raw)) if raw is not None else None


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Kernel, XfrmSocket, dict[int, SaKey]]]:
    fake = Kernel()
    monkeypatch.setattr(xfrm.socket, "socket", lambda *_: fake)
    with XfrmSocket() as socket:
        keys = {sa.key.spi: sa.key for sa in socket.sas()}
        fake.asked.clear()
        yield fake, socket, keys


REQUESTS: dict[str, tuple[int, type[XfrmMessage], Callable[[XfrmSocket, SaKey], object]]] = {
    "look": (GETSA, UserSaId, lambda socket, key: socket.sa(key)),
    "outbound number": (NEWAE, AeventId, lambda socket, key: socket.raise_oseq(key, 1000)),
    "inbound number": (NEWAE, AeventId, lambda socket, key: socket.raise_seq(key, 1000)),
    "soft expiry": (EXPIRE, UserExpire, lambda socket, key: socket.expire_soft(key)),
    "hard expiry": (EXPIRE, UserExpire, lambda socket, key: socket.expire_hard(key)),
}


@pytest.mark.parametrize(("number", "kind", "ask"), REQUESTS.values(), ids=REQUESTS.keys())
@pytest.mark.parametrize(("spi", "mark"), [(MARKED, MARK), (PLAIN, None)], ids=["with", "without"])
def test_every_request_names_the_mark(
    kernel: tuple[Kernel, XfrmSocket, dict[int, SaKey]],
    number: int,
    kind: type[XfrmMessage],
    ask: Callable[[XfrmSocket, SaKey], object],
    spi: int,
    mark: tuple[int, int] | None,
) -> None:
    fake, socket, keys = kernel
    ask(socket, keys[spi])
    asked = [body for what, body in fake.asked if what == number]
    assert [mark_of(decoded(kind, number, body)) for body in asked] == [mark]


def test_an_sa_with_a_mark_is_found(kernel: tuple[Kernel, XfrmSocket, dict[int, SaKey]]) -> None:
    _, socket, keys = kernel
    assert [sa.mark if (sa := socket.sa(keys[spi])) else "gone" for spi in (MARKED, PLAIN)] == [MARK, None]


def test_others_have_their_turn_while_a_dump_is_decoded(
    kernel: tuple[Kernel, XfrmSocket, dict[int, SaKey]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twenty thousand SAs take seconds, and a request of the event loop would wait, and with it a heartbeat."""
    fake, socket, keys = kernel
    decode = xfrm._decoded

    def beside(kind: type[XfrmMessage]) -> Callable[[bytes], XfrmMessage]:
        monkeypatch.setattr(xfrm, "_decoded", decode)
        socket.expire_soft(keys[PLAIN])
        return decode(kind)

    monkeypatch.setattr(xfrm, "_decoded", beside)
    assert {sa.key for sa in socket.sas()} == set(keys.values())
    assert [number for number, _ in fake.asked] == [GETSA, GETSA, EXPIRE]
