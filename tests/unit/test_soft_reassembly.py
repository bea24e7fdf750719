"""Fragments become whole packets, whatever order they come in."""

from __future__ import annotations

import random

import pytest
from scapy.layers.inet import IP, UDP, fragment
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment, fragment6

from ipsec_gw.engines.soft.drops import Dropped
from ipsec_gw.engines.soft.packets import IpPacket, parse_ipv4, parse_ipv6
from ipsec_gw.engines.soft.reassembly import MOST, SECONDS, Reassembly

PAYLOAD = bytes(range(256)) * 16


def pieces(version: int, ident: int, payload: bytes = PAYLOAD) -> tuple[bytes, list[IpPacket]]:
    """A packet and its fragments."""
    if version == 4:
        whole = IP(
            bytes(IP(src="192.0.2.1", dst="192.0.2.2", id=ident, ttl=3, tos=8) / UDP(sport=1, dport=2) / payload)
        )
        return bytes(whole), [parse_ipv4(bytes(one)) for one in fragment(whole, 1000)]
    header = IPv6(src="2001:db8::1", dst="2001:db8::2", hlim=3)
    upper = UDP(sport=1, dport=2) / payload
    whole6 = IPv6(bytes(header / upper))
    cut = fragment6(header / IPv6ExtHdrFragment(id=ident) / whole6[UDP], 1280)
    return bytes(whole6), [parse_ipv6(bytes(one)) for one in cut]


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("seed", range(5))
def test_whatever_order_they_come_in(version: int, seed: int) -> None:
    together, chance = Reassembly(), random.Random(seed)
    packets = [pieces(version, ident) for ident in (1, 2, 3)]
    mixed = [(number, one) for number, (_, parts) in enumerate(packets) for one in parts]
    chance.shuffle(mixed)
    missing = [len(parts) for _, parts in packets]
    for number, one in mixed:
        missing[number] -= 1
        got = together.add(one)
        assert (got is None) == bool(missing[number])
        assert got is None or got.data == packets[number][0]


def test_a_piece_twice_changes_nothing() -> None:
    together = Reassembly()
    whole, parts = pieces(4, 1)
    for one in (parts[0], parts[0], *parts[1:-1]):
        assert together.add(one) is None
    last = together.add(parts[-1])
    assert last is not None
    assert last.data == whole


def test_pieces_that_overlap_never_become_whole() -> None:
    together = Reassembly()
    _, parts = pieces(4, 1)
    shifted = IP(parts[1].data)
    shifted.frag -= 1
    del shifted.chksum
    for one in (parts[0], parse_ipv4(bytes(shifted)), *parts[2:]):
        assert together.add(one) is None


def test_old_pieces_and_too_many_are_forgotten() -> None:
    now = [0.0]
    together = Reassembly(lambda: now[0])
    _, parts = pieces(4, 1)
    for one in parts[:-1]:
        together.add(one)
    now[0] = SECONDS + 0.1
    assert together.add(parts[-1]) is None
    _, parts = pieces(4, 2)
    for one in parts[:-1]:
        together.add(one)
    for ident in range(10, 10 + MOST):
        together.add(pieces(4, ident)[1][0])
    assert together.add(parts[-1]) is None, "the oldest had to go"


def test_what_cannot_be_a_piece_is_dropped() -> None:
    beyond = IP(bytes(IP(src="192.0.2.1", dst="192.0.2.2", frag=0x1FFF) / (b"x" * 64)))
    odd = IP(bytes(IP(src="192.0.2.1", dst="192.0.2.2", flags="MF") / (b"x" * 63)))
    for one in (beyond, odd):
        with pytest.raises(Dropped):
            Reassembly().add(parse_ipv4(bytes(one)))
    with pytest.raises(Dropped):
        Reassembly().add(parse_ipv6(bytes(IPv6(src="::1", dst="::1", nh=44) / b"short")))
