"""Reading what ipsec-gw and swanctl say."""

import json
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest

from ipsec_gw.lab.gateway import GatewayMisbehaved, GuardCount, SteerCount, parse_sas, parse_status
from ipsec_gw.lab.sites import site_of, site_of_versions
from ipsec_gw.lab.strongswan import (
    PROPOSALS,
    Concentrator,
    Established,
    Roadwarrior,
    parse_children,
    parse_inbound,
    parse_list_sas,
    parse_virtual_address,
    swanctl_conf,
)
from ipsec_gw.lab.topology import Role, site_to_site, two_families

SA = {
    "connection": "site",
    "child": "net",
    "direction": "in",
    "spi": "c0ffee01",
    "source": "10.0.0.2",
    "destination": "10.0.0.1",
    "algorithm": "AES_GCM_16-128",
    "engine": "vpp",
    "state": "vpp",
    "reason": "",
    "packets": 3,
    "bytes": 252,
}

LIST_SAS = """\
site: #1, ESTABLISHED, IKEv2, 5f0ef54dcc2ed8ad_i* 4ae4c0bd5ec5e8ad_r
  local  'gwa' @ 10.0.0.1[500]
  remote 'gwb' @ 10.0.0.2[500]
  AES_GCM_16-128/PRF_HMAC_SHA2_256/CURVE_25519
  established 1s ago, rekeying in 13012s
  net: #1, reqid 1, INSTALLED, TUNNEL, ESP:AES_GCM_16-128
    installed 1s ago, rekeying in 3259s, expires in 3959s
    in  c2ab1e3c,     84 bytes,     1 packets,     1s ago
    out c4c4ae5d,     84 bytes,     1 packets,     1s ago
    local  10.1.0.0/24
    remote 10.2.0.0/24
"""


def test_sas_are_read():
    (sa,) = parse_sas(json.dumps({"sas": [SA]}))
    assert (sa.key, sa.spi, sa.state, sa.packets) == ("10.0.0.1/c0ffee01", 0xC0FFEE01, "vpp", 3)


def test_a_missing_reason_is_no_reason():
    (sa,) = parse_sas(json.dumps({"sas": [SA | {"reason": None}]}))
    assert sa.reason == ""


@pytest.mark.parametrize("text", ["", "[]", '{"sas": [{}]}', "{}", json.dumps({"sas": [SA | {"spi": "xyz"}]})])
def test_other_answers_are_refused(text):
    with pytest.raises(GatewayMisbehaved, match="show sas"):
        parse_sas(text)


def test_status_is_read():
    status = parse_status(
        json.dumps(
            {
                "engine": {"name": "soft", "note": "a note"},
                "inSync": True,
                "steer": [{"sa": "10.0.0.1/c0ffee01", "toEngine": 5, "toKernel": 1}],
                "guard": [{"sa": "10.0.0.2/c0ffee02", "passed": 0, "dropped": 2, "waited": 1}],
            }
        )
    )
    assert status.steer == {"10.0.0.1/c0ffee01": SteerCount(5, 1)}
    assert status.guard == {"10.0.0.2/c0ffee02": GuardCount(0, 2, 1)}
    assert (status.engine, status.in_sync) == ("soft", True)


def test_an_engine_without_maps_has_no_counters():
    status = parse_status('{"engine": {"name": "kernel", "note": ""}, "inSync": true}')
    assert (status.steer, status.guard) == ({}, {})
    with pytest.raises(GatewayMisbehaved, match="show status"):
        parse_status("{}")


def test_swanctl_lists_an_established_tunnel():
    assert parse_list_sas(LIST_SAS) == Established(True, True, "AES_GCM_16-128")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("ESTABLISHED", "CONNECTING", Established(False, True, "AES_GCM_16-128")),
        ("INSTALLED", "REKEYED", Established(True, False, "")),
        ("net:", "other:", Established(True, False, "")),
    ],
)
def test_swanctl_lists_something_else(old, new, said):
    assert parse_list_sas(LIST_SAS.replace(old, new)) == said
    assert parse_list_sas("") == Established(False, False, "")


