"""Transport mode for GRE and IPIP devices: what an engine may have, what is asked for then, and why the rest stays."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network
from random import Random

import pytest

from ipsec_gw.desired import Desired, Owner, desired
from ipsec_gw.model.ids import Direction, SaKey, TunnelId
from ipsec_gw.model.objects import (
    FRAMES,
    EngineSa,
    EntryKey,
    HeaderCopies,
    Hosts,
    InterfaceEntry,
    InterfaceKind,
    InterfaceLead,
    Lead,
    Selector,
    Tunnel,
    UdpEncap,
    XfrmInterface,
)
from ipsec_gw.model.snapshot import Encapsulator, Mode, Snapshot, Template, XfrmPolicy
from ipsec_gw.ownership.interfaces import InterfaceDriver
from tests.property.convergence_edges import Edge, FakeDevices
from tests.support.world import LOCAL, OFFER, REMOTE, SETTINGS, policy, sa, snapshot
from xdp_steer.xfrmi import Uplink

ANY4, ANY6 = (Selector(ip_network(net), ip_network(net)) for net in ("0.0.0.0/0", "::/0"))
HERE, THERE = ip_network(f"{LOCAL}/32"), ip_network(f"{REMOTE}/32")
GRE, IPIP = 47, 4
GRE1 = Encapsulator(XfrmInterface(17, "gre1", InterfaceKind.GRE), LOCAL, REMOTE)
IPIP1 = Encapsulator(XfrmInterface(18, "ipip1", InterfaceKind.IPIP), LOCAL, REMOTE)
TUNNEL = TunnelId(1, REMOTE)


def protects(spi: int = 0x22, upper: int = GRE, **changes: object) -> XfrmPolicy:
    """As the policy of a device is read."""
    bound = Template(LOCAL, REMOTE, spi, 50, 1, Mode.TRANSPORT)
    return policy(spi, **{"source": HERE, "destination": THERE, "upper": upper, "templates": (bound,), **changes})


def encapsulated(upper: int = GRE, *devices: Encapsulator, **changes: object) -> Snapshot:
    """An SA pair in transport mode for what a device sends."""
    return snapshot(
        sa(0x11, inbound=True, mode=Mode.TRANSPORT),
        sa(0x22, mode=Mode.TRANSPORT),
        **{
            "policies": (protects(upper=upper),),
            "encapsulators": devices or (GRE1, IPIP1),
            "sources": {},
            **changes,
        },
    )


def kept(found: Desired) -> str:
    """Why all of it is the kernel's."""
    assert not found.objects
    assert {verdict.owner for verdict in found.verdicts} == {Owner.KERNEL}
    (reason,) = {verdict.reason for verdict in found.verdicts}
    return reason


def sas_of(found: Desired) -> list[EngineSa]:
    return [obj for obj in found.objects.values() if isinstance(obj, EngineSa)]


def test_gre_is_led_by_its_device() -> None:
    found = desired(OFFER, SETTINGS, encapsulated())
    tunnel = found.objects[TUNNEL]
    assert isinstance(tunnel, Tunnel)
    assert (tunnel.interface, tunnel.selectors, tunnel.outbound) == (GRE1.interface, (ANY4, ANY6), SaKey(REMOTE, 0x22))
    assert all(one.gre for one in sas_of(found))
    both = frozenset({4, 6})
    assert found.objects[GRE1.interface] == InterfaceLead(GRE1.interface, 1442, both)
    assert found.objects[EntryKey(GRE1.interface)] == InterfaceEntry(EntryKey(GRE1.interface), both)
    assert not any(isinstance(obj, Lead) for obj in found.objects.values())
    assert {verdict.owner for verdict in found.verdicts} == {Owner.ENGINE}


def test_ipip_is_the_same_on_the_wire_as_tunnel_mode() -> None:
    found = desired(replace(OFFER, gre=False), SETTINGS, encapsulated(IPIP))
    tunnel = found.objects[TUNNEL]
    assert isinstance(tunnel, Tunnel)
    assert (tunnel.interface, tunnel.selectors) == (IPIP1.interface, (ANY4,))
    assert not any(one.gre for one in sas_of(found))
    assert found.objects[IPIP1.interface] == InterfaceLead(IPIP1.interface, 1446, frozenset({4}))


@pytest.mark.parametrize("dscp", [False, True])
def test_the_device_says_what_the_outer_header_copies(dscp: bool) -> None:
    """On the way out: another TOS does not change the SAs that receive."""
    found = desired(OFFER, SETTINGS, encapsulated(GRE, replace(GRE1, dscp=dscp)))
    copies = {one.direction: one.copies for one in sas_of(found)}
    assert copies == {Direction.IN: HeaderCopies(), Direction.OUT: HeaderCopies(dscp=dscp)}


