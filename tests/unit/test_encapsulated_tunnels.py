"""GRE and IPIP devices over tunnel mode: what an engine may have and does then, and why the kernel does the rest."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ipsec_gw.desired import Desired, EngineOffer, Owner, desired
from ipsec_gw.device_words import device_words
from ipsec_gw.ike.observer import Observer
from ipsec_gw.ike.xfrm import XfrmMonitor, XfrmSocket
from ipsec_gw.mirror.kernel import KernelView
from ipsec_gw.model.ids import Direction, IpAddress, SaKey, TunnelId
from ipsec_gw.model.objects import (
    DeviceHeader,
    EngineSa,
    EntryKey,
    Exempt,
    ExemptKey,
    HeaderCopies,
    Hosts,
    HostsLead,
    InterfaceEntry,
    InterfaceKind,
    InterfaceLead,
    Lead,
    PortMatch,
    Selector,
    Tunnel,
    UdpEncap,
    XfrmInterface,
)
from ipsec_gw.model.snapshot import Encapsulator, Mode, ResolvedHop, Snapshot, Template, XfrmPolicy
from ipsec_gw.reconcile.plan import Action, plan
from tests.support.world import LOCAL, OFFER, REMOTE, SETTINGS, policy, sa, snapshot

ANY4, ANY6 = (Selector(ip_network(net), ip_network(net)) for net in ("0.0.0.0/0", "::/0"))
OURS, THEIRS = ip_address("192.0.2.1"), ip_address("192.0.2.2")
GRE, IPIP = 47, 4
GRE1 = Encapsulator(XfrmInterface(17, "gre1", InterfaceKind.GRE), OURS, THEIRS)
IPIP1 = Encapsulator(XfrmInterface(18, "ipip1", InterfaceKind.IPIP), OURS, THEIRS)
OUTER = Encapsulator(XfrmInterface(19, "gre2", InterfaceKind.GRE), LOCAL, REMOTE)
TUNNEL = TunnelId(1, REMOTE)
PATH = snapshot().next_hops[REMOTE]


def between(device: Encapsulator, **changes: object) -> XfrmPolicy:
    """The policy for what a device sends."""
    ends = {"source": ip_network(f"{device.local}/32"), "destination": ip_network(f"{device.remote}/32")}
    return policy(0x22, **{**ends, "upper": device.protocol, **changes})


def over(device: Encapsulator, *others: Encapsulator, **changes: object) -> Snapshot:
    """An SA pair in tunnel mode for what a device sends."""
    defaults = {"policies": (between(device),), "encapsulators": (device, *others), "sources": {}}
    return snapshot(sa(0x11, inbound=True), sa(0x22), **{**defaults, **changes})


def tunnel_in(found: Desired) -> Tunnel:
    tunnel = found.objects[TUNNEL]
    assert isinstance(tunnel, Tunnel)
    return tunnel


def words(state: Snapshot, offer: EngineOffer = OFFER, *, done: bool = True) -> str:
    """What people are told of the one device."""
    found = desired(offer, SETTINGS, state)
    told = device_words(state, found.verdicts, found.kept_devices, found.objects if done else {}, offer.name)
    (sentence,) = told
    return sentence


@pytest.mark.parametrize("device", [GRE1, OUTER], ids=["other addresses", "the outer addresses"])
def test_gre_is_led_by_its_device_whatever_addresses_it_has(device: Encapsulator) -> None:
    found = desired(OFFER, SETTINGS, over(device))
    tunnel = tunnel_in(found)
    assert (tunnel.interface, tunnel.selectors, tunnel.exceptions) == (device.interface, (ANY4, ANY6), ())
    assert isinstance(device.local, IpAddress)
    assert isinstance(device.remote, IpAddress)
    assert tunnel.header == DeviceHeader(device.local, device.remote, gre=True)
    both = frozenset({4, 6})
    assert found.objects[device.interface] == InterfaceLead(device.interface, 1446 - 24, both)
    assert found.objects[EntryKey(device.interface)] == InterfaceEntry(EntryKey(device.interface), both)
    assert not any(isinstance(obj, Lead) for obj in found.objects.values())
    assert {verdict.owner for verdict in found.verdicts} == {Owner.ENGINE}
    assert found.kept_devices == {}


def test_ipip_has_three_headers_and_needs_no_gre() -> None:
    found = desired(replace(OFFER, gre=False), SETTINGS, over(IPIP1, GRE1))
    assert tunnel_in(found).header == DeviceHeader(OURS, THEIRS, gre=False)
    assert tunnel_in(found).selectors == (ANY4,)
    assert found.objects[IPIP1.interface] == InterfaceLead(IPIP1.interface, 1446 - 20, frozenset({4}))


def test_the_sas_are_those_of_any_tunnel_and_the_device_has_its_own_copies() -> None:
    """So they can be in an engine before charon adds the policies that tell of the device."""
    marked = over(
        replace(GRE1, dscp=True), sas=tuple(replace(one, copies=HeaderCopies(ecn=False)) for one in over(GRE1).sas)
    )
    found, early = (desired(OFFER, SETTINGS, state) for state in (marked, replace(marked, policies=())))
    sas = {key: obj for key, obj in found.objects.items() if isinstance(obj, EngineSa)}
    assert {key: obj for key, obj in early.objects.items() if isinstance(obj, EngineSa)} == sas
    assert {one.direction: (one.gre, one.transport, one.copies) for one in sas.values()} == dict.fromkeys(
        Direction, (False, False, HeaderCopies(ecn=False))
    )
    header = tunnel_in(found).header
    assert header is not None
    assert header.dscp


def test_behind_nat_it_is_smaller() -> None:
    nat = tuple(replace(one, encap=UdpEncap(4500, 4500)) for one in over(GRE1).sas)
    found = desired(OFFER, SETTINGS, over(GRE1, sas=nat))
    assert found.objects[GRE1.interface] == InterfaceLead(GRE1.interface, 1438 - 24, frozenset({4, 6}))


def test_over_ipv6() -> None:
    ours, peer = ip_address("2001:db8::1"), ip_address("2001:db8::2")
    sas = (
        replace(sa(0x11), source=peer, key=SaKey(ours, 0x11)),
        replace(sa(0x22), source=ours, key=SaKey(peer, 0x22)),
    )
    template = Template(ours, peer, 0x22, 50, 1, Mode.TUNNEL)
    state = over(
        GRE1,
        sas=sas,
        policies=(between(GRE1, templates=(template,)),),
        next_hops={peer: ResolvedHop("wan0", peer, "02:00:00:00:00:02", 1500)},
        local_addresses=frozenset({ours, OURS}),
    )
    found = desired(OFFER, SETTINGS, state)
    assert {verdict.owner for verdict in found.verdicts} == {Owner.ENGINE}
    assert found.objects[GRE1.interface] == InterfaceLead(GRE1.interface, 1426 - 24, frozenset({4, 6}))


def test_without_a_device_it_is_a_tunnel_like_others_and_becomes_the_devices_in_place() -> None:
    without, having = (desired(OFFER, SETTINGS, over(GRE1, **changes)) for changes in ({"encapsulators": ()}, {}))
    plain = tunnel_in(without)
    assert (plain.interface, plain.header, plain.selectors) == (None, None, (between(GRE1).selector,))
    assert between(GRE1).selector in without.objects
    steps = [(op.action, type(op.obj)) for op in plan(having.objects, without.objects)]
    lead, entry, tunnel, interface = (
        (Action.DELETE, Lead),
        (Action.CREATE, InterfaceEntry),
        (Action.UPDATE, Tunnel),
        (Action.CREATE, InterfaceLead),
    )
    assert steps.index(lead) < steps.index(entry) < steps.index(tunnel) < steps.index(interface)
    assert not any(kind is EngineSa for _, kind in steps), "its key sends on"


OPEN = Encapsulator(XfrmInterface(5, "mgre", InterfaceKind.GRE), None, None)
TWIN = XfrmInterface(17 + 4094, "ipsec0")
NO_GRE = replace(OFFER, gre=False)
LEFT: dict[str, tuple[Snapshot, EngineOffer, str]] = {
    "a key": (over(replace(GRE1, oddity="has a key")), OFFER, "GRE device gre1 has a key"),
    "one for any peer": (over(GRE1, OPEN), OFFER, "GRE device mgre may send to 192.0.2.2"),
    "the same VLAN ID": (over(GRE1, interfaces={42: TWIN}), OFFER, "share the VLAN ID 18"),
    "another link": (over(replace(GRE1, link="wan1")), OFFER, "packets to 192.0.2.2 leave by wan0"),
    "no GRE": (over(GRE1), NO_GRE, "engine vpp does not do GRE"),
    "keys of GRE": (
        over(GRE1, policies=(between(GRE1, source_port=PortMatch(1, 0xFFFF)),)),
        OFFER,
        "is not for GRE device gre1 alone",
    ),
    "any protocol": (over(GRE1, policies=(between(GRE1, upper=0),)), OFFER, "its SAs are for more than it sends"),
    "networks": (
        over(GRE1, policies=(between(GRE1, source=ip_network("192.0.2.0/30"), upper=0),)),
        OFFER,
        "its SAs are for more than it sends",
    ),
}


@pytest.mark.parametrize("name", [name for name in LEFT if name != "keys of GRE"])
def test_what_an_engine_cannot_have_of_a_device_it_encrypts_as_other_packets(name: str) -> None:
    state, offer, reason = LEFT[name]
    found = desired(offer, SETTINGS, state)
    assert {verdict.owner for verdict in found.verdicts} == {Owner.ENGINE}
    assert (tunnel_in(found).interface, tunnel_in(found).header) == (None, None)
    assert words(state, offer).startswith("GRE device gre1: the kernel does GRE (")
    assert reason in words(state, offer)
    assert words(state, offer).endswith("), vpp does ESP")


OF_OWN_ENDS = {
    "keys of GRE": "limited to messages that routing rules do not tell apart",
}


@pytest.mark.parametrize("name", LEFT)
def test_between_the_tunnels_own_ends_it_is_led_like_others_of_theirs(name: str) -> None:
    """Routing could not tell it from ESP and IKE, but XFRM's choice does, unless keys are in it."""
    state, offer, reason = LEFT[name]
    moved = (replace(one, local=LOCAL, remote=REMOTE) if one.local else one for one in state.encapsulators)
    ends = {"source": ip_network(f"{LOCAL}/32"), "destination": ip_network(f"{REMOTE}/32")}
    policies = tuple(replace(one, **ends) for one in state.policies)
    there = replace(state, encapsulators=tuple(moved), policies=policies)
    found = desired(offer, SETTINGS, there)
    (told,) = {verdict.reason for verdict in found.verdicts}
    assert OF_OWN_ENDS.get(name, "") in told
    assert (HostsLead(Hosts(LOCAL, REMOTE)) in found.objects.values()) is (name not in OF_OWN_ENDS)
    if name not in OF_OWN_ENDS:
        assert reason.replace("192.0.2.2", "10.0.0.2") in words(there, offer)


