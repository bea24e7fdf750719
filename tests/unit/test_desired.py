"""Eligibility and what follows from it (DESIGN.md, invariant 5: a reason for everything that stays in the kernel)."""

from __future__ import annotations

import re
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from ipsec_gw.desired import Owner, desired
from ipsec_gw.model.choices import Choices
from ipsec_gw.model.ids import Direction, SaKey, TunnelId
from ipsec_gw.model.objects import (
    EngineSa,
    Exempt,
    ExemptKey,
    Guard,
    GuardKey,
    HeaderCopies,
    Hosts,
    HostsLead,
    Lead,
    PortMatch,
    Selector,
    Steer,
    SteerKey,
    Tunnel,
    UdpEncap,
)
from ipsec_gw.model.secret import Secret
from ipsec_gw.model.snapshot import (
    AeadKey,
    LeadLimits,
    Mode,
    PolicyDirection,
    Replay,
    ResolvedHop,
    Snapshot,
    Template,
    XfrmSa,
)
from ipsec_gw.precedence import MAX_EXCEPTIONS
from tests.support.world import (
    CANARY,
    HERE,
    LOCAL,
    OFFER,
    REMOTE,
    SETTINGS,
    THERE,
    established,
    policy,
    sa,
    snapshot,
)

TUNNEL = TunnelId(1, REMOTE)


def test_an_established_child_is_described_whole() -> None:
    result = desired(OFFER, SETTINGS, established())
    tunnel = result.objects[TUNNEL]
    assert tunnel == Tunnel(TUNNEL, LOCAL, REMOTE, (SaKey(LOCAL, 0x11),), SaKey(REMOTE, 0x22), (Selector(HERE, THERE),))
    assert {type(obj).__name__ for obj in result.objects.values()} == {
        "EngineSa",
        "Guard",
        "Lead",
        "NextHop",
        "Steer",
        "Tunnel",
    }
    assert {v.owner for v in result.verdicts} == {Owner.ENGINE}
    assert all(v.reason == "" for v in result.verdicts)


def test_key_and_salt_are_split_and_the_mtu_fits() -> None:
    result = desired(OFFER, SETTINGS, established())
    inbound = result.objects[SaKey(LOCAL, 0x11)]
    assert isinstance(inbound, EngineSa)
    assert inbound.direction is Direction.IN
    assert (inbound.secret, inbound.salt) == (Secret(CANARY[:16]), Secret(b"salt"))
    lead = result.objects[Selector(HERE, THERE)]
    assert lead == Lead(Selector(HERE, THERE), ip_address("192.168.1.1"), 1446)
    assert Guard(GuardKey(SaKey(REMOTE, 0x22))) in result.objects.values()
    assert GuardKey(SaKey(LOCAL, 0x11)) not in result.objects


def test_the_inbound_sa_alone_is_prepared_but_not_steered() -> None:
    result = desired(OFFER, SETTINGS, snapshot(sa(0x11, inbound=True)))
    # No outbound SA yet: the peer's next hop is unknown to the snapshot's caller in real life, here it is known.
    assert SaKey(LOCAL, 0x11) in result.objects
    assert SteerKey(SaKey(LOCAL, 0x11)) not in result.objects
    assert [v.owner for v in result.verdicts] == [Owner.PENDING]


def test_a_rekey_keeps_both_inbound_and_switches_with_the_policy() -> None:
    during = snapshot(
        sa(0x11, inbound=True), sa(0x22), sa(0x33, inbound=True, age=9), sa(0x44, age=9), policies=(policy(0x22),)
    )
    before = desired(OFFER, SETTINGS, during).objects
    after = desired(OFFER, SETTINGS, replace(during, policies=(policy(0x44),))).objects
    both = (SaKey(LOCAL, 0x11), SaKey(LOCAL, 0x33))
    assert [(before[TUNNEL].inbound, before[TUNNEL].outbound)] == [(both, SaKey(REMOTE, 0x22))]
    assert [(after[TUNNEL].inbound, after[TUNNEL].outbound)] == [(both, SaKey(REMOTE, 0x44))]
    assert GuardKey(SaKey(REMOTE, 0x44)) in before, "the successor is guarded before the kernel could use it"
    assert Steer(SteerKey(SaKey(LOCAL, 0x33))) in before.values()


