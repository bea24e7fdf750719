"""What `ipsec-gw vpp tune` is worth here: `python -m bench.tune [--json] [--rounds N]` (root, VPP).

ESP on the whole path, to encrypt and to decrypt, three ways: VPP's own order of crypto engines, the rule by the CPU's
flags that holds without tune, and tune's choice. There is a VPP for each, started by the code that starts the gateway's
with the handlers of its plan, and asked whether they hold. The same packets go through all three in turn; who waits
sleeps. Figures are throughput against VPP's own order in the same turn, medians over the rounds; they belong to this
machine alone. Where two ways give an algorithm to the same engine, their ratio shows how far to trust the others.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bench.machine import BenchError
from ipsec_gw.errors import IpsecGwError
from vpp_conf.api import VppApi
from vpp_conf.crypto import parse_simple_handlers
from vpp_conf.locate import VppInstallation, locate_vpp
from vpp_conf.paths import VppPaths
from vpp_conf.reality import check_startup
from vpp_conf.startup.syntax import handler_names
from vpp_conf.tuning.ciphers import Cipher
from vpp_conf.tuning.measure import Bench, Effort
from vpp_conf.tuning.run import own_vpp, tune
from vpp_conf.tuning.values import SYNCHRONOUS, Choice, Tuning, Work, engines_of

ROUNDS = 7
PATIENCE_SECONDS = 10.0
"""For a VPP that has just been started to run its commands."""

OWN, RULE, TUNED = "own order", "rule", "tuned"
WAYS = (OWN, RULE, TUNED)


Case = tuple[Cipher, int, Work]
"""A cipher, bytes, and a direction."""


@dataclass(frozen=True, slots=True)
class Row:
    """A case done in one of the ways. ``ratios``: throughput against VPP's own order, one for each round."""

    case: Case
    way: str
    engine: str
    clocks: tuple[float, ...]
    ratios: tuple[float, ...]

    def as_json(self) -> dict[str, object]:
        """All there is."""
        return {
            "algorithm": self.case[0].name,
            "bytes": self.case[1],
            "work": self.case[2].value,
            "way": self.way,
            "engine": self.engine,
            "clocks": self.clocks,
            "ratio": statistics.median(self.ratios),
            "ratios": self.ratios,
        }


@dataclass(frozen=True, slots=True)
class Stand:
    """A VPP that is ready: its tunnels, and who does what in it."""

    bench: Bench
    engines: Mapping[Cipher, str]


def ways(tuning: Tuning) -> dict[str, Tuning | None]:
    """What the plan is given for each. VPP's own order is a choice as well: its first engine for everything."""
    usual = tuple(Choice(one.algorithm, engines_of(tuning.measurements, one.algorithm)[0]) for one in tuning.choices)
    return {OWN: replace(tuning, choices=usual), RULE: None, TUNED: tuning}


async def prepare(stack: AsyncExitStack, paths: VppPaths, installation: VppInstallation, effort: Effort) -> Stand:
    """Tunnels in a VPP that was just started. Raises BenchError if its handlers are not those of its plan."""
    for check in await check_startup(paths, installation, PATIENCE_SECONDS):
        if not check.holds and check.name.startswith("crypto"):
            raise BenchError(f"{check.name} is {check.actual}, planned was {check.planned}")
    api = VppApi(paths.api_socket, installation.api_dir)
    await api.connect()
    stack.push_async_callback(api.close)
    bench = Bench(api, installation.release, effort)
    await bench.build()
    return Stand(bench, await engines(api, installation, effort))


async def engines(api: VppApi, installation: VppInstallation, effort: Effort) -> Mapping[Cipher, str]:
    """Who encrypts each cipher. Raises BenchError if nobody does, or not all of its handlers are the same engine's."""
    handlers = parse_simple_handlers(await api.cli("show crypto handlers"))
    found = {}
    for cipher in effort.ciphers:
        who = {
            handlers[name].encrypts for name in handler_names(installation.release, (cipher.name,)) if name in handlers
        }
        engine = who.pop() if len(who) == 1 else None
        if engine is None:
            raise BenchError(f"{cipher.name} is done by more than one engine, or by none")
        found[cipher] = engine
    return found


