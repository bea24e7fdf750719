"""`ipsec-gw vpp`: plan, prepare, tune, start, stop and look at the VPP of this gateway."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from ipsec_gw.cli.main import Options, run_async
from ipsec_gw.cli.vpp_options import (
    changed_options,
    machine_of,
    tuning_of,
    with_drop_in,
    with_machine,
    with_needs,
    with_tuning,
)
from ipsec_gw.cli.vpp_plan import print_checks, print_plan, print_refusal
from ipsec_gw.cli.vpp_tune import tune
from ipsec_gw.errors import ConfigError, EngineError, EnvironmentMissing
from vpp_conf import lifecycle
from vpp_conf.evidence import last
from vpp_conf.lifecycle import VppStatus
from vpp_conf.locate import locate_vpp
from vpp_conf.paths import VppPaths
from vpp_conf.reality import check_startup
from vpp_conf.start_options import StartOptions, remembered, start, start_again
from vpp_conf.startup.describe import describe_checks, describe_findings, describe_machine, describe_plan
from vpp_conf.startup.drop_in import read_drop_in
from vpp_conf.startup.plan import plan_startup
from vpp_conf.startup.prepare import apply_settings, check_applied
from vpp_conf.startup.render import merged_startup
from vpp_conf.startup.values import Needs, PlanRefused

PATIENCE_SECONDS = 5.0
"""For a VPP that has just been started to run its commands."""


@click.group()
def vpp() -> None:
    """The VPP of this gateway."""


vpp.add_command(tune)


@vpp.command()
@with_needs
@with_machine
@with_drop_in
@with_tuning
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")
@click.option("--text", "as_text", is_flag=True, help="startup.conf itself on stdout.")
@click.pass_context
def plan(
    ctx: click.Context,
    /,
    root: Path,
    release: str | None,
    drop_in: Path | None,
    tuning: Path | None,
    as_json: bool,
    as_text: bool,
    **needs: Any,
) -> None:
    """What VPP would be started with on this machine, and why. Changes nothing."""
    machine, installation = machine_of(root, release)
    paths = VppPaths(ctx.obj.run_dir)
    try:
        planned = plan_startup(machine, Needs(**needs), tuning_of(tuning, root, release))
    except PlanRefused as refused:
        if as_json:
            _print_json({"machine": describe_machine(machine), "findings": describe_findings(refused.findings)})
        else:
            print_refusal(describe_findings(refused.findings))
        ctx.exit(refused.exit_code)
    merged = merged_startup(planned, paths, installation, read_drop_in(drop_in))
    planned = replace(planned, findings=(*planned.findings, *merged.findings))
    if as_text:
        click.echo(merged.text, nl=False)
        return
    if as_json:
        _print_json({"machine": describe_machine(machine)} | describe_plan(planned))
        return
    print_plan(describe_machine(machine), describe_plan(planned))


@vpp.command()
@with_needs
@with_machine
@click.option("--dry-run", is_flag=True, help="Print the commands, change nothing.")
def prepare(root: Path, release: str | None, dry_run: bool, **needs: Any) -> None:
    """Set hugepages and kernel settings as the plan wants them. They last until the next boot."""
    machine, _ = machine_of(root, release)
    settings = plan_startup(machine, Needs(**needs)).settings
    if not settings:
        click.echo("everything is as the plan wants it")
    if dry_run:
        for setting in settings:
            click.echo(setting.command)
        return
    applied = apply_settings(settings, root)
    for one in applied:
        click.echo(f"/{one.setting.path}: {one.setting.now} -> {one.setting.now if one.after is None else one.after}")
    check_applied(applied)


@vpp.command()
@with_needs
@with_drop_in
@with_tuning
@click.pass_obj
def up(options: Options, /, drop_in: Path | None, tuning: Path | None, **needs: Any) -> None:
    """Start VPP in this network namespace from a rendered startup.conf."""
    with Console(stderr=True).status("starting VPP"):
        state = start(options.run_dir, StartOptions(Needs(**needs), drop_in, tuning))
    _print_started(options, state)


@vpp.command()
@with_needs
@with_drop_in
@with_tuning
@click.pass_context
def restart(ctx: click.Context, /, **_given: Any) -> None:
    """Stop VPP and start it from a startup.conf made anew, with the options of its last start but those given here.

    If there is no plan, the running VPP stays as it is. While there is none the kernel carries the tunnels.
    """
    options: Options = ctx.obj
    try:
        with Console(stderr=True).status("restarting VPP"):
            state = start_again(options.run_dir, changed_options(ctx, remembered(options.run_dir)))
    except (EnvironmentMissing, ConfigError):  # both come before anything is touched
        click.echo("VPP was not restarted: it is as it was", err=True)
        raise
    _print_started(options, state)


@vpp.command()
@with_needs
@with_drop_in
@with_tuning
@click.pass_obj
def run(options: Options, /, drop_in: Path | None, tuning: Path | None, **needs: Any) -> None:
    """Become VPP in the foreground, for systemd. What VPP prints goes to its log."""
    lifecycle.run(options.run_dir, Needs(**needs), read_drop_in(drop_in), tuning_of(tuning))


@vpp.command()
@click.argument("pid", type=click.IntRange(1))
@click.pass_obj
def wait(options: Options, pid: int) -> None:
    """Wait until the VPP that `vpp run` became in process PID answers; say what of it is not as planned."""
    _print_started(options, lifecycle.wait(options.run_dir, pid))


@vpp.command()
@click.pass_obj
def down(options: Options) -> None:
    """Stop the VPP that `vpp up` started. The kernel carries the tunnels on."""
    _print(lifecycle.down(options.run_dir))


@vpp.command()
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")
@click.pass_obj
def status(options: Options, as_json: bool) -> None:
    """Is it running, does it answer, and is it what it was planned to be?"""
    state = lifecycle.status(options.run_dir)
    checks = _checks(options) if state.answering else []
    kept = last(VppPaths(options.run_dir.resolve()))
    if as_json:
        answer = {"running": state.running, "answering": state.answering, "version": state.version}
        found = {"path": str(kept.path), "at": kept.at, "why": kept.why} if kept else None
        _print_json(answer | {"checks": checks, "evidence": found})
        return
    _print(state)
    if kept:
        click.echo(f"the last one that was lost, {kept.at}: {kept.why} - see {kept.path}")
    print_checks(checks)


def _checks(options: Options, patience: float = 0.0) -> list[dict[str, Any]]:
    """The running VPP beside its plan; nothing, and why on stderr, if they cannot be compared."""
    try:
        checks = run_async(check_startup(VppPaths(options.run_dir.resolve()), locate_vpp(), patience))
    except (EngineError, EnvironmentMissing) as error:
        click.echo(f"not compared with its plan: {error}", err=True)
        return []
    return describe_checks(checks)


def _print_started(options: Options, state: VppStatus) -> None:
    """A VPP that has just been started, with what could be better."""
    console = Console(stderr=True)
    _print(state)
    for note in state.notes:
        console.print(f"note: {note}", highlight=False, soft_wrap=True)
    print_checks([one for one in _checks(options, PATIENCE_SECONDS) if not one["holds"]])


def _print(state: VppStatus) -> None:
    if not state.running:
        click.echo("VPP is not running")
        return
    answer = "answers" if state.answering else "does not answer yet"
    click.echo(f"VPP {state.version or ''} runs as process {state.pid} and {answer}")


def _print_json(answer: dict[str, Any]) -> None:
    click.echo(json.dumps(answer, indent=2))
