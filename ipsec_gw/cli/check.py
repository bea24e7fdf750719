"""`ipsec-gw check`: is the configuration good, and what does it say?"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from ipsec_gw.cli.main import Options
from ipsec_gw.config.load import DEFAULT_PATH, load
from ipsec_gw.config.problems import InvalidConfig
from ipsec_gw.config.summary import describe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console


_NAME_WIDTH = 24
"""Names up to this length are not broken, however narrow the terminal is."""


@click.command()
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")
@click.pass_context
def check(ctx: click.Context, as_json: bool) -> None:
    """Read the configuration file, say all that is wrong with it, or what the firewall will do."""
    options: Options = ctx.obj
    try:
        config = load(options.config)
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
        (
            rule["name"],
            f"{rule['from']} > {rule['to']}",
            rule["source"],
            rule["destination"],
            rule["application"],
            [rule["action"], *([rule["schedule"]] if rule["schedule"] else [])],
        )
        for rule in firewall["policies"]
    ]
    _table(console, "Policies", ("policy", "zones", "source", "destination", "application", "action"), policies)
    console.print(f"flows without a policy: {firewall['default']}")
    nat = [
        (rule["name"], rule["kind"], f"{rule['from']} > {rule['to']}", rule["match"], rule["becomes"])
        for rule in firewall["nat"]
    ]
    _table(console, "NAT", ("rule", "kind", "zones", "matches", "becomes"), nat)
    pools = [(pool["name"], pool["addresses"], pool["ports"], pool["options"]) for pool in firewall["pools"]]
    _table(console, "Pools", ("pool", "addresses", "ports", "options"), pools)


def _table(console: Console, title: str, columns: tuple[str, ...], rows: Sequence[tuple[Any, ...]]) -> None:
    """A table that wraps between values; nothing without rows."""
    from rich.markup import escape  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    if not rows:
        return
    table = Table(
        title=title, title_justify="left", box=None, header_style="bold", padding=(0, 2, 0, 0), pad_edge=False
    )
    for index, column in enumerate(columns):
        longest = max(len(row[0]) for row in rows) if index == 0 else 0
        table.add_column(column, overflow="fold", min_width=min(longest, _NAME_WIDTH))
    for row in rows:
        table.add_row(*(escape(", ".join(cell) if isinstance(cell, list) else cell) for cell in row))
    console.print(table)


def _print_json(answer: dict[str, Any]) -> None:
    click.echo(json.dumps(answer, indent=2))
