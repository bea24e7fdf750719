"""Plans are safe at every step, from any state to any other (DESIGN.md, invariants 2 and 9)."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

from hypothesis import given
from hypothesis import strategies as st

from ipsec_gw.desired import desired
from ipsec_gw.model.ids import Direction, SaKey
from ipsec_gw.model.objects import (
    EngineSa,
    EntryKey,
    Exempt,
    Guard,
    GuardKey,
    HostsLead,
    InterfaceEntry,
    InterfaceKind,
    InterfaceLead,
    Lead,
    ManagedObject,
    ObjectKey,
    Overlay,
    OverlayKey,
    PortMatch,
    Steer,
    SteerKey,
    Tunnel,
    XfrmInterface,
)
from ipsec_gw.model.snapshot import Encapsulator, Mode, Template, Vxlan, XfrmPolicy, XfrmSa
from ipsec_gw.reconcile.plan import Action, Op, plan
from tests.support.world import LOCAL, OFFER, REMOTE, SETTINGS, policy, sa, snapshot

ANYTHING = ip_network("0.0.0.0/0")
Objects = dict[ObjectKey, ManagedObject]


GRE1 = Encapsulator(
    XfrmInterface(71, "gre1", InterfaceKind.GRE), ip_address("192.0.2.1"), ip_address("192.0.2.2"), dscp=True
)
GRES = (
    (),
    (GRE1,),
    (replace(GRE1, dscp=False),),
    (replace(GRE1, oddity="has a key"),),
    (replace(GRE1, interface=replace(GRE1.interface, index=72)),),
)
"""What may send what a child in tunnel mode is for."""


@st.composite
def states(draw: st.DrawFn) -> Objects:
    """What some moment of a lineage asks for: none to five inbound, none to three outbound, any of them in use."""
    inbound = draw(st.lists(st.integers(0x100, 0x108), unique=True, max_size=5))
    outbound = draw(st.lists(st.integers(0x200, 0x205), unique=True, max_size=3))
    current = draw(st.sampled_from([0, *outbound, 0x2FF]))
    interface = draw(st.sampled_from([None, XfrmInterface(17, "ipsec0"), XfrmInterface(18, "ipsec0")]))
    mode = draw(st.sampled_from([Mode.TUNNEL, Mode.TRANSPORT])) if interface is None else Mode.TUNNEL
    if_id = 0 if interface is None else 42
    networks: dict[str, object] = {} if interface is None else {"source": ANYTHING, "destination": ANYTHING}
    devices: tuple[Encapsulator, ...] = ()
    if mode is Mode.TRANSPORT or (interface is None and draw(st.booleans())):
        networks = {"source": ip_network(LOCAL), "destination": ip_network(REMOTE)}
    elif interface is None and draw(st.booleans()):
        here, there = draw(st.sampled_from([(LOCAL, REMOTE), (GRE1.local, GRE1.remote)]))
        networks = {"source": ip_network(here), "destination": ip_network(there), "upper": 47}
        devices = tuple(replace(one, local=here, remote=there) for one in draw(st.sampled_from(GRES)))
    template = Template(LOCAL, REMOTE, current, 50, 1, mode)
    look = snapshot(
        *[sa(spi, inbound=True, age=n, if_id=if_id, mode=mode) for n, spi in enumerate(inbound)],
        *[sa(spi, age=n, if_id=if_id, mode=mode) for n, spi in enumerate(outbound)],
        policies=(policy(current, if_id=if_id, templates=(template,), **networks),),
        interfaces={} if interface is None else {42: interface},
        encapsulators=devices,
    )
    return dict(desired(OFFER, SETTINGS, look).objects)


def check(state: Objects) -> None:
    """The invariants that hold between any two operations."""
    tunnels = [obj for obj in state.values() if isinstance(obj, Tunnel)]
    for tunnel in tunnels:
        assert {*tunnel.inbound, tunnel.outbound, tunnel.remote} <= state.keys(), "a tunnel uses what is not there"
        assert len(tunnel.inbound) <= 4
        assert tunnel.interface is None or EntryKey(tunnel.interface) in state, "decrypted packets have no way in"
    for obj in state.values():
        match obj:
            case Steer():
                assert any(obj.key.sa in t.inbound for t in tunnels), "XDP steers an SPI that the engine does not hold"
            case Lead():
                assert any(obj.key in t.leads for t in tunnels), "plaintext is led to an engine without the tunnel"
            case HostsLead():
                assert any(obj.key in t.leads for t in tunnels), "hosts are led to an engine without the tunnel"
            case InterfaceLead():
                overlays = [OverlayKey(obj.key)] if OverlayKey(obj.key) in state else []
                known = [t for t in tunnels if obj.key in t.leads]
                assert known or overlays, "an interface is led to an engine without the tunnel"
            case Overlay():
                assert obj.tunnels <= {t.key for t in tunnels}, "an overlay is over what is not there"
                assert EntryKey(obj.key.interface) in state, "frames have no way in"
            case EngineSa() if obj.direction is Direction.OUT:
                assert GuardKey(obj.key) in state, "an engine holds an outbound SA that the kernel may use"
            case _:
                pass


BESIDE = {1: {"destination_port": PortMatch(4789, 0xFFFF)}, 2: {"source_port": PortMatch(4789, 0xFFFF)}}
"""Two children between the same hosts, by reqid."""


VXLAN1 = Vxlan(XfrmInterface(61, "vxlan1", InterfaceKind.VXLAN), LOCAL, REMOTE, 4789, 42)
DEVICES = ((), (VXLAN1,), (replace(VXLAN1, vni=43),), (replace(VXLAN1, interface=replace(VXLAN1.interface, index=62)),))
"""What is over both of them."""


@st.composite
def pairs(draw: st.DrawFn) -> Objects:
    """The same of two tunnels between the same hosts, either of which may have SAs that are not to be used."""
    sas: list[XfrmSa] = []
    policies: list[XfrmPolicy] = []
    refused: dict[SaKey, str] = {}
    for reqid, ports in BESIDE.items():
        inbound = draw(st.lists(st.integers(0x100, 0x104), unique=True, max_size=3))
        outbound = draw(st.lists(st.integers(0x200, 0x203), unique=True, max_size=2))
        mode = draw(st.sampled_from([Mode.TUNNEL, Mode.TRANSPORT]))
        both = {"mode": mode, "reqid": reqid}
        sas += [sa(reqid << 12 | spi, inbound=True, age=n, **both) for n, spi in enumerate(inbound)]
        sas += [sa(reqid << 12 | spi, age=n, **both) for n, spi in enumerate(outbound)]
        if outbound and draw(st.booleans()):
            template = Template(LOCAL, REMOTE, reqid << 12 | draw(st.sampled_from(outbound)), 50, reqid, mode)
            ends = {"source": ip_network(LOCAL), "destination": ip_network(REMOTE), "upper": 17, "index": 8 * reqid}
            policies.append(policy(0, templates=(template,), **ends, **ports))
        refused |= {SaKey(REMOTE, reqid << 12 | spi): "used" for spi in outbound if draw(st.booleans())}
    look = snapshot(*sas, policies=tuple(policies), vxlans=draw(st.sampled_from(DEVICES)))
    return dict(desired(replace(OFFER, vxlan=True), SETTINGS, look, refused).objects)


@given(st.one_of(st.tuples(states(), states()), st.tuples(pairs(), pairs())))
def test_every_step_keeps_the_invariants_and_the_end_is_what_was_wanted(both: tuple[Objects, Objects]) -> None:
    before, after = both
    state = dict(before)
    check(state)
    for op in plan(after, before):
        if op.obj is None:
            continue
        if op.action is Action.DELETE:
            assert state.pop(op.obj.key) == op.obj
        else:
            assert (op.obj.key in state) is (op.action is Action.UPDATE)
            state[op.obj.key] = op.obj
        check(state)
    assert state == after
    assert plan(after, state) == (), "a system in sync plans nothing"


@given(pairs(), pairs())
def test_hosts_stay_led_while_a_tunnel_stays(before: Objects, after: Objects) -> None:
    """And what one of theirs leaves to the kernel is exempted before it goes, until after it has come."""
    standing = [{key for key, obj in state.items() if isinstance(obj, Tunnel)} for state in (before, after)]
    operations = plan(after, before)
    leads = [op for op in operations if isinstance(op.obj, HostsLead)]
    assert not (standing[0] & standing[1] and leads)
    places = {(op.action, type(op.obj)): n for n, op in enumerate(operations)}
    tunnels = [n for n, op in enumerate(operations) if isinstance(op.obj, Tunnel)]
    for action, comes_first in ((Action.CREATE, True), (Action.DELETE, False)):
        place = places.get((action, Exempt))
        assert place is None or all((place < tunnel) is comes_first for tunnel in tunnels)


@given(pairs(), pairs(), st.integers(0, 40))
def test_a_step_that_fails_holds_back_what_builds_on_it_over_hosts(
    before: Objects, after: Objects, number: int
) -> None:
    operations = [op for op in plan(after, before) if op.obj is not None]
    if operations:
        walk(before, after, fails=operations[number % len(operations)])


@given(pairs(), pairs())
def test_what_stops_being_led_to_an_overlay_drains_before_it_goes(before: Objects, after: Objects) -> None:
    operations = plan(after, before)
    gone = [n for n, op in enumerate(operations) if op.action is Action.DELETE and isinstance(op.obj, Overlay)]
    unled = [n for n, op in enumerate(operations) if op.action is Action.DELETE and isinstance(op.obj, InterfaceLead)]
    drains = [n for n, op in enumerate(operations) if op.action is Action.DRAIN]
    if gone:
        assert max(unled) < drains[0] < min(gone)


@given(states(), states())
def test_what_stops_being_steered_drains_before_its_sa_goes(before: Objects, after: Objects) -> None:
    operations = plan(after, before)
    unsteered = [n for n, op in enumerate(operations) if op.action is Action.DELETE and isinstance(op.obj, Steer)]
    gone = [n for n, op in enumerate(operations) if op.action is Action.DELETE and isinstance(op.obj, EngineSa)]
    drains = [n for n, op in enumerate(operations) if op.action is Action.DRAIN]
    assert bool(drains) is bool(unsteered)
    if unsteered and gone:
        assert max(unsteered) < drains[0] < min(gone)


@given(states(), states())
def test_a_swap_of_the_outbound_sa_waits_for_no_drain(before: Objects, after: Objects) -> None:
    """The peer may have deleted the old one already: the loser of two simultaneous rekeys goes at once."""
    tunnels = [(obj, after.get(obj.key)) for obj in before.values() if isinstance(obj, Tunnel)]
    for old, new in tunnels:
        if isinstance(new, Tunnel) and old.interface == new.interface and old.hosts == new.hosts:
            state = dict(before)
            for op in plan(after, before):
                if op.obj is None:
                    break
                state[op.obj.key] = op.obj
            assert new.outbound == old.outbound or state[new.key].outbound == new.outbound  # type: ignore[union-attr]


def test_the_loser_of_two_rekeys_is_not_sent_with_while_its_packets_drain() -> None:
    loser = snapshot(*(sa(n, inbound=True) for n in (1, 3)), sa(2), sa(4), policies=(policy(2),))
    winner = snapshot(sa(3, inbound=True), sa(4), policies=(policy(4),))
    before, after = (dict(desired(OFFER, SETTINGS, look).objects) for look in (loser, winner))
    kinds = [(op.action, type(op.obj)) for op in plan(after, before)]
    assert kinds[:3] == [(Action.UPDATE, Tunnel), (Action.DELETE, Steer), (Action.DRAIN, type(None))]
    assert kinds.count((Action.UPDATE, Tunnel)) == 2


def test_a_changed_selector_is_followed() -> None:
    before = dict(desired(OFFER, SETTINGS, snapshot(sa(1, inbound=True), sa(2), policies=(policy(2),))).objects)
    other = replace(policy(2), source=policy(2).source.supernet())
    after = dict(desired(OFFER, SETTINGS, snapshot(sa(1, inbound=True), sa(2), policies=(other,))).objects)
    kinds = [(op.action, type(op.obj)) for op in plan(after, before)]
    assert kinds == [(Action.DELETE, Lead), (Action.UPDATE, Tunnel), (Action.CREATE, Lead)]


def test_guards_precede_outbound_sas() -> None:
    after = dict(desired(OFFER, SETTINGS, snapshot(sa(1, inbound=True), sa(2), policies=(policy(2),))).objects)
    kinds = [type(op.obj) for op in plan(after, {})]
    assert kinds.index(Guard) < kinds.index(EngineSa)


PEER = ip_address("10.0.0.9")


def moved(obj: XfrmSa) -> XfrmSa:
    """An SA after its peer has another address: charon installs it again with the same SPI."""
    if obj.source == REMOTE:
        return replace(obj, source=PEER)
    return replace(obj, key=SaKey(PEER, obj.key.spi))


def test_a_peer_that_moves_takes_its_sas_to_another_tunnel_and_nothing_goes_astray() -> None:
    look = snapshot(sa(1, inbound=True), sa(2), policies=(policy(2),))
    template = replace(policy(2).templates[0], destination=PEER)
    other = replace(
        look,
        sas=tuple(map(moved, look.sas)),
        policies=(replace(policy(2), templates=(template,)),),
        next_hops={PEER: replace(look.next_hops[REMOTE], gateway=PEER)},
    )
    before, after = (dict(desired(OFFER, SETTINGS, one).objects) for one in (look, other))
    assert SteerKey(SaKey(LOCAL, 1)) in before.keys() & after.keys()
    walk(before, after)
    for victim in plan(after, before):
        if victim.obj is not None:
            walk(before, after, fails=victim)


def test_a_tunnel_keeps_what_is_still_steered_and_led_to_it() -> None:
    """The step before failed: the tunnel must not change behind it."""
    before = dict(
        desired(
            OFFER, SETTINGS, snapshot(sa(1, inbound=True), sa(3, inbound=True), sa(2), policies=(policy(2),))
        ).objects
    )
    after = dict(desired(OFFER, SETTINGS, snapshot(sa(3, inbound=True), sa(2), policies=(policy(2),))).objects)
    swap = next(op for op in plan(after, before) if isinstance(op.obj, Tunnel))
    assert swap.action is Action.UPDATE
    assert swap.frees == {SteerKey(SaKey(LOCAL, 1))}


@given(states(), states(), st.integers(0, 30))
def test_a_step_that_fails_holds_back_what_builds_on_it(before: Objects, after: Objects, number: int) -> None:
    operations = [op for op in plan(after, before) if op.obj is not None]
    if operations:
        walk(before, after, fails=operations[number % len(operations)])


def walk(before: Objects, after: Objects, fails: Op | None = None) -> None:
    """Carry a plan out as the executor does; one operation may fail. The invariants hold all the way."""
    state, failed = dict(before), set[ObjectKey]()
    for op in plan(after, before):
        if op.obj is None:
            continue
        if op == fails or not failed.isdisjoint(op.needs | op.frees):
            failed.add(op.obj.key)
        elif op.action is Action.DELETE:
            del state[op.obj.key]
        else:
            state[op.obj.key] = op.obj
        check(state)
    assert (state == after) is (not failed)


def test_a_tunnel_that_goes_makes_way_before_the_one_that_takes_its_sas_over() -> None:
    look = snapshot(sa(1, inbound=True), sa(2), policies=(policy(2),))
    other = replace(
        look,
        sas=tuple(map(moved, look.sas)),
        policies=(replace(policy(2), templates=(replace(policy(2).templates[0], destination=PEER),)),),
        next_hops={PEER: replace(look.next_hops[REMOTE], gateway=PEER)},
    )
    before, after = (dict(desired(OFFER, SETTINGS, one).objects) for one in (look, other))
    tunnels = [op for op in plan(after, before) if isinstance(op.obj, Tunnel)]
    assert [op.action for op in tunnels] == [Action.DELETE, Action.CREATE]
    assert tunnels[0].obj is not None
    assert tunnels[0].obj.key in tunnels[1].frees


def test_plaintext_is_led_only_behind_a_closed_guard_and_the_guard_opens_only_without_a_lead() -> None:
    """Also a lead whose tunnel nobody knows, because its engine is out of reach: it may encrypt still."""
    objects = dict(desired(OFFER, SETTINGS, snapshot(sa(1, inbound=True), sa(2), policies=(policy(2),))).objects)
    guard, lead = (next(o for o in objects.values() if isinstance(o, kind)) for kind in (Guard, Lead))
    put = next(op for op in plan(objects, {}) if op.obj == lead)
    assert guard.key in put.needs
    alone: Objects = {guard.key: guard, lead.key: lead}
    opened = next(op for op in plan({}, alone) if op.obj == guard)
    assert lead.key in opened.frees


def test_an_entry_stays_while_something_is_steered_to_a_tunnel_that_nobody_knows() -> None:
    """Its engine is out of reach, and may bring what it decrypts."""
    interface = XfrmInterface(17, "ipsec0")
    networks = {"source": ANYTHING, "destination": ANYTHING, "if_id": 42}
    look = snapshot(
        sa(1, inbound=True, if_id=42), sa(2, if_id=42), policies=(policy(2, **networks),), interfaces={42: interface}
    )
    objects = dict(desired(OFFER, SETTINGS, look).objects)
    left: Objects = {key: obj for key, obj in objects.items() if isinstance(obj, Steer | InterfaceEntry)}
    closed = next(op for op in plan({}, left) if isinstance(op.obj, InterfaceEntry))
    assert closed.frees == {key for key in left if isinstance(key, SteerKey)}
    again = XfrmInterface(18, "ipsec0")
    anew = dict(desired(OFFER, SETTINGS, replace(look, interfaces={42: again})).objects)
    closed = next(op for op in plan(anew, left) if isinstance(op.obj, InterfaceEntry) and op.action is Action.DELETE)
    assert {key for key, obj in anew.items() if isinstance(obj, Tunnel)} <= closed.frees


def test_what_is_exempted_is_exempted_before_and_after_anything_is_led() -> None:
    """A packet of an exception never meets a lead without its exemption."""
    other = policy(0, destination=ip_network("192.168.2.64/26"), priority=1, templates=())
    look = snapshot(sa(1, inbound=True), sa(2), policies=(policy(2), other))
    objects = dict(desired(OFFER, SETTINGS, look).objects)
    exempt, lead = (next(o for o in objects.values() if isinstance(o, kind)) for kind in (Exempt, Lead))
    up, down = ([op.obj for op in plan(*states)] for states in ((objects, {}), ({}, objects)))
    assert up.index(exempt) < up.index(lead)
    assert down.index(lead) < down.index(exempt)
    assert exempt.key in next(op for op in plan(objects, {}) if op.obj == lead).needs
    without = dict(desired(OFFER, SETTINGS, replace(look, policies=(policy(2),))).objects)
    assert [(op.action, type(op.obj)) for op in plan(objects, without)] == [
        (Action.CREATE, Exempt),
        (Action.UPDATE, Tunnel),
    ]
    assert [(op.action, type(op.obj)) for op in plan(without, objects)] == [
        (Action.UPDATE, Tunnel),
        (Action.DELETE, Exempt),
    ]
