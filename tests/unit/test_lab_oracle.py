"""The ESP oracle, held to packets that scapy encrypts."""

import os
from dataclasses import replace

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.ipsec import ESP, SecurityAssociation
from scapy.layers.l2 import ARP, GRE, Ether

from ipsec_gw.lab.capture import esp_of
from ipsec_gw.lab.oracle import EspPacket, NotGenuine, Oracle, strip_trailer
from ipsec_gw.lab.wire import open_all
from tests.unit.lab_kit import SALT, A, B, esp_frame, frame, inner, kernel_sa, scapy_sa

CIPHERS = [("AES-GCM", 16), ("AES-GCM", 24), ("AES-GCM", 32), ("CHACHA20-POLY1305", 32)]


@pytest.mark.parametrize(("cipher", "size"), CIPHERS)
@pytest.mark.parametrize("length", [0, 1, 2, 3, 4, 1372])
def test_opens_what_scapy_encrypts(cipher, size, length):
    key = os.urandom(size)
    packet = inner(os.urandom(length))
    esp = esp_of(esp_frame(scapy_sa(key, cipher=cipher), packet, seq=7, iv=b"IVIVIVIV"))
    opened = Oracle().open(esp, kernel_sa(key, cipher=cipher))
    assert (opened.sequence, opened.iv, opened.inner) == (7, b"IVIVIVIV", bytes(packet))


@pytest.mark.parametrize("position", [4, 7, 8, 15, 16, 30, -1])
def test_one_changed_bit_is_refused(position):
    esp = esp_of(esp_frame(scapy_sa(), inner()))
    changed = bytearray(esp.payload)
    changed[position] ^= 1
    with pytest.raises(NotGenuine, match="does not verify"):
        Oracle().open(EspPacket(esp.source, esp.destination, bytes(changed)), kernel_sa())


def test_another_key_or_salt_is_refused():
    esp = esp_of(esp_frame(scapy_sa(), inner()))
    for wrong in (kernel_sa(bytes(16)), kernel_sa(salt=b"\xd4\xc3\xb2\xa1")):
        with pytest.raises(NotGenuine, match="does not verify"):
            Oracle().open(esp, wrong)


@pytest.mark.parametrize("high", [0, 1])
def test_the_upper_half_of_an_extended_number_is_found(high):
    frame = esp_frame(scapy_sa(), inner(), seq=5, high=high)
    opened = Oracle().open(esp_of(frame), kernel_sa(esn=True))
    assert (opened.sequence, opened.high, opened.inner) == (high << 32 | 5, high, bytes(inner()))
    (found,) = open_all([esp_of(frame)], {(esp_of(frame).destination, 0x1000ABCD): kernel_sa(esn=True)}).opened
    assert found.esp.sequence == high << 32 | 5


def test_extended_and_short_numbers_do_not_open_each_other():
    extended, short = esp_of(esp_frame(scapy_sa(), inner(), high=0)), esp_of(esp_frame(scapy_sa(), inner()))
    for packet, esn in ((extended, False), (short, True)):
        with pytest.raises(NotGenuine, match="does not verify"):
            Oracle().open(packet, kernel_sa(esn=esn))


def test_names_the_packet_without_its_key():
    esp = esp_of(esp_frame(scapy_sa(), inner(), seq=9))
    with pytest.raises(NotGenuine) as caught:
        Oracle().open(esp, kernel_sa(bytes(16)))
    assert "10.0.0.2/1000abcd seq 9" in str(caught.value)
    assert bytes(range(16)).hex() not in str(caught.value)


def test_too_short_for_esp():
    esp = esp_of(esp_frame(scapy_sa(), inner()))
    with pytest.raises(NotGenuine, match="too short"):
        Oracle().open(EspPacket(esp.source, esp.destination, esp.payload[:33]), kernel_sa())


def test_unknown_cipher_is_said():
    esp = esp_of(esp_frame(scapy_sa(), inner()))
    sa = kernel_sa()
    strange = type(sa)(**{name: getattr(sa, name) for name in sa.__slots__} | {"aead": "rfc4309(ccm(aes))"})
    with pytest.raises(NotGenuine, match=r"no oracle for rfc4309\(ccm\(aes\)\)"):
        Oracle().open(esp, strange)


def padded(packet, padding, following=4):
    return packet + padding + bytes((len(padding), following))


