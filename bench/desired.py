"""What a decision costs: `python -m bench.desired [--json] [--tunnels N ...]`.

N tunnels to N peers with a subnet each, as a concentrator has them. Medians over the rounds of the decision itself, of
planning everything from nothing, and of planning when all is in place. Needs no root and touches nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from ipaddress import IPv4Address, IPv4Network

from rich.console import Console
from rich.table import Table

from ipsec_gw.desired import EngineOffer, Settings, desired
from ipsec_gw.model.algorithms import ALGORITHMS
from ipsec_gw.model.ids import EngineName, SaKey
from ipsec_gw.model.secret import Secret
from ipsec_gw.model.snapshot import (
    AeadKey,
    Lifetime,
    Mode,
    PolicyDirection,
    Replay,
    ResolvedHop,
    Snapshot,
    Template,
    XfrmPolicy,
    XfrmSa,
)
from ipsec_gw.reconcile.plan import plan

ROUNDS = 5
SIZES = (100, 1_000, 10_000)
HERE, GATEWAY = IPv4Network("192.168.0.0/16"), IPv4Address("10.0.0.1")
OFFER = EngineOffer(EngineName.VPP, frozenset(ALGORITHMS), esn=True, udp_encap=False, max_replay_window=4096)
SETTINGS = Settings(frozenset({"wan0"}))


@dataclass(frozen=True, slots=True)
class Row:
    """Medians in seconds for a number of tunnels, and how many objects were decided on."""

    tunnels: int
    objects: int
    decide: float
    plan_all: float
    plan_none: float


def world(tunnels: int) -> Snapshot:
    """What the kernel shows of so many established tunnels."""
    sas: list[XfrmSa] = []
    policies: list[XfrmPolicy] = []
    hops: dict[IPv4Address, ResolvedHop] = {}
    for number in range(tunnels):
        peer = IPv4Address("10.16.0.0") + number
        there = IPv4Network((int(IPv4Address("172.16.0.0")) + number * 16, 28))
        inbound, outbound = 0x10000000 + number, 0x20000000 + number
        sas += [_sa(number, GATEWAY, inbound, peer), _sa(number, peer, outbound, GATEWAY)]
        out = Template(GATEWAY, peer, outbound, 50, number + 1, Mode.TUNNEL)
        back = Template(peer, GATEWAY, 0, 50, number + 1, Mode.TUNNEL)
        policies.append(XfrmPolicy(PolicyDirection.OUT, HERE, there, 375423, True, (out,)))
        policies += [
            XfrmPolicy(direction, there, HERE, 375423, True, (back,))
            for direction in (PolicyDirection.IN, PolicyDirection.FWD)
        ]
        hops[peer] = ResolvedHop("wan0", IPv4Address("10.0.0.254"), "02:00:00:00:00:fe", 1500)
    return Snapshot(tuple(sas), tuple(policies), {}, frozenset({GATEWAY}), dict(hops), {})


def _sa(number: int, destination: IPv4Address, spi: int, source: IPv4Address) -> XfrmSa:
    return XfrmSa(
        key=SaKey(destination, spi),
        source=source,
        protocol=50,
        mode=Mode.TUNNEL,
        reqid=number + 1,
        aead=AeadKey("rfc4106(gcm(aes))", Secret(spi.to_bytes(20, "big")), 128),
        algorithm="rfc4106(gcm(aes)) icv 128",
        replay=Replay(oseq=0, seq=0, window=32, esn=False, extended=False),
        lifetime=Lifetime(0, 0, 1000, 0),
    )


def measure(tunnels: int, rounds: int) -> Row:
    """One size."""
    look = world(tunnels)
    objects = desired(OFFER, SETTINGS, look).objects
    return Row(
        tunnels,
        len(objects),
        _median(lambda: desired(OFFER, SETTINGS, look), rounds),
        _median(lambda: plan(objects, {}), rounds),
        _median(lambda: plan(objects, objects), rounds),
    )


def _median(work: Callable[[], object], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--tunnels", type=int, nargs="+", default=SIZES)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    rows = [measure(tunnels, options.rounds) for tunnels in options.tunnels]
    if options.json:
        json.dump([asdict(row) for row in rows], sys.stdout, indent=2)
        return
    table = Table("tunnels", "objects", "decide", "plan all", "plan nothing", title="seconds, medians")
    for row in rows:
        table.add_row(
            f"{row.tunnels:,}", f"{row.objects:,}", *(f"{x:.3f}" for x in (row.decide, row.plan_all, row.plan_none))
        )
    Console().print(table)


if __name__ == "__main__":
    main()
