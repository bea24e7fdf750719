"""`show history` explains every failure: whichever call of a whole life of tunnels fails, it says what and why."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest
import structlog
from click.testing import CliRunner

from ipsec_gw.cli.main import cli
from ipsec_gw.model.objects import Selector
from ipsec_gw.observe import control
from ipsec_gw.observe.views import record_view
from ipsec_gw.reconcile.plan import Action, Op
from ipsec_gw.reconcile.record import History, Outcome, Record, Step
from tests.property.convergence_world import HERE, IF_IDS, PEERS, THERE, Child, World

SEED = 5
KINDS = (
    *("engine gone?", "engine: "),
    *("dump policies", "dump SAs", "set local", "claimed", "guarded", "guard counters", "peers", "ports", "get rules"),
    *("get routes", "GETSA", "NEWAE", "EXPIRE", "claim ", "release", "forget", "steer ", "unsteer", "rule add"),
    *("rule del", "route replace", "route del", "engine open", "engine retrieve", "engine create", "engine update"),
    *("engine delete", "engine counters", "admitted", "admit ", "shut", "lead ", "led", "unlead"),
)
"""Every kind of call that the control plane makes, but for the silent ones."""

SILENT = ("keep ipsec-gw-hosts",)
"""What an earlier life may have left is taken away, and at the next look if not at this one."""


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    before = structlog.get_config()
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory(), processors=[lambda *_: ""])
    yield
    structlog.configure(**before)


def live(fails_at: int) -> World:
    """Birth, a rekey, a moved peer, a lost engine and the end of tunnels, one of which has an XFRM interface. One call
    fails; with 0 none does.
    """
    world = World(SEED)
    world.log.clear()
    world.unrest = world.edge.loses_answers = 0.0
    world.edge.fails_in = fails_at
    for _ in range(3):
        world.establish()
    first, second, routed = world.children
    first.peer, second.peer, routed.peer = PEERS[:3]
    first.selectors, second.selectors = (Selector(HERE[4][1], THERE[4][1]),), (Selector(HERE[4][3], THERE[4][2]),)
    routed.selectors = (Selector(HERE[4][3], HERE[4][3]),)
    first.if_id, second.if_id, routed.if_id = 0, 0, IF_IDS[0]
    first.gre = second.gre = routed.gre = False
    for child in (first, second, routed):
        finish(world, child)
    settle(world)
    world.rekey(first)
    while first.steps:
        world.charon_works(first)
        settle(world)
    world.move(second)
    settle(world)
    world.hear_expiries()
    finish(world, second)
    settle(world)
    world.engine.die()
    settle(world)
    world.engine.start()
    settle(world)
    world.hear_expiries()
    finish(world, first)
    finish(world, second)
    settle(world)
    world.terminate(first)
    settle(world)
    world.terminate(second)
    world.terminate(routed)
    settle(world)
    return world


def finish(world: World, child: Child) -> None:
    while child.steps:
        world.charon_works(child)


def settle(world: World) -> None:
    """Passes and looks, with time for what failed to be tried again."""
    for _ in range(2):
        world.clock += 100.0
        world.look()
        world.run_pass()
        world.pace()
        world.clock += 100.0
        world.pace()


@functools.cache
def calls() -> list[str]:
    """What crosses to the outside in a life without a failure, in order."""
    return [line.strip() for line in live(0).log if line.startswith("    ")]


def told(world: World) -> list[dict[str, Any]]:
    return [record_view(record) for record in world.daemon.history]


def texts(records: list[dict[str, Any]]) -> list[str]:
    """All that is said of failures."""
    return [r["trouble"] for r in records if r["trouble"]] + [
        f"{step['op']}: {step['detail']}" for r in records for step in r["steps"] if step["outcome"] != "done"
    ]


def test_this_life_makes_every_kind_of_call() -> None:
    assert [kind for kind in KINDS if not any(call.startswith(kind) for call in calls())] == []
    assert [call for call in calls() if not call.startswith((*KINDS, *SILENT))] == []


def test_a_life_without_a_failure_tells_of_none() -> None:
    """But of the engine that was lost, and of the key that cannot be used again."""
    assert [text for text in texts(told(live(0))) if "the test" in text or "No buffer space" in text] == []


@pytest.mark.parametrize("kind", KINDS)
def test_every_failing_call_is_explained(kind: str) -> None:
    """By what was to be done and by what the outside said, in every phase of the life."""
    numbers = [n for n, call in enumerate(calls(), 1) if call.startswith(kind)]
    for number in numbers[:: len(numbers) // 6 + 1]:
        world = live(number)
        call = calls()[number - 1]
        assert world.edge.failures == 1
        reason = "No buffer space" if call.startswith(("rule", "route", "get ")) else f"{call} refused by the test"
        explained = [text for text in texts(told(world)) if reason in text]
        assert explained, f"call {number}, {call}"
        assert not explained[0].startswith(reason), "what was to be done is missing"


@pytest.mark.parametrize("kind", ["engine create", "rule add", "dump SAs", "EXPIRE"])
def test_people_and_scripts_read_it(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    number = next(n for n, call in enumerate(calls(), 1) if call.startswith(kind))
    answer = json.loads(json.dumps({"passes": told(live(number))}))
    monkeypatch.setattr(control, "ask", lambda _run_dir, _question: answer)
    as_json = CliRunner().invoke(cli, ["show", "history", "--json"])
    assert json.loads(as_json.output) == answer
    shown = CliRunner().invoke(cli, ["show", "history"], env={"COLUMNS": "300"})
    assert shown.exit_code == 0, shown.output
    for text in texts(answer["passes"]):
        reason = text.split(": ", 1)[-1]
        assert any(reason in line for line in shown.output.splitlines()), reason


def test_the_same_trouble_again_is_one_record_until_a_pass_did_something() -> None:
    clock = count()
    history = History(length=4, clock=lambda: next(clock))
    for what in ("a", "b", "a", "b", "a"):
        history.trouble(what)
    assert [(record.trouble, record.times, record.at) for record in history] == [("b", 2, 3), ("a", 3, 4)]
    history.add(Record(0.0, 0.0, (Step(Op(Action.DRAIN, None), Outcome.DONE),)))
    for _ in range(1000):
        history.trouble("a")
        history.trouble("c")
    shown = [(record.trouble, record.times) for record in history]
    assert shown == [("a", 3), ("", 1), ("a", 1000), ("c", 1000)], "a trouble for good does not push the rest out"
