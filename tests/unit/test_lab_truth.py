"""When charon's counters are true."""

import pytest

from ipsec_gw.lab.scenarios.truth import _true

IN, OUT = 1, 2


@pytest.mark.parametrize(
    ("said", "unknown", "right"),
    [
        ({IN: 10, OUT: 20}, 0, True),
        ({IN: 9, OUT: 20}, 0, False),
        ({IN: 9, OUT: 20}, 1, True),
        ({IN: 8, OUT: 20}, 1, False),
        ({IN: 11, OUT: 20}, 5, False),
        ({IN: 10, OUT: 19}, 5, False),
        ({IN: 10}, 5, False),
    ],
)
def test_only_what_came_too_early_may_be_missing_and_only_inbound(said, unknown, right):
    assert _true(said, {IN: 10, OUT: 20}, {IN}, unknown) is right
