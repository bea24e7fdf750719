"""Peers behind NAT: what is decided for them, and what happens when the NAT maps them anew."""

from __future__ import annotations

import struct
from collections.abc import Collection, Mapping
from dataclasses import replace
from ipaddress import ip_address, ip_network
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ipsec_gw.desired import Owner, desired
from ipsec_gw.engines.port import Counters
from ipsec_gw.errors import EngineError, SteeringError, XfrmError
from ipsec_gw.ike.messages import AeventId, UserSaInfo
from ipsec_gw.ike.observer import Observer
from ipsec_gw.ike.xfrm import XfrmMonitor, XfrmSocket
from ipsec_gw.mirror.kernel import KernelView
from ipsec_gw.mirror.links import Links
from ipsec_gw.model.ids import SaKey, TunnelId
from ipsec_gw.model.objects import EngineSa, Lead, Selector, Steer, SteerKey, UdpEncap, UdpPeer
from ipsec_gw.model.snapshot import Mode, ResolvedHop, Snapshot, Template, XfrmPolicy, XfrmSa
from ipsec_gw.nat_t import further_ports
from ipsec_gw.ownership.guard import HAND_BACK_MARGIN, KEPT_AHEAD
from ipsec_gw.ownership.moves import TRIAL_SECONDS, MoveWatch
from ipsec_gw.reconcile.record import Outcome
from tests.support.world import HERE, LOCAL, OFFER, REMOTE, SETTINGS, THERE, established, policy, sa, snapshot
from tests.unit.test_loop import IN, OUT, TUNNEL, World, join_anew
from tests.unit.test_ownership import Kernel, Maps, driver, with_oseq
from tests.unit.test_xfrm_codec import aead, attribute, usersa


def behind_nat(port: int = 31337, ours: int = 4500, **changes: object) -> Snapshot:
    """The established CHILD_SA in UDP."""
    return snapshot(
        sa(0x11, inbound=True, encap=UdpEncap(port, ours)),
        sa(0x22, encap=UdpEncap(ours, port)),
        **{"policies": (policy(0x22),), **changes},
    )


# What is decided


def test_an_encapsulated_tunnel_goes_to_the_engine() -> None:
    result = desired(OFFER, SETTINGS, behind_nat())
    inbound, outbound = result.objects[IN], result.objects[OUT]
    assert isinstance(inbound, EngineSa)
    assert isinstance(outbound, EngineSa)
    assert (inbound.encap, outbound.encap) == (UdpEncap(31337, 4500), UdpEncap(4500, 31337))
    assert result.objects[SteerKey(IN)] == Steer(SteerKey(IN), UdpPeer(REMOTE, 31337))
    lead = result.objects[Selector(HERE, THERE)]
    assert isinstance(lead, Lead)
    assert lead.mtu == 1438, "eight bytes less than without UDP"
    assert {v.owner for v in result.verdicts} == {Owner.ENGINE}
    bare = desired(OFFER, SETTINGS, established()).objects
    assert bare[SteerKey(IN)] == Steer(SteerKey(IN), None)


def test_an_engine_without_udp_leaves_it_to_the_kernel() -> None:
    result = desired(replace(OFFER, udp_encap=False), SETTINGS, behind_nat())
    assert result.objects == {}
    assert all("does not do UDP encapsulation" in v.reason for v in result.verdicts)


def many(count: int, ports: Collection[int] = ()) -> Snapshot:
    """Roadwarriors behind one NAT, each with a virtual IP and a reqid of its own, on our ports in turn."""
    sas: list[XfrmSa] = []
    policies: list[XfrmPolicy] = []
    ours = list(ports) or [4500]
    for n in range(1, count + 1):
        spi, here = 0x1000 + n, ours[n % len(ours)]
        sas += [
            sa(spi, inbound=True, reqid=n, encap=UdpEncap(20000 + n, here)),
            sa(0x8000 + spi, reqid=n, encap=UdpEncap(here, 20000 + n)),
        ]
        virtual = ip_network(f"10.99.{n >> 8}.{n & 255}/32")
        bound = Template(LOCAL, REMOTE, 0x8000 + spi, 50, n, Mode.TUNNEL)
        policies.append(
            policy(0, source=ip_network("0.0.0.0/0"), destination=virtual, priority=367231, templates=(bound,))
        )
    return snapshot(*sas, policies=tuple(policies))


