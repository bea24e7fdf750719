"""Lists of IPsec policies by far network, against XFRM's own rule: the matching one of the best priority."""

from __future__ import annotations

import random
from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest

from ipsec_gw.model.objects import PortMatch
from ipsec_gw.model.snapshot import Mode, PolicyDirection, Template, XfrmPolicy
from xdp_steer.compile.tunnels import tunnel_lists
from xdp_steer.flow_layout import MAX_TUNNELS_OF_NET, TunnelAction, TunnelSide

OUT, IN, FWD = PolicyDirection.OUT, PolicyDirection.IN, PolicyDirection.FWD
SEED = 20_26


def policy(direction=OUT, source="10.1.0.0/24", destination="10.2.0.0/24", **more):
    ends = ip_network(source), ip_network(destination)
    template = Template(ends[0][0], ends[1][0], 0, 50, more.pop("reqid", 1), Mode.TUNNEL)
    return XfrmPolicy(direction, *ends, more.pop("priority", 1000), True, more.pop("templates", (template,)), **more)


def test_far_and_near_change_places_with_the_direction():
    found = tunnel_lists([policy(OUT), policy(IN, "10.2.0.0/24", "10.1.0.0/24"), policy(FWD, "10.9.0.0/24")]).lists
    far, near = ip_network("10.2.0.0/24"), ip_network("10.1.0.0/24")
    assert set(found) == {(TunnelSide.OUT, far), (TunnelSide.IN, far)}
    assert {row.near for rows in found.values() for row in rows} == {near}


def test_ports_belong_to_their_side():
    ports = {"source_port": PortMatch(1, 0xFFFF), "destination_port": PortMatch(2, 0xFFFF), "upper": 6}
    found = tunnel_lists([policy(OUT, **ports), policy(IN, **ports)]).lists
    rows = {side: row for (side, _), (row,) in found.items()}
    assert (rows[TunnelSide.OUT].near_port.port, rows[TunnelSide.OUT].far_port.port) == (1, 2)
    assert (rows[TunnelSide.IN].near_port.port, rows[TunnelSide.IN].far_port.port) == (2, 1)


def test_a_policy_without_templates_or_one_that_blocks_protects_nothing():
    for one in (policy(templates=()), policy(priority=1)):
        (row,) = next(iter(tunnel_lists([one]).lists.values()))
        assert (row.action is TunnelAction.PROTECT) is bool(one.templates)


def test_what_does_not_fit_is_named():
    many = [policy(source=f"10.1.{n}.0/24", priority=n) for n in range(MAX_TUNNELS_OF_NET + 1)]
    found = tunnel_lists(many)
    assert found.cut == (ip_network("10.2.0.0/24"),)
    assert [len(rows) for rows in found.lists.values()] == [MAX_TUNNELS_OF_NET]
    assert tunnel_lists(many[1:]).cut == ()


@pytest.mark.parametrize("family", [IPv4Address, IPv6Address])
def test_the_first_that_matches_is_what_xfrm_takes(family):
    rng = random.Random(f"{SEED} {family.__name__}")
    print("seed", SEED)
    bits = family(0).max_prefixlen

    def network():
        length = rng.choice((0, 1, 2, 3, bits))
        return ip_network((rng.getrandbits(3) << (bits - 3), length), strict=False)

    for _ in range(300):
        policies = [
            policy(
                source=network(),
                destination=network(),
                priority=rng.randrange(4),
                reqid=number,
                upper=rng.choice((0, 6)),
            )
            for number in range(rng.randrange(8))
        ]
        lists = tunnel_lists(policies).lists
        for _ in range(20):
            near, far = (family(rng.getrandbits(3) << (bits - 3)) for _ in range(2))
            protocol = rng.choice((6, 17))
            assert by_list(lists, near, far, protocol) == by_xfrm(policies, near, far, protocol), policies


def by_list(lists, near, far, protocol):
    covering = [net for side, net in lists if side is TunnelSide.OUT and far in net]
    if not covering:
        return None
    rows = lists[TunnelSide.OUT, max(covering, key=lambda net: net.prefixlen)]
    return next((row.reqid for row in rows if near in row.near and row.protocol in (0, protocol)), None)


def by_xfrm(policies, near, far, protocol):
    fitting = [one for one in policies if near in one.source and far in one.destination and one.upper in (0, protocol)]
    best = min(fitting, key=lambda one: one.priority, default=None)  # the first of equals, as they were installed
    return best.templates[0].reqid if best else None
