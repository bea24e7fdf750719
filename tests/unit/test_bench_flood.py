"""The flood's benchmark: medians, ratios, shares and the table, without a flood."""

from __future__ import annotations

import io
import json
import os

import pytest
from rich.console import Console

from bench import flood_world
from bench.flood_report import TARGET, Case, Report, Round, Window
from bench.flood_world import FOREMOST, cpu_mask


def window(megabytes: int, sent: int = 0, again: int = 0, **verdicts: int) -> Window:
    """Of two seconds."""
    return Window(2.0, megabytes * 1_000_000, again, sent, {name.replace("_", "-"): n for name, n in verdicts.items()})


ROUNDS = (
    Round(window(100), window(90), window(85, 1000, 3, screen_syn_flood=990)),
    Round(window(200), window(100), window(80, 3000, screen_syn_flood=2900, ndp=1, host=0)),
    Round(window(100), window(80), window(88, 2000, screen_syn_flood=1910, ndp=4)),
)
CASE = Case("cookies", ROUNDS)
POOR = Case("no cookies", ROUNDS[1:2])
REPORT = Report("6.1", 2.0, 0.25, (CASE, POOR))


def test_figures_are_per_second() -> None:
    assert (ROUNDS[0].alone.bits, ROUNDS[0].alone.rate) == (400e6, 0)
    assert ROUNDS[1].flooded.rate == 1500


def test_ratios_are_of_the_same_round_and_medians_over_rounds() -> None:
    assert [one.ratio for one in ROUNDS] == [0.85, 0.4, 0.88]
    assert (CASE.ratio, CASE.machine) == (0.85, 0.8)
    assert CASE.firewall == pytest.approx(85 / 90)
    assert CASE.rate == 1000


@pytest.mark.parametrize(("left", "met"), [(80, True), (79, False)])
def test_the_target_is_a_least_value(left: int, met: bool) -> None:
    assert TARGET == 0.8
    assert Case("", (Round(window(100), window(100), window(left)),)).met is met


def test_shares_are_of_all_rounds_together_the_largest_first() -> None:
    assert list(CASE.shares.items()) == [("screen-syn-flood", 5800 / 6000), ("ndp", 5 / 6000)]


def test_json_holds_every_window() -> None:
    said = json.loads(json.dumps(REPORT.as_json()))
    assert (said["target"], said["load"], said["seconds"]) == (TARGET, 0.25, 2.0)
    first, second = said["cases"]
    assert (first["met"], second["met"]) == (True, False)
    assert first["ratios"] == [0.85, 0.4, 0.88]
    assert first["windows"][0]["flooded"] == {"bitsPerSecond": 340e6, "sentAgain": 3, "framesPerSecond": 500}
    assert [sorted(one) for one in first["windows"]] == [["alone", "beside", "flooded"]] * 3


def test_the_tables_say_the_same() -> None:
    console = Console(file=io.StringIO(), width=110)
    REPORT.print(console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    lines = [[cell.strip() for cell in line.strip("│").split("│")] for line in text.splitlines() if "│" in line]
    assert lines == [
        ["cookies", "0.40", "0.34", "0.85", "0.40-0.88", "yes", "0.80", "0.94", "1,000"],
        ["no cookies", "0.80", "0.32", "0.40", "0.40-0.40", "NO", "0.50", "0.80", "1,500"],
        ["cookies", "screen-syn-flood", "96.67%"],
        ["cookies", "ndp", "0.08%"],
        ["no cookies", "screen-syn-flood", "96.67%"],
        ["no cookies", "ndp", "0.03%"],
    ]
    assert "3 rounds of 2 s, Linux 6.1, load before 0.25" in text


@pytest.mark.parametrize(
    ("cpu", "mask"), [(0, "1"), (1, "2"), (31, "80000000"), (32, "1,00000000"), (69, "20,00000000,00000000")]
)
def test_a_processor_as_a_mask(cpu: int, mask: str) -> None:
    assert cpu_mask(cpu) == mask


@pytest.mark.parametrize(
    ("told", "during", "after"), [("/autogroup-7 nice 3\n", "-20", "3"), ("", "", ""), (None, None, None)]
)
def test_a_flood_goes_first_also_where_sessions_are_no_groups(told, during, after, monkeypatch, tmp_path):
    """With a group, with an empty file, and on a kernel without the file."""
    asked, session = [], tmp_path / "autogroup"
    monkeypatch.setattr(os, "setpriority", lambda *given: asked.append(given))
    monkeypatch.setattr(flood_world, "SESSION", session)
    if told is not None:
        session.write_text(told)
    now = lambda: session.read_text() if session.exists() else None  # noqa: E731
    with flood_world._foremost():
        assert (asked, now()) == ([(os.PRIO_PROCESS, 0, FOREMOST)], during)
    assert now() == after