def test_while_charon_switches_several_policies_the_newest_sa_is_in_use() -> None:
    """One after the other: in between, the tunnel is not taken down."""
    there = ip_network("192.168.3.0/24")
    sas = (sa(0x11, inbound=True), sa(0x22), sa(0x33, inbound=True, age=60), sa(0x44, age=60))
    for first, second in ((0x22, 0x44), (0x44, 0x22)):
        switching = snapshot(*sas, policies=(policy(first), policy(second, destination=there)))
        tunnel = desired(OFFER, SETTINGS, switching).objects[TUNNEL]
        assert isinstance(tunnel, Tunnel)
        assert tunnel.outbound == SaKey(REMOTE, 0x44)


def test_a_tunnel_around_the_ends_of_another_stays_in_the_kernel() -> None:
    """A routing rule for it would have IKE and ESP to that peer, too."""
    peer = ip_address("10.9.0.9")
    other = (sa(0x33, inbound=True, source=peer, reqid=2), replace(sa(0x44), key=SaKey(peer, 0x44), reqid=2))
    state = established()
    for source, reason in (
        ("10.0.0.0/24", f"the selectors include the end points of the tunnel to {peer}"),
        (str(HERE), ""),
    ):
        around = policy(0x22, source=ip_network(source), destination=ip_network("10.9.0.0/16"))
        found = desired(OFFER, SETTINGS, replace(state, sas=(*state.sas, *other), policies=(around,)))
        assert {v.reason for v in found.verdicts if v.sa.reqid == 1} == {reason}


def test_at_most_four_inbound_the_oldest_waits_in_the_kernel() -> None:
    crowd = [sa(0x100 + n, inbound=True, age=n) for n in range(5)]
    result = desired(OFFER, SETTINGS, snapshot(*crowd, sa(0x22), policies=(policy(0x22),)))
    assert [key.spi for key in result.objects[TUNNEL].inbound] == [0x101, 0x102, 0x103, 0x104]
    left = [v for v in result.verdicts if v.owner is Owner.KERNEL]
    assert [v.sa.key.spi for v in left] == [0x100]
    assert "more than 4 inbound" in left[0].reason


def test_a_refused_outbound_sa_stays_and_its_successor_is_prepared() -> None:
    refused = {SaKey(REMOTE, 0x22): "used"}
    state = snapshot(sa(0x11, inbound=True), sa(0x22), sa(0x44, age=9), policies=(policy(0x22),))
    result = desired(OFFER, SETTINGS, state, refused)
    assert TUNNEL not in result.objects
    assert SaKey(REMOTE, 0x22) not in result.objects
    assert GuardKey(SaKey(REMOTE, 0x44)) in result.objects
    reasons = {v.sa.key.spi: (v.owner, v.reason) for v in result.verdicts}
    assert reasons[0x22] == (Owner.KERNEL, "used")
    assert reasons[0x11][0] is Owner.KERNEL
    assert reasons[0x44][0] is Owner.PENDING, "the kernel must not send what waits of it: its policy may have switched"
    switched = desired(OFFER, SETTINGS, replace(state, policies=(policy(0x44),)), refused)
    assert switched.objects[TUNNEL].outbound == SaKey(REMOTE, 0x44)


KEPT = {
    "transport mode": ({"mode": Mode.TRANSPORT}, "transport mode"),
    "beet mode": ({"mode": Mode.BEET}, "beet mode"),
    "cbc": ({"aead": None, "algorithm": "cbc(aes)+hmac(sha256)"}, r"cbc\(aes\)\+hmac\(sha256\)"),
    "short icv": ({"aead": AeadKey("rfc4106(gcm(aes))", Secret(CANARY), 64)}, "left to the kernel"),
    "odd key": ({"aead": AeadKey("rfc4106(gcm(aes))", Secret(CANARY[:-1]), 128)}, "left to the kernel"),
    "lockdown": ({"aead": AeadKey("rfc4106(gcm(aes))", Secret(bytes(20)), 128)}, "lockdown"),
    "encapsulation in something else": ({"encap": UdpEncap(0, 0)}, "not ESP in UDP"),
    "mark": ({"mark": (1, 0xFF)}, "no VTI device from 10.0.0.1 to 10.0.0.2"),
    "if_id": ({"if_id": 42}, "no XFRM interface with if_id 42"),
    "nic offload": ({"extras": frozenset({"OFFLOAD_DEV"})}, "OFFLOAD_DEV"),
    "window": ({"replay": Replay(0, 0, 8192, False, True)}, "replay window 8192"),
}


