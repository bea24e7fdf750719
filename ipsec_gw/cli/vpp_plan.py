"""A plan of VPP's start as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ipsec_gw import terminal

MEGABYTE = 1 << 20
COLOURS = {"error": "red", "warning": "yellow", "note": "dim"}


def print_plan(machine: dict[str, Any], plan: dict[str, Any]) -> None:
    """The machine in one line, then values with reasons, findings with their way out, settings with their command."""
    console = terminal.console()
    console.print(escape(_machine_line(machine)), highlight=False)
    values = [(one["name"], one["value"], one["reason"]) for one in plan["values"]]
    _table(console, "startup.conf", ("name", "value", "reason"), values)
    ordinary, huge = plan["ordinaryBytes"] // MEGABYTE, plan["hugepageBytes"] // MEGABYTE
    console.print(f"memory, at most: {ordinary} MB, and {huge} MB of hugepages", highlight=False)
    if plan["settings"]:
        console.print("settings that `ipsec-gw vpp prepare` makes:", highlight=False)
    for one in plan["settings"]:
        console.print(f"    {escape(one['command'])}", highlight=False, soft_wrap=True)
        console.print(f"        {escape(one['reason'])}; now {one['now']}", highlight=False, soft_wrap=True)
    _print_findings(console, plan["findings"])


def print_refusal(findings: Sequence[dict[str, str]]) -> None:
    """Why there is no plan; on stderr."""
    console = Console(stderr=True)
    _print_findings(console, findings)
    console.print("no VPP can be started on this machine as it is", highlight=False)


def print_checks(checks: Sequence[dict[str, Any]]) -> None:
    """A running VPP beside its plan; ways out only for what does not hold."""
    console = terminal.console()
    rows = [(one["name"], one["planned"], one["actual"]) for one in checks]
    _table(console, "as planned, and as it is", ("name", "planned", "actual"), rows)
    for one in checks:
        if not one["holds"]:
            text = f"{one['name']} is {one['actual']}, planned was {one['planned']}"
            console.print(f"[yellow]warning[/]: {escape(text)}", highlight=False, soft_wrap=True)
            console.print(f"    way out: {escape(one['wayOut'])}", highlight=False, soft_wrap=True)


def _machine_line(machine: dict[str, Any]) -> str:
    parts = [
        machine["cpu"],
        f"{machine['cores']} cores (CPUs {machine['cpus']})",
        f"NUMA nodes {', '.join(map(str, machine['numaNodes']))}",
        f"{machine['memoryBytes'] // MEGABYTE} MB",
        f"Linux {machine['kernel']}",
        f"VPP {machine['vpp']['release']}",
    ]
    return "; ".join([*parts, machine["container"]] if machine["container"] else parts)


def _print_findings(console: Console, findings: Sequence[dict[str, str]]) -> None:
    for one in findings:
        colour = COLOURS[one["severity"]]
        console.print(f"[{colour}]{one['severity']}[/]: {escape(one['text'])}", highlight=False, soft_wrap=True)
        if one["wayOut"]:
            console.print(f"    way out: {escape(one['wayOut'])}", highlight=False, soft_wrap=True)


def _table(console: Console, title: str, columns: Sequence[str], rows: Sequence[tuple[str, ...]]) -> None:
    """A table; nothing without rows."""
    if not rows:
        return
    table = Table(
        title=title, title_justify="left", box=None, header_style="bold", padding=(0, 2, 0, 0), pad_edge=False
    )
    for number, column in enumerate(columns):
        table.add_column(column, overflow="fold", no_wrap=number == 0 and max(len(row[0]) for row in rows) <= 40)
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table)