def test_before_its_policy_is_there_nobody_has_it() -> None:
    """Which device it is for is not known, and used by the kernel, its key would be lost for the engine."""
    found = desired(OFFER, SETTINGS, encapsulated(policies=()))
    assert not found.objects
    assert {verdict.owner for verdict in found.verdicts} == {Owner.PENDING}


def test_on_a_rekey_the_policy_is_the_switch() -> None:
    before = encapsulated()
    fresh = sa(0x33, inbound=True, age=1, mode=Mode.TRANSPORT), sa(0x44, age=1, mode=Mode.TRANSPORT)
    for spi in (0x22, 0x44):
        state = replace(before, sas=before.sas + fresh, policies=(protects(spi),))
        state = replace(state, names={one.key.spi: before.names[0x11] for one in state.sas})
        tunnel = desired(OFFER, SETTINGS, state).objects[TUNNEL]
        assert isinstance(tunnel, Tunnel)
        assert tunnel.inbound == (SaKey(LOCAL, 0x11), SaKey(LOCAL, 0x33))
        assert tunnel.outbound == SaKey(REMOTE, spi)


TWIN = Encapsulator(XfrmInterface(17 + 4094, "gre9", InterfaceKind.GRE), LOCAL, ip_address("10.0.0.77"))
OPEN = Encapsulator(XfrmInterface(5, "mgre", InterfaceKind.GRE), None, None, oddity="is for any")
KEYED = replace(GRE1, interface=XfrmInterface(19, "gre2", InterfaceKind.GRE), oddity="has a key")
KEPT = {
    "networks": (
        encapsulated(policies=(protects(source=ip_network("10.0.0.0/24")),)),
        "transport mode is left to the kernel",
    ),
    "a key": (encapsulated(GRE, replace(GRE1, oddity="has a key")), "GRE device gre1 has a key"),
    "a second one with a key": (
        encapsulated(GRE, GRE1, KEYED),
        "GRE device gre2 may send to 10.0.0.2 with the SAs of GRE device gre1",
    ),
    "one for any peer": (encapsulated(GRE, GRE1, OPEN), "GRE device mgre may send to 10.0.0.2"),
    "the same VLAN ID": (encapsulated(GRE, GRE1, TWIN), "share the VLAN ID 18"),
    "the VLAN ID of an XFRM interface": (
        encapsulated(GRE, GRE1, interfaces={42: XfrmInterface(17 + 4094, "ipsec0")}),
        "GRE device gre1 and XFRM interface ipsec0 share the VLAN ID 18",
    ),
    "another link": (
        encapsulated(GRE, replace(GRE1, link="wan1")),
        "GRE device gre1 is bound to wan1, and packets to 10.0.0.2 leave by wan0",
    ),
    "NAT": (
        encapsulated(
            sas=(
                sa(0x11, inbound=True, mode=Mode.TRANSPORT, encap=UdpEncap(4500, 4500)),
                sa(0x22, mode=Mode.TRANSPORT, encap=UdpEncap(4500, 4500)),
            )
        ),
        "UDP encapsulation in transport mode",
    ),
    "an if_id": (
        encapsulated(policies=(protects(if_id=7),)),
        "its SAs have an if_id, and GRE device gre1 is no XFRM interface",
    ),
    "a mark": (encapsulated(policies=(protects(mark=(1, 1)),)), "mark"),
    "too small a path": (
        encapsulated(next_hops={REMOTE: replace(encapsulated().next_hops[REMOTE], mtu=1330)}),
        "IPv6 needs 1280",
    ),
    "a mixture of modes": (
        encapsulated(sas=(sa(0x11, inbound=True, mode=Mode.TRANSPORT), sa(0x22))),
        "SAs of several modes (transport, tunnel)",
    ),
    "a policy before it": (
        encapsulated(policies=(policy(0, source=HERE, destination=THERE, templates=(), priority=1), protects())),
        "covers part of its selector",
    ),
}


@pytest.mark.parametrize(("state", "reason"), KEPT.values(), ids=KEPT.keys())
def test_what_stays_in_the_kernel(state: Snapshot, reason: str) -> None:
    assert reason in kept(desired(OFFER, SETTINGS, state))


