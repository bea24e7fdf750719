"""Pools of NAT that VPP translates with: many flows, a surge, and the death of VPP; real hosts on both sides."""

import pytest

from tests.scenarios.lab_command import check_names, need, play
from tests.scenarios.test_firewall import CLEARED_UP

pytestmark = [pytest.mark.scenario, pytest.mark.root, pytest.mark.vpp, pytest.mark.timeout(600)]

ALL_HAVE = ("ipsec-gw runs the engine asked for", "nothing untranslated is on the WAN", *CLEARED_UP)


def begun(*when):
    return tuple(f"{phase}: a new flow, {protocol}" for phase in when for protocol in ("UDP", "TCP"))


POOL = (
    "path MTU: the client learns it through VPP",
    *(f"{host}, {talk}" for host in ("client", "inner host") for talk in ("TCP", "UDP", "fragments", "ICMP")),
    "hairpin, TCP",
    "hairpin, UDP",
    "hairpin: errors come back",
    "errors come back: nobody listens",
    "nobody gets in uncalled",
    *(
        f"2,000 flows at once, {protocol}: {what}"
        for protocol in ("UDP", "TCP")
        for what in ("every payload comes to its own end", "no translated port twice")
    ),
    "all flows are there at once",
)
AUTO = (
    *begun("before the surge", "in the surge", "after the surge"),
    "flows from before and from the surge: all go on",
    "flows from before, from the surge and from after it: all go on",
)
FAILOVER = (
    *begun("before VPP dies", "while VPP is away", "when VPP is back"),
    "what VPP translated is dropped and counted",
    "flows that began while it was away, and after: all go on",
)


@pytest.mark.parametrize(
    ("scenario", "checks"),
    [("nat-pool", POOL), ("nat-auto", AUTO), ("nat-failover", FAILOVER)],
    ids=["nat-pool", "nat-auto", "nat-failover"],
)
def test_all_of_it_is_checked_and_holds(scenario, checks):
    need("vpp")
    report = play(scenario, "--engine", "vpp")
    assert sorted(check_names(report)) == sorted([*checks, *ALL_HAVE])
    assert report["environment"] == "native"
