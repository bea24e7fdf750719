"""The scenarios of the firewall without tunnels and without ESP: translation of IPv6, real hosts on both sides."""

import pytest

from tests.scenarios.lab_command import check_names, play
from tests.scenarios.test_firewall import CLEARED_UP

pytestmark = [pytest.mark.scenario, pytest.mark.root, pytest.mark.timeout(600)]

NAT64 = (
    "ipsec-gw runs the engine asked for",
    "path MTU: the IPv6 client learns the one of IPv4",
    "path MTU: the router's error comes translated",
    "path MTU: the IPv4 server learns the one of IPv6",
    "path MTU: the IPv4 server hears that fragments need more room",
    "path MTU: a TCP stream goes on",
    *(
        f"{host}, {talk}"
        for host in ("client with both", "host without IPv4")
        for talk in ("TCP", "UDP", "fragments", "ICMP")
    ),
    "fragments cross the WAN as fragments, both ways",
    *(f"{way}, {protocol}" for way in ("IPv4 to IPv4", "IPv6 to IPv6") for protocol in ("TCP", "UDP")),
    "errors come back: nobody listens",
    "errors come back: the router's time exceeded",
    "nobody gets in uncalled",
    *(
        f"1,000 flows at once, {protocol}: {what}"
        for protocol in ("UDP", "TCP")
        for what in ("every payload comes to its own end", "no translated port twice")
    ),
    "all flows are there at once",
    "nothing untranslated is on the WAN",
    "no IPv4 reaches the host without it",
)
NPTV6 = (
    "ipsec-gw runs the engine asked for",
    "path MTU: the client learns it from datagrams",
    "path MTU: the error is about the inside address",
    "path MTU: a TCP stream goes on",
    *(f"{host} to server, {talk}" for host in ("client", "inner host") for talk in ("TCP", "UDP")),
    "client to server, fragments",
    "client to server, ICMP",
    "client to server, errors come back",
    *(f"server to client, {talk}" for talk in ("TCP", "UDP", "fragments", "ICMP", "errors come back")),
    "one more flow",
    "`show firewall` counts it",
    *(f"checksums are {what} on both sides, {way}" for what in ("the same", "right") for way in ("out", "in")),
    "nothing of the inside prefix is on the WAN",
    "nothing of the outside prefix is on the LAN",
)


@pytest.mark.parametrize(("scenario", "checks"), [("nat64", NAT64), ("nptv6", NPTV6)], ids=["nat64", "nptv6"])
def test_all_of_it_is_checked_and_holds(scenario, checks):
    report = play(scenario, "--engine", "kernel")
    assert sorted(check_names(report)) == sorted([*checks, *CLEARED_UP])
    assert report["environment"] == "native"
