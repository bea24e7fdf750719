"""Messages with one thing wrong: ``N=`` tells how many, half of them XFRM's and half of them vici's, ``SEED=`` which.

Hypothesis looks for what is rare (:mod:`tests.fuzz.test_messages`); here it is their number.
"""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Callable
from typing import NamedTuple

SEED = int(os.environ.get("SEED", "1"))
COUNT = int(os.environ.get("N", "20000"))
SECONDS = 120 + COUNT // 500
"""Enough for half of them, also beside others."""


class Broken(NamedTuple):
    """A message with something wrong. ``told``: one can see by the message alone that it is not what was sent."""

    message: bytes
    told: bool


Break = Callable[[random.Random, bytes, list[tuple[int, str]]], Broken]
"""Breaks a message, given place and format of the lengths in it."""


def cut(chance: random.Random, message: bytes, lengths: list[tuple[int, str]]) -> Broken:
    """Between two messages of a datagram nobody can tell."""
    end = chance.randrange(1, len(message))
    return Broken(message[:end], told=(end, "=I") not in lengths)


def length(chance: random.Random, message: bytes, lengths: list[tuple[int, str]]) -> Broken:
    """Another length somewhere: near the right one, or any."""
    place, form = chance.choice(lengths)
    (right,) = struct.unpack_from(form, message, place)
    most = (1 << 8 * struct.calcsize(form)) - 1
    wrong = chance.choice([right + chance.randrange(-24, 25), chance.randrange(most + 1), 0, most])
    changed = bytearray(message)
    struct.pack_into(form, changed, place, min(max(wrong, 0), most))
    return Broken(bytes(changed), told=bytes(changed) != message)


def values(chance: random.Random, message: bytes, _lengths: list[tuple[int, str]]) -> Broken:
    """Up to eight bytes are others."""
    changed = bytearray(message)
    for _ in range(chance.randint(1, 8)):
        changed[chance.randrange(len(changed))] = chance.randrange(256)
    return Broken(bytes(changed), told=False)


def splice(chance: random.Random, message: bytes, _lengths: list[tuple[int, str]]) -> Broken:
    """A part is gone, comes twice, or is followed by noise."""
    first, last = sorted(chance.choices(range(len(message) + 1), k=2))
    between = chance.choice(
        [b"", message[first:last] * 2, message[first:last] + chance.randbytes(chance.randrange(64))]
    )
    return Broken(message[:first] + between + message[last:], told=False)


BREAKS: tuple[Break, ...] = (cut, length, values, splice)
