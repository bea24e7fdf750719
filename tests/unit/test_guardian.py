"""What the guardian writes, and when (DESIGN.md, invariant 4)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

import pytest

from ipsec_gw.engines.port import Counters, Heard
from ipsec_gw.errors import XfrmError
from ipsec_gw.model.ids import SaKey
from ipsec_gw.model.warmth import NO_LIMIT, Expiry, SaState, Volume, Warming
from ipsec_gw.ownership.guardian import BATCH, Guardian, Tick, expirer
from tests.support.world import LOCAL, REMOTE

IN, OUT = SaKey(LOCAL, 0x11), SaKey(REMOTE, 0x22)
NOW = 5000.0
TOTAL = Counters(100, 10_000)


class Kernel:
    """Kernel SAs by key; what is written to them holds, as NEWAE has it."""

    def __init__(self, *states: SaState) -> None:
        self.sas = {state.key: state for state in states}
        self.dumps = 0
        self.written: list[Warming] = []

    def states(self) -> Sequence[SaState]:
        self.dumps += 1
        return list(self.sas.values())

    def write(self, warmings: Sequence[Warming]) -> int:
        for warm in warmings:
            assert len(warmings) <= BATCH
            self.written.append(warm)
            state = self.sas[warm.state.key]
            seq = state.seq if warm.seq is None else warm.seq
            self.sas[state.key] = replace(state, used=warm.used, use_time=warm.use_time, seq=seq)
        return len(warmings)

    def carries(self, key: SaKey, packets: int, seq: int | None = None) -> None:
        """The kernel itself carries packets of an SA."""
        state = self.sas[key]
        used = Volume(state.used.packets + packets, state.used.octets + 100 * packets)
        self.sas[key] = replace(state, used=used, seq=state.seq if seq is None else seq)


class Ledger:
    """What daemons write down; the first finds nothing."""

    def __init__(self) -> None:
        self.begun = False
        self.own: dict[SaKey, Volume] = {}

    def recall(self, state: SaState) -> Volume | None:
        return self.own.get(state.key)

    def keep(self, counted: Iterable[tuple[SaState, Volume]], alive: Collection[SaState]) -> None:
        fresh = {state.key: volume for state, volume in counted}
        assert fresh.keys() <= {state.key for state in alive}
        self.own |= fresh
        self.begun |= bool(fresh)

    def only(self, alive: Iterable[SaState]) -> None:
        keys = {state.key for state in alive}
        self.own = {key: volume for key, volume in self.own.items() if key in keys}


def state(key: SaKey, **changes: object) -> SaState:
    base = SaState(key, oseq=0, seq=0, window=32, words=0, used=Volume(0, 0), add_time=1000, use_time=0)
    return replace(base, **changes)  # type: ignore[arg-type]


class Watch:
    """A guardian with its kernel."""

    def __init__(
        self, *states: SaState, kernel: Kernel | None = None, ledger: Ledger | None = None, now: float = NOW
    ) -> None:
        self.ledger = ledger or Ledger()
        self.kernel = kernel or Kernel(*(states or (state(IN), state(OUT))))
        self.expired: list[tuple[SaKey, Expiry]] = []
        self.waited: dict[SaKey, Volume] = {}
        self.guardian = Guardian(
            self.kernel,
            lambda key, limit: self.expired.append((key, limit)),
            self.ledger,
            lambda key: self.waited.get(key, Volume(0, 0)),
            now=lambda: now,
        )
        self.alive = True

    def tick(
        self,
        counts: Mapping[SaKey, int],
        numbers: Mapping[SaKey, int] | None = None,
        alone: frozenset[SaKey] | None = None,
    ) -> Tick:
        counters = {key: Counters(packets, 100 * packets) for key, packets in counts.items()}
        return self.guardian.tick(Heard(counters, numbers or {}), is_local, lambda: self.alive, alone)

    def bury(self, counts: Mapping[SaKey, int]) -> None:
        self.guardian.bury({key: Counters(packets, 100 * packets) for key, packets in counts.items()}, is_local)


def is_local(key: SaKey) -> bool:
    return key.destination == LOCAL


def test_what_waited_for_the_engine_counts_once() -> None:
    """The kernel has counted it, and the engine counts it again, perhaps only by and by."""
    watch = Watch(state(OUT, add_time=NOW + 1))
    watch.kernel.carries(OUT, 4)
    watch.waited[OUT] = Volume(3, 300)  # and one was lost
    watch.tick({OUT: 2})
    assert watch.kernel.sas[OUT].used == Volume(4, 400)
    watch.tick({OUT: 10})
    assert watch.kernel.sas[OUT].used == Volume(11, 1100), "10 of the engine's, 3 of them counted, and the lost one"
    watch.kernel.carries(OUT, 1)
    watch.waited[OUT] = Volume(4, 400)
    watch.tick({OUT: 12})
    assert watch.kernel.sas[OUT].used == Volume(13, 1300)


def test_what_waited_is_shown_once_before_it_is_told() -> None:
    """`show sas` is the kernel's volume and what is untold, at any moment."""
    watch = Watch(state(OUT, add_time=NOW + 1))
    watch.kernel.carries(OUT, 3)
    watch.waited[OUT] = Volume(3, 300)

    def shown(carried: int) -> int:
        untold = watch.guardian.untold(OUT, Counters(carried, 100 * carried))
        return watch.kernel.sas[OUT].used.packets + untold.packets

    assert shown(2) == 3, "the engine has not had the third yet"
    assert shown(3) == 3
    watch.tick({OUT: 3}, alone=frozenset({OUT}))
    assert shown(3) == 3, "there was nothing to write"
    assert shown(10) == 10
    watch.tick({OUT: 10})
    assert (shown(10), shown(12)) == (10, 12)


