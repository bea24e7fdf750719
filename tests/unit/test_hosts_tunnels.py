"""Tunnel mode between the two ends of its SAs alone: what the gateway itself and its peer say to each other."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from ipsec_gw.desired import Desired, Owner, desired
from ipsec_gw.device_words import device_words
from ipsec_gw.model.ids import SaKey, TunnelId
from ipsec_gw.model.objects import (
    ANY_PORT,
    EngineSa,
    Hosts,
    HostsLead,
    Lead,
    PortMatch,
    Tunnel,
    UdpEncap,
)
from ipsec_gw.model.snapshot import Encapsulator, LeadLimits, Mode, ResolvedHop, Snapshot, Template, XfrmPolicy, XfrmSa
from tests.support.world import LOCAL, OFFER, REMOTE, SETTINGS, policy, sa
from tests.unit.test_hosts import (
    FROM,
    GRE1,
    TO,
    WEB,
    beside,
    exempted,
    pair,
    reasons,
    selects,
    tunnel,
)

LEAD = HostsLead(Hosts(LOCAL, REMOTE))
ALL = {"upper": 0, "source_port": ANY_PORT, "destination_port": ANY_PORT}
LAN, FAR_LAN = ip_network("192.168.1.0/24"), ip_network("192.168.2.0/24")
SITE = 7


def own(reqid: int = TO, **changes: object) -> XfrmPolicy:
    """A policy in tunnel mode for the gateways' own addresses."""
    return selects(reqid, mode=Mode.TUNNEL, **changes)


def sas(*reqids: int, **changes: object) -> tuple[XfrmSa, ...]:
    return tuple(one for reqid in reqids or (TO,) for one in pair(reqid, **{"mode": Mode.TUNNEL, **changes}))


def alone(*policies: XfrmPolicy, **changes: object) -> Snapshot:
    return beside(*policies or (own(),), **{"sas": sas(), **changes})


def leads(found: Desired) -> list[object]:
    return [one for one in found.objects.values() if isinstance(one, Lead | HostsLead)]


SELECTED = {
    "all protocols": ALL,
    "one protocol": {**ALL, "upper": 6},
    "GRE without a device": {**ALL, "upper": 47},
    "a port": {},
    "ports here": {"source_port": PortMatch(0x1000, 0xF000), "destination_port": ANY_PORT},
}


@pytest.mark.parametrize("what", SELECTED.values(), ids=SELECTED.keys())
def test_it_is_led_by_what_xfrm_has_chosen_and_by_nothing_else(what: dict[str, object]) -> None:
    """By a routing rule for addresses IKE and ESP would go into the tunnel."""
    state = alone(own(**what))
    found = desired(OFFER, SETTINGS, state)
    assert {verdict.owner for verdict in found.verdicts} == {Owner.ENGINE}
    one = tunnel(found, TO)
    assert (one.hosts, one.selectors, one.exceptions) == (True, (state.policies[0].selector,), ())
    assert leads(found) == [LEAD]
    assert not any(obj.transport for obj in found.objects.values() if isinstance(obj, EngineSa))


def test_behind_nat_it_is_no_other() -> None:
    """An outer header of its own has a checksum of its own."""
    found = desired(OFFER, SETTINGS, alone(sas=sas(encap=UdpEncap(4500, 4500))))
    assert {verdict.owner for verdict in found.verdicts} == {Owner.ENGINE}
    assert leads(found) == [LEAD]


def test_several_stand_side_by_side_in_whatever_mode() -> None:
    for mode in (Mode.TUNNEL, Mode.TRANSPORT):
        policies = own(TO, index=8), selects(FROM, index=16, mode=mode)
        found = desired(OFFER, SETTINGS, beside(*policies, sas=(*sas(), *pair(FROM, mode=mode))))
        assert {verdict.owner for verdict in found.verdicts} == {Owner.ENGINE}
        assert (tunnel(found, TO).rank, tunnel(found, FROM).rank) == (1, 0), "XFRM's order"
        assert leads(found) == [LEAD]


def test_one_that_stays_in_the_kernel_beside_it_is_exempted() -> None:
    gone = sas(WEB, replay=replace(sa(1).replay, window=1 << 20))
    found = desired(OFFER, SETTINGS, beside(own(), own(WEB), sas=(*sas(), *gone)))
    assert tunnel(found, TO).hosts
    assert exempted(found) == {own(WEB).selector}


def test_a_pass_policy_for_some_of_its_packets_has_them() -> None:
    passing = own(WEB, templates=(), priority=1)
    found = desired(OFFER, SETTINGS, alone(passing, own(**ALL)))
    assert tunnel(found, TO).exceptions == (passing.selector,)
    assert exempted(found) == {passing.selector}


def test_one_that_waits_for_its_first_packet_does_not_matter() -> None:
    assert leads(desired(OFFER, SETTINGS, alone(own(), own(FROM, spi=0)))) == [LEAD]
    assert not desired(OFFER, SETTINGS, beside(own(spi=0), sas=())).objects


def test_a_tunnel_between_the_networks_behind_is_another_matter() -> None:
    """Both are up with most gateways that have such a child."""
    bound = Template(LOCAL, REMOTE, 0x20 + SITE, 50, SITE, Mode.TUNNEL)
    site = policy(0, templates=(bound,))
    state = alone(own(**ALL), site, sas=(*sas(), *sas(SITE)))
    found = desired(OFFER, SETTINGS, state)
    assert {verdict.owner for verdict in found.verdicts} == {Owner.ENGINE}
    assert {type(one) for one in leads(found)} == {Lead, HostsLead}
    assert (tunnel(found, TO).hosts, tunnel(found, SITE).hosts) == (True, False)
    assert not exempted(found)


