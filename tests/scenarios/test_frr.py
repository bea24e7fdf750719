"""BGP through the tunnel: what FRR learns goes into it, and neither a rekey nor the engine's death is a flap."""

import pytest

from ipsec_gw.lab import frr
from tests.scenarios.lab_command import check_names, need, play, skip_unless_all

pytestmark = [pytest.mark.scenario, pytest.mark.root, pytest.mark.timeout(3600)]

WHEN = ("after the rekeys", "after the moves", "after the engine's death and return")
WANTED = (
    "gwa has a BGP session",
    "gwb has a BGP session",
    "gwa has its route to 10.2.0.0/24 from BGP",
    "gwa has its route to 10.3.0.0/24 from BGP",
    "gwb has its route to 10.1.0.0/24 from BGP",
    "BGP comes up: XDP gives all inbound ESP to the engine",
    "BGP comes up: the kernel sends no outbound ESP past the guard",
    "10.3.0.0/24 is withdrawn: A has no route",
    "nothing goes into the tunnel for a prefix that is withdrawn",
    "10.3.0.0/24 is announced again: A has its route",
    "the SAs are the same, whatever BGP says",
    "10.3.0.0/24 moves to ipsec1",
    "the second network's way is the second tunnel: TCP",
    "10.3.0.0/24 moves to ipsec0",
    *(f"{gateway} has the same BGP session {when}" for gateway in ("gwa", "gwb") for when in WHEN),
    *(f"{gateway} hears its neighbor {when}" for gateway in ("gwa", "gwb") for when in WHEN),
    "the oracle opens every ESP packet of both directions",
    "A uses no sequence number and no nonce twice",
    "nothing of the protected networks crosses the WAN in clear while the tunnel is up",
)


@pytest.mark.parametrize("engine", [pytest.param("vpp", marks=pytest.mark.vpp), "soft"])
def test_bgp_decides_what_goes_into_the_tunnel(engine, request):
    skip_unless_all(request)
    need(engine)
    if not frr.installed():
        pytest.skip("FRR is not installed - run make setup")
    names = check_names(play("frr", "--engine", engine))
    assert [name for name in WANTED if name not in names] == []
