"""The soft engine as a port: opening, closing, changing objects, and silence about keys."""

from __future__ import annotations

import io
import struct
import traceback
from dataclasses import replace

import pytest
import structlog
from scapy.layers.inet import IP
from scapy.layers.ipsec import ESP
from scapy.layers.l2 import Ether

from ipsec_gw.engines.port import Counters, Engine, Link
from ipsec_gw.engines.soft.drops import DropReason
from ipsec_gw.engines.soft.engine import SoftEngine
from ipsec_gw.engines.soft.esp import EspPayload
from ipsec_gw.errors import EngineError, EngineUnavailable, SteeringError
from ipsec_gw.model.algorithms import ALGORITHMS
from ipsec_gw.model.ids import Direction, EngineName
from ipsec_gw.model.secret import Secret
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


class Rack:
    """All sockets that an engine opened."""

    def __init__(self, *, fail_at: int = 99, fail_enter: bool = False) -> None:
        self.sockets: list[WireSocket] = []
        self.fail_at = fail_at
        self.fail_enter = fail_enter

    def open(self, interface: str, queue: int, *, frame_size: int) -> WireSocket:
        if len(self.sockets) == self.fail_at:
            raise SteeringError(f"AF_XDP socket on {interface} refused - x")
        socket = WireSocket(interface, queue, frame_size=frame_size)
        if self.fail_enter:
            socket.enter = self._refuse
        self.sockets.append(socket)
        return socket

    def _refuse(self, xsks_map_fd: int) -> None:
        raise SteeringError("the XSKMAP refused - x")

    def wire(self, interface: str):
        return next(one.wire for one in self.sockets if one.interface == interface and not one.closed)


@pytest.fixture
def rack():
    return Rack()


@pytest.fixture
async def engine(rack):
    made = SoftEngine(context(), open_socket=rack.open, count_queues=lambda name: 2 if name == WAN.name else 1)
    await made.open()
    yield made
    await made.close()


async def test_nothing_is_steered_to_an_engine_that_begins(rack):
    """What was given to an earlier life is taken off the steering before the docks can lead to this one."""
    entered: list[list[bool]] = []

    async def taking() -> None:
        entered.append([bool(one.entered) for one in rack.sockets])

    engine = SoftEngine(replace(context(), taking=taking), open_socket=rack.open, count_queues=lambda _name: 1)
    await engine.open()
    await engine.close()
    assert entered == [[False, False]]


async def test_an_engine_does_not_begin_while_the_steering_cannot_be_cleared(rack):
    async def taking() -> None:
        raise SteeringError("the map refused - x")

    engine = SoftEngine(replace(context(), taking=taking), open_socket=rack.open, count_queues=lambda _name: 1)
    with pytest.raises(EngineUnavailable, match="the map refused"):
        await engine.open()
    assert [(one.entered, one.closed) for one in rack.sockets] == [([], True), ([], True)]


async def fill(engine: Engine):
    inbound, outbound = sa(Direction.IN, 0x1001), sa(Direction.OUT, 0x2001)
    for obj in (inbound, outbound, next_hop(), tunnel([inbound], outbound)):
        await engine.create(obj)
    return inbound, outbound


async def test_what_it_says_of_itself():
    engine: Engine = SoftEngine(context(), open_socket=Rack().open, count_queues=lambda _: 1)
    capabilities = await engine.open()
    assert engine.name is EngineName.SOFT
    assert capabilities.algorithms == frozenset(ALGORITHMS)
    assert (capabilities.esn, capabilities.udp_encap, capabilities.steers) == (True, True, True)
    assert capabilities.max_replay_window == 4096
    assert "cryptography" in capabilities.note
    epoch = engine.epoch
    await engine.close()
    assert engine.epoch == epoch


async def test_it_opens_every_queue_and_enters_the_docks(engine, rack):
    opened = [(one.interface, one.queue, one.frame_size, one.entered) for one in rack.sockets]
    assert opened == [(WAN.name, 0, 2048, [101]), (WAN.name, 1, 2048, [101]), (UP_ENGINE.name, 0, 2048, [102])]


async def test_large_mtus_take_large_frames():
    rack = Rack()
    jumbo = Link(WAN.name, WAN.mac, 2048 - 256 - 18 + 1)
    engine = SoftEngine(context(jumbo), open_socket=rack.open, count_queues=lambda _: 1)
    await engine.open()
    assert [one.frame_size for one in rack.sockets] == [4096, 2048]
    await engine.close()


@pytest.mark.parametrize("rack", [Rack(fail_at=0), Rack(fail_at=2), Rack(fail_enter=True)], ids=["0", "2", "enter"])
async def test_what_cannot_be_opened_is_closed_again(rack):
    engine = SoftEngine(context(), open_socket=rack.open, count_queues=lambda _: 2)
    with pytest.raises(EngineUnavailable, match="refused - x"):
        await engine.open()
    assert all(one.closed for one in rack.sockets)
    rack.fail_at, rack.fail_enter = 99, False
    await engine.open()
    await engine.close()


async def test_an_interface_that_does_not_exist():
    absent = Link("nosuchif0", WAN.mac, 1500)
    with pytest.raises(EngineUnavailable, match="interface nosuchif0"):
        await SoftEngine(context(absent), open_socket=Rack().open).open()


async def test_opening_twice_is_refused_and_closing_twice_is_not(engine):
    with pytest.raises(EngineError, match="open already"):
        await engine.open()
    await engine.close()
    await engine.close()


