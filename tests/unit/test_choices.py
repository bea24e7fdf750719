"""The operator's hand: accelerate, mode and canary, in decisions, in the loop, in `plan` and `reload`."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import ip_address
from types import SimpleNamespace
from typing import Any, cast

import pytest
from click.testing import CliRunner

from ipsec_gw.cli.main import cli
from ipsec_gw.config.model import Config, ConnectionConfig, GatewayConfig, Mode
from ipsec_gw.daemon import Daemon
from ipsec_gw.desired import Owner, Settings, desired
from ipsec_gw.errors import IpsecGwError
from ipsec_gw.gateway import Gateway
from ipsec_gw.ike.watcher import CharonWatcher
from ipsec_gw.model.choices import Choices, share_of
from ipsec_gw.model.ids import SaKey
from ipsec_gw.observe import control
from tests.support.world import LOCAL, OFFER, REMOTE, SETTINGS, established
from tests.unit.test_loop import TUNNEL, World, join_anew

SITE = frozenset({"site"})


def settings(choices: Choices) -> Settings:
    return replace(SETTINGS, choices=choices)


HELD = {
    "connection 'site' is set to accelerate = false": Choices(kept=SITE),
    "connection 'site' is set to mode = \"observe\"": Choices(observed=SITE),
    'the gateway is set to mode = "observe"': Choices(observe=True),
    "its peer is not among the canary = 0 percent": Choices(canary=0),
}


@pytest.mark.parametrize("reason", HELD)
def test_what_the_operator_holds_back_stays_in_the_kernel_and_says_so(reason: str) -> None:
    result = desired(OFFER, settings(HELD[reason]), established())
    assert result.objects == {}
    assert {v.owner for v in result.verdicts} == {Owner.KERNEL}
    assert all(reason in v.reason for v in result.verdicts), result.verdicts


@pytest.mark.parametrize("choices", [Choices(observe=True), Choices(canary=0)])
def test_a_connection_goes_before_the_gateway(choices: Choices) -> None:
    assert TUNNEL in desired(OFFER, settings(replace(choices, accelerated=SITE)), established()).objects
    assert (
        TUNNEL
        not in desired(OFFER, settings(replace(choices, accelerated=frozenset({"other"}))), established()).objects
    )


def test_observing_says_what_else_would_keep_it_in_the_kernel() -> None:
    result = desired(replace(OFFER, algorithms=frozenset()), settings(Choices(observe=True)), established())
    assert all("does not have" in v.reason and "observe" not in v.reason for v in result.verdicts)


@pytest.mark.parametrize("choices", [Choices(observed=SITE), Choices(observe=True, accelerated=SITE)])
def test_where_names_decide_a_nameless_sa_waits_and_is_not_used_up(choices: Choices) -> None:
    result = desired(OFFER, settings(choices), established(names={}))
    assert result.objects == {}
    assert {v.owner for v in result.verdicts} == {Owner.PENDING}
    assert "charon has not told" in result.verdicts[0].reason
    assert TUNNEL in desired(OFFER, settings(Choices()), established(names={})).objects, "nobody waits without need"


def test_a_larger_canary_holds_a_smaller_one_and_the_share_is_what_it_says() -> None:
    peers = [ip_address((10 << 24) + n) for n in range(20_000)]
    inside: set[object] = set()
    for percent in (0, 1, 10, 50, 99, 100):
        chosen = {peer for peer in peers if not Choices(canary=percent).observes(frozenset(), peer)}
        assert inside <= chosen
        assert abs(len(chosen) / len(peers) * 100 - percent) < 1.5
        inside = chosen
    assert share_of(ip_address("192.0.2.1")) == 86, "a peer's place must survive upgrades"


def decide(world: World, choices: Choices) -> None:
    world.reconciler.settings = settings(choices)


async def opened(choices: Choices | None = None) -> World:
    world = join_anew()
    await world.link.open()
    if choices is not None:
        decide(world, choices)
    return world


async def accelerated() -> World:
    world = await opened()
    await world.show(established())
    assert TUNNEL in world.engine.objects
    return world


async def test_choosing_to_observe_takes_a_tunnel_back() -> None:
    world = await accelerated()
    assert world.reconciler.outlook(Choices()).due == ()
    outlook = world.reconciler.outlook(Choices(observe=True))
    assert {str(op.action) for op in outlook.due} == {"delete", "drain"}
    decide(world, Choices(observe=True))
    await world.show(established())
    assert world.empty()
    assert world.reconciler.in_sync


async def test_what_is_observed_is_planned_in_full_and_not_due() -> None:
    world = await opened(Choices(canary=0))
    await world.show(established())
    assert world.empty()
    outlook = world.reconciler.outlook(Choices(canary=0))
    assert outlook.due == ()
    assert {op.obj.key for op in outlook.observed if op.obj} >= {TUNNEL, SaKey(LOCAL, 0x11), SaKey(REMOTE, 0x22)}
    assert world.empty(), "an outlook does nothing"
    assert set(world.reconciler.outlook(Choices()).due) == set(outlook.observed)


async def test_a_nameless_sa_is_looked_at_again_soon() -> None:
    world = await opened(Choices(observed=frozenset({"other"})))
    await world.show(established(names={}))
    assert world.empty()
    assert world.reconciler.rest(0.5, 5.0) == 0.5
    await world.show(established())
    assert TUNNEL in world.engine.objects


def test_changes_are_told_in_words() -> None:
    before = Choices(kept=SITE, canary=10)
    after = Choices(observed=SITE, observe=True)
    assert before.changes(after) == (
        "connection 'site': may be accelerated",
        "connection 'site': is observed",
        'gateway: mode = "observe"',
        "gateway: canary = 100 (was 10)",
    )
    assert after.changes(after) == ()


def daemon_on(world: World, file: Config) -> Daemon:
    """A daemon whose configuration file reads as given."""

    def decide_by(wanted: Settings) -> None:
        world.reconciler.settings = wanted

    gateway = SimpleNamespace(reconciler=world.reconciler, keeper=None, plumbing=None, decide_by=decide_by)
    return Daemon(cast(Gateway, gateway), cast(CharonWatcher, None), lambda: False, lambda: file)


async def test_plan_says_and_reload_does() -> None:
    world = await accelerated()
    file = Config(connections={"site": ConnectionConfig(accelerate=False)})
    daemon = daemon_on(world, file)
    planned = await daemon.answer("plan")
    assert planned["changes"] == ["connection 'site': stays in the kernel"]
    assert any(line.startswith("delete tunnel") for line in planned["operations"])
    assert world.reconciler.settings.choices == Choices()
    await daemon.answer("reload")
    assert world.reconciler.settings.choices == file.choices
    await world.show(established())
    assert world.empty()
    assert await daemon.answer("plan") == {"changes": [], "operations": [], "observed": [], "vpp": ""}


async def test_a_firewall_that_comes_or_goes_takes_a_restart_and_nothing_is_half_applied() -> None:
    world = await accelerated()
    file = Config(gateway=GatewayConfig(mode=Mode.OBSERVE)).model_copy(update={"firewall": object()})
    with pytest.raises(IpsecGwError, match="brings a firewall"):
        await daemon_on(world, file).answer("reload")
    assert world.reconciler.settings.choices == Choices()


ANSWERS: dict[str, tuple[dict[str, list[str] | str], int, list[str]]] = {
    "in sync": ({"changes": [], "operations": [], "observed": [], "vpp": ""}, 0, ["in sync"]),
    "due": ({"changes": ["a"], "operations": ["b"], "observed": [], "vpp": ""}, 2, ["a", "b"]),
    "observed": (
        {"changes": [], "operations": [], "observed": ["c"], "vpp": ""},
        0,
        ["in sync", 'only observed, and done with mode = "accelerate" and canary = 100:', "  c"],
    ),
    "VPP": (
        {"changes": [], "operations": [], "observed": [], "vpp": "runs while it is needed"},
        0,
        ["in sync", "VPP runs while it is needed"],
    ),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_plans_exit_code_tells_whether_something_is_due(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answer, code, lines = ANSWERS[case]
    monkeypatch.setattr(control, "ask", lambda _run_dir, _question: answer)
    shown = CliRunner().invoke(cli, ["plan"])
    assert (shown.exit_code, shown.output.splitlines()) == (code, lines)
    as_json = CliRunner().invoke(cli, ["plan", "--json"])
    assert (as_json.exit_code, json.loads(as_json.output)) == (code, answer)


def test_a_reload_follows_the_choices_and_leaves_the_rest_of_the_gateway() -> None:
    running = Config(gateway=GatewayConfig(wan=("eth0",)))
    file: dict[str, Any] = {"mode": Mode.OBSERVE, "canary": 7, "wan": ("eth1",)}
    followed = running.following(Config(gateway=GatewayConfig(**file), connections={"a": ConnectionConfig()}))
    assert followed.gateway == GatewayConfig(wan=("eth0",), mode=Mode.OBSERVE, canary=7)
    assert followed.connections == {"a": ConnectionConfig()}
    assert followed.firewall is None
