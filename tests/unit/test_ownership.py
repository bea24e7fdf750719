"""One owner for an outbound SA's sequence numbers (DESIGN.md, invariant 3), and paced rekeys."""

from __future__ import annotations

import errno
from dataclasses import dataclass, replace
from ipaddress import ip_address

import pytest

from ipsec_gw.engines.port import Counters
from ipsec_gw.errors import GoneError, IpsecGwError, UsedKeyError, XfrmError
from ipsec_gw.model.ids import SaKey
from ipsec_gw.model.objects import Guard, GuardKey
from ipsec_gw.model.snapshot import Replay, XfrmSa
from ipsec_gw.ownership.guard import HAND_BACK_MARGIN, KEPT_AHEAD, GuardDriver
from ipsec_gw.ownership.rekey import RekeyPacer
from ipsec_gw.ownership.waiting import EVERY_NUMBER
from tests.support.world import LOCAL, REMOTE, sa, snapshot

KEY = SaKey(REMOTE, 0x22)
GUARD = Guard(GuardKey(KEY))


@dataclass
class Seen:
    passed: int = 0
    dropped: int = 0


class Maps:
    """The guard's maps as a fake: owners, and what was seen."""

    def __init__(self) -> None:
        self.owner: dict[SaKey, str] = {}
        self.seen: dict[SaKey, Seen] = {}
        self.ports: frozenset[int] = frozenset()
        self.gone = False

    def engine_gone(self) -> bool:
        return self.gone

    def set_engine_gone(self, gone: bool) -> None:
        self.gone = gone

    def claim(self, key: SaKey) -> None:
        self.owner[key] = "engine"

    def release(self, key: SaKey) -> None:
        self.owner[key] = "kernel"

    def forget(self, key: SaKey) -> None:
        self.owner.pop(key, None)
        self.seen.pop(key, None)

    def claimed(self) -> frozenset[SaKey]:
        return frozenset(key for key, owner in self.owner.items() if owner == "engine")

    def guarded(self) -> frozenset[SaKey]:
        return frozenset({*self.owner, *self.seen})

    def set_local(self, addresses: frozenset[object]) -> None:
        self.local = addresses

    def nat_t_ports(self) -> frozenset[int]:
        return self.ports

    def set_nat_t_ports(self, ports: frozenset[int]) -> None:
        self.ports = ports

    def guard_counters(self) -> dict[SaKey, Seen]:
        return self.seen


class Kernel:
    """The kernel's SAs as a fake. ``on_look`` runs whenever an SA is read."""

    def __init__(self, *sas: XfrmSa) -> None:
        self.sas = {s.key: s for s in sas}
        self.refuses: set[SaKey] = set()
        self.gone: set[SaKey] = set()
        self.written: list[tuple[SaKey, int]] = []
        self.on_look = lambda: None

    def sa(self, key: SaKey) -> XfrmSa | None:
        self.on_look()
        return self.sas.get(key)

    def raise_oseq(self, key: SaKey, oseq: int) -> None:
        if key in self.gone:
            raise XfrmError(f"SA {key} is gone from the kernel", errno.ESRCH)
        if key not in self.sas or key in self.refuses:
            raise XfrmError(f"NEWAE for {key} refused")
        self.written.append((key, oseq))
        self.sas[key] = with_oseq(self.sas[key], max(oseq, self.sas[key].replay.oseq))


def with_oseq(one: XfrmSa, oseq: int) -> XfrmSa:
    return replace(one, replay=replace(one.replay, oseq=oseq))


def driver(maps: Maps, kernel: Kernel, sent: Counters | None = None) -> tuple[GuardDriver, dict[SaKey, str]]:
    refused: dict[SaKey, str] = {}
    return GuardDriver(maps, kernel, sent=lambda _key: sent, refuse=refused.__setitem__), refused


async def test_a_fresh_key_is_claimed() -> None:
    maps, kernel = Maps(), Kernel(sa(0x22))
    guard, refused = driver(maps, kernel)
    await guard.create(GUARD)
    assert maps.claimed() == {KEY}
    assert refused == {}
    assert await guard.retrieve() == {GuardKey(KEY): GUARD}