def test_padding_counts_from_one():
    packet = bytes(inner())
    assert strip_trailer(padded(packet, b"\1\2\3"), "x") == packet
    with pytest.raises(NotGenuine, match="padding"):
        strip_trailer(padded(packet, b"\0\0\0"), "x")


def test_padding_longer_than_the_packet():
    with pytest.raises(NotGenuine, match="padding"):
        strip_trailer(b"\1\xff\4", "x")


def test_ipv6_in_a_tunnel_has_its_own_length_too():
    packet = bytes(IPv6(src="fd01::1", dst="fd02::1") / UDP() / b"x")
    assert strip_trailer(padded(packet, b"\1", 41), "x") == packet
    for wrong in (packet + b"x", packet[:39], bytes(inner())):
        with pytest.raises(NotGenuine, match="not IPv6 of its own length"):
            strip_trailer(padded(wrong, b"\1", 41), "x")


def test_a_plain_gre_header_is_taken_off():
    four, six = bytes(inner()), bytes(IPv6(src="fd01::1", dst="fd02::1") / UDP() / b"x")
    for packet in (four, six):
        behind = bytes(GRE() / (inner() if packet is four else IPv6(packet)))
        assert strip_trailer(padded(behind, b"\1\2", 47), "x") == packet
    for wrong in (bytes(GRE(key_present=1, key=7)) + four, bytes(GRE(proto=0x86DD)) + four, b"\0\0\x08"):
        with pytest.raises(NotGenuine, match=r"GRE header|own length"):
            strip_trailer(padded(wrong, b"\1\2", 47), "x")


@pytest.mark.parametrize("following", [50, 6, 59])
def test_only_ip_in_a_tunnel(following):
    with pytest.raises(NotGenuine, match=f"next header {following}"):
        strip_trailer(padded(bytes(inner()), b"\1\2", following), "x")


def test_inner_length_must_be_its_own():
    with pytest.raises(NotGenuine, match="of its own length"):
        strip_trailer(padded(bytes(inner()) + b"x", b"\1"), "x")


DEVICE = {"src": "192.0.2.1", "dst": "192.0.2.2"}


@pytest.mark.parametrize(
    ("sent", "taken"),
    [
        (GRE() / inner(), True),
        (inner(), True),
        (UDP(sport=40000, dport=4789) / (b"\x08" + bytes(3) + b"\0\0\x2a\0") / Ether() / inner(), True),
        (GRE(key_present=1, key=7) / inner(), False),
        (UDP(sport=40000, dport=4789) / (b"\x08" + bytes(3) + b"\0\0\x2a\0") / Ether() / ARP(), False),
        (UDP(sport=1, dport=2) / b"other", False),
    ],
)
def test_in_tunnel_mode_what_a_device_sends_is_taken_out_of_its_packet(sent, taken):
    packet = IP(bytes(IP(**DEVICE) / sent))
    opened = Oracle().open(esp_of(esp_frame(scapy_sa(), packet)), kernel_sa())
    assert opened.inner == (bytes(inner()) if taken else bytes(packet))


def test_in_tunnel_mode_a_piece_of_a_devices_packet_is_what_it_is():
    piece = IP(bytes(IP(**DEVICE, flags="MF") / GRE() / inner()))
    assert Oracle().open(esp_of(esp_frame(scapy_sa(), piece)), kernel_sa()).inner == bytes(piece)


def vxlan(packet, port=4789):
    """In transport mode, as a VXLAN device sends it."""
    headers = UDP(sport=40000, dport=port) / (b"\x08" + bytes(3) + b"\0\0\x2a\0")
    return IP(src=A, dst=B) / headers / packet


@pytest.mark.parametrize("port", [4789, 4790])
def test_what_a_vxlan_device_sends_is_taken_out(port):
    sa = replace(kernel_sa(), transport=True)
    protects = SecurityAssociation(ESP, spi=sa.spi, crypt_algo="AES-GCM", crypt_key=bytes(range(16)) + SALT)
    for packet, whole in ((Ether() / inner(), inner()), (Ether() / ARP(), None), (Ether() / b"", None)):
        sent = vxlan(packet, port)
        opened = Oracle().open(esp_of(frame(Ether() / protects.encrypt(sent, seq_num=1))), sa)
        if whole is not None and port == 4789:
            assert opened.inner == bytes(whole)
        else:
            assert opened.inner[20:] == bytes(sent)[20:], "something else, behind the header of its addresses"
