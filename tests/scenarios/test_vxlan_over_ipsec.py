"""VXLAN devices: the engine has what they send, or the kernel if it dies."""

import pytest

from tests.scenarios.lab_command import check_names, need, play, skip_unless_all

pytestmark = [pytest.mark.scenario, pytest.mark.root, pytest.mark.timeout(3600)]

DEATHS = {"vpp": "kill of VPP", "soft": "kill of daemon and engine"}
WANTED = (
    "payload exchange: XDP gives all inbound ESP to the engine",
    "payload exchange: the kernel sends no outbound ESP past the guard",
    "payload exchange at the end: TCP client to server",
    "payload exchange at the end: ICMP server to client",
    "charon counts what the wire carried",
    "the oracle opens every ESP packet of both directions",
    "A uses no sequence number and no nonce twice",
    "what A encrypts is what the client sent",
    "what B encrypts is what the server sent",
    "no packet of the device crosses the WAN without ESP",
    "`show status` says who does what",
    "`show status` says it again",
    "frames of vxlan1 are led to the engine",
    "the kernel's vxlan1 sends none but those that are left to it",
    "the client finds out what fits into the tunnel",
)
SERVERS = {"routed": "10.2.0.10", "bridged": "10.1.0.20"}
LOSSLESS = "no packet 10.1.0.10 -> {} is lost or doubled by two rekeys"


@pytest.mark.parametrize("engine", [pytest.param("vpp", marks=pytest.mark.vpp), "soft"])
def test_what_a_device_sends_is_carried(engine, request):
    skip_unless_all(request)
    need(engine)
    names = check_names(play("vxlan-over-ipsec", "--engine", engine))
    wanted = [*WANTED, f"{DEATHS[engine]}: back in {engine} with new keys"]
    assert [name for name in wanted if name not in names] == []
    assert [server for server in SERVERS.values() if LOSSLESS.format(server) not in names] == []
