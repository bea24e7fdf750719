"""SAs without ESN are rekeyed before their sequence numbers run out, at the rate that they have."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from ipsec_gw.engines.port import Counters
from ipsec_gw.model.ids import IpAddress, SaKey
from ipsec_gw.model.snapshot import XfrmSa
from ipsec_gw.ownership.exhaustion import NOTICE_SECONDS, USABLE, Exhaustion
from tests.support.world import LOCAL, REMOTE, sa

IN, OUT = sa(0x11, inbound=True), sa(0x22)
ENDLESS = replace(OUT, replay=replace(OUT.replay, esn=True, extended=True))


@dataclass
class Clock:
    now: float = 1000.0
    asked: list[SaKey] = field(default_factory=list)
    sources: list[IpAddress | None] = field(default_factory=list)
    told: list[str] = field(default_factory=list)

    def exhaustion(self) -> Exhaustion:
        def ask(key: SaKey, source: IpAddress | None) -> None:
            self.asked.append(key)
            self.sources.append(source)

        return Exhaustion(ask, self.told.append, lambda: self.now)


def looks(clock: Clock, guard: Exhaustion, rate: float, *, first: int, seconds: float, of: XfrmSa = OUT) -> None:
    """So many seconds at a rate, from a number of packets on."""
    for step in range(int(seconds) + 1):
        guard.look({of.key: Counters(first + int(rate * step), 0)}, [IN, of], {LOCAL})
        clock.now += 1.0


@pytest.mark.parametrize("rate", [1_000, 1_200_000, 10_000_000])
def test_it_is_asked_for_while_there_is_time_and_not_long_before(rate: int) -> None:
    clock = Clock()
    guard = clock.exhaustion()
    notice = int(rate * NOTICE_SECONDS)
    looks(clock, guard, rate, first=USABLE - notice - 20 * rate, seconds=15)
    assert clock.asked == []
    looks(clock, guard, rate, first=USABLE - notice - rate, seconds=5)
    assert clock.asked == [OUT.key], "once"
    assert str(OUT.key) in clock.told[0]


def test_what_comes_in_counts_as_well() -> None:
    """The peer may not count."""
    clock = Clock()
    looks(clock, clock.exhaustion(), 1000, first=USABLE - 1000, seconds=2, of=IN)
    assert clock.asked == [SaKey(LOCAL, 0x11)]
    assert clock.sources == [REMOTE], "the peer is asked, and not we"


def test_with_esn_there_is_no_end() -> None:
    clock = Clock()
    looks(clock, clock.exhaustion(), 1_000_000, first=USABLE, seconds=3, of=ENDLESS)
    assert clock.asked == []


def test_a_quiet_sa_may_be_old() -> None:
    clock = Clock()
    looks(clock, clock.exhaustion(), 0, first=USABLE - 1, seconds=600)
    assert clock.asked == []


def test_one_that_has_come_to_the_end_is_asked_for_whatever_its_rate() -> None:
    clock = Clock()
    looks(clock, clock.exhaustion(), 0, first=USABLE, seconds=2)
    assert clock.asked == [OUT.key]


def test_a_burst_alone_is_no_rate_before_the_second_look() -> None:
    clock = Clock()
    guard = clock.exhaustion()
    guard.look({OUT.key: Counters(USABLE // 2, 0)}, [OUT], {LOCAL})
    assert clock.asked == []


def test_what_is_gone_is_forgotten_and_another_with_its_key_is_new() -> None:
    clock = Clock()
    guard = clock.exhaustion()
    looks(clock, guard, 1000, first=USABLE - 1000, seconds=2)
    guard.look({}, [], {LOCAL})
    clock.now += 1
    looks(clock, guard, 1000, first=0, seconds=3)
    assert clock.asked == [SaKey(REMOTE, 0x22)]
    looks(clock, guard, 1000, first=USABLE - 1000, seconds=2)
    assert len(clock.asked) == 2
