"""The reconciler against fakes: convergence, isolation, engine loss (DESIGN.md, invariants 3, 5, 9, 10)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest

from ipsec_gw.desired import Owner
from ipsec_gw.engines.port import Counters
from ipsec_gw.errors import EngineError
from ipsec_gw.model.ids import SaKey, TunnelId
from ipsec_gw.model.objects import (
    EngineObject,
    ExemptKey,
    Guard,
    GuardKey,
    Hosts,
    ManagedObject,
    ObjectKey,
    Selector,
    SteerKey,
    Tunnel,
)
from ipsec_gw.model.snapshot import Snapshot
from ipsec_gw.ownership.engine_link import EngineLink
from ipsec_gw.ownership.guard import HAND_BACK_MARGIN, KEPT_AHEAD, GuardDriver
from ipsec_gw.ownership.refusals import Refusals
from ipsec_gw.ownership.rekey import RekeyPacer
from ipsec_gw.reconcile.delta import DeltaTracker
from ipsec_gw.reconcile.execute import Drivers, Executor
from ipsec_gw.reconcile.loop import Reconciler
from ipsec_gw.reconcile.record import Outcome
from tests.support.fakes import FakeDriver, FakeEngine, FakeSource
from tests.support.world import HERE, LOCAL, REMOTE, SETTINGS, THERE, established, policy, sa, snapshot
from tests.unit.test_hosts import FROM, TO, beside, selects
from tests.unit.test_ownership import Kernel, Maps, with_oseq

FAR = KEPT_AHEAD + 500
"""More than the kernel's number was raised at birth."""

OUT, IN, TUNNEL = SaKey(REMOTE, 0x22), SaKey(LOCAL, 0x11), TunnelId(1, REMOTE)


@dataclass
class World:
    engine: FakeEngine
    source: FakeSource
    maps: Maps
    kernel: Kernel
    steer: FakeDriver
    lead: FakeDriver
    link: EngineLink
    reconciler: Reconciler
    refusals: Refusals

    async def show(self, look: Snapshot) -> None:
        """A new situation, and a pass."""
        self.source.now = look
        self.kernel.sas = {one.key: one for one in look.sas}
        await self.reconciler.run_pass()

    def reasons(self) -> dict[int, tuple[Owner, str]]:
        return {v.sa.key.spi: (v.owner, v.reason) for v in self.reconciler.decision.verdicts}

    def empty(self) -> bool:
        return not (self.engine.objects or self.steer.objects or self.lead.objects or self.maps.claimed())


def second_life(world: World) -> World:
    """The daemon starts again on everything that is in place."""
    return join(world.engine, world.source, world.maps, world.kernel, world.steer, world.lead)


def join_anew(clock: Callable[[], float] = time.monotonic) -> World:
    """A world in which nothing has happened yet."""
    return join(FakeEngine(), FakeSource(Snapshot()), Maps(), Kernel(), FakeDriver(), FakeDriver(), clock)


def join(
    engine: FakeEngine,
    source: FakeSource,
    maps: Maps,
    kernel: Kernel,
    steer: FakeDriver,
    lead: FakeDriver,
    clock: Callable[[], float] = time.monotonic,
) -> World:
    link = EngineLink(engine)
    refusals = Refusals(RekeyPacer())
    guard = GuardDriver(maps, kernel, sent=link.sent, refuse=refusals.add)
    tracker: DeltaTracker[ObjectKey, ManagedObject] = DeltaTracker()

    async def no_sleep(_seconds: float) -> None:
        pass

    async def retrieve() -> dict[ObjectKey, ManagedObject]:
        return {
            **await link.retrieve(),
            **await guard.retrieve(),
            **await steer.retrieve(),
            **await lead.retrieve(),
        }

    reconciler = Reconciler(
        source=source,
        link=link,
        settings=SETTINGS,
        tracker=tracker,
        executor=Executor(
            Drivers(engine=link, guard=guard, steer=steer, lead=lead, hosts=lead, interface=lead),
            tracker,
            sleep=no_sleep,
        ),
        retrieve=retrieve,
        refusals=refusals,
        follow=guard.follow,
        clock=clock,
    )
    return World(engine, source, maps, kernel, steer, lead, link, reconciler, refusals)


@pytest.fixture
async def world() -> World:
    made = join_anew()
    await made.link.open()
    return made


async def test_a_child_goes_to_the_engine_and_a_second_pass_does_nothing(world: World) -> None:
    await world.show(established())
    assert TUNNEL in world.engine.objects
    assert SteerKey(IN) in world.steer.objects
    assert Selector(HERE, THERE) in world.lead.objects
    assert world.maps.claimed() == {OUT}
    assert world.reconciler.in_sync
    assert (await world.reconciler.run_pass()).steps == ()