@pytest.mark.parametrize("case", KEPT)
def test_what_no_engine_does_right_stays_in_the_kernel_with_a_reason(case: str) -> None:
    changes, expected = KEPT[case]
    state = snapshot(sa(0x11, inbound=True, **changes), sa(0x22, **changes), policies=(policy(0x22),))
    result = desired(OFFER, SETTINGS, state)
    assert result.objects == {}
    assert [v.owner for v in result.verdicts] == [Owner.KERNEL, Owner.KERNEL]
    for verdict in result.verdicts:
        assert re.search(expected, verdict.reason), verdict.reason


HOST_HERE, HOST_THERE = ip_network(LOCAL), ip_network(REMOTE)


def between_hosts(*sas: XfrmSa, of_policy: dict[str, object] | None = None, **changes: object) -> Snapshot:
    """Transport mode between the gateway and its peer, with an odd setting that transport mode has no use for."""
    mode = {"mode": Mode.TRANSPORT, "copies": HeaderCopies(dscp=False)}
    pair = sas or (sa(0x11, inbound=True, **mode), sa(0x22, **mode))
    template = Template(LOCAL, REMOTE, 0x22, 50, 1, Mode.TRANSPORT)
    hosts = {"source": HOST_HERE, "destination": HOST_THERE, "templates": (template,), **(of_policy or {})}
    return snapshot(*pair, **{"policies": (policy(0x22, **hosts),), **changes})


def test_transport_mode_is_led_between_its_hosts() -> None:
    result = desired(OFFER, SETTINGS, between_hosts())
    hosts = Hosts(LOCAL, REMOTE)
    selector = Selector(HOST_HERE, HOST_THERE)
    assert result.objects[TUNNEL] == Tunnel(
        TUNNEL, LOCAL, REMOTE, (SaKey(LOCAL, 0x11),), SaKey(REMOTE, 0x22), (selector,), hosts=True
    )
    assert result.objects[hosts] == HostsLead(hosts)
    assert not any(isinstance(obj, Lead) for obj in result.objects.values())
    assert Steer(SteerKey(SaKey(LOCAL, 0x11))) in result.objects.values()
    both = [obj for obj in result.objects.values() if isinstance(obj, EngineSa)]
    assert [(one.transport, one.copies) for one in both] == [(True, HeaderCopies())] * 2
    assert {v.owner for v in result.verdicts} == {Owner.ENGINE}


def test_transport_mode_for_a_protocol_and_ports_is_led_too() -> None:
    ported = {"upper": 17, "source_port": PortMatch(1701, 0xFFFF)}
    result = desired(OFFER, SETTINGS, between_hosts(of_policy=ported))
    assert Hosts(LOCAL, REMOTE) in result.objects


def test_what_passes_in_clear_does_not_come_out_of_transport_mode() -> None:
    clear = policy(0, source=HOST_HERE, destination=HOST_THERE, upper=6, priority=100, templates=())
    state = between_hosts()
    result = desired(OFFER, SETTINGS, replace(state, policies=(clear, *state.policies)))
    assert result.objects[TUNNEL].exceptions == (clear.selector,)


