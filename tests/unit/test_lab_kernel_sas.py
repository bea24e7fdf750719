"""SAs as the kernel's netlink messages have them, built here byte by byte from linux/xfrm.h."""

import socket
import struct
from ipaddress import IPv4Address, ip_address

from ipsec_gw.lab.kernel_sas import XFRMA_ALG_AEAD, attributes, messages, parse_sa

KEY, SALT = bytes(range(16)), b"\xa1\xb2\xc3\xd4"


def address(text):
    return socket.inet_aton(text).ljust(16, b"\0")


def attribute(kind, data):
    return struct.pack("=HH", 4 + len(data), kind) + data + b"\0" * (-len(data) % 4)


def aead(name=b"rfc4106(gcm(aes))", key=KEY + SALT):
    return attribute(XFRMA_ALG_AEAD, name.ljust(64, b"\0") + struct.pack("=II", len(key) * 8, 128) + key)


def usersa(protocol=socket.IPPROTO_ESP, family=socket.AF_INET, flags=0):
    selector = bytes(56)
    identity = address("10.0.0.2") + struct.pack(">I", 0xC0FFEE01) + struct.pack("=Bxxx", protocol)
    limits, current = bytes(64), struct.pack("=4Q", 8400, 100, 1700000000, 0)
    rest = struct.pack("=3I", 0, 0, 0) + struct.pack("=II", 0, 7) + struct.pack("=HBBB7x", family, 1, 32, flags)
    return selector + identity + address("10.0.0.1") + limits + current + rest


def test_layout_is_that_of_the_kernel_header():
    assert len(usersa()) == 224


def test_an_sa_with_its_key_and_counters():
    sa = parse_sa(usersa() + attribute(1, b"other") + aead())
    assert (sa.source, sa.destination, sa.spi) == (IPv4Address("10.0.0.1"), IPv4Address("10.0.0.2"), 0xC0FFEE01)
    assert (sa.reqid, sa.octets, sa.packets) == (7, 8400, 100)
    assert (sa.aead, sa.key.reveal(), sa.salt.reveal()) == ("rfc4106(gcm(aes))", KEY, SALT)


def test_an_sa_between_ipv6_end_points():
    ends = (ip_address("2001:db8::1"), ip_address("2001:db8::2"))
    raw = bytearray(usersa(family=socket.AF_INET6))
    raw[80:96], raw[56:72] = (end.packed for end in ends)
    sa = parse_sa(bytes(raw) + aead())
    assert (sa.source, sa.destination) == ends


def test_extended_numbers_are_told_by_a_flag():
    assert parse_sa(usersa(flags=128) + aead()).esn
    assert not parse_sa(usersa(flags=127) + aead()).esn


def test_the_highest_number_received():
    plain, extended = struct.pack("=3I", 7, 9, 0), struct.pack("=6I", 1, 7, 5, 0, 2, 32)
    assert parse_sa(usersa() + aead()).received == 0
    assert parse_sa(usersa() + attribute(10, plain) + aead()).received == 9
    assert parse_sa(usersa() + attribute(10, plain) + attribute(23, extended) + aead()).received == (2 << 32) + 5


def test_the_key_is_not_printed():
    assert KEY.hex() not in repr(parse_sa(usersa() + aead()))


def test_what_the_oracle_cannot_use_is_left_out():
    assert parse_sa(usersa(protocol=socket.IPPROTO_AH) + aead()) is None
    assert parse_sa(usersa()) is None
    assert parse_sa(b"short") is None


def test_truncated_attributes_end_the_walk():
    assert attributes(struct.pack("=HH", 2, 9)) == {}
    assert attributes(attribute(3, b"abc") + b"\1") == {3: b"abc"}


def test_messages_are_aligned():
    body = b"12345"
    one = struct.pack("=IHHII", 16 + len(body), 0x10, 0, 0, 0) + body + b"\0" * 3
    assert list(messages(one + one)) == [(0x10, body), (0x10, body)]
    assert list(messages(struct.pack("=IHHII", 4, 0x10, 0, 0, 0))) == []
