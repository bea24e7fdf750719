"""VTI devices: whose packets a mark makes a tunnel's, and which of them an engine may have."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from ipsec_gw.desired import Desired, Owner, desired
from ipsec_gw.mirror.vti import vti
from ipsec_gw.model.ids import SaKey, TunnelId
from ipsec_gw.model.objects import (
    EntryKey,
    InterfaceEntry,
    InterfaceKind,
    InterfaceLead,
    Selector,
    Tunnel,
    XfrmInterface,
)
from ipsec_gw.model.snapshot import LeadLimits, Snapshot, Vti
from tests.support.world import HERE, LOCAL, OFFER, REMOTE, SETTINGS, THERE, policy, sa, snapshot

ANY4, ANY6 = ip_network("0.0.0.0/0"), ip_network("::/0")
WHOLE = 0xFFFFFFFF
IN_MARK, OUT_MARK = (41, WHOLE), (42, WHOLE)
DEVICE = XfrmInterface(17, "vti0", InterfaceKind.VTI)
VTI0 = Vti(DEVICE, LOCAL, REMOTE, 41, 42)
PEER = ip_address("10.0.0.9")


def routed(**changes: object) -> Snapshot:
    """A tunnel for anything, by vti0; as is the rule, its inbound SA has no mark."""
    return snapshot(
        sa(0x11, inbound=True),
        sa(0x22, mark=OUT_MARK),
        **{
            "policies": tuple(policy(0x22, source=net, destination=net, mark=OUT_MARK) for net in (ANY4, ANY6)),
            "vtis": (VTI0,),
            **changes,
        },
    )


def beside(state: Snapshot, **changes: object) -> Snapshot:
    """With a tunnel to another peer, whose policy and outbound SA have these changes."""
    template = replace(policy(0x44).templates[0], destination=PEER, reqid=2)
    mark = changes.get("mark")
    return replace(
        state,
        sas=(
            *state.sas,
            replace(sa(0x33, inbound=True), source=PEER, reqid=2),
            replace(sa(0x44), key=SaKey(PEER, 0x44), reqid=2, mark=mark),
        ),
        policies=(*state.policies, policy(0x44, templates=(template,), **changes)),
        next_hops={**state.next_hops, PEER: state.next_hops[REMOTE]},
    )


def kept(found: Desired) -> set[str]:
    """Why all of it is the kernel's."""
    assert not found.objects
    assert {verdict.owner for verdict in found.verdicts} == {Owner.KERNEL}
    return {verdict.reason for verdict in found.verdicts}


def test_it_is_led_by_its_device() -> None:
    found = desired(OFFER, SETTINGS, routed(limits=LeadLimits("no rules", "none")))
    tunnel = found.objects[TunnelId(1, REMOTE)]
    assert isinstance(tunnel, Tunnel)
    assert (tunnel.interface, tunnel.selectors) == (DEVICE, (Selector(ANY4, ANY4), Selector(ANY6, ANY6)))
    both = frozenset({4, 6})
    assert found.objects[DEVICE] == InterfaceLead(DEVICE, 1446, both)
    assert found.objects[EntryKey(DEVICE)] == InterfaceEntry(EntryKey(DEVICE), both)
    assert {verdict.owner for verdict in found.verdicts} == {Owner.ENGINE}


@pytest.mark.parametrize(
    "device",
    [
        replace(VTI0, remote=None),
        replace(VTI0, local=None, remote=None),
        replace(VTI0, out_mark=0x12A),
    ],
    ids=["any peer", "any ends", "bits that the mask leaves out"],
)
def test_devices_that_give_its_packets_the_mark(device: Vti) -> None:
    marks = (42, 0xFF)
    state = routed(vtis=(device,), policies=(policy(0x22, source=ANY4, destination=ANY4, mark=marks),))
    state = replace(state, sas=(state.sas[0], replace(state.sas[1], mark=marks)))
    assert desired(OFFER, SETTINGS, state).objects[DEVICE] == InterfaceLead(DEVICE, 1446, frozenset({4}))


def test_the_device_that_names_the_peer_goes_first() -> None:
    any_peer = replace(VTI0, interface=XfrmInterface(18, "vti1", InterfaceKind.VTI), remote=None)
    assert DEVICE in desired(OFFER, SETTINGS, routed(vtis=(any_peer, VTI0))).objects


