"""Options and profiles for all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

# Machines are shared: no test may fail because it was slow.
settings.register_profile("default", deadline=None, print_blob=True)
settings.register_profile(
    "fuzz", deadline=None, print_blob=True, max_examples=20_000, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all-scenarios", action="store_true", help="run every variant of the lab's scenarios")


LOWEST_PRIORITY, PRIORITY = 19, os.getpriority(os.PRIO_PROCESS, 0)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What changes the machine runs one after the other, by one of the workers if there are several."""
    for item in items:
        if item.get_closest_marker("root"):
            item.add_marker(pytest.mark.xdist_group("machine"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Mere computing makes room for what runs beside it: packets, clocks, a virtual machine."""
    aside = "PYTEST_XDIST_WORKER" in os.environ and not item.get_closest_marker("root")
    if os.geteuid() == 0:  # nobody else may take it back
        os.setpriority(os.PRIO_PROCESS, 0, LOWEST_PRIORITY if aside else PRIORITY)
    return (yield)