def test_volumes_are_the_sum_of_both() -> None:
    watch = Watch()
    watch.tick({IN: 0, OUT: 0})
    assert watch.guardian.moved == frozenset()
    watch.kernel.carries(OUT, 3)
    watch.tick({IN: 10, OUT: 20})
    assert watch.guardian.moved == {IN, OUT}
    watch.kernel.carries(IN, 2)
    watch.tick({IN: 15, OUT: 20})
    assert watch.kernel.sas[IN].used == Volume(17, 1700)
    assert watch.kernel.sas[OUT].used == Volume(23, 2300)
    assert watch.kernel.sas[IN].use_time == NOW
    assert watch.kernel.sas[IN].add_time == 1000


def test_an_outbound_number_is_never_written_and_an_inbound_window_only_upwards() -> None:
    watch = Watch()
    watch.tick({IN: 10, OUT: 10}, {IN: 10})
    watch.kernel.carries(IN, 1, seq=500)
    watch.tick({IN: 20, OUT: 20}, {IN: 25})
    assert [(warm.state.key, warm.seq) for warm in watch.kernel.written] == [
        (IN, 10),
        (OUT, None),
        (IN, None),
        (OUT, None),
    ]


def test_the_highest_number_is_the_one_that_was_told_and_a_packet_each_since() -> None:
    watch = Watch()
    watch.tick({IN: 10}, {IN: 17})
    watch.tick({IN: 14})
    assert watch.kernel.sas[IN].seq == 21
    watch.tick({IN: 15}, {IN: 40})
    assert watch.kernel.sas[IN].seq == 40


def test_no_replay_protection_no_window() -> None:
    watch = Watch(state(IN, window=0))
    watch.tick({IN: 10}, {IN: 10})
    assert [warm.seq for warm in watch.kernel.written] == [None]


def test_what_did_not_move_costs_nothing() -> None:
    watch = Watch()
    watch.tick({IN: 5, OUT: 5})
    dumps, written = watch.kernel.dumps, len(watch.kernel.written)
    for _ in range(10):
        watch.tick({IN: 5, OUT: 5}, {IN: 5})
    assert (watch.kernel.dumps, len(watch.kernel.written)) == (dumps, written)


def test_what_the_kernel_counted_of_a_newborn_sa_is_its_own() -> None:
    """Held back by the guard, or received before the steering was there; no daemon before this one can have told it."""
    young = {"add_time": NOW + 5}
    watch = Watch(state(IN, used=Volume(44, 4400), **young), state(OUT, used=Volume(17, 1700), **young))
    watch.tick({IN: 30, OUT: 10})
    assert watch.kernel.sas[IN].used == Volume(74, 7400)
    assert watch.kernel.sas[OUT].used == Volume(27, 2700)


def test_of_the_second_in_which_the_daemon_began_only_what_was_there_is_older() -> None:
    """Seen where daemon, takeover and rekey took less than a second: the kernel's own count was taken for told."""
    used = Volume(11, 1100)
    watch = Watch(state(IN, used=used, add_time=int(NOW)))
    watch.kernel.sas[OUT] = state(OUT, used=used, add_time=int(NOW))
    watch.tick({IN: 30, OUT: 30}, alone=frozenset({OUT}))
    assert watch.kernel.sas[IN].used.packets == 30, "an earlier daemon has told what the engine had carried by then"
    assert watch.kernel.sas[OUT].used.packets == 41


