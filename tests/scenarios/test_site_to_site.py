"""The site-to-site scenario for each engine: real strongSwans, real kernel, real packets."""

import pytest

from tests.scenarios.lab_command import check_names, need, play

pytestmark = [pytest.mark.scenario, pytest.mark.root, pytest.mark.timeout(900)]

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
    "no packet 10.1.0.10 -> 10.2.0.10 is lost or doubled by two rekeys",
    "no packet 10.2.0.10 -> 10.1.0.10 is lost or doubled by two rekeys",
    "nothing of the protected networks crosses the WAN in clear while the tunnel is up",
    "the captures are complete",
    "no process is left in the namespaces",
    "no namespace is left",
    "no process is left",
    "no pin is left",
)
WITH_GATEWAY = (
    "ipsec-gw runs the engine asked for",
    "payload exchange: `show sas` counts what the wire carried, in",
    "payload exchange: `show sas` counts what the wire carried, out",
    "the engine holds no SA after termination",
    "the steering and guard maps are empty after termination",
)
ACCELERATED = (
    "payload exchange: XDP gives all inbound ESP to the engine",
    "payload exchange: the kernel sends no outbound ESP past the guard",
    "payload exchange after the rekeys: XDP gives all inbound ESP to the engine",
    "payload exchange after the rekeys: the kernel sends no outbound ESP past the guard",
    "sequence numbers from the engine strictly increase",
)
TALKS = tuple(
    f"{when}: {what} {way}"
    for when in ("payload exchange", "payload exchange after the rekeys")
    for what in ("TCP", "UDP", "ICMP")
    for way in ("client to server", "server to client", "gateway A itself to server", "server to gateway A itself")
)

USUAL = (("kernel", "aes128gcm16"), ("soft", "chacha20poly1305"), ("vpp", "aes128gcm16"))
"""What runs without --all-scenarios."""


@pytest.mark.parametrize(
    ("engine", "proposal"),
    [
        ("kernel", "aes128gcm16"),
        ("soft", "chacha20poly1305"),
        pytest.param("vpp", "aes128gcm16", marks=pytest.mark.vpp),
        pytest.param("vpp", "aes192gcm16", marks=pytest.mark.vpp),
        pytest.param("vpp", "aes256gcm16", marks=pytest.mark.vpp),
        pytest.param("vpp", "chacha20poly1305", marks=pytest.mark.vpp),
    ],
)
def test_every_check_holds(engine, proposal, request):
    if (engine, proposal) not in USUAL and not request.config.getoption("--all-scenarios"):
        pytest.skip("one cipher for each engine is enough: --all-scenarios runs all")
    need(engine)
    report = play("site-to-site", "--engine", engine, "--proposal", proposal)
    wanted = [*ALWAYS, *TALKS, *WITH_GATEWAY, *(ACCELERATED if engine != "kernel" else ())]
    assert [name for name in wanted if name not in check_names(report)] == []
    assert [f"{engine} carries direction {way}" in check_names(report) for way in ("in", "out")] == [True, True]
    assert report["engine"] == engine
    assert report["versions"]["strongswan"].startswith("5.")
    assert (report["versions"]["vpp"] is not None) is (engine == "vpp")


def test_strongswan_and_the_kernel_alone_pass():
    """The control: what the lab demands is what an unaccelerated gateway does."""
    report = play("site-to-site", "--baseline")
    assert [name for name in (*ALWAYS, *TALKS) if name not in check_names(report)] == []
    assert not [name for name in check_names(report) if name in WITH_GATEWAY]
