"""Read what VPP's CLI prints about nodes, streams of its packet generator, and its clock. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

NODE_ROW = re.compile(
    r"^(?P<name>\S+)\s+(?:active|polling|disabled|interrupt wa\S*)\s+(?P<calls>\d+)\s+(?P<packets>\d+)\s+\d+\s+"
    r"(?P<clocks>\d\S*)\s+\d\S*\s*$",
    re.MULTILINE,
)
STREAM_ROW = re.compile(r"^(?P<name>\S+)\s+(?P<enabled>Yes|No)\s+(?P<count>\d+)\s", re.MULTILINE)
CLOCK = re.compile(r"clocks/sec\s+(?P<hz>\d+(?:\.\d+)?)")


@dataclass(frozen=True, slots=True)
class NodeRun:
    """``packets`` that a node had since the counters were cleared, and CPU ``clocks`` for each of them."""

    packets: int
    clocks: float


def parse_runtime(text: str) -> Mapping[str, NodeRun]:
    """The nodes of ``show runtime`` that handle packets. A VPP with workers prints them once for each thread: the last
    one counts here.
    """
    return {row["name"]: NodeRun(int(row["packets"]), float(row["clocks"])) for row in NODE_ROW.finditer(text)}


def streams_running(text: str) -> Mapping[str, bool]:
    """The streams of ``show packet-generator`` and whether they still have packets to send."""
    return {row["name"]: row["enabled"] == "Yes" for row in STREAM_ROW.finditer(text)}


def parse_clock(text: str) -> float | None:
    """Clocks in a second in ``show clock verbose``, None if it does not say."""
    found = CLOCK.search(text)
    return float(found["hz"]) if found else None
