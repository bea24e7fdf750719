"""`ipsec-gw vpp`: start, stop and look at the VPP of this gateway."""

from __future__ import annotations

import json

import click
from rich.console import Console

from ipsec_gw.cli.main import Options
from vpp_conf import lifecycle
from vpp_conf.lifecycle import VppStatus


@click.group()
def vpp() -> None:
    """The VPP of this gateway."""


@vpp.command()
@click.pass_obj
def up(options: Options) -> None:
    """Start VPP in this network namespace from a rendered startup.conf."""
    console = Console(stderr=True)
    with console.status("starting VPP"):
        state = lifecycle.up(options.run_dir)
    _print(state)
    for note in state.notes:
        console.print(f"note: {note}", highlight=False)


@vpp.command()
@click.pass_obj
def down(options: Options) -> None:
    """Stop the VPP that `vpp up` started. The kernel carries the tunnels on."""
    _print(lifecycle.down(options.run_dir))


@vpp.command()
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")
@click.pass_obj
def status(options: Options, as_json: bool) -> None:
    """Is it running, and does it answer?"""
    state = lifecycle.status(options.run_dir)
    if as_json:
        click.echo(json.dumps({"running": state.running, "answering": state.answering, "version": state.version}))
        return
    _print(state)


def _print(state: VppStatus) -> None:
    if not state.running:
        click.echo("VPP is not running")
        return
    answer = "answers" if state.answering else "does not answer yet"
    click.echo(f"VPP {state.version or ''} runs as process {state.pid} and {answer}")
