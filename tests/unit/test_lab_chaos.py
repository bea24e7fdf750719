"""What chaos may do, and how it is told."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest

from ipsec_gw.lab.scenarios.chaos import Chaos, Fate, longest_run
from ipsec_gw.lab.traffic import Tally


@pytest.mark.parametrize(
    ("missing", "longest"),
    [([], 0), ([4], 1), ([0], 1), ([4, 5, 6], 3), ([1, 3, 5], 1), ([1, 2, 7, 8, 9, 20], 3), ([0, 1, 2, 3, 9], 4)],
)
def test_the_longest_run_of_lost_packets(missing: list[int], longest: int) -> None:
    assert longest_run(missing) == longest


def test_a_fate_in_words() -> None:
    fate = Fate("10.1.0.2 -> 10.2.0.2", Tally(500, 480, 20, 1, 0), replayed=1, blocked=0.3, converged=12.25)
    assert str(fate) == (
        "10.1.0.2 -> 10.2.0.2: 500 sent, 20 lost, 1 twice, 0 corrupted, 1 replayed, 0.30 s blocked at most, converged"
        " 12.2 s after the last event"
    )


def names(engine: str) -> set[str]:
    chaos = Chaos(None, SimpleNamespace(engine=engine), random.Random(1))  # type: ignore[arg-type]
    return {event.__name__ for event in chaos.events()}


def test_what_may_happen() -> None:
    always = {"kill_daemon", "run_daemon", "rekey", "fallback", "give_back", "flap_link", "lose_messages"}
    always |= {"delay_charon", "send_again"}
    assert names("soft") == always
    assert names("vpp") == always | {"kill_vpp", "stop_vpp", "delay_vpp", "vpp_up"}
