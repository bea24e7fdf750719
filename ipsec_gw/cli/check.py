"""`ipsec-gw check`: is the configuration good, and what does it say?"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from ipsec_gw.cli.main import Options
from ipsec_gw.config.load import DEFAULT_PATH
from ipsec_gw.config.problems import InvalidConfig
from ipsec_gw.config.summary import describe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console


_WRAPPING = {"interfaces", "to this machine", "options", "matches", "what"}
_WHOLE_WIDTH = 31
"""The other columns are not broken if no cell is longer, however narrow the terminal is."""


@click.command()
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")
@click.pass_context
def check(ctx: click.Context, as_json: bool) -> None:
    """Read the configuration file, say all that is wrong with it, or what the firewall will do."""
    from ipsec_gw.firewall.compiled import load_compiled  # noqa: PLC0415 - usage errors do not wait for the compiler

    options: Options = ctx.obj
    try:
        config = load_compiled(options.config)
    except InvalidConfig as invalid:
        _print_errors(invalid, as_json)
        ctx.exit(invalid.exit_code)
    given = options.config or (DEFAULT_PATH if DEFAULT_PATH.exists() else None)
    file = str(given) if given else None
    firewall = describe(config.firewall) if config.firewall else None
    if as_json:
        _print_json({"file": file, "valid": True, "errors": [], "firewall": firewall})
        return
    click.echo(f"{file} is valid" if file else f"there is no {DEFAULT_PATH}: the defaults hold")
    if firewall is None:
        click.echo("no zones: nothing is filtered or translated")
        return
    _print_firewall(firewall)


def _print_errors(invalid: InvalidConfig, as_json: bool) -> None:
    if not as_json:
        click.echo(str(invalid), err=True)
        return
    errors = [
        {"file": found.file, "line": found.line, "path": found.path, "message": found.message, "wayOut": found.way_out}
        for found in invalid.problems
    ]
    _print_json({"file": invalid.problems[0].file, "valid": False, "errors": errors, "firewall": None})


def _print_firewall(firewall: dict[str, Any]) -> None:
    from rich.console import Console  # noqa: PLC0415 - scripts that ask for JSON do not wait for rich

    console = Console()
    zones = [(zone["name"], zone["interfaces"], zone["hostInbound"], zone["options"]) for zone in firewall["zones"]]
    _table(console, "Zones", ("zone", "interfaces", "to this machine", "options"), zones)
    policies = [
        (rule["name"], f"{rule['from']} > {rule['to']}", rule["action"], _matches(rule))
        for rule in firewall["policies"]
    ]
    _table(console, "Policies", ("policy", "zones", "action", "matches"), policies)
    console.print(f"flows without a policy: {firewall['default']}")
    nat = [
        (
            rule["name"],
            rule["kind"],
            f"{rule['from']} > {rule['to']}",
            f"{', '.join(rule['match'])}\nbecomes {rule['becomes']}",
        )
        for rule in firewall["nat"]
    ]
    _table(console, "NAT", ("rule", "kind", "zones", "matches"), nat)
    screens = [
        (profile["name"], profile["action"], f"{profile['window']} s", profile["screens"])
        for profile in firewall["screens"]
    ]
    _table(console, "Screens", ("screens", "action", "window", "what"), screens)
    pools = [(pool["name"], pool["addresses"], pool["ports"], pool["options"]) for pool in firewall["pools"]]
    _table(console, "Pools", ("pool", "addresses", "ports", "options"), pools)


def _matches(rule: dict[str, Any]) -> str:
    """What a policy asks for, a line for each kind; any of a kind is not worth one."""
    lines = [
        f"{kind} {', '.join(rule[kind])}" for kind in ("source", "destination", "application") if rule[kind] != ["any"]
    ]
    lines += [f"schedule {rule['schedule']}"] if rule["schedule"] else []
    return "\n".join(lines) or "any"


def _table(console: Console, title: str, columns: tuple[str, ...], rows: Sequence[tuple[Any, ...]]) -> None:
    """A table that wraps between values; nothing without rows."""
    from rich.markup import escape  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    if not rows:
        return
    table = Table(
        title=title, title_justify="left", box=None, header_style="bold", padding=(0, 2, 0, 0), pad_edge=False
    )
    for column, cells in zip(columns, zip(*rows, strict=True), strict=True):
        whole = column not in _WRAPPING and max(map(len, cells)) <= _WHOLE_WIDTH
        table.add_column(column, overflow="fold", no_wrap=whole)
    for row in rows:
        table.add_row(*(escape(", ".join(cell) if isinstance(cell, list) else cell) for cell in row))
    console.print(table)


def _print_json(answer: dict[str, Any]) -> None:
    click.echo(json.dumps(answer, indent=2))
