"""`ipsec-gw show`: tables for people, the same model as JSON for scripts."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from ipsec_gw import terminal
from ipsec_gw.cli.main import Options
from ipsec_gw.cli.sessions import sessions
from ipsec_gw.observe import control

if TYPE_CHECKING:
    from rich.console import Console

_json = click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")
_STATE_STYLE = {"vpp": "green", "soft": "green", "kernel": "yellow", "pending": "cyan"}


@click.group()
def show() -> None:
    """Show what the running gateway does."""


show.add_command(sessions)


@show.command()
@_json
@click.pass_obj
def sas(options: Options, as_json: bool) -> None:
    """Every ESP SA: who carries it, and if the kernel does, why."""
    answer = control.ask(options.run_dir, "sas")
    if as_json:
        _print_json(answer)
        return
    from rich.filesize import decimal  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    console = terminal.console()
    if not answer["sas"]:
        console.print("no ESP SAs in the kernel")
        return
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("connection", overflow="fold")  # the only one that may wrap: 80 columns hold the rest
    for column in ("dir", "SPI", "peer", "algorithm", "state"):
        table.add_column(column, no_wrap=True)
    for column in ("packets", "bytes"):
        table.add_column(column, justify="right", no_wrap=True)
    reasons: dict[str, list[str]] = {}
    for sa in answer["sas"]:
        name = "/".join(part for part in (sa["connection"], sa["child"]) if part)
        peer = sa["source"] if sa["direction"] == "in" else sa["destination"]
        state = f"[{_STATE_STYLE.get(sa['state'], '')}]{sa['state']}[/]"
        counted = (f"{sa['packets']:,}", decimal(sa["bytes"]))
        table.add_row(name, sa["direction"], sa["spi"], peer, sa["algorithm"], state, *counted)
        if sa["reason"]:
            reasons.setdefault(sa["reason"], []).append(sa["spi"])
    console.print(table)
    for reason, spis in reasons.items():
        console.print(f"[bold]{', '.join(spis)}[/]: {reason}", highlight=False)


@show.command()
@_json
@click.pass_obj
def firewall(options: Options, as_json: bool) -> None:
    """What every rule of the firewall has let through, translated or refused."""
    answer = control.ask(options.run_dir, "firewall")
    if as_json:
        _print_json(answer)
        return
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=None, header_style="bold")
    for column in ("kind", "rule"):
        table.add_column(column)
    for column in ("first packets", "bytes"):
        table.add_column(column, justify="right")
    for rule in answer["rules"]:
        table.add_row(rule["kind"], rule["name"], f"{rule['packets']:,}", f"{rule['octets']:,}")
    console = terminal.console()
    console.print(table if answer["rules"] else "no rules")
    for name in answer["missing"]:
        console.print(f"[yellow]{name}[/]: this interface does not exist", highlight=False)
    if answer["lostEvents"]:
        text = "events lost[/]: they came faster than the daemon read them, the flow log lacks them"
        console.print(f"[yellow]{answer['lostEvents']:,} {text}", highlight=False)


@show.command()
@_json
@click.pass_obj
def nat(options: Options, as_json: bool) -> None:
    """The pools of NAT, and who translates with them now."""
    answer = control.ask(options.run_dir, "nat")
    if as_json:
        _print_json(answer)
        return
    from rich.table import Table  # noqa: PLC0415

    console = terminal.console()
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0), pad_edge=False)
    for column in ("pool", "engine", "addresses", "ports", "options"):
        table.add_column(column, overflow="fold")
    for pool in answer["pools"]:
        table.add_row(*(pool[name] for name in ("name", "engine", "addresses", "ports")), ", ".join(pool["options"]))
    console.print(table if answer["pools"] else "no pools")
    for pool in answer["pools"]:
        if pool["auto"]:
            console.print(_auto_text(pool["name"], pool["auto"]), highlight=False)
    if answer["state"]:
        console.print(f"new flows of VPP's pools are translated by {answer['state']}", highlight=False)
    if answer["most"]:
        room = f"{answer['translations']:,} flows; each of its threads has room for {answer['most']:,}"
        console.print(f"VPP translates {room}", highlight=False)


def _auto_text(name: str, auto: dict[str, Any]) -> str:
    """Whose the new flows of a pool are, what is asked for, and what would move it when."""
    engine, move = {"xdp": "XDP", "vpp": "VPP"}, auto["nextMove"]
    flows, packets = (f"{move[key]:,}" for key in ("newFlowsPerSecond", "packetsPerSecond"))
    if move["engine"] == "vpp":
        then = f"from {flows} or {packets}, or when XDP has no port"
    else:
        stays = "it stays" if auto["calm"] else "from now on it is"
        then = f"in {move['seconds']:.0f} s if {stays} below {flows} and {packets}"
    asked = f"{auto['newFlowsPerSecond']:,} new flows/s and {auto['packetsPerSecond']:,} packets/s"
    return (
        f"pool {name} is {engine[auto['engine']]}'s since {auto['since']}: {asked}; {engine[move['engine']]}'s {then}"
    )


@show.command()
@_json
@click.pass_obj
def status(options: Options, as_json: bool) -> None:
    """The engine, whether everything is in sync, and the steering counters."""
    answer = control.ask(options.run_dir, "status")
    if as_json:
        _print_json(answer)
        return
    from rich.table import Table  # noqa: PLC0415

    console = terminal.console()
    engine = answer["engine"]
    facts = Table.grid(padding=(0, 2))
    facts.add_row("ipsec-gw", answer["version"])
    facts.add_row("strongSwan", answer["strongswan"])
    facts.add_row("engine", f"{engine['name']}  {engine['note']}  [yellow]{engine['absent']}[/]")
    if engine["life"]:
        facts.add_row("", engine["life"])
    facts.add_row("in sync", "yes" if answer["inSync"] else "[yellow]no[/]")
    facts.add_row("WAN", ", ".join(answer["wan"]) or "-")
    for words in answer["overlays"]:
        facts.add_row("", words)
    if guardian := answer["guardian"]:
        cost = f"{guardian['written']:,} of {guardian['carried']:,} SAs written in {guardian['seconds'] * 1000:.0f} ms"
        facts.add_row("kept warm", f"{cost}  [yellow]{'the kernel has taken over' if guardian['takenOver'] else ''}[/]")
    if answer["malformedMessages"]:
        facts.add_row("unreadable", f"[yellow]{answer['malformedMessages']:,}[/] messages of the kernel or charon")
    console.print(facts)
    _counters(console, "steering", ("SA", "to engine", "to kernel"), answer["steer"])
    _counters(console, "egress guard", ("SA", "passed", "held back", "sent after all"), answer["guard"])
    _counters(console, "docks", ("interface", "to engine", "fell to the kernel"), answer["docks"])
    seen = [(reason, packets) for reason, packets in answer["verdicts"].items() if packets]
    seen.sort(key=lambda row: row[1], reverse=True)
    _counters(console, "verdicts", ("reason", "packets"), [{"reason": row[0], "packets": row[1]} for row in seen])


@show.command()
@_json
@click.pass_obj
def history(options: Options, as_json: bool) -> None:
    """The last passes: what was done, and what came of it."""
    answer = control.ask(options.run_dir, "history")
    if as_json:
        _print_json(answer)
        return
    from rich.table import Table  # noqa: PLC0415

    table = Table("pass", "operation", "outcome", "detail")
    for number, record in enumerate(answer["passes"], 1):
        for step in record["steps"]:
            table.add_row(str(number), step["op"], step["outcome"], step["detail"])
        if record["trouble"]:
            times = f"{record['times']} times" if record["times"] > 1 else ""
            table.add_row(str(number), times, "trouble", record["trouble"])
    terminal.console().print(table)


def _counters(console: Console, title: str, columns: tuple[str, ...], rows: list[dict[str, Any]]) -> None:
    from rich.table import Table  # noqa: PLC0415

    if rows:
        table = Table(*columns, title=title, title_justify="left")
        for row in rows:
            table.add_row(*(f"{value:,}" if isinstance(value, int) else value for value in row.values()))
        console.print(table)


def _print_json(answer: Any) -> None:
    click.echo(json.dumps(answer, indent=2))
