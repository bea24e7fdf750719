"""What was measured, on what, and what was chosen. Pure.

Everything that gets here from a file ends up in commands for VPP: only names that are known are taken.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from vpp_conf.startup.machine import Machine
from vpp_conf.startup.syntax import AEADS, CBCS, ENGINES


@dataclass(frozen=True, slots=True)
class Subject:
    """What the figures hold for. ``vpp`` is its version without who built it, ``engines`` are those installed."""

    cpu: str
    vpp: str
    engines: tuple[str, ...]


class Work(StrEnum):
    """What took the clocks. ``ASYNC`` is encrypting and decrypting together, by VPP's scheduler for software."""

    ENCRYPT = "encrypt"
    DECRYPT = "decrypt"
    ASYNC = "async"


SYNCHRONOUS = (Work.ENCRYPT, Work.DECRYPT)

MOST_CLOCKS = 1e9
"""For one packet: a third of a second. What is beyond is no figure, and would overflow in ratios."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """CPU clocks for one packet on the whole ESP path, in or out or both, one figure for each round.

    ``algorithm`` is VPP's plain name, ``size`` the inner IP packet in bytes. Raises ValueError for a name that is not
    known, no rounds, or a figure that is not from 1 to :data:`MOST_CLOCKS`.
    """

    algorithm: str
    engine: str
    size: int
    clocks: tuple[float, ...]
    work: Work = Work.ENCRYPT

    def __post_init__(self) -> None:
        if self.algorithm not in (*AEADS, *CBCS):
            raise ValueError(f"no algorithm is named {self.algorithm!r}")
        if self.engine not in ENGINES:
            raise ValueError(f"no crypto engine is named {self.engine!r}")
        if self.size <= 0 or not self.clocks or not all(1 <= one <= MOST_CLOCKS for one in self.clocks):
            raise ValueError(
                f"{self.algorithm} by {self.engine}: clocks are from 1 to {MOST_CLOCKS:.0f}, sizes positive"
            )

    @property
    def median(self) -> float:
        """Clocks for one packet."""
        return statistics.median(self.clocks)


@dataclass(frozen=True, slots=True)
class Choice:
    """The engine that an algorithm is given."""

    algorithm: str
    engine: str


@dataclass(frozen=True, slots=True)
class Tuning:
    """A run. ``clock_hz`` is what the clocks are of, ``packets`` how many each figure is made from.

    Raises ValueError if the figures of an algorithm do not make a whole grid of engines, sizes and rounds, or the
    choices are not one measured engine for each algorithm.
    """

    subject: Subject
    measured_at: datetime
    clock_hz: float
    packets: int
    measurements: tuple[Measurement, ...]
    choices: tuple[Choice, ...]

    def __post_init__(self) -> None:
        if not (math.isfinite(self.clock_hz) and self.clock_hz > 0 and self.packets > 0):
            raise ValueError("the clock's frequency and the number of packets have to be positive")
        check_grid(self.measurements)
        if sorted(one.algorithm for one in self.choices) != sorted({one.algorithm for one in self.measurements}):
            raise ValueError("each algorithm that was measured needs one choice")
        for one in self.choices:
            if one.engine not in engines_of(self.measurements, one.algorithm):
                raise ValueError(f"{one.engine} is chosen for {one.algorithm} but was not measured")
        foreign = {one.engine for one in self.measurements} - set(self.subject.engines)
        if foreign:
            raise ValueError(f"{', '.join(sorted(foreign))} was measured but is not among the engines")

    @property
    def rounds(self) -> int:
        """The same for all figures."""
        return len(self.measurements[0].clocks)

    def gigabits(self, measurement: Measurement) -> float:
        """Gb/s of inner packets that one core does at the median."""
        return measurement.size * 8 * self.clock_hz / measurement.median / 1e9


def check_grid(measurements: Iterable[Measurement]) -> None:
    """Raises ValueError if there is nothing, or an engine misses a size, a work or a round that another one has."""
    rows = tuple(measurements)
    cells = [(one.algorithm, one.engine, one.size, one.work) for one in rows]
    each = {(one.size, one.work) for one in rows}
    by_engine = {(one.algorithm, one.engine) for one in rows}
    if not rows:
        raise ValueError("nothing was measured")
    if len(set(cells)) != len(cells) or len(cells) != len(by_engine) * len(each):
        raise ValueError("each engine needs one measurement for each size and work")
    if {work for _, work in each} == {Work.ASYNC}:
        raise ValueError("nothing but async was measured")
    if len({len(one.clocks) for one in rows}) != 1:
        raise ValueError("all measurements need the same number of rounds")


def engines_of(measurements: Iterable[Measurement], algorithm: str) -> tuple[str, ...]:
    """The engines measured with an algorithm, in VPP's own order: without a choice the first one has it."""
    measured = {one.engine for one in measurements if one.algorithm == algorithm}
    return tuple(engine for engine in ENGINES if engine in measured)


def subject_of(machine: Machine) -> Subject:
    """What figures have to be of, to hold for this machine."""
    engines = tuple(engine for engine in ENGINES if engine in machine.vpp.engines)
    return Subject(machine.model, machine.vpp.version, engines)
