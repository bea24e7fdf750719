"""What the guard held back, from TC egress through its ring to the engine's socket or to the wire."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from xdp_kit import MARKER, Wire, await_frames, ip

from ipsec_gw.desired import desired
from ipsec_gw.engines.soft.esp import EspPayload, EspTransform
from ipsec_gw.gateway import Queue
from ipsec_gw.model.ids import SaKey
from ipsec_gw.model.objects import EngineSa
from ipsec_gw.ownership.waiting import Carried, Passage, WaitingRoom
from ipsec_gw.ownership.ways import PacketWays
from tests.support.world import LOCAL, OFFER, REMOTE, SETTINGS, policy, sa, snapshot
from xdp_steer.gateway import GuardCount, Role, Steering
from xdp_steer.waiting import WaitingReader
from xdp_steer.xsk import XskSocket

pytestmark = pytest.mark.root

KEY = SaKey(REMOTE, 0x22)
FOUND = desired(OFFER, SETTINGS, snapshot(sa(0x11, inbound=True), sa(0x22), policies=(policy(0x22),))).objects[KEY]
MARK = 0x9234_5679
UP_MAC, VP_MAC = "02:00:00:00:00:0a", "02:00:00:00:00:0b"


def clear(number: int) -> bytes:
    return bytes(IP(src="192.168.1.1", dst="192.168.2.1", id=number) / UDP() / bytes(number))


def encrypted(number: int) -> Ether:
    """As the kernel sends it."""
    assert isinstance(FOUND, EngineSa)
    transform = EspTransform(KEY.spi, FOUND.algorithm, FOUND.secret, FOUND.salt, esn=False)
    esp = transform.seal(number, number.to_bytes(8, "big"), EspPayload(4, clear(number)))
    outer = Ether(src=UP_MAC, dst=VP_MAC) / IP(src=str(LOCAL), dst=str(REMOTE), proto=50) / esp
    return Ether(bytes(outer))


@dataclass
class Place:
    """A guarded WAN, the pair to the engine, and the queue between both. ``carried``: the engine has the SA whole."""

    steering: Steering
    wire: Wire
    plain: Wire
    queue: Queue
    carried: list[SaKey] = field(default_factory=list)


@pytest.fixture
def place(steering: Steering, wire: Wire) -> Iterator[Place]:
    ip(f"link add up8 address {UP_MAC} type veth peer name vp8 address {VP_MAC}")
    for name in ("up8", "vp8"):
        ip(f"link set {name} up")
    steering.dock("vp8", Role.TO_ENGINE)
    steering.dock(wire.near, Role.WAN)
    steering.set_local(frozenset({LOCAL}))
    steering.set_engine_gone(False)
    steering.set_waited_mark(MARK)
    plain = Wire("vp8", "up8")
    ways = PacketWays("up8", UP_MAC, VP_MAC, MARK)
    reader = WaitingReader(steering.waiting_map)
    reader.read()
    carried: list[SaKey] = []
    room = WaitingRoom(
        ways,
        is_released=steering.is_released,
        is_claimed=steering.is_claimed,
        carried=lambda key: Carried(FOUND, 0) if key in carried and isinstance(FOUND, EngineSa) else None,
        tell=pytest.fail,
        forsaken=lambda key: pytest.fail(str(key)),
        hold=3600.0,
    )
    yield Place(steering, wire, plain, Queue(reader, room), carried)
    steering.set_waited_mark(0)
    for closing in (reader, ways, plain):
        with suppress(OSError):
            closing.close()


def test_the_engine_gets_what_waited_in_clear(place: Place) -> None:
    xsk = XskSocket("vp8", frames=64)
    xsk.enter(place.steering.xsks_map("vp8"))
    place.steering.claim(KEY)
    for number in (1, 2, 3):
        place.wire.emit(encrypted(number))
    place.queue.take()
    assert place.queue.room.passage == Passage()
    place.carried.append(KEY)
    place.queue.room.settle()
    frames = await_frames(xsk, 3)
    xsk.close()
    assert frames == [bytes(Ether(src=UP_MAC, dst=VP_MAC, type=0x0800)) + clear(number) for number in (1, 2, 3)]
    assert place.steering.guard_counters() == {KEY: GuardCount(passed=0, dropped=3)}, "the key is fresh as before"
    place.wire.emit(MARKER)
    assert place.wire.peer_got(MARKER) == []


def test_without_an_engine_it_comes_back_to_the_kernel(place: Place) -> None:
    place.steering.claim(KEY)
    place.wire.emit(encrypted(5))
    place.carried.append(KEY)
    place.queue.take()
    place.plain.inject(MARKER)
    assert place.plain.kernel_got(MARKER) == [bytes(Ether(src=UP_MAC, dst=VP_MAC, type=0x0800)) + clear(5)]


def test_the_wire_gets_what_waited_before_the_kernel_sends_again(place: Place) -> None:
    place.steering.claim(KEY)
    for number in (1, 2):
        place.wire.emit(encrypted(number))
    place.queue.send(KEY, 1)
    place.steering.release(KEY)
    place.wire.emit(encrypted(3))
    place.wire.emit(MARKER)
    assert place.wire.peer_got(MARKER) == [bytes(encrypted(2)), bytes(encrypted(3))], "1 may be the engine's"
    assert place.steering.guard_counters() == {KEY: GuardCount(passed=2, dropped=2)}
    assert place.queue.room.passage == Passage(to_wire=1, lost=1)