async def test_a_removed_child_leaves_nothing(world: World) -> None:
    await world.show(established())
    await world.show(Snapshot())
    assert world.empty()
    assert world.maps.owner == {}


async def test_a_used_key_stays_in_the_kernel_and_its_successor_is_accelerated(world: World) -> None:
    used = with_oseq(sa(0x22), 5)
    await world.show(snapshot(sa(0x11, inbound=True), used, policies=(policy(0x22),)))
    assert world.maps.owner == {OUT: "kernel"}, "the kernel keeps sending"
    assert TUNNEL not in world.engine.objects
    assert world.lead.objects == {}
    assert world.reasons()[0x22][0] is Owner.KERNEL
    assert world.refusals.pacer.due(1.0) == OUT, "a rekey is asked for"
    successor = SaKey(REMOTE, 0x44)
    await world.show(
        snapshot(sa(0x11, inbound=True), used, sa(0x33, inbound=True, age=1), sa(0x44, age=1), policies=(policy(0x44),))
    )
    assert world.engine.objects[TUNNEL].outbound == successor
    assert world.maps.claimed() == {successor}


async def test_what_no_policy_names_goes_back_to_the_kernel_once_it_has_waited_for_too_long(world: World) -> None:
    look = snapshot(sa(0x11, inbound=True), sa(0x22), policies=(policy(0),))
    await world.show(look)
    assert world.maps.claimed() == {OUT}, "the policy may be about to name it"
    world.reconciler.forsake(OUT)
    await world.show(look)
    assert world.maps.owner == {OUT: "kernel"}
    assert world.refusals.pacer.due(1.0) is None, "a rekey would bring another that no policy names"
    await world.show(snapshot(*look.sas, sa(0x44, age=1), policies=(policy(0),)))
    assert world.maps.claimed() == frozenset()


async def test_an_old_inbound_sa_that_the_kernel_has_received_with_stays_its(world: World) -> None:
    received = replace(sa(0x11, inbound=True), replay=replace(sa(0x11).replay, seq=9))
    fresh = (sa(0x33, inbound=True, age=1), sa(0x44, age=1))
    await world.show(snapshot(received, *fresh, policies=(policy(0x44),)))
    assert world.engine.objects[TUNNEL].inbound == (SaKey(LOCAL, 0x33),)
    assert SteerKey(IN) not in world.steer.objects
    assert world.reasons()[0x11][0] is Owner.KERNEL


@pytest.mark.parametrize("victim", [OUT, IN, REMOTE, TUNNEL], ids=["outbound SA", "inbound SA", "next hop", "tunnel"])
async def test_what_the_engine_refuses_is_the_kernels_and_nothing_is_half_in_place(
    world: World, victim: ObjectKey
) -> None:
    world.engine.refuses.add(victim)
    await world.show(established())
    assert world.maps.claimed() == frozenset(), "a claimed SA without a tunnel would be a black hole"
    assert world.maps.owner == {OUT: "kernel"}
    assert world.lead.objects == {}
    assert world.steer.objects == {}
    owner, reason = world.reasons()[0x22]
    assert owner is Owner.KERNEL
    assert "failed" in reason or "refused" in reason


