"""The AF_XDP socket on its own: both directions, rings that wrap, refusals."""

from __future__ import annotations

import pytest
from scapy.layers.l2 import Ether
from scapy.packet import Raw
from xdp_kit import MARKER, Wire, await_frames

from ipsec_gw.errors import EnvironmentMissing, SteeringError
from xdp_steer.gateway import Role, Steering
from xdp_steer.xsk import XskSocket

pytestmark = pytest.mark.root

FRAMES = 16


def numbered(number: int) -> Ether:
    return Ether(src="02:00:00:00:00:02", dst="02:00:00:00:00:01", type=0x88B5) / Raw(number.to_bytes(4, "big") * 15)


def test_receives_in_order_while_the_rings_wrap(steering: Steering, wire: Wire) -> None:
    steering.dock(wire.near, Role.TO_ENGINE)
    xsk = XskSocket(wire.near, frames=FRAMES)
    xsk.enter(steering.xsks_map(wire.near))
    for number in range(5 * FRAMES):
        wire.inject(numbered(number))
        assert await_frames(xsk, 1) == [bytes(numbered(number))]
    xsk.close()


def test_a_full_ring_loses_what_does_not_fit_and_goes_on(steering: Steering, wire: Wire) -> None:
    steering.dock(wire.near, Role.TO_ENGINE)
    xsk = XskSocket(wire.near, frames=FRAMES)
    xsk.enter(steering.xsks_map(wire.near))
    for number in range(4 * FRAMES):
        wire.inject(numbered(number))
    assert await_frames(xsk, FRAMES // 2) == [bytes(numbered(number)) for number in range(FRAMES // 2)]
    wire.inject(numbered(999))
    assert await_frames(xsk, 1) == [bytes(numbered(999))]
    xsk.close()


def test_p22_what_finds_no_room_never_reaches_the_kernel(steering: Steering, wire: Wire) -> None:
    """Which would answer it, with a RST for instance. Only without a socket packets are the kernel's."""
    steering.dock(wire.near, Role.TO_ENGINE)
    xsk = XskSocket(wire.near, frames=FRAMES)
    xsk.enter(steering.xsks_map(wire.near))
    for number in range(4 * FRAMES):
        wire.inject(numbered(number))
    assert len(await_frames(xsk, FRAMES // 2)) == FRAMES // 2
    xsk.close()
    wire.inject(MARKER)
    assert wire.kernel_got(MARKER) == []


def test_sends_in_order_while_the_rings_wrap(wire: Wire) -> None:
    xsk = XskSocket(wire.near, frames=FRAMES)
    for first in range(0, 10 * FRAMES, 4):
        batch = [bytes(numbered(first + offset)) for offset in range(4)]
        assert xsk.send(batch) == 4
        assert wire.peer_got(numbered(first + 3)) == batch[:3]
    xsk.close()


def test_sends_no_more_than_its_ring_holds(wire: Wire) -> None:
    xsk = XskSocket(wire.near, frames=FRAMES)
    batch = [bytes(numbered(number)) for number in range(FRAMES)]
    assert xsk.send(batch) == FRAMES // 2
    assert wire.peer_got(numbered(FRAMES // 2 - 1)) == batch[: FRAMES // 2 - 1]
    xsk.close()


def test_a_frame_too_long_is_refused_and_loses_no_memory(wire: Wire) -> None:
    xsk = XskSocket(wire.near, frames=4)
    for _ in range(8):
        with pytest.raises(SteeringError, match="2049 bytes does not fit into 2048 on wan9"):
            xsk.send([bytes(60), bytes(2049)])
    assert xsk.send([bytes(numbered(1)), bytes(numbered(2))]) == 2
    assert wire.peer_got(numbered(2)) == [bytes(numbered(1))]
    xsk.close()


def test_a_queue_is_free_again_right_after_close(wire: Wire) -> None:
    for _ in range(5):
        XskSocket(wire.near, frames=FRAMES).close()


def test_refusals_name_what_is_wrong(wire: Wire) -> None:
    with pytest.raises(EnvironmentMissing, match="interface nothere does not exist"):
        XskSocket("nothere")
    with pytest.raises(SteeringError, match="wan9 queue 77 refused"):
        XskSocket(wire.near, queue=77)
    with pytest.raises(SteeringError, match="with 100 frames is impossible"):
        XskSocket(wire.near, frames=100)
    xsk = XskSocket(wire.near, frames=FRAMES)
    with pytest.raises(SteeringError, match=r"wan9 queue 0 refused .* no other engine holds the queue"):
        XskSocket(wire.near, frames=FRAMES)
    xsk.close()
    xsk.close()
