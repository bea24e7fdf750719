"""What a scenario found: checks, versions, and how they are told to people and to machines."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True, slots=True)
class Check:
    """One measured fact: what was expected, what was measured, whether that holds."""

    name: str
    ok: bool
    expected: str
    measured: str


@dataclass(frozen=True, slots=True)
class Versions:
    """What took part in a run. ``vpp`` is None where none took part."""

    kernel: str
    strongswan: str
    vpp: str | None
    python: str
    ipsec_gw: str


@dataclass(frozen=True, slots=True)
class Report:
    """The outcome of one run. ``notes`` are measurements without a verdict."""

    scenario: str
    environment: str
    engine: str
    versions: Versions
    checks: tuple[Check, ...]
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """True only if something was checked and everything held."""
        return bool(self.checks) and all(check.ok for check in self.checks)


def merged(reports: Sequence[Report]) -> Report:
    """The reports of a scenario's parts (one at least) as one. A check that several of them made holds if all held; one
    that a single report has again and again stays as it is.
    """
    if len(reports) == 1:
        return reports[0]
    by_name: dict[str, list[Check]] = {}
    for report in reports:
        for check in report.checks:
            by_name.setdefault(check.name, []).append(check)
    versions = [report.versions for report in reports]
    return replace(
        reports[0],
        environment=_joined(report.environment for report in reports),
        versions=replace(
            versions[0],
            kernel=_joined(version.kernel for version in versions),
            strongswan=_joined(version.strongswan for version in versions),
            vpp=_joined(version.vpp for version in versions if version.vpp) or None,
        ),
        checks=tuple(
            Check(name, all(one.ok for one in same), same[0].expected, _joined(one.measured for one in same))
            for name, same in by_name.items()
        ),
        notes=tuple(note for report in reports for note in report.notes),
        seconds=round(sum(report.seconds for report in reports), 1),
    )


def _joined(texts: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(texts))


def to_json(report: Report) -> str:
    """The report as a JSON document (with ``ok``)."""
    return json.dumps({**asdict(report), "ok": report.ok}, indent=2)


def from_json(text: str) -> Report:
    """Read :func:`to_json` back. Raises ValueError, KeyError or TypeError for anything else."""
    data: dict[str, Any] = json.loads(text)
    data.pop("ok")
    checks = tuple(Check(**check) for check in data.pop("checks"))
    return Report(versions=Versions(**data.pop("versions")), checks=checks, notes=tuple(data.pop("notes")), **data)


def table(report: Report) -> Table:
    """The checks for people."""
    # Imported late: the guest never draws tables, and importing rich takes it seconds.
    from rich import box  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    versions = report.versions
    drawn = Table(
        title=f"{report.scenario}: engine {report.engine}, {report.environment}, {report.seconds:.0f} s",
        caption=f"kernel {versions.kernel}, strongSwan {versions.strongswan}, VPP {versions.vpp or 'none'}",
        box=box.SIMPLE_HEAD,
    )
    for heading in ("", "check", "expected", "measured"):
        drawn.add_column(heading, overflow="fold")
    for check in report.checks:
        mark = Text("ok", "green") if check.ok else Text("FAILED", "bold red")
        drawn.add_row(mark, *(Text(part) for part in (check.name, check.expected, check.measured)))
    return drawn


def summary(checks: Sequence[Check]) -> str:
    """One line: how many held."""
    if not checks:
        return "no check ran"
    failed = [check.name for check in checks if not check.ok]
    return f"{len(checks) - len(failed)} of {len(checks)} checks held" + (
        f"; failed: {', '.join(failed)}" if failed else ""
    )