@pytest.mark.parametrize(
    ("sent", "oseq", "above"),
    [
        (Counters(40, 4000), KEPT_AHEAD, 40 + HAND_BACK_MARGIN),
        (None, KEPT_AHEAD, KEPT_AHEAD + HAND_BACK_MARGIN),
        (Counters(0, 0), KEPT_AHEAD, 0),
    ],
)
async def test_what_was_held_back_leaves_before_a_release(sent: Counters | None, oseq: int, above: int) -> None:
    maps, kernel = Maps(), Kernel(with_oseq(sa(0x22), oseq))
    maps.claim(KEY)
    guard, _ = driver(maps, kernel, sent)
    asked: list[tuple[SaKey, int, bool]] = []
    guard.before_release = lambda key, number: asked.append((key, number, key in maps.claimed()))
    await guard.delete(GUARD)
    assert asked == [(KEY, above, True)], "while the guard is closed, above the engine's numbers"


async def test_what_was_held_back_of_a_used_key_leaves_before_its_release() -> None:
    maps, kernel = Maps(), Kernel(with_oseq(sa(0x22), 3))
    guard, _ = driver(maps, kernel)
    asked: list[tuple[SaKey, int, bool]] = []
    guard.before_release = lambda key, number: asked.append((key, number, key in maps.claimed()))
    with pytest.raises(UsedKeyError):
        await guard.create(GUARD)
    guard.follow(snapshot(sa(0x22), sa(0x33)), frozenset({SaKey(REMOTE, 0x33)}))
    assert asked == [(KEY, 0, True), (SaKey(REMOTE, 0x33), 0, False)]


async def test_what_was_held_back_of_a_claimed_sa_that_is_gone_does_not_leave() -> None:
    maps = Maps()
    maps.claim(KEY)
    guard, _ = driver(maps, Kernel())
    asked: list[tuple[SaKey, int, bool]] = []
    guard.before_release = lambda key, number: asked.append((key, number, key in maps.claimed()))
    await guard.delete(GUARD)
    assert asked == [(KEY, EVERY_NUMBER, True)], "while it is claimed: unclaimed it would leave"


async def test_the_guard_is_closed_before_the_kernel_is_asked() -> None:
    maps, kernel = Maps(), Kernel(sa(0x22))
    closed: list[bool] = []
    kernel.on_look = lambda: closed.append(KEY in maps.claimed())
    await driver(maps, kernel)[0].create(GUARD)
    assert closed
    assert all(closed)


async def test_a_key_that_reached_the_wire_is_refused_and_left_to_the_kernel() -> None:
    maps, kernel = Maps(), Kernel(with_oseq(sa(0x22), 3))
    guard, refused = driver(maps, kernel)
    with pytest.raises(UsedKeyError, match="has sent 3 packets"):
        await guard.create(GUARD)
    assert maps.owner == {KEY: "kernel"}
    assert list(refused) == [KEY]


async def test_numbers_that_were_held_back_do_not_count_as_used() -> None:
    maps, kernel = Maps(), Kernel(with_oseq(sa(0x22), 7))
    maps.seen[KEY] = Seen(dropped=7)
    await driver(maps, kernel)[0].create(GUARD)
    assert maps.claimed() == {KEY}


async def test_one_packet_that_passed_is_not_hidden_by_others_that_were_held() -> None:
    maps, kernel = Maps(), Kernel(with_oseq(sa(0x22), 7))
    maps.seen[KEY] = Seen(passed=1, dropped=7)
    with pytest.raises(UsedKeyError):
        await driver(maps, kernel)[0].create(GUARD)


async def test_a_packet_on_its_way_to_the_guard_is_waited_for() -> None:
    maps, kernel = Maps(), Kernel(with_oseq(sa(0x22), 1))
    looks = 0

    def arrive() -> None:
        nonlocal looks
        looks += 1
        if looks == 2:
            maps.seen[KEY] = Seen(dropped=1)

    kernel.on_look = arrive
    await driver(maps, kernel)[0].create(GUARD)
    assert maps.claimed() == {KEY}


async def test_an_sa_that_is_gone_is_not_guarded() -> None:
    maps = Maps()
    with pytest.raises(IpsecGwError, match="gone"):
        await driver(maps, Kernel())[0].create(GUARD)
    assert maps.owner == {}


