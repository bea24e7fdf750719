"""No number of a key is used twice and none goes backwards, whenever the engine dies and however late anybody looks.

The real guard driver against a kernel and an engine that count. Between two readings of its counters an engine sends
less than a margin: 67 million packets, what one SA takes a second for at the line rate of 100 Gb/s with packets of 187
bytes, and no thread of VPP comes near. Readings may come late, twice, or be acted upon when the engine is dead already.
What the guard held back waits, and leaves when the kernel gets the SA, or later.
"""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ipsec_gw.engines.port import Counters
from ipsec_gw.model.ids import SaKey
from ipsec_gw.model.objects import Guard, GuardKey
from ipsec_gw.ownership.guard import HAND_BACK_MARGIN, GuardDriver
from tests.support.world import REMOTE, sa
from tests.unit.test_ownership import Kernel, Maps

KEY = SaKey(REMOTE, 0x22)
GUARD = Guard(GuardKey(KEY))
MOST = HAND_BACK_MARGIN - 1

COUNT = st.one_of(st.integers(0, 5), st.integers(0, MOST), st.just(MOST))
STEP = st.one_of(
    st.tuples(st.just("engine sends"), COUNT),
    st.tuples(st.just("read"), st.just(0)),
    st.tuples(st.just("write"), st.just(0)),
    st.tuples(st.just("held back"), st.integers(1, 1000)),
)
AFTER = st.lists(
    st.one_of(
        st.tuples(st.just("kernel sends"), COUNT),
        st.tuples(st.just("write"), st.just(0)),
        st.tuples(st.just("hand back"), st.just(0)),
        st.tuples(st.just("next engine"), st.just(0)),
        st.tuples(st.just("settle"), st.just(0)),
    ),
    max_size=8,
)


