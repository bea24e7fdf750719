"""Every packet goes the way that XFRM would send it: to the engine's tunnel for it, or past the leads to the kernel."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from ipaddress import IPv4Address

import pytest
from hypothesis import Phase, find, given, settings

from ipsec_gw.desired import desired
from ipsec_gw.model.ids import TunnelId
from ipsec_gw.model.objects import Exempt, Lead, Selector, Tunnel
from ipsec_gw.model.snapshot import PolicyDirection, Snapshot, XfrmPolicy
from tests.property.test_desired_index import looks
from tests.support.world import OFFER, SETTINGS

ADDRESSES = [IPv4Address(0xC0A80000 | third << 8 | last) for third in (0, 1, 4, 7) for last in (0, 200)]
PROTOCOLS = (6, 17)
MANY = 5000
"""Examples among which each of them is found, whatever the seed."""

Packet = tuple[IPv4Address, IPv4Address, int]


def packets() -> Iterator[Packet]:
    return ((s, d, p) for s in ADDRESSES for d in ADDRESSES for p in PROTOCOLS)


def fits(packet: Packet, selector: Selector) -> bool:
    source, destination, protocol = packet
    return (
        selector.source.version == 4
        and source in selector.source
        and destination in selector.destination
        and selector.protocol in (0, protocol)
    )


def tunnels_of(policy: XfrmPolicy) -> set[TunnelId]:
    return {TunnelId(t.reqid, t.destination) for t in policy.templates}


def first_by_xfrm(look: Snapshot, packet: Packet) -> list[XfrmPolicy]:
    """Those of the smallest number that fit: which of them is first is not known."""
    found = [p for p in look.policies if p.direction is PolicyDirection.OUT and fits(packet, p.selector)]
    return [p for p in found if p.priority == min(one.priority for one in found)]


def half_bound(policy: XfrmPolicy, objects: dict[object, object]) -> bool:
    """Of a tunnel that stands, but not bound to its SA as its others are: charon leaves none like that."""
    stands = [objects[key] for key in tunnels_of(policy) if key in objects]
    return any(isinstance(one, Tunnel) and policy.selector not in one.selectors for one in stands)


def way(objects: dict[object, object], packet: Packet) -> TunnelId | None:
    """As the routing rules and then an engine decide: exemptions first, and of tunnels the narrowest."""
    if any(isinstance(one, Exempt) and fits(packet, one.key.selector) for one in objects.values()):
        return None
    if not any(isinstance(one, Lead) and fits(packet, one.key) for one in objects.values()):
        return None
    led = [
        (selector, tunnel.key)
        for tunnel in objects.values()
        if isinstance(tunnel, Tunnel)
        for selector in tunnel.selectors
        if fits(packet, selector)
    ]
    return min(led, key=lambda one: (-one[0].destination.prefixlen, -one[0].source.prefixlen))[1]


def check(look: Snapshot) -> Counter[str]:
    objects = dict(desired(OFFER, SETTINGS, look).objects)
    seen: Counter[str] = Counter()
    for packet in packets():
        first = first_by_xfrm(look, packet)
        owners = {frozenset(tunnels_of(policy)) for policy in first}
        if len(owners) > 1 or any(half_bound(policy, objects) for policy in first):
            continue
        wanted = {key for key in next(iter(owners), frozenset()) if key in objects}
        went = way(objects, packet)
        assert ({went} if went else set()) == wanted, (packet, first)
        seen["engine" if went else "kernel"] += 1
    seen["exemptions"] += sum(isinstance(one, Exempt) for one in objects.values())
    seen["nested"] += sum(bool(one.exceptions) for one in objects.values() if isinstance(one, Tunnel))
    return seen


@given(looks())
def test_each_packet_goes_where_xfrm_would_send_it(look: Snapshot) -> None:
    check(look)


@pytest.mark.parametrize("what", ["engine", "kernel", "exemptions", "nested"])
def test_the_random_snapshots_have_every_way(what: str) -> None:
    """The property above would be empty if everything were kept in the kernel."""
    look = find(
        looks(),
        lambda look: check(look)[what] > 0,
        settings=settings(max_examples=MANY, deadline=None, phases=[Phase.generate]),
    )
    assert check(look)[what] > 0
