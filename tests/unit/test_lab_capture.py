"""Frames, pcap files, and what the lab reads from a capture of the WAN."""

from collections import Counter
from dataclasses import replace
from ipaddress import IPv4Network, ip_network

import pytest
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Padding, Raw
from scapy.utils import rdpcap

from ipsec_gw.errors import IpsecGwError
from ipsec_gw.lab.capture import esp_of, read_pcap, without_hops, write_pcap
from ipsec_gw.lab.wire import (
    clear_packets,
    count_by_sa,
    esp_packets,
    ip_packets,
    not_among,
    numbers,
    open_all,
    without_returned,
)
from tests.unit.lab_kit import A, B, arp_frame, clear_frame, esp_frame, frame, inner, kernel_sa, scapy_sa

PROTECTED = (IPv4Network("10.1.0.0/24"), IPv4Network("10.2.0.0/24"))


def esp(*sequence, iv=None, spi=0x1000ABCD):
    sa = scapy_sa(spi=spi)
    return [esp_frame(sa, inner(), seq=number, iv=iv or number.to_bytes(8, "big")) for number in sequence]


def index(sa):
    return {(sa.destination, sa.spi): sa}


def test_pcap_round_trip(tmp_path):
    frames = [clear_frame(), arp_frame(), *esp(1)]
    assert write_pcap(tmp_path / "x.pcap", frames) == 3
    assert [kept.data for kept in read_pcap(tmp_path / "x.pcap")] == [one.data for one in frames]
    assert read_pcap(tmp_path / "x.pcap")[0].when == pytest.approx(frames[0].when, abs=1e-6)


def test_scapy_reads_our_pcap(tmp_path):
    write_pcap(tmp_path / "x.pcap", [clear_frame()])
    (read,) = rdpcap(str(tmp_path / "x.pcap"))
    assert read[IP].dst == "10.2.0.10"
    assert float(read.time) == pytest.approx(1700000000.25)


def test_pcap_is_in_the_order_of_time(tmp_path):
    later, earlier = frame(Ether() / IP(), when=20.0), frame(Ether() / IP() / ICMP(), when=10.0)
    write_pcap(tmp_path / "x.pcap", [later, earlier])
    assert [one.when for one in read_pcap(tmp_path / "x.pcap")] == [10.0, 20.0]


def test_other_files_are_no_pcap(tmp_path):
    (tmp_path / "x").write_bytes(b"something else altogether, and long enough")
    with pytest.raises(IpsecGwError, match="not a pcap file"):
        read_pcap(tmp_path / "x")


def test_ethernet_padding_is_not_part_of_the_packet():
    packet = IP(src="10.1.0.10", dst="10.2.0.10") / ICMP()
    assert frame(Ether() / packet / Padding(b"\0" * 18)).ipv4 == bytes(packet)


def test_only_whole_esp_is_esp():
    assert esp_of(clear_frame()) is None
    assert esp_of(arp_frame()) is None
    assert esp_of(frame(Ether() / IP(src=A, dst=B, proto=50, frag=3) / (b"x" * 40))) is None
    assert esp_of(frame(Ether() / IP(src=A, dst=B, proto=50, flags="MF") / (b"x" * 40))) is None
    found = esp_of(esp(5)[0])
    assert (str(found.source), str(found.destination), found.spi, found.sequence) == (A, B, 0x1000ABCD, 5)


def test_esp_in_udp_is_esp_and_ike_and_keepalives_are_not():
    def datagram(payload, sport=4500, dport=31337):
        return frame(Ether() / IP(src=A, dst=B) / UDP(sport=sport, dport=dport) / Raw(payload) / Padding(b"pad"))

    found = esp_of(datagram(b"\x00\x00\x00\x09\x00\x00\x00\x05" + bytes(40)))
    assert (found.spi, found.sequence, found.ports, len(found.payload)) == (9, 5, (4500, 31337), 48)
    assert esp_of(datagram(b"\x00\x00\x00\x09" + bytes(40), sport=31337, dport=4500)).ports == (31337, 4500)
    assert esp_of(datagram(b"\x00\x00\x00\x09" + bytes(40), sport=31337, dport=4501)) is None
    for other in (b"\xff", bytes(4) + b"ike" * 20, b"", b"\x00\x00\x00\x09"):
        assert esp_of(datagram(other)) is None


def test_options_of_the_outer_header_are_skipped():
    options = IP(src=A, dst=B, proto=50, options=[("NOP"), ("NOP"), ("NOP"), ("NOP")])
    found = esp_of(frame(Ether() / options / (b"\x00\x00\x00\x09" + bytes(40))))
    assert found.spi == 9


def test_what_the_interface_sends_itself_is_left_out():
    assert len(esp_packets(esp(1, 2))) == 2
    outgoing = [frame(Ether(one.data), outgoing=True) for one in esp(1, 2)]
    assert esp_packets(outgoing) == []


def test_numbers_in_order():
    (found,) = numbers(esp_packets(esp(1, 2, 3)))
    assert (found.packets, found.first, found.last) == (3, 1, 3)
    assert found.unique
    assert found.gapless
    assert found.increasing


@pytest.mark.parametrize(
    ("sequence", "unique", "gapless", "increasing"),
    [
        ((1, 3), True, False, True),
        ((2, 3), True, False, True),
        ((1, 2, 2), False, True, False),
        ((2, 1, 3), True, True, False),
        ((1,), True, True, True),
    ],
)
def test_numbers_missing_repeated_or_late(sequence, unique, gapless, increasing):
    (found,) = numbers(esp_packets(esp(*sequence)))
    assert (found.unique, found.gapless, found.increasing) == (unique, gapless, increasing)


