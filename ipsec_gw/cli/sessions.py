"""`ipsec-gw show sessions` with its tables, and `ipsec-gw clear sessions`."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from ipsec_gw import terminal
from ipsec_gw.cli.main import Options
from ipsec_gw.observe import control
from ipsec_gw.observe.sessions import CLEAR, DEFAULT_LIMIT, ENGINES, EndView, Query

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

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


def _which(command: Callable[..., None]) -> Callable[..., None]:
    """The options that choose sessions."""
    for option in (
        click.option("--younger", type=click.FloatRange(0), metavar="SECONDS", help="Began at most that long ago."),
        click.option("--older", type=click.FloatRange(0), metavar="SECONDS", help="Began at least that long ago."),
        click.option("--engine", type=click.Choice(ENGINES), help="Carried by it; xdp: not in a tunnel."),
        click.option("--protocol", callback=_protocol, help="Name or number."),
        click.option("--port", type=click.IntRange(0, 65535), help="Of either end, before or after translation."),
        click.option("--prefix", metavar="PREFIX", help="Either end in it, before or after translation."),
        click.option("--zone", help="From or to that zone."),
    ):
        command = option(command)
    return command


@click.command()
@_which
@click.option("--limit", type=click.IntRange(0), help=f"How many ({DEFAULT_LIMIT}; 0 with --top); 0: counts.")
@click.option("--top", type=click.IntRange(0), default=0, metavar="N", help="The N addresses that talk most.")
@click.option("--by", type=click.Choice(("bytes", "packets", "sessions")), default="bytes", help="What --top counts.")
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")
@click.pass_obj
def sessions(options: Options, /, limit: int | None, top: int, by: str, as_json: bool, **which: Any) -> None:
    """The firewall's sessions: who talks to whom, translated to what, by which policy, through which tunnel."""
    if limit is None:
        limit = 0 if top else DEFAULT_LIMIT
    answer = control.ask(options.run_dir, Query(**which, limit=limit, top=top, by=by).question())
    if as_json:
        click.echo(json.dumps(answer, indent=2))
        return
    _print(answer)


@click.group()
def clear() -> None:
    """End what goes on."""


@clear.command(name="sessions")
@_which
@click.option("--all", "everything", is_flag=True, help="Every session there is.")
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")
@click.pass_obj
def clear_sessions(options: Options, /, everything: bool, as_json: bool, **which: Any) -> None:
    """End sessions of the firewall. The next packet of each is judged as that of a new flow."""
    query = Query(**which)
    if query.chooses_all is not everything:
        raise click.UsageError("say which sessions, by one option or more, or --all")
    answer = control.ask(options.run_dir, query.question(CLEAR))
    click.echo(json.dumps(answer) if as_json else f"{answer['cleared']:,} sessions ended")


def _print(answer: dict[str, Any]) -> None:
    console = terminal.console()
    states = ", ".join(f"{number:,} {state}" for state, number in answer["byState"].items())
    zones = ", ".join(f"{number:,} from {zone}" for zone, number in answer["byZone"].items())
    console.print(f"{answer['total']:,} of {answer['maximum']:,} sessions ({answer['utilisation']} %)", highlight=False)
    for line in filter(None, (states, zones)):
        console.print(line, highlight=False)
    if answer["talkers"]:
        _print_talkers(console, answer["talkers"])
    if answer["sessions"]:
        _print_sessions(console, answer["sessions"])
    if answer["more"]:
        console.print("there are more - narrow it down or raise --limit", style="yellow")


def _table(left: tuple[str, ...], right: tuple[str, ...]) -> Table:
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0), pad_edge=False)
    for column in left:
        table.add_column(column, overflow="fold")
    for column in right:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _print_sessions(console: Console, sessions: list[dict[str, Any]]) -> None:
    table = _table(("zones", "flow", "policy", "carried by", "state"), ("left", "packets", "bytes"))
    for session in sessions:
        table.add_row(*_cells(session))
    console.print(table)


def _print_talkers(console: Console, talkers: list[dict[str, Any]]) -> None:
    from rich.filesize import decimal  # noqa: PLC0415

    table = _table(("address",), ("sessions", "packets", "bytes"))
    for talker in talkers:
        numbers = f"{talker['sessions']:,}", f"{talker['packets']:,}", decimal(talker["bytes"])
        table.add_row(talker["address"], *numbers)
    console.print(table)


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
        escape(" ".join(filter(None, (session["engine"], session["tunnel"], session["spi"])))),
        f"[{_STATE_STYLE.get(session['state'], 'cyan')}]{session['state']}[/]",
        f"{max(session['timeout'] - session['idle'], 0):.0f} s",
        "/".join(f"{way['packets']:,}" for way in both),
        "/".join(decimal(way["bytes"]) for way in both),
    )


def _end(end: dict[str, Any], translated: dict[str, Any] | None) -> str:
    return f"{EndView(**end)}" + (f" ({EndView(**translated)})" if translated else "")
