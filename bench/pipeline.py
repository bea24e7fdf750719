"""What the firewall's pipeline costs per packet: `python -m bench.pipeline [--json] [--rounds N]` (root).

The kernel's own figure of BPF_PROG_TEST_RUN, all cases in turn in one run, medians over the rounds; they belong to this
machine alone, quote ratios. The unit R is a minimal program in the same round: parse, one hash lookup, redirect. Every
packet is proven to have gone where its case says, by the counters.

A test run does not restore a packet that was rewritten: a small program before the pipeline does (``rearm.bpf.c``). Its
cost, the difference between it and a bare XDP_PASS in the same round, is taken off; the column "with re-arm" has it
still in. Redirected packets are not transmitted: the driver's work is not in any row, R included. Sessions that are
visited in turn have routes stamped fresh, but for the row that says otherwise. "Ring read" is read every 5,000 packets,
not at the same time. The kernel's figures are whole nanoseconds, so R itself is known to 1 or 2 percent.

Sessions begin in a table with a dozen others; among a million others memory is what counts: compare those rows with R
over a million flows. What a row has begun ends before the next row, so that all begin in memory that was used before.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import structlog
from rich.console import Console
from rich.progress import Progress

from bench.cases import (
    BASELINE,
    MANY,
    PASSES,
    REARM,
    STALE_COUNT,
    Case,
    around,
    crowded,
    established,
    new,
    refused,
    screened,
    steered,
)
from bench.machine import BenchError, Machine, machine
from bench.measure import REPEAT, Meter
from bench.rearm import Entry
from bench.report import ProgramSize, Report, Row
from ipsec_gw.errors import IpsecGwError
from xdp_steer import dock, libbpf
from xdp_steer.flow_layout import Stage

ROUNDS = 9
_SPARE = 10_000
_PAGE = 110
"""Columns of a table that goes into a file."""

Figures = dict[str, list[float]]


def measure(bench: Machine, meter: Meter, cases: list[Case], rounds: int, progress: Progress) -> Figures:
    """Nanoseconds of every case, a figure for each round."""
    figures: Figures = {case.name: [] for case in cases}
    task = progress.add_task("measuring", total=rounds * len(cases))
    for _ in range(rounds):
        for case in cases:
            began = time.monotonic_ns()
            progress.update(task, description=case.name)
            figures[case.name].append(meter.nanoseconds(case))
            progress.advance(task)
            if case.opens:
                bench.forget_since(began)
    progress.remove_task(task)
    return figures


def measure_all(bench: Machine, pins: Path, rounds: int, progress: Progress) -> Iterator[Row]:
    """In a table of few sessions first; then among very many, with the baseline of its own."""
    with closing(Meter(bench, pins)) as meter:
        cases = [*around(), *steered(), *established(bench), *new(), *refused(), *screened()]
        yield from rows_of(cases, measure(bench, meter, cases, rounds, progress))
        preparing = progress.add_task(f"{MANY:,} sessions", total=None)
        cases = [*around(), *crowded(bench)]
        progress.remove_task(preparing)
        rows = list(rows_of(cases, measure(bench, meter, cases, rounds, progress)))
        yield from rows[len(list(around())) :]


def rows_of(cases: list[Case], figures: Figures) -> Iterator[Row]:
    """The re-arm program's cost taken off, ratios per round."""
    passes = figures[PASSES]
    overhead = {entry: [a - b for a, b in zip(figures[name], passes, strict=True)] for entry, name in REARM.items()}
    for case in cases:
        raw = figures[case.name]
        ns = raw
        if case.entry is not Entry.DIRECT and case.name not in REARM.values():
            ns = [a - b for a, b in zip(raw, overhead[case.entry], strict=True)]
        ratios = tuple(a / b for a, b in zip(ns, figures[BASELINE], strict=True))
        yield Row(case.name, tuple(raw), tuple(ns), ratios, case.target)


def programs(pins: Path, bench: Machine) -> Iterator[ProgramSize]:
    """Everything that is loaded: the entry, the stages, the programs of TC and the dock."""
    (directory,) = (pins / "programs").iterdir()
    yield _size("pipeline", os.dup(bench.steering.pipeline_fd))
    stages = libbpf.open_pin(directory / "stages")
    for stage in Stage:
        yield _size(f"stage {stage.name.lower()}", _program_of(stages, stage))
    os.close(stages)
    egress = libbpf.open_pin(directory / "egress_stages")
    yield _size("TC guard", libbpf.open_pin(directory / "guard"))
    yield _size("TC new session", _program_of(egress, 0))
    os.close(egress)
    for name in (dock.ENTRY, dock.EXIT):
        yield _size(f"dock {name}", libbpf.open_pin(dock.directory_of(pins, "wan0") / name))


def _program_of(array: int, slot: int) -> int:
    return libbpf.prog_by_id(libbpf.map_lookup(array, ctypes.c_uint32(slot), ctypes.c_uint32()).value)


def _size(name: str, fd: int) -> ProgramSize:
    info = libbpf.prog_info(fd)
    verified = libbpf.verified_instructions(fd)
    os.close(fd)
    return ProgramSize(name, verified, info.xlated_prog_len, info.jited_prog_len)


def run(rounds: int) -> Report:
    """Build, measure, remove. Raises BenchError, IpsecGwError and OSError.

    On one CPU: entries of sessions that ended are free on the CPU that removed them, and new ones take them from there.
    """
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    entries = 2 * (MANY + STALE_COUNT + REPEAT) + _SPARE
    with machine(entries) as (bench, pins):
        with Progress(console=Console(stderr=True), transient=True) as progress:
            rows = tuple(measure_all(bench, pins, rounds, progress))
        sizes = tuple(programs(pins, bench))
    return Report(platform.release(), rounds, REPEAT, rows, sizes)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"at least 7 for figures to quote ({ROUNDS})")
    given = parser.parse_args()
    if given.rounds < 1:
        parser.error("--rounds: one at least")
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))  # JSON alone on standard output
    try:
        report = run(given.rounds)
    except (BenchError, IpsecGwError, OSError) as error:
        sys.exit(f"bench: {error}")
    if given.json:
        sys.stdout.write(json.dumps(report.as_json()) + "\n")
        return
    terminal = Console()
    report.print(terminal if terminal.is_terminal else Console(width=_PAGE))


if __name__ == "__main__":
    main()