async def test_a_closed_engine_changes_nothing(engine):
    inbound, outbound = await fill(engine)
    await engine.close()
    for act in (engine.create(next_hop()), engine.update(next_hop()), engine.delete(inbound.key)):
        with pytest.raises(EngineError, match="not open"):
            await act
    assert {inbound.key, outbound.key} <= (await engine.retrieve()).keys()


async def test_packets_go_both_ways_and_are_counted(engine, rack):
    inbound, outbound = await fill(engine)
    rack.wire(WAN.name).send(wan_frame(oracle(inbound).encrypt(FROM_PEER)))
    assert rack.wire(UP_ENGINE.name).recv(4096)[14:] == bytes(FROM_PEER)
    rack.wire(UP_ENGINE.name).send(up_frame(TO_PEER))
    outer = Ether(rack.wire(WAN.name).recv(4096))[IP]
    assert bytes(oracle(outbound).decrypt(outer)) == bytes(TO_PEER)
    counted = Counters(1, len(TO_PEER))
    assert dict(await engine.counters()) == {inbound.key: counted, outbound.key: counted}
    assert engine.drops().total == 0


async def test_numbers_and_drops_go_on_after_closing_and_opening_again(engine, rack):
    await fill(engine)
    for number in (1, 2):
        rack.wire(UP_ENGINE.name).send(up_frame(TO_PEER))
        assert Ether(rack.wire(WAN.name).recv(4096))[ESP].seq == number
        rack.wire(WAN.name).send(b"junk")
        rack.wire(WAN.name).send(b"junk")
        await engine.close()
        assert engine.drops().of(DropReason.MALFORMED) + engine.drops().of(DropReason.CLOSING) == 2 * number
        await engine.open()


async def test_a_tunnel_update_reaches_the_datapath(engine, rack):
    inbound, _ = await fill(engine)
    fresh = sa(Direction.OUT, 0x2002)
    await engine.create(fresh)
    await engine.update(tunnel([inbound], fresh))
    rack.wire(UP_ENGINE.name).send(up_frame(TO_PEER))
    assert Ether(rack.wire(WAN.name).recv(4096))[ESP].spi == 0x2002


KEY_CANARY = b"KEY-CANARY-16byt"
SALT_CANARY = b"SaLt"


def spellings(canary: bytes) -> list[str]:
    return [canary.decode(), canary.hex(), canary.hex(" "), canary.hex(":"), repr(list(canary))[1:-1]]


async def test_keys_are_in_no_repr_log_or_traceback(engine, rack):
    """Also not with the values of all local variables, as rich and structlog's tracebacks show them."""
    out = io.StringIO()
    structlog.configure(
        processors=[structlog.processors.dict_tracebacks, structlog.processors.JSONRenderer()],
        logger_factory=structlog.PrintLoggerFactory(out),
    )
    changes = {"secret": Secret(KEY_CANARY), "salt": Secret(SALT_CANARY)}
    inbound, outbound = sa(Direction.IN, 0x1001, **changes), sa(Direction.OUT, 0x2001, **changes)
    try:
        for obj in (inbound, outbound, next_hop(), tunnel([inbound], outbound)):
            await engine.create(obj)
        wrong = [replace(outbound, secret=Secret(KEY_CANARY + b"x")), replace(outbound, salt=Secret(SALT_CANARY * 2))]
        refusals = [engine.create(replace(one, key=replace(one.key, spi=0x2009))) for one in (*wrong, outbound)]
        refusals += [engine.create(outbound), engine.update(wrong[0]), engine.delete(outbound.key)]
        for refusal in refusals:
            out.write(await traceback_of(refusal))
        out.write(bugs_inside_the_transform(engine))

        forwarding = engine._store.forwarding
        living = [*(path.sa for path in forwarding.inbound.values()), *(path.sa for path in forwarding.outbound)]
        values = [engine, engine._store, forwarding, *living, *(one._transform for one in living)]
        values += [await engine.retrieve(), await engine.counters(), engine.drops()]
        out.write("".join(f"{value!r}{value!s}{value}" for value in values))

        forged = bytearray(wan_frame(oracle(inbound).encrypt(FROM_PEER)))
        forged[-1] ^= 1
        rack.wire(WAN.name).send(bytes(forged))
        object.__setattr__(forwarding.outbound[0], "port", None)  # a bug that the datapath meets after the key was used
        rack.wire(UP_ENGINE.name).send(up_frame(TO_PEER))
        met = (DropReason.AUTHENTICATION, DropReason.INTERNAL)
        await_that(lambda: [engine.drops().of(reason) for reason in met] == [1, 1])
        await engine.close()
    finally:
        structlog.reset_defaults()
    said = out.getvalue()
    assert "EngineError" in said  # the net was in the water
    assert "EspTransform(spi=" in said
    assert "packet failed" in said
    assert "engine closed" in said
    for spelling in (*spellings(KEY_CANARY), *spellings(SALT_CANARY)):
        assert spelling not in said


async def traceback_of(refusal) -> str:
    try:
        await refusal
    except EngineError as error:
        return "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
    raise AssertionError("was not refused")


def bugs_inside_the_transform(engine: SoftEngine) -> str:
    """Tracebacks with the transform's own frames and locals in them, before and after the nonce was made."""
    transform = engine._store.forwarding.outbound[0].sa._transform
    payload = EspPayload(4, bytes(8))
    calls = [
        (transform.seal, 1, None, payload),
        (transform.seal, -1, bytes(8), payload),
        (transform.open, -1, bytes(40)),
    ]
    said = []
    for call, *arguments in calls:
        try:
            call(*arguments)
        except (TypeError, struct.error) as error:
            said += traceback.TracebackException.from_exception(error, capture_locals=True).format()
    assert len([line for line in said if line.startswith("Traceback")]) == len(calls)
    return "".join(said)
