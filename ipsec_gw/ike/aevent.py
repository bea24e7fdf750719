"""Numbers, windows and volumes of all kernel SAs, read and written in bulk (GETSA dump, XFRM_MSG_NEWAE).

Whole messages are packed and unpacked here, because ten thousand SAs are looked at every second: nothing but what moves
is made a value of. Layouts are those of ``linux/xfrm.h``; :mod:`ipsec_gw.ike.messages` has them in full.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from typing import Self

from ipsec_gw.errors import XfrmError
from ipsec_gw.ike.attributes import LTIME_VAL, MARK, REPLAY_ESN_VAL, REPLAY_VAL, attributes
from ipsec_gw.ike.codec import family_of, pack_address
from ipsec_gw.ike.messages import XFRM_MSG_GETSA, XFRM_MSG_NEWAE, XFRM_MSG_NEWSA
from ipsec_gw.model.ids import SaKey
from ipsec_gw.model.warmth import SaState, Volume, Warming
from ipsec_gw.netlink import (
    HEADER,
    NETLINK_XFRM,
    NLM_F_ACK,
    NLM_F_DUMP,
    NLM_F_REPLACE,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    RECEIVE_BYTES,
    attribute,
    error_code,
    messages,
)

BATCH = 64
"""Writes in one datagram; the kernel works through it as one."""

_ANSWER_SECONDS = 5.0

_USERSA_BYTES = 224
_DESTINATION, _FAMILY = 56, 212
_SPI_PROTO = struct.Struct(">IB")
_SPI_PROTO_OFFSET = 72
_LIMITS_AND_USE = struct.Struct("=4Q32x4Q")
"""Soft and hard bytes, soft and hard packets, (times,) bytes, packets, time of installation and of use."""

_LIMITS_OFFSET = 96
_REPLAY = struct.Struct("=III")
_REPLAY_ESN = struct.Struct("=6I")
_LTIME = struct.Struct("=4Q")
_AEVENT = struct.Struct("=16s4sHBx16sII")
"""``xfrm_aevent_id``: destination, SPI in network order, family, protocol; source, flags, reqid may be 0."""

_ALL_SEEN = 0xFFFFFFFF
_WINDOW_OFFSET = 214 + 1
"""``replay_window`` of ``xfrm_usersa_info``, the window of an SA with XFRMA_REPLAY_VAL."""


def parse_state(message: bytes) -> SaState | None:
    """An SA of a GETSA dump (``xfrm_usersa_info`` and attributes). None for what is not ESP or says nothing of its
    numbers. Raises ValueError or struct.error for what cannot be read.
    """
    spi, protocol = _SPI_PROTO.unpack_from(message, _SPI_PROTO_OFFSET)
    (family,) = struct.unpack_from("=H", message, _FAMILY)
    if protocol != socket.IPPROTO_ESP:
        return None
    raw = message[_DESTINATION : _DESTINATION + (4 if family == socket.AF_INET else 16)]
    replay, mark = None, b""
    for kind, payload in attributes(message, _USERSA_BYTES):
        if kind == MARK:
            mark = payload
        if kind == REPLAY_VAL and replay is None:
            oseq, seq, _ = _REPLAY.unpack(payload)
            replay = (oseq, seq, message[_WINDOW_OFFSET], 0)
        elif kind == REPLAY_ESN_VAL:
            words, oseq, seq, oseq_high, seq_high, window = _REPLAY_ESN.unpack_from(payload)
            replay = (oseq | oseq_high << 32, seq | seq_high << 32, window, words)
    if replay is None:
        return None
    limits = _LIMITS_AND_USE.unpack_from(message, _LIMITS_OFFSET)
    soft_octets, hard_octets, soft_packets, hard_packets, octets, packets, add_time, use_time = limits
    return SaState(
        SaKey(ip_address(raw), spi),
        *replay,
        Volume(packets, octets),
        add_time,
        use_time,
        Volume(soft_packets, soft_octets),
        Volume(hard_packets, hard_octets),
        mark,
    )


def pack_warming(warm: Warming) -> bytes:
    """The body of XFRM_MSG_NEWAE. An outbound number is in it only as the SA has it, beside an inbound one."""
    state = warm.state
    key = state.key
    spi = struct.pack(">I", key.spi)
    head = _AEVENT.pack(
        pack_address(key.destination), spi, family_of(key.destination), socket.IPPROTO_ESP, bytes(16), 0, 0
    )
    lifetime = _LTIME.pack(warm.used.octets, warm.used.packets, state.add_time, warm.use_time)
    body = head + attribute(LTIME_VAL, lifetime)
    if state.mark:
        body += attribute(MARK, state.mark)
    if warm.seq is None:
        return body
    if not state.words:
        return body + attribute(REPLAY_VAL, _REPLAY.pack(state.oseq, warm.seq & _ALL_SEEN, _ALL_SEEN))
    oseq, seq = state.oseq, warm.seq
    numbers = _REPLAY_ESN.pack(state.words, oseq & _ALL_SEEN, seq & _ALL_SEEN, oseq >> 32, seq >> 32, state.window)
    return body + attribute(REPLAY_ESN_VAL, numbers + b"\xff" * (4 * state.words))


class StateSocket:
    """A netlink socket of its own, so that bulk work holds up nobody. Not for several threads at once.

    Raises XfrmError whenever the kernel does not answer as it should. ``malformed`` is called for every message that
    cannot be read, and for every SA of a dump that is left out because it cannot.
    """

    def __init__(self, malformed: Callable[[], None] = lambda: None) -> None:
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_XFRM)
            self._socket.bind((0, 0))
        except OSError as error:
            raise XfrmError(
                f"the kernel offers no XFRM ({error.strerror}) - load xfrm_user and run as root", error.errno or 0
            ) from None
        self._socket.settimeout(_ANSWER_SECONDS)
        self._sequence = 0
        self._malformed = malformed

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def states(self) -> list[SaState]:
        """Of all ESP SAs."""
        self._sequence += 1
        self._send(_message(XFRM_MSG_GETSA, NLM_F_DUMP, self._sequence, b""))
        found: list[SaState] = []
        while True:
            for kind, sequence, raw in self._receive():
                if sequence != self._sequence:
                    continue
                if kind in (NLMSG_ERROR, NLMSG_DONE):
                    _raise_for(self._code(raw))
                    return found
                if kind != XFRM_MSG_NEWSA:
                    raise self._unreadable(f"type {kind}")
                if (state := self._state(raw[HEADER.size :])) is not None:
                    found.append(state)

    def write(self, warmings: Sequence[Warming]) -> int:
        """Write them, at most :data:`BATCH`; how many the kernel took. What is gone meanwhile is no error."""
        first, count = self._sequence + 1, len(warmings)
        self._sequence += count
        flags = NLM_F_REPLACE | NLM_F_ACK
        self._send(
            b"".join(
                _message(XFRM_MSG_NEWAE, flags, first + place, pack_warming(warm))
                for place, warm in enumerate(warmings)
            )
        )
        codes: dict[int, int] = {}
        while len(codes) < count:
            for kind, sequence, raw in self._receive():
                if kind == NLMSG_ERROR and first <= sequence <= self._sequence:
                    codes[sequence] = self._code(raw)
        for code in codes.values():
            if code != errno.ESRCH:
                _raise_for(code)
        return sum(not code for code in codes.values())

    def _send(self, data: bytes) -> None:
        try:
            self._socket.send(data)
        except OSError as error:
            raise XfrmError(f"the kernel took no XFRM request ({error.strerror})", error.errno or 0) from None

    def _receive(self) -> list[tuple[int, int, bytes]]:
        try:
            data = self._socket.recv(RECEIVE_BYTES)
        except OSError as error:
            raise XfrmError(f"the kernel's XFRM does not answer ({error})", error.errno or errno.ETIMEDOUT) from None
        try:
            return list(messages(data))
        except ValueError as error:
            raise self._unreadable(str(error)) from None

    def _state(self, message: bytes) -> SaState | None:
        """An SA that cannot be read is left out: the others are not held up by it."""
        try:
            return parse_state(message)
        except (struct.error, ValueError):
            self._malformed()
            return None

    def _code(self, message: bytes) -> int:
        try:
            return error_code(message)
        except ValueError as error:
            raise self._unreadable(str(error)) from None

    def _unreadable(self, reason: str) -> XfrmError:
        """The error of a message that cannot be read, which is counted."""
        self._malformed()
        return XfrmError(f"a message of the kernel's XFRM cannot be read ({reason})", errno.EBADMSG)


def _message(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    return HEADER.pack(HEADER.size + len(body), kind, NLM_F_REQUEST | flags, sequence, 0) + body


def _raise_for(code: int) -> None:
    if code:
        raise XfrmError(f"the kernel refused an XFRM request: {os.strerror(code)}", code)
