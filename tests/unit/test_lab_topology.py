"""The lab's network as a value."""

from ipaddress import IPv4Address, IPv4Network

import pytest

from ipsec_gw.lab.sites import seen_address, site_of
from ipsec_gw.lab.topology import (
    HOST,
    LAN,
    MAX_INTERFACE_NAME,
    OUTSIDE,
    WAN,
    Role,
    batches,
    behind_nat,
    crossroads,
    guarded,
    one_network,
    roadwarriors,
    site_to_site,
    two_families,
    two_networks,
)

TAG = "igw-0a1b2c"


def test_every_namespace_is_named_after_the_run():
    assert site_to_site(TAG).namespaces == (
        "igw-0a1b2c-client",
        "igw-0a1b2c-gwa",
        "igw-0a1b2c-wan",
        "igw-0a1b2c-gwb",
        "igw-0a1b2c-server",
    )


def test_two_runs_share_no_namespace():
    assert not set(site_to_site(TAG).namespaces) & set(site_to_site("igw-ffffff").namespaces)


ALL = pytest.mark.parametrize(
    "make", [site_to_site, two_networks, two_families, behind_nat, roadwarriors], ids=lambda make: make.__name__
)


@ALL
def test_each_wire_that_carries_addresses_is_one_network(make):
    topology = make(TAG)
    for wire in topology.wires:
        ends = [end.address for end in (wire.left, wire.right) if end.address is not None]
        assert len({end.network for end in ends}) == 1
        assert len({end.ip for end in ends}) == len(ends)


def test_guarded_gateways_have_a_black_hole_for_each_other():
    topology = guarded(TAG)
    holes = {(route.role, route.destination) for route in topology.routes if route.via is None}
    assert (Role.GATEWAY_A, IPv4Network("10.2.0.0/24")) in holes
    assert (Role.GATEWAY_B, IPv4Network("10.11.0.0/24")) in holes
    for role, other in ((Role.GATEWAY_A, Role.GATEWAY_B), (Role.GATEWAY_B, Role.GATEWAY_A)):
        assert {network for where, network in holes if where is role} == set(topology.behind(other))
    assert set(crossroads(TAG).routes) < set(topology.routes)


def test_all_that_a_gateway_has_behind_it_counts():
    assert site_to_site(TAG).behind(Role.GATEWAY_A) == (IPv4Network("10.1.0.0/24"),)
    behind = crossroads(TAG).behind(Role.GATEWAY_B)
    assert {"10.2.0.0/24", "10.12.0.0/24", "10.66.0.0/24", "fd12::/64"} <= set(map(str, behind))


def test_one_network_is_at_both_sites():
    topology = one_network(TAG)
    assert topology.behind(Role.GATEWAY_A) == topology.behind(Role.GATEWAY_B)
    hosts = [(role, HOST) for role in (Role.CLIENT, Role.SERVER)]
    gateways = [(role, LAN) for role in (Role.GATEWAY_A, Role.GATEWAY_B)]
    assert len({topology.address(*place) for place in (*hosts, *gateways)}) == 4
    assert {route.role for route in topology.routes} == {Role.GATEWAY_A, Role.GATEWAY_B}, "hosts need none"


def test_two_networks_are_behind_gateway_b_alone():
    topology = two_networks(TAG)
    assert topology.behind(Role.GATEWAY_A) == site_to_site(TAG).behind(Role.GATEWAY_A)
    first, second = topology.behind(Role.GATEWAY_B)
    assert (str(first), str(second)) == ("10.2.0.0/24", "10.3.0.0/24")
    (server,) = topology.port(Role.SERVER, HOST).further
    assert server.ip in second


def test_two_families_are_wired_alike():
    topology = two_families(TAG)
    for wire in topology.wires:
        ends = [end.address6 for end in (wire.left, wire.right) if end.address6 is not None]
        assert len({end.network for end in ends}) == 1
        assert len({end.ip for end in ends}) == len(ends)
    for role, name in ((Role.GATEWAY_A, WAN), (Role.GATEWAY_A, LAN), (Role.GATEWAY_B, WAN), (Role.GATEWAY_B, LAN)):
        assert [address.version for address in topology.addresses(role, name)] == [4, 6]
        assert [network.version for network in topology.networks(role, name)] == [4, 6]
    wan = next(batch for batch in batches(topology) if batch.namespace == topology.namespace(Role.WAN))
    assert "addr add 2001:db8::fe/64 dev br0 nodad" in wan.lines


