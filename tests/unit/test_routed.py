"""Route-based tunnels: which of them an engine may have, what is asked for then, and why the others stay."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from ipsec_gw.desired import Desired, Owner, Settings, desired
from ipsec_gw.model.choices import Choices
from ipsec_gw.model.ids import SaKey, TunnelId
from ipsec_gw.model.objects import (
    EntryKey,
    InterfaceEntry,
    InterfaceLead,
    Lead,
    Selector,
    Tunnel,
    XfrmInterface,
)
from ipsec_gw.model.snapshot import LeadLimits, Snapshot
from ipsec_gw.reconcile.plan import Action, plan
from tests.support.world import HERE, LOCAL, OFFER, REMOTE, SETTINGS, THERE, policy, sa, snapshot

ANY4, ANY6 = ip_network("0.0.0.0/0"), ip_network("::/0")
IF_ID = 42
IPSEC0 = XfrmInterface(17, "ipsec0")
TUNNEL = TunnelId(1, REMOTE)


def routed(*versions: int, if_id: int = IF_ID, **changes: object) -> Snapshot:
    """A tunnel for anything of these IP versions, by ipsec0."""
    nets = [ANY4 if version == 4 else ANY6 for version in versions or (4,)]
    return snapshot(
        sa(0x11, inbound=True, if_id=if_id),
        sa(0x22, if_id=if_id),
        **{
            "policies": tuple(policy(0x22, source=net, destination=net, if_id=if_id) for net in nets),
            "interfaces": {IF_ID: IPSEC0},
            **changes,
        },
    )


def kept(found: Desired) -> set[str]:
    """Why all of it is the kernel's."""
    assert not found.objects
    assert {verdict.owner for verdict in found.verdicts} == {Owner.KERNEL}
    return {verdict.reason for verdict in found.verdicts}


def test_it_is_led_by_its_interface_and_not_by_networks() -> None:
    found = desired(OFFER, SETTINGS, routed())
    tunnel = found.objects[TUNNEL]
    assert isinstance(tunnel, Tunnel)
    assert (tunnel.interface, tunnel.selectors) == (IPSEC0, (Selector(ANY4, ANY4),))
    assert found.objects[IPSEC0] == InterfaceLead(IPSEC0, 1446, frozenset({4}))
    assert found.objects[EntryKey(IPSEC0)] == InterfaceEntry(EntryKey(IPSEC0), frozenset({4}))
    assert not any(isinstance(obj, Lead) for obj in found.objects.values())
    assert {verdict.owner for verdict in found.verdicts} == {Owner.ENGINE}


def test_what_cannot_be_led_past_the_kernel_by_routing_rules_can_by_an_interface() -> None:
    found = desired(OFFER, SETTINGS, routed(4, 6, limits=LeadLimits("no rules", "none")))
    assert found.objects[EntryKey(IPSEC0)] == InterfaceEntry(EntryKey(IPSEC0), frozenset({4, 6}))


def test_ipv6_inside_still_needs_its_smallest_mtu() -> None:
    hop = replace(routed().next_hops[REMOTE], mtu=1300)
    (reason,) = kept(desired(OFFER, SETTINGS, routed(6, next_hops={REMOTE: hop})))
    assert "1280" in reason


TWIN = XfrmInterface(IPSEC0.index + 4094, "ipsec9")
KEPT = {
    "no interface": (routed(interfaces={}), "no XFRM interface with if_id 42 is here"),
    "another if_id": (routed(interfaces={43: IPSEC0}), "no XFRM interface with if_id 42 is here"),
    "two if_ids": (
        replace(routed(), sas=(sa(0x11, inbound=True, if_id=41), sa(0x22, if_id=IF_ID))),
        "more than one if_id",
    ),
    "networks": (
        routed(policies=(policy(0x22, source=HERE, destination=THERE, if_id=IF_ID),)),
        "leaves out what XFRM interface ipsec0 may send",
    ),
    "a protocol": (
        routed(policies=(policy(0x22, source=ANY4, destination=ANY4, upper=47, if_id=IF_ID),)),
        "leaves out what XFRM interface ipsec0 may send",
    ),
    "the same VLAN ID": (
        routed(interfaces={IF_ID: IPSEC0, 43: TWIN}),
        "XFRM interface ipsec0 and XFRM interface ipsec9 share the VLAN ID 18",
    ),
    "a mark beside it": (
        routed(policies=(policy(0x22, source=ANY4, destination=ANY4, if_id=IF_ID, mark=(1, 1)),)),
        "mark",
    ),
    "an old strongSwan": (routed(charon="5.9.8"), 'set mode = "accelerate" under [connections.site]'),
}


@pytest.mark.parametrize(("state", "reason"), KEPT.values(), ids=KEPT.keys())
def test_what_stays_in_the_kernel(state: Snapshot, reason: str) -> None:
    (found,) = kept(desired(OFFER, SETTINGS, state))
    assert reason in found


