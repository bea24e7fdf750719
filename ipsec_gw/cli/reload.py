"""`ipsec-gw plan` and `ipsec-gw reload`: the configuration file against what holds, and work to do."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click

from ipsec_gw.cli.main import Options
from ipsec_gw.observe import control

_CHANGES = 2
_json = click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")


@click.command()
@_json
@click.pass_context
def plan(ctx: click.Context, as_json: bool) -> None:
    """Say what a reload would change, and what would be done for the tunnels. Exit code 0: nothing, 2: something,
    1: it cannot be said. What is only observed is told and is no change.
    """
    answer = _ask(ctx.obj, "plan")
    due = [*answer["changes"], *answer["operations"]]
    if as_json:
        click.echo(json.dumps(answer, indent=2))
    else:
        _print(due or ["in sync"])
        if answer["vpp"]:
            click.echo(f"VPP {answer['vpp']}")
        if answer["observed"]:
            click.echo('only observed, and done with mode = "accelerate" and canary = 100:')
            _print([f"  {operation}" for operation in answer["observed"]])
    ctx.exit(_CHANGES if due else 0)


@click.command()
@_json
@click.pass_obj
def reload(options: Options, as_json: bool) -> None:
    """Make the configuration file's firewall, and what it says of tunnels (mode, canary, [connections]), hold: all of
    it at once, or, if anything is wrong, nothing. The rest of [gateway] takes a restart.
    """
    answer = _ask(options, "reload")
    if as_json:
        click.echo(json.dumps(answer, indent=2))
    else:
        _print(answer["changes"] or ["nothing to change"])


def _ask(options: Options, question: str) -> Any:
    return control.ask(options.run_dir, question)


def _print(lines: Sequence[str]) -> None:
    for line in lines:
        click.echo(line)
