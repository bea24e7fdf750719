"""Several tunnels of transport mode between the same hosts: told apart by ports, by XFRM's order, or not at all."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from ipsec_gw.desired import Desired, Owner, desired
from ipsec_gw.model.choices import Choices
from ipsec_gw.model.ids import SaKey, TunnelId
from ipsec_gw.model.objects import (
    ANY_PORT,
    EngineSa,
    Exempt,
    ExemptKey,
    Hosts,
    HostsLead,
    InterfaceKind,
    ManagedObject,
    ObjectKey,
    PortMatch,
    Selector,
    Tunnel,
    XfrmInterface,
)
from ipsec_gw.model.snapshot import (
    ChildName,
    Encapsulator,
    Mode,
    Snapshot,
    Template,
    XfrmPolicy,
    XfrmSa,
)
from ipsec_gw.reconcile.plan import Action, plan
from tests.support.world import LOCAL, OFFER, REMOTE, SETTINGS, policy, sa, snapshot

HERE, THERE = ip_network(LOCAL), ip_network(REMOTE)
HOSTS = Hosts(LOCAL, REMOTE)
UDP, TCP = 17, 6
VXLAN = PortMatch(4789, 0xFFFF)
IN_REACH = PortMatch(0x1000, 0xF000)
"""Ports 4096 to 8191."""

TO, FROM, WEB = 1, 2, 3
"""The reqids of two children for VXLAN, by the port it goes to and the one it comes from, and of one for HTTPS."""


def selects(
    reqid: int, *, index: int = 0, spi: int | None = None, mode: Mode = Mode.TRANSPORT, **changes: object
) -> XfrmPolicy:
    bound = Template(LOCAL, REMOTE, 0x20 + reqid if spi is None else spi, 50, reqid, mode)
    ports = {
        TO: {"upper": UDP, "destination_port": VXLAN},
        FROM: {"upper": UDP, "source_port": VXLAN},
        WEB: {"upper": TCP, "destination_port": PortMatch(443, 0xFFFF)},
    }
    hosts = {"source": HERE, "destination": THERE, "templates": (bound,), "index": index or reqid}
    return policy(0, **{**hosts, **ports[reqid], **changes})


def pair(reqid: int, **changes: object) -> tuple[XfrmSa, XfrmSa]:
    both = {"mode": Mode.TRANSPORT, "reqid": reqid, **changes}
    return sa(0x10 + reqid, inbound=True, **both), sa(0x20 + reqid, **both)


def beside(*policies: XfrmPolicy, sas: tuple[XfrmSa, ...] = (*pair(TO), *pair(FROM)), **changes: object) -> Snapshot:
    """The two children for VXLAN, the one for the port it goes to first."""
    chosen = policies or (selects(TO, index=8), selects(FROM, index=16))
    return snapshot(*sas, policies=chosen, sources={}, **changes)


def tunnel(found: Desired, reqid: int) -> Tunnel:
    one = found.objects[TunnelId(reqid, REMOTE)]
    assert isinstance(one, Tunnel)
    return one


def exempted(found: Desired) -> set[Selector]:
    return {obj.key.selector for obj in found.objects.values() if isinstance(obj, Exempt)}


def reasons(found: Desired) -> set[str]:
    return {verdict.reason for verdict in found.verdicts if verdict.owner is Owner.KERNEL}


def test_children_for_one_port_each_are_both_in_the_engine() -> None:
    found = desired(OFFER, SETTINGS, beside())
    assert {verdict.owner for verdict in found.verdicts} == {Owner.ENGINE}
    for reqid, selector in ((TO, selects(TO).selector), (FROM, selects(FROM).selector)):
        one = tunnel(found, reqid)
        assert (one.hosts, one.selectors, one.exceptions) == (True, (selector,), ())
    assert [obj for obj in found.objects.values() if isinstance(obj, HostsLead)] == [HostsLead(HOSTS)]
    assert exempted(found) == set()


@pytest.mark.parametrize(
    ("first", "second", "winner"),
    [
        ({"index": 8}, {"index": 16}, TO),
        ({"index": 24}, {"index": 16}, FROM),
        ({"index": 24, "priority": 100}, {"index": 16, "priority": 200}, TO),
    ],
)
def test_what_fits_both_belongs_to_the_one_that_xfrm_tries_first(
    first: dict[str, int], second: dict[str, int], winner: int
) -> None:
    found = desired(OFFER, SETTINGS, beside(selects(TO, **first), selects(FROM, **second)))
    ranks = {reqid: tunnel(found, reqid).rank for reqid in (TO, FROM)}
    assert sorted(ranks.values()) == [0, 1]
    assert max(ranks, key=lambda reqid: ranks[reqid]) == winner


def test_those_with_nothing_in_common_have_no_order() -> None:
    found = desired(OFFER, SETTINGS, beside(selects(TO), selects(WEB), sas=(*pair(TO), *pair(WEB))))
    assert (tunnel(found, TO).rank, tunnel(found, WEB).rank) == (0, 0)


def test_another_protocol_is_something_else_whatever_its_ports() -> None:
    tcp = selects(WEB, destination_port=ANY_PORT)
    found = desired(OFFER, SETTINGS, beside(selects(TO), tcp, sas=(*pair(TO), *pair(WEB))))
    assert {verdict.owner for verdict in found.verdicts} == {Owner.ENGINE}


def chain(first: int, middle: int, last: int, *sas: XfrmSa) -> Snapshot:
    """Each has packets in common with the one in the middle, and those at the ends have none; with these indices."""
    return beside(
        selects(TO, index=first, destination_port=PortMatch(80, 0xFFFF)),
        selects(FROM, index=middle, source_port=IN_REACH),
        selects(WEB, index=last, upper=UDP, destination_port=PortMatch(81, 0xFFFF)),
        sas=sas or (*pair(TO), *pair(FROM), *pair(WEB)),
    )


@pytest.mark.parametrize(
    ("indices", "ranks"), [((8, 16, 24), (2, 1, 0)), ((16, 8, 24), (0, 1, 0)), ((8, 24, 16), (1, 0, 1))]
)
def test_ranks_follow_the_order_through_several(indices: tuple[int, int, int], ranks: tuple[int, int, int]) -> None:
    found = desired(OFFER, SETTINGS, chain(*indices))
    assert tuple(tunnel(found, reqid).rank for reqid in (TO, FROM, WEB)) == ranks


def test_one_that_stays_in_the_kernel_is_exempted() -> None:
    gone = pair(WEB, replay=replace(sa(1).replay, window=1 << 20))
    found = desired(OFFER, SETTINGS, beside(selects(TO), selects(WEB), sas=(*pair(TO), *gone)))
    assert tunnel(found, TO).hosts
    assert exempted(found) == {selects(WEB).selector}
    assert found.objects[ExemptKey(selects(WEB).selector)] == Exempt(ExemptKey(selects(WEB).selector), unbound=False)
    assert len(reasons(found)) == 1
    assert "replay window" in reasons(found).pop()


def test_one_that_stays_in_the_kernel_keeps_those_that_share_packets_with_it() -> None:
    gone = pair(FROM, replay=replace(sa(1).replay, window=1 << 20))
    found = desired(OFFER, SETTINGS, beside(sas=(*pair(TO), *gone)))
    assert {verdict.owner for verdict in found.verdicts} == {Owner.KERNEL}
    assert any("beside another policy for its hosts" in reason for reason in reasons(found))
    assert found.objects == {}


def test_and_those_that_share_packets_with_these() -> None:
    gone = pair(TO, replay=replace(sa(1).replay, window=1 << 20))
    state = chain(8, 16, 24, *gone, *pair(FROM), *pair(WEB))
    found = desired(OFFER, SETTINGS, state)
    assert {verdict.owner for verdict in found.verdicts} == {Owner.KERNEL}
    first, _, last = state.policies
    without = desired(OFFER, SETTINGS, beside(first, last, sas=(*gone, *pair(WEB))))
    assert tunnel(without, WEB).hosts, "it has nothing in common with the first one itself"


def test_one_whose_sa_may_not_be_used_yet_goes_the_kernels_way_meanwhile() -> None:
    used = {SaKey(REMOTE, 0x20 + FROM): "the kernel has sent with it"}
    found = desired(OFFER, SETTINGS, beside(), used)
    assert tunnel(found, TO).hosts
    assert TunnelId(FROM, REMOTE) not in found.objects
    assert exempted(found) == {selects(FROM).selector}
    both = desired(OFFER, SETTINGS, beside(), used | {SaKey(REMOTE, 0x20 + TO): "and with this"})
    assert exempted(both) == set(), "nothing is led"


def test_one_without_policies_yet_has_nothing_to_exempt() -> None:
    found = desired(OFFER, SETTINGS, beside(selects(TO), sas=(*pair(TO), *pair(FROM))))
    assert tunnel(found, TO).hosts
    assert exempted(found) == set()
    assert {verdict.owner for verdict in found.verdicts} == {Owner.ENGINE, Owner.PENDING}


def test_one_that_waits_for_its_first_packet_does_not_matter() -> None:
    trap = selects(FROM, spi=0)
    found = desired(OFFER, SETTINGS, beside(selects(TO), trap, sas=pair(TO)))
    assert tunnel(found, TO).hosts


def test_a_connection_that_is_not_to_be_accelerated_is_exempted() -> None:
    state = beside(selects(TO), selects(WEB), sas=(*pair(TO), *pair(WEB)))
    names = {spi: ChildName("web", "net", 2, 2, "INSTALLED") for spi in (0x10 + WEB, 0x20 + WEB)}
    settings = replace(SETTINGS, choices=Choices(kept=frozenset({"web"})))
    found = desired(OFFER, settings, replace(state, names=state.names | names))
    assert exempted(found) == {selects(WEB).selector}
    assert tunnel(found, TO).hosts


GRE1 = Encapsulator(XfrmInterface(17, "gre1", InterfaceKind.GRE), LOCAL, REMOTE)
FAR = ip_address("10.0.0.77")
OTHERS: dict[str, XfrmPolicy] = {
    "for everything": selects(FROM, upper=0, source_port=ANY_PORT),
    "for what lies inside": selects(FROM, source_port=PortMatch(7, 0xFFFF), destination_port=VXLAN),
    "what a device sends": selects(FROM, upper=47, source_port=ANY_PORT),
    "ports that are no range": selects(FROM, source_port=PortMatch(1, 0x0001)),
    "with a mark": selects(FROM, mark=(7, 0xFFFFFFFF)),
    "of an interface": selects(FROM, if_id=7),
    "bound to an interface": selects(FROM, bound=True),
    "to somewhere else": selects(FROM, templates=(Template(LOCAL, FAR, 0x22, 50, FROM, Mode.TUNNEL),)),
    "in another mode": selects(FROM, mode=Mode.BEET),
    "by AH alone": selects(FROM, templates=(Template(LOCAL, REMOTE, 0x22, 51, FROM, Mode.TRANSPORT),)),
    "for a network": selects(FROM, destination=ip_network("10.0.0.0/24")),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS.keys())
def test_what_cannot_be_taken_from_the_rest_keeps_it_in_the_kernel(other: XfrmPolicy) -> None:
    found = desired(OFFER, SETTINGS, beside(selects(TO), other, sas=pair(TO), encapsulators=(GRE1,)))
    assert reasons(found) == {f"transport mode beside another policy for its hosts ({other.selector})"}
    assert found.objects == {}


def test_policies_that_go_before_each_other_are_not_told_apart() -> None:
    """One has the first policy, the other the second, which is before the third, of the first."""
    state = beside(
        selects(TO, index=8),
        selects(FROM, index=16),
        selects(TO, index=24, destination_port=PortMatch(80, 0xFFFF)),
        selects(FROM, index=32, source_port=PortMatch(81, 0xFFFF)),
    )
    found = desired(OFFER, SETTINGS, state)
    assert all("no order tells" in reason for reason in reasons(found))
    assert {verdict.owner for verdict in found.verdicts} == {Owner.KERNEL}


def test_other_hosts_are_another_matter() -> None:
    far = Template(LOCAL, FAR, 0x22, 50, FROM, Mode.TRANSPORT)
    other = selects(FROM, destination=ip_network(FAR), templates=(far,))
    elsewhere = tuple(
        replace(one, source=FAR) if one.key.destination == LOCAL else replace(one, key=SaKey(FAR, one.key.spi))
        for one in pair(FROM, replay=replace(sa(1).replay, window=1 << 20))
    )
    found = desired(OFFER, SETTINGS, beside(selects(TO), other, sas=(*pair(TO), *elsewhere)))
    assert tunnel(found, TO).hosts
    assert exempted(found) == set()


def objects(state: Snapshot, refused: dict[SaKey, str] | None = None) -> dict[ObjectKey, ManagedObject]:
    return dict(desired(OFFER, SETTINGS, state, refused).objects)


def test_a_lead_stays_while_a_tunnel_beside_comes_and_goes() -> None:
    alone = objects(beside(selects(TO), sas=pair(TO)))
    both = objects(beside())
    for before, after in ((alone, both), (both, alone)):
        assert not [op for op in plan(after, before) if isinstance(op.obj, HostsLead)]
    moved = objects(beside(selects(FROM), sas=pair(FROM)))
    leads = [op.action for op in plan(moved, alone) if isinstance(op.obj, HostsLead)]
    assert leads == [Action.DELETE, Action.CREATE], "no tunnel stays with it"


def test_what_goes_to_the_kernel_is_exempted_before_and_what_comes_back_after() -> None:
    both, one = objects(beside()), objects(beside(), {SaKey(REMOTE, 0x20 + FROM): "used"})
    there = [str(op) for op in plan(one, both)]
    gone = next(n for n, op in enumerate(plan(one, both)) if op.action is Action.DELETE and isinstance(op.obj, Tunnel))
    assert there.index(f"create exemption of {selects(FROM).selector}") < gone
    back = plan(both, one)
    comes = next(n for n, op in enumerate(back) if op.action is Action.CREATE and isinstance(op.obj, Tunnel))
    assert [str(op) for op in back].index(f"delete exemption of {selects(FROM).selector}") > comes
    assert not any(isinstance(op.obj, EngineSa) and op.obj.key == SaKey(REMOTE, 0x20 + TO) for op in back)
    (spared,) = [op for op in back if op.action is Action.DELETE and isinstance(op.obj, Exempt)]
    assert spared.frees == {TunnelId(FROM, REMOTE), HOSTS}, "it stays if these cannot come"
    without = objects(beside(selects(TO), sas=pair(TO)))
    (spared,) = [op for op in plan(without, one) if op.action is Action.DELETE and isinstance(op.obj, Exempt)]
    assert spared.frees == frozenset(), "its policy is gone"
