"""What a SYN flood leaves to an established TCP stream: `python -m bench.flood [--json] [--rounds N]` (root).

In network namespaces, with the real daemon: a stream from LAN to WAN on one processor, and on another one a generator
of SYNs as fast as it goes, with the firewall's work for them. Windows with and without the flood in turn in one run;
the ratio is that of the two throughputs in the same round, medians over the rounds.

In a third window the same generator sends to a wire that leads nowhere. "machine" is the ratio of that one to the
stream alone: what a busy processor takes from the other one, whatever the firewall does (two processors of a virtual
machine may be one core's threads). "firewall" is the flood's ratio to it. Figures belong to this machine alone.

Twice: SYNs beyond the threshold are answered with cookies, or dropped. What is missing in the shares was below the
threshold and let through.
"""

from __future__ import annotations

import os
import platform

from rich.console import Console
from rich.progress import Progress, TaskID

from bench.command import measure_and_print
from bench.flood_report import Case, Report, Round
from bench.flood_world import World, world

ROUNDS, SECONDS = 9, 2.0
_PAGE = 110
"""Columns of a table that goes into a file."""

CASES = {"cookies": True, "no cookies": False}


def measure(bench: World, rounds: int, seconds: float, progress: Progress, task: TaskID) -> tuple[Round, ...]:
    """The order turns from round to round, so that what drifts favours nobody."""
    done = []
    for number in range(rounds):
        kinds = [bench.alone, bench.beside, bench.flooded]
        windows = {}
        for kind in kinds if number % 2 == 0 else reversed(kinds):
            windows[kind.__name__] = kind(seconds)
            progress.advance(task)
        done.append(Round(**windows))
    return tuple(done)


def run(rounds: int, seconds: float) -> Report:
    """Build, measure, remove. Raises BenchError, IpsecGwError, OSError, and AssertionError of the network's own."""
    load = os.getloadavg()[0]
    with world() as bench, Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("measuring", total=len(CASES) * rounds * 3)
        cases = []
        for name, cookies in CASES.items():
            bench.cookies(cookies)
            cases.append(Case(name, measure(bench, rounds, seconds, progress, task)))
    return Report(platform.release(), seconds, load, tuple(cases))


def main() -> None:
    """Measure and print."""
    measure_and_print(__doc__, run, rounds=ROUNDS, seconds=SECONDS, window="each window", page=_PAGE)


if __name__ == "__main__":
    main()
