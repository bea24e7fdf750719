"""The ESP transform against scapy, the RFC's own example and the RFC's formulas."""

from __future__ import annotations

import struct

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from scapy.layers.inet import IP, UDP
from scapy.layers.ipsec import ESP

from ipsec_gw.engines.soft.drops import Dropped, DropReason
from ipsec_gw.engines.soft.esp import (
    OVERHEAD_BYTES,
    EspPayload,
    EspTransform,
    parse_header,
    sealed_length,
    strip_trailer,
    supported_algorithms,
)
from ipsec_gw.errors import EngineError
from ipsec_gw.model.algorithms import ALGORITHMS, CHACHA20_POLY1305
from ipsec_gw.model.ids import Direction
from ipsec_gw.model.secret import Secret
from tests.unit.soft_kit import oracle, sa

IV = bytes.fromhex("0123456789abcdef")
PACKETS = [IP(src="10.1.0.1", dst="10.2.0.1") / UDP(sport=1, dport=2) / bytes(size) for size in range(5)]
NUMBERS = [(False, 1), (False, 0xFFFFFFFF), (True, 1), (True, 0xFFFFFFFF), (True, 0x1_0000_0000), (True, 0x7_1234_5678)]

algorithms = pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda algorithm: algorithm.name)
numbers = pytest.mark.parametrize(("esn", "number"), NUMBERS)


def transform_of(esp_sa):
    return EspTransform(esp_sa.key.spi, esp_sa.algorithm, esp_sa.secret, esp_sa.salt, esn=esp_sa.esn)


@algorithms
@numbers
@pytest.mark.parametrize("inner", PACKETS, ids=len)
def test_scapy_opens_what_we_seal(algorithm, esn, number, inner):
    esp_sa = sa(Direction.OUT, 0x1001, algorithm=algorithm, esn=esn)
    sealed = transform_of(esp_sa).seal(number, IV, EspPayload(4, bytes(inner)))
    outer = IP(src=str(esp_sa.source), dst=str(esp_sa.key.destination), proto=50) / ESP(sealed)
    opened = oracle(esp_sa).decrypt(IP(bytes(outer)), esn=number >> 32)
    assert bytes(opened[IP]) == bytes(inner)
    assert len(sealed) == sealed_length(len(bytes(inner)))
    assert len(sealed) % 4 == 0


@algorithms
@numbers
@pytest.mark.parametrize("inner", PACKETS, ids=len)
def test_we_open_what_scapy_seals(algorithm, esn, number, inner):
    esp_sa = sa(Direction.IN, 0x1001, algorithm=algorithm, esn=esn)
    scapy_sa = oracle(esp_sa)
    scapy_sa.seq_num = number & 0xFFFFFFFF  # as an argument, scapy takes 0 for "not given"
    sealed = scapy_sa.encrypt(inner, esn=number >> 32)
    packet = bytes(sealed[ESP])
    assert parse_header(packet).sequence == number & 0xFFFFFFFF
    assert strip_trailer(transform_of(esp_sa).open(number, packet)) == EspPayload(4, bytes(inner))


@algorithms
@pytest.mark.parametrize("esn", [False, True])
def test_the_formulas_of_the_rfcs(algorithm, esn):
    """RFC 4106 §3-5, RFC 7634 §2: nonce = salt | IV, AAD = SPI | sequence number (32 or 64 bits)."""
    esp_sa = sa(Direction.OUT, 0xCAFE, algorithm=algorithm, esn=esn)
    number = 0x2_0000_0003 if esn else 3
    cipher = (ChaCha20Poly1305 if algorithm == CHACHA20_POLY1305 else AESGCM)(esp_sa.secret.reveal())
    aad = struct.pack("!IQ", 0xCAFE, number) if esn else struct.pack("!II", 0xCAFE, number)
    body = cipher.encrypt(esp_sa.salt.reveal() + IV, b"five!" + b"\x01" + bytes((1, 59)), aad)
    assert transform_of(esp_sa).seal(number, IV, EspPayload(59, b"five!")) == struct.pack("!II", 0xCAFE, 3) + IV + body