def test_what_the_kernel_counts_while_an_sa_changes_hands_is_not_lost() -> None:
    """A volume is read and then written: the kernel may count between, until it gets no packet any more."""

    class Busy(Kernel):
        def write(self, warmings: Sequence[Warming]) -> int:
            for warm in warmings:
                self.carries(warm.state.key, self.between)
            return super().write(warmings)

        between = 0

    young = {"add_time": NOW + 5}
    kernel = Busy(state(IN, **young), state(OUT, **young))
    watch = Watch(kernel=kernel)
    watch.waited[OUT] = Volume(2, 200)
    kernel.between = 2  # two that come before the steering, two that wait and go to the engine
    assert watch.guardian.unsettled({IN, OUT})
    watch.tick({IN: 3, OUT: 3}, alone=frozenset())
    assert kernel.written == []
    kernel.carries(IN, 2)
    kernel.carries(OUT, 2)
    kernel.between = 0
    watch.tick({IN: 5, OUT: 5}, alone=frozenset({IN, OUT}))
    assert (kernel.sas[IN].used, kernel.sas[OUT].used) == (Volume(7, 700), Volume(5, 500))
    assert not watch.guardian.unsettled({IN, OUT})
    watch.tick({IN: 6, OUT: 6}, alone=frozenset())
    assert (kernel.sas[IN].used.packets, kernel.sas[OUT].used.packets) == (8, 6), "once is enough"


def test_an_engine_that_comes_back_takes_over_anew() -> None:
    watch = Watch(state(IN, add_time=NOW + 5))
    watch.tick({IN: 3})
    watch.bury({IN: 4})
    assert watch.guardian.unsettled({IN})
    watch.tick({IN: 2}, alone=frozenset())
    assert watch.kernel.sas[IN].used.packets == 4
    watch.tick({IN: 3}, alone=frozenset({IN}))
    assert watch.kernel.sas[IN].used.packets == 7


def test_a_new_daemon_counts_nothing_twice() -> None:
    watch = Watch(state(IN, used=Volume(40, 4000), seq=40), state(OUT, used=Volume(70, 7000)))
    watch.tick({IN: 50, OUT: 60})
    assert watch.kernel.sas[IN].used == Volume(50, 5000), "ten since the last daemon's last tick"
    assert watch.kernel.sas[OUT].used == Volume(70, 7000), "ten were the kernel's own, no more can be told"
    watch.tick({IN: 51, OUT: 61})
    assert (watch.kernel.sas[IN].used.packets, watch.kernel.sas[OUT].used.packets) == (51, 71)

    assert watch.ledger.own == {IN: Volume(0, 0), OUT: Volume(10, 1000)}


YOUNG, LATER = NOW + 5, NOW + 100


def test_a_later_daemon_knows_what_was_the_kernels_own() -> None:
    """Before the engine got the SA, and whenever a packet did not come to the engine."""
    first = Watch(state(IN, used=Volume(44, 4400), add_time=YOUNG), state(OUT, add_time=YOUNG))
    first.tick({IN: 30, OUT: 7})
    first.kernel.carries(IN, 2)
    first.tick({IN: 35, OUT: 7})
    assert first.ledger.own == {IN: Volume(46, 4600), OUT: Volume(0, 0)}
    second = Watch(kernel=first.kernel, ledger=first.ledger, now=LATER)
    second.tick({IN: 50, OUT: 9})
    assert (second.kernel.sas[IN].used.packets, second.kernel.sas[OUT].used.packets) == (46 + 50, 9)


def test_a_daemon_that_dies_before_it_writes_has_told_nothing() -> None:
    class Refusing(Kernel):
        def write(self, warmings: Sequence[Warming]) -> int:
            raise XfrmError("the daemon is killed here")

    dying = Watch(kernel=Refusing(state(IN, used=Volume(44, 4400), add_time=YOUNG)))
    with pytest.raises(XfrmError):
        dying.tick({IN: 30})
    later = Watch(*dying.kernel.sas.values(), ledger=dying.ledger, now=LATER)
    later.tick({IN: 31})
    assert later.kernel.sas[IN].used.packets == 44 + 31


def test_of_what_no_daemon_has_taken_note_nothing_is_told() -> None:
    """The last daemon was killed before its first look at the SA."""
    ledger = Ledger()
    ledger.begun = True
    watch = Watch(state(IN, used=Volume(22, 2200)), ledger=ledger)
    watch.tick({IN: 30})
    assert watch.kernel.sas[IN].used.packets == 52


def test_what_waited_is_not_the_kernels_own() -> None:
    first = Watch(state(OUT, add_time=YOUNG))
    first.kernel.carries(OUT, 4)
    first.waited[OUT] = Volume(3, 300)  # and one was lost
    first.tick({OUT: 10})
    assert first.ledger.own == {OUT: Volume(1, 100)}
    second = Watch(kernel=first.kernel, ledger=first.ledger, now=LATER)
    second.tick({OUT: 12})
    assert second.kernel.sas[OUT].used.packets == 13


