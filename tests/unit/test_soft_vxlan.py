"""VXLAN by the soft engine: headers as the kernel's device has them, and what is none of an overlay's."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet, Raw

from ipsec_gw.engines.soft.drops import Dropped, DropReason
from ipsec_gw.engines.soft.forwarding import Port
from ipsec_gw.engines.soft.packets import parse_ipv4
from ipsec_gw.engines.soft.store import Store
from ipsec_gw.engines.soft.vxlan import VxlanPath
from ipsec_gw.errors import EngineError
from ipsec_gw.model.ids import Direction, TunnelId
from ipsec_gw.model.objects import InterfaceKind, Overlay, OverlayKey, Selector, XfrmInterface
from tests.unit.soft_kit import LOCAL, PEER, TUNNEL_ID, context, next_hop, sa, tunnel

DEVICE = XfrmInterface(61, "vxlan1", InterfaceKind.VXLAN)
OVERLAY = Overlay(OverlayKey(DEVICE), 42, LOCAL, PEER, 4789, frozenset({TUNNEL_ID}))
PATH = VxlanPath.of(OVERLAY)
NOT_ECT, ECT1, ECT0, CE = range(4)


def frame(payload: Packet, **fields: object) -> bytes:
    return bytes(Ether(src="02:00:00:00:00:11", dst="02:00:00:00:00:22", **fields) / payload)


def tagged(whole: bytes) -> bytes:
    return whole[:12] + b"\x81\x00" + OVERLAY.vlan.to_bytes(2, "big") + whole[12:]


def wrapped(whole: bytes) -> IP:
    return IP(PATH.wrap(tagged(whole)).data)


def of_peer(whole: bytes, **outer: object) -> IP:
    headers = IP(src=str(PEER), dst=str(LOCAL), **outer) / UDP(sport=40000, dport=4789, chksum=0) / VXLAN(vni=42)
    return IP(bytes(headers / Raw(whole)))


def unwrapped(packet: IP) -> bytes | None:
    return PATH.unwrap(parse_ipv4(bytes(packet)))


def packet(tos: int = 0, sport: int = 1) -> IP:
    return IP(src="192.168.48.1", dst="192.168.48.2", tos=tos) / UDP(sport=sport, dport=2) / Raw(b"data")


def test_a_frame_is_behind_headers_as_the_kernel_writes_them() -> None:
    whole = frame(packet())
    out = wrapped(whole)
    assert (out.src, out.dst, out.ttl, out.tos, str(out.flags)) == (str(LOCAL), str(PEER), 64, 0, "")
    assert (out[UDP].dport, out[UDP].chksum, out[UDP].len) == (4789, 0, 16 + len(whole))
    assert 32768 <= out[UDP].sport <= 60999
    assert bytes(out[UDP].payload) == b"\x08\0\0\0\0\0\x2a\0" + whole


def test_a_flow_has_one_port_and_frames_without_ip_have_one_for_their_ends() -> None:
    ports = {wrapped(frame(packet(sport=sport)))[UDP].sport for sport in range(64) for _ in range(2)}
    assert 32 < len(ports) <= 64
    arps = {wrapped(frame(ARP(pdst=f"10.0.0.{n}")))[UDP].sport for n in range(8)}
    assert len(arps) == 1


@pytest.mark.parametrize(("inside", "outside"), [(NOT_ECT, NOT_ECT), (ECT1, ECT1), (ECT0, ECT0), (CE, ECT0)])
def test_congestion_marks_go_out(inside: int, outside: int) -> None:
    """``INET_ECN_encapsulate``; DSCP stays inside."""
    assert wrapped(frame(packet(tos=0xB8 | inside))).tos == outside
    assert wrapped(frame(IPv6(tc=0xB8 | inside) / UDP())).tos == outside
    assert wrapped(frame(ARP())).tos == 0


def test_it_comes_out_as_it_went_in_behind_the_tag() -> None:
    for payload in (packet(), ARP(), IPv6() / UDP(), Dot1Q(vlan=5) / packet(), Raw(bytes(46))):
        whole = frame(payload)
        assert unwrapped(of_peer(whole)) == tagged(whole)


@pytest.mark.parametrize("payload", [packet(ECT0), Dot1Q(vlan=5) / packet(ECT0)], ids=["plain", "tagged"])
def test_marks_of_the_way_come_in(payload: Packet) -> None:
    marked = unwrapped(of_peer(frame(payload), tos=CE))
    assert marked is not None
    found = Ether(marked)[IP]
    assert found.tos == CE
    assert bytes(found)[:20] == bytes(IP(bytes(packet(CE))))[:20]


def test_a_mark_that_nobody_inside_would_hear_drops_the_packet() -> None:
    with pytest.raises(Dropped) as dropped:
        unwrapped(of_peer(frame(packet()), tos=CE))
    assert dropped.value.reason is DropReason.CONGESTION
    assert unwrapped(of_peer(frame(ARP()), tos=CE)) == tagged(frame(ARP()))


WHOLE = of_peer(frame(packet()))
STRANGERS = {
    "another VNI": IP(bytes(WHOLE)[:34] + b"\x2b" + bytes(WHOLE)[35:]),
    "reserved bits": IP(bytes(WHOLE)[:28] + b"\x88" + bytes(WHOLE)[29:]),
    "a reserved byte": IP(bytes(WHOLE)[:35] + b"\x01" + bytes(WHOLE)[36:]),
    "another port": IP(src=str(PEER), dst=str(LOCAL)) / UDP(dport=4790) / Raw(bytes(WHOLE)[28:]),
    "another protocol": IP(src=str(PEER), dst=str(LOCAL), proto=6) / Raw(bytes(WHOLE)[20:]),
    "another source": IP(src="198.51.100.8", dst=str(LOCAL)) / UDP(dport=4789) / Raw(bytes(WHOLE)[28:]),
    "another destination": IP(src=str(PEER), dst="192.0.2.2") / UDP(dport=4789) / Raw(bytes(WHOLE)[28:]),
    "a fragment": IP(src=str(PEER), dst=str(LOCAL), flags="MF") / UDP(dport=4789) / Raw(bytes(WHOLE)[28:]),
    "too short": IP(src=str(PEER), dst=str(LOCAL)) / UDP(dport=4789) / Raw(b"\x08\0\0\0"),
}


@pytest.mark.parametrize("stranger", STRANGERS.values(), ids=STRANGERS.keys())
def test_what_has_other_headers_is_left(stranger: IP) -> None:
    whole = bytearray(bytes(stranger))
    checked = IP(bytes(whole))
    del checked.chksum
    assert unwrapped(IP(bytes(checked))) is None


def test_what_ends_within_an_ethernet_header_is_dropped() -> None:
    for act in (lambda: unwrapped(of_peer(bytes(13))), lambda: PATH.wrap(tagged(bytes(12)))):
        with pytest.raises(Dropped) as dropped:
            act()
        assert dropped.value.reason is DropReason.MALFORMED


def test_a_frame_that_is_too_long_for_the_way_to_the_kernel_is_dropped() -> None:
    port = Port("up", b"", 1500)
    assert port.pass_on(bytes(1518)).frame == bytes(1518)
    with pytest.raises(Dropped) as dropped:
        port.pass_on(bytes(1519))
    assert dropped.value.reason is DropReason.TOO_BIG


@pytest.fixture
def store() -> Store:
    incoming, outgoing = sa(Direction.IN, 0x1001, transport=True), sa(Direction.OUT, 0x2001, transport=True)
    made = Store(context(), 3000)
    hosts = replace(
        tunnel([incoming], outgoing, hosts=True), selectors=(Selector(ip_network(LOCAL), ip_network(PEER)),)
    )
    for obj in (incoming, outgoing, next_hop(), hosts, OVERLAY):
        made.create(obj)
    return made


REFUSED = {
    "of IPv6": (replace(OVERLAY, local=ip_address("2001:db8::1")), "IPv6"),
    "over nothing": (replace(OVERLAY, tunnels=frozenset()), "no tunnel"),
    "over what is not there": (replace(OVERLAY, tunnels=frozenset({TunnelId(9, PEER)})), "there is no tunnel"),
}


@pytest.mark.parametrize(("overlay", "why"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_is_refused_and_changes_nothing(store: Store, overlay: Overlay, why: str) -> None:
    before = store.forwarding
    for act in (lambda: store.update(overlay), lambda: store.create(replace(overlay, key=OTHER))):
        with pytest.raises(EngineError, match=why) as refused:
            act()
        assert " - " in str(refused.value)
    assert store.forwarding is before
    assert store.objects[OVERLAY.key] == OVERLAY


OTHER = OverlayKey(XfrmInterface(62, "vxlan2", InterfaceKind.VXLAN))
TWIN = XfrmInterface(61 + 4094, "vxlan9", InterfaceKind.VXLAN)


def test_a_vlan_id_stands_for_one_thing(store: Store) -> None:
    with pytest.raises(EngineError, match="VLAN ID of overlay"):
        store.create(replace(OVERLAY, key=OverlayKey(TWIN)))
    incoming, outgoing = sa(Direction.IN, 0x1002), sa(Direction.OUT, 0x2002)
    for obj in (incoming, outgoing):
        store.create(obj)
    with pytest.raises(EngineError, match="overlay"):
        store.create(tunnel([incoming], outgoing, key=TunnelId(5, PEER), interface=TWIN))
