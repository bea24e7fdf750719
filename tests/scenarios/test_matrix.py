"""The matrix: with every configuration each packet fares as with the kernel alone, and it is carried by who should."""

import os

import pytest

from ipsec_gw.lab.matrix.catalogue import catalogue, chosen
from tests.scenarios.lab_command import check_names, kept, need, play, skip_unless_all

pytestmark = [pytest.mark.scenario, pytest.mark.root]

SAMPLE, SEED = 6, 1
ENGINES = pytest.mark.parametrize("engine", ["soft", pytest.param("vpp", marks=pytest.mark.vpp)])


def every_check(names, report):
    """Nothing was left out."""
    checked = check_names(report)
    for name in names:
        assert sum(one.startswith(f"{name}: ") for one in checked) == 2, name


@ENGINES
@pytest.mark.timeout(1500)
def test_a_sample_fares_as_with_the_kernel_alone(engine):
    need(engine)
    seed = int(os.environ.get("SEED") or SEED)
    print(f"\nseed {seed}")
    report = play("matrix", "--engine", engine, "--cases", str(SAMPLE), "--seed", str(seed))
    every_check([case.name for case in chosen(str(SAMPLE), seed)], report)


@ENGINES
@pytest.mark.timeout(6000)
def test_all_fare_as_with_the_kernel_alone(engine, request):
    skip_unless_all(request)
    need(engine)
    report = play("matrix", "--engine", engine, *kept(request, f"matrix-{engine}"))
    every_check([case.name for case in catalogue()], report)