def test_two_hundred_clients_behind_one_nat_share_a_next_hop_and_nothing_else() -> None:
    result = desired(OFFER, SETTINGS, many(200))
    assert {v.owner for v in result.verdicts} == {Owner.ENGINE}
    kinds = [type(obj).__name__ for obj in result.objects.values()]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "NextHop": 1,
        "EngineSa": 400,
        "Guard": 200,
        "Tunnel": 200,
        "Steer": 200,
        "Lead": 200,
    }
    peers = {obj.peer for obj in result.objects.values() if isinstance(obj, Steer)}
    assert peers == {UdpPeer(REMOTE, 20000 + n) for n in range(1, 201)}


def test_four_ports_of_ours_besides_4500_and_no_more() -> None:
    state = many(60, ports=[4500, 4501, 4502, 4503, 4504, 4505])
    assert further_ports(state) == {4501, 4502, 4503, 4504}
    result = desired(OFFER, SETTINGS, state)
    kept = {v.reason for v in result.verdicts if v.owner is Owner.KERNEL}
    assert kept == {"its UDP port 4505 is one too many: 4 are steered besides 4500"}
    assert sum(v.owner is Owner.ENGINE for v in result.verdicts) == 100


# A NAT that maps anew


@pytest.fixture
async def world() -> World:
    made = join_anew()
    await made.link.open()
    return made


async def test_a_port_that_changes_is_an_update_in_place(world: World) -> None:
    await world.show(behind_nat())
    assert world.steer.objects[SteerKey(IN)] == Steer(SteerKey(IN), UdpPeer(REMOTE, 31337))
    assert world.maps.claimed() == {OUT}
    world.engine.sent[OUT] = Counters(1000, 0)
    moved = behind_nat(40001)
    raised = world.kernel.sas[OUT].replay.oseq
    moved = replace(moved, sas=tuple(with_oseq(one, raised) if one.key == OUT else one for one in moved.sas))
    world.source.now = moved
    world.kernel.sas = {one.key: one for one in moved.sas}
    record = await world.reconciler.run_pass()
    assert [str(step.op) for step in record.steps] == [
        f"update SA in {IN} AES_GCM_16-128",
        f"update SA out {OUT} AES_GCM_16-128",
        f"update steering of {IN}",
    ], "what is steered is the last to change, and nothing goes in between"
    assert all(step.outcome is Outcome.DONE for step in record.steps)
    found = world.engine.objects[OUT]
    assert isinstance(found, EngineSa)
    assert found.encap == UdpEncap(4500, 40001)
    assert world.engine.sent[OUT].packets == 1000, "the same SA, not a new one"
    assert world.maps.claimed() == {OUT}
    assert world.refusals.reasons() == {}
    assert {owner for owner, _ in world.reasons().values()} == {Owner.ENGINE}


async def test_an_engine_that_cannot_move_it_gives_it_back_behind_its_number(world: World) -> None:
    await world.show(behind_nat())
    world.engine.sent[OUT] = Counters(1000, 0)
    await world.link.look()
    world.engine.refuses.add(OUT)
    await world.show(behind_nat(40001))
    assert world.maps.claimed() == frozenset()
    assert world.steer.objects == world.lead.objects == {}
    assert not {OUT, TUNNEL} & world.engine.objects.keys()
    assert world.kernel.sas[OUT].replay.oseq >= 1000 + HAND_BACK_MARGIN
    assert "refused" in world.reasons()[0x22][1]