async def test_an_sa_that_goes_while_it_is_claimed_is_not_guarded() -> None:
    maps, kernel = Maps(), Kernel(sa(0x22))
    kernel.gone.add(KEY)
    with pytest.raises(GoneError):
        await driver(maps, kernel)[0].create(GUARD)
    assert maps.owner == {}


async def test_the_kernels_number_is_ahead_before_the_engine_gets_the_sa() -> None:
    maps, kernel = Maps(), Kernel(with_oseq(sa(0x22), 7))
    maps.seen[KEY] = Seen(dropped=7)
    await driver(maps, kernel)[0].create(GUARD)
    assert kernel.written == [(KEY, 7 + KEPT_AHEAD)]
    assert maps.claimed() == {KEY}


async def test_an_sa_whose_number_cannot_be_raised_is_left_to_the_kernel() -> None:
    maps, kernel = Maps(), Kernel(sa(0x22))
    kernel.refuses.add(KEY)
    with pytest.raises(XfrmError):
        await driver(maps, kernel)[0].create(GUARD)
    assert maps.owner == {KEY: "kernel"}


async def test_an_sa_that_moved_with_its_number_is_not_taken_for_fresh() -> None:
    """Charon installs it again under another address, with the key and the raised number (MOBIKE)."""
    maps, kernel = Maps(), Kernel(with_oseq(sa(0x22), KEPT_AHEAD))
    with pytest.raises(UsedKeyError, match="used by an engine before"):
        await driver(maps, kernel)[0].create(GUARD)
    assert maps.owner == {KEY: "kernel"}


