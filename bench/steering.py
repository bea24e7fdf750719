"""What steering costs per packet: `python -m bench.steering [--json]` (root).

The average of BPF_PROG_TEST_RUN, the cases in turn in one run, medians over the rounds. The baseline is a packet that
takes the shortest way through the pipeline (ARP): quote ratios, absolute figures belong to this machine alone. There is
no dock on the loopback, where test runs happen, so a steered packet ends where its tail call would begin.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from ipaddress import ip_address
from pathlib import Path

import structlog
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scapy.layers.inet import IP, UDP
from scapy.layers.ipsec import ESP
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Raw

from ipsec_gw.errors import IpsecGwError
from ipsec_gw.model.ids import SaKey
from xdp_steer.gateway import Steering
from xdp_steer.prog_run import prog_run

HERE, THERE = "10.0.0.1", "10.0.0.2"
SAS = 1000
ROUNDS = 7
REPEAT = 200_000

BASELINE = "ARP"
_ETH = Ether(src="02:00:00:00:00:02", dst="02:00:00:00:00:01")
CASES = {
    "ARP": _ETH / ARP(),
    "UDP, not ours": _ETH / IP(src=THERE, dst=HERE) / UDP(sport=7, dport=7) / Raw(bytes(64)),
    "IKE": _ETH / IP(src=THERE, dst=HERE) / UDP(sport=500, dport=500) / Raw(bytes(64)),
    "ESP, unknown SPI": _ETH / IP(src=THERE, dst=HERE) / ESP(spi=0xFFFF, seq=1, data=bytes(80)),
    f"ESP, one of {SAS} SAs": _ETH / IP(src=THERE, dst=HERE) / ESP(spi=0x100 + SAS // 2, seq=1, data=bytes(80)),
}


def measure(steering: Steering) -> dict[str, list[int]]:
    """Nanoseconds per packet of every case, a figure for each round."""
    figures: dict[str, list[int]] = {name: [] for name in CASES}
    for _ in track(range(ROUNDS), "measuring", console=Console(stderr=True)):
        for name, packet in CASES.items():
            figures[name].append(prog_run(steering.pipeline_fd, bytes(packet), REPEAT).duration_ns)
    return figures


def main() -> None:
    """Measure, print, leave nothing behind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    as_json = parser.parse_args().json
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))  # JSON alone on standard output
    pins = Path(f"/sys/fs/bpf/ipsec-gw-bench-{os.getpid()}")
    try:
        steering = Steering.open(pins)
    except IpsecGwError as error:
        sys.exit(f"bench: {error}")
    try:
        steering.set_engine(True)
        for number in range(SAS):
            steering.steer(SaKey(ip_address(HERE), 0x100 + number))
        figures = measure(steering)
    finally:
        steering.remove()
    base = statistics.median(figures[BASELINE])
    if as_json:
        ratios = {name: {"ns": ns, "ratio": statistics.median(ns) / base} for name, ns in figures.items()}
        sys.stdout.write(json.dumps(ratios) + "\n")
        return
    table = Table("packet", "median ns", "range", "ratio to baseline")
    for name, values in figures.items():
        middle = statistics.median(values)
        table.add_row(name, f"{middle:.0f}", f"{min(values)}-{max(values)}", f"{middle / base:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
