"""Whatever was measured: the choice is one of the best, the file keeps it, and the plan uses it as it is."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import event, given, settings
from hypothesis import strategies as st

from ipsec_gw.errors import ConfigError
from tests.support.machines import NAMES, probe
from vpp_conf.startup.expectation import expect
from vpp_conf.startup.machine import Machine
from vpp_conf.startup.plan import plan_startup
from vpp_conf.startup.syntax import AEADS, CBCS, ENGINES
from vpp_conf.startup.values import PlanRefused, StartupPlan
from vpp_conf.tuning.choice import MARGIN, choose, misfit, reason, score
from vpp_conf.tuning.file import describe_tuning, parse_tuning
from vpp_conf.tuning.values import SYNCHRONOUS, Measurement, Tuning, Work, engines_of, subject_of

CLOCKS = st.floats(1, 1e7)


@st.composite
def measurements(draw: st.DrawFn) -> tuple[Measurement, ...]:
    algorithms = draw(st.lists(st.sampled_from((*AEADS, *CBCS)), min_size=1, unique=True))
    sizes = draw(st.lists(st.integers(28, 9000), min_size=1, max_size=3, unique=True))
    rounds = draw(st.integers(1, 4))
    works = draw(st.sampled_from((SYNCHRONOUS[:1], SYNCHRONOUS, tuple(Work))))
    return tuple(
        Measurement(algorithm, engine, size, tuple(draw(CLOCKS) for _ in range(rounds)), work)
        for algorithm in algorithms
        for engine in draw(st.lists(st.sampled_from(ENGINES), min_size=1, unique=True))
        for size in sizes
        for work in works
    )


@st.composite
def tunings(draw: st.DrawFn) -> Tuning:
    found = draw(measurements())
    when = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=draw(st.integers(0, 10**8)))
    subject = subject_of(draw(st.sampled_from([probe(name) for name in NAMES])))
    return Tuning(subject, when, draw(st.floats(1e8, 1e10)), draw(st.integers(1, 10**7)), found, choose(found))


@given(measurements())
def test_nobody_is_better_than_the_choice_by_more_than_the_margin(found: tuple[Measurement, ...]) -> None:
    for choice in choose(found):
        engines = engines_of(found, choice.algorithm)
        scores = {engine: score(found, choice.algorithm, engine) for engine in engines}
        assert min(scores.values()) >= scores[choice.engine] * (1 - MARGIN)
        # VPP's own choice is displaced only by the very best.
        assert choice.engine == engines[0] or scores[choice.engine] == min(scores.values()) < 1 - MARGIN


@given(measurements(), st.floats(0.1, 10))
def test_only_ratios_matter(found: tuple[Measurement, ...], factor: float) -> None:
    """A machine that is slower in one round, for all, changes no choice; nor does the order of the figures."""
    slower = tuple(replace(one, clocks=(one.clocks[0] * 2.0, *one.clocks[1:])) for one in found)
    assert choose(slower) == choose(found)
    assert set(choose(found[::-1])) == set(choose(found))


@given(tunings())
def test_the_file_keeps_everything(tuning: Tuning) -> None:
    assert parse_tuning(json.dumps(describe_tuning(tuning)), "file") == tuning


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def parsed_or_refused(text: str) -> Tuning | None:
    """A refusal names the file and the way out."""
    try:
        return parse_tuning(text, "file")
    except ConfigError as error:
        refusal = str(error)
    assert refusal.startswith("file:")
    assert "run `ipsec-gw vpp tune` again" in refusal
    return None


@given(tunings(), JSON, st.data())
def test_an_edited_file_is_an_error_or_a_whole_run(tuning: Tuning, value: Any, data: st.DataObject) -> None:
    """Whatever stands in one place: what is taken can be planned with and written again."""
    described = describe_tuning(tuning)
    place: Any = described
    while True:
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        if not isinstance(place[key], dict | list) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = value
    taken = parsed_or_refused(json.dumps(described))
    event("refused" if taken is None else "taken")
    if taken is None:
        return
    planned(probe(NAMES[0]), replace(taken, subject=subject_of(probe(NAMES[0]))))
    assert parse_tuning(json.dumps(describe_tuning(taken)), "file") == taken


def planned(machine: Machine, tuning: Tuning | None) -> StartupPlan | None:
    try:
        return plan_startup(machine, tuning=tuning)
    except PlanRefused:
        return None


@settings(max_examples=60)
@given(tunings(), st.sampled_from(NAMES))
def test_the_plan_has_the_choice_or_says_why_not(tuning: Tuning, name: str) -> None:
    machine = probe(name)
    plan, without = planned(machine, tuning), planned(machine, None)
    assert (plan is None) == (without is None)
    if plan is None or without is None:
        return
    handlers = expect(plan, frozenset()).handlers
    (number,) = [one for one in plan.numbers if one.name == "crypto handlers"]
    left_out = [one for one in plan.findings if one.subject == "crypto handlers"]
    assert bool(left_out) == (misfit(tuning.subject, subject_of(machine)) is not None)
    if left_out:
        assert (plan.handlers, plan.numbers) == (without.handlers, without.numbers)
        return
    usual = expect(without, frozenset()).handlers
    measured = {choice.algorithm: choice.engine for choice in tuning.choices}
    assert handlers == {**usual, **measured}
    assert f"{tuning.measured_at:%Y-%m-%d}" in number.reason
    assert all(reason(tuning, choice) in number.reason for choice in tuning.choices)