async def test_a_peer_that_moves_to_another_address_is_the_kernels_until_a_rekey(world: World) -> None:
    """MOBIKE: the key has been used at the old address, so it does not go to the engine again, and that is told."""
    await world.show(behind_nat())
    world.engine.sent[OUT] = Counters(1000, 0)
    await world.link.look()
    raised = world.kernel.sas[OUT].replay.oseq
    assert raised >= KEPT_AHEAD
    elsewhere = ip_address("10.0.0.77")
    key, tunnel = SaKey(elsewhere, 0x22), TunnelId(1, elsewhere)
    hops = {elsewhere: ResolvedHop("wan0", elsewhere, "02:00:00:00:00:02", 1500)}
    bound = policy(0x22, templates=(Template(LOCAL, elsewhere, 0x22, 50, 1, Mode.TUNNEL),))
    moved = snapshot(
        sa(0x11, inbound=True, source=elsewhere, encap=UdpEncap(7777, 4500)),
        with_oseq(sa(0x22, key=key, encap=UdpEncap(4500, 7777)), raised),
        policies=(bound,),
        next_hops=hops,
    )
    await world.show(moved)
    assert world.maps.claimed() == frozenset()
    assert TUNNEL not in world.engine.objects
    assert tunnel not in world.engine.objects
    assert SteerKey(IN) not in world.steer.objects
    owner, why = world.reasons()[0x22]
    assert owner is Owner.KERNEL
    assert "a rekey brings a fresh one" in why
    fresh = (
        sa(0x33, inbound=True, source=elsewhere, age=9, encap=UdpEncap(7777, 4500)),
        sa(0x44, key=SaKey(elsewhere, 0x44), age=9, encap=UdpEncap(4500, 7777)),
    )
    switched = policy(0x44, templates=(Template(LOCAL, elsewhere, 0x44, 50, 1, Mode.TUNNEL),))
    await world.show(replace(moved, sas=(*moved.sas, *fresh), policies=(switched,)))
    assert tunnel in world.engine.objects
    assert world.steer.objects[SteerKey(IN)] == Steer(SteerKey(IN), UdpPeer(elsewhere, 7777))


async def test_the_guard_looks_at_our_ports_before_anything_is_claimed(world: World) -> None:
    order: list[str] = []
    claim, ports = world.maps.claim, world.maps.set_nat_t_ports
    world.maps.claim = lambda key: (order.append("claim"), claim(key))[1]  # type: ignore[method-assign]
    world.maps.set_nat_t_ports = lambda found: (order.append("ports"), ports(found))[1]  # type: ignore[method-assign]
    await world.show(behind_nat(ours=4510))
    assert order == ["ports", "claim"]
    assert world.maps.ports == {4510}


async def test_a_port_stays_looked_at_while_a_claimed_sa_is_away() -> None:
    maps, kernel = Maps(), Kernel(sa(0x22))
    guard, _ = driver(maps, kernel)
    guard.follow(behind_nat(ours=4510), frozenset())
    maps.claim(OUT)
    guard.follow(Snapshot(), frozenset())
    assert maps.ports == {4510}, "charon may be moving it: delete and add"
    maps.forget(OUT)
    guard.follow(Snapshot(), frozenset())
    assert maps.ports == frozenset(), "whoever has that port next is not held back"


async def test_a_number_that_charon_left_behind_is_raised_again() -> None:
    maps, kernel = Maps(), Kernel(sa(0x22))
    guard, _ = driver(maps, kernel)
    maps.claim(OUT)
    guard.keep_ahead({OUT: Counters(500, 0)})
    assert kernel.sas[OUT].replay.oseq == 500 + KEPT_AHEAD
    kernel.sas[OUT] = sa(0x22)  # made anew, without its number
    guard.keep_ahead({OUT: Counters(501, 0)})
    assert kernel.sas[OUT].replay.oseq == 0, "nobody has told"
    guard.follow(snapshot(*kernel.sas.values()), frozenset())
    guard.keep_ahead({OUT: Counters(502, 0)})
    assert kernel.sas[OUT].replay.oseq == 502 + KEPT_AHEAD


# Packets from elsewhere


class Moved:
    """The steering's part, the kernel's and the engine's, in the order of what they were asked."""

    def __init__(self, moved: Collection[SaKey] = (), tops: Mapping[SaKey, int] | None = None) -> None:
        self.moved = frozenset(moved)
        self.tops = tops or {}
        self.calls: list[tuple[object, ...]] = []
        self.told: list[str] = []
        self.gone: set[SaKey] = set()
        self.error: EngineError | SteeringError | None = None
        self.now = 100.0
        self.watch = MoveWatch(self, self, received=self.received, tell=self.told.append, clock=lambda: self.now)

    def take_moved(self) -> frozenset[SaKey]:
        if isinstance(self.error, SteeringError):
            raise self.error
        return self.moved

    def give_to_kernel(self, key: SaKey, seconds: float) -> None:
        self.calls.append(("trial", key, seconds))

    def raise_seq(self, key: SaKey, seq: int) -> None:
        if key in self.gone:
            raise XfrmError("gone")
        self.calls.append(("seq", key, seq))

    async def received(self, keys: Collection[SaKey]) -> Mapping[SaKey, int]:
        if isinstance(self.error, EngineError):
            raise self.error
        self.calls.append(("received", *keys))
        return {key: self.tops[key] for key in keys if key in self.tops}


