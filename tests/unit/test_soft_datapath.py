"""The loop on fake sockets: it moves frames, counts what it loses and cannot be killed from the wire."""

from __future__ import annotations

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.ipsec import ESP
from scapy.layers.l2 import ARP, Ether
from structlog.testing import capture_logs

from ipsec_gw.engines.soft.datapath import Datapath
from ipsec_gw.engines.soft.drops import DropCounter, DropReason
from ipsec_gw.engines.soft.forwarding import Forwarding
from ipsec_gw.engines.soft.store import Store
from ipsec_gw.errors import SteeringError
from ipsec_gw.model.ids import Direction
from tests.unit.soft_kit import (
    FROM_PEER,
    TO_PEER,
    UP_ENGINE,
    WAN,
    WireSocket,
    await_that,
    context,
    next_hop,
    oracle,
    sa,
    tunnel,
    up_frame,
    wan_frame,
)


class Bench:
    """A datapath with one tunnel between two wires."""

    def __init__(self) -> None:
        self.inbound, self.outbound = sa(Direction.IN, 0x1001), sa(Direction.OUT, 0x2001)
        self.store = Store(context(), 3000)
        for obj in (self.inbound, self.outbound, next_hop(), tunnel([self.inbound], self.outbound)):
            self.store.create(obj)
        self.wan, self.wan_second, self.up = WireSocket(), WireSocket(), WireSocket()
        sockets = {WAN.name: [self.wan, self.wan_second]}, {UP_ENGINE.name: [self.up]}
        self.datapath = Datapath(self.store.forwarding, *sockets, DropCounter())
        self.peer = oracle(self.inbound)

    def dropped(self, reason: DropReason) -> int:
        return self.datapath.drops.of(reason)

    def esp(self) -> bytes:
        return wan_frame(self.peer.encrypt(FROM_PEER))

    def still_works(self) -> None:
        """Both ways, by fresh packets."""
        self.wan.wire.send(self.esp())
        assert self.up.wire.recv(4096)[14:] == bytes(FROM_PEER)
        self.up.wire.send(up_frame(TO_PEER))
        assert Ether(self.wan.wire.recv(4096))[ESP].spi == 0x2001


@pytest.fixture
def bench():
    made = Bench()
    made.datapath.start()
    yield made
    made.datapath.stop()


def test_frames_go_both_ways(bench):
    bench.still_works()
    assert bench.datapath.drops.total == 0


def test_every_queue_is_served(bench):
    bench.wan_second.wire.send(bench.esp())
    assert bench.up.wire.recv(4096)[14:] == bytes(FROM_PEER)


def test_order_is_kept(bench):
    for _ in range(200):
        bench.up.wire.send(up_frame(TO_PEER))
    assert [Ether(bench.wan.wire.recv(4096))[ESP].seq for _ in range(200)] == list(range(1, 201))


def test_a_new_forwarding_state_holds_from_the_next_batch_on(bench):
    bench.still_works()
    bench.datapath.forwarding = Forwarding.build({}, ())
    bench.up.wire.send(up_frame(TO_PEER))
    bench.wan.wire.send(bench.esp())
    await_that(lambda: bench.dropped(DropReason.NO_TUNNEL) == bench.dropped(DropReason.UNKNOWN_SA) == 1)
    bench.datapath.forwarding = bench.store.forwarding
    bench.still_works()


def test_drops_are_counted_by_reason(bench):
    frame = bench.esp()
    for one in (frame, frame, bytes(5), bytes(Ether() / ARP()), wan_frame(IP() / TCP())):
        bench.wan.wire.send(one)
    await_that(lambda: bench.datapath.drops.total == 4)
    reasons = (DropReason.REPLAYED, DropReason.MALFORMED, DropReason.NOT_IP, DropReason.NOT_ESP)
    assert [bench.dropped(reason) for reason in reasons] == [1] * 4


class Bomb(Forwarding):
    """A bug, wherever a frame goes."""

    __slots__ = ()

    def decapsulate(self, frame):
        raise RuntimeError(frame.hex())

    encapsulate = decapsulate


def test_a_bug_costs_the_packet_and_is_logged_without_it(bench):
    canary = b"\xca\xfe\xba\xbe" * 8
    with capture_logs() as logs:
        for source in bench.datapath._sources.values():
            object.__setattr__(source, "process", Bomb.decapsulate)
        for _ in range(9):
            bench.up.wire.send(canary)
        await_that(lambda: bench.dropped(DropReason.INTERNAL) == 9)
    errors = [(entry["event"], entry["error"], entry["count"]) for entry in logs]
    assert errors == [("packet failed", "RuntimeError", count) for count in (1, 2, 4, 8)]
    assert all(entry["where"].startswith("test_soft_datapath.py:") for entry in logs)
    assert canary.hex() not in repr(logs)


@pytest.mark.parametrize("error", [SteeringError("ring broken - x"), OSError(100, "down"), RuntimeError("bug")])
def test_what_cannot_be_sent_is_counted_and_said_once(bench, error):
    working = bench.wan.send

    def broken(frames):
        raise error

    bench.wan.send = broken
    with capture_logs() as logs:
        for sent in (1, 2):
            bench.up.wire.send(up_frame(TO_PEER))
            await_that(lambda sent=sent: bench.dropped(DropReason.TRANSMIT) == sent)
    if not isinstance(error, RuntimeError):
        assert [entry["event"] for entry in logs] == ["sending failed"]
    bench.wan.send = working
    bench.still_works()


def test_a_full_ring_is_offered_the_rest_once_more(bench):
    working, taken = bench.wan.send, []

    def one_at_a_time(frames):
        taken.append(len(frames))
        return working(frames[:1])

    bench.wan.send = one_at_a_time
    bench.datapath._send(WAN.name, [b"a", b"b", b"c"])
    assert [bench.wan.wire.recv(10) for _ in range(2)] == [b"a", b"b"]
    assert taken == [3, 2]
    assert bench.dropped(DropReason.TRANSMIT) == 1


@pytest.mark.parametrize("error", [SteeringError("gone - x"), OSError(19, "gone"), RuntimeError("bug")])
def test_a_socket_that_fails_is_let_go_and_the_others_go_on(bench, error):
    def broken(budget):
        raise error

    bench.wan_second.receive = broken
    with capture_logs() as logs:
        bench.wan_second.wire.send(b"x")
        await_that(lambda: any("no longer served" in entry["event"] for entry in logs))
        bench.still_works()
    assert bench.dropped(DropReason.INTERNAL) == 1  # and not one for each round


def test_a_socket_whose_other_end_is_gone_does_not_spin(bench):
    bench.wan_second.wire.close()
    bench.still_works()


def test_stop_counts_what_waits_and_closes_the_sockets():
    bench = Bench()  # never started: what is sent stays in the socket
    for _ in range(70):
        bench.wan.wire.send(bench.esp())
    bench.datapath.stop()
    assert bench.dropped(DropReason.CLOSING) == 70
    assert bench.wan.closed
    assert bench.wan_second.closed
    assert bench.up.closed


def test_stop_ends_the_thread():
    made = Bench()
    made.datapath.start()
    assert made.datapath._thread.is_alive()
    made.datapath.stop()
    assert not made.datapath._thread.is_alive()