async def compare(
    places: Mapping[str, VppPaths], installation: VppInstallation, effort: Effort, advance: Callable[[], None]
) -> tuple[Row, ...]:
    """Every case in all ways right after each other, in every round."""
    runs = [(cipher, size) for cipher in effort.ciphers for size in effort.sizes]
    cases: list[Case] = [(*one, work) for one in runs for work in SYNCHRONOUS]
    clocks: dict[tuple[Case, str], list[float]] = {(case, way): [] for case in cases for way in WAYS}
    async with AsyncExitStack() as stack:
        stands = {way: await prepare(stack, places[way], installation, effort) for way in WAYS}
        for number in range(effort.rounds):
            for one in runs:
                for way in WAYS if number % 2 == 0 else reversed(WAYS):
                    for work, figure in (await stands[way].bench.run(*one)).items():
                        clocks[(*one, work), way].append(figure)
                advance()
        for way in WAYS:
            for cipher in effort.ciphers:
                await stands[way].bench.check(cipher, stands[way].engines[cipher])
    return tuple(
        Row(
            case,
            way,
            stands[way].engines[case[0]],
            tuple(clocks[case, way]),
            tuple(own / mine for own, mine in zip(clocks[case, OWN], clocks[case, way], strict=True)),
        )
        for case in cases
        for way in WAYS
    )


def run(effort: Effort) -> tuple[Row, ...]:
    """Tune, then compare. Raises BenchError and IpsecGwError."""
    installation = locate_vpp()
    with (
        tempfile.TemporaryDirectory(prefix="ipsec-gw-bench-") as folder,
        Progress(console=Console(stderr=True), transient=True) as progress,
        ExitStack() as stack,
    ):
        task = progress.add_task("tune", total=None)
        found = tune(Path(folder), effort, lambda done, total, _: progress.update(task, completed=done, total=total))
        places = {
            way: stack.enter_context(own_vpp(Path(folder) / way.replace(" ", "-"), plan))
            for way, plan in ways(found.tuning).items()
        }
        second = progress.add_task("compare", total=effort.rounds * len(effort.ciphers) * len(effort.sizes))
        return asyncio.run(compare(places, installation, effort, lambda: progress.advance(second)))


def print_rows(rows: Sequence[Row], rounds: int) -> None:
    """A table: a line for each case, three columns for each way but VPP's own."""
    table = Table(title=f"ESP, throughput against VPP's own order of engines, {rounds} rounds")
    table.add_column("algorithm")
    table.add_column("bytes", justify="right")
    table.add_column("work")
    table.add_column(OWN)
    for way in (RULE, TUNED):
        table.add_column(way)
        table.add_column("ratio", justify="right")
        table.add_column("range", justify="right")
    cells = {(row.case, row.way): row for row in rows}
    for case in dict.fromkeys(row.case for row in rows):
        line = [case[0].name, str(case[1]), case[2].value, cells[case, OWN].engine]
        for way in (RULE, TUNED):
            row = cells[case, way]
            line += [
                row.engine,
                f"{statistics.median(row.ratios):.2f}",
                f"{min(row.ratios):.2f}-{max(row.ratios):.2f}",
            ]
        table.add_row(*line)
    terminal = Console()
    (terminal if terminal.is_terminal else Console(width=110)).print(table)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"at least 7 for figures to quote ({ROUNDS})")
    parser.add_argument("--packets", type=int, default=Effort().packets, help="for each figure")
    given = parser.parse_args()
    if given.rounds < 1 or given.packets < 1:
        parser.error("--rounds and --packets: one at least")
    try:
        rows = run(Effort(rounds=given.rounds, packets=given.packets))
    except (BenchError, IpsecGwError) as error:
        sys.exit(f"bench: {error}")
    if given.json:
        sys.stdout.write(json.dumps([row.as_json() for row in rows]) + "\n")
        return
    print_rows(rows, given.rounds)


if __name__ == "__main__":
    main()
