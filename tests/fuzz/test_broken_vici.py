"""Whatever is wrong with a message of charon: an error, or the names that it gave; never those of something else."""

from __future__ import annotations

import asyncio
import random
import struct
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from vici.protocol import Message, Packet

from ipsec_gw.errors import IkeError
from ipsec_gw.ike.vici import ViciSession
from ipsec_gw.model.snapshot import ChildName
from tests.fuzz.breaking import BREAKS, COUNT, SECONDS, SEED
from tests.fuzz.test_messages import CONFIRM, answer_of
from tests.unit.test_vici import frame


def child(name: str, number: int, spi: int) -> dict[str, Any]:
    return {
        "name": name,
        "uniqueid": str(number),
        "state": "INSTALLED",
        "spi-in": f"{spi:x}",
        "spi-out": f"{spi + 1:x}",
        "local-ts": ["10.1.0.0/16", "fd01::/64"],
    }


CHILDREN = {"net-1": child("net", 3, 0xC0000011), "hosts-2": child("hosts", 4, 0xC0000022)}
EVENTS = tuple(
    frame(Packet.EVENT, {connection: {"uniqueid": "7", "child-sas": {key: CHILDREN[key]}}}, "list-sa")
    for connection, key in (("site", "net-1"), ("branch", "hosts-2"))
)
STREAM = (CONFIRM, *EVENTS, frame(Packet.CMD_RESPONSE), CONFIRM)
_NAMED = (Message.SECTION_START, Message.KEY_VALUE, Message.LIST_START)


def vici_lengths(packet: bytes) -> Iterator[tuple[int, str]]:
    """Of the frame, of an event's name, and of names and values (strongSwan's vici README, "Message format")."""
    yield 0, "!I"
    place = 5
    if packet[4] == Packet.EVENT:
        yield place, "!B"
        place += 1 + packet[place]
    while place < len(packet):
        kind = packet[place]
        place += 1
        if kind in _NAMED:
            yield place, "!B"
            place += 1 + packet[place]
        if kind in (Message.KEY_VALUE, Message.LIST_ITEM):
            yield place, "!H"
            place += 2 + struct.unpack_from("!H", packet, place)[0]


@pytest.mark.timeout(SECONDS)
def test_a_broken_message_of_charon_is_an_error_or_names_what_was_named() -> None:
    print(f"SEED={SEED} N={COUNT}")
    chance = random.Random(SEED)
    seen: Counter[str] = Counter()
    with asyncio.Runner() as runner:
        listen = partial(answer_of, ViciSession.child_names, one_by_one=False)
        names, malformed, _ = runner.run(listen(STREAM))
        assert (names.keys(), malformed) == ({0xC0000011, 0xC0000012, 0xC0000022, 0xC0000023}, 0)
        for number in range(COUNT // 2):
            how, stream = chance.choice(BREAKS), list(STREAM)
            victim = chance.randrange(len(stream))
            broken = how(chance, stream[victim], list(vici_lengths(stream[victim])))
            stream[victim] = broken.message
            answer, malformed, closed = runner.run(listen(stream))
            what = f"{number}: {how.__name__}, message {victim}: {broken.message.hex()}: {answer}, {malformed} counted"
            assert closed, what
            if isinstance(answer, IkeError):
                seen[f"{how.__name__} {'counted' if malformed else 'broken off'}"] += 1
                continue
            assert all(isinstance(name, ChildName) for name in answer.values()), what
            assert not broken.told or (answer.items() <= names.items() and not malformed), what
            seen[f"{how.__name__} read"] += 1
    print(dict(seen))