UNSPECIFIED = ip_address("0.0.0.0")
NOT_BETWEEN_HOSTS: dict[str, tuple[Snapshot, str]] = {
    "a network": (between_hosts(of_policy={"destination": ip_network("10.0.0.0/24")}), "own addresses"),
    "another host": (between_hosts(of_policy={"destination": ip_network("10.0.0.9")}), "own addresses"),
    "nameless": (
        between_hosts(of_policy={"templates": (Template(UNSPECIFIED, UNSPECIFIED, 0x22, 50, 1, Mode.TRANSPORT),)}),
        "own addresses",
    ),
    "beside a tunnel": (
        replace(
            between_hosts(),
            policies=(
                *between_hosts().policies,
                policy(
                    0x77,
                    source=ip_network("10.0.0.0/8"),
                    destination=ip_network("0.0.0.0/0"),
                    templates=(Template(LOCAL, REMOTE, 0x77, 50, 9, Mode.TUNNEL),),
                ),
            ),
        ),
        "beside another policy",
    ),
    "in UDP": (
        between_hosts(
            sa(0x11, inbound=True, mode=Mode.TRANSPORT, encap=UdpEncap(4500, 4500)),
            sa(0x22, mode=Mode.TRANSPORT, encap=UdpEncap(4500, 4500)),
        ),
        "in UDP",
    ),
    "an if_id": (
        between_hosts(sa(0x11, inbound=True, mode=Mode.TRANSPORT, if_id=7), sa(0x22, mode=Mode.TRANSPORT, if_id=7)),
        "with an if_id",
    ),
    "no nf_tables": (between_hosts(limits=LeadLimits(hosts="nf_tables are not there")), "nf_tables are not there"),
}


@pytest.mark.parametrize("case", NOT_BETWEEN_HOSTS)
def test_transport_mode_that_cannot_be_led_stays_with_its_reason(case: str) -> None:
    state, reason = NOT_BETWEEN_HOSTS[case]
    result = desired(OFFER, SETTINGS, state)
    assert result.objects == {}
    assert all(reason in v.reason and v.owner is Owner.KERNEL for v in result.verdicts), result.verdicts
    assert len(result.verdicts) == 2


def test_transport_mode_of_ipv6_stays() -> None:
    here, there = ip_address("2001:db8::1"), ip_address("2001:db8::2")
    six = [
        sa(0x11, inbound=True, key=SaKey(here, 0x11), source=there, mode=Mode.TRANSPORT),
        sa(0x22, key=SaKey(there, 0x22), source=here, mode=Mode.TRANSPORT),
    ]
    hosts = {
        "source": ip_network(here),
        "destination": ip_network(there),
        "templates": (Template(here, there, 0x22, 50, 1, Mode.TRANSPORT),),
    }
    state = between_hosts(*six, of_policy=hosts, local_addresses=frozenset({here}))
    result = desired(OFFER, SETTINGS, state)
    assert result.objects == {}
    assert {v.reason for v in result.verdicts} == {"transport mode over IPv6 is left to the kernel"}


def test_a_tunnel_of_several_modes_stays_in_the_kernel() -> None:
    state = snapshot(sa(0x11, inbound=True), sa(0x22, mode=Mode.TRANSPORT), policies=(policy(0x22),))
    result = desired(OFFER, SETTINGS, state)
    assert result.objects == {}
    assert {v.reason for v in result.verdicts} == {"it has SAs of several modes (transport, tunnel)"}


def test_esn_and_algorithms_follow_the_engine() -> None:
    esn = Replay(0, 0, 32, True, True)
    state = snapshot(sa(0x11, inbound=True, replay=esn), sa(0x22, replay=esn), policies=(policy(0x22),))
    assert TUNNEL in desired(OFFER, SETTINGS, state).objects
    poor = replace(OFFER, esn=False)
    assert "does not do ESN" in desired(poor, SETTINGS, state).verdicts[0].reason
    poorer = replace(OFFER, algorithms=frozenset())
    assert "does not have" in desired(poorer, SETTINGS, established()).verdicts[0].reason


def test_engine_operator_and_path_have_their_say() -> None:
    cases = {
        "kernel engine": desired(replace(OFFER, absent="kernel engine"), SETTINGS, established()),
        "accelerate = false": desired(
            OFFER, replace(SETTINGS, choices=Choices(kept=frozenset({"site"}))), established()
        ),
        "not a docked WAN": desired(
            OFFER, SETTINGS, established(next_hops={REMOTE: ResolvedHop("eth9", REMOTE, "02::", 1500)})
        ),
    }
    for expected, result in cases.items():
        assert result.objects == {}
        assert all(expected in v.reason for v in result.verdicts), (expected, result.verdicts)