def test_children_are_told_apart_by_name_and_number():
    second = LIST_SAS.partition("\n  net:")[2].replace(" #1,", " #12,").replace("c2ab1e3c", "c0000001")
    other = second.replace(" #12,", " #7,").replace("c0000001", "c0000002")
    text = f"{LIST_SAS}  net:{second}  net2:{other}"
    assert parse_children(text, "net") == [1, 12]
    assert parse_children(text, "net2") == [7]
    assert parse_children(text.replace("INSTALLED", "DELETING", 1), "net") == [12]
    assert parse_inbound(text, "net2") == 0xC0000002
    assert parse_inbound(text, "net") == 0xC2AB1E3C
    assert parse_inbound(text, "no") is None


@pytest.mark.parametrize("proposal", PROPOSALS)
def test_both_sites_fit_together(proposal):
    topology = site_to_site("igw-000000")
    a, b = (site_of(topology, role, proposal) for role in (Role.GATEWAY_A, Role.GATEWAY_B))
    assert (a.local, a.remote, a.local_network, a.remote_network) == (
        b.remote,
        b.local,
        b.remote_network,
        b.local_network,
    )
    assert (a.identity, a.peer) == (b.peer, b.identity)
    assert f"esp_proposals = {proposal}-x25519" in swanctl_conf(a)
    assert "inactivity = 0s\n" in swanctl_conf(a)
    assert "inactivity = 60s\n" in swanctl_conf(replace(a, inactivity=60))


@pytest.mark.parametrize("outer", [4, 6])
def test_sites_of_both_versions_fit_together(outer):
    topology = two_families("igw-000000")
    a, b = (site_of_versions(topology, role, PROPOSALS[0], outer, (4, 6)) for role in (Role.GATEWAY_A, Role.GATEWAY_B))
    assert (a.local, a.remote) == (b.remote, b.local)
    assert a.local.version == outer
    assert "local_ts = 10.1.0.0/24,fd01::/64\n" in swanctl_conf(a)
    assert "remote_ts = 10.1.0.0/24,fd01::/64\n" in swanctl_conf(b)
    alone = site_of_versions(topology, Role.GATEWAY_A, PROPOSALS[0], outer, (6,))
    assert "local_ts = fd01::/64\n" in swanctl_conf(alone)


VIRTUAL = """\
site: #1, ESTABLISHED, IKEv2, 5a0b9d03f2b4a6f1_i* 7b32f1c0b8ad5a6e_r
  local  'rw1' @ 192.168.71.2[4500] [10.99.0.1]
  remote 'gwa' @ 10.0.0.1[4500]
"""


def test_a_virtual_address_stands_behind_address_and_port():
    assert parse_virtual_address(VIRTUAL) == IPv4Address("10.99.0.1")
    assert parse_virtual_address(VIRTUAL.replace(" [10.99.0.1]", "")) is None
    assert parse_virtual_address(VIRTUAL.replace("local ", "remote")) is None


def test_roadwarriors_and_their_gateway_fit_together():
    here, lan = IPv4Address("10.0.0.1"), IPv4Network("10.1.0.0/24")
    gateway = Concentrator("gwa", "n", here, lan, IPv4Network("10.99.0.0/24"), PROPOSALS[0]).conf()
    road = Roadwarrior("rw1", "gwa", "n", IPv4Address("192.168.71.2"), here, lan, PROPOSALS[0]).conf()
    for conf, wanted in (
        (gateway, ("local_addrs = 10.0.0.1", "pools = virtual", "addrs = 10.99.0.0/24", "local_ts = 10.1.0.0/24")),
        (road, ("remote_addrs = 10.0.0.1", "vips = 0.0.0.0", "remote_ts = 10.1.0.0/24", "id = rw1", "id = gwa")),
    ):
        assert [line for line in wanted if line not in conf] == []
        assert conf.count("{") == conf.count("}")