def test_a_repeated_iv_is_found():
    (found,) = numbers(esp_packets(esp(1, 2, iv=b"same one")))
    assert found.repeated_ivs == 1
    assert not found.unique


def test_sas_are_counted_apart():
    packets = esp_packets([*esp(1, 2), *esp(1, spi=0xB)])
    assert count_by_sa(packets) == Counter({"10.0.0.2/1000abcd": 2, "10.0.0.2/0000000b": 1})
    assert [found.packets for found in numbers(packets)] == [2, 1]


def test_everything_is_opened_or_named():
    good, strange = esp(1), esp(1, spi=0xBAD)
    forged = [frame(good[0].data[:-1] + bytes((good[0].data[-1] ^ 1,)))]
    found = open_all(esp_packets([*good, *strange, *forged]), index(kernel_sa()))
    assert [item.inner for item in found.opened] == [bytes(inner())]
    assert found.unknown == ("10.0.0.2/00000bad",)
    assert len(found.forged) == 1


@pytest.mark.parametrize(
    ("source", "destination", "clear"),
    [
        ("10.1.0.10", "10.2.0.10", True),
        ("10.2.0.99", "8.8.8.8", True),
        ("8.8.8.8", "10.1.0.1", True),
        ("10.0.0.1", "10.0.0.2", False),
    ],
)
def test_clear_packets_of_protected_networks(source, destination, clear):
    assert bool(clear_packets([clear_frame(source, destination)], PROTECTED)) is clear


@pytest.mark.parametrize(("source", "destination", "clear"), [(4500, 4500, False), (500, 500, False), (4500, 53, True)])
def test_ike_is_no_clear_packet(source, destination, clear):
    probing = frame(Ether() / IP(src="10.1.0.1", dst=B) / UDP(sport=source, dport=destination) / b"IKE")
    assert bool(clear_packets([probing], PROTECTED)) is clear


def test_what_a_gateway_that_has_moved_sends_back_is_not_its_own():
    sent, answers = esp_packets(esp(1, 2, 3)), esp_packets(esp(1, 2))
    answers = [replace(packet, source=packet.destination, destination=packet.source) for packet in answers]
    first, second = without_returned(sent, [*answers, sent[1]])
    assert (first, second) == (sent, answers)
    again = esp_packets(esp(2, iv=b"another1"))
    assert without_returned(sent, [*answers, *again])[1] == [*answers, *again], "only the same packet comes back"


def test_esp_and_outgoing_copies_are_not_clear_packets():
    assert clear_packets([*esp(1), arp_frame(), clear_frame(outgoing=True)], PROTECTED) == []


def test_clear_inside_another_tunnel_protocol_is_clear():
    leaked = frame(Ether() / IP(src="10.1.0.10", dst=B, proto=4) / IP())
    assert clear_packets([leaked], PROTECTED) == ["10.1.0.10 -> 10.0.0.2 protocol 4"]


def test_hops_do_not_matter_but_all_else_does():
    assert without_hops(bytes(inner(ttl=64))) == without_hops(bytes(inner(ttl=62)))
    assert without_hops(bytes(inner(b"a"))) != without_hops(bytes(inner(b"b")))


def test_inner_packets_are_compared_by_number_too():
    once = ip_packets([frame(Ether() / inner(ttl=64))], outgoing=False)
    assert not_among([bytes(inner())], once) == []
    assert not_among([bytes(inner()), bytes(inner())], once) == ["10.1.0.10 -> 10.2.0.10 33 bytes"]
    assert not_among([bytes(inner(b"other"))], once) == ["10.1.0.10 -> 10.2.0.10 33 bytes"]


def test_directions_of_a_host_are_kept_apart():
    frames = [clear_frame(), clear_frame(outgoing=True), arp_frame()]
    assert ip_packets(frames, outgoing=True).total() == 1
    assert ip_packets(frames, outgoing=False).total() == 1


def test_ipv6_is_read_as_ipv4_is():
    clear = IPv6(src="fd01::1", dst="fd02::1", hlim=64) / UDP() / b"x"
    seen = frame(Ether() / clear / Padding(b"\0" * 8))
    assert (seen.ip, seen.ipv4) == (bytes(clear), None)
    assert esp_of(seen) is None
    assert clear_packets([seen], [ip_network("fd02::/64")]) == ["fd01::1 -> fd02::1 protocol 17"]
    assert clear_packets([seen], [ip_network("fd03::/64"), *PROTECTED]) == []
    hopped = clear.copy()
    hopped.hlim = 63
    assert without_hops(bytes(clear)) == without_hops(bytes(hopped))
    other = clear.copy()
    other.dst = "fd02::2"
    assert without_hops(bytes(clear)) != without_hops(bytes(other))
    outer = IPv6(src="2001:db8::1", dst="2001:db8::2", nh=50) / Raw(b"\0\0\0\x09\0\0\0\x05" + bytes(40))
    found = esp_of(frame(Ether() / outer / Padding(b"pad")))
    assert (str(found.source), str(found.destination)) == ("2001:db8::1", "2001:db8::2")
    assert (found.spi, found.sequence, len(found.payload)) == (9, 5, 48)
    assert esp_of(frame(bytes(Ether() / outer)[:50])) is None
