"""`ipsec-gw vpp tune`: measure the crypto engines on this machine and keep the choice."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import click
from rich.bar import Bar
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from ipsec_gw import terminal
from ipsec_gw.cli.main import Options
from vpp_conf import lifecycle
from vpp_conf.tuning.ciphers import CIPHERS
from vpp_conf.tuning.file import DEFAULT_TUNING, check_writable, describe_tuning, write_tuning
from vpp_conf.tuning.measure import Effort
from vpp_conf.tuning.measure import Progress as Report
from vpp_conf.tuning.run import tune as run_tune
from vpp_conf.tuning.values import Work

BAR_COLUMNS = 40
_DEFAULTS = Effort()
_BY_NAME = {cipher.name: cipher for cipher in CIPHERS}


@click.command()
@click.option(
    "--algorithm",
    "algorithms",
    multiple=True,
    type=click.Choice(list(_BY_NAME)),
    help="Can be repeated. Default: all that are accelerated, and AES-CBC with SHA-256.",
)
@click.option("--rounds", type=click.IntRange(1), default=_DEFAULTS.rounds, show_default=True)
@click.option(
    "--packets", type=click.IntRange(1000), default=_DEFAULTS.packets, show_default=True, help="For each figure."
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=DEFAULT_TUNING,
    show_default=True,
    help="Where the choice is kept for `vpp plan` and `vpp up`.",
)
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")
@click.pass_obj
def tune(options: Options, algorithms: tuple[str, ...], rounds: int, packets: int, output: Path, as_json: bool) -> None:
    """Measure the installed crypto engines on this machine and choose.

    Starts a VPP of its own for it and leaves the gateway's alone. Both share a core: run it while little is forwarded.
    """
    wanted = tuple(_BY_NAME[name] for name in dict.fromkeys(algorithms)) or _DEFAULTS.ciphers
    effort = Effort(wanted, rounds=rounds, packets=packets)
    console = Console(stderr=True)
    lifecycle.require_root()
    check_writable(output)
    if lifecycle.status(options.run_dir).running:
        console.print("note: the gateway's VPP runs meanwhile and takes part of the core", highlight=False)
    with _terminated_as_interrupted(), _progress(console) as report:
        found = run_tune(options.run_dir, effort, report)
    write_tuning(found.tuning, output)
    absent = [{"algorithm": algorithm, "engine": engine} for algorithm, engine in found.absent]
    answer = describe_tuning(found.tuning) | {"absent": absent, "file": str(output)}
    if as_json:
        click.echo(json.dumps(answer, indent=2))
        return
    print_tuning(terminal.console(), answer)


def print_tuning(console: Console, answer: dict[str, Any]) -> None:
    """Figures, a chart of them, and what was chosen."""
    chosen = {(one["algorithm"], one["engine"]) for one in answer["choices"]}
    rows = [one | {"chosen": (one["algorithm"], one["engine"]) in chosen} for one in answer["measurements"]]
    rounds = len(rows[0]["clocks"])
    title = f"ESP, whole path, one core of {answer['cpu']}; medians of {rounds}, {answer['packets']:,} packets"
    console.print(escape(title), highlight=False, soft_wrap=True)
    console.print(_figures(rows))
    console.print("\nGb/s of the large packets for one core, to encrypt", highlight=False)
    console.print(_chart(rows))
    console.print()
    for one in answer["choices"]:
        if one["asyncRatio"] is not None:
            by = f"by the asynchronous way {one['asyncRatio']:.2f} of the clocks, both directions"
            console.print(escape(f"{one['reason']}; {by}"), highlight=False, soft_wrap=True)
        else:
            console.print(escape(one["reason"]), highlight=False, soft_wrap=True)
    for one in answer["absent"]:
        console.print(f"{one['algorithm']}: not with {one['engine']}", style="dim", highlight=False)
    named = "" if answer["file"] == str(DEFAULT_TUNING) else f" --tuning {answer['file']}"
    console.print(
        escape(f"kept in {answer['file']}: `ipsec-gw vpp up{named}` uses it"), highlight=False, soft_wrap=True
    )


def _figures(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0), pad_edge=False)
    for heading in ("algorithm", "engine"):
        table.add_column(heading, no_wrap=True)
    table.add_column("work", no_wrap=True)
    for heading in ("bytes", "clocks/packet", "range", "ratio", "Gb/s"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("")
    for one in rows:
        table.add_row(
            one["algorithm"],
            one["engine"],
            one["work"],
            str(one["bytes"]),
            f"{one['median']:.0f}",
            f"{min(one['clocks']):.0f}-{max(one['clocks']):.0f}",
            f"{one['ratio']:.2f}",
            f"{one['gigabits']:.1f}",
            "chosen" if one["chosen"] else "",
            style="bold" if one["chosen"] else "",
        )
    return table


def _chart(rows: list[dict[str, Any]]) -> Table:
    """Bars of the large packets: those of the small ones would hardly be seen beside them."""
    large = max(one["bytes"] for one in rows)
    fastest = max(one["gigabits"] for one in rows)
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    for one in rows:
        if one["bytes"] == large and one["work"] == Work.ENCRYPT:
            bar = Bar(fastest, 0, one["gigabits"], width=BAR_COLUMNS, color="green" if one["chosen"] else "blue")
            name = f"{one['algorithm']} {one['engine']}"
            table.add_row(name, bar, f"{one['gigabits']:.1f}")
    return table


@contextmanager
def _progress(console: Console) -> Iterator[Report]:
    columns = (TextColumn("{task.description:<32}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("starting VPP", total=None)
        yield lambda done, total, text: progress.update(task, completed=done, total=total, description=text)


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM ends the run like Ctrl-C does, and with it the VPP that was started for it."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
