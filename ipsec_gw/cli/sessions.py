"""`ipsec-gw show sessions`: the command and its table."""

from __future__ import annotations

import json
from typing import Any

import click

from ipsec_gw.cli.main import Options
from ipsec_gw.observe import control
from ipsec_gw.observe.sessions import DEFAULT_LIMIT, EndView, Query

_PROTOCOLS = {"icmp": 1, "tcp": 6, "udp": 17, "gre": 47, "esp": 50, "ah": 51, "icmp6": 58, "sctp": 132}
_PROTOCOL_NAMES = {number: name for name, number in _PROTOCOLS.items()}
_STATE_STYLE = {"established": "green", "closed": "red", "time-wait": "yellow", "closing": "yellow"}


def _protocol(_ctx: click.Context, _param: click.Parameter, value: str | None) -> int | None:
    if value is None:
        return None
    number = str(_PROTOCOLS.get(value.lower(), value))
    if not number.isdecimal() or int(number) > 255:
        raise click.BadParameter(f"'{value}' is no protocol - say 0 to 255 or one of {', '.join(_PROTOCOLS)}")
    return int(number)


@click.command()
@click.option("--zone", help="From or to that zone.")
@click.option("--prefix", metavar="PREFIX", help="Either end in it, before or after translation.")
@click.option("--port", type=click.IntRange(0, 65535), help="Of either end, before or after translation.")
@click.option("--protocol", callback=_protocol, help="Name or number.")
@click.option("--limit", type=click.IntRange(0), default=DEFAULT_LIMIT, show_default=True, help="How many; 0: counts.")
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")
@click.pass_obj
def sessions(
    options: Options,
    zone: str | None,
    prefix: str | None,
    port: int | None,
    protocol: int | None,
    limit: int,
    as_json: bool,
) -> None:
    """The firewall's sessions: who talks to whom, translated to what, by which policy."""
    answer = control.ask(options.run_dir, Query(zone, prefix, port, protocol, limit).question())
    if as_json:
        click.echo(json.dumps(answer, indent=2))
        return
    _print(answer)


def _print(answer: dict[str, Any]) -> None:
    from rich.console import Console  # noqa: PLC0415 - scripts that ask for JSON do not wait for rich
    from rich.table import Table  # noqa: PLC0415

    console = Console()
    states = ", ".join(f"{number:,} {state}" for state, number in answer["byState"].items())
    zones = ", ".join(f"{number:,} from {zone}" for zone, number in answer["byZone"].items())
    console.print(f"{answer['total']:,} of {answer['maximum']:,} sessions ({answer['utilisation']} %)", highlight=False)
    for line in filter(None, (states, zones)):
        console.print(line, highlight=False)
    if answer["sessions"]:
        table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0), pad_edge=False)
        for column in ("zones", "flow", "policy", "state"):
            table.add_column(column, overflow="fold")
        for column in ("left", "packets", "bytes"):
            table.add_column(column, justify="right", no_wrap=True)
        for session in answer["sessions"]:
            table.add_row(*_cells(session))
        console.print(table)
    if answer["more"]:
        console.print("there are more - narrow it down or raise --limit", style="yellow")


def _cells(session: dict[str, Any]) -> tuple[str, ...]:
    from rich.filesize import decimal  # noqa: PLC0415
    from rich.markup import escape  # noqa: PLC0415

    protocol = _PROTOCOL_NAMES.get(session["protocol"], str(session["protocol"]))
    ends = [_end(session["source"], session["natSource"]), _end(session["destination"], session["natDestination"])]
    both = [session["forward"], session["reverse"]]
    return (
        escape(f"{session['fromZone']} > {session['toZone']}"),
        escape(f"{protocol} {' > '.join(ends)}"),
        escape(session["policy"]),
        f"[{_STATE_STYLE.get(session['state'], 'cyan')}]{session['state']}[/]",
        f"{max(session['timeout'] - session['idle'], 0):.0f} s",
        "/".join(f"{way['packets']:,}" for way in both),
        "/".join(decimal(way["bytes"]) for way in both),
    )


def _end(end: dict[str, Any], translated: dict[str, Any] | None) -> str:
    return f"{EndView(**end)}" + (f" ({EndView(**translated)})" if translated else "")
