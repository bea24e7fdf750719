"""The benchmarks as programs: what scripts get of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for test runs of BPF programs"),
]


def test_steering_prints_json_alone() -> None:
    """It compiles on its way, which is logged."""
    project = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "bench.steering", "--json"],
        cwd=project,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["ARP"]["ratio"] == 1
    assert all(len(row["ns"]) == len(figures["ARP"]["ns"]) and row["ratio"] > 0 for row in figures.values())
    assert "pipeline compiled" in done.stderr
