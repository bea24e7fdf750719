"""`ipsec-gw lab`: real strongSwans, real packets, on this machine or in a virtual machine on it."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

import click

from ipsec_gw import terminal
from ipsec_gw.errors import EnvironmentMissing
from ipsec_gw.lab.context import Options
from ipsec_gw.lab.kernel import Environment, choose_environment, need_root
from ipsec_gw.lab.play import hints
from ipsec_gw.lab.play import up as build
from ipsec_gw.lab.progress import listener
from ipsec_gw.lab.report import Report, summary, table, to_json
from ipsec_gw.lab.runner import FAILED, INTERRUPTED, run
from ipsec_gw.lab.scenarios import Scenario, find, scenarios
from ipsec_gw.lab.session import down as remove_all
from ipsec_gw.lab.strongswan import PROPOSALS

ENGINES = ("auto", "vpp", "soft", "kernel")


@click.group()
def lab() -> None:
    """Try ipsec-gw against real strongSwans, in namespaces of its own."""


def resolve_engine(engine: str) -> str:
    """`auto` is VPP where it is installed, else the reference engine: the one place where that is chosen for you."""
    if engine != "auto":
        return engine
    from vpp_conf.locate import locate_vpp  # noqa: PLC0415 - it starts VPP to ask its version

    try:
        locate_vpp()
    except EnvironmentMissing:
        return "soft"
    return "vpp"


@lab.command("list")
def list_scenarios() -> None:
    """Show the scenarios."""
    for scenario in scenarios().values():
        click.echo(f"{scenario.name}: {scenario.summary}")


@lab.command("run")
@click.argument("scenario")
@click.option("--engine", type=click.Choice(ENGINES), default="auto", show_default=True, help="Who does the ESP work.")
@click.option("--proposal", type=click.Choice(PROPOSALS), default=PROPOSALS[0], show_default=True, help="ESP cipher.")
@click.option(
    "--environment",
    type=click.Choice(["auto", *(place.value for place in Environment)]),
    default="auto",
    help="Where to run.",
)
@click.option("--baseline", is_flag=True, help="Leave ipsec-gw out: what strongSwan and the kernel do alone.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of what is left to chance.")
@click.option(
    "--minutes", type=click.FloatRange(0, 600), default=1.0, show_default=True, help="How long `chaos` goes on."
)
@click.option(
    "--cases",
    default="all",
    show_default=True,
    help="Of `matrix`: all, how many to draw, or names; of `charon`: all or names.",
)
@click.option(
    "--rounds",
    type=click.IntRange(1),
    help="How often `failover`, `hang`, `daemon-kill` kill or stop, `rekey-storm` rekeys.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON instead of a table.")
@click.option("--report", type=click.Path(path_type=Path, dir_okay=False), help="Write the JSON report to a file.")
@click.option(
    "--artifacts", type=click.Path(path_type=Path, file_okay=False), help="Keep logs and captures in this directory."
)
def run_scenario(
    *,
    scenario: str,
    engine: str,
    proposal: str,
    environment: str,
    baseline: bool,
    seed: int,
    minutes: float,
    cases: str,
    rounds: int | None,
    as_json: bool,
    report: Path | None,
    artifacts: Path | None,
) -> None:
    """Run SCENARIO; exit code 0 only if every check held."""
    found = find(scenario)
    if artifacts is not None:
        artifacts.mkdir(parents=True, exist_ok=True)
        artifacts = artifacts.resolve()
    carrier = "kernel" if baseline else resolve_engine(engine)
    options = Options(carrier, proposal, artifacts, baseline, seed, minutes, cases, rounds or 0)
    outcome = asyncio.run(_run(found, options, environment))
    if outcome is None:
        click.echo("interrupted", err=True)
        sys.exit(INTERRUPTED)
    if report is not None:
        report.write_text(to_json(outcome) + "\n")
    _show(outcome, as_json)
    sys.exit(0 if outcome.ok else FAILED)


@lab.command()
@click.option("--proposal", type=click.Choice(PROPOSALS), default=PROPOSALS[0], show_default=True, help="ESP cipher.")
def up(proposal: str) -> None:
    """Build the network with both strongSwans and leave it running, to play with by hand.

    Where this kernel has no ESP, a shell in the virtual machine opens with all that in it; leaving it ends the machine.
    """
    if asyncio.run(choose_environment()) is Environment.VM:
        sys.exit(_shell_in_vm(proposal))
    click.echo(hints(asyncio.run(build(proposal))))


def _shell_in_vm(proposal: str) -> int:
    from ipsec_gw.lab.vm import shell_in_vm  # noqa: PLC0415 - only where there is no ESP

    if not sys.stdin.isatty():
        raise EnvironmentMissing("this kernel has no ESP and standard input is no terminal - use `ipsec-gw lab run`")
    return asyncio.run(shell_in_vm([sys.executable, "-m", "ipsec_gw.lab", "up", "--proposal", proposal]))


@lab.command()
def down() -> None:
    """Remove what `lab up` made and what dead runs left; runs that are alive are not touched."""
    need_root()
    tags = asyncio.run(remove_all())
    click.echo(f"removed {', '.join(tags)}" if tags else "nothing to remove")


async def _run(scenario: Scenario, options: Options, environment: str) -> Report | None:
    """The report, or None if a signal ended the run. The first signal starts the clearing up, others wait."""
    task = asyncio.ensure_future(_run_to_end(scenario, options, environment))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, _cancel_once, task)
    try:
        return await task
    except asyncio.CancelledError:
        return None


def _cancel_once(task: asyncio.Task[Report]) -> None:
    if not task.cancelling():
        task.cancel()


async def _run_to_end(scenario: Scenario, options: Options, environment: str) -> Report:
    with listener() as told:
        return await run(scenario, options, told, None if environment == "auto" else Environment(environment))


def _show(report: Report, as_json: bool) -> None:
    if as_json:
        click.echo(to_json(report))
        return
    console = terminal.console()
    console.print(table(report))
    for note in report.notes:
        console.print(f"- {note}", markup=False, highlight=False)
    console.print(summary(report.checks))