def test_people_are_told_who_does_gre() -> None:
    assert words(over(GRE1)) == "GRE device gre1: vpp does GRE and ESP"
    assert words(over(IPIP1), done=False).startswith("IPIP device ipip1: the kernel does IPIP (the engine is to")
    down = over(replace(GRE1, up=False))
    found = desired(OFFER, SETTINGS, down)
    assert device_words(down, found.verdicts, found.kept_devices, found.objects, OFFER.name) == ()


WIDE = ip_network("192.0.2.0/24")


def beside_networks(*, trap: bool = False) -> Snapshot:
    """A tunnel for networks in which both ends of the device are, tried after its own."""
    state = over(GRE1)
    second = [replace(one, reqid=2, key=SaKey(one.key.destination, one.key.spi + 0x100)) for one in state.sas]
    bound = Template(LOCAL, REMOTE, 0x122, 50, 2, Mode.TUNNEL)
    networks = policy(0x122, source=WIDE, destination=WIDE, priority=999999, templates=(bound,))
    own = between(GRE1, templates=(Template(LOCAL, REMOTE, 0, 50, 1, Mode.TUNNEL),)) if trap else between(GRE1)
    return replace(state, sas=(*(() if trap else state.sas), *second), policies=(own, networks))


@pytest.mark.parametrize("trap", [False, True], ids=["up", "a trap"])
def test_a_tunnel_for_networks_leaves_the_devices_packets_alone(trap: bool) -> None:
    """Whether the device's is up or not: nothing moves when it comes and goes."""
    found = desired(OFFER, SETTINGS, beside_networks(trap=trap))
    assert {verdict.owner for verdict in found.verdicts} == {Owner.ENGINE}
    other = found.objects[TunnelId(2, REMOTE)]
    assert isinstance(other, Tunnel)
    own = between(GRE1).selector
    assert other.exceptions == (own,)
    assert found.objects[ExemptKey(own)] == Exempt(ExemptKey(own), unbound=False)


