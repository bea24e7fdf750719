"""The edge's other networks, their configurations, and what addresses become there, without a network."""

from ipaddress import IPv4Address, IPv6Address, IPv6Network

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6EchoRequest, IPv6
from scapy.packet import raw

from ipsec_gw.config.load import load
from ipsec_gw.lab.crowd import Met
from ipsec_gw.lab.edge import (
    BEHIND_LAN,
    CALLERS,
    INSIDE6,
    LAN_PATH_MTU,
    OUTSIDE6,
    POOL,
    beside_ipv4,
    crowded,
    edge,
    renumbered,
)
from ipsec_gw.lab.junk import SOURCES, SOURCES6
from ipsec_gw.lab.packets import intact, ip_packet
from ipsec_gw.lab.prefixes import embedded, nptv6
from ipsec_gw.lab.scenarios import find
from ipsec_gw.lab.scenarios.edge_rules import FOUR, PREFIX, nat64_rules, nptv6_rules
from ipsec_gw.lab.topology import HOST, LAN, Role, batches

TAG = "igw-0a1b2c"


def written(directory, text):
    file = directory / "ipsec-gw.toml"
    file.write_text(text)
    return load(file).firewall


def lines(topology, role):
    return next(batch.lines for batch in batches(topology)[1:] if batch.namespace == topology.namespace(role))


def test_addresses_behind_a_prefix_are_those_of_rfc_6052():
    well_known = IPv6Network("64:ff9b::/96")
    assert embedded(well_known, IPv4Address("192.0.2.33")) == IPv6Address("64:ff9b::192.0.2.33")
    with pytest.raises(ValueError, match="is no /96"):
        embedded(IPv6Network("2001:db8:100::/40"), IPv4Address("192.0.2.33"))


@pytest.mark.parametrize(
    ("inside", "outside"),
    [
        ("fd01:203:405:1::1234", "2001:db8:1:d550::1234"),  # RFC 6296 appendix B
        ("fd01:203:405:ffff::1", "2001:db8:1:d54f::1"),
        ("fd01:203:405:2ab0::1", "2001:db8:1::1"),  # 0xffff is never made, 0 is
    ],
)
def test_prefixes_are_translated_as_rfc_6296_does_it(inside, outside):
    found = nptv6(IPv6Address(inside), IPv6Network("fd01:203:405::/48"), IPv6Network("2001:db8:1::/48"))
    assert found == IPv6Address(outside)


def test_other_prefixes_are_not_reckoned_with():
    with pytest.raises(ValueError, match="does not go from"):
        nptv6(IPv6Address("fd02::1"), INSIDE6, OUTSIDE6)
    with pytest.raises(ValueError, match="does not go from"):
        nptv6(IPv6Address("fd12:3456:789a::1"), IPv6Network("fd12:3456::/32"), IPv6Network("2001:db8::/32"))


def test_the_renumbered_lan_is_known_outside_by_its_outside_prefix_alone(tmp_path):
    topology = renumbered(TAG)
    for role, interface in ((Role.CLIENT, HOST), (Role.INNER, HOST), (Role.GATEWAY_A, LAN)):
        assert topology.address6(role, interface) in INSIDE6
        assert topology.port(role, interface).address == edge(TAG).port(role, interface).address
    assert not any(route.destination.overlaps(INSIDE6) for route in topology.routes if route.role is Role.WAN)
    assert OUTSIDE6 in BEHIND_LAN
    client = topology.address6(Role.CLIENT, HOST)
    assert f"route add {client}/128 via {client} mtu lock {LAN_PATH_MTU}" in lines(topology, Role.GATEWAY_A)
    (rule,) = written(tmp_path, nptv6_rules()).nptv6
    assert (rule.internal, rule.external, rule.zone) == (INSIDE6, OUTSIDE6, "untrust")


def test_one_host_beside_ipv4_has_no_trace_of_it(tmp_path):
    topology = beside_ipv4(TAG)
    assert topology.port(Role.INNER, HOST).address is None
    assert not [line for line in lines(topology, Role.INNER) if "10.1.0." in line or "0.0.0.0" in line]
    assert topology.address6(Role.INNER, HOST) == edge(TAG).address6(Role.INNER, HOST)
    assert "addr add 10.1.0.10/24 dev eth0" in lines(topology, Role.CLIENT)
    firewall = written(tmp_path, nat64_rules(topology))
    (rule,) = firewall.nat64
    assert [str(source) for source in firewall.source_nat[0].sources] == ["10.1.0.0/24"]
    assert (rule.prefix, rule.pool) == (PREFIX, "four")
    assert FOUR in POOL


def test_the_crowded_server_has_callers_and_nobody_is_answered():
    topology = crowded(TAG)
    further = topology.port(Role.SERVER, HOST).further
    assert len(set(further)) == 2 * CALLERS
    own = topology.address(Role.SERVER, HOST), topology.address6(Role.SERVER, HOST)
    assert not {one.ip for one in further} & set(own)
    router = lines(topology, Role.WAN)
    for network in (SOURCES, SOURCES6):
        assert f"route add blackhole {network}" in router


def test_right_and_wrong_checksums_are_told_apart():
    for packet in (
        IP(src="10.1.0.1", dst="10.2.0.1") / TCP(sport=1, dport=2) / b"abc",
        IPv6(src="2001:db8::1", dst="2001:db8::2") / UDP(sport=1, dport=2) / b"odd",
        IPv6(src="2001:db8::1", dst="2001:db8::2") / ICMPv6EchoRequest(id=7) / b"echo",
        IPv6(src="2001:db8::1", dst="2001:db8::2") / ICMPv6DestUnreach() / IPv6() / UDP(),
    ):
        data = raw(packet)
        assert intact(ip_packet(data))
        assert not intact(ip_packet(data[:-1] + bytes([data[-1] ^ 1])))


def test_flows_that_cannot_be_told_apart_are_counted():
    ends = ("203.0.113.17", 1), ("203.0.113.17", 2), ("203.0.113.18", 1)
    assert Met(ends, 0).twice == 0
    assert Met((*ends, ends[1], ends[1]), 0).twice == 2


@pytest.mark.parametrize("name", ["screens", "nat64", "nptv6"])
def test_they_run_in_any_kernel(name):
    assert [part.needs_esp for part in find(name).parts] == [False]