def test_from_a_tunnel_to_another_peer_a_trap_for_own_addresses_is_exempted() -> None:
    """That one's rule is by addresses, and the trap's packets have them."""
    far = ip_address("10.0.0.77")
    bound = Template(LOCAL, far, 0x20 + SITE, 50, SITE, Mode.TUNNEL)
    wide = policy(0, source=ip_network("10.0.0.0/29"), destination=ip_network(REMOTE), templates=(bound,), priority=9)
    outward = tuple(
        replace(one, source=far) if one.key.destination == LOCAL else replace(one, key=SaKey(far, one.key.spi))
        for one in sas(SITE)
    )
    hop = ResolvedHop("wan0", far, "02:00:00:00:00:03", 1500)
    state = beside(own(spi=0, priority=1), wide, sas=outward)
    found = desired(OFFER, SETTINGS, replace(state, next_hops={**state.next_hops, far: hop}))
    one = found.objects[TunnelId(SITE, far)]
    assert isinstance(one, Tunnel)
    assert one.exceptions == (own().selector,)
    assert exempted(found) == {own().selector}


MORE = own(destination=ip_network("10.0.0.0/29"), index=9)
SIX = ip_address("2001:db8::1"), ip_address("2001:db8::2")
KEPT: dict[str, tuple[Snapshot, str]] = {
    "networks as well": (alone(own(), MORE), "end points, and are not for those alone"),
    "messages of ICMP": (
        alone(own(upper=1, destination_port=ANY_PORT, source_port=PortMatch(8, 0xFFFF))),
        "limited to messages",
    ),
    "for a user": (alone(own(bound=True)), "limited to an interface or a user"),
    "a wider policy beside": (alone(own(), own(FROM, **ALL)), "tunnel mode between its own ends beside another policy"),
    "a policy of a tunnel that is for more": (
        alone(own(), own(FROM), replace(MORE, templates=own(FROM).templates)),
        "beside another policy",
    ),
    "what a device sends": (
        alone(own(), own(WEB, **{**ALL, "upper": 47}), encapsulators=(GRE1,)),
        "beside another policy",
    ),
    "marks": (alone(limits=LeadLimits(hosts="no nf_tables")), "no nf_tables"),
}


@pytest.mark.parametrize(("state", "words"), KEPT.values(), ids=KEPT.keys())
def test_otherwise_it_stays_in_the_kernel_with_a_reason(state: Snapshot, words: str) -> None:
    found = desired(OFFER, SETTINGS, state)
    assert not found.objects
    (reason,) = reasons(found)
    assert words in reason


def test_so_it_does_over_ipv6() -> None:
    here, there = SIX
    bound = Template(here, there, 0x21, 50, TO, Mode.TUNNEL)
    ends = {"source": ip_network(here), "destination": ip_network(there), "templates": (bound,)}
    inbound, outbound = sas()
    six = (
        replace(inbound, source=there, key=SaKey(here, 0x11)),
        replace(outbound, source=here, key=SaKey(there, 0x21)),
    )
    found = desired(OFFER, SETTINGS, beside(own(**ALL, **ends), sas=six, local_addresses=frozenset(SIX)))
    assert reasons(found) == {"tunnel mode between its own ends over IPv6 is left to the kernel"}


@pytest.mark.parametrize("others", [(), (own(FROM),)], ids=["alone", "beside another child"])
def test_of_a_device_that_an_engine_cannot_have_it_encrypts_what_that_sends(others: tuple[XfrmPolicy, ...]) -> None:
    odd = replace(GRE1, oddity="has a key")
    state = beside(own(**{**ALL, "upper": 47}), *others, sas=sas(TO, *([FROM] if others else [])), encapsulators=(odd,))
    found = desired(OFFER, SETTINGS, state)
    assert {verdict.owner for verdict in found.verdicts} == {Owner.ENGINE}
    assert (tunnel(found, TO).hosts, tunnel(found, TO).header) == (True, None)
    assert leads(found) == [LEAD]
    assert words(state, odd, found) == (
        "GRE device gre1: the kernel does GRE (GRE device gre1 has a key), vpp does ESP",
    )


def test_a_device_that_an_engine_can_have_is_led_by_itself() -> None:
    state = alone(own(**{**ALL, "upper": 47}), encapsulators=(GRE1,))
    found = desired(OFFER, SETTINGS, state)
    assert not tunnel(found, TO).hosts
    assert not leads(found)
    assert GRE1.interface in found.objects


def words(state: Snapshot, device: Encapsulator, found: Desired) -> tuple[str, ...]:
    assert device in state.encapsulators
    return device_words(state, found.verdicts, found.kept_devices, found.objects, OFFER.name)


def test_ends_that_its_sas_have_left_are_addresses_like_others() -> None:
    """MOBIKE moves SAs and templates, and selectors stay."""
    moved = ip_address("10.0.0.9")
    inbound, outbound = sas()
    there = replace(inbound, key=SaKey(moved, inbound.key.spi)), replace(outbound, source=moved)
    bound = Template(moved, REMOTE, 0x20 + TO, 50, TO, Mode.TUNNEL)
    for one in (own(**ALL), own(**ALL, templates=(bound,))):
        found = desired(OFFER, SETTINGS, alone(one, sas=there, local_addresses=frozenset({LOCAL, moved})))
        assert not tunnel(found, TO).hosts
        assert {type(lead) for lead in leads(found)} == {Lead}
