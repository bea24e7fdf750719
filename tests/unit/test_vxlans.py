"""For which VXLAN devices an engine does VXLAN, and why not for others."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from ipsec_gw.desired import Desired, Settings, desired
from ipsec_gw.device_words import device_words
from ipsec_gw.model.ids import SaKey, TunnelId
from ipsec_gw.model.objects import (
    FRAMES,
    EntryKey,
    Hosts,
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
    Tunnel,
    UdpEncap,
    XfrmInterface,
)
from ipsec_gw.model.snapshot import Mode, ResolvedHop, Snapshot, Template, Vxlan
from ipsec_gw.reconcile.plan import Action, plan
from tests.support.world import LOCAL, REMOTE, SETTINGS, established, policy
from tests.unit.test_hosts import FROM, TO, beside, pair, selects
from tests.unit.test_overlays import ABLE, USED, VXLAN1

INTERFACE = VXLAN1.interface
ANY_FRAME = frozenset({FRAMES})
OVERLAY = Overlay(
    OverlayKey(INTERFACE), 42, LOCAL, REMOTE, 4789, frozenset({TunnelId(TO, REMOTE), TunnelId(FROM, REMOTE)})
)
OBJECTS: dict[ObjectKey, ManagedObject] = {
    one.key: one
    for one in (
        OVERLAY,
        InterfaceEntry(EntryKey(INTERFACE), ANY_FRAME),
        InterfaceLead(INTERFACE, 1416, ANY_FRAME),
    )
}


def found(state: Snapshot, settings: Settings = SETTINGS, refused: dict[SaKey, str] | None = None) -> Desired:
    return desired(ABLE, settings, state, refused)


def with_device(device: Vxlan = VXLAN1, **changes: object) -> Snapshot:
    return beside(vxlans=(device,), **changes)


def test_an_engine_that_can_does_it_over_both_children_and_all_else_stays() -> None:
    alone, both = found(beside()), found(with_device())
    assert both.objects == {**alone.objects, **OBJECTS}
    assert both.kept_devices == {}


def test_one_child_for_all_udp_is_enough() -> None:
    state = beside(selects(TO, destination_port=PortMatch()), sas=pair(TO), vxlans=(VXLAN1,))
    overlay = found(state).objects[OverlayKey(INTERFACE)]
    assert isinstance(overlay, Overlay)
    assert overlay.tunnels == {TunnelId(TO, REMOTE)}


def test_jumbo_frames_are_what_the_way_to_the_engine_takes() -> None:
    state = with_device(next_hops={REMOTE: ResolvedHop("wan0", REMOTE, "02:00:00:00:00:02", 9000)})
    assert found(state).objects[INTERFACE] == InterfaceLead(INTERFACE, 1500, ANY_FRAME)


def test_on_a_short_path_the_kernel_has_more_of_them() -> None:
    """What is longer is left to it, so no packet is too long for the path."""
    state = with_device(next_hops={REMOTE: ResolvedHop("wan0", REMOTE, "02:00:00:00:00:02", 1300)})
    assert found(state).objects[INTERFACE] == InterfaceLead(INTERFACE, 1216, ANY_FRAME)


def test_several_devices_stand_side_by_side() -> None:
    second = replace(VXLAN1, interface=XfrmInterface(62, "vxlan2", InterfaceKind.VXLAN), vni=43)
    state = beside(vxlans=(VXLAN1, second))
    assert {key for key in found(state).objects if isinstance(key, OverlayKey)} == {
        OverlayKey(one.interface) for one in (VXLAN1, second)
    }


NO_FROM = {"sas": (*pair(TO),)}
KEPT: dict[str, tuple[Snapshot, str]] = {
    "IPv6": (with_device(replace(VXLAN1, local=None, remote=ip_address("2001:db8::2"))), "IPv6"),
    "any address": (with_device(replace(VXLAN1, local=None)), "no address of its own"),
    "down": (with_device(replace(VXLAN1, up=False)), "is down"),
    "odd": (with_device(replace(VXLAN1, oddity="sets DF")), "the device sets DF"),
    "elsewhere": (with_device(replace(VXLAN1, elsewhere=("10.0.0.3",))), "leads to 10.0.0.3, too"),
    "bound": (with_device(replace(VXLAN1, link="wan1")), "bound to wan1"),
    "same VLAN ID": (
        with_device(interfaces={7: XfrmInterface(61 + 4094, "ipsec7")}),
        "XFRM interface ipsec7 share the VLAN ID",
    ),
    "same VNI": (
        beside(vxlans=(replace(VXLAN1, interface=XfrmInterface(9, "vxlan9", InterfaceKind.VXLAN)), VXLAN1)),
        "have the same VNI and peer",
    ),
    "other address": (with_device(replace(VXLAN1, local=ip_address("192.168.1.1"))), "no SAs for all"),
    "one way": (beside(selects(TO), sas=pair(TO), vxlans=(VXLAN1,)), "no SAs for all that the device receives"),
    "some source ports": (
        beside(
            selects(TO, source_port=PortMatch(0x1000, 0xF000)),
            selects(FROM, index=16),
            vxlans=(VXLAN1,),
        ),
        "no SAs for all that the device sends",
    ),
}


@pytest.mark.parametrize(("state", "words"), KEPT.values(), ids=KEPT.keys())
def test_otherwise_the_kernel_does_it_and_there_is_a_reason(state: Snapshot, words: str) -> None:
    told = found(state)
    assert words in told.kept_devices[INTERFACE]
    assert not any(isinstance(key, OverlayKey) and key.interface == INTERFACE for key in told.objects)
    assert INTERFACE not in told.objects


def test_so_it_does_with_a_firewall_and_an_engine_that_cannot() -> None:
    assert "firewall" in found(with_device(), replace(SETTINGS, firewall=True)).kept_devices[INTERFACE]
    unable = desired(replace(ABLE, vxlan=False), SETTINGS, with_device())
    assert unable.kept_devices == {INTERFACE: "engine vpp does not do VXLAN"}
    assert unable.objects == found(beside()).objects


def test_a_pass_policy_for_some_of_its_packets_has_them() -> None:
    other = selects(TO, index=2, templates=(), priority=1, source_port=PortMatch(7, 0xFFFF))
    state = beside(other, selects(TO, index=8), selects(FROM, index=16), vxlans=(VXLAN1,))
    assert "another policy" in found(state).kept_devices[INTERFACE]


def test_without_its_tunnel_there_is_none() -> None:
    told = found(with_device(), refused=USED)
    assert "no SAs" in told.kept_devices[INTERFACE]
    assert OverlayKey(INTERFACE) not in told.objects


def kinds(after: Desired, before: Desired) -> list[tuple[Action, type]]:
    return [(op.action, type(op.obj)) for op in plan(after.objects, before.objects)]


def test_it_comes_last_and_goes_first() -> None:
    nothing = Desired()
    up, down = kinds(found(with_device()), nothing), kinds(nothing, found(with_device()))
    entry, overlay, lead = ((Action.CREATE, one) for one in (InterfaceEntry, Overlay, InterfaceLead))
    assert up.index(entry) < up.index((Action.CREATE, Tunnel)) < up.index(overlay) < up.index(lead)
    lead, overlay, tunnel, entry = ((Action.DELETE, one) for one in (InterfaceLead, Overlay, Tunnel, InterfaceEntry))
    drain = (Action.DRAIN, type(None))
    assert down.index(lead) < down.index(drain) < down.index(overlay) < down.index(tunnel) < down.index(entry)


def test_on_a_way_back_to_the_kernel_the_tunnels_stay() -> None:
    away = kinds(found(with_device(replace(VXLAN1, elsewhere=("10.0.0.3",)))), found(with_device()))
    assert away == [
        (Action.DELETE, InterfaceLead),
        (Action.DRAIN, type(None)),
        (Action.DELETE, Overlay),
        (Action.DELETE, InterfaceEntry),
    ]


def test_another_vni_is_another_overlay_and_nothing_leads_to_it_meanwhile() -> None:
    moved = kinds(found(with_device(replace(VXLAN1, vni=43))), found(with_device()))
    assert moved == [
        (Action.DELETE, InterfaceLead),
        (Action.DRAIN, type(None)),
        (Action.DELETE, Overlay),
        (Action.CREATE, Overlay),
        (Action.CREATE, InterfaceLead),
    ]


def test_a_tunnel_waits_for_the_overlay_over_it() -> None:
    objects = found(with_device()).objects
    (lead,) = (one for one in objects.values() if isinstance(one, HostsLead))
    gone = next(op for op in plan({lead.key: lead}, objects) if isinstance(op.obj, Tunnel))
    assert OVERLAY.key in gone.frees


def test_networks_of_hosts_alone_count() -> None:
    """A tunnel for the LANs behind is none."""
    state = with_device()
    policies = tuple(replace(one, source=ip_network("192.168.1.0/24")) for one in state.policies)
    assert INTERFACE in found(replace(state, policies=policies)).kept_devices


OURS, THEIRS = ip_address("192.0.2.1"), ip_address("192.0.2.2")
FAR = replace(VXLAN1, local=OURS, remote=THEIRS)


def over_tunnel(device: Vxlan = FAR, **changes: object) -> Snapshot:
    """An SA pair in tunnel mode for all UDP between the device's ends."""
    own = {"source": ip_network(f"{device.local}/32"), "destination": ip_network(f"{device.remote}/32"), "upper": 17}
    return established(**{"policies": (policy(0x22, **own),), "vxlans": (device,), "sources": {}, **changes})


