"""Sets that contain other sets: their order of resolution, and the cycles that have none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from graphlib import CycleError, TopologicalSorter


def resolution_order(members: Mapping[str, Iterable[str]]) -> tuple[list[str], list[tuple[str, ...]]]:
    """Names so that each comes after its members, and the cycles among them, whose names are left out.

    A cycle starts at the name that stands first in ``members`` and ends with the same name again. Members without a
    set of their own are passed over.
    """
    graph = {name: [member for member in inner if member in members] for name, inner in members.items()}
    places = {name: place for place, name in enumerate(members)}
    cycles: list[tuple[str, ...]] = []
    while True:
        try:
            return list(TopologicalSorter(graph).static_order()), cycles
        except CycleError as error:
            found: list[str] = list(reversed(error.args[1][1:]))  # graphlib lists each name before what needs it
        start = found.index(min(found, key=places.__getitem__))
        cycle = found[start:] + found[:start]
        cycles.append((*cycle, cycle[0]))
        graph = {
            name: [member for member in inner if member not in cycle]
            for name, inner in graph.items()
            if name not in cycle
        }
