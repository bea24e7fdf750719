"""The command line of benchmarks that measure in windows of time, round by round."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import Protocol

import structlog
from rich.console import Console

from bench.machine import BenchError
from ipsec_gw.errors import IpsecGwError


class Printable(Protocol):
    """A report, for people and for scripts."""

    def as_json(self) -> object:
        """What JSON holds of it."""

    def print(self, console: Console) -> None:
        """As tables."""


def measure_and_print(
    description: str | None,
    run: Callable[[int, float], Printable],
    *,
    rounds: int,
    seconds: float,
    window: str,
    page: int,
) -> None:
    """Run it with the rounds and seconds that were asked for, these by default, and print the report. ``window`` says
    what the seconds are of, ``page`` is the width in columns of a table that goes into a file.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=rounds, help=f"at least 7 for figures to quote ({rounds})")
    parser.add_argument("--seconds", type=float, default=seconds, help=f"of {window} ({seconds:g})")
    given = parser.parse_args()
    if given.rounds < 1 or given.seconds <= 0:
        parser.error("--rounds: one at least; --seconds: more than none")
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))  # JSON alone on standard output
    try:
        report = run(given.rounds, given.seconds)
    except (BenchError, IpsecGwError, OSError, AssertionError) as error:
        sys.exit(f"bench: {error}")
    if given.json:
        sys.stdout.write(json.dumps(report.as_json()) + "\n")
        return
    terminal = Console()
    report.print(terminal if terminal.is_terminal else Console(width=page))
