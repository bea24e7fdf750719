"""GRE and IPIP devices: the engine has what routing sends out by them, or the kernel if it dies."""

import pytest

from ipsec_gw.lab import frr
from tests.scenarios.lab_command import check_names, need, play, skip_unless_all

pytestmark = [pytest.mark.scenario, pytest.mark.root, pytest.mark.timeout(3600)]

WHEN = ("after the rekeys", "after the engine's death and return")
WANTED = (
    *(f"{gateway} has a BGP session" for gateway in ("gwa", "gwb")),
    *(f"{gateway} has the same BGP session {when}" for gateway in ("gwa", "gwb") for when in WHEN),
    "gwa has its route to 10.2.0.0/24 from BGP",
    "gwb has its route to 10.1.0.0/24 from BGP",
    *(f"{device} has {what}" for device in ("gre1", "ipip1") for what in ("the MTU of its tunnel", "its own MTU back")),
    "payload exchange: XDP gives all inbound ESP to the engine",
    "payload exchange: the kernel sends no outbound ESP past the guard",
    "the oracle opens every ESP packet of both directions",
    "A uses no sequence number and no nonce twice",
    "no packet of the device crosses the WAN without ESP",
    "`show status` says who does what",
    "UDP 10.1.0.10 -> 10.2.0.10 is denied",
    "UDP 10.2.0.10 -> 10.1.0.10 is denied",
    "the firewall finds nothing malformed, whoever decrypted it",
)


@pytest.mark.parametrize("engine", [pytest.param("vpp", marks=pytest.mark.vpp), "soft"])
def test_what_a_device_sends_is_carried(engine, request):
    skip_unless_all(request)
    need(engine)
    if not frr.installed():
        pytest.skip("FRR is not installed - run make setup")
    names = check_names(play("gre-over-ipsec", "--engine", engine))
    assert [name for name in WANTED if name not in names] == []
