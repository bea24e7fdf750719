"""Packets that the guard held back are sent by the owner of their SA, each once, and never with a used key."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import cast

import pytest

from ipsec_gw.desired import Owner, desired
from ipsec_gw.engines.soft.esp import EspPayload, EspTransform
from ipsec_gw.engines.soft.packets import (
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    PROTOCOL_ESP,
    PROTOCOL_UDP,
    OuterHeader,
    build_outer,
    build_udp,
)
from ipsec_gw.gateway import Gateway
from ipsec_gw.model.ids import Direction, SaKey
from ipsec_gw.model.objects import EngineSa
from ipsec_gw.ownership.rescue import MOST_FRAMES, PATIENCE_SECONDS, Rescue, Rescued, Way
from tests.support.world import LOCAL, OFFER, REMOTE, SETTINGS, established
from tests.unit.test_loop import OUT, join_anew

NOW = 1000.0
INNER4 = bytes.fromhex("4500001c000100004011f96bc0a80101c0a80201") + bytes(8)
INNER6 = bytes.fromhex("6000000000003b40") + bytes(32)


@dataclass(frozen=True)
class Frame:
    key: SaKey
    ifindex: int
    seen_ns: int
    frame: bytes


class Wires:
    """What was sent, in order."""

    def __init__(self) -> None:
        self.engine: list[tuple[int, bytes]] = []
        self.wan: list[tuple[int, bytes]] = []
        self.broken = False

    def to_engine(self, ethertype: int, packet: bytes) -> None:
        self._check()
        self.engine.append((ethertype, packet))

    def to_wan(self, ifindex: int, frame: bytes) -> None:
        self._check()
        self.wan.append((ifindex, frame))

    def _check(self) -> None:
        if self.broken:
            raise OSError("the interface is down")


class Stage:
    """``ways`` says where SAs go; what it does not name waits."""

    def __init__(self, *, esn: bool = False) -> None:
        self.now = NOW
        self.ways: dict[SaKey, Way] = {}
        self.wires = Wires()
        self.sa = replace(outbound(), esn=esn)
        self.rescue = Rescue(
            lambda key: self.ways.get(key, Way.WAIT), lambda key: self.sa, self.wires, clock=lambda: self.now
        )

    def frame(self, sequence: int, packet: bytes = INNER4, *, udp: bool = False, spoil: bool = False) -> Frame:
        transform = EspTransform(OUT.spi, self.sa.algorithm, self.sa.secret, self.sa.salt, esn=self.sa.esn)
        protocol = 4 if packet[0] >> 4 == 4 else 41
        esp = transform.seal(sequence, sequence.to_bytes(8, "big"), EspPayload(protocol, packet))
        esp = bytes((*esp[:-1], esp[-1] ^ 1)) if spoil else esp
        esp = build_udp(4500, 4500, len(esp)) + esp if udp else esp
        outer = OuterHeader(LOCAL.packed, REMOTE.packed, PROTOCOL_UDP if udp else PROTOCOL_ESP, 0, True, 1)
        return Frame(OUT, 7, int(self.now * 1e9), bytes(12) + b"\x08\x00" + build_outer(outer, len(esp)) + esp)


def outbound() -> EngineSa:
    sa = desired(OFFER, SETTINGS, established()).objects[OUT]
    assert isinstance(sa, EngineSa)
    assert sa.direction is Direction.OUT
    return sa


@pytest.mark.parametrize("esn", [False, True])
def test_the_engine_gets_the_packets_in_their_order(esn: bool) -> None:
    stage = Stage(esn=esn)
    frames = [stage.frame(1), stage.frame(2, INNER6), stage.frame((1 << 27) + 3, udp=True)]
    stage.rescue.take(frames)
    assert (stage.wires.engine, stage.rescue.rescued) == ([], Rescued(waiting=3)), "nothing is decided yet"
    stage.ways[OUT] = Way.ENGINE
    stage.rescue.look()
    assert stage.wires.engine == [(ETHERTYPE_IPV4, INNER4), (ETHERTYPE_IPV6, INNER6), (ETHERTYPE_IPV4, INNER4)]
    assert stage.wires.wan == []
    stage.rescue.look()
    assert len(stage.wires.engine) == 3, "each once"
    assert stage.rescue.rescued == Rescued(by_engine=3)
    stage.rescue.take([stage.frame(4)])
    assert len(stage.wires.engine) == 4, "what is decided does not wait"


def test_what_the_kernel_keeps_goes_out_as_it_is() -> None:
    stage = Stage()
    stage.ways[OUT] = Way.KERNEL
    frame = stage.frame(1)
    stage.rescue.take([frame])
    assert (stage.wires.wan, stage.wires.engine) == ([(7, frame.frame)], [])
    assert stage.rescue.rescued == Rescued(by_kernel=1)


def test_what_cannot_be_opened_or_sent_is_lost_and_counted() -> None:
    stage = Stage()
    stage.ways[OUT] = Way.ENGINE
    whole = stage.frame(1)
    stage.rescue.take([stage.frame(2, spoil=True), replace(whole, frame=whole.frame[:40]), replace(whole, frame=b"")])
    stage.wires.broken = True
    stage.rescue.take([whole])
    stage.ways[OUT] = Way.NOWHERE
    stage.wires.broken = False
    stage.rescue.take([whole])
    assert (stage.wires.engine, stage.wires.wan) == ([], [])
    assert stage.rescue.rescued == Rescued(lost=5)


def test_what_waits_too_long_is_given_up_whatever_is_decided_then() -> None:
    stage = Stage()
    stage.rescue.take([stage.frame(1)])
    stage.now += PATIENCE_SECONDS
    stage.rescue.take([stage.frame(2)])
    assert stage.rescue.rescued == Rescued(waiting=2)
    stage.now += 0.1
    stage.ways[OUT] = Way.ENGINE
    stage.rescue.look()
    assert stage.rescue.rescued == Rescued(by_engine=1, lost=1)


def test_no_more_than_fit_are_kept() -> None:
    stage = Stage()
    frame = stage.frame(1)
    stage.rescue.take([frame] * (MOST_FRAMES + 3))
    assert stage.rescue.rescued == Rescued(lost=3, waiting=MOST_FRAMES)


async def test_where_packets_go_follows_the_owner_of_the_sa() -> None:
    world = join_anew()
    gateway = Gateway(cast("object", SimpleNamespace()), world.link, world.reconciler, None)  # type: ignore[arg-type]
    assert gateway.way(OUT) is Way.WAIT, "not seen yet"
    await world.show(established())
    assert world.reasons()[OUT.spi][0] is Owner.KERNEL
    assert gateway.way(OUT) is Way.KERNEL
    await world.link.open()
    await world.show(established())
    assert gateway.way(OUT) is Way.ENGINE
    assert gateway.engine_sa(OUT) is not None
    world.engine.broken = True
    await world.link.look()
    assert gateway.way(OUT) is not Way.ENGINE
    world.refusals.add(OUT, "an engine had it")
    await world.show(established())
    assert gateway.way(OUT) is Way.NOWHERE, "its numbers may have been used"