POLICIES = {
    "limited to an interface": {"bound": True},
    "do not tell apart": {"upper": 1, "source_port": PortMatch(8, 0xFFFF)},
    "ports that are no range": {"upper": 17, "destination_port": PortMatch(1, 0x0001)},
    "no VTI device": {"mark": (7, 0xFF)},
    "no XFRM interface with if_id 7": {"if_id": 7},
    "own end points": {"source": ip_network("10.0.0.0/24"), "destination": ip_network("10.0.0.0/24")},
}


@pytest.mark.parametrize("expected", POLICIES)
def test_policies_that_cannot_be_led_stay(expected: str) -> None:
    state = established(policies=(policy(0x22, **POLICIES[expected]),))
    result = desired(OFFER, SETTINGS, state)
    assert result.objects == {}
    assert all(expected in v.reason for v in result.verdicts)


BYPASS = policy(0, destination=ip_network("192.168.2.64/26"), priority=100, templates=())


def test_what_a_pass_policy_has_is_exempted_and_may_not_come_out_of_the_tunnel() -> None:
    result = desired(OFFER, SETTINGS, established(policies=(policy(0x22), BYPASS)))
    tunnel = result.objects[TUNNEL]
    assert isinstance(tunnel, Tunnel)
    assert tunnel.exceptions == (BYPASS.selector,)
    assert result.objects[ExemptKey(BYPASS.selector)] == Exempt(ExemptKey(BYPASS.selector), unbound=True)
    behind = replace(BYPASS, priority=999999)
    without = desired(OFFER, SETTINGS, established(policies=(policy(0x22), behind)))
    assert without.objects[TUNNEL].exceptions == ()
    assert ExemptKey(BYPASS.selector) not in without.objects


EXCEPTIONS = {
    "a protocol and a port": ({"upper": 17, "destination_port": PortMatch(53, 0xFFFF)}, True),
    "drop": ({"allow": False}, True),
    "all of it": ({"destination": THERE}, True),
    "elsewhere": ({"destination": ip_network("192.168.3.0/24")}, None),
    "in a route-based tunnel": ({"if_id": 7}, None),
    "a kind of ICMP": ({"upper": 1, "source_port": PortMatch(8, 0xFFFF)}, False),
    "for marked packets": ({"mark": (1, 1)}, False),
    "for an interface": ({"bound": True}, False),
}


@pytest.mark.parametrize("case", EXCEPTIONS)
def test_exceptions_are_what_a_routing_rule_can_find(case: str) -> None:
    changes, excepted = EXCEPTIONS[case]
    other = replace(BYPASS, **changes)
    result = desired(OFFER, SETTINGS, established(policies=(policy(0x22), other)))
    if excepted is False:
        assert result.objects == {}
        assert all("another policy" in v.reason for v in result.verdicts)
    else:
        assert result.objects[TUNNEL].exceptions == ((other.selector,) if excepted else ())


def test_a_tunnel_with_very_many_exceptions_stays_in_the_kernel() -> None:
    many = [replace(BYPASS, destination=ip_network(f"192.168.2.{n}/32")) for n in range(MAX_EXCEPTIONS + 1)]
    fine = desired(OFFER, SETTINGS, established(policies=(policy(0x22), *many[1:])))
    assert len(fine.objects[TUNNEL].exceptions) == MAX_EXCEPTIONS
    result = desired(OFFER, SETTINGS, established(policies=(policy(0x22), *many)))
    assert all("more than 64 parts" in v.reason for v in result.verdicts)


def test_an_exception_that_a_second_policy_of_the_tunnel_goes_before_keeps_it_in_the_kernel() -> None:
    first = policy(0x22, priority=50, destination=ip_network("192.168.2.64/28"))
    result = desired(OFFER, SETTINGS, established(policies=(policy(0x22), first, BYPASS)))
    assert all("another policy" in v.reason for v in result.verdicts)


