"""XFRM interfaces and VTI devices between strongSwans: routing says what goes into the tunnel, whoever carries it."""

import pytest

from tests.scenarios.lab_command import check_names, need, play, skip_slow_machine

pytestmark = [pytest.mark.scenario, pytest.mark.root, pytest.mark.timeout(2 * 3600)]

SETTINGS = "the interface has its settings back"
ALL_PARTS = (
    "multicast of gwa comes through its interface",
    "multicast of gwb comes through its interface",
    "without its route nothing goes into the tunnel",
    "the SAs are the same",
    SETTINGS,
    "the oracle opens every ESP packet of both directions",
    "A uses no sequence number and no nonce twice",
    "nothing of the protected networks crosses the WAN in clear while the tunnel is up",
)


@pytest.mark.parametrize("engine", [pytest.param("vpp", marks=pytest.mark.vpp), "soft"])
def test_routing_decides_with_and_without_a_firewall(engine, request):
    skip_slow_machine(request)
    need(engine)
    report = play("route-based", "--engine", engine)
    names = check_names(report)
    assert [name for name in ALL_PARTS if name not in names] == []
    assert len([name for name in names if name.endswith("is denied")]) == 2, "with a firewall"
    (settings,) = (check["measured"] for check in report["checks"] if check["name"] == SETTINGS)
    assert settings == "mtu 1500, disable_policy 0, mtu 1480, disable_policy 0", "an XFRM interface and a VTI device"