def test_what_others_have_first_of_its_packets_is_not_the_devices() -> None:
    first = policy(0, source=WIDE, destination=WIDE, templates=(), priority=1)
    found = desired(OFFER, SETTINGS, over(GRE1, policies=(first, between(GRE1))))
    assert not found.objects
    assert {verdict.reason for verdict in found.verdicts} == {
        f"another policy ({WIDE} === {WIDE}) covers part of its selector"
    }


def test_children_for_other_protocols_stand_beside_it() -> None:
    state = over(GRE1)
    second = [replace(one, reqid=2, key=SaKey(one.key.destination, one.key.spi + 0x100)) for one in state.sas]
    bound = Template(LOCAL, REMOTE, 0x122, 50, 2, Mode.TUNNEL)
    ping = between(GRE1, upper=1, templates=(bound,))
    for policies in ((*state.policies, ping), (ping, *state.policies)):
        found = desired(OFFER, SETTINGS, replace(state, sas=(*state.sas, *second), policies=policies))
        assert {verdict.owner for verdict in found.verdicts} == {Owner.ENGINE}


def test_ipv6_needs_its_room_inside() -> None:
    short = over(GRE1, next_hops={REMOTE: replace(PATH, mtu=1350)})
    found = desired(OFFER, SETTINGS, short)
    assert {verdict.reason for verdict in found.verdicts} == {
        "its path leaves 1270 bytes for a packet inside, and IPv6 needs 1280"
    }


@pytest.mark.parametrize(("one", "found"), [(between(GRE1), (GRE1,)), (policy(0x22), ())], ids=["hosts", "networks"])
async def test_devices_are_looked_for_where_policies_are_between_two_hosts(
    one: XfrmPolicy, found: tuple[Encapsulator, ...]
) -> None:
    async def nothing(*_: object) -> dict[Any, Any]:
        return {}

    async def links() -> Any:
        return SimpleNamespace(encapsulators=lambda: (GRE1,))

    view = {name: nothing for name in ("addresses", "next_hops", "source_hints", "vxlans")}
    observer = Observer(
        cast(XfrmSocket, SimpleNamespace(sas=lambda: [sa(0x22)], policies=lambda: [one])),
        cast(XfrmMonitor, SimpleNamespace(changes=0, drain=lambda: None)),
        cast(KernelView, SimpleNamespace(links=links, **view)),
        cast(Any, SimpleNamespace(child_names=nothing, version="")),
        names_decide=False,
        named=lambda: None,
    )
    assert (await observer.snapshot()).encapsulators == found