async def test_the_window_is_moved_before_the_kernel_gets_a_packet() -> None:
    moved = Moved([IN], {IN: 4711})
    await moved.watch.look()
    assert moved.calls == [("received", IN), ("seq", IN, 4711), ("trial", IN, TRIAL_SECONDS)]


async def test_a_trial_is_begun_anew_before_it_ends_and_not_sooner() -> None:
    moved = Moved([IN], {IN: 1})
    began: list[float] = []
    for step in range(12):
        moved.now = 100.0 + step / 4
        before = len(moved.calls)
        await moved.watch.look()
        if len(moved.calls) > before:
            began.append(moved.now)
    assert began == [100.0, 100.75, 101.5, 102.25], "the kernel has it all the time, the engine is asked now and then"


async def test_a_peer_that_sends_little_is_waited_for_and_the_window_moves_meanwhile() -> None:
    moved = Moved([IN], {IN: 1})
    await moved.watch.look()
    moved.moved = frozenset()
    for second in range(1, 100):
        moved.now = 100.0 + second
        moved.tops = {IN: second}
        await moved.watch.look()
    raised = [call[2] for call in moved.calls if call[0] == "seq"]
    assert raised == list(range(1, 2)) + list(range(1, 60)), "for a minute"
    assert len([call for call in moved.calls if call[0] == "trial"]) == len(raised)


async def test_a_second_peer_does_not_wait_for_the_first() -> None:
    other = SaKey(LOCAL, 0x12)
    moved = Moved([IN], {IN: 1, other: 2})
    await moved.watch.look()
    moved.moved, moved.now = frozenset({other}), 100.25
    moved.calls.clear()
    await moved.watch.look()
    assert moved.calls == [("received", other), ("seq", other, 2), ("trial", other, TRIAL_SECONDS)]
    moved.moved, moved.now = frozenset(), 101.0
    moved.calls.clear()
    await moved.watch.look()
    assert {call[1] for call in moved.calls if call[0] == "trial"} == {IN, other}
    moved.tops = {other: 3}  # the first has gone from the engine
    moved.now = 102.0
    await moved.watch.look()
    moved.calls.clear()
    moved.now = 103.0
    await moved.watch.look()
    assert {call[1] for call in moved.calls if call[0] == "trial"} == {other}


async def test_nothing_is_asked_while_nothing_moves() -> None:
    moved = Moved()
    await moved.watch.look()
    assert (moved.calls, moved.told) == ([], [])


async def test_an_sa_that_is_gone_does_not_hold_up_another() -> None:
    lost, unknown = SaKey(LOCAL, 0x10), SaKey(LOCAL, 0x12)
    moved = Moved([lost, IN, unknown], {IN: 1, lost: 2})
    moved.gone.add(lost)
    await moved.watch.look()
    assert moved.calls[1:] == [("seq", IN, 1), ("trial", IN, TRIAL_SECONDS)], "no trial where the window is not known"
    assert len(moved.told) == 1
    assert str(lost) in moved.told[0]


@pytest.mark.parametrize("error", [EngineError("no answer"), SteeringError("no map")])
async def test_troubles_are_told_and_no_trial_begins(error: EngineError | SteeringError) -> None:
    moved = Moved([IN], {IN: 1})
    moved.error = error
    await moved.watch.look()
    assert moved.calls == []
    assert str(error) in moved.told[0]


# The kernel's window


class Netlink(XfrmSocket):
    """Without a kernel: one SA, and what is written to it."""

    def __init__(self, message: UserSaInfo) -> None:
        self.message = message
        self._marks = {}
        self.written: list[dict[str, Any]] = []

    def _get(self, key: SaKey) -> UserSaInfo | None:
        return self.message

    def _request(self, kind: Any, message_type: int, flags: int, body: bytes) -> list[Any]:
        event = AeventId(struct.pack("=IHHII", 16 + len(body), message_type, flags, 1, 0) + body)
        event.decode()
        self.written.append(dict(event["attrs"]))
        return []


