"""Options that the commands of `ipsec-gw vpp` share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from vpp_conf.locate import VppInstallation, locate_vpp
from vpp_conf.start_options import StartOptions
from vpp_conf.startup.drop_in import DEFAULT_DROP_IN
from vpp_conf.startup.files import Files
from vpp_conf.startup.machine import Machine
from vpp_conf.startup.probe import ROOT, probe_machine, read_machine
from vpp_conf.startup.syntax import TESTED, complete_offer, show
from vpp_conf.startup.values import Needs
from vpp_conf.tuning.file import DEFAULT_TUNING, read_tuning
from vpp_conf.tuning.values import Tuning

Command = TypeVar("Command", bound=Callable[..., Any])

_DEFAULTS = Needs()
_GIVEN = frozenset({ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT})

_NEEDS = (
    click.option(
        "--sas", type=click.IntRange(1), default=_DEFAULTS.sas, show_default=True, help="SAs, both directions."
    ),
    click.option("--tunnels", type=click.IntRange(1), default=_DEFAULTS.tunnels, show_default=True, help="CHILD_SAs."),
    click.option(
        "--sessions", type=click.IntRange(0), default=_DEFAULTS.sessions, show_default=True, help="Of the firewall."
    ),
    click.option("--policies", type=click.IntRange(0), default=0, show_default=True, help="SPD entries in VPP."),
    click.option(
        "--interface", "interfaces", multiple=True, help="For VPP; can be repeated. Default: NICs with a link."
    ),
    click.option("--mtu", type=click.IntRange(68), help="Default: the largest of the interfaces."),
    click.option("--workers", type=click.IntRange(0), help="Worker threads. Default: by cores and queues."),
    click.option("--qat/--no-qat", default=True, help="Use QAT if its virtual functions are there."),
    click.option("--stats-group", help="A group whose members may read VPP's counters. Default: root alone."),
)

_MACHINE = (
    click.option(
        "--root",
        type=click.Path(path_type=Path, exists=True, file_okay=False),
        default=ROOT,
        help="Another machine's /proc and /sys below this folder.",
    ),
    click.option(
        "--release",
        type=click.Choice([show(release) for release in TESTED]),
        help="For a VPP of this release with all its engines. Default: the installed one.",
    ),
)


def with_needs(command: Command) -> Command:
    """Options that become :class:`Needs`."""
    return _with(_NEEDS, command)


def needs_words(needs: Needs) -> tuple[str, ...]:
    """The options that give these needs; what is as by default is left out."""
    words = [
        word
        for name in ("sas", "tunnels", "sessions", "policies", "mtu", "workers", "stats_group")
        if (value := getattr(needs, name)) != getattr(_DEFAULTS, name)
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]
    words += [word for interface in needs.interfaces for word in ("--interface", interface)]
    return (*words, *(() if needs.qat else ("--no-qat",)))


def changed_options(ctx: click.Context, options: StartOptions) -> StartOptions:
    """The same options, with those in place that this call of the command was given."""
    given = {name: value for name, value in ctx.params.items() if ctx.get_parameter_source(name) in _GIVEN}
    files = {name: given.pop(name) for name in ("drop_in", "tuning") if name in given}
    return replace(options, needs=replace(options.needs, **given), **files)


def with_machine(command: Command) -> Command:
    """Options that name a machine, for :func:`machine_of`."""
    return _with(_MACHINE, command)


def with_drop_in(command: Command) -> Command:
    """The option that names the operator's own settings, for :func:`read_drop_in`."""
    return click.option(
        "--drop-in",
        type=click.Path(path_type=Path),
        help=f"Your own settings for startup.conf. Default: {DEFAULT_DROP_IN}, if it is there.",
    )(command)


def with_tuning(command: Command) -> Command:
    """The option that names what `vpp tune` wrote, for :func:`tuning_of`."""
    return click.option(
        "--tuning",
        type=click.Path(path_type=Path),
        help=f"What `vpp tune` measured. Default: {DEFAULT_TUNING}, if it is there.",
    )(command)


def tuning_of(path: Path | None, root: Path = ROOT, release: str | None = None) -> Tuning | None:
    """What was measured. The default file is of this machine and its VPP: it says nothing about others."""
    if path is None and (root != ROOT or release is not None):
        return None
    return read_tuning(path)


def machine_of(root: Path, release: str | None) -> tuple[Machine, VppInstallation]:
    """The machine below the root, with the VPP of that release or the installed one."""
    if release is None:
        installed = locate_vpp()
        return probe_machine(installed, root), installed
    year, _, month = release.partition(".")
    number = (int(year), int(month))
    named = VppInstallation(Path("/usr/bin/vpp"), f"VPP {release}", number, Path("/usr"), None, None, None, None)
    return read_machine(Files(root), complete_offer(number)), named


def _with(options: tuple[Callable[[Any], Any], ...], command: Command) -> Command:
    for option in reversed(options):
        command = option(command)
    return command
