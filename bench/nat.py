"""What NAT by XDP, VPP and the kernel's nftables is good for: `python -m bench.nat [--json] [--rounds N]` (root, VPP).

In network namespaces, over the same wires, from a generator on one processor, as fast as it goes: packets of a thousand
known flows, then packets that each begin a flow. What comes out translated counts. XDP and nftables work on the
generator's processor and take their time from it; VPP, to which XDP leads what it has judged, works on another one and
loses what it is too slow for. The ways take turns in each round, the first one another time; ratios are those to
nftables in the same round, medians over the rounds. Figures belong to this machine alone.

Bytes of a session: XDP's are two entries of its map, VPP's those and its part of the table that VPP sets aside, the
kernel's what its slabs grow by.
"""

from __future__ import annotations

import os
import platform

from rich.console import Console
from rich.progress import Progress

from bench.command import measure_and_print
from bench.nat_report import Case, Report, Round
from bench.nat_world import Way, world

ROUNDS, SECONDS = 7, 2.0
_PAGE = 130
"""Columns of a table that goes into a file."""


def measure(ways: tuple[Way, ...], rounds: int, seconds: float, progress: Progress) -> tuple[Case, ...]:
    """The order turns from round to round, so that what drifts favours nobody."""
    done: dict[str, list[Round]] = {way.name: [] for way in ways}
    task = progress.add_task("measuring", total=rounds * len(ways))
    for number in range(rounds):
        for way in ways if number % 2 == 0 else reversed(ways):
            done[way.name].append(Round(way.packets(seconds), way.flows(seconds)))
            progress.advance(task)
    return tuple(Case(way.name, tuple(done[way.name]), way.session_bytes()) for way in ways)


def run(rounds: int, seconds: float) -> Report:
    """Build, measure, remove. Raises BenchError, IpsecGwError, OSError, and AssertionError of the network's own."""
    load = os.getloadavg()[0]
    with world() as ways, Progress(console=Console(stderr=True), transient=True) as progress:
        return Report(platform.release(), load, measure(ways, rounds, seconds, progress))


def main() -> None:
    """Measure and print."""
    measure_and_print(__doc__, run, rounds=ROUNDS, seconds=SECONDS, window="a window at most", page=_PAGE)


if __name__ == "__main__":
    main()
