"""The scenario of IPv6 for each engine: three tunnels, one after the other, each proven as site to site is."""

import pytest

from tests.scenarios.lab_command import check_names, need, play, skip_unless_all

pytestmark = [pytest.mark.scenario, pytest.mark.root, pytest.mark.timeout(1200)]

SHAPES = {"4+6in4": (4, 6), "6in6": (6,), "4in6": (4,)}
HOSTS = {4: ("10.1.0.10", "10.2.0.10"), 6: ("fd01::10", "fd02::10")}
ALWAYS = (
    "IKE is up at gwa",
    "IKE is up at gwb",
    "the oracle opens every ESP packet of both directions",
    "what A encrypts is what the client sent",
    "what A encrypts is what the server receives",
    "what B encrypts is what the server sent",
    "A uses no sequence number and no nonce twice",
    "B uses no sequence number and no nonce twice",
    "A leaves no sequence number out",
    "B leaves no sequence number out",
    "nothing of the protected networks crosses the WAN in clear while the tunnel is up",
    "the captures are complete",
    "no process is left in the namespaces",
    "no namespace is left",
    "no process is left",
    "no pin is left",
)
LOSSES = tuple(
    f"no packet {source} -> {destination} is lost or doubled by a rekey"
    for pair in HOSTS.values()
    for source, destination in (pair, pair[::-1])
)
TALKS = tuple(
    f"{shape}: {what} {way}, IPv{version}"
    for shape, versions in SHAPES.items()
    for version in versions
    for what in ("TCP", "UDP", "ICMP")
    for way in ("client to server", "server to client", "gateway A itself to server", "server to gateway A itself")
)
PATH_MTU = tuple(f"{shape}: the client is told the tunnel's MTU" for shape, versions in SHAPES.items() if 6 in versions)
WITH_GATEWAY = (
    "ipsec-gw runs the engine asked for",
    "the engine holds no SA after termination",
    "the steering and guard maps are empty after termination",
    *(f"{shape}: `show sas` counts what the wire carried, {way}" for shape in SHAPES for way in ("in", "out")),
)
ACCELERATED = (
    "sequence numbers from the engine strictly increase",
    *(
        f"{shape}: {what}"
        for shape in SHAPES
        for what in (
            "XDP gives all inbound ESP to the engine",
            "the kernel sends no outbound ESP past the guard",
        )
    ),
)


@pytest.mark.parametrize("engine", ["soft", pytest.param("vpp", marks=pytest.mark.vpp)])
def test_every_check_holds(engine, request):
    skip_unless_all(request)
    need(engine)
    report = play("ipv6", "--engine", engine)
    names = check_names(report)
    wanted = [*ALWAYS, *LOSSES, *TALKS, *PATH_MTU, *WITH_GATEWAY, *ACCELERATED]
    assert [name for name in wanted if name not in names] == []
    assert [f"{engine} carries direction {way}" in names for way in ("in", "out")] == [True, True]
    assert report["engine"] == engine


def test_strongswan_and_the_kernel_alone_pass(request):
    """The control: what the lab demands is what an unaccelerated gateway does."""
    if not request.config.getoption("--all-scenarios"):
        pytest.skip("the control of site to site stands for it: --all-scenarios runs all")
    names = check_names(play("ipv6", "--baseline"))
    assert [name for name in (*ALWAYS, *LOSSES, *TALKS, *PATH_MTU) if name not in names] == []
