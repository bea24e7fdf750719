"""From every disturbance the control plane comes back to what is computed from scratch (DESIGN.md, section 3).

Random orders of events run through the real reconciler, executor and drivers. Every sequence has a seed of its own:
`SEED=... N=1` replays the one that a failure names, `N=` says how many run.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from random import Random, SystemRandom

import pytest
import structlog

from tests.property.convergence_world import TALLIED, World

COUNT = int(os.environ.get("N") or 10_000)
_SHOWN = 400
_ENOUGH = 500
"""So many sequences have everything in them."""
_CHUNK = 100
"""Sequences of one process at a time."""


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.configure(**before)


def run(seed: int, tally: Counter[str]) -> int:
    """One sequence; how many passes it took to converge. ``tally`` counts what happened in it."""
    world = World(seed)
    try:
        world.disturb(Random(seed).choice([10, 30, 60]))
        passes = world.settle()
    except Exception as error:
        told = "\n".join(world.log[-_SHOWN:])
        raise AssertionError(f"{error}\nreplay: SEED={seed} N=1\n{told}") from error
    tally.update(world.tally)
    return passes


def run_all(seeds: range) -> tuple[Counter[int], Counter[str]]:
    """So many sequences: how many took so many passes, and what happened in them."""
    tally: Counter[str] = Counter()
    return Counter(run(seed, tally) for seed in seeds), tally


@pytest.mark.timeout(900 + COUNT // 5)  # seconds, for a busy machine
def test_every_disturbance_ends_in_the_state_computed_from_scratch() -> None:
    others = SystemRandom().randrange(1 << 32) if os.environ.get("HYPOTHESIS_PROFILE") == "fuzz" else 1
    first = int(os.environ.get("SEED") or others)
    print(f"\nseeds {first} to {first + COUNT - 1}")
    chunks = [range(start, min(start + _CHUNK, first + COUNT)) for start in range(first, first + COUNT, _CHUNK)]
    if len(chunks) == 1:
        told = [run_all(chunks[0])]
    else:
        with ProcessPoolExecutor(os.cpu_count()) as workers:
            told = list(workers.map(run_all, chunks))
    passes, tally = (sum(counters, Counter()) for counters in zip(*told, strict=True))
    print(f"passes until converged: {dict(sorted(passes.items()))}")
    print(f"in all of them: {dict(tally)}")
    if COUNT >= _ENOUGH:
        assert not [what for what in TALLIED if not tally[what]], "the sequences have become harmless"
