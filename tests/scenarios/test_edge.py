"""The firewall's scenarios without ESP: screens and the translation of IPv6, real hosts on both sides."""

import pytest

from ipsec_gw.lab import nmap
from tests.scenarios.lab_command import check_names, play
from tests.scenarios.test_firewall import CLEARED_UP

pytestmark = [pytest.mark.scenario, pytest.mark.root, pytest.mark.timeout(600)]

SCANS = (
    *(f"{kind} scan without screens" for kind in ("null", "FIN", "Xmas", "SYN")),
    *(f"{kind} scan finds nothing" for kind in ("null", "FIN", "Xmas")),
    "SYN scan is cut short",
    *(
        f"{kind} scan: {what}"
        for kind in ("null", "FIN", "Xmas", "SYN")
        for what in ("the screen has counted", "a client is served meanwhile")
    ),
)
SCREENS = (
    "ipsec-gw runs the engine asked for",
    *(SCANS if nmap.installed() else ()),
    *(
        f"flood of {kind}: {what}"
        for kind in ("SYNs", "UDP", "ICMP", "SYNs without cookies")
        for what in ("no more than allowed reaches the LAN", "the screen has counted")
    ),
    *(f"flood of {kind}: what is too much is dropped" for kind in ("UDP", "ICMP", "SYNs without cookies")),
    *(f"flood of {kind}: TCP clients are served at once" for kind in ("UDP", "ICMP")),
    "flood of SYNs: clients of both families are served",
    "flood of SYNs: all that are too many are answered with cookies",
    "flood of SYNs: every client that was reset had acknowledged a cookie",
    "flood of SYNs: cookies cost no session",
    "after the flood, new clients are served without cookies",
    "a TCP session from before goes on through all of it",
)
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
    "path MTU: the server learns the one inside",
    "path MTU: the error is about the outside address",
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


@pytest.mark.parametrize(
    ("scenario", "checks"),
    [("screens", SCREENS), ("nat64", NAT64), ("nptv6", NPTV6)],
    ids=["screens", "nat64", "nptv6"],
)
def test_all_of_it_is_checked_and_holds(scenario, checks):
    report = play(scenario, "--engine", "kernel")
    assert sorted(check_names(report)) == sorted([*checks, *CLEARED_UP])
    assert report["environment"] == "native"