def test_what_an_earlier_daemon_told_is_known_before_the_first_tick() -> None:
    """`show sas` of a daemon that has just begun is what it is after its first tick."""
    first = Watch(state(IN, add_time=YOUNG), state(OUT, add_time=YOUNG))
    first.kernel.carries(OUT, 3)
    first.tick({IN: 20, OUT: 10})
    second = Watch(kernel=first.kernel, ledger=first.ledger, now=LATER)

    def shown(key: SaKey, carried: int) -> int:
        untold = second.guardian.untold(key, Counters(carried, 100 * carried))
        return second.kernel.sas[key].used.packets + untold.packets

    assert (shown(IN, 25), shown(OUT, 12)) == (25, 15)
    assert second.guardian.told(OUT, Counters(12, 1200)) == Volume(10, 1000)
    second.tick({IN: 25, OUT: 12})
    assert (shown(IN, 25), shown(OUT, 12)) == (25, 15)


def test_the_last_counters_are_buried_and_the_next_engine_begins_at_nothing() -> None:
    watch = Watch()
    watch.tick({IN: 10, OUT: 10}, {IN: 12})
    watch.bury({IN: 14, OUT: 19})
    assert watch.kernel.sas[IN].used.packets == 14
    assert watch.kernel.sas[IN].seq == 16
    assert watch.kernel.sas[OUT].used.packets == 19
    assert watch.guardian.told(IN, TOTAL) == Volume(14, 1400), "all of it is in the kernel"
    watch.kernel.carries(IN, 6, seq=22)
    watch.tick({IN: 20})
    assert watch.kernel.sas[IN].used.packets == 40
    assert watch.kernel.sas[IN].seq == 22, "twenty of the new engine are no number"


def test_nothing_is_written_for_an_engine_that_is_not_alive() -> None:
    watch = Watch()
    watch.alive = False
    assert watch.tick({IN: 10, OUT: 10}).written == 0
    assert watch.kernel.written == []


def test_an_engine_that_dies_between_two_batches_gets_no_more_writes() -> None:
    keys = [SaKey(LOCAL, spi) for spi in range(1, 3 * BATCH)]
    watch = Watch(*map(state, keys))
    write = watch.kernel.write

    def last(warmings: Sequence[Warming]) -> int:
        watch.alive = False
        return write(warmings)

    watch.kernel.write = last  # type: ignore[method-assign]
    assert watch.tick(dict.fromkeys(keys, 1)).written == BATCH


@pytest.mark.parametrize(("packets", "limit"), [(9, None), (10, Expiry.SOFT), (20, Expiry.HARD)])
def test_volume_limits_are_those_of_both(packets: int, limit: Expiry | None) -> None:
    watch = Watch(state(OUT, soft=Volume(15, NO_LIMIT.octets), hard=Volume(25, NO_LIMIT.octets)))
    watch.kernel.carries(OUT, 5)
    watch.tick({OUT: 0})
    watch.tick({OUT: packets})
    assert watch.expired == ([(OUT, limit)] if limit else [])


def test_a_soft_limit_is_told_once_and_bytes_count_too() -> None:
    watch = Watch(state(OUT, soft=Volume(NO_LIMIT.packets, 1000)))
    for packets in (10, 11, 12):
        watch.tick({OUT: packets})
    assert watch.expired == [(OUT, Expiry.SOFT)]


def test_what_is_gone_is_forgotten() -> None:
    watch = Watch()
    watch.tick({IN: 10, OUT: 10}, {IN: 10})
    del watch.kernel.sas[IN]
    watch.tick({IN: 11, OUT: 11})
    assert watch.guardian.told(IN, TOTAL) == Volume(0, 0)


def test_ticks_take_a_share_of_the_time_at_most() -> None:
    assert Tick(10, 10, 0.02).rest(1.0) == 1.0
    assert Tick(10_000, 10_000, 0.5).rest(1.0) == pytest.approx(4.5)


def test_a_limit_that_charon_is_not_told_of_is_a_trouble() -> None:
    class Refuses:
        def expire_soft(self, key: SaKey) -> None:
            raise XfrmError("no")

        def expire_hard(self, key: SaKey) -> None:
            hard.append(key)

    told: list[str] = []
    hard: list[SaKey] = []
    expire = expirer(Refuses(), told.append)
    expire(OUT, Expiry.SOFT)
    expire(OUT, Expiry.HARD)
    assert f"the soft volume limit of SA {OUT}" in told[0]
    assert (len(told), hard) == (1, [OUT])