def test_a_selector_of_a_port_is_led_by_it() -> None:
    narrow = policy(0x22, upper=17, destination_port=PortMatch(5000, 0xFFFF))
    result = desired(OFFER, SETTINGS, established(policies=(narrow,)))
    assert result.objects[TUNNEL].selectors == (narrow.selector,)
    assert isinstance(result.objects[narrow.selector], Lead)


def test_ipv6_is_not_told_apart_by_protocol() -> None:
    """Extension headers and fragments stand before it."""
    narrow = policy(0x22, source=HERE6, destination=THERE6, upper=17)
    result = desired(OFFER, SETTINGS, established(policies=(narrow,)))
    assert all("not looked for in IPv6" in v.reason for v in result.verdicts)
    exception = policy(0, source=HERE6, destination=THERE6, priority=1, upper=6, templates=())
    state = established(policies=(policy(0x22, source=HERE6, destination=THERE6), exception))
    assert all("another policy" in v.reason for v in desired(OFFER, SETTINGS, state).verdicts)


PEER2 = ip_address("10.0.0.3")
SECOND = TunnelId(2, PEER2)


def beside(**changes: object) -> Snapshot:
    """The established tunnel, and one with the same remote selector to another peer, behind a smaller link."""
    other = (sa(0x55, inbound=True, reqid=2, source=PEER2), sa(0x66, reqid=2, key=SaKey(PEER2, 0x66)))
    template = Template(LOCAL, PEER2, 0x66, 50, 2, Mode.TUNNEL)
    theirs = policy(0x66, **{"priority": 999999, "templates": (template,), **changes})
    hops = {REMOTE: ResolvedHop("wan0", REMOTE, "02::", 1500), PEER2: ResolvedHop("wan0", PEER2, "02::", 1400)}
    return snapshot(sa(0x11, inbound=True), sa(0x22), *other, policies=(policy(0x22), theirs), next_hops=hops)


def test_tunnels_may_share_a_remote_selector_and_the_smaller_mtu_holds_for_both() -> None:
    other = ip_network("192.168.77.0/24")
    result = desired(OFFER, SETTINGS, beside(source=other))
    assert {TUNNEL, SECOND} <= result.objects.keys()
    leads = [obj for obj in result.objects.values() if isinstance(obj, Lead)]
    assert {lead.key.source for lead in leads} == {HERE, other}
    assert [lead.mtu for lead in leads] == [1346, 1346], "they share a route"
    assert all(v.owner is Owner.ENGINE for v in result.verdicts)


def test_of_two_tunnels_for_the_same_packets_the_one_that_xfrm_takes_is_accelerated() -> None:
    result = desired(OFFER, SETTINGS, beside())
    assert TUNNEL in result.objects
    assert SECOND not in result.objects
    assert all("another policy" in v.reason for v in result.verdicts if v.sa.reqid == 2)


INSIDE = {"priority": 1, "destination": ip_network("192.168.2.64/26")}


def test_a_tunnel_inside_another_is_told_apart_and_both_are_accelerated() -> None:
    result = desired(OFFER, SETTINGS, beside(**INSIDE))
    assert result.objects[TUNNEL].exceptions == result.objects[SECOND].selectors
    assert result.objects[SECOND].exceptions == ()
    assert ExemptKey(result.objects[SECOND].selectors[0]) not in result.objects, "it is led itself"
    assert {v.owner for v in result.verdicts} == {Owner.ENGINE}


@pytest.mark.parametrize("algorithm", ["cbc(aes)", None], ids=["in the kernel", "not up yet"])
def test_a_tunnel_inside_another_that_is_not_led_itself_is_exempted(algorithm: str | None) -> None:
    state = beside(**INSIDE)
    if algorithm:
        sas = tuple(replace(one, aead=None, algorithm=algorithm) if one.reqid == 2 else one for one in state.sas)
    else:
        sas = tuple(one for one in state.sas if one.reqid != 2)
    policies = [
        p if algorithm or p.priority != 1 else replace(p, templates=(replace(p.templates[0], spi=0),))
        for p in state.policies
    ]
    result = desired(OFFER, SETTINGS, replace(state, sas=sas, policies=tuple(policies)))
    assert [ExemptKey(one) in result.objects for one in result.objects[TUNNEL].exceptions] == [True]


