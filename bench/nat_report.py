"""Results of NAT's benchmark as values; a table and JSON of the same values."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Window:
    """Frames that were sent in some ``seconds``, and those of them that came out translated."""

    seconds: float
    sent: int
    delivered: int

    @property
    def rate(self) -> float:
        """Delivered in a second."""
        return self.delivered / self.seconds

    @property
    def lost(self) -> float:
        """The part that did not come out."""
        return 1 - self.delivered / self.sent

    def as_json(self) -> Mapping[str, float]:
        """All there is."""
        return {"seconds": self.seconds, "sent": self.sent, "delivered": self.delivered, "perSecond": self.rate}


@dataclass(frozen=True, slots=True)
class Round:
    """One way of translation: packets of flows that are known, and packets that each begin a flow."""

    packets: Window
    flows: Window


@dataclass(frozen=True, slots=True)
class Case:
    """A way of translation, with the bytes that it has for a session."""

    name: str
    rounds: tuple[Round, ...]
    session_bytes: float

    def ratios(self, unit: Case, what: str) -> list[float]:
        """Of its rates ("packets" or "flows") to those of another way in the same rounds."""
        pairs = zip(self.rounds, unit.rounds, strict=True)
        return [getattr(own, what).rate / getattr(other, what).rate for own, other in pairs]

    def as_json(self, unit: Case) -> dict[str, object]:
        """All there is."""
        told: dict[str, object] = {"case": self.name, "bytesPerSession": self.session_bytes}
        for what in ("packets", "flows"):
            windows: list[Window] = [getattr(one, what) for one in self.rounds]
            ratios = self.ratios(unit, what)
            told[what] = {
                "perSecond": statistics.median(window.rate for window in windows),
                "lost": statistics.median(window.lost for window in windows),
                "ratio": statistics.median(ratios),
                "ratios": ratios,
                "windows": [window.as_json() for window in windows],
            }
        return told


@dataclass(frozen=True, slots=True)
class Report:
    """The first case is the unit of the ratios; ``load`` is the machine's average of the minute before."""

    kernel: str
    load: float
    cases: tuple[Case, ...]

    def as_json(self) -> Mapping[str, object]:
        """All there is."""
        unit = self.cases[0]
        return {"kernel": self.kernel, "load": self.load, "cases": [case.as_json(unit) for case in self.cases]}

    def print(self, console: Console) -> None:
        """One table."""
        unit = self.cases[0]
        title = f"{len(unit.rounds)} rounds, Linux {self.kernel}, load before {self.load:.2f}"
        table = Table("NAT by", title=title)
        for what in ("packets/s", "ratio", "range", "lost", "new flows/s", "ratio", "range", "lost", "bytes/session"):
            table.add_column(what, justify="right")
        for case in self.cases:
            cells = []
            for what in ("packets", "flows"):
                ratios, windows = case.ratios(unit, what), [getattr(one, what) for one in case.rounds]
                cells += [f"{statistics.median(window.rate for window in windows):,.0f}"]
                cells += [f"{statistics.median(ratios):.2f}", f"{min(ratios):.2f}-{max(ratios):.2f}"]
                cells += [f"{statistics.median(window.lost for window in windows):.0%}"]
            table.add_row(case.name, *cells, f"{case.session_bytes:,.0f}")
        console.print(table)
