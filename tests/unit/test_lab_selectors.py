"""What the scenario of dishonest peers forges, and the configurations that stories about charon load."""

from itertools import permutations

import pytest

from ipsec_gw.lab.kernel_sas import Claim
from ipsec_gw.lab.matrix.case import Connection
from ipsec_gw.lab.scenarios.configured import configured
from ipsec_gw.lab.scenarios.reload import FIRST, SECOND, STRONGER, WIDER
from ipsec_gw.lab.scenarios.selectors import SETS, Crossing, _selector
from ipsec_gw.lab.topology import Role, crossroads

PAIRS = [(name, *pair) for name, tunnels in SETS.items() for pair in permutations(tunnels, 2)]


def _id(value):
    return value if isinstance(value, str) else value.child.name


@pytest.mark.parametrize(("name", "through", "other"), PAIRS, ids=_id)
def test_what_is_forged_belongs_to_another_tunnel(name, through, other):
    forged = Crossing(name, through, other, Claim(None, 1, 1, esp=True, transforms=True)).forged
    assert other.probe in forged
    assert not [probe for probe in forged if through.fits(probe)]
    assert len(set(forged)) == len(forged)


@pytest.mark.parametrize("tunnels", SETS.values(), ids=SETS)
def test_each_tunnel_has_a_packet_of_its_own(tunnels):
    for tunnel in tunnels:
        assert [one for one in tunnels if one.fits(tunnel.probe)] == [tunnel]


def test_a_forged_packet_is_selected_alone():
    assert _selector(SETS["ports"][0].probe) == ("src 10.2.0.10/32 dst 10.1.0.10/32 proto udp sport 5000 dport 5000")


class FakeLab:
    topology = crossroads("igw-0a1b2c")


@pytest.mark.parametrize("child", [FIRST, WIDER, STRONGER, SECOND])
def test_both_gateways_load_mirrored_selectors(child):
    texts = [
        configured(FakeLab, role, Connection(children=(child,))).conf() for role in (Role.GATEWAY_A, Role.GATEWAY_B)
    ]
    found = [
        {
            key.strip(): value.strip()
            for key, _, value in (line.partition("=") for line in text.splitlines())
            if key.strip().endswith("_ts")
        }
        for text in texts
    ]
    assert found[0]["local_ts"] == found[1]["remote_ts"]
    assert found[0]["remote_ts"] == found[1]["local_ts"]
    assert child.esp in texts[0]
    assert child.esp in texts[1]