def test_until_its_policies_are_there_it_waits() -> None:
    found = desired(OFFER, SETTINGS, routed(policies=()))
    assert {verdict.owner for verdict in found.verdicts} == {Owner.PENDING}


NONE = "no VTI device from 10.0.0.1 to 10.0.0.2 is here that gives it"
TWIN = XfrmInterface(DEVICE.index + 4094, "ipsec9")
KEPT = {
    "no device": (routed(vtis=()), NONE),
    "another mark": (routed(vtis=(replace(VTI0, out_mark=43),)), NONE),
    "another peer": (routed(vtis=(replace(VTI0, remote=PEER),)), NONE),
    "another address of ours": (routed(vtis=(replace(VTI0, local=PEER),)), NONE),
    "an inbound SA of another mark": (
        routed(sas=(sa(0x11, inbound=True, mark=OUT_MARK), sa(0x22, mark=OUT_MARK))),
        "a mark that its interface does not give",
    ),
    "an inbound SA with a mark alone": (
        routed(sas=(sa(0x11, inbound=True, mark=IN_MARK), sa(0x22)), policies=(policy(0x22),)),
        NONE,
    ),
    "networks": (
        routed(policies=(policy(0x22, source=HERE, destination=THERE, mark=OUT_MARK),)),
        "leaves out what VTI device vti0 may send",
    ),
    "the same VLAN ID": (
        routed(interfaces={43: TWIN}),
        "VTI device vti0 and XFRM interface ipsec9 share the VLAN ID 18",
    ),
    "an old strongSwan": (routed(charon="5.9.8"), 'set mode = "accelerate" under [connections.site]'),
}


@pytest.mark.parametrize(("state", "reason"), KEPT.values(), ids=KEPT.keys())
def test_what_stays_in_the_kernel(state: Snapshot, reason: str) -> None:
    (found,) = kept(desired(OFFER, SETTINGS, state))
    assert reason in found


def test_an_inbound_sa_may_have_the_mark_of_the_device() -> None:
    state = routed(sas=(sa(0x11, inbound=True, mark=IN_MARK), sa(0x22, mark=OUT_MARK)))
    assert {verdict.owner for verdict in desired(OFFER, SETTINGS, state).verdicts} == {Owner.ENGINE}


def test_tunnels_that_share_a_device_stay_in_the_kernel() -> None:
    state = routed(vtis=(replace(VTI0, remote=None),))
    both = beside(state, source=ANY4, destination=ANY4, mark=OUT_MARK)
    (reason,) = kept(desired(OFFER, SETTINGS, both))
    assert reason == "VTI device vti0 has several tunnels"


def test_a_policy_based_tunnel_beside_it_is_told_apart() -> None:
    """0.0.0.0/0 with a mark takes nothing from policies without."""
    found = desired(OFFER, SETTINGS, beside(routed()))
    assert {verdict.owner for verdict in found.verdicts} == {Owner.ENGINE}
    assert {DEVICE, Selector(HERE, THERE)} <= found.objects.keys()


@pytest.mark.parametrize(
    ("kind", "local", "remote", "expected"),
    [
        ("vti", "10.0.0.1", "10.0.0.2", VTI0),
        ("vti", "10.0.0.1", "0.0.0.0", replace(VTI0, remote=None)),
        ("vti6", "fd00::1", "fd00::2", replace(VTI0, local=ip_address("fd00::1"), remote=ip_address("fd00::2"))),
        ("ipip", "10.0.0.1", "10.0.0.2", None),
    ],
)
def test_a_device_is_read(kind: str, local: str, remote: str, expected: Vti | None) -> None:
    """As pyroute2 makes a message of it, and reads it."""
    names = {"local": local, "remote": remote, "ikey": 41, "okey": 42} if kind != "ipip" else {}
    link = ifinfmsg()
    link["index"] = DEVICE.index
    data = {"attrs": [(f"IFLA_VTI_{name.upper()}", value) for name, value in names.items()]}
    info = {"attrs": [("IFLA_INFO_KIND", kind), *((("IFLA_INFO_DATA", data),) if names else ())]}
    link["attrs"] = [("IFLA_IFNAME", DEVICE.name), ("IFLA_LINKINFO", info)]
    link.encode()
    read = ifinfmsg(bytes(link.data))
    read.decode()
    assert vti(read) == expected
