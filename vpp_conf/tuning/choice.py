"""Choose an engine for each algorithm from what was measured. Pure.

All sizes weigh the same, and both directions, as factors: the geometric mean of an engine's clocks against those of
VPP's own choice. So the large packets, where the difference is greatest, decide, unless an engine loses more with the
small ones than it wins there. An engine that is hardly better than VPP's own choice does not displace it: that much is
noise.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from vpp_conf.tuning.values import (
    SYNCHRONOUS,
    Choice,
    Measurement,
    Subject,
    Tuning,
    Work,
    check_grid,
    engines_of,
)

MARGIN = 0.05
"""An engine has to be better by more than this: medians on a busy machine differ by as much without any reason."""


def choose(measurements: Sequence[Measurement]) -> tuple[Choice, ...]:
    """One choice for each algorithm. Raises ValueError if the measurements are not a whole grid."""
    check_grid(measurements)
    algorithms = dict.fromkeys(one.algorithm for one in measurements)
    return tuple(Choice(algorithm, _best(measurements, algorithm)) for algorithm in algorithms)


def _best(measurements: Sequence[Measurement], algorithm: str) -> str:
    usual, *others = engines_of(measurements, algorithm)
    scores = {engine: score(measurements, algorithm, engine) for engine in others}
    best = min(others, key=lambda engine: scores[engine], default=usual)
    return best if others and scores[best] < 1 - MARGIN else usual


def score(measurements: Sequence[Measurement], algorithm: str, engine: str) -> float:
    """Clocks against those of VPP's own choice, as the geometric mean over sizes and both directions: less is better, 1
    is the same.
    """
    cells = sorted(
        {(one.size, one.work) for one in measurements if one.algorithm == algorithm and one.work in SYNCHRONOUS}
    )
    return statistics.geometric_mean(ratio(measurements, algorithm, engine, size, work) for size, work in cells)


def ratio(
    measurements: Sequence[Measurement], algorithm: str, engine: str, size: int, work: Work = Work.ENCRYPT
) -> float:
    """Clocks against those of VPP's own choice in the same round; the median over rounds.

    Both figures of a round were taken next to each other, so what else the machine did is in both.
    """
    usual = engines_of(measurements, algorithm)[0]
    mine, theirs = (_find(measurements, algorithm, one, size, work).clocks for one in (engine, usual))
    return statistics.median(a / b for a, b in zip(mine, theirs, strict=True))


def async_ratio(measurements: Sequence[Measurement], algorithm: str, engine: str) -> float | None:
    """Clocks by the asynchronous way against those by the synchronous one, both directions together, as the geometric
    mean over sizes; None if one of them was not measured.
    """
    works = {one.work for one in measurements if (one.algorithm, one.engine) == (algorithm, engine)}
    if works != set(Work):
        return None
    sizes = sorted({one.size for one in measurements if one.algorithm == algorithm})
    return statistics.geometric_mean(_async_ratio(measurements, algorithm, engine, size) for size in sizes)


def _async_ratio(measurements: Sequence[Measurement], algorithm: str, engine: str, size: int) -> float:
    encrypt, decrypt, both = (_find(measurements, algorithm, engine, size, work).clocks for work in Work)
    return statistics.median(c / (a + b) for a, b, c in zip(encrypt, decrypt, both, strict=True))


def _find(measurements: Sequence[Measurement], algorithm: str, engine: str, size: int, work: Work) -> Measurement:
    wanted = (algorithm, engine, size, work)
    return next(one for one in measurements if (one.algorithm, one.engine, one.size, one.work) == wanted)


def reason(tuning: Tuning, choice: Choice) -> str:
    """``aes-128-gcm by ipsecmb: 0.54 of native's clocks at 1400 bytes, 1.07 at 64``.

    For VPP's own choice the figures are those of the nearest rival, and say why it is not chosen. The figures are of
    encryption; if decryption was measured, those of the largest packets follow.
    """
    usual, *others = engines_of(tuning.measurements, choice.algorithm)
    if not others:
        return f"{choice.algorithm} by {choice.engine}: no other engine has it"
    kept = choice.engine == usual
    nearest = min(others, key=lambda engine: score(tuning.measurements, choice.algorithm, engine))
    shown = nearest if kept else choice.engine
    large, *smaller = sorted({one.size for one in tuning.measurements}, reverse=True)
    works = sorted({one.work for one in tuning.measurements} - {Work.ASYNC}, reverse=True)
    figures = {size: ratio(tuning.measurements, choice.algorithm, shown, size, works[0]) for size in (large, *smaller)}
    whose = f"{shown} takes {figures[large]:.2f} of its clocks" if kept else f"{figures[large]:.2f} of {usual}'s clocks"
    return ", ".join(
        [f"{choice.algorithm} by {choice.engine}: {whose} at {large} bytes"]
        + [f"{figures[size]:.2f} at {size}" for size in smaller]
        + [
            f"{ratio(tuning.measurements, choice.algorithm, shown, large, work):.2f} to {work} {large}"
            for work in works[1:]
        ]
    )


def misfit(measured: Subject, now: Subject) -> str | None:
    """Why figures do not hold for a machine as it is now, None if they do."""
    pairs = (
        ("the CPU is", measured.cpu, now.cpu),
        ("VPP is", measured.vpp, now.vpp),
        ("the crypto engines are", " ".join(measured.engines), " ".join(now.engines)),
    )
    changed = [f"{what} {new or 'unknown'}, was {old or 'unknown'}" for what, old, new in pairs if old != new]
    return "; ".join(changed) or None
