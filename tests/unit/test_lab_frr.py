"""The BGP routers of the lab: what they are told, and what they say."""

import json
from ipaddress import IPv4Address, IPv4Network

import pytest

from ipsec_gw.errors import IpsecGwError
from ipsec_gw.lab.frr import BgpSession, Neighbor, Router, parse_summary
from ipsec_gw.lab.gateway import ShownSa
from ipsec_gw.lab.scenarios.configured import GATEWAYS
from ipsec_gw.lab.scenarios.frr import ACCELERATE, FIRST, LINKS, SECOND, _takes_two_ways
from ipsec_gw.lab.topology import Role

NEIGHBOR = IPv4Address("192.168.42.2")


def said(**changed):
    """As FRR 8.4 writes it, shortened."""
    peer = {
        "hostname": "gwb",
        "remoteAs": 65002,
        "msgRcvd": 4,
        "msgSent": 5,
        "peerUptime": "00:00:04",
        "peerUptimeMsec": 4000,
        "peerUptimeEstablishedEpoch": 1795950190,
        "state": "Established",
        "connectionsEstablished": 1,
        "connectionsDropped": 0,
    }
    return json.dumps({"routerId": "192.168.42.1", "as": 65001, "peers": {str(NEIGHBOR): peer | changed}})


def test_a_session_that_is_up():
    session = parse_summary(said(), NEIGHBOR)
    assert session == BgpSession("Established", since=1795950190, came=1, went=0, received=4)
    assert session.up


@pytest.mark.parametrize("state", ["Active", "Connect", "Idle", "OpenConfirm"])
def test_a_session_that_is_not_up_has_no_start(state):
    session = parse_summary(said(state=state, connectionsDropped=1), NEIGHBOR)
    assert not session.up
    assert (session.since, session.went) == (0, 1)


@pytest.mark.parametrize("text", ["", "{}", '{"peers": {}}', '{"peers": {"192.168.42.2": {"state": "Idle"}}}', "% BGP"])
def test_what_is_no_summary_is_an_error(text):
    with pytest.raises(IpsecGwError, match="summary json has no"):
        parse_summary(text, NEIGHBOR)


def test_a_router_is_told_its_neighbors_and_networks():
    router = Router(
        "gwa",
        "ns",
        65001,
        IPv4Address("192.168.42.1"),
        (Neighbor(NEIGHBOR, 100), Neighbor(IPv4Address("192.168.43.2"))),
        (IPv4Network("10.1.0.0/24"),),
    )
    lines = [line.strip() for line in router.conf().splitlines()]
    assert lines.index("router bgp 65001") < lines.index("neighbor 192.168.42.2 remote-as external")
    family = lines[lines.index("address-family ipv4 unicast") : lines.index("exit-address-family")]
    assert family[1:] == ["neighbor 192.168.42.2 weight 100", "neighbor 192.168.43.2 weight 0", "network 10.1.0.0/24"]


def test_each_link_has_an_interface_a_network_and_a_connection_of_its_own():
    for what in ("interface", "kind", "network", "connection"):
        assert len({str(getattr(link, what)) for link in LINKS}) == len(LINKS)
    assert not FIRST.network.overlaps(SECOND.network)
    for link in LINKS:
        assert len({link.address(role) for role in GATEWAYS}) == 2
        assert all(link.address(role) in link.network.hosts() for role in GATEWAYS)
        assert f"[connections.{link.connection.name}]" in ACCELERATE
    # Their selectors are the same: the gateways tell them apart by identity.
    assert FIRST.connection.text(Role.GATEWAY_A).count("id = {peer}\n") == 1
    assert SECOND.connection.text(Role.GATEWAY_A).count("id = {peer}-second\n") == 1


def test_the_way_there_is_the_second_tunnel_and_back_the_first():
    sas = [
        ShownSa(direction, 1, "10.0.0.1", "10.0.0.2", "vpp", "vpp", "", 0, child)
        for child in ("net", "net2")
        for direction in ("in", "out")
    ]
    assert [(sa.child, sa.direction) for sa in sas if _takes_two_ways(sa)] == [("net", "in"), ("net2", "out")]
