"""XFRM attributes that are what the kernel makes them (``linux/xfrm.h``, ``net/xfrm/xfrm_user.c``).

pyroute2 reads a length that is wrong as far as it can: fewer bytes than there were, or those of the next attribute.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from ipsec_gw import netlink

ALG_AUTH, ALG_CRYPT, ALG_COMP, ALG_AEAD, ALG_AUTH_TRUNC = 1, 2, 3, 18, 20
TMPL, LTIME_VAL, REPLAY_VAL, MARK, REPLAY_ESN_VAL = 5, 9, 10, 21, 23

TYPE_MASK = 0x3FFF  # NLA_TYPE_MASK: without the flags of nesting and byte order
_BYTES = {
    4: 24,  # ENCAP
    LTIME_VAL: 32,
    REPLAY_VAL: 12,
    11: 4,  # REPLAY_THRESH
    12: 4,  # ETIMER_THRESH
    13: 16,  # SRCADDR
    14: 16,  # COADDR
    15: 8,  # LASTUSED
    MARK: 8,
    22: 4,  # TFCPAD
    24: 4,  # SA_EXTRA_FLAGS
    27: 0,  # PAD
    28: 8,  # OFFLOAD_DEV
    29: 4,  # SET_MARK
    30: 4,  # SET_MARK_MASK
    31: 4,  # IF_ID
    32: 4,  # MTIMER_THRESH
    33: 1,  # SA_DIR
}
"""Payloads that have one length."""

_BYTES_BEFORE_KEY = {ALG_AUTH: 68, ALG_CRYPT: 68, ALG_COMP: 68, ALG_AEAD: 72, ALG_AUTH_TRUNC: 72}
_KEY_BITS_OFFSET = 64
_TEMPLATE_BYTES = 64
REPLAY_ESN_BYTES = 24
"""Of ``struct xfrm_replay_state_esn`` without its bitmap."""


def attributes(message: bytes, start: int) -> Iterator[tuple[int, bytes]]:
    """Type and payload of each attribute from byte ``start`` to the end of the message.

    Raises ValueError if the message is shorter than that, if they do not fill it, or if one has not the length that it
    says or that its type has. Types that are not known here have any.
    """
    if len(message) < start:
        raise ValueError(f"an XFRM message of {len(message)} bytes")
    for flagged, payload in netlink.attributes(message[start:]):
        kind = flagged & TYPE_MASK
        if not _whole(kind, payload):
            raise ValueError(f"an XFRM attribute {kind} of {len(payload)} bytes")
        yield kind, payload


def _whole(kind: int, payload: bytes) -> bool:
    if (fixed := _BYTES.get(kind)) is not None:
        return len(payload) == fixed
    if (head := _BYTES_BEFORE_KEY.get(kind)) is not None:
        return len(payload) == head + (_word(payload, _KEY_BITS_OFFSET) + 7) // 8
    if kind == REPLAY_ESN_VAL:
        return len(payload) == REPLAY_ESN_BYTES + 4 * _word(payload, 0)
    if kind == TMPL:
        return len(payload) % _TEMPLATE_BYTES == 0
    return kind != 0


def _word(payload: bytes, offset: int) -> int:
    """A number of 32 bits. What is too short for it has not the length that follows from it either."""
    return int.from_bytes(payload[offset : offset + 4], sys.byteorder)
