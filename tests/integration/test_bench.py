"""The benchmarks as programs: what scripts get of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vpp_conf.startup.syntax import AEADS, CBCS, ENGINES

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for test runs of BPF programs"),
]


def bench(*words: str) -> subprocess.CompletedProcess[str]:
    project = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", *words, "--json"],
        cwd=project,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return done


def test_steering_prints_json_alone() -> None:
    """It compiles on its way, which is logged."""
    done = bench("bench.steering")
    figures = json.loads(done.stdout)
    assert figures["ARP"]["ratio"] == 1
    assert all(len(row["ns"]) == len(figures["ARP"]["ns"]) and row["ratio"] > 0 for row in figures.values())
    assert "pipeline loaded" in done.stderr


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")
def test_flood_tells_of_both_ways_to_meet_it() -> None:
    said = json.loads(bench("bench.flood", "--rounds", "1", "--seconds", "0.5").stdout)
    reasons = {"cookies": "screen-syn-cookie", "no cookies": "screen-syn-flood"}
    assert [one["case"] for one in said["cases"]] == list(reasons)
    for one in said["cases"]:
        assert len(one["ratios"]) == len(one["windows"]) == 1
        assert min(one["ratio"], one["machineRatio"], one["firewallRatio"], one["floodPerSecond"]) > 0
        assert next(iter(one["shares"])) == reasons[one["case"]]
        assert [name for name, window in one["windows"][0].items() if window["framesPerSecond"]] == [
            "beside",
            "flooded",
        ]


@pytest.mark.vpp
@pytest.mark.usefixtures("vpp")
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")
def test_nat_compares_three_ways() -> None:
    said = json.loads(bench("bench.nat", "--rounds", "1", "--seconds", "0.5").stdout)
    assert [one["case"] for one in said["cases"]] == ["nftables", "XDP", "VPP"]
    for one in said["cases"]:
        assert one["bytesPerSession"] > 0
        for what in ("packets", "flows"):
            assert len(one[what]["windows"]) == 1
            assert one[what]["perSecond"] > 0
            assert 0 <= one[what]["lost"] < 1
    assert said["cases"][0]["packets"]["ratio"] == said["cases"][0]["flows"]["ratio"] == 1


@pytest.mark.vpp
@pytest.mark.usefixtures("vpp")
def test_tune_compares_three_ways_with_themselves() -> None:
    rows = json.loads(bench("bench.tune", "--rounds", "2", "--packets", "2560").stdout)
    cases = {(name, size, work) for name in (*AEADS, *CBCS) for size in (64, 1400) for work in ("encrypt", "decrypt")}
    assert len(rows) == 3 * len(cases)
    assert {(one["algorithm"], one["bytes"], one["work"]) for one in rows} == cases
    for one in rows:
        assert len(one["clocks"]) == len(one["ratios"]) == 2
        assert min(*one["clocks"], one["ratio"]) > 0
        assert one["way"] != "own order" or one["ratios"] == [1, 1]
        assert one["engine"] in ENGINES