def test_an_exception_that_a_third_tunnel_is_inside_of_keeps_the_outermost_in_the_kernel() -> None:
    """What is exempted is exempted from every tunnel: the third one's packets would meet the guard."""
    around = {"priority": 1000, "destination": ip_network("192.168.2.0/25"), "templates": ()}
    state = beside(**INSIDE)
    state = replace(state, policies=(*state.policies, policy(0, **around)))
    result = desired(OFFER, SETTINGS, state)
    assert SECOND in result.objects
    assert TUNNEL not in result.objects
    assert not [one for one in result.objects.values() if isinstance(one, Exempt)]
    assert all("another policy" in v.reason for v in result.verdicts if v.sa.reqid == 1)
    apart = policy(0, **{**around, "destination": ip_network("192.168.2.128/25")})
    result = desired(OFFER, SETTINGS, replace(state, policies=(*state.policies[:-1], apart)))
    assert {TUNNEL, SECOND, ExemptKey(apart.selector)} <= result.objects.keys()


CONFUSING = {
    "by port": {**INSIDE, "upper": 17},
    "crossing": {**INSIDE, "source": ip_network("192.168.0.0/16")},
    "the same": {"priority": 1},
    "around it": {"priority": 1, "destination": ip_network("192.168.0.0/16")},
}


@pytest.mark.parametrize("trap", [False, True], ids=["up", "a trap"])
@pytest.mark.parametrize("case", CONFUSING)
def test_of_tunnels_that_no_engine_tells_apart_the_one_that_xfrm_tries_later_stays(case: str, trap: bool) -> None:
    """Also while the first is not up: its coming and going must not move the other one."""
    state = beside(**CONFUSING[case])
    if trap:
        state = replace(
            state,
            sas=tuple(one for one in state.sas if one.reqid != 2),
            policies=tuple(
                replace(p, templates=tuple(replace(t, spi=0) for t in p.templates)) if p.priority == 1 else p
                for p in state.policies
            ),
        )
    result = desired(OFFER, SETTINGS, state)
    assert TUNNEL not in result.objects
    assert (SECOND in result.objects) is not trap
    assert all("another policy" in v.reason for v in result.verdicts if v.sa.reqid == 1)


def test_selectors_for_other_ports_do_not_meet_but_no_engine_tells_them_apart() -> None:
    """XFRM has no order between them; the one that comes first is accelerated."""
    state = beside()
    for priority in (999999, state.policies[0].priority):
        udp, tcp = replace(state.policies[0], upper=17), replace(state.policies[1], upper=6, priority=priority)
        result = desired(OFFER, SETTINGS, replace(state, policies=(udp, tcp)))
        assert TUNNEL in result.objects
        assert all("another policy" in v.reason for v in result.verdicts if v.sa.reqid == 2)


def test_a_trap_policy_alone_asks_for_nothing() -> None:
    assert desired(OFFER, SETTINGS, snapshot(policies=(policy(0),))).objects == {}


def test_inbound_policies_do_not_lead() -> None:
    result = desired(OFFER, SETTINGS, established(policies=(policy(0x22, direction=PolicyDirection.FWD),)))
    assert TUNNEL not in result.objects


def test_an_unresolved_next_hop_is_waited_for() -> None:
    """The kernel must not get an SA only because an ARP answer is on its way."""
    result = desired(OFFER, SETTINGS, established(next_hops={}))
    assert result.objects == {}
    assert {v.owner for v in result.verdicts} == {Owner.PENDING}
    assert all("next hop" in v.reason for v in result.verdicts)


HERE6, THERE6 = ip_network("fd01::/64"), ip_network("fd02::/64")
LOCAL6, REMOTE6 = ip_address("2001:db8::1"), ip_address("2001:db8::2")


