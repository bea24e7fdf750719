"""`ipsec-gw plan` and `ipsec-gw reload`: the configuration file against the running firewall."""

from __future__ import annotations

import json
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
    """Say what a reload would change. Exit code 0: nothing, 2: something, 1: it cannot be said."""
    answer = _ask(ctx.obj, "plan")
    _print(answer, as_json, none="in sync")
    ctx.exit(_CHANGES if answer["changes"] else 0)


@click.command()
@_json
@click.pass_obj
def reload(options: Options, as_json: bool) -> None:
    """Make the firewall of the configuration file hold: all of it at once, or, if anything is wrong, nothing."""
    _print(_ask(options, "reload"), as_json, none="nothing to change")


def _ask(options: Options, question: str) -> Any:
    return control.ask(options.run_dir, question)


def _print(answer: Any, as_json: bool, *, none: str) -> None:
    if as_json:
        click.echo(json.dumps(answer, indent=2))
        return
    for change in answer["changes"] or [none]:
        click.echo(change)