def test_both_gateways_meet_on_the_bridges_network():
    topology = site_to_site(TAG)
    networks = {topology.network(role, WAN) for role in (Role.GATEWAY_A, Role.GATEWAY_B)}
    assert networks == {topology.bridge.address.network}


def test_sites_do_not_overlap():
    topology = site_to_site(TAG)
    assert not topology.network(Role.GATEWAY_A, LAN).overlaps(topology.network(Role.GATEWAY_B, LAN))


@ALL
def test_every_route_has_its_next_hop_on_a_connected_network(make):
    topology = make(TAG)
    for route in topology.routes:
        networks = [
            network for port in topology.ports(route.role) for network in topology.networks(route.role, port.name)
        ]
        assert any(route.via in network for network in networks), route


def test_interface_names_fit_and_do_not_repeat():
    topology = site_to_site(TAG)
    for role in topology.roles:
        names = [port.name for port in topology.ports(role)]
        assert len(names) == len(set(names))
        assert all(0 < len(name) <= MAX_INTERFACE_NAME for name in names)


def test_what_faces_the_gateway_under_test_sends_complete_packets():
    topology = site_to_site(TAG)
    for wire in topology.wires:
        for own, peer in ((wire.left, wire.right), (wire.right, wire.left)):
            if own.role is Role.GATEWAY_A:
                assert peer.wire_checksums


def test_wires_are_made_first_and_only_between_namespaces():
    topology = site_to_site(TAG)
    first, *rest = batches(topology)
    assert first.namespace is None
    assert len(first.lines) == len(topology.wires)
    assert all(line.count(" netns igw-0a1b2c-") == 2 for line in first.lines)
    assert {batch.namespace for batch in rest} == set(topology.namespaces)


def test_routes_come_after_the_links_are_up():
    for batch in batches(site_to_site(TAG))[1:]:
        routes = [number for number, line in enumerate(batch.lines) if line.startswith("route")]
        ups = [number for number, line in enumerate(batch.lines) if line.endswith(" up")]
        assert all(route > up for route in routes for up in ups)


def test_addresses_are_found_by_role_and_interface():
    topology = site_to_site(TAG)
    assert topology.address(Role.CLIENT, HOST) == IPv4Address("10.1.0.10")
    assert topology.network(Role.SERVER, HOST) == IPv4Network("10.2.0.0/24")
    with pytest.raises(KeyError, match="server has no interface wan0"):
        topology.port(Role.SERVER, WAN)
    with pytest.raises(KeyError, match="wan has no address on to-a"):
        topology.address(Role.WAN, "to-a")


def test_a_gateway_behind_nat_is_known_by_the_address_of_its_router():
    topology = behind_nat(TAG)
    private, public = topology.address(Role.GATEWAY_B, WAN), topology.address(Role.NAT, OUTSIDE)
    assert seen_address(topology, Role.GATEWAY_B) == public != private
    assert public in topology.network(Role.GATEWAY_A, WAN)
    assert private not in topology.network(Role.GATEWAY_A, WAN)
    a, b = (site_of(topology, role, "aes128gcm16") for role in (Role.GATEWAY_A, Role.GATEWAY_B))
    assert (a.remote, b.local) == (public, private)
    assert seen_address(site_to_site(TAG), Role.GATEWAY_B) == site_to_site(TAG).address(Role.GATEWAY_B, WAN)


def test_two_roadwarriors_share_an_address_and_one_has_its_own():
    topology = roadwarriors(TAG)
    wan = topology.network(Role.GATEWAY_A, WAN)
    inside = [topology.address(role, WAN) in wan for role in (Role.ROAD_1, Role.ROAD_2, Role.ROAD_3)]
    assert inside == [False, False, True]
