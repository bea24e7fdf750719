"""`ipsec-gw check`: is the configuration good, what does it say, and what of this machine would it go past?"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from ipsec_gw import terminal
from ipsec_gw.cli.main import Options, run_async
from ipsec_gw.config.load import DEFAULT_PATH
from ipsec_gw.config.model import EngineChoice
from ipsec_gw.config.problems import InvalidConfig
from ipsec_gw.config.summary import describe
from ipsec_gw.unseen import Host, unseen

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console


_WRAPPING = {
    "interfaces",
    "to this machine",
    "options",
    "matches",
    "what",
    "input",
    "output",
    "then",
    "buckets",
    "colours",
}
_WHOLE_WIDTH = 31
"""The other columns are not broken if no cell is longer, however narrow the terminal is."""


@click.command()
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")
@click.option("--file-only", is_flag=True, help="Do not look at this machine's own rules.")
@click.pass_context
def check(ctx: click.Context, as_json: bool, file_only: bool) -> None:
    """Read the configuration file, say all that is wrong with it, or what the firewall will do. Warn of nftables rules,
    traffic control, routing rules and VRFs of this machine that would not see the packets of accelerated tunnels.
    """
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
    host = None if file_only or config.gateway.engine is EngineChoice.KERNEL else _look(config.gateway.wan)
    if as_json:
        machine = _machine_json(host) if host else None
        vpp = {"runs": config.gateway.vpp.value, "idleSeconds": config.gateway.vpp_idle_seconds}
        _print_json({"file": file, "valid": True, "errors": [], "vpp": vpp, "firewall": firewall, "machine": machine})
        return
    click.echo(f"{file} is valid" if file else f"there is no {DEFAULT_PATH}: the defaults hold")
    if config.gateway.starts_vpp:
        idle = f"{config.gateway.vpp_idle_seconds:g} s"
        click.echo(f"VPP runs while it is needed: started for the first SA for it, stopped {idle} after the last one")
    if firewall is None:
        click.echo("no zones: nothing is filtered or translated")
    else:
        _print_firewall(firewall)
    if host is not None:
        _print_machine(host)


def _look(wan: tuple[str, ...]) -> Host:
    """The rules of this machine; reads and changes nothing."""
    from pyroute2 import AsyncIPRoute  # noqa: PLC0415 - not for a file with errors

    from ipsec_gw.mirror.host import read_host  # noqa: PLC0415

    async def look() -> Host:
        async with AsyncIPRoute() as route:
            return await read_host(route, wan)

    host: Host = run_async(look())
    return host


def _machine_json(host: Host) -> dict[str, Any]:
    warnings = [{"what": found.what, "message": found.message, "wayOut": found.way_out} for found in unseen(host)]
    return {"wan": sorted(host.wan), "warnings": warnings, "unread": list(host.unread)}


def _print_machine(host: Host) -> None:
    for found in unseen(host):
        click.echo(f"warning: {found}")
    for what in host.unread:
        click.echo(f"not looked at: {what}")


def _print_errors(invalid: InvalidConfig, as_json: bool) -> None:
    if not as_json:
        click.echo(str(invalid), err=True)
        return
    errors = [
        {"file": found.file, "line": found.line, "path": found.path, "message": found.message, "wayOut": found.way_out}
        for found in invalid.problems
    ]
    _print_json({"file": invalid.problems[0].file, "valid": False, "errors": errors, "firewall": None, "machine": None})


def _print_firewall(firewall: dict[str, Any]) -> None:
    console = terminal.console()
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
    filters = [(one["name"], one["input"], one["output"], "yes" if one["host"] else "") for one in firewall["filters"]]
    _table(console, "Filters", ("filter", "input", "output", "host"), filters)
    terms = [(term["name"], term["match"] or ["any"], term["then"]) for term in firewall["filterTerms"]]
    _table(console, "Terms of filters", ("filter/term", "matches", "then"), terms)
    policers = [(policer["name"], policer["buckets"], policer["colours"]) for policer in firewall["policers"]]
    _table(console, "Policers", ("policer", "buckets", "colours"), policers)
    pools = [
        (pool["name"], pool["engine"], pool["addresses"], pool["ports"], pool["options"]) for pool in firewall["pools"]
    ]
    _table(console, "Pools", ("pool", "engine", "addresses", "ports", "options"), pools)


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
