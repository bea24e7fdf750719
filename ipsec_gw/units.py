"""The systemd units of this installation as texts (``systemd.unit(5)``, ``systemd.service(5)``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ipsec_gw import __version__
from ipsec_gw.errors import ConfigError, EnvironmentMissing
from ipsec_gw.observe.sdnotify import OFF_CODE
from ipsec_gw.templating import template_environment
from vpp_conf.lifecycle import PACKAGED_DROP_IN, PACKAGED_UNIT
from vpp_conf.lifecycle import UNIT as VPP_UNIT
from vpp_conf.locate import BINARY_VARIABLE

DAEMON_UNIT = "ipsec-gw.service"
UNITS = (VPP_UNIT, DAEMON_UNIT)
FILES = (*UNITS, PACKAGED_DROP_IN)
"""Everything that may be installed."""

_TEMPLATES = {name: f"{name}.j2" for name in UNITS} | {PACKAGED_DROP_IN: "packaged-vpp.conf.j2"}

MARKER = "# Written by `ipsec-gw units install`"
"""How the first line of a unit begins that is ours to replace and to remove."""

_NEEDS_QUOTES = frozenset(" '\"\\;")


@dataclass(frozen=True, slots=True)
class Installation:
    """What the units start.

    ``program`` are the words that start `ipsec-gw`, the first of them an absolute path, with its global options behind.
    ``needs`` and ``drop_in`` are options of `vpp run`. ``vpp_binary`` names VPP where it would not be found without.
    ``prepare``: make the kernel settings that the plan wants before each start of VPP. ``packaged``: VPP by the unit of
    its packages, with a drop-in, instead of one of our own.
    """

    program: tuple[str, ...]
    needs: tuple[str, ...] = ()
    drop_in: tuple[str, ...] = ()
    vpp_binary: str | None = None
    prepare: bool = False
    packaged: bool = False


def unit_of(file: str) -> str:
    """The unit that a file is, or is a drop-in of."""
    return PACKAGED_UNIT if file == PACKAGED_DROP_IN else file


def render_units(installation: Installation) -> Mapping[str, str]:
    """The text of every file by its name. Raises EnvironmentMissing for a path that systemd cannot read."""
    executable = installation.program[0]
    if "$" in executable:
        raise EnvironmentMissing(f"systemd cannot execute {executable!r} - install ipsec-gw to a path without $")
    binary = installation.vpp_binary
    values = {
        "marker": f"{MARKER} {__version__}. Changes are lost with the next one: use `systemctl edit`.",
        "command": _words(installation.program),
        "needs": _options(installation.needs),
        "drop_in": _options(installation.drop_in),
        "vpp_variable": f'"{_escape(f"{BINARY_VARIABLE}={binary}")}"' if binary else "",
        "prepare": installation.prepare,
        "off_code": OFF_CODE,
        "wrong_input_code": ConfigError.exit_code,
    }
    files = (PACKAGED_DROP_IN if installation.packaged else VPP_UNIT, DAEMON_UNIT)
    names = {file: _TEMPLATES[file] for file in files}
    return {file: template_environment(name).get_template(name).render(values) for file, name in names.items()}


def _options(words: Sequence[str]) -> str:
    return f" {_words(words)}" if words else ""


def _words(words: Sequence[str]) -> str:
    """Words of a command line: $ begins a variable there."""
    escaped = ((word, _escape(word).replace("$", "$$")) for word in words)
    return " ".join(f'"{text}"' if not word or _NEEDS_QUOTES & set(word) else text for word, text in escaped)


def _escape(text: str) -> str:
    if not text.isprintable():
        raise EnvironmentMissing(f"systemd cannot read {text!r} in a unit - use a name without control characters")
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
