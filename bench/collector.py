"""What a sweep of the session table costs: `python -m bench.collector [--sessions N] [--rounds N] [--json]` (root).

A private map that vanishes with the process, no datapath, the time made up. Cases: nothing is over; every forward
direction is idle and only the replies keep the sessions (all ids have to be joined); some sessions end. Beside them the
bare BPF_MAP_LOOKUP_BATCH of the same map, which is the kernel's part of every sweep. CPU seconds, medians over the
rounds, the cases in turn; they belong to this machine alone, quote ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ipsec_gw.firewall.ageing import SECOND
from ipsec_gw.firewall.collector import Collector
from ipsec_gw.model.firewall import Sessions
from xdp_steer import libbpf
from xdp_steer.flow_layout import SESSIONS, SessionFlag, State
from xdp_steer.sessions import KEY, ROW, SessionTable

START = 1_000_000 * SECOND
TIMEOUT = 1800
ENDING = 10_000
"""Sessions that end in a sweep of the third case."""
LAN, WAN = 1, 2
_V4_MAPPED = np.frombuffer(b"\0\0\xff\xff", np.uint32)[0]


def pairs(count: int, seed: int) -> tuple[NDArray[np.void], NDArray[np.void]]:
    """Keys and rows of TCP sessions from 10/8 to one server, forward entries first."""
    dice = np.random.default_rng(seed)
    keys, rows = np.zeros(2 * count, KEY), np.zeros(2 * count, ROW)
    numbers = np.arange(count, dtype=np.uint32)
    client = np.zeros((count, 4), np.uint32)
    client[:, 2], client[:, 3] = _V4_MAPPED, (numbers + 0x0A000000).astype(">u4").view(np.uint32)
    server = np.broadcast_to(np.array([0, 0, _V4_MAPPED, 0x500200C0], np.uint32), (count, 4))
    for half, source, target, zone, other in (
        (slice(0, count), client, server, LAN, WAN),
        (slice(count, None), server, client, WAN, LAN),
    ):
        key, row = keys[half], rows[half]
        key["saddr"]["addr"], key["daddr"]["addr"] = source, target
        key["sport"] = key["dport"] = 443
        key["protocol"], key["zone"] = 6, zone
        row["saddr"]["addr"], row["daddr"]["addr"] = source, target
        row["sport"] = row["dport"] = 443
        row["out_zone"], row["state"], row["timeout"] = other, State.ESTABLISHED, TIMEOUT
        row["id"], row["created_ns"] = numbers + 1, START
        row["last_seen_ns"] = START + dice.integers(0, 60 * SECOND, count)
    rows["flags"][count:] = SessionFlag.REVERSE
    return keys, rows


def cpu(work: Callable[[], object]) -> float:
    """CPU seconds of this process, in user space and in the kernel."""
    before = time.process_time()
    work()
    return time.process_time() - before


def measure(count: int, rounds: int, seed: int) -> dict[str, list[float]]:
    """CPU seconds of every case, a figure for each round."""
    entries = libbpf.MAP_HASH, "sessions_bench", KEY.itemsize, ROW.itemsize, 2 * count
    fd = libbpf.map_create(*entries, flags=SESSIONS.flags)
    try:
        return _measure(SessionTable(fd), count, rounds, seed)
    finally:
        os.close(fd)


def _measure(table: SessionTable, count: int, rounds: int, seed: int) -> dict[str, list[float]]:
    keys, rows = pairs(count, seed)
    table.fill(keys, rows)
    ended: list[int] = []
    collector = Collector(table, Sessions(maximum=2 * count), lambda closes: ended.append(len(closes)))
    some = np.r_[0 : min(ENDING, count), count : count + min(ENDING, count)]
    over = rows[some].copy()
    over["last_seen_ns"] = START - 3600 * SECOND
    one_way = rows[:count].copy()
    one_way["last_seen_ns"] = START - 3600 * SECOND
    figures: dict[str, list[float]] = {}

    def record(name: str, seconds: float, expected: int) -> None:
        if sum(ended) != expected:
            raise RuntimeError(f"{name}: {sum(ended)} sessions ended, not {expected} - seed {seed}")
        ended.clear()
        figures.setdefault(name, []).append(seconds)

    def sweep() -> None:
        collector.sweep(START + 60 * SECOND)

    for _ in track(range(rounds), "measuring", console=Console(stderr=True)):
        record("kernel alone", cpu(lambda: [len(batch.keys) for batch in table.batches()]), 0)
        record("nothing is over", cpu(sweep), 0)
        table.fill(keys[:count], one_way)
        record("one direction idle", cpu(sweep), 0)
        table.fill(keys[:count], rows[:count])
        table.fill(keys[some], over)
        record(f"{len(some) // 2} end", cpu(sweep), len(some) // 2)
        table.fill(keys[some], rows[some])
    return figures


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    try:
        figures = measure(given.sessions, given.rounds, given.seed)
    except OSError as error:
        sys.exit(f"bench: a map of {2 * given.sessions} entries: {error.strerror} - run it as root, or with fewer")
    base = statistics.median(figures["kernel alone"])
    if given.json:
        medians = {name: statistics.median(values) for name, values in figures.items()}
        cases = {
            name: {"cpuSeconds": figures[name], "median": mid, "ratio": mid / base} for name, mid in medians.items()
        }
        sys.stdout.write(json.dumps({"sessions": given.sessions, "seed": given.seed, "cases": cases}) + "\n")
        return
    table = Table("sweep", "median CPU s", "range", "ratio to the kernel alone", title=f"{given.sessions:,} sessions")
    for name, values in figures.items():
        middle = statistics.median(values)
        table.add_row(name, f"{middle:.2f}", f"{min(values):.2f}-{max(values):.2f}", f"{middle / base:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
