"""`ipsec-gw units`: the systemd units of this installation."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from ipsec_gw import unit_files
from ipsec_gw.cli.main import DEFAULT_PINS, DEFAULT_RUN_DIR, Options
from ipsec_gw.cli.vpp_options import needs_words, with_drop_in, with_needs
from ipsec_gw.config.load import DEFAULT_PATH, load
from ipsec_gw.errors import EnvironmentMissing
from ipsec_gw.unit_files import FOLDER, Owner
from ipsec_gw.units import DAEMON_UNIT, UNITS, Installation, render_units
from vpp_conf.lifecycle import UNIT as VPP_UNIT
from vpp_conf.locate import BINARY_VARIABLE, USUAL_BINARIES, locate_vpp
from vpp_conf.startup.values import Needs

ROOT = Path("/")
PACKAGED_VPP_UNIT = "vpp.service"
SCRIPT = "ipsec-gw"

_with_root = click.option(
    "--root",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    default=ROOT,
    help="Another tree than that of this machine, for example an image.",
)
_with_dry_run = click.option("--dry-run", is_flag=True, help="Print what would be done, change nothing.")


@click.group()
def units() -> None:
    """The systemd units of the daemon and of VPP."""


@units.command()
@with_needs
@with_drop_in
@click.option("--prepare", is_flag=True, help="Do `vpp prepare` before each start of VPP.")
@_with_root
@_with_dry_run
@click.pass_obj
def install(options: Options, /, drop_in: Path | None, prepare: bool, root: Path, dry_run: bool, **needs: Any) -> None:
    """Write the units. They start this installation with the global options of this call, and VPP with the others.

    Nothing is started: the commands for that are printed. Units that ipsec-gw did not write are never replaced.
    """
    vpp_binary, missing = _look_for_vpp(root)
    texts = render_units(
        Installation(
            program=(*_program(), *_global_words(options)),
            needs=needs_words(Needs(**needs)),
            drop_in=("--drop-in", str(drop_in.absolute())) if drop_in else (),
            vpp_binary=vpp_binary,
            prepare=prepare,
        )
    )
    folder = root / FOLDER
    if dry_run:
        unit_files.refuse_foreign(folder, texts)
        for name, text in texts.items():
            click.echo(f"# {folder / name}\n{text}")
        written = tuple(folder / name for name in texts)
    else:
        written = unit_files.install(folder, texts)
        for name in texts:
            click.echo(f"{folder / name}: {'written' if folder / name in written else 'is as it should be'}")
    if missing:
        click.echo(f"note: {missing}; {VPP_UNIT} is for when it is there", err=True)
    wanted = UNITS if not missing and not _daemon_starts_vpp(options, root) else (DAEMON_UNIT,)
    _print_commands(_start_commands(root, [path.name for path in written], wanted))


@units.command()
@_with_root
@_with_dry_run
def remove(root: Path, dry_run: bool) -> None:
    """Remove the units that ipsec-gw wrote. They have to be disabled before."""
    folder = root / FOLDER
    removed = unit_files.removable(folder, UNITS) if dry_run else unit_files.remove(folder, UNITS)
    for name in UNITS:
        if folder / name in removed:
            click.echo(f"{folder / name}: {'would be removed' if dry_run else 'removed'}")
        else:
            click.echo(f"{folder / name}: {unit_files.owner(folder / name).value}, left as it is")
    if removed and root == ROOT:
        _print_commands(["systemctl daemon-reload"])


@units.command()
@_with_root
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")
def show(root: Path, as_json: bool) -> None:
    """Which units are installed, by whom, and whether they are enabled."""
    folder = root / FOLDER
    found = [(folder / name, unit_files.owner(folder / name), unit_files.enabled(folder, name)) for name in UNITS]
    if as_json:
        rows = [{"path": str(path), "owner": of.name.lower(), "enabled": on} for path, of, on in found]
        click.echo(json.dumps({"units": rows}, indent=2))
        return
    for path, of, on in found:
        click.echo(f"{path}: {of.value}{', enabled' if on else '' if of is Owner.NOBODY else ', not enabled'}")


def _program() -> tuple[str, ...]:
    """The words that started this program; a unit needs them absolute."""
    script = Path(sys.argv[0]).absolute()
    if script.name == SCRIPT and os.access(script, os.X_OK):
        return (str(script),)
    return (sys.executable, "-m", "ipsec_gw.cli.main")


def _global_words(options: Options) -> tuple[str, ...]:
    given = (
        ("--config", options.config and options.config.absolute(), None),
        ("--run-dir", options.run_dir, DEFAULT_RUN_DIR),
        ("--pins", options.pins, DEFAULT_PINS),
    )
    return tuple(word for name, value, default in given if value != default for word in (name, str(value)))


def _look_for_vpp(root: Path) -> tuple[str | None, str]:
    """Where VPP is, if a unit would not find it by itself, and why there is none, if there is none.

    Of another tree only what the environment says is known.
    """
    named = os.environ.get(BINARY_VARIABLE)
    if named or root != ROOT:
        return (named and str(Path(named).absolute())) or None, ""
    try:
        binary = locate_vpp().binary
    except EnvironmentMissing as error:
        return None, str(error)
    without = next((usual.resolve() for usual in USUAL_BINARIES if os.access(usual, os.X_OK)), None)
    return None if binary == without else str(binary), ""


def _daemon_starts_vpp(options: Options, root: Path) -> bool:
    """Whether the configuration has ``vpp = "needed"``: then the unit of VPP waits for the daemon to start it."""
    path = options.config or root / DEFAULT_PATH.relative_to("/")
    return path.exists() and load(path).gateway.starts_vpp


def _start_commands(root: Path, written: list[str], wanted: Sequence[str]) -> list[str]:
    """What makes the wanted units hold, in order. Of another tree only what systemd does to its files."""
    folder = root / FOLDER
    here = root == ROOT
    systemctl = "systemctl" if here else f"systemctl --root={root.absolute()}"
    now = " --now" if here else ""
    idle = [name for name in wanted if not unit_files.enabled(folder, name)]
    commands = ["systemctl daemon-reload"] if here and written else []
    kept = (PACKAGED_VPP_UNIT,) if VPP_UNIT in wanted else (PACKAGED_VPP_UNIT, VPP_UNIT)
    if unwanted := [name for name in kept if unit_files.enabled(folder, name)]:
        commands.append(f"{systemctl} disable{now} {' '.join(unwanted)}")
    if idle:
        commands.append(f"{systemctl} enable{now} {' '.join(idle)}")
    if here:
        commands += [f"systemctl restart {name}" for name in wanted if name in written and name not in idle]
    return commands


def _print_commands(commands: list[str]) -> None:
    for number, command in enumerate(commands):
        click.echo(f"{'now: ' if number == 0 else '     '}{command}")
