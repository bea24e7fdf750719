"""`show firewall`: rules, missing interfaces, and events that were lost."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, cast

import pytest
from click.testing import CliRunner

from ipsec_gw.cli.main import cli
from ipsec_gw.daemon import Daemon
from ipsec_gw.gateway import Gateway
from ipsec_gw.ike.watcher import CharonWatcher
from ipsec_gw.observe import control

RULE = {"kind": "policy", "name": "out", "packets": 3, "octets": 180}


async def firewall(lost: int) -> dict[str, Any]:
    keeper = SimpleNamespace(
        counters=lambda: [RULE], missing=frozenset({"dmz0"}), steering=SimpleNamespace(lost_events=lambda: lost)
    )
    daemon = Daemon(
        cast(Gateway, SimpleNamespace(keeper=keeper, plumbing=None)), cast(CharonWatcher, None), lambda: False
    )
    answer: dict[str, Any] = await daemon.answer("firewall")
    return answer


@pytest.mark.parametrize(("lost", "told"), [(0, None), (1, "1 events lost"), (12345, "12,345 events lost")])
async def test_lost_events_are_told(lost: int, told: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = await firewall(lost)
    assert answer == {"rules": [RULE], "missing": ["dmz0"], "lostEvents": lost}
    monkeypatch.setattr(control, "ask", lambda _run_dir, _question: answer)
    shown = CliRunner().invoke(cli, ["show", "firewall"])
    assert shown.exit_code == 0, shown.output
    assert "dmz0: this interface does not exist" in shown.output
    assert told in shown.output if told else "lost" not in shown.output
    as_json = CliRunner().invoke(cli, ["show", "firewall", "--json"])
    assert json.loads(as_json.output)["lostEvents"] == lost
