"""Results of the flood's benchmark as values; a table and JSON of the same values."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

TARGET = 0.8
"""Of its throughput that an established stream must keep."""


@dataclass(frozen=True, slots=True)
class Window:
    """What went on for some ``seconds``: bytes that the stream delivered, segments that it sent again, frames of the
    generator, and packets by the firewall's reasons, those of the stream left out.
    """

    seconds: float
    received: int
    again: int
    sent: int
    verdicts: Mapping[str, int]

    @property
    def bits(self) -> float:
        """The stream's throughput per second."""
        return 8 * self.received / self.seconds

    @property
    def rate(self) -> float:
        """The generator's frames per second."""
        return self.sent / self.seconds

    def as_json(self) -> Mapping[str, float]:
        """What was measured, but the reasons."""
        return {"bitsPerSecond": self.bits, "sentAgain": self.again, "framesPerSecond": self.rate}


@dataclass(frozen=True, slots=True)
class Round:
    """The stream alone, beside a generator whose frames end before the firewall, and in the flood: right after each
    other, in whichever order.
    """

    alone: Window
    beside: Window
    flooded: Window

    @property
    def ratio(self) -> float:
        """Of the throughput in the flood to that of the stream alone."""
        return self.flooded.bits / self.alone.bits

    @property
    def machine(self) -> float:
        """The same of the generator that the firewall does not see: what a busy processor takes from the other one."""
        return self.beside.bits / self.alone.bits

    @property
    def firewall(self) -> float:
        """Of the throughput in the flood to that beside the generator: what the firewall's work takes."""
        return self.flooded.bits / self.beside.bits


@dataclass(frozen=True, slots=True)
class Case:
    """Rounds under one set of screens."""

    name: str
    rounds: tuple[Round, ...]

    @property
    def ratio(self) -> float:
        """Median."""
        return statistics.median(one.ratio for one in self.rounds)

    @property
    def machine(self) -> float:
        """Median."""
        return statistics.median(one.machine for one in self.rounds)

    @property
    def firewall(self) -> float:
        """Median."""
        return statistics.median(one.firewall for one in self.rounds)

    @property
    def met(self) -> bool:
        """Whether the stream keeps what it must, whoever takes it."""
        return self.ratio >= TARGET

    @property
    def rate(self) -> float:
        """Median of the flood's frames per second."""
        return statistics.median(one.flooded.rate for one in self.rounds)

    @property
    def shares(self) -> Mapping[str, float]:
        """Of all frames of the flood those with each reason, the most frequent one first."""
        sent, counted = sum(one.flooded.sent for one in self.rounds), Counter[str]()
        for one in self.rounds:
            counted.update(one.flooded.verdicts)
        return {reason: packets / sent for reason, packets in counted.most_common() if packets}

    def as_json(self) -> dict[str, object]:
        """All there is."""
        return {
            "case": self.name,
            "ratio": self.ratio,
            "ratios": [one.ratio for one in self.rounds],
            "met": self.met,
            "machineRatio": self.machine,
            "machineRatios": [one.machine for one in self.rounds],
            "firewallRatio": self.firewall,
            "firewallRatios": [one.firewall for one in self.rounds],
            "windows": [
                {name: getattr(one, name).as_json() for name in ("alone", "beside", "flooded")} for one in self.rounds
            ],
            "floodPerSecond": self.rate,
            "shares": self.shares,
        }


@dataclass(frozen=True, slots=True)
class Report:
    """``seconds`` are those of a window; ``load`` is the machine's average of the minute before."""

    kernel: str
    seconds: float
    load: float
    cases: tuple[Case, ...]

    def as_json(self) -> Mapping[str, object]:
        """All there is."""
        return {
            "kernel": self.kernel,
            "seconds": self.seconds,
            "load": self.load,
            "target": TARGET,
            "cases": [case.as_json() for case in self.cases],
        }

    def print(self, console: Console) -> None:
        """Two tables."""
        rounds = max(len(case.rounds) for case in self.cases)
        title = f"{rounds} rounds of {self.seconds:g} s, Linux {self.kernel}, load before {self.load:.2f}"
        table = Table("screens", title=title)
        headings = (
            "Gbit/s alone",
            "in the flood",
            "ratio",
            "range",
            f">= {TARGET:g}",
            "machine",
            "firewall",
            "flood, pps",
        )
        for heading in headings:
            table.add_column(heading, justify="right")
        for case in self.cases:
            ratios = [one.ratio for one in case.rounds]
            table.add_row(
                case.name,
                f"{statistics.median(one.alone.bits for one in case.rounds) / 1e9:.2f}",
                f"{statistics.median(one.flooded.bits for one in case.rounds) / 1e9:.2f}",
                f"{case.ratio:.2f}",
                f"{min(ratios):.2f}-{max(ratios):.2f}",
                "yes" if case.met else "NO",
                f"{case.machine:.2f}",
                f"{case.firewall:.2f}",
                f"{case.rate:,.0f}",
            )
        console.print(table)
        counted = Table("screens", "counted as", title="the flood's packets")
        counted.add_column("share", justify="right")
        for case in self.cases:
            for reason, share in case.shares.items():
                counted.add_row(case.name, reason, f"{share:.2%}")
        console.print(counted)
