"""Headers against scapy."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether

from ipsec_gw.engines.soft.drops import Dropped, DropReason
from ipsec_gw.engines.soft.packets import (
    OuterHeader,
    build_outer,
    congestion_mark,
    parse_frame,
    parse_ipv4,
    parse_ipv6,
    parse_mac,
)

V4 = IP(src="10.1.0.1", dst="10.2.0.2", tos=0xB9, id=7, flags="DF") / UDP(sport=1, dport=2) / b"data"
V6 = IPv6(src="fd01::1", dst="fd02::2", tc=0xB9, fl=0x12345) / UDP(sport=1, dport=2) / b"data"


@pytest.mark.parametrize("tags", [Ether(), Ether() / Dot1Q(vlan=7), Ether() / Dot1AD(vlan=7)])
@pytest.mark.parametrize(("ip", "header_bytes"), [(V4, 20), (V6, 40)])
def test_a_frame_gives_its_ip_packet(tags, ip, header_bytes):
    packet = parse_frame(bytes(tags / ip) + b"ethernet padding")
    assert packet.data == bytes(ip)
    assert packet.payload == bytes(ip.payload)
    assert packet.header_bytes == header_bytes
    assert (packet.source, packet.destination) == (ip_address(ip.src).packed, ip_address(ip.dst).packed)
    assert (packet.protocol, packet.traffic_class) == (17, 0xB9)
    assert packet.dont_fragment
    assert not packet.fragment


def test_options_are_header():
    packet = parse_ipv4(bytes(IP(options=b"\x01" * 4) / b"data"))
    assert (packet.header_bytes, packet.payload) == (24, b"data")


@pytest.mark.parametrize(
    "frame",
    [
        Ether() / IP(flags="MF") / (b"x" * 8),
        Ether() / IP(frag=3),
        Ether() / IPv6() / IPv6ExtHdrFragment() / b"12345678",
    ],
)
def test_fragments_are_seen(frame):
    assert parse_frame(bytes(frame)).fragment


@pytest.mark.parametrize("frame", [Ether() / ARP(), Ether() / Dot1Q() / Dot1Q() / V4, Ether(type=0x0600) / (b"x" * 50)])
def test_what_is_not_ip_is_not_ours(frame):
    with pytest.raises(Dropped) as dropped:
        parse_frame(bytes(frame))
    assert dropped.value.reason is DropReason.NOT_IP


@pytest.mark.parametrize("ip", [V4, V6])
def test_every_cut_is_malformed(ip):
    frame = bytes(Ether() / ip)
    for length in range(len(frame)):
        with pytest.raises(Dropped, match="malformed"):
            parse_frame(frame[:length])


@pytest.mark.parametrize("wrong", [IP(version=5), IP(ihl=4), IP(len=19), IP(len=60), IP(chksum=1), IP(ihl=15)])
def test_a_wrong_ipv4_header_is_malformed(wrong):
    with pytest.raises(Dropped, match="malformed"):
        parse_ipv4(bytes(wrong / b"data"))


@pytest.mark.parametrize("wrong", [IPv6(version=4), IPv6(plen=5)])
def test_a_wrong_ipv6_header_is_malformed(wrong):
    with pytest.raises(Dropped, match="malformed"):
        parse_ipv6(bytes(wrong / b"data"))


@pytest.mark.parametrize("dont_fragment", [False, True])
def test_an_outer_ipv4_header_is_as_scapy_builds_it(dont_fragment):
    outer = OuterHeader(ip_address("192.0.2.1").packed, ip_address("198.51.100.7").packed, 50, 0xB9, dont_fragment, 9)
    flags = "DF" if dont_fragment else 0
    wanted = IP(src="192.0.2.1", dst="198.51.100.7", proto=50, tos=0xB9, id=9, flags=flags, ttl=64) / b"payload"
    assert build_outer(outer, 7) + b"payload" == bytes(wanted)


def test_an_outer_ipv6_header_is_as_scapy_builds_it():
    outer = OuterHeader(ip_address("2001:db8::1").packed, ip_address("2001:db8::2").packed, 50, 0xB9, True, 9)
    wanted = IPv6(src="2001:db8::1", dst="2001:db8::2", nh=50, tc=0xB9, hlim=64) / b"payload"
    assert build_outer(outer, 7) + b"payload" == bytes(wanted)


# RFC 6040 §4.2, figure 4: rows inner, columns outer, both in the order of their codepoints' meaning.
NOT_ECT, ECT0, ECT1, CE = 0b00, 0b10, 0b01, 0b11
FIGURE_4 = [
    (NOT_ECT, [(NOT_ECT, NOT_ECT), (ECT0, NOT_ECT), (ECT1, NOT_ECT), (CE, None)]),
    (ECT0, [(NOT_ECT, ECT0), (ECT0, ECT0), (ECT1, ECT1), (CE, CE)]),
    (ECT1, [(NOT_ECT, ECT1), (ECT0, ECT1), (ECT1, ECT1), (CE, CE)]),
    (CE, [(NOT_ECT, CE), (ECT0, CE), (ECT1, CE), (CE, CE)]),
]


@pytest.mark.parametrize(("inner", "outer", "wanted"), [(i, o, w) for i, row in FIGURE_4 for o, w in row])
def test_congestion_marks_as_rfc_6040_has_them(inner, outer, wanted):
    v4 = IP(src="10.1.0.1", dst="10.2.0.2", tos=0xB8 | inner, options=b"\x01" * 4) / b"data"
    v6 = IPv6(src="fd01::1", dst="fd02::2", tc=0xB8 | inner, fl=0x12345) / b"data"
    packet4, packet6 = parse_ipv4(bytes(v4)), parse_ipv6(bytes(v6))
    if wanted is None:
        for packet in (packet4, packet6):
            with pytest.raises(Dropped, match="congestion"):
                congestion_mark(packet, outer)
        return
    v4.tos = v6.tc = 0xB8 | wanted
    assert congestion_mark(packet4, 0x1C | outer) == bytes(v4)  # the outer DSCP stays outside
    assert congestion_mark(packet6, 0x1C | outer) == bytes(v6)


def test_macs():
    assert parse_mac("02:00:00:00:00:Fe") == bytes.fromhex("0200000000fe")
    for wrong in (
        "",
        "02:00:00:00:00",
        "02-00-00-00-00-01",
        "02:00:00:00:00:01:02",
        "0200000000 1",
        "02:00:00:00:00:01\n",
    ):
        with pytest.raises(ValueError, match="not a MAC"):
            parse_mac(wrong)