def test_what_xfrm_gives_another_tunnel_between_the_hosts_first_is_not_the_devices() -> None:
    state = encapsulated()
    other = [replace(one, reqid=2, key=SaKey(one.key.destination, one.key.spi + 0x100)) for one in state.sas]
    bound = Template(LOCAL, REMOTE, 0x122, 50, 2, Mode.TRANSPORT)
    before = protects(upper=0, priority=1, templates=(bound,))
    found = desired(OFFER, SETTINGS, replace(state, sas=(*state.sas, *other), policies=(before, *state.policies)))
    reasons = {verdict.sa.key.spi: verdict.reason for verdict in found.verdicts}
    assert "covers part of its selector" in reasons[0x22]
    assert "beside another policy" in reasons[0x122]


BETWEEN_HOSTS = {
    "no device": encapsulated(encapsulators=()),
    "one of the other kind": encapsulated(IPIP, GRE1),
    "one to somebody else": encapsulated(GRE, TWIN),
    "everything": encapsulated(0, GRE1),
    "something else": encapsulated(17, GRE1),
    "something else beside it": encapsulated(policies=(protects(), protects(upper=IPIP))),
}


@pytest.mark.parametrize("state", BETWEEN_HOSTS.values(), ids=BETWEEN_HOSTS.keys())
def test_what_is_not_a_devices_alone_is_between_the_hosts(state: Snapshot) -> None:
    found = desired(OFFER, SETTINGS, state)
    tunnel = found.objects[TUNNEL]
    assert isinstance(tunnel, Tunnel)
    assert (tunnel.hosts, tunnel.interface) == (True, None)
    assert all(one.transport and not one.gre for one in sas_of(found))
    assert Hosts(LOCAL, REMOTE) in found.objects


def test_an_engine_without_gre_leaves_it_to_the_kernel() -> None:
    assert kept(desired(replace(OFFER, gre=False), SETTINGS, encapsulated())) == "engine vpp does not do GRE"


def test_others_that_are_down_or_of_another_kind_do_not_matter() -> None:
    state = encapsulated(GRE, GRE1, IPIP1, replace(OPEN, up=False))
    assert {verdict.owner for verdict in desired(OFFER, SETTINGS, state).verdicts} == {Owner.ENGINE}


def test_a_tunnel_for_anything_stays_in_the_kernel_beside_a_devices_ends() -> None:
    """A routing rule for it would have IKE and ESP between those, too."""
    peer = ip_address("10.0.0.9")
    state = encapsulated(GRE, GRE1)
    template = Template(LOCAL, peer, 0x44, 50, 2, Mode.TUNNEL)
    anything = replace(
        policy(0x44, templates=(template,), priority=999999), source=ANY4.source, destination=ip_network("10.0.0.0/29")
    )
    both = replace(
        state,
        sas=(
            *state.sas,
            replace(sa(0x33, inbound=True), source=peer, reqid=2),
            replace(sa(0x44), key=SaKey(peer, 0x44), reqid=2),
        ),
        policies=(*state.policies, anything),
        next_hops={**state.next_hops, peer: state.next_hops[REMOTE]},
    )
    found = desired(OFFER, SETTINGS, both)
    assert {v.reason for v in found.verdicts if v.sa.reqid == 2} == {
        f"the selectors include the end points of the tunnel to {REMOTE}"
    }
    assert {v.owner for v in found.verdicts if v.sa.reqid != 2} == {Owner.ENGINE}


class Judged(FakeDevices):
    """Where XFRM's policies judge what comes in."""

    def __init__(self) -> None:
        super().__init__(Edge(Random(1), lambda _note: None))
        self.policed: dict[int, bool] = {}

    def admit(self, index: int, vlan: int, versions: frozenset[int], *, policed: bool = False) -> None:
        super().admit(index, vlan, versions, policed=policed)
        self.policed[index] = policed


async def test_xfrms_policies_judge_what_comes_in_by_a_device_and_not_what_comes_by_an_xfrm_interface() -> None:
    maps = Judged()
    driver = InterfaceDriver(maps, Uplink(7, bytes(6), bytes(6)))
    for interface in (GRE1.interface, IPIP1.interface, XfrmInterface(20, "ipsec0")):
        await driver.create(InterfaceEntry(EntryKey(interface), frozenset({4})))
    vxlan1 = XfrmInterface(61, "vxlan1", InterfaceKind.VXLAN)
    frames = InterfaceEntry(EntryKey(vxlan1), frozenset({FRAMES}))
    await driver.create(frames)
    assert maps.policed == {17: True, 18: True, 20: False, 61: True}
    assert maps.entries[61] == (62, frozenset({FRAMES}))