def test_the_example_of_rfc_7634_appendix_a():
    inner = bytes.fromhex(
        "45000054a6f200004001e778c6336405c000020508005b7a3a080000553bec100007362708090a0b0c0d0e0f1011121314151617"
        "18191a1b1c1d1e1f202122232425262728292a2b2c2d2e2f3031323334353637"
    )
    packet = bytes.fromhex(
        "0102030400000005101112131415161724039428b97f417e3c13753a4f05087b67c352e6a7fab1b982d466ef407ae5c614ee8099"
        "d52844eb61aa95dfab4c02f72aa71e7c4c4f64c9befe2facc638e8f3cbec163fac469b502773f6fb94e664da9165b82829f641e0"
        "76aaa8266b7fb0f7b11b369907e1ad43"
    )
    key, salt = Secret(bytes(range(0x80, 0xA0))), Secret(bytes.fromhex("a0a1a2a3"))
    transform = EspTransform(0x01020304, CHACHA20_POLY1305, key, salt, esn=False)
    assert transform.seal(5, bytes.fromhex("1011121314151617"), EspPayload(4, inner)) == packet
    assert strip_trailer(transform.open(5, packet)) == EspPayload(4, inner)


@algorithms
def test_a_flipped_bit_anywhere_is_not_authentic(algorithm):
    transform = transform_of(sa(Direction.IN, 0x1001, algorithm=algorithm))
    packet = transform.seal(1, IV, EspPayload(4, b"data"))
    for position in range(8, len(packet)):  # SPI and number arrive by other ways: the next test
        forged = packet[:position] + bytes((packet[position] ^ 1,)) + packet[position + 1 :]
        with pytest.raises(Dropped) as dropped:
            transform.open(1, forged)
        assert dropped.value.reason is DropReason.AUTHENTICATION


@pytest.mark.parametrize(("esn", "number"), [(False, 2), (True, 2), (True, 0x1_0000_0001)])
def test_another_number_is_not_authentic(esn, number):
    transform = transform_of(sa(Direction.IN, 0x1001, esn=esn))
    packet = transform.seal(1, IV, EspPayload(4, b"data"))
    with pytest.raises(Dropped, match="authentication"):
        transform.open(number, packet)


def test_another_spi_is_not_authentic():
    esp_sa = sa(Direction.IN, 0x1001)
    other = EspTransform(0x1002, esp_sa.algorithm, esp_sa.secret, esp_sa.salt, esn=False)
    with pytest.raises(Dropped, match="authentication"):
        other.open(1, transform_of(esp_sa).seal(1, IV, EspPayload(4, b"data")))


@pytest.mark.parametrize(
    ("plaintext", "payload"),
    [
        (b"\x00\x3b", EspPayload(59, b"")),
        (b"ab\x00\x04", EspPayload(4, b"ab")),
        (b"a\x01\x01\x29", EspPayload(41, b"a")),
        (b"x" + bytes(range(1, 256)) + b"\xff\x04", EspPayload(4, b"x")),
    ],
)
def test_padding_is_taken_off(plaintext, payload):
    assert strip_trailer(plaintext) == payload


@pytest.mark.parametrize("plaintext", [b"\x01\x04", b"ab\x03\x04", b"ab\x00\x01\x04", b"a\x02\x01\x02\x04"])
def test_padding_that_does_not_hold_is_refused(plaintext):
    with pytest.raises(Dropped, match="padding"):
        strip_trailer(plaintext)


def test_a_packet_too_short_for_esp_is_malformed():
    assert parse_header(bytes(OVERHEAD_BYTES)).spi == 0
    with pytest.raises(Dropped, match="malformed"):
        parse_header(bytes(OVERHEAD_BYTES - 1))


@algorithms
@pytest.mark.parametrize("excess", [-1, 1])
def test_wrong_lengths_are_refused_by_name(algorithm, excess):
    key, salt = Secret(bytes(algorithm.key_bytes)), Secret(bytes(4))
    with pytest.raises(EngineError, match=f"0000abcd: key has {algorithm.key_bytes + excess} bytes"):
        EspTransform(0xABCD, algorithm, Secret(bytes(algorithm.key_bytes + excess)), salt, esn=False)
    with pytest.raises(EngineError, match=f"0000abcd: salt has {4 + excess} bytes"):
        EspTransform(0xABCD, algorithm, key, Secret(bytes(4 + excess)), esn=False)


def test_this_openssl_has_all_algorithms():
    assert supported_algorithms() == frozenset(ALGORITHMS)