def test_the_kernel_is_kept_ahead_in_steps_upwards_and_only_of_what_is_claimed() -> None:
    other = SaKey(REMOTE, 0x33)
    maps, kernel = Maps(), Kernel(sa(0x22), sa(0x33))
    maps.claim(KEY)
    maps.release(other)
    guard, _ = driver(maps, kernel)
    written: list[tuple[int, int]] = []
    for packets in range(0, 4 * HAND_BACK_MARGIN, HAND_BACK_MARGIN // 8):
        before = len(kernel.written)
        guard.keep_ahead({KEY: Counters(packets, 0), other: Counters(packets, 0)})
        written += [(packets, number) for _, number in kernel.written[before:]]
        assert kernel.sas[KEY].replay.oseq - packets >= HAND_BACK_MARGIN, "what an engine sends until the next look"
    assert [number - packets for packets, number in written] == [KEPT_AHEAD] * len(written)
    assert len(written) == 4, "in steps of a margin"
    assert {key for key, _ in kernel.written} == {KEY}
    maps.release(KEY)
    guard.keep_ahead({KEY: Counters(9 * HAND_BACK_MARGIN, 0)})
    assert len(kernel.written) == 4, "never after the kernel took it over"


@pytest.mark.parametrize(("oseq", "told"), [(999, 1), (1000, 0), (KEPT_AHEAD, 0)])
def test_an_outage_that_was_longer_than_the_margin_is_told(oseq: int, told: int) -> None:
    maps, kernel = Maps(), Kernel(with_oseq(sa(0x22), oseq))
    maps.claim(KEY)
    troubles: list[str] = []
    guard = GuardDriver(maps, kernel, sent=lambda _key: None, refuse=lambda *_: None, tell=troubles.append)
    for _ in range(3):
        guard.keep_ahead({KEY: Counters(1000, 0)})
    assert len(troubles) == told
    assert all(str(KEY) in trouble for trouble in troubles)
    assert kernel.sas[KEY].replay.oseq == max(1000 + KEPT_AHEAD if oseq <= 1000 else 0, oseq)


def test_one_number_that_cannot_be_written_does_not_hold_up_the_others() -> None:
    keys = [SaKey(REMOTE, spi) for spi in (0x22, 0x33, 0x44)]
    for victim in keys:
        maps, kernel = Maps(), Kernel(sa(0x22), sa(0x33), sa(0x44))
        for key in keys:
            maps.claim(key)
        kernel.refuses.add(victim)
        guard, _ = driver(maps, kernel)
        guard.keep_ahead({key: Counters(1, 0) for key in keys})
        assert {key for key, _ in kernel.written} == set(keys) - {victim}
        kernel.refuses.clear()
        guard.keep_ahead({key: Counters(1, 0) for key in keys})
        assert {key for key, _ in kernel.written} == set(keys), "it is written at the next look"


async def test_hand_back_continues_behind_the_engines_numbers() -> None:
    maps, kernel = Maps(), Kernel(sa(0x22))
    maps.claim(KEY)
    guard, refused = driver(maps, kernel, Counters(packets=1000, octets=1))
    raised_while_closed: list[bool] = []
    write = kernel.raise_oseq

    def watch(key: SaKey, oseq: int) -> None:
        raised_while_closed.append(key in maps.claimed())
        write(key, oseq)

    kernel.raise_oseq = watch  # type: ignore[method-assign]
    await guard.delete(GUARD)
    assert kernel.sas[KEY].replay.oseq == 1000 + HAND_BACK_MARGIN
    assert raised_while_closed == [True], "the kernel may send only after its number was raised"
    assert maps.owner == {KEY: "kernel"}
    assert KEY in refused, "a key that the engine used is never given to it again"


async def test_an_unused_key_goes_back_as_it_is() -> None:
    maps, kernel = Maps(), Kernel(sa(0x22))
    maps.claim(KEY)
    guard, refused = driver(maps, kernel, Counters(0, 0))
    await guard.delete(GUARD)
    assert kernel.sas[KEY].replay == Replay(0, 0, 32, False, False)
    assert refused == {}


async def test_unknown_use_counts_as_used() -> None:
    maps, kernel = Maps(), Kernel(sa(0x22))
    maps.claim(KEY)
    await driver(maps, kernel, None)[0].delete(GUARD)
    assert kernel.sas[KEY].replay.oseq == HAND_BACK_MARGIN


async def test_unknown_use_continues_behind_what_an_earlier_life_kept_ahead() -> None:
    """The engine may have come near the number that was kept ahead of it, and a margin beyond."""
    maps, kernel = Maps(), Kernel(with_oseq(sa(0x22), 5000))
    maps.claim(KEY)
    guard, refused = driver(maps, kernel, None)
    await guard.delete(GUARD)
    assert kernel.sas[KEY].replay.oseq == 5000 + HAND_BACK_MARGIN
    assert KEY in refused


async def test_the_guard_of_a_deleted_sa_leaves_nothing() -> None:
    maps = Maps()
    maps.claim(KEY)
    maps.seen[KEY] = Seen(dropped=1)
    await driver(maps, Kernel())[0].delete(GUARD)
    assert (maps.owner, maps.seen) == ({}, {})


def test_the_guard_follows_the_snapshot() -> None:
    """Addresses at once; an SA that is gone only at the second look, and never one that is claimed."""
    maps = Maps()
    claimed, gone, alive = SaKey(REMOTE, 1), SaKey(REMOTE, 2), SaKey(REMOTE, 0x22)
    maps.claim(claimed)
    maps.release(gone)
    maps.seen[alive] = Seen(dropped=1)
    guard, _ = driver(maps, Kernel())
    look = snapshot(sa(0x22))
    guard.follow(look, frozenset())
    assert maps.local == look.local_addresses
    assert maps.guarded() == {claimed, gone, alive}
    guard.follow(look, frozenset())
    assert maps.guarded() == {claimed, alive}


def test_what_the_kernel_keeps_is_released_once_and_never_what_is_claimed() -> None:
    maps = Maps()
    claimed, kept = SaKey(REMOTE, 1), SaKey(REMOTE, 2)
    maps.claim(claimed)
    guard, _ = driver(maps, Kernel())
    guard.follow(snapshot(), frozenset({claimed, kept}))
    assert maps.owner == {claimed: "engine", kept: "kernel"}


def test_rekeys_are_spaced_and_each_sa_is_asked_for_once() -> None:
    pacer = RekeyPacer()
    first, second = SaKey(REMOTE, 1), SaKey(ip_address("10.0.0.3"), 2)
    for key in (first, second, first):
        pacer.request(key)
    assert pacer.due(0.0) == first
    assert pacer.due(0.05) is None
    assert pacer.due(0.1) == second
    pacer.request(first)
    assert pacer.due(10.0) is None


def test_a_peer_that_keeps_failing_is_asked_less_and_less_often() -> None:
    pacer = RekeyPacer()
    now, gaps, last = 0.0, [], None
    for spi in range(1, 6):
        pacer.request(SaKey(REMOTE, spi))
        while pacer.due(now) is None:
            now += 0.1
        if last is not None:
            gaps.append(now - last)
        last = now
    assert gaps == pytest.approx([0.5, 1.0, 2.0, 4.0], abs=0.11)
    pacer.succeed(REMOTE)
    pacer.request(SaKey(REMOTE, 9))
    assert pacer.due(now + 0.2) == SaKey(REMOTE, 9)


def test_the_peer_of_an_inbound_sa_is_where_it_comes_from() -> None:
    """Our own address is no peer: all of them would wait for each other."""
    pacer, others = RekeyPacer(), [ip_address(f"10.0.0.{n}") for n in (3, 4, 5)]
    for spi, other in enumerate(others):
        pacer.request(SaKey(LOCAL, spi), other)
    assert [pacer.due(now) for now in (0.0, 0.1, 0.2)] == [SaKey(LOCAL, spi) for spi in range(3)]


def test_dead_sas_are_forgotten() -> None:
    pacer = RekeyPacer()
    pacer.request(KEY)
    pacer.settle(lambda _key: False)
    assert pacer.waiting == frozenset()


def test_an_sa_that_nobody_rekeys_is_asked_for_again_after_five_minutes() -> None:
    pacer = RekeyPacer()
    pacer.request(KEY)
    assert pacer.due(0.0) == KEY
    assert pacer.due(299.0) is None
    assert pacer.due(300.0) == KEY
    assert pacer.due(301.0) is None
    pacer.settle(lambda _key: False)
    assert pacer.due(900.0) is None


def taken_over(oseq: int) -> tuple[Maps, Kernel]:
    """A claimed SA whose engine was seen gone."""
    maps, kernel = Maps(), Kernel(with_oseq(sa(0x22), oseq))
    maps.owner[KEY], maps.gone = "engine", True
    return maps, kernel


async def test_a_kernel_that_took_over_is_not_written_to() -> None:
    maps, kernel = taken_over(KEPT_AHEAD + 5)
    guard, refused = driver(maps, kernel, Counters(1000, 1000))
    guard.keep_ahead({KEY: Counters(KEPT_AHEAD, 0)})
    await guard.begin()
    assert kernel.written == []
    assert maps.owner == {KEY: "kernel"}
    assert list(refused) == [KEY]
    assert not maps.gone


async def test_a_kernel_that_took_over_without_being_kept_ahead_is_moved_by_a_margin() -> None:
    maps, kernel = taken_over(10)
    guard, _ = driver(maps, kernel, Counters(1000, 1000))
    await guard.begin()
    assert kernel.written == [(KEY, 1000 + HAND_BACK_MARGIN)]


async def test_the_guard_is_closed_again_only_when_all_that_was_claimed_is_released() -> None:
    maps, kernel = taken_over(KEPT_AHEAD)
    open_until: list[bool] = []
    release = maps.release
    maps.release = lambda key: (open_until.append(maps.gone), release(key))[1]  # type: ignore[assignment]
    await driver(maps, kernel)[0].begin()
    assert open_until == [True]
    assert not maps.gone


async def test_nothing_is_claimed_while_the_engine_is_gone() -> None:
    maps, kernel = Maps(), Kernel(sa(0x22))
    maps.gone = True
    with pytest.raises(IpsecGwError, match="engine is gone"):
        await driver(maps, kernel)[0].create(GUARD)
    assert (maps.owner, kernel.written) == ({}, [])


async def test_an_engine_that_begins_beside_a_closed_guard_keeps_what_it_has() -> None:
    maps, kernel = Maps(), Kernel(sa(0x22))
    maps.owner[KEY] = "engine"
    await driver(maps, kernel)[0].begin()
    assert maps.claimed() == {KEY}
