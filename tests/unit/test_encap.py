"""Encap routes: the FIB's decision is the selectors' decision, and changes leave what a fresh start would make."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, ip_network

import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st

from ipsec_gw.errors import EngineError
from ipsec_gw.model.ids import IpNetwork
from ipsec_gw.model.objects import PortMatch, Selector
from vpp_conf.descriptors.route import ENCAP_TABLE, SHARED_TABLES, Route
from vpp_conf.encap import EncapMap

Tunnels = dict[int, frozenset[Selector]]


def selector(source: str, destination: str) -> Selector:
    return Selector(ip_network(source), ip_network(destination))


def lookup(routes: dict[tuple[int, IpNetwork], Route], table: int, address: IPv4Address) -> Route | None:
    """Longest prefix first, as VPP does."""
    for length in (32, 24, 23, 22, 21, 16, 8, 0):
        found = routes.get((table, ip_network((int(address) >> 32 - length << 32 - length, length))))
        if found is not None:
            return found
    return None


def routes_of(encap: EncapMap) -> dict[tuple[int, IpNetwork], Route]:
    return {(one.table, one.prefix): one for group in encap.all_routes().values() for one in group}


def decide(routes: dict[tuple[int, IpNetwork], Route], source: IPv4Address, destination: IPv4Address) -> int | None:
    found = lookup(routes, ENCAP_TABLE, destination)
    if found is not None and found.by_source is not None:
        found = lookup(routes, found.by_source, source)
    return found.sw_if_index if found else None


def inside(one: Selector, other: Selector) -> bool:
    return one.source.subnet_of(other.source) and one.destination.subnet_of(other.destination)


def confused(one: Selector, other: Selector) -> bool:
    """They have packets in common, and neither is a part of the other."""
    meet = one.source.overlaps(other.source) and one.destination.overlaps(other.destination)
    return meet and (one == other or not (inside(one, other) or inside(other, one)))


@st.composite
def networks(draw: st.DrawFn) -> IpNetwork:
    """Few addresses and many lengths, so that most of them contain each other."""
    first = 0x0A000000 | draw(st.integers(0, 7)) << 8
    return ip_network((first, draw(st.sampled_from([0, 21, 22, 23, 24, 32]))), strict=False)


@st.composite
def steps(draw: st.DrawFn) -> list[tuple[int, frozenset[Selector]]]:
    """Tunnels that come, change and go; a selector that is confused with another tunnel's is left out, as in life."""
    standing: Tunnels = {}
    made = []
    for _ in range(draw(st.integers(1, 12))):
        interface = draw(st.integers(1, 5))
        others = [one for key, held in standing.items() if key != interface for one in held]
        wanted = [Selector(draw(networks()), draw(networks())) for _ in range(draw(st.integers(0, 3)))]
        fit = frozenset(one for one in wanted if not any(confused(one, other) for other in others))
        standing[interface] = fit
        made.append((interface, fit))
    return made


ADDRESSES = [IPv4Address(0x0A000000 | third << 8 | last) for third in (0, 1, 5, 7) for last in (0, 9)][:7]


@settings(max_examples=150)
@given(steps())
def test_the_fib_decides_as_the_selectors_do(life: list[tuple[int, frozenset[Selector]]]) -> None:
    encap = EncapMap()
    standing: Tunnels = {}
    for interface, wanted in life:
        encap.put(interface, wanted)
        standing = {**standing, interface: wanted}
        routes = routes_of(encap)
        note(f"{interface}: {[str(one) for one in wanted]}")
        for source in ADDRESSES:
            for destination in ADDRESSES:
                owners = [
                    (one, key)
                    for key, held in standing.items()
                    for one in held
                    if source in one.source and destination in one.destination
                ]
                innermost = {
                    key for one, key in owners if not any(other != one and inside(other, one) for other, _ in owners)
                }
                assert len(innermost) < 2
                if owners:
                    assert decide(routes, source, destination) in innermost
        for key in (1, 2, 3, 4, 5):
            assert encap.selectors(key) == standing.get(key, frozenset())


@settings(max_examples=150)
@given(steps())
def test_changes_leave_what_a_fresh_start_would_make_and_can_be_undone(
    life: list[tuple[int, frozenset[Selector]]],
) -> None:
    encap = EncapMap()
    standing: Tunnels = {}
    for interface, wanted in life:
        before = encap.all_routes()
        change = encap.put(interface, wanted)
        after = encap.all_routes()
        moved = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
        assert moved <= change.affected, "what changes is told"
        encap.undo(change)
        assert encap.all_routes() == before
        encap.put(interface, wanted)
        assert encap.all_routes() == after
        standing = {**standing, interface: wanted}
        tables = {
            route.prefix: route.by_source for group in after.values() for route in group if route.by_source is not None
        }
        assert len(set(tables.values())) == len(tables), "no two destinations share a table"
        assert EncapMap({key: held for key, held in standing.items() if held}, tables).all_routes() == after
        rival = Selector(ip_network("10.0.0.0/22"), ip_network("10.0.0.0/22"))
        owners = {key for key, held in standing.items() if any(confused(one, rival) for one in held)}
        for key in (1, 2, None):
            found = encap.conflict(key, [rival])
            assert (found is None) is not bool(owners - {key})
            assert found is None or found[1] in owners - {key}


