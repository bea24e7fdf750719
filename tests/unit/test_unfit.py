"""SAs that an engine could not carry on with."""

from __future__ import annotations

from dataclasses import replace

from ipsec_gw.ownership.unfit import Unnamed, received
from tests.support.world import REMOTE, policy, sa, snapshot

ESN = replace(sa(0x11).replay, esn=True, extended=True, window=128)


def test_an_inbound_sa_beyond_the_numbers_on_the_wire_is_none_to_begin_with() -> None:
    near = sa(0x11, inbound=True, replay=replace(ESN, seq=(1 << 32) - 1))
    beyond = sa(0x12, inbound=True, replay=replace(ESN, seq=1 << 32))
    outbound = sa(0x22, replay=replace(ESN, seq=1 << 32, oseq=1 << 33))
    state = snapshot(near, beyond, outbound)
    assert received(state, frozenset()).keys() == {beyond.key}
    assert "4294967296" in received(state, frozenset())[beyond.key]
    assert received(state, frozenset({beyond.key})) == {}, "the engine has come as far itself"


def test_what_the_kernel_has_received_with_is_left_to_it_once_there_is_a_successor() -> None:
    """An engine would take captured packets again, until the peer sends a newer one."""
    old = sa(0x11, inbound=True, replay=replace(sa(0x11).replay, seq=1000))
    young = sa(0x12, inbound=True, age=60, replay=replace(old.replay, seq=3))
    other = sa(0x13, inbound=True, age=90, reqid=2)
    assert received(snapshot(old, other), frozenset()) == {}, "without it there would be no tunnel"
    assert received(snapshot(old, young, other), frozenset()).keys() == {old.key}
    assert received(snapshot(old, young, other), frozenset({old.key})) == {}
    assert received(snapshot(sa(0x11, inbound=True), young), frozenset()) == {}, "nothing has come by it"


def test_a_tunnel_that_no_policy_names_stays_until_one_does() -> None:
    unnamed, ours, other = Unnamed(), sa(0x22), sa(0x33, reqid=2)
    state = snapshot(ours, other, policies=(policy(0),))
    assert unnamed.reasons(state) == {}
    unnamed.add(state, ours.key)
    assert unnamed.reasons(state).keys() == {ours.key}
    rekeyed = snapshot(ours, sa(0x44), other, policies=(policy(0),))
    assert unnamed.reasons(rekeyed).keys() == {ours.key, sa(0x44).key}, "its successor is found by the reqid as well"
    named = snapshot(sa(0x44), other, policies=(policy(0x44),))
    assert unnamed.reasons(named) == {}
    assert unnamed.reasons(rekeyed) == {}
    assert ours.key.destination == REMOTE
