"""The firewall's scenarios: real sockets, a real tunnel, and junk. Every engine gives the same verdicts."""

import pytest

from ipsec_gw.lab.scenarios.junk import PACKETS
from tests.scenarios.lab_command import need, play, skip_slow_machine

pytestmark = [pytest.mark.scenario, pytest.mark.root, pytest.mark.timeout(2700)]

CLEARED_UP = (
    "the captures are complete",
    "no process is left in the namespaces",
    "no namespace is left",
    "no process is left",
    "no pin is left",
)
PLAIN = (
    "ipsec-gw runs the engine asked for",
    *(
        f"{family} {what}"
        for family in ("IPv4", "IPv6")
        for what in (
            "permit, TCP",
            "permit, UDP",
            "source NAT to the WAN address, TCP",
            "source NAT to the WAN address, UDP",
            "source NAT from a pool, TCP",
            "source NAT from a pool, UDP",
            "destination NAT",
            "hairpin",
            "fragments both ways, translated",
            "fragments cross the WAN as fragments",
            "deny",
            "reject, TCP",
            "reject, UDP",
            "refused packets are counted by rule",
            "nothing refused reaches the WAN",
            "path MTU: the TCP stream goes on",
            "path MTU: the error comes back translated",
            "gateway to WAN, TCP",
            "gateway to WAN, UDP",
            "gateway answers ping from the LAN",
            "gateway is silent to the WAN",
        )
    ),
)
TUNNEL = (
    "without a tunnel, its traffic is denied to the WAN",
    "IKE is up at gwa",
    "IKE is up at gwb",
    "the engine asked for carries the tunnel",
    *(
        f"tunnel: {way}, {protocol}"
        for way in (
            "client to server",
            "server to client",
            "server to client, the port that is denied the other way",
            "client to server, the port that is denied the other way",
            "gateway A itself to server",
        )
        for protocol in ("TCP", "UDP")
    ),
    *(f"tunnel: {way}, ICMP" for way in ("client to server", "server to client", "server to gateway A itself")),
    *(
        f"tunnel: {way}, {what}"
        for way in ("client to server", "server to client")
        for what in ("denied", "the policy has counted it", "nothing denied arrives")
    ),
    "beside the tunnel: client to WAN with source NAT, TCP",
    "beside the tunnel: client to WAN with source NAT, UDP",
    "forged packets in clear are dropped",
    "no forged packet arrives",
    "the session they imitate goes on",
    "charon counts what the wire carried",
    "A uses no sequence number and no nonce twice",
    "B uses no sequence number and no nonce twice",
    "after the tunnel: client to WAN, ICMP",
    "after the tunnel, its sessions do not go on in clear",
    "nothing of the protected networks leaves A in clear",
    "nothing of the protected networks leaves B in clear",
    "A sends ESP",
    "B sends ESP",
)
OVERLAPPING = tuple(
    f"tunnel: {way}, {talk}"
    for way in ("client to server", "server to client")
    for talk in ("TCP", "UDP", "UDP in fragments", "ICMP", "ICMP once more")
)
JUNK = (
    "ipsec-gw runs the engine asked for",
    "the permitted TCP stream comes through",
    "the junk is offered",
    *(
        f"junk is accounted to {verdict}"
        for verdict in (
            "default-deny",
            "fragment-unknown",
            "icmp-no-session",
            "icmp-unsolicited",
            "malformed",
            "tcp-not-syn",
        )
    ),
    "all junk is accounted to drop reasons",
    "junk leaves no session",
    "no junk reaches the LAN",
)
IN_THE_VM = "no virtual machine is left"


def names(report):
    """What was checked, without that the virtual machine has gone: there may have been none."""
    return sorted(check["name"] for check in report["checks"] if check["name"] != IN_THE_VM)


@pytest.mark.parametrize("engine", ["kernel", "soft", pytest.param("vpp", marks=pytest.mark.vpp)])
def test_the_verdicts_are_the_same_whoever_decrypts(engine, request):
    """The very same checks for every engine, none more and none less, and all of them hold."""
    if engine != "soft":  # the one that has an engine's part and needs nothing installed
        skip_slow_machine(request)
    need(engine)
    report = play("firewall", "--engine", engine)
    assert names(report) == sorted([*PLAIN, *TUNNEL, *CLEARED_UP])
    assert report["engine"] == engine


@pytest.mark.parametrize("engine", ["kernel", "soft", pytest.param("vpp", marks=pytest.mark.vpp)])
def test_sites_with_the_same_network_reach_each_other(engine, request):
    skip_slow_machine(request)
    need(engine)
    report = play("overlapping-sites", "--engine", engine)
    assert {name for name in names(report) if name.startswith("tunnel: ")} == set(OVERLAPPING)
    assert report["engine"] == engine


def test_junk_does_not_disturb_a_permitted_stream():
    report = play("junk", "--engine", "kernel")
    assert names(report) == sorted([*JUNK, *CLEARED_UP])
    offered = next(check for check in report["checks"] if check["name"] == "the junk is offered")
    assert int(offered["measured"].replace(",", "")) >= PACKETS
    assert any("packets of junk per second" in note for note in report["notes"])
