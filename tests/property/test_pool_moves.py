"""A pool between XDP and VPP, whatever is asked of it and whenever somebody looks: few moves, each for a reason."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from ipsec_gw.firewall.pool_moves import Rates, Standing, decide, seconds_to_move
from ipsec_gw.model.firewall import Moves, PoolEngine


@st.composite
def moves(draw: st.DrawFn) -> Moves:
    flows, packets = (draw(st.integers(2, 1000)) for _ in range(2))
    low = draw(st.integers(1, flows - 1)), draw(st.integers(1, packets - 1))
    return Moves(flows, packets, *low, draw(st.integers(1, 60)))


def quarters(first: int, last: int) -> st.SearchStrategy[float]:
    """Seconds that are added up without errors."""
    return st.integers(first, last).map(lambda number: number / 4)


RATES = st.builds(Rates, st.floats(0, 1200), st.floats(0, 1200), st.sampled_from((0.0, 0.0, 0.0, 0.5)))
LOOKS = st.lists(st.tuples(quarters(1, 160), RATES), max_size=200)
"""Seconds since the look before, and what was measured."""
AT_VPP, AT_XDP = Standing(PoolEngine.VPP, 0.0), Standing(PoolEngine.XDP, 0.0)


def is_surge(rates: Rates, limits: Moves) -> bool:
    return rates.flows >= limits.promote_flows or rates.packets >= limits.promote_packets or rates.refused > 0


def is_calm(rates: Rates, limits: Moves) -> bool:
    return rates.flows < limits.demote_flows and rates.packets < limits.demote_packets


@given(moves(), LOOKS, st.sampled_from((AT_VPP, AT_XDP)))
@example(Moves(2, 2, 1, 1, 1), [(0.25, Rates(0.0, 0.0, 0.5)), (1.0, Rates())], AT_XDP)  # a port was missing: not calm
def test_each_move_has_its_reason_and_moves_are_bounded_by_the_dwell_time(
    limits: Moves, looks: list[tuple[float, Rates]], standing: Standing
) -> None:
    now, moved, calm = 0.0, [], []
    for seconds, rates in looks:
        now += seconds
        calm = [*calm, now] if is_calm(rates, limits) else []
        before, promised = standing, seconds_to_move(standing, now, limits)
        standing = decide(before, rates, now, limits)
        assert (standing.engine is not before.engine) == (
            is_surge(rates, limits)
            if before.engine is PoolEngine.XDP
            else any(at > before.since and now - at >= limits.dwell for at in calm)
        )
        if standing.engine is before.engine:
            assert standing.since == before.since
            continue
        assert standing == Standing(standing.engine, now)
        assert promised == 0.0
        moved.append(now)
    for first, third in zip(moved, moved[2:], strict=False):
        assert third - first >= limits.dwell


@given(moves(), quarters(0, 4_000_000), RATES)
def test_a_surge_is_answered_by_the_look_that_sees_it(limits: Moves, now: float, rates: Rates) -> None:
    surge = Rates(max(rates.flows, limits.promote_flows), rates.packets)
    assert decide(AT_XDP, surge, now, limits).engine is PoolEngine.VPP
    assert decide(AT_VPP, surge, now, limits) == AT_VPP


@given(moves(), quarters(0, 4_000_000), quarters(1, 400))
@example(Moves(dwell=5), 0.0, 5.0)
def test_what_is_told_of_the_next_move_comes_true(limits: Moves, now: float, later: float) -> None:
    calm = Rates(0.0, 0.0)
    standing = decide(AT_VPP, calm, now, limits)
    assert seconds_to_move(standing, now, limits) == limits.dwell
    assert seconds_to_move(standing, now + later, limits) == max(0.0, limits.dwell - later)
    moved = decide(standing, calm, now + later, limits).engine is PoolEngine.XDP
    assert moved == (later >= limits.dwell)
