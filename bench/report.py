"""Results of the pipeline's benchmark as values; a table and JSON of the same values."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Row:
    """A case. ``raw`` are nanoseconds as measured, ``ns`` without the re-arm program, one of each per round; ``ratios``
    are those of ``ns`` to the baseline of the same round.
    """

    name: str
    raw: tuple[float, ...]
    ns: tuple[float, ...]
    ratios: tuple[float, ...]
    target: float | None

    @property
    def ratio(self) -> float:
        """Median."""
        return statistics.median(self.ratios)

    @property
    def met(self) -> bool | None:
        """None without a target."""
        return None if self.target is None else self.ratio <= self.target

    def as_json(self) -> dict[str, object]:
        """All there is."""
        return {
            "case": self.name,
            "nsMedian": statistics.median(self.ns),
            "ns": self.ns,
            "rawNs": self.raw,
            "ratio": self.ratio,
            "ratios": self.ratios,
            "target": self.target,
            "met": self.met,
        }


@dataclass(frozen=True, slots=True)
class ProgramSize:
    """A loaded program. ``verified`` is what the verifier walked over all paths, None from a kernel that does not say;
    ``xlated`` and ``jited`` are bytes.
    """

    name: str
    verified: int | None
    xlated: int
    jited: int

    def as_json(self) -> dict[str, object]:
        """All there is."""
        instructions = self.xlated // 8
        return {
            "program": self.name,
            "verifiedInstructions": self.verified,
            "instructions": instructions,
            "xlatedBytes": self.xlated,
            "jitedBytes": self.jited,
        }


@dataclass(frozen=True, slots=True)
class Report:
    """``rounds`` of ``repeat`` packets per case."""

    kernel: str
    rounds: int
    repeat: int
    rows: tuple[Row, ...]
    programs: tuple[ProgramSize, ...]

    @property
    def missed(self) -> tuple[str, ...]:
        """Cases above their target."""
        return tuple(row.name for row in self.rows if row.met is False)

    def as_json(self) -> Mapping[str, object]:
        """All there is."""
        return {
            "kernel": self.kernel,
            "rounds": self.rounds,
            "repeat": self.repeat,
            "cases": [row.as_json() for row in self.rows],
            "programs": [program.as_json() for program in self.programs],
            "missed": self.missed,
        }

    def print(self, console: Console) -> None:
        """Two tables."""
        title = f"{self.rounds} rounds of {self.repeat:,} packets, Linux {self.kernel}"
        table = Table("packet", title=title)
        for heading in ("median ns", "range", "with re-arm", "ratio to R", "target", "met"):
            table.add_column(heading, justify="right")
        for row in self.rows:
            table.add_row(
                row.name,
                f"{statistics.median(row.ns):.0f}",
                f"{min(row.ns):.0f}-{max(row.ns):.0f}",
                f"{statistics.median(row.raw):.0f}",
                f"{row.ratio:.1f}",
                "" if row.target is None else f"{row.target:g}",
                {None: "", True: "yes", False: "NO"}[row.met],
            )
        console.print(table)
        sizes = Table("program", title="loaded programs")
        for heading in ("verified", "instructions", "machine code, bytes"):
            sizes.add_column(heading, justify="right")
        for size in self.programs:
            verified = "-" if size.verified is None else f"{size.verified:,}"
            sizes.add_row(size.name, verified, f"{size.xlated // 8:,}", f"{size.jited:,}")
        console.print(sizes)