def test_over_tunnel_mode_the_device_has_addresses_of_its_own_and_20_bytes_less() -> None:
    alone, both = found(over_tunnel(vxlans=())), found(over_tunnel())
    overlay = Overlay(OverlayKey(INTERFACE), 42, OURS, THEIRS, 4789, frozenset({TunnelId(1, REMOTE)}))
    more: tuple[ManagedObject, ...] = (
        overlay,
        InterfaceEntry(EntryKey(INTERFACE), ANY_FRAME),
        InterfaceLead(INTERFACE, 1396, ANY_FRAME),
    )
    assert both.objects == {**alone.objects, **{one.key: one for one in more}}
    tunnel = both.objects[TunnelId(1, REMOTE)]
    assert isinstance(tunnel, Tunnel)
    assert overlay.fits(tunnel)
    assert device_words(over_tunnel(), both.verdicts, both.kept_devices, both.objects, ABLE.name) == (
        "VXLAN device vxlan1: vpp does VXLAN and ESP",
    )


def test_behind_nat_it_is_smaller_still() -> None:
    nat = tuple(replace(one, encap=UdpEncap(4500, 4500)) for one in over_tunnel().sas)
    assert found(over_tunnel(sas=nat)).objects[INTERFACE] == InterfaceLead(INTERFACE, 1388, ANY_FRAME)


