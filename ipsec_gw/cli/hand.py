"""`ipsec-gw fallback` and `ipsec-gw return`: tunnels to the kernel by the operator's hand, and back."""

from __future__ import annotations

import click

from ipsec_gw.cli.main import Options
from ipsec_gw.observe import control
from ipsec_gw.ownership.hand import FALLBACK, RETURN, question

_sa = click.option("--sa", metavar="SPI", help="Only the tunnel of this SA (hexadecimal, as `show sas` prints it).")
_connection = click.option("--connection", metavar="NAME", help="Only this connection, by its name in swanctl.conf.")


@click.command()
@_sa
@_connection
@click.pass_obj
def fallback(options: Options, sa: str | None, connection: str | None) -> None:
    """Move tunnels to the kernel, with the same keys and going on behind the engine's last number.

    They stay there, also over a restart of the daemon, until `ipsec-gw return`.
    """
    _move(options, FALLBACK, sa, connection)


@click.command(name="return")
@_sa
@_connection
@click.pass_obj
def give_back(options: Options, sa: str | None, connection: str | None) -> None:
    """Let the engine have again what `ipsec-gw fallback` moved: a rekey brings each tunnel a fresh key for it."""
    _move(options, RETURN, sa, connection)


def _move(options: Options, command: str, sa: str | None, connection: str | None) -> None:
    if sa and connection:
        raise click.UsageError("--sa and --connection exclude each other - give one of them, or none for everything")
    answer = control.ask(options.run_dir, question(command, sa, connection))
    click.echo(f"{answer['inKernel']} SAs are in the kernel by `ipsec-gw fallback`")
    if not answer["inSync"]:
        click.echo("not everything is done yet - see `ipsec-gw show status`", err=True)
