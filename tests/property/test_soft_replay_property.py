"""The replay window against the plainest model: a set of numbers seen."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ipsec_gw.engines.soft.drops import Dropped, DropReason
from ipsec_gw.engines.soft.replay import ReplayWindow

SIZES = st.sampled_from([1, 2, 31, 32, 33, 63, 64, 65, 128, 1024, 4096])
ROLLOVER = 1 << 32

# A machine that is busy elsewhere must not fail a test: neither examples nor their generation are held to a time.
untimed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


class SetModel:
    """Everything ever accepted, and the rule of RFC 4303 §3.4.3 in its own words."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.seen: set[int] = set()
        self.top = 0

    def verdict(self, number: int) -> DropReason | None:
        if number == 0:
            return DropReason.TOO_OLD
        if number + self.size <= self.top:
            return DropReason.TOO_OLD
        return DropReason.REPLAYED if number in self.seen else None

    def accept(self, number: int) -> None:
        self.seen.add(number)
        self.top = max(self.top, number)


def verdict(window: ReplayWindow, low: int) -> DropReason | None:
    """What the window says to a packet, which is authentic if the window lets it pass."""
    try:
        number = window.check(low)
    except Dropped as dropped:
        return dropped.reason
    window.accept(number)
    return None


@st.composite
def walks(draw: st.DrawFn, start: int) -> list[int]:
    """Numbers as a network delivers them: mostly forwards, some late, some twice, now and then a leap."""
    numbers, position = [], start
    for step in draw(st.lists(st.one_of(st.integers(-80, 80), st.integers(-5000, 70000)), max_size=120)):
        position = max(0, position + step)
        numbers.append(position)
    return numbers


@untimed
@given(SIZES, walks(1))
def test_32_bits_agree_with_the_model(size, numbers):
    window, model = ReplayWindow(size, esn=False), SetModel(size)
    for number in numbers:
        wanted = model.verdict(number)
        assert verdict(window, number) == wanted
        if wanted is None:
            model.accept(number)
        assert window.top == model.top


@untimed
@given(SIZES, st.integers(0, 3), st.data())
def test_extended_numbers_agree_with_the_model_across_the_rollover(size, high, data):
    """Each packet is authentic under its full number: accepted means inferred right."""
    start = high * ROLLOVER + ROLLOVER - 200
    window, model = ReplayWindow(size, esn=True), SetModel(size)
    window.accept(start)
    model.accept(start)
    steps = data.draw(st.lists(st.integers(-300, 400), max_size=100))
    position = start
    for step in steps:
        position = max(1, position + step)
        wanted = model.verdict(position)
        low = position % ROLLOVER
        if wanted is None:
            assert window.check(low) == position
            window.accept(position)
            model.accept(position)
        else:
            # Left of the window means "of the next subspace" (appendix A2.2 case A): authentication fails there.
            old = position + ROLLOVER if wanted is DropReason.TOO_OLD else DropReason.REPLAYED
            assert inferred_or_reason(window, low) == old


def inferred_or_reason(window: ReplayWindow, low: int) -> int | DropReason:
    try:
        return window.check(low)
    except Dropped as dropped:
        return dropped.reason


@untimed
@given(SIZES, st.integers(0, 1 << 40), st.booleans(), st.one_of(st.integers(-2, 2), st.integers(0, ROLLOVER - 1)))
def test_the_inference_is_that_of_appendix_a(size, top, at_bottom, distance):
    """RFC 4303 A2.2, transcribed: Th, Tl the halves of the top, W the window, Bl its lower bound."""
    low = (top - at_bottom * (size - 1) + distance) % ROLLOVER
    window = ReplayWindow(size, esn=True)
    window.accept(top)
    th, tl = divmod(top, ROLLOVER)
    bl = (tl - size + 1) % ROLLOVER
    case_a = th if low >= bl else th + 1  # the window lies within one subspace
    case_b = th - 1 if low >= bl else th  # it spans two
    high = case_a if tl >= size - 1 else case_b
    number = high * ROLLOVER + low
    outcome = inferred_or_reason(window, low)
    if number <= 0:
        assert outcome is DropReason.TOO_OLD
    elif number == top:
        assert outcome is DropReason.REPLAYED
    else:
        assert outcome == number


@untimed
@given(st.booleans(), walks(1))
def test_no_window_lets_everything_pass(esn, numbers):
    window = ReplayWindow(0, esn=esn)
    for number in numbers:
        assert verdict(window, number) == (None if number else DropReason.TOO_OLD)


@untimed
@given(st.integers(0, 3), st.lists(st.integers(-(1 << 20), 1 << 20), max_size=50))
def test_no_window_still_infers_extended_numbers_across_the_rollover(high, steps):
    position = high * ROLLOVER + ROLLOVER - 1000
    window = ReplayWindow(0, esn=True)
    window.accept(position)
    for step in steps:
        position = max(1, position + step)
        assert window.check(position % ROLLOVER) == position
        window.accept(position)


@untimed
@given(SIZES, st.integers(1, ROLLOVER - 1))
def test_a_checked_packet_that_is_not_accepted_changes_nothing(size, low):
    window = ReplayWindow(size, esn=False)
    window.accept(100)
    before = inferred_or_reason(window, 101)
    inferred_or_reason(window, low)
    assert (window.top, inferred_or_reason(window, 101)) == (100, before)


def test_a_leap_costs_no_memory():
    window = ReplayWindow(64, esn=True)
    window.accept(1)
    window.accept((1 << 64) - 1)  # shifting by this would be MemoryError
    assert window.top == (1 << 64) - 1


@pytest.mark.parametrize("esn", [False, True])
def test_number_zero_is_never_received(esn):
    with pytest.raises(Dropped, match="too_old"):
        ReplayWindow(64, esn=esn).check(0)