def dual(**changes: object) -> Snapshot:
    """A CHILD_SA with IPv4 and IPv6 selectors at once."""
    inner6 = policy(0x22, source=HERE6, destination=THERE6)
    return established(policies=(policy(0x22), inner6), **changes)


def test_one_tunnel_carries_selectors_of_both_families() -> None:
    result = desired(OFFER, SETTINGS, dual())
    assert set(result.objects[TUNNEL].selectors) == {Selector(HERE, THERE), Selector(HERE6, THERE6)}
    assert result.objects[Selector(HERE6, THERE6)] == Lead(Selector(HERE6, THERE6), None, 1446)
    assert {v.owner for v in result.verdicts} == {Owner.ENGINE}


def test_end_points_may_be_ipv6_and_their_header_counts() -> None:
    state = replace(
        established(),
        sas=(
            sa(0x11, inbound=True, key=SaKey(LOCAL6, 0x11), source=REMOTE6),
            sa(0x22, key=SaKey(REMOTE6, 0x22), source=LOCAL6),
        ),
        policies=(policy(0x22, templates=(Template(LOCAL6, REMOTE6, 0x22, 50, 1, Mode.TUNNEL),)),),
        local_addresses=frozenset({LOCAL6}),
        next_hops={REMOTE6: ResolvedHop("wan0", ip_address("fe80::1"), "02:00:00:00:00:02", 1500)},
    )
    objects = desired(OFFER, SETTINGS, state).objects
    assert objects[TunnelId(1, REMOTE6)].local == LOCAL6
    assert objects[Selector(HERE, THERE)].mtu == 1426
    assert objects[REMOTE6].gateway == ip_address("fe80::1")


LIMITS = {
    "any IPv6": (LeadLimits(all6="not past XFRM"), {}, "not past XFRM"),
    "its own IPv6": (
        LeadLimits(local6="own packets"),
        {"local_addresses": {LOCAL, ip_address("fd01::1")}},
        "own packets",
    ),
    "a small link": (
        LeadLimits(),
        {"next_hops": {REMOTE: ResolvedHop("wan0", REMOTE, "02:00:00:00:00:02", 1300)}},
        "1246 bytes for a packet inside, and IPv6 needs 1280",
    ),
}


@pytest.mark.parametrize("case", LIMITS)
def test_ipv6_that_cannot_be_led_keeps_its_tunnel_in_the_kernel(case: str) -> None:
    limits, changes, expected = LIMITS[case]
    result = desired(OFFER, SETTINGS, dual(limits=limits, **changes))
    assert result.objects == {}
    assert all(expected in v.reason for v in result.verdicts), result.verdicts
    only4 = desired(OFFER, SETTINGS, established(limits=limits, **changes))
    assert TUNNEL in only4.objects, "IPv4 is not concerned"


def test_own_ipv6_packets_that_cannot_be_led_do_not_concern_a_selector_without_own_addresses() -> None:
    assert TUNNEL in desired(OFFER, SETTINGS, dual(limits=LeadLimits(local6="own packets"))).objects


def test_what_is_led_by_ports_is_led_whole() -> None:
    """Fragments have no ports: what the kernel takes apart would not fit the policy, neither here nor at the peer."""
    ported = policy(0x22, upper=17, destination_port=PortMatch(5000, 0xFFFF))
    state = established(policies=(ported,))
    assert desired(OFFER, SETTINGS, state).objects[ported.selector].mtu == 1500
    small = replace(state.next_hops[REMOTE], mtu=1400)
    assert desired(OFFER, SETTINGS, replace(state, next_hops={REMOTE: small})).objects[ported.selector].mtu == 1400


@pytest.mark.parametrize(
    "changes", [{}, {"upper": 17, "destination_port": PortMatch(5000, 0xFFFF)}], ids=["all", "port"]
)
def test_nothing_is_led_that_the_veth_pair_does_not_take(changes: dict[str, object]) -> None:
    led = policy(0x22, **changes)
    jumbo = {REMOTE: ResolvedHop("wan0", REMOTE, "02:00:00:00:00:02", 9000)}
    found = desired(OFFER, SETTINGS, established(policies=(led,), next_hops=jumbo))
    assert found.objects[led.selector].mtu == 1500
