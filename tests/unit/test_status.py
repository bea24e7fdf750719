"""`show status`: verdicts by their names, in the daemon's answer and in the tables."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, cast

import pytest
from click.testing import CliRunner

from ipsec_gw.cli.main import cli
from ipsec_gw.daemon import Daemon
from ipsec_gw.desired import Desired, Owner, SaVerdict
from ipsec_gw.gateway import Gateway
from ipsec_gw.ike.watcher import CharonWatcher
from ipsec_gw.model.ids import Direction, EngineName
from ipsec_gw.model.snapshot import Snapshot
from ipsec_gw.observe import control
from ipsec_gw.ownership.guardian import Tick
from tests.unit.test_hosts import TO, beside, pair
from tests.unit.test_overlays import VXLAN1
from xdp_steer.reasons import Reason
from xdp_steer.tables import Count

COUNTED = {Reason.UNKNOWN_SPI: 7, Reason.FORWARDED: 1234567, Reason.POLICY_DENY: 99, Reason.EGRESS_NEW: 100}


NOTHING = Snapshot()


class Steering:
    """A data path that has seen ``COUNTED``."""

    def verdicts(self) -> dict[Reason, Count]:
        return {reason: Count(COUNTED.get(reason, 0), 0) for reason in Reason}

    def steer_counters(self) -> dict[Any, Any]:
        return {}

    guard_counters = steer_counters

    def docked(self) -> frozenset[str]:
        return frozenset()


KEPT = {VXLAN1.interface: "it is down"}


async def status(
    *, gone: bool | None = None, snapshot: Snapshot = NOTHING, verdicts: tuple[SaVerdict, ...] = ()
) -> dict[str, Any]:
    """With ``gone`` there is an engine, which is gone or not."""
    plumbing = SimpleNamespace(steering=SimpleNamespace(engine_gone=lambda: gone), wan=())
    gateway = SimpleNamespace(
        steering=Steering(),
        plumbing=None if gone is None else plumbing,
        guardian=None if gone is None else SimpleNamespace(last=Tick(1000, 21, 0.0123)),
        link=SimpleNamespace(
            capabilities=None, offer=SimpleNamespace(name=EngineName.KERNEL, absent=""), trouble="", up=True
        ),
        reconciler=SimpleNamespace(
            in_sync=True, snapshot=snapshot, decision=Desired(verdicts=verdicts, kept_devices=KEPT), in_place={}
        ),
        senses=SimpleNamespace(
            monitor=SimpleNamespace(overruns=1),
            network=SimpleNamespace(overruns=2),
            kernel=SimpleNamespace(malformed=4),
        ),
    )
    charon = SimpleNamespace(version="5.9.8", malformed=5)
    daemon = Daemon(cast(Gateway, gateway), cast(CharonWatcher, charon), lambda: False)
    answer: dict[str, Any] = await daemon.answer("status")
    return answer


async def test_verdicts_have_names_that_scripts_can_read() -> None:
    verdicts = json.loads(json.dumps(await status()))["verdicts"]
    assert verdicts == {reason.label: COUNTED.get(reason, 0) for reason in Reason}
    assert verdicts["unknown-spi"] == 7


async def test_lost_and_unreadable_messages_are_counted() -> None:
    answer = await status()
    assert (answer["netlinkOverruns"], answer["malformedMessages"]) == (3, 9)


async def test_people_see_the_most_frequent_verdicts_first(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = await status()
    monkeypatch.setattr(control, "ask", lambda _run_dir, _question: answer)
    shown = CliRunner().invoke(cli, ["show", "status"])
    assert shown.exit_code == 0, shown.output
    lines = [line.strip("│ ").split() for line in shown.output.splitlines() if line.startswith("│")]
    assert [(line[0], line[-1]) for line in lines] == [
        ("forwarded", "1,234,567"),
        ("egress-new", "100"),
        ("policy-deny", "99"),
        ("unknown-spi", "7"),
    ]
    as_json = CliRunner().invoke(cli, ["show", "status", "--json"])
    assert json.loads(as_json.output) == json.loads(json.dumps(answer))


@pytest.mark.parametrize("gone", [True, False])
async def test_the_guardian_tells_its_cost_and_a_takeover(gone: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = json.loads(json.dumps(await status(gone=gone)))
    assert answer["guardian"] == {"carried": 1000, "written": 21, "seconds": 0.0123, "takenOver": gone}
    monkeypatch.setattr(control, "ask", lambda _run_dir, _question: answer)
    shown = CliRunner().invoke(cli, ["show", "status"])
    assert shown.exit_code == 0, shown.output
    assert "21 of 1,000 SAs written in 12 ms" in shown.output
    assert ("the kernel has taken over" in shown.output) is gone


async def test_people_see_who_does_what_for_a_vxlan_device(monkeypatch: pytest.MonkeyPatch) -> None:
    verdict = SaVerdict(pair(TO)[1], Direction.OUT, Owner.ENGINE, "")
    answer = await status(snapshot=beside(vxlans=(VXLAN1,)), verdicts=(verdict,))
    assert answer["overlays"] == ("VXLAN device vxlan1: the kernel does VXLAN (it is down), kernel does ESP",)
    monkeypatch.setattr(control, "ask", lambda _run_dir, _question: answer)
    assert "VXLAN device vxlan1: the kernel does VXLAN" in CliRunner().invoke(cli, ["show", "status"]).output


async def test_without_an_engine_nothing_is_kept_warm() -> None:
    assert (await status())["guardian"] is None


async def test_without_traffic_there_is_no_table_of_verdicts(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = {**await status(), "verdicts": {reason.label: 0 for reason in Reason}}
    monkeypatch.setattr(control, "ask", lambda _run_dir, _question: answer)
    assert "verdicts" not in CliRunner().invoke(cli, ["show", "status"]).output