def test_over_tunnel_mode_the_way_out_is_that_of_the_outer_packets() -> None:
    assert INTERFACE in found(over_tunnel(replace(FAR, link="wan0"))).objects
    bound = found(over_tunnel(replace(FAR, link="wan1")))
    assert "bound to wan1, and packets to 192.0.2.2 leave by wan0" in bound.kept_devices[INTERFACE]


def test_between_the_tunnels_own_ends_what_the_kernel_encapsulates_is_led_by_its_hosts() -> None:
    """IKE is UDP between them as well."""
    state = over_tunnel(VXLAN1)
    told = found(state)
    assert told.objects[INTERFACE] == InterfaceLead(INTERFACE, 1396, ANY_FRAME)
    assert HostsLead(Hosts(LOCAL, REMOTE)) in told.objects.values()
    assert not any(isinstance(one, Lead) for one in told.objects.values())
    assert device_words(state, told.verdicts, told.kept_devices, told.objects, ABLE.name) == (
        "VXLAN device vxlan1: vpp does VXLAN and ESP",
    )


def test_between_them_there_may_be_a_child_for_each_way() -> None:
    """In tunnel mode as in transport mode, and one in each."""
    for modes in ((Mode.TUNNEL, Mode.TUNNEL), (Mode.TRANSPORT, Mode.TUNNEL), (Mode.TUNNEL, Mode.TRANSPORT)):
        ways = dict(zip((TO, FROM), modes, strict=True))
        policies = tuple(selects(reqid, mode=mode, index=8 * reqid) for reqid, mode in ways.items())
        sas = tuple(one for reqid, mode in ways.items() for one in pair(reqid, mode=mode))
        told = found(beside(*policies, sas=sas, vxlans=(VXLAN1,)))
        assert told.objects[OVERLAY.key] == OVERLAY
        mtu = 1396 if modes[0] is Mode.TUNNEL else 1416
        assert told.objects[INTERFACE] == InterfaceLead(INTERFACE, mtu, ANY_FRAME)


def test_over_networks_the_kernel_does_vxlan() -> None:
    wide = ip_network("192.0.2.0/24")
    state = over_tunnel(policies=(policy(0x22, source=wide, destination=wide),))
    told = found(state)
    assert INTERFACE not in told.objects
    assert device_words(state, told.verdicts, told.kept_devices, told.objects, ABLE.name) == (
        f"VXLAN device vxlan1: the kernel does VXLAN ({told.kept_devices[INTERFACE]}), vpp does ESP",
    )
    assert "no SAs for all that the device sends" in told.kept_devices[INTERFACE]


def test_two_children_in_tunnel_mode_for_a_way_each_are_the_kernels() -> None:
    """An engine tells tunnels apart by networks alone."""
    ends = {"source": ip_network(f"{OURS}/32"), "destination": ip_network(f"{THEIRS}/32"), "upper": 17}
    bound = Template(LOCAL, REMOTE, 0x122, 50, 2, Mode.TUNNEL)
    port = PortMatch(4789, 0xFFFF)
    policies = (
        policy(0x22, **ends, destination_port=port, index=1),
        policy(0x122, **ends, source_port=port, templates=(bound,), index=2),
    )
    other = [replace(one, reqid=2, key=SaKey(one.key.destination, one.key.spi + 0x100)) for one in over_tunnel().sas]
    told = found(over_tunnel(policies=policies, sas=(*over_tunnel().sas, *other)))
    assert not told.objects
    assert all("covers part of its selector" in verdict.reason for verdict in told.verdicts)
    assert "no SAs for all that the device sends" in told.kept_devices[INTERFACE]