async def test_what_the_engine_does_not_have_yet_is_pending(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    create, meanwhile = world.engine.create, []

    async def creating(value: EngineObject) -> None:
        meanwhile.append({verdict.owner for verdict in world.reconciler.verdicts})
        await create(value)

    monkeypatch.setattr(world.engine, "create", creating)
    await world.show(established())
    assert meanwhile[0] == {Owner.PENDING}
    assert {verdict.owner for verdict in world.reconciler.verdicts} == {Owner.ENGINE}


async def test_a_lead_that_cannot_be_made_gives_the_tunnel_back(world: World) -> None:
    world.lead.refuses.add(Selector(HERE, THERE))
    await world.show(established())
    assert world.maps.claimed() == frozenset()
    assert world.steer.objects == {}


async def test_one_bad_sa_does_not_hold_up_the_rest(world: World) -> None:
    other_in, other_out = SaKey(LOCAL, 0x55), SaKey(REMOTE, 0x66)
    mine, theirs = policy(0x22), policy(0x66)
    theirs = replace(
        theirs,
        destination=THERE.supernet(prefixlen_diff=8),
        source=HERE,
        templates=(replace(theirs.templates[0], reqid=2),),
    )
    theirs = replace(theirs, destination=type(THERE)("172.16.0.0/16"))
    world.engine.refuses.add(OUT)
    await world.show(
        snapshot(
            sa(0x11, inbound=True),
            sa(0x22),
            sa(0x55, inbound=True, reqid=2),
            sa(0x66, reqid=2),
            policies=(mine, theirs),
        )
    )
    assert world.engine.objects[TunnelId(2, REMOTE)].outbound == other_out
    assert SteerKey(other_in) in world.steer.objects
    assert world.reasons()[0x22][0] is Owner.KERNEL


@pytest.mark.parametrize("victim", [SaKey(REMOTE, 0x20 + TO), TunnelId(TO, REMOTE)], ids=["outbound SA", "tunnel"])
async def test_one_of_two_tunnels_between_hosts_does_not_hold_up_the_other(world: World, victim: ObjectKey) -> None:
    world.engine.refuses.add(victim)
    await world.show(beside())
    assert world.engine.objects[TunnelId(FROM, REMOTE)].outbound == SaKey(REMOTE, 0x20 + FROM)
    assert TunnelId(TO, REMOTE) not in world.engine.objects
    assert world.lead.objects.keys() == {Hosts(LOCAL, REMOTE), ExemptKey(selects(TO).selector)}
    assert world.refusals.reasons().keys() == {SaKey(REMOTE, 0x20 + TO)}


async def test_a_lead_of_hosts_that_cannot_be_made_gives_both_tunnels_back(world: World) -> None:
    world.lead.refuses.add(Hosts(LOCAL, REMOTE))
    await world.show(beside())
    assert world.maps.claimed() == frozenset()
    assert world.refusals.reasons().keys() == {SaKey(REMOTE, 0x20 + reqid) for reqid in (TO, FROM)}


async def test_what_was_refused_untouched_is_decided_on_at_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading everything again takes VPP a while, in which the plaintext of a tunnel would go to an SA that is dead."""
    await world.show(established())
    read = world.engine.retrieve
    reads: list[bool] = []

    async def retrieve() -> object:
        reads.append(Selector(HERE, THERE) in world.lead.objects)
        return await read()

    monkeypatch.setattr(world.engine, "retrieve", retrieve)
    world.source.now = snapshot(sa(0x33, inbound=True), sa(0x44), policies=(policy(0x44),))
    world.kernel.sas = {}  # and the new ones are gone before they are claimed
    record = await world.reconciler.run_pass()
    assert [step.op.obj for step in record.failures if step.outcome is Outcome.FAILED] == [
        Guard(GuardKey(SaKey(REMOTE, 0x44)))
    ]
    assert reads == []
    assert world.lead.objects == {}
    assert world.maps.claimed() == frozenset()


async def test_a_dead_engine_gives_everything_to_the_kernel_behind_its_numbers(world: World) -> None:
    await world.show(established())
    world.engine.sent[OUT] = Counters(FAR, 1)
    await world.link.look()
    assert world.link.losses == 0
    world.engine.broken = True
    await world.link.look()
    assert world.link.losses == 1
    world.reconciler.distrust()
    await world.reconciler.run_pass()
    assert world.kernel.sas[OUT].replay.oseq == FAR + HAND_BACK_MARGIN
    assert world.maps.owner == {OUT: "kernel"}
    assert world.steer.objects == {}
    assert world.lead.objects == {}
    assert "away" in world.reasons()[0x11][1]
    assert world.refusals.pacer.due(1.0) == OUT


async def test_a_restarted_engine_never_gets_a_used_key_again(world: World) -> None:
    await world.show(established())
    world.engine.restart()
    await world.link.look()
    assert world.link.losses == 1
    world.reconciler.distrust()
    await world.link.open()
    await world.reconciler.run_pass()
    assert OUT not in world.engine.objects
    assert world.maps.owner == {OUT: "kernel"}


async def test_nothing_is_steered_to_an_engine_that_began_anew_during_the_pass(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = world.link.create

    async def restarts_behind(obj: ManagedObject) -> None:
        await create(obj)
        if isinstance(obj, Tunnel):
            world.engine.restart()
            await world.link.look()
            await world.link.open()

    monkeypatch.setattr(world.link, "create", restarts_behind)
    await world.show(established())
    assert world.link.losses == 1
    assert world.steer.objects == {}
    assert any("the engine was lost meanwhile" in str(record.steps) for record in world.reconciler.history)
    monkeypatch.undo()
    await world.reconciler.run_pass()
    assert world.steer.objects == {}
    assert world.maps.owner == {OUT: "kernel"}


async def test_a_restarted_daemon_adopts_what_is_in_place(world: World) -> None:
    await world.show(established())
    reborn = second_life(world)
    await reborn.link.open()
    record = await reborn.reconciler.run_pass()
    assert record.steps == ()
    assert reborn.reconciler.in_sync


async def test_a_restarted_daemon_finds_an_empty_engine_and_gives_the_key_back(world: World) -> None:
    await world.show(established())
    world.engine.restart()
    reborn = second_life(world)
    await reborn.link.open()
    await reborn.reconciler.run_pass()
    assert reborn.maps.owner == {OUT: "kernel"}
    assert OUT not in reborn.engine.objects


async def test_a_restarted_daemon_catches_up_with_what_happened_meanwhile(world: World) -> None:
    await world.show(established())
    reborn = second_life(world)
    await reborn.link.open()
    await reborn.show(Snapshot())
    assert reborn.empty()


async def test_withdrawal_hands_everything_back(world: World) -> None:
    await world.show(established())
    world.engine.sent[OUT] = Counters(FAR, 1)
    record = await world.reconciler.withdraw()
    assert {step.outcome for step in record.steps} == {Outcome.DONE}
    assert world.empty()
    assert world.kernel.sas[OUT].replay.oseq == FAR + HAND_BACK_MARGIN


async def test_leftovers_of_a_crash_are_swept(world: World) -> None:
    stray = SaKey(REMOTE, 0x99)
    world.maps.claim(stray)
    world.maps.claim(OUT)
    await world.show(established())
    assert stray not in world.maps.owner, "its SA is gone: nothing to hand back"
    assert world.maps.owner[OUT] == "kernel", "claimed in an earlier life and not in the engine: its key may be used"
    assert Guard(GuardKey(OUT)) not in world.reconciler.decision.objects.values()


async def test_a_rekey_that_the_engine_refuses_gives_the_tunnel_back(world: World) -> None:
    """The leads are in place already: only the failed swap of the tunnel's SAs tells that something is wrong."""
    await world.show(established())
    world.engine.sent[OUT] = Counters(3, 1)
    world.engine.refuses.add(TUNNEL)
    await world.show(
        snapshot(
            sa(0x11, inbound=True), sa(0x22), sa(0x33, inbound=True, age=1), sa(0x44, age=1), policies=(policy(0x44),)
        )
    )
    await world.reconciler.run_pass()
    assert world.maps.owner[SaKey(REMOTE, 0x44)] == "kernel", "the SA in use"
    assert world.lead.objects == {}
    assert world.steer.objects == {}
    assert world.reasons()[0x44][0] is Owner.KERNEL


async def test_counters_that_cannot_be_read_are_no_loss(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await world.show(established())

    async def refuse() -> dict[SaKey, Counters]:
        raise EngineError("no such counter")

    monkeypatch.setattr(world.engine, "counters", refuse)
    await world.link.look()
    assert world.link.up


async def test_an_ineligible_sa_is_released_at_once(world: World) -> None:
    """Nobody waits for the hold of newborn SPIs to end: the kernel sends with it after the first look."""
    await world.show(snapshot(sa(0x11, inbound=True, if_id=7), sa(0x22, if_id=7), policies=(policy(0x22, if_id=7),)))
    assert world.maps.owner == {OUT: "kernel"}
    await world.show(Snapshot())
    await world.show(Snapshot())
    assert world.maps.owner == {}


async def test_a_successor_that_the_engine_refuses_is_the_kernels_before_its_turn_comes(world: World) -> None:
    """When the policies switch to it, the kernel may send with it at once."""
    await world.show(established())
    successor = SaKey(REMOTE, 0x44)
    world.engine.refuses.add(successor)
    await world.show(
        snapshot(
            sa(0x11, inbound=True), sa(0x22), sa(0x33, inbound=True, age=1), sa(0x44, age=1), policies=(policy(0x22),)
        )
    )
    assert world.maps.owner == {OUT: "engine", successor: "kernel"}
    assert world.engine.objects[TUNNEL].outbound == OUT, "the one in use goes on"
    assert successor in world.refusals.reasons()


async def test_an_engine_that_comes_back_does_not_get_what_the_kernel_took_over(world: World) -> None:
    await world.show(established())
    world.engine.sent[OUT] = Counters(FAR, 1)
    world.engine.broken = True
    await world.link.look()
    world.reconciler.distrust()
    await world.reconciler.run_pass()
    assert world.maps.owner == {OUT: "kernel"}
    reborn = second_life(world)
    world.engine.broken = False
    await reborn.link.open()
    await reborn.reconciler.run_pass()
    assert OUT not in world.engine.objects
    assert TUNNEL not in world.engine.objects
    assert world.maps.owner == {OUT: "kernel"}
    assert "the kernel took it over" in reborn.reasons()[0x22][1]


async def test_what_was_heard_of_counters_stays_as_it_was() -> None:
    """The guardian writes it, and notes as told what it has read, while others ask the engine."""
    engine, key = FakeEngine(), SaKey(REMOTE, 0x22)
    link = EngineLink(engine)
    await link.open()
    engine.sent[key] = Counters(3, 300)
    heard = await link.hear()
    engine.sent[key] = Counters(6, 600)
    await link.look()
    assert heard.counters[key] == Counters(3, 300)
    assert link.sent(key) == Counters(6, 600)
