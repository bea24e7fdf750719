"""The indexed decision is the plain pairwise one, on small random snapshots where much overlaps."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from ipaddress import IPv4Address, ip_network
from unittest.mock import patch

import pytest
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st

from ipsec_gw import desired as decision
from ipsec_gw.desired import Owner, desired
from ipsec_gw.lineages import Lineage, lineages_of
from ipsec_gw.model.ids import IpNetwork, SaKey, TunnelId
from ipsec_gw.model.prefixes import PrefixIndex
from ipsec_gw.model.snapshot import Mode, PolicyDirection, ResolvedHop, Snapshot, Template, XfrmPolicy
from tests.support.world import LOCAL, OFFER, SETTINGS, policy, sa, snapshot

PEERS = [IPv4Address("10.0.0.2"), IPv4Address("10.0.0.3")]
MANY = 2000
"""Examples among which all that is compared is found, whatever the seed."""
REQIDS = st.integers(1, 3)


def bound(one: XfrmPolicy, key: TunnelId) -> bool:
    return (
        one.direction is PolicyDirection.OUT
        and one.allow
        and any(t.spi != 0 and TunnelId(t.reqid, t.destination) == key for t in one.templates)
    )


def plain_lineages(look: Snapshot) -> list[Lineage]:
    """Every tunnel looks at every policy."""
    return [
        replace(lineage, policies=tuple(p for p in look.policies if bound(p, lineage.key)))
        for lineage in lineages_of(replace(look, policies=()))
    ]


def overlap(one: IpNetwork, other: IpNetwork) -> bool:
    return one.version == other.version and one.overlaps(other)


class PlainPrecedence:
    """Every policy looks at every policy; none has a mark."""

    def __init__(self, policies: tuple[XfrmPolicy, ...], marks: Iterable[int]) -> None:
        self.policies = policies
        assert not list(marks)

    def rivals(self, mine: XfrmPolicy, key: TunnelId) -> list[XfrmPolicy]:
        earlier = self.policies[: self.policies.index(mine)]
        return [
            other
            for other in self.policies
            if other.direction is PolicyDirection.OUT
            and other.priority <= mine.priority
            and all(TunnelId(t.reqid, t.destination) != key for t in other.templates)
            and overlap(other.source, mine.source)
            and overlap(other.destination, mine.destination)
            and (other in earlier or other.priority < mine.priority or other.selector.meets(mine.selector))
        ]


@st.composite
def networks(draw: st.DrawFn) -> IpNetwork:
    """Few addresses and many lengths, so that most of them contain each other."""
    if draw(st.integers(0, 9)) == 0:
        return ip_network(
            (0x20010DB8 << 96 | draw(st.integers(0, 3)) << 64, draw(st.sampled_from([0, 32, 64, 128]))), 0
        )
    first = 0xC0A80000 | draw(st.integers(0, 7)) << 8
    return ip_network((first, draw(st.sampled_from([0, 16, 22, 23, 24, 25, 32]))), strict=False)


@st.composite
def policies(draw: st.DrawFn) -> XfrmPolicy:
    peer, reqid = draw(st.sampled_from(PEERS)), draw(REQIDS)
    templates = tuple(
        Template(LOCAL, peer, draw(st.sampled_from([0, 0x22, 0x22])), 50, reqid, Mode.TUNNEL)
        for _ in range(draw(st.sampled_from([0, 1, 1, 1, 1, 2])))
    )
    return policy(
        0,
        source=draw(networks()),
        destination=draw(networks()),
        direction=draw(st.sampled_from([PolicyDirection.OUT] * 4 + [PolicyDirection.FWD])),
        priority=draw(st.integers(1, 3)),
        allow=draw(st.integers(0, 9)) > 0,
        templates=templates,
        upper=draw(st.sampled_from([0, 0, 6, 17])),
    )


@st.composite
def looks(draw: st.DrawFn) -> Snapshot:
    children = draw(st.lists(st.tuples(REQIDS, st.sampled_from(PEERS)), max_size=5, unique=True))
    sas = [
        one
        for n, (reqid, peer) in enumerate(children)
        for one in (
            sa(0x100 + n, inbound=True, reqid=reqid, source=peer),
            sa(0x22, reqid=reqid, key=SaKey(peer, 0x22 if draw(st.booleans()) else 0x200 + n)),
        )
    ]
    hops = {peer: ResolvedHop("wan0", peer, "02:00:00:00:00:02", 1500) for peer in PEERS}
    return snapshot(*sas, policies=tuple(draw(st.lists(policies(), max_size=10))), next_hops=hops)


@given(looks())
def test_the_indexed_decision_is_the_pairwise_one(look: Snapshot) -> None:
    indexed = desired(OFFER, SETTINGS, look)
    with (
        patch.object(decision, "lineages_of", plain_lineages),
        patch.object(decision, "Precedence", PlainPrecedence),
    ):
        plain = desired(OFFER, SETTINGS, look)
    assert indexed == plain


@given(st.lists(networks(), max_size=30), networks())
def test_the_index_finds_exactly_what_overlaps(many: list[IpNetwork], one: IpNetwork) -> None:
    index = PrefixIndex((network, number) for number, network in enumerate(many))
    found = [number for group in index.overlapping(one) for number in group]
    assert sorted(found) == [number for number, network in enumerate(many) if overlap(network, one)]
    assert index.breadth(one) == len(found)


def reasons(look: Snapshot) -> set[str]:
    """What is compared of it: whether a tunnel is the engine's, and one is kept for another policy's sake."""
    verdicts = desired(OFFER, SETTINGS, look).verdicts
    owned = {"engine"} if any(verdict.owner is Owner.ENGINE for verdict in verdicts) else set()
    return owned | {"another policy" for verdict in verdicts if "another policy" in verdict.reason}


@pytest.mark.parametrize("what", ["another policy", "engine"])
def test_the_random_snapshots_have_what_is_compared(what: str) -> None:
    """The property above would be empty if everything were kept in the kernel for another reason."""
    found = find(
        looks(),
        lambda look: what in reasons(look),
        settings=settings(max_examples=MANY, deadline=None, phases=[Phase.generate]),
    )
    assert what in reasons(found)
