"""Two hundred rekeys under steady traffic for each engine, and not a packet lost."""

import pytest

from tests.scenarios.lab_command import check_names, kept, need, play, skip_unless_all

pytestmark = [pytest.mark.scenario, pytest.mark.root, pytest.mark.timeout(3600)]

WANTED = (
    "several generations of SAs lived side by side",
    "no packet 10.1.0.10 -> 10.2.0.10 is lost or doubled by the rekeys",
    "no packet 10.2.0.10 -> 10.1.0.10 is lost or doubled by the rekeys",
    "nothing of the protected networks crossed the WAN in clear",
    "the engine holds no SA after termination",
    "the steering and guard maps are empty after termination",
)


@pytest.mark.parametrize("engine", ["soft", pytest.param("vpp", marks=pytest.mark.vpp)])
def test_nothing_is_lost_by_two_hundred_rekeys(engine, request):
    skip_unless_all(request)
    need(engine)
    report = play("rekey-storm", "--engine", engine, "--rounds", "200", *kept(request, f"rekey-storm-{engine}"))
    assert [name for name in WANTED if name not in check_names(report)] == []
