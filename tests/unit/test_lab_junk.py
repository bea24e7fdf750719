"""Junk and other forged packets: as scapy reads them, each with its verdict."""

from collections import Counter
from ipaddress import IPv4Address, IPv4Network, IPv6Address

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6PacketTooBig, IPv6, IPv6ExtHdrFragment
from scapy.layers.l2 import Ether
from scapy.packet import raw

from ipsec_gw.lab.capture import Frame
from ipsec_gw.lab.flood import Flooded
from ipsec_gw.lab.junk import KINDS, SOURCES, Aim, Link, templates, verdicts
from ipsec_gw.lab.packets import TooBig, icmp4, packet_of, tcp4, tcp6, too_big, udp4

ONE, OTHER = IPv4Address("198.18.1.2"), IPv4Address("192.0.2.1")
AIM = Aim(Link(b"\2\0\0\0\0\1", b"\2\0\0\0\0\2"), OTHER, IPv4Network("10.1.0.0/16"), frozenset({500, 4500, 443}))


def frame(packet):
    return Frame(0.0, "x", False, raw(Ether() / packet))


@pytest.mark.parametrize("data", [b"", b"x", b"some bytes"])
def test_udp_is_as_scapy_makes_it(data):
    assert udp4(ONE, 7, OTHER, 9, data) == raw(
        IP(src=str(ONE), dst=str(OTHER), flags="DF") / UDP(sport=7, dport=9) / data
    )


def test_tcp_is_as_scapy_makes_it():
    segment = TCP(sport=7, dport=9, seq=1, ack=1, flags="SA", window=65535)
    assert tcp4(ONE, 7, OTHER, 9, 0x12) == raw(IP(src=str(ONE), dst=str(OTHER), flags="DF") / segment)
    one, other = IPv6Address("2001:2::1"), IPv6Address("2001:db8:1::10")
    assert tcp6(one, 7, other, 9, 0x12) == raw(IPv6(src=str(one), dst=str(other)) / segment)


def test_icmp_is_as_scapy_makes_it():
    wanted = raw(IP(src=str(ONE), dst=str(OTHER), flags="DF") / ICMP(type=8, id=0x1234, seq=5) / b"abc")
    assert icmp4(ONE, OTHER, 8, 0, b"\x12\x34\0\5abc") == wanted


def test_the_same_seed_makes_the_same_junk():
    assert templates(AIM, 64, 1) == templates(AIM, 64, 1)
    assert templates(AIM, 64, 1) != templates(AIM, 64, 2)


def test_junk_is_of_all_kinds_and_comes_from_nobody():
    junk = templates(AIM, 400, 3)
    assert Counter(one.verdict for one in junk) == Counter(verdict for _, verdict in KINDS * (400 // len(KINDS)))
    for one in junk:
        packet = Ether(one.frame)
        assert IPv4Address(packet[IP].src) in SOURCES
        where = IPv4Address(packet[IP].dst)
        assert where == AIM.own or where in AIM.behind
        later = bool(packet[IP].frag)
        assert later is (one.verdict == "fragment-unknown")
        assert (packet[IP].len > len(one.frame) - 14) is (one.verdict == "malformed")


def test_no_junk_is_for_a_port_that_is_let_in():
    for one in templates(AIM, 2000, 4):
        packet = packet_of(Frame(0.0, "x", False, one.frame))
        assert packet.destination_port not in AIM.spared


@pytest.mark.parametrize("sent", [0, 1, 7, 16, 17, 1000])
def test_verdicts_are_those_of_the_frames_sent(sent):
    junk = templates(AIM, 16, 5)
    assert +verdicts(junk, sent) == Counter(junk[number % 16].verdict for number in range(sent))


def test_a_rate_is_frames_by_second():
    assert Flooded(500, 2.0).rate == 250.0
    assert Flooded(0, 0.0).rate == 0.0


def test_ports_and_fragments_of_captured_packets():
    whole = packet_of(frame(IP(src="10.1.0.1", dst="10.2.0.1") / UDP(sport=1, dport=77) / b"x"))
    assert (whole.destination_port, whole.fragment) == (77, False)
    first = packet_of(frame(IP(src="10.1.0.1", dst="10.2.0.1", flags="MF") / UDP(dport=77) / bytes(24)))
    assert (first.destination_port, first.fragment) == (None, True)
    six = packet_of(frame(IPv6(src="2001:db8::1", dst="2001:db8::2") / TCP(dport=78)))
    assert (six.destination_port, six.fragment, str(six.source)) == (78, False, "2001:db8::1")
    later = packet_of(frame(IPv6() / IPv6ExtHdrFragment(nh=17, offset=8) / bytes(16)))
    assert (later.protocol, later.fragment) == (17, True)


@pytest.mark.parametrize("data", [b"", bytes(13), bytes(60), bytes(12) + b"\x08\x00" + bytes(10)])
def test_other_frames_hold_no_packet(data):
    assert packet_of(Frame(0.0, "x", False, data)) is None


def test_a_smaller_mtu_is_read_from_both_families():
    about = IP(src="10.1.0.10", dst="198.51.100.10") / UDP(sport=1, dport=2)
    told = too_big(
        packet_of(frame(IP(src="192.0.2.254", dst="10.1.0.10") / ICMP(type=3, code=4, nexthopmtu=1300) / about))
    )
    assert told == TooBig(IPv4Address("192.0.2.254"), 1300, IPv4Address("10.1.0.10"), IPv4Address("198.51.100.10"))
    about = IPv6(src="2001:db8:1::10", dst="2001:db8:4::10") / UDP()
    told = too_big(packet_of(frame(IPv6(src="2001:db8:2::254") / ICMPv6PacketTooBig(mtu=1290) / about)))
    assert (told.mtu, str(told.source), str(told.destination)) == (1290, "2001:db8:1::10", "2001:db8:4::10")


def test_other_errors_tell_no_mtu():
    unreachable = packet_of(frame(IP() / ICMP(type=3, code=1) / IP() / UDP()))
    assert too_big(unreachable) is None
