"""Extended sequence numbers (RFC 4304) of SAs as a kernel keeps them: read, and moved on by hand.

Like :mod:`ipsec_gw.lab.kernel_sas` not built on what is under test. Layouts are those of ``linux/xfrm.h``
(``xfrm_replay_state_esn``, ``xfrm_aevent_id``).
"""

from __future__ import annotations

import os
import socket
import struct
from dataclasses import dataclass

from ipsec_gw.errors import XfrmError
from ipsec_gw.lab.kernel_sas import (
    HEADER,
    NETLINK_XFRM,
    NLM_F_REQUEST,
    NLMSG_ERROR,
    USERSA_BYTES,
    XFRMA_REPLAY_ESN_VAL,
    KernelSa,
    attributes,
    bodies,
    messages,
    parse_sa,
)
from ipsec_gw.lab.netns import inside

XFRM_MSG_NEWAE = 0x1E
XFRM_AE_RVAL = 2
_REPLACE_AND_ACK = 0x104
"""NLM_F_REPLACE and NLM_F_ACK."""

_STATE = struct.Struct("=IIIIII")
"""bmp_len (words), oseq, seq, oseq_hi, seq_hi, replay_window; the bitmap follows."""


@dataclass(frozen=True, slots=True)
class Counts:
    """The last number sent with an SA, and the highest one received."""

    sent: int
    received: int


def counts(namespace: str) -> dict[int, Counts]:
    """By SPI, of those SAs that have extended sequence numbers. Raises XfrmError."""
    return {sa.spi: _counts(state) for sa, state in _extended(namespace)}


def _counts(state: bytes) -> Counts:
    _, sent, received, sent_high, received_high, _ = _STATE.unpack_from(state)
    return Counts(sent_high << 32 | sent, received_high << 32 | received)


def _extended(namespace: str) -> list[tuple[KernelSa, bytes]]:
    found = []
    for body in bodies(namespace):
        sa, state = parse_sa(body), attributes(body[USERSA_BYTES:]).get(XFRMA_REPLAY_ESN_VAL)
        if sa is not None and sa.esn and state is not None:
            found.append((sa, state))
    return found


def move_on(namespace: str, spi: int, number: int) -> None:
    """What this kernel sends next with its SA of that SPI gets ``number`` + 1. Raises XfrmError, also for a number that
    would come again.
    """
    sa, state = next(((sa, state) for sa, state in _extended(namespace) if sa.spi == spi), (None, b""))
    if sa is None or _counts(state).sent >= number:
        raise XfrmError(f"the SA {spi:08x} cannot be moved on to number {number}", 0)
    words, _, received, _, received_high, window = _STATE.unpack_from(state)
    moved = (
        _STATE.pack(words, number & 0xFFFFFFFF, received, number >> 32, received_high, window) + state[_STATE.size :]
    )
    _ask(namespace, _identity(sa) + struct.pack("=HH", 4 + len(moved), XFRMA_REPLAY_ESN_VAL) + moved)


def _identity(sa: KernelSa) -> bytes:
    """``struct xfrm_aevent_id``."""
    family = socket.AF_INET if sa.destination.version == 4 else socket.AF_INET6
    return (
        sa.destination.packed.ljust(16, b"\0")
        + struct.pack(">I", sa.spi)
        + struct.pack("=HBx", family, socket.IPPROTO_ESP)
        + sa.source.packed.ljust(16, b"\0")
        + struct.pack("=II", XFRM_AE_RVAL, sa.reqid)
    )


def _ask(namespace: str, body: bytes) -> None:
    with inside(namespace):
        link = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_XFRM)
    with link:
        link.bind((0, 0))
        link.settimeout(10.0)
        link.send(HEADER.pack(HEADER.size + len(body), XFRM_MSG_NEWAE, NLM_F_REQUEST | _REPLACE_AND_ACK, 1, 0) + body)
        for kind, answer in messages(link.recv(1 << 16)):
            code = -struct.unpack_from("=i", answer)[0] if kind == NLMSG_ERROR else 0
            if code:
                raise XfrmError(f"{namespace}: the numbers of an SA cannot be moved: {os.strerror(code)}", code)