def test_one_tunnel_alone_needs_no_table() -> None:
    encap = EncapMap({3: frozenset({selector("10.0.0.0/8", "10.2.0.0/16"), selector("192.168.0.0/24", "10.2.0.0/16")})})
    assert encap.all_routes() == {
        ip_network("10.2.0.0/16"): {Route(ENCAP_TABLE, ip_network("10.2.0.0/16"), 3)},
    }


def test_both_families_have_their_own_wide_selector() -> None:
    encap = EncapMap()
    encap.put(1, frozenset({selector("10.0.0.0/8", "0.0.0.0/0"), selector("fd00::/64", "::/0")}))
    encap.put(2, frozenset({selector("10.9.0.0/16", "192.0.2.0/24")}))
    encap.put(3, frozenset({selector("fd01::/64", "2001:db8::/32")}))
    tables = {route.by_source for group in encap.all_routes().values() for route in group} - {None}
    assert len(tables) == 2
    assert encap.conflict(None, [selector("::/0", "2001:db8::/32")]) is not None
    assert encap.conflict(None, [selector("fd02::/65", "2001:db8::/32")]) is None
    assert encap.conflict(None, [selector("fd00::/65", "2001:db8::/32")]) is None, "inside the first"


def test_what_lies_inside_a_tunnels_selector_goes_its_own_way() -> None:
    encap = EncapMap({1: frozenset({selector("10.0.0.0/8", "10.0.0.0/8")})})
    encap.put(2, frozenset({selector("10.1.0.0/16", "10.2.0.0/16")}))
    encap.put(3, frozenset({selector("10.0.0.0/8", "10.3.0.0/16")}))
    routes = routes_of(encap)
    ways = {("10.1.0.1", "10.2.0.1"): 2, ("10.9.0.1", "10.2.0.1"): 1, ("10.1.0.1", "10.3.0.1"): 3}
    ways[("10.1.0.1", "10.4.0.1")] = 1
    for (source, destination), interface in ways.items():
        assert decide(routes, IPv4Address(source), IPv4Address(destination)) == interface


def test_narrower_on_one_side_and_wider_on_the_other_is_a_conflict() -> None:
    encap = EncapMap({1: frozenset({selector("10.1.0.0/16", "10.2.0.0/16")})})
    for crossing in (selector("10.1.2.0/24", "0.0.0.0/0"), selector("0.0.0.0/0", "10.2.3.0/24")):
        assert encap.conflict(None, [crossing]) == (crossing, 1)
    assert encap.conflict(None, [selector("10.1.0.0/16", "10.2.0.0/16")]) is not None


def test_ports_are_not_looked_at() -> None:
    one = Selector(ip_network("10.1.0.0/16"), ip_network("10.2.0.0/16"), 17, PortMatch(7, 0xFFFF))
    encap = EncapMap()
    encap.put(1, frozenset({one, replace(one, protocol=6)}))
    assert encap.selectors(1) == {one.networks}
    assert encap.conflict(None, [replace(one, protocol=1)]) is not None
    encap.put(1, frozenset({one}))
    assert encap.all_routes().keys() == {one.destination}


def test_more_shared_destinations_than_tables_are_refused_and_nothing_changes() -> None:
    encap = EncapMap()
    count = len(SHARED_TABLES)
    remotes = [f"10.{n >> 8}.{n & 255}.0/24" for n in range(count + 1)]
    encap.put(1, frozenset(selector("192.168.1.0/24", remote) for remote in remotes))
    encap.put(2, frozenset(selector("192.168.2.0/24", remote) for remote in remotes[:count]))
    before = encap.all_routes()
    with pytest.raises(EngineError, match="leave it to the kernel"):
        encap.put(3, frozenset({selector("192.168.3.0/24", remotes[count])}))
    assert encap.all_routes() == before
    encap.put(2, frozenset(selector("192.168.2.0/24", remote) for remote in remotes[1:count]))
    encap.put(3, frozenset({selector("192.168.3.0/24", remotes[count])}))
    assert len({route.by_source for group in encap.all_routes().values() for route in group}) == count + 1