def test_a_legacy_window_is_moved_and_full() -> None:
    kernel = Netlink(usersa(aead(), attribute(10, struct.pack("=III", 41, 42, 0xF0))))
    kernel.raise_seq(IN, 42)
    assert kernel.written == [], "never downwards"
    kernel.raise_seq(IN, 1000)
    value = kernel.written[0]["XFRMA_REPLAY_VAL"]
    assert (value["oseq"], value["seq"], value["bitmap"]) == (41, 1000, 0xFFFFFFFF)


def test_an_extended_window_is_moved_and_full() -> None:
    state = struct.pack("=6I", 4, 5, 6, 7, 8, 128) + bytes(16)
    kernel = Netlink(usersa(aead(), attribute(23, state), flags=0x80))
    kernel.raise_seq(IN, 8 << 32 | 5)
    assert kernel.written == []
    kernel.raise_seq(IN, 9 << 32 | 3)
    raw = kernel.written[0]["XFRMA_REPLAY_ESN_VAL"]
    assert struct.unpack_from("=6I", raw) == (4, 5, 3, 7, 9, 128)
    assert raw[24:] == b"\xff" * 16


def test_without_a_window_nothing_is_moved() -> None:
    kernel = Netlink(usersa(aead(), attribute(10, bytes(12)), window=0))
    kernel.raise_seq(IN, 1000)
    assert kernel.written == []


# charon's delete and add


def looking(dumps: list[list[XfrmSa]]) -> tuple[Observer, list[float]]:
    """An observer that finds these SAs, one dump after the other, and what it waited."""
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    async def nothing(*_args: Any) -> dict[Any, Any]:
        return {}

    names = SimpleNamespace(child_names=nothing, version="")
    kernel = SimpleNamespace(sas=lambda: dumps.pop(0), policies=list)

    async def no_links() -> Links:
        return Links(())

    view = SimpleNamespace(addresses=nothing, links=no_links, next_hops=nothing, source_hints=nothing)
    monitor = SimpleNamespace(changes=0, drain=lambda: None)
    observer = Observer(
        cast(XfrmSocket, kernel),
        cast(XfrmMonitor, monitor),
        cast(KernelView, view),
        names,
        names_decide=False,
        named=lambda: None,
        sleep=sleep,
    )
    return observer, slept


async def test_what_vanishes_is_looked_for_once_more() -> None:
    before, moved = sa(0x22, encap=UdpEncap(4500, 1)), sa(0x22, encap=UdpEncap(4500, 2))
    stays = sa(0x11, inbound=True)
    observer, slept = looking([[stays, before], [stays], [stays, moved], [stays, moved]])
    assert (await observer.snapshot()).sas == (stays, before)
    assert (await observer.snapshot()).sas == (stays, moved)
    assert (await observer.snapshot()).sas == (stays, moved)
    assert len(slept) == 1


async def test_nobody_waits_for_what_was_replaced_or_is_gone_altogether() -> None:
    old, new = (sa(0x11, inbound=True), sa(0x22)), (sa(0x33, inbound=True), sa(0x44))
    observer, slept = looking([[*old, *new], [old[0], *new], [*new], []])
    for _ in range(4):
        await observer.snapshot()
    assert slept == []


async def test_what_stays_away_is_gone() -> None:
    stays = sa(0x11, inbound=True)
    observer, slept = looking([[stays, sa(0x22)], [stays], [stays], [stays]])
    await observer.snapshot()
    assert (await observer.snapshot()).sas == (stays,)
    assert (await observer.snapshot()).sas == (stays,)
    assert len(slept) == 1, "once is enough"


async def test_an_sa_at_another_address_has_not_vanished() -> None:
    elsewhere = sa(0x22, key=SaKey(ip_address("10.0.0.9"), 0x22))
    observer, slept = looking([[sa(0x22)], [elsewhere]])
    await observer.snapshot()
    assert (await observer.snapshot()).sas == (elsewhere,)
    assert slept == []
