"""Which policies are made as new for a charon that goes by them, and how often."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from ipsec_gw.desired import desired
from ipsec_gw.model.charon import goes_by_policies
from ipsec_gw.model.ids import IpAddress, SaKey, TunnelId
from ipsec_gw.model.objects import DeviceHeader, InterfaceKind, NextHop, Selector, Tunnel, XfrmInterface
from ipsec_gw.ownership.touch import REST_SECONDS, Toucher
from tests.support.world import LOCAL, OFFER, REMOTE, SETTINGS, policy, sa, snapshot

IN, OUT = SaKey(LOCAL, 0x11), SaKey(REMOTE, 0x22)
OBJECTS = desired(OFFER, SETTINGS, snapshot(sa(0x11, inbound=True), sa(0x22), policies=(policy(0x22),))).objects
TUNNEL = TunnelId(1, REMOTE)
UDP, GRE = 17, 47
ENDS = (ip_address("192.168.1.1"), ip_address("192.168.2.1"), "wan0", UDP)


@pytest.mark.parametrize(
    ("version", "old"),
    [("5.9.8", True), ("5.8.4", True), ("5.9.10", False), ("5.9.14", False), ("6.0.1", False), ("", False)],
)
def test_which_strongswan_goes_by_policies(version: str, old: bool) -> None:
    assert goes_by_policies(version) is old


class Touched:
    """A toucher with its clock."""

    def __init__(self) -> None:
        self.now = 100.0
        self.asked: list[tuple[IpAddress, IpAddress, str, int]] = []
        self.fails = False
        self.toucher = Toucher(self.connect, lambda: self.now)

    def connect(self, source: IpAddress, destination: IpAddress, interface: str, protocol: int) -> None:
        self.asked.append((source, destination, interface, protocol))
        if self.fails:
            raise OSError("unreachable")


def test_a_tunnel_that_moves_is_asked_for_now_and_then() -> None:
    touched = Touched()
    touched.toucher.touch([], OBJECTS, [])
    assert touched.asked == []
    for _ in range(10):
        touched.toucher.touch([OUT], OBJECTS, [])
        touched.now += 1
    assert touched.asked == [ENDS, ENDS]
    touched.now += REST_SECONDS
    touched.fails = True
    touched.toucher.touch([IN], OBJECTS, [])
    assert touched.asked == [ENDS] * 3


def test_what_moved_before_anything_was_decided_is_not_forgotten() -> None:
    """A daemon that has just come back looks at the engine before it knows the tunnels."""
    touched = Touched()
    touched.toucher.touch([OUT], {}, [])
    assert touched.asked == []
    touched.toucher.touch([], OBJECTS, [])
    assert touched.asked == [ENDS]
    touched.toucher.touch([], OBJECTS, [])
    touched.now += REST_SECONDS
    touched.toucher.touch([], OBJECTS, [])
    assert touched.asked == [ENDS], "once"


def test_the_last_packet_of_many_is_told_in_the_end() -> None:
    touched = Touched()
    touched.toucher.touch([OUT], OBJECTS, [])
    touched.now += 1
    touched.toucher.touch([OUT], OBJECTS, [])
    touched.now += REST_SECONDS
    touched.toucher.touch([], OBJECTS, [])
    assert touched.asked == [ENDS, ENDS]


def test_what_comes_in_does_not_silence_keepalives() -> None:
    touched = Touched()
    touched.toucher.touch([IN], OBJECTS, [OUT])
    assert touched.asked == []
    touched.toucher.touch([OUT], OBJECTS, [OUT])
    assert touched.asked == [ENDS]


def test_any_address_of_a_selector_will_do() -> None:
    tunnel = OBJECTS[TUNNEL]
    assert isinstance(tunnel, Tunnel)
    for source, destination, ends in (
        ("0.0.0.0/0", "192.0.2.7/32", ("198.51.100.1", "192.0.2.7")),
        ("fd00::/64", "::/0", ("fd00::1", "2001:db8::1")),
        ("10.0.0.0/31", "10.1.0.0/24", ("10.0.0.0", "10.1.0.1")),
    ):
        touched = Touched()
        selector = Selector(ip_network(source), ip_network(destination))
        touched.toucher.touch([OUT], {**OBJECTS, TUNNEL: replace(tunnel, selectors=(selector,))}, [])
        assert [(str(a), str(b)) for a, b, *_ in touched.asked] == [ends]


def test_of_a_device_its_own_packets_are_asked_about_and_of_an_xfrm_interface_none() -> None:
    tunnel = OBJECTS[TUNNEL]
    assert isinstance(tunnel, Tunnel)
    for kind, asked in ((InterfaceKind.GRE, [(LOCAL, REMOTE, "wan0", GRE)]), (InterfaceKind.XFRM, [])):
        touched = Touched()
        by = replace(tunnel, interface=XfrmInterface(17, "one", kind))
        touched.toucher.touch([OUT], {**OBJECTS, TUNNEL: by}, [])
        assert touched.asked == asked


def test_in_tunnel_mode_the_devices_packets_have_addresses_of_their_own() -> None:
    tunnel = OBJECTS[TUNNEL]
    assert isinstance(tunnel, Tunnel)
    ours, theirs = ip_address("192.0.2.1"), ip_address("192.0.2.2")
    for gre, kind, protocol in ((True, InterfaceKind.GRE, GRE), (False, InterfaceKind.IPIP, 4)):
        by = replace(tunnel, interface=XfrmInterface(17, "one", kind), header=DeviceHeader(ours, theirs, gre=gre))
        touched = Touched()
        touched.toucher.touch([OUT], {**OBJECTS, TUNNEL: by}, [])
        assert touched.asked == [(ours, theirs, "wan0", protocol)]


def test_without_a_way_nobody_is_asked() -> None:
    touched = Touched()
    touched.toucher.touch([OUT], {key: obj for key, obj in OBJECTS.items() if not isinstance(obj, NextHop)}, [])
    assert touched.asked == []
