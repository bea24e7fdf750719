"""Real strongSwans: the gateways themselves talk, in transport and in tunnel mode, and IKE goes on beside it."""

import pytest

from tests.scenarios.lab_command import check_names, need, play, skip_slow_machine

pytestmark = [pytest.mark.scenario, pytest.mark.root, pytest.mark.timeout(2 * 3600)]

ALWAYS = (
    "packets keep their addresses",
    "nothing but IKE passes between the gateways in clear while the SAs are there",
    "IKE passes all the while",
    "charon counts what the wire carried",
    "the oracle opens every ESP packet of both directions",
    "A uses no sequence number and no nonce twice",
    "B uses no sequence number and no nonce twice",
    "no number of A goes back beyond the reordering of one ring, whoever sends",
    "the captures are complete",
    "no pin is left",
)
MODES = 2
"""Each is a part, and has all checks."""
DEATHS = {"vpp": "kill of VPP", "soft": "kill of daemon and engine"}


@pytest.mark.parametrize("engine", [pytest.param("vpp", marks=pytest.mark.vpp), "soft"])
def test_the_gateways_themselves_talk(engine, request):
    skip_slow_machine(request)
    need(engine)
    names = check_names(play("transport", "--engine", engine))
    wanted = [*ALWAYS, f"{DEATHS[engine]}: no packet is lost once the sockets are empty"]
    wanted += [f"{DEATHS[engine]}: back in {engine} with new keys"]
    assert [name for name in wanted if names.count(name) < MODES] == []
    assert len([name for name in names if name.startswith("datagrams beyond the MTU")]) == 2 * MODES
    assert len([name for name in names if name.endswith("is lost or doubled by two rekeys")]) == 2 * MODES
