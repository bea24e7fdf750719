"""The kernel's lists of CPUs. Pure."""

from __future__ import annotations


def cpu_list(text: str) -> frozenset[int]:
    """The kernel's list format: ``0-3,8``. Parts that are none (``(null)``) are passed over."""
    numbers: set[int] = set()
    for part in text.replace("\n", ",").split(","):
        first, _, last = part.strip().partition("-")
        if first.isdecimal() and (last or first).isdecimal():
            numbers.update(range(int(first), int(last or first) + 1))
    return frozenset(numbers)


def show_cpus(numbers: frozenset[int] | tuple[int, ...]) -> str:
    """The inverse of :func:`cpu_list`: ``0-3,8``."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
