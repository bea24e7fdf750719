"""The firewall's BPF programs against the reference model, on random rulesets and packet sequences.

``SEED=`` and ``N=`` choose the sequences, their seeds are SEED to SEED + N - 1. A difference names the one that replays
it: ``SEED=that N=1``.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pprint import pformat

import pytest
from scapy.layers import inet, inet6  # noqa: F401 - Ether dissects what is imported
from scapy.layers.l2 import Ether
from scapy.utils import hexdump

from tests.differential import world
from tests.differential.compare import PER_CONFIGURATION, Difference, Setting, run_sequence, set_up
from tests.differential.datapath import Datapath, pins_of_this_run
from tests.reference.network import make_fib
from tests.reference.traffic import Send, Step
from tests.support.netns import namespace
from xdp_steer.gateway import Steering
from xdp_steer.reasons import Reason
from xdp_steer.screen_layout import Screen

SEED = int(os.environ.get("SEED", "1"))
COUNT = int(os.environ.get("N", "20000"))
ENOUGH = 5000
"""Sequences that should come by every reason."""
SHARE = 10_000
"""Sequences of one process at a time, a few minutes."""
UPTIME = 400
"""Seconds since boot that ageing needs: entries cannot be older than the machine."""


@contextmanager
def opened() -> Iterator[tuple[Datapath, dict[str, int]]]:
    """A datapath in a namespace of its own, and the indices of its interfaces."""
    pins = pins_of_this_run()
    with namespace(f"diff{os.getpid()}"):
        indexes = world.build()
        try:
            datapath = Datapath(pins, indexes)
            yield datapath, indexes
            datapath.close()
        finally:
            Steering.remove_leftovers(pins)  # of programs that do not load


def compared(seeds: range) -> tuple[Counter[Reason], str]:
    """What was seen in these sequences, and the first difference, if there is one."""
    setting: Setting | None = None
    seen: Counter[Reason] = Counter()
    with opened() as (datapath, indexes):
        fib = make_fib(indexes)
        for seed in seeds:
            if setting is None or seed % PER_CONFIGURATION == 0:
                setting = set_up(datapath, indexes, seed)
            reasons, difference = run_sequence(datapath, setting, fib, indexes, seed)
            seen += reasons
            if difference is not None:
                return seen, explain(seed, setting, difference)
    return seen, ""


def shares(processes: int) -> list[range]:
    """All sequences, those that have a configuration in common together; a difference is told after one share."""
    end, size = SEED + COUNT, min(-(-COUNT // processes), SHARE)
    size += -size % PER_CONFIGURATION
    return [range(first, min(first + size, end)) for first in range(SEED, end, size)]


@pytest.mark.timeout(900 + COUNT // 20)  # seconds; a million takes hours
def test_datapath_does_what_the_reference_does() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    if time.monotonic() < UPTIME:
        pytest.skip(f"the machine is up for less than {UPTIME} s: sessions cannot be made that old")
    print(f"seeds {SEED} to {SEED + COUNT - 1}")
    processes = os.cpu_count() or 1
    seen: Counter[Reason] = Counter()
    with ProcessPoolExecutor(processes) as workers:
        for reasons, different in workers.map(compared, shares(processes)):
            if different:
                workers.shutdown(wait=False, cancel_futures=True)
                pytest.fail(different, pytrace=False)
            seen += reasons
    print(f"{seen.total()} packets: " + ", ".join(f"{reason.label} {count}" for reason, count in seen.most_common()))
    if COUNT >= ENOUGH:
        missed = {reason for reason in Reason if Reason.FORWARDED <= reason <= Reason.ZONE_CHANGED} - seen.keys()
        missed |= {reason for reason in Reason if "NPTV6" in reason.name or "NAT64" in reason.name} - seen.keys()
        missed |= {Reason(Reason.SCREEN_LAND + screen) for screen in Screen if screen < Screen.SYN_COOKIE} - seen.keys()
        missed |= {reason for reason in Reason if reason >= Reason.FILTER_DISCARD} - seen.keys()
        missed |= {Reason.EGRESS_FILTER, Reason.EGRESS_POLICED} - seen.keys()
        missed |= {Reason.CLEAR_OF_PROTECTED, Reason.TUNNEL_NAT} - seen.keys()
        missed |= {reason for reason in Reason if reason.name.startswith("TRANSLAT")} - seen.keys()
        assert not missed, "the generator no longer reaches these"


def explain(seed: int, setting: Setting, difference: Difference) -> str:
    """All that it takes to think about a difference."""
    packets = "\n".join(f"--- step {number}\n{show(step)}" for number, step in enumerate(difference.steps))
    ports = "\n".join(str(port) for port in setting.ports)
    return (
        f"{pformat(setting.configuration, width=118)}\n{setting.ids}\n{ports}\n{packets}\n"
        f"--- step {difference.step} differs; replay with SEED={seed} N=1\n{difference.what}"
    )


def show(step: Step) -> str:
    """A step for people."""
    if not isinstance(step, Send):
        return str(step)
    packet = Ether(step.frame)
    return f"{step.note}, in by {step.ingress}\n{hexdump(step.frame, dump=True)}\n{packet.show(dump=True)}"
