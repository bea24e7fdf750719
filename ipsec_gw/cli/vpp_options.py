"""Options that the commands of `ipsec-gw vpp` share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from vpp_conf.locate import locate_vpp
from vpp_conf.startup.files import Files
from vpp_conf.startup.machine import Machine
from vpp_conf.startup.probe import ROOT, probe_machine, read_machine
from vpp_conf.startup.syntax import TESTED, complete_offer, show
from vpp_conf.startup.values import Needs

Command = TypeVar("Command", bound=Callable[..., Any])

_DEFAULTS = Needs()

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


def with_machine(command: Command) -> Command:
    """Options that name a machine, for :func:`machine_of`."""
    return _with(_MACHINE, command)


def machine_of(root: Path, release: str | None) -> Machine:
    """The machine below the root, with the VPP of that release or the installed one."""
    if release is None:
        return probe_machine(locate_vpp(), root)
    year, _, month = release.partition(".")
    return read_machine(Files(root), complete_offer((int(year), int(month))))


def _with(options: tuple[Callable[[Any], Any], ...], command: Command) -> Command:
    for option in reversed(options):
        command = option(command)
    return command
