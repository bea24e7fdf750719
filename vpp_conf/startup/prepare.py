"""Change the kernel settings that a plan asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ipsec_gw.errors import EnvironmentMissing
from vpp_conf.startup.files import Files
from vpp_conf.startup.values import Setting

ROOT = Path("/")
MORE_HUGEPAGES = "echo 1 > /proc/sys/vm/compact_memory and try again, or reserve them at boot with hugepages=N"


@dataclass(frozen=True, slots=True)
class Applied:
    """A setting and what the kernel made of it. ``after`` is None if it could not be written: ``problem`` says why."""

    setting: Setting
    after: int | None
    problem: str = ""


def apply_settings(settings: Sequence[Setting], root: Path = ROOT) -> tuple[Applied, ...]:
    """Write each and read it back. All are tried; what went wrong is in the result.

    For hugepages the kernel may give fewer than asked for, without an error.
    """
    return tuple(_apply(setting, root) for setting in settings)


def check_applied(applied: Sequence[Applied]) -> None:
    """Raises EnvironmentMissing naming every setting that does not hold."""
    problems = [one.problem for one in applied if one.problem]
    if problems:
        raise EnvironmentMissing("; ".join(problems))


def _apply(setting: Setting, root: Path) -> Applied:
    path = root / setting.path
    try:
        path.write_text(f"{setting.wanted}\n")
    except OSError as error:
        return Applied(
            setting, None, f"/{setting.path} cannot be written ({error.strerror}) - as root: {setting.command}"
        )
    after = Files(root).number(setting.path)
    if after == setting.wanted:
        return Applied(setting, after)
    given = "nothing that can be read" if after is None else str(after)
    way_out = MORE_HUGEPAGES if setting.path.endswith("nr_hugepages") else f"as root: {setting.command}"
    return Applied(setting, after, f"/{setting.path}: {setting.wanted} asked for, {given} given - {way_out}")
