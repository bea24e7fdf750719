"""Rows of the journal: what is written is read back, and so is what older versions wrote."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from ipsec_gw.model.ids import SaKey, TunnelId
from ipsec_gw.model.objects import (
    DeviceHeader,
    InterfaceKind,
    Overlay,
    OverlayKey,
    PortMatch,
    Selector,
    Tunnel,
    XfrmInterface,
)
from vpp_conf.records import (
    GreRecord,
    OverlayRecord,
    SaRecord,
    TunnelRecord,
    overlay_row,
    read_overlay,
    read_sa,
    read_tunnel,
    sa_row,
    tunnel_row,
)

HERE, PEER = ip_address("192.0.2.1"), ip_address("198.51.100.7")
PLAIN = Selector(ip_network("10.1.0.0/16"), ip_network("10.2.0.0/16"))
NARROW = Selector(PLAIN.source, PLAIN.destination, 17, PortMatch(7, 0xFFFF), PortMatch(0x1000, 0xF000))
RECORD = TunnelRecord(
    Tunnel(TunnelId(7, PEER), HERE, PEER, (SaKey(HERE, 1),), SaKey(PEER, 2), (PLAIN, NARROW), (NARROW,)), 12
)


def test_a_tunnel_comes_back_as_it_was() -> None:
    assert read_tunnel(json.loads(json.dumps(tunnel_row(RECORD)))) == RECORD


def test_a_tunnel_between_hosts_comes_back_with_its_rank() -> None:
    record = replace(RECORD, tunnel=replace(RECORD.tunnel, hosts=True, rank=2))
    row = json.loads(json.dumps(tunnel_row(record)))
    assert read_tunnel(row) == record
    del row["rank"]
    assert read_tunnel(row).tunnel.rank == 0, "older versions wrote none"


def test_a_tunnel_that_sends_by_the_gates_comes_back_with_its_number_there() -> None:
    record = replace(RECORD, tunnel=replace(RECORD.tunnel, hosts=True), gate=0xC000_0001)
    assert read_tunnel(json.loads(json.dumps(tunnel_row(record)))) == record


def test_a_row_without_protocols_and_exceptions_is_read() -> None:
    row = tunnel_row(RECORD)
    old = {name: value for name, value in row.items() if name != "exceptions"}
    old["selectors"] = [["10.1.0.0/16", "10.2.0.0/16"]]
    tunnel = read_tunnel(old).tunnel
    assert (tunnel.selectors, tunnel.exceptions) == ((PLAIN,), ())


def test_the_device_of_a_tunnel_comes_back_with_its_kind() -> None:
    device = XfrmInterface(17, "gre1", InterfaceKind.GRE)
    record = TunnelRecord(replace(RECORD.tunnel, interface=device), 12, 13)
    row = json.loads(json.dumps(tunnel_row(record)))
    read = read_tunnel(row)
    assert read == record
    assert read.tunnel.interface is not None
    assert read.tunnel.interface.kind is InterfaceKind.GRE
    old = read_tunnel({**row, "interface": [17, "ipsec0"]}).tunnel.interface
    assert old is not None
    assert (old.index, old.kind) == (17, InterfaceKind.XFRM), "older versions wrote no kind"


@pytest.mark.parametrize("gre", [True, False])
def test_a_devices_header_comes_back_with_the_outer_tunnel(gre: bool) -> None:
    device = XfrmInterface(17, "one", InterfaceKind.GRE if gre else InterfaceKind.IPIP)
    header = DeviceHeader(ip_address("203.0.113.1"), ip_address("203.0.113.2"), gre=gre, dscp=not gre)
    record = TunnelRecord(replace(RECORD.tunnel, interface=device, header=header), 12, 13, 14)
    assert read_tunnel(json.loads(json.dumps(tunnel_row(record)))) == record


def test_an_sa_behind_gre_comes_back_with_what_vpp_does_not_tell() -> None:
    record = SaRecord(SaKey(PEER, 2), 5, 32, True, HERE, GreRecord(dscp=False))
    assert read_sa(json.loads(json.dumps(sa_row(record)))) == record


def test_an_overlay_comes_back() -> None:
    device = XfrmInterface(61, "vxlan1", InterfaceKind.VXLAN)
    tunnels = frozenset({TunnelId(2, PEER), TunnelId(1, PEER)})
    record = OverlayRecord(Overlay(OverlayKey(device), 42, HERE, PEER, 4789, tunnels), 7, 8)
    row = json.loads(json.dumps(overlay_row(record)))
    assert read_overlay(row) == record
    assert read_overlay(row).overlay.key.interface.kind is InterfaceKind.VXLAN
