"""What VPP is asked for around packets of a GRE or IPIP device over tunnel mode, and which of them it takes apart."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import GRE
from scapy.packet import Packet, Raw

from ipsec_gw.model.objects import VLAN_IDS, DeviceHeader, Selector
from vpp_conf.descriptors.classify import CARRY_ON, DENY, Check, Diversion, Pair, rules_of
from vpp_conf.descriptors.gre import GreTunnel
from vpp_conf.descriptors.headers import Headers
from vpp_conf.descriptors.ipip import IpipTunnel
from vpp_conf.descriptors.ipsec_itf import IpsecInterface
from vpp_conf.descriptors.route import DEVICE_TABLES, OUTER_TABLE, SHARED_TABLES
from vpp_conf.outer import headers_of, plain
from vpp_conf.tunnels import Wanted

OURS, THEIRS = ip_address("203.0.113.1"), ip_address("203.0.113.2")
BY_GRE, BY_IPIP = DeviceHeader(OURS, THEIRS, gre=True), DeviceHeader(OURS, THEIRS, gre=False)
TABLE = 5042
INSIDE = IP(src="10.2.0.9", dst="10.1.0.5") / UDP()
NOTHING: frozenset[Selector] = frozenset()


def arriving(behind: Packet, **fields: object) -> bytes:
    return bytes(IP(**{"src": str(THEIRS), "dst": str(OURS), **fields}) / behind)


def fits(one: Diversion, packet: bytes) -> bool:
    """As the classifier compares."""
    padded = packet.ljust(len(one.match), b"\0")
    return all(a & m == b for a, m, b in zip(padded, one.mask, one.match, strict=False))


def taken(header: DeviceHeader, packet: bytes) -> bool:
    return any(fits(one, packet) for one in plain(header, TABLE))


def test_whole_packets_with_plain_headers_are_taken_apart() -> None:
    assert taken(BY_GRE, arriving(GRE(proto=0x0800) / INSIDE))
    assert taken(BY_GRE, arriving(GRE(proto=0x86DD) / Raw(bytes(40)), tos=0xB8, ttl=3, id=9, flags="DF"))
    assert taken(BY_IPIP, arriving(INSIDE))
    assert {(one.following, one.table) for one in plain(BY_GRE, TABLE) | plain(BY_IPIP, TABLE)} == {(CARRY_ON, TABLE)}


@pytest.mark.parametrize(
    ("header", "packet"),
    [
        (BY_GRE, arriving(GRE(proto=0x0800) / INSIDE, flags="MF")),
        (BY_GRE, arriving(GRE(proto=0x0800) / INSIDE, frag=2)),
        (BY_IPIP, arriving(INSIDE, frag=2)),
        (BY_GRE, arriving(GRE(proto=0x8847) / Raw(bytes(8)))),
        (BY_GRE, arriving(GRE(proto=0x0800, key_present=1, key=1) / INSIDE)),
        (BY_GRE, arriving(GRE(proto=0x0800, chksum_present=1) / INSIDE)),
        (BY_GRE, arriving(INSIDE)),
        (BY_IPIP, arriving(GRE(proto=0x0800) / INSIDE)),
        (BY_GRE, arriving(GRE(proto=0x0800) / INSIDE, src="203.0.113.9")),
        (BY_IPIP, arriving(INSIDE, dst="203.0.113.9")),
    ],
)
def test_pieces_odd_ones_and_others_are_not(header: DeviceHeader, packet: bytes) -> None:
    assert not taken(header, packet)


def test_every_vlan_id_has_a_table_of_its_own() -> None:
    tables = [headers_of(BY_GRE, vlan).table for vlan in range(1, VLAN_IDS + 1)]
    assert len(set(tables)) == VLAN_IDS
    assert set(tables) == set(DEVICE_TABLES)
    assert not set(tables) & set(SHARED_TABLES)


def test_a_check_asks_for_exceptions_then_for_diversions_then_for_selectors() -> None:
    excepted = Selector(ip_network("10.2.0.0/24"), ip_network("10.1.0.0/24"))
    wide = Selector(ip_network("10.2.0.0/16"), ip_network("10.1.0.0/16"))
    six = Selector(ip_network("fd00::/64"), ip_network("fd01::/64"))
    diversions = plain(BY_IPIP, TABLE)
    check = Check(7, frozenset({wide, six}), Pair(4, 6), None, exceptions=frozenset({excepted}), diversions=diversions)
    assert [(turn, one.following) for turn, one in rules_of(check, 4)] == [(0, DENY), (1, CARRY_ON), (2, 4)]
    assert [(turn, one.following) for turn, one in rules_of(check, 6)] == [(2, 6)], "diversions are of IPv4"


def test_an_interface_is_another_ones_when_its_headers_are() -> None:
    device = Wanted(NOTHING, vlan=17, header=BY_GRE)
    own = headers_of(BY_GRE, 17)
    assert device.begins_with(GreTunnel(0, 0, 0, own, 5))
    for other in (
        replace(own, dscp=True),
        replace(own, table=OUTER_TABLE),
        replace(own, destination=OURS),
        headers_of(BY_GRE, 18),
    ):
        assert not device.begins_with(GreTunnel(0, 0, 0, other, 5))
    assert not device.begins_with(IpipTunnel(0, 0, 0, own, 5))
    assert not device.begins_with(IpsecInterface(0, 0, 0, 5))
    assert replace(device, header=BY_IPIP).begins_with(IpipTunnel(0, 0, 0, own, 5))
    transport = Wanted(NOTHING, vlan=17, gre=Headers(17, OURS, THEIRS, dscp=False))
    assert transport.begins_with(GreTunnel(0, 0, 0, replace(own, table=OUTER_TABLE), 5))
    assert not transport.begins_with(GreTunnel(0, 0, 0, own, 5))
    assert Wanted(NOTHING).begins_with(IpsecInterface(0, 0, 0, 5))
