"""Peers behind NAT, for each engine: real strongSwans, a real NAT that changes its mind, real packets."""

import pytest

from tests.scenarios.lab_command import check_names, need, play, skip_unless_all

pytestmark = [pytest.mark.scenario, pytest.mark.root, pytest.mark.timeout(900)]

ENGINES = pytest.mark.parametrize("engine", ["kernel", "soft", pytest.param("vpp", marks=pytest.mark.vpp)])

NAT_T = (
    "IKE is up at gwa",
    "IKE is up at gwb",
    "A sends ESP in UDP, behind the NAT",
    "B sends ESP in UDP, behind the NAT",
    *(
        check
        for when in ("a first time", "a second time")
        for check in (
            f"the SAs are the same after the NAT mapped anew {when}",
            f"what B sends arrives while the NAT maps anew, {when}",
            f"what A sends arrives again, {when}",
        )
    ),
    "the oracle opens every ESP packet of both directions",
    "A uses no sequence number and no nonce twice",
    "A leaves no sequence number out",
    "no packet 10.1.0.10 -> 10.2.0.10 is lost or doubled by two rekeys",
    "nothing of the protected networks crosses the WAN in clear while the tunnel is up",
    "the captures are complete",
    "no process is left",
    "no pin is left",
)
FOLLOWED = (
    "the kernel was shown where B is, a first time",
    "the kernel was shown where B is, a second time",
    "payload exchange after the remap: XDP gives all inbound ESP to the engine",
    "payload exchange at the end: XDP gives all inbound ESP to the engine",
    "payload exchange at the end: the kernel sends no outbound ESP past the guard",
    "sequence numbers from the engine strictly increase",
)
ROADS = (
    "IKE is up at rw1",
    "IKE is up at rw2",
    "IKE is up at rw3",
    "every client has a virtual address of its own",
    "two clients share one address and have a port and an SA each",
    "the SAs are the same after the NAT mapped anew",
    "gateway A sends to the new ports of both",
    *(
        f"{when}: {way}, {kind}"
        for when in ("virtual addresses", "after the NAT mapped anew")
        for road in ("rw1", "rw2", "rw3")
        for way in (f"{road} to client", f"client to {road}")
        for kind in ("TCP", "UDP", "ICMP")
    ),
    "the oracle opens every ESP packet",
    "no sequence number and no nonce is used twice",
    "nothing of LAN or virtual addresses crosses the WAN in clear",
    "the steering and guard maps are empty after termination",
    "no process is left",
    "no pin is left",
)


@ENGINES
def test_a_nat_that_forgets_its_mappings_is_followed(engine, request):
    skip_unless_all(request)
    need(engine)
    report = play("nat-t", "--engine", engine)
    wanted = [*NAT_T, *(FOLLOWED if engine != "kernel" else ())]
    assert [name for name in wanted if name not in check_names(report)] == []
    assert report["engine"] == engine


@ENGINES
def test_roadwarriors_behind_one_nat_are_told_apart(engine, request):
    skip_unless_all(request)
    need(engine)
    report = play("roadwarriors", "--engine", engine)
    assert [name for name in ROADS if name not in check_names(report)] == []


@pytest.mark.parametrize("scenario", ["nat-t", "roadwarriors"])
def test_strongswan_and_the_kernel_alone_pass(scenario, request):
    """The control: what the lab demands is what an unaccelerated gateway does."""
    if not request.config.getoption("--all-scenarios"):
        pytest.skip("the kernel engine demands the same: --all-scenarios runs this too")
    report = play(scenario, "--baseline")
    assert not [name for name in check_names(report) if name in FOLLOWED]