@dataclass
class Key:
    """One key, all who may number with it, and what reached the wire in this order; ``late`` is what waited until the
    kernel sent again.
    """

    maps: Maps = field(default_factory=Maps)
    kernel: Kernel = field(default_factory=lambda: Kernel(sa(0x22)))
    sent: int = 0
    read: int = 0
    known: bool = True
    wire: list[tuple[int, int]] = field(default_factory=list)
    late: list[tuple[int, int]] = field(default_factory=list)
    waiting: list[tuple[int, int]] = field(default_factory=list)
    floor: int = 0
    troubles: list[str] = field(default_factory=list)
    refused: dict[SaKey, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.driver = GuardDriver(
            self.maps, self.kernel, sent=self._last, refuse=self.refused.__setitem__, tell=self.troubles.append
        )
        asyncio.run(self.driver.create(GUARD))
        self.driver.before_release = self._leave

    def _leave(self, _key: SaKey, above: int) -> None:
        """As the room does it: what waits goes first."""
        self.floor = max(self.floor, above)
        self._send_waiting(self.late if self.maps.gone else self.wire)

    def _send_waiting(self, where: list[tuple[int, int]]) -> None:
        where += [(max(first, self.floor + 1), last) for first, last in self.waiting if last > self.floor]
        self.waiting.clear()

    def settle(self) -> None:
        """What still waits leaves, if the kernel has the SA by now."""
        if self.maps.owner[KEY] == "kernel":
            self._send_waiting(self.late)

    def _last(self, _key: SaKey) -> Counters | None:
        return Counters(self.sent if self.known else self.read, 0)

    @property
    def number(self) -> int:
        return self.kernel.sas[KEY].replay.oseq

    def engine_sends(self, count: int, *, bounded: bool = True) -> None:
        count = min(count, MOST - (self.sent - self.read)) if bounded else count
        self._emit(self.sent + 1, count)
        self.sent += count

    def kernel_numbers(self, count: int) -> None:
        """The kernel gives numbers out; they reach the wire unless the guard is closed."""
        first, state = self.number + 1, self.kernel.sas[KEY]
        self.kernel.sas[KEY] = replace(state, replay=replace(state.replay, oseq=self.number + count))
        if self.maps.owner[KEY] == "kernel" or self.maps.gone:
            self._emit(first, count)
        elif count:
            self.waiting.append((first, first + count - 1))

    def write(self) -> None:
        """Act upon the last reading, whenever that was."""
        self.driver.keep_ahead({KEY: Counters(self.read, 0)})

    def _emit(self, first: int, count: int) -> None:
        if count:
            self.wire.append((first, first + count - 1))

    def goes_forward(self) -> bool:
        """What did not wait for longer than the guard was closed, and no number at all comes twice."""
        every = sorted(self.wire + self.late)
        forward = all(before[1] < after[0] for before, after in itertools.pairwise(self.wire))
        return forward and all(before[1] < after[0] for before, after in itertools.pairwise(every))


def live(key: Key, steps: list[tuple[str, int]]) -> None:
    for what, count in steps:
        match what:
            case "engine sends":
                key.engine_sends(count)
            case "read":
                # A reading is acted upon before the engine has sent another margin: at once, at the latest.
                key.read = key.sent
                key.write()
            case "write":
                key.write()
            case _:
                key.kernel_numbers(count)


def end(key: Key, steps: list[tuple[str, int]]) -> None:
    for what, count in steps:
        match what:
            case "kernel sends":
                key.kernel_numbers(count)
            case "write":
                key.write()
            case "hand back" if key.maps.owner[KEY] == "engine":
                asyncio.run(key.driver.delete(GUARD))
            case "next engine":
                asyncio.run(key.driver.begin())
            case "settle":
                key.settle()
            case _:
                pass
        assert key.goes_forward(), key.wire


OVERTAKEN = [("held back", 1), *[("engine sends", MOST), ("read", 0)] * 2, ("engine sends", MOST)]
"""What waits since before the engine came past its number."""


@settings(deadline=None, max_examples=300)
@example(before=OVERTAKEN, after=[], known=False, latched=False)
@example(before=OVERTAKEN, after=[], known=True, latched=False)
@example(before=OVERTAKEN, after=[("settle", 0)], known=False, latched=True)
@given(before=st.lists(STEP, max_size=12), after=AFTER, known=st.booleans(), latched=st.booleans())
def test_numbers_only_go_forward(
    before: list[tuple[str, int]], after: list[tuple[str, int]], known: bool, latched: bool
) -> None:
    """``known``: the last counters could be read from the dead engine. ``latched``: the kernel took over by itself."""
    key = Key()
    live(key, before)
    assert key.goes_forward(), key.wire
    assert key.troubles == []
    assert key.number > key.sent, "the kernel is warm at every moment"
    key.known = known
    key.maps.gone = latched
    end(key, after)
    key.kernel_numbers(3)
    assert key.goes_forward(), key.wire
    asyncio.run(key.driver.begin())
    if key.maps.owner[KEY] == "engine":
        asyncio.run(key.driver.delete(GUARD))
    key.kernel_numbers(MOST)
    key.settle()
    assert key.goes_forward(), key.wire
    assert key.maps.owner[KEY] == "kernel"


@settings(deadline=None)
@given(extra=st.integers(1, 1 << 30))
def test_an_outage_beyond_the_margin_is_told_by_the_next_look(extra: int) -> None:
    key = Key()
    key.engine_sends(key.number + extra, bounded=False)
    key.read = key.sent
    key.write()
    assert len(key.troubles) == 1
    assert str(KEY) in key.troubles[0]
    assert key.number > key.sent


@pytest.mark.parametrize("known", [True, False])
def test_the_stated_outage_is_covered(known: bool) -> None:
    """A minute without a daemon at a million packets per second, then death: the kernel goes on, and nobody helps."""
    key = Key()
    key.engine_sends(60 * 1_000_000, bounded=False)
    key.known, key.maps.gone = known, True
    key.kernel_numbers(1000)
    asyncio.run(key.driver.begin())
    key.kernel_numbers(1000)
    assert key.goes_forward()