def test_tunnels_that_share_an_interface_stay_in_the_kernel() -> None:
    """Which of its packets belong to which is known to XFRM alone."""
    peer = ip_address("10.0.0.9")
    first = routed()
    template = replace(policy(0x44).templates[0], destination=peer, reqid=2)
    other = (
        replace(sa(0x33, inbound=True, if_id=IF_ID), source=peer, reqid=2),
        replace(sa(0x44, if_id=IF_ID), key=SaKey(peer, 0x44), reqid=2),
    )
    both = replace(
        first,
        sas=first.sas + other,
        policies=(*first.policies, policy(0x44, source=ANY4, destination=ANY4, if_id=IF_ID, templates=(template,))),
        next_hops={**first.next_hops, peer: first.next_hops[REMOTE]},
    )
    (reason,) = kept(desired(OFFER, SETTINGS, both))
    assert reason == "XFRM interface ipsec0 has several tunnels"


def test_a_policy_that_comes_first_on_the_interface_keeps_it_in_the_kernel() -> None:
    """No routing rule exempts what leaves by an interface."""
    first = policy(0, source=HERE, destination=THERE, if_id=IF_ID, templates=(), priority=1000)
    state = routed()
    (reason,) = kept(desired(OFFER, SETTINGS, replace(state, policies=(first, *state.policies))))
    assert "covers part of its selector" in reason


def test_a_policy_based_tunnel_beside_it_is_told_apart() -> None:
    """0.0.0.0/0 of an XFRM interface takes nothing from policies without if_id."""
    peer = ip_address("10.0.0.9")
    state = routed()
    template = replace(policy(0x44).templates[0], destination=peer, reqid=2)
    plain = (
        replace(sa(0x33, inbound=True), source=peer, reqid=2),
        replace(sa(0x44), key=SaKey(peer, 0x44), reqid=2),
    )
    both = replace(
        state,
        sas=state.sas + plain,
        policies=(*state.policies, policy(0x44, templates=(template,))),
        next_hops={**state.next_hops, peer: state.next_hops[REMOTE]},
    )
    found = desired(OFFER, SETTINGS, both)
    assert {verdict.owner for verdict in found.verdicts} == {Owner.ENGINE}
    assert {IPSEC0, Selector(HERE, THERE)} <= found.objects.keys()


def chosen(**names: frozenset[str]) -> Settings:
    return replace(SETTINGS, choices=Choices(**names))


def test_with_an_old_strongswan_the_operator_says_that_it_may_be() -> None:
    old = routed(charon="5.9.8")
    found = desired(OFFER, chosen(accelerated=frozenset({"site"})), old)
    assert {verdict.owner for verdict in found.verdicts} == {Owner.ENGINE}
    (reason,) = kept(desired(OFFER, chosen(accelerated=frozenset({"another"})), old))
    assert "5.9.8" in reason


def test_it_is_not_given_away_before_its_name_is_known() -> None:
    """Used by the kernel, its key would be lost for the engine."""
    nameless = routed(charon="5.9.8", names={})
    found = desired(OFFER, chosen(accelerated=frozenset({"site"})), nameless)
    assert {verdict.owner for verdict in found.verdicts} == {Owner.PENDING}


def test_policies_without_if_id_are_the_old_strongswans_own_business() -> None:
    plain = snapshot(sa(0x11, inbound=True), sa(0x22), policies=(policy(0x22),), charon="5.9.8")
    assert {v.owner for v in desired(OFFER, SETTINGS, plain).verdicts} == {Owner.ENGINE}


def test_the_interface_lets_in_before_anything_is_steered_and_until_all_has_drained() -> None:
    objects = desired(OFFER, SETTINGS, routed()).objects
    up = [(op.action, op.obj.key if op.obj else None) for op in plan(objects, {})]
    steer = next(n for n, (_, key) in enumerate(up) if str(key).startswith("steering"))
    assert up.index((Action.CREATE, EntryKey(IPSEC0))) < up.index((Action.CREATE, TUNNEL)) < steer
    assert up[-1] == (Action.CREATE, IPSEC0)
    down = [(op.action, op.obj.key if op.obj else None) for op in plan({}, objects)]
    assert down[0] == (Action.DELETE, IPSEC0)
    assert down.index((Action.DRAIN, None)) < down.index((Action.DELETE, TUNNEL))
    assert down[-1] == (Action.DELETE, EntryKey(IPSEC0))


def test_an_interface_made_anew_is_led_anew() -> None:
    anew = XfrmInterface(99, "ipsec0")
    before = desired(OFFER, SETTINGS, routed()).objects
    after = desired(OFFER, SETTINGS, routed(interfaces={IF_ID: anew})).objects
    steps = [(op.action, op.obj.key if op.obj else None) for op in plan(after, before)]
    assert steps[0] == (Action.DELETE, IPSEC0)
    assert steps.index((Action.CREATE, EntryKey(anew))) < steps.index((Action.UPDATE, TUNNEL))
    assert steps.index((Action.UPDATE, TUNNEL)) < steps.index((Action.CREATE, anew))
    assert steps[-1] == (Action.DELETE, EntryKey(IPSEC0))


def test_the_vlan_id_stands_for_the_index() -> None:
    assert [XfrmInterface(index, "x").vlan for index in (1, 4093, 4094, 8187)] == [2, 4094, 1, 4094]


def test_its_sas_say_where_they_are() -> None:
    found = desired(OFFER, SETTINGS, routed())
    assert SaKey(LOCAL, 0x11) in found.objects
