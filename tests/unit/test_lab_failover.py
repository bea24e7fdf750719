"""What the failover scenario reads out of a capture and out of charon's words."""

from __future__ import annotations

from ipaddress import IPv4Address

from ipsec_gw.lab.oracle import EspPacket
from ipsec_gw.lab.scenarios.failover import _IKE, Death
from ipsec_gw.lab.scenarios.truth import COUNTED
from ipsec_gw.lab.wire import furthest_back, stragglers

LISTED = """\
site: #3, ESTABLISHED, IKEv2, 1122334455667788_i* 8877665544332211_r
  local  'gwa' @ 10.0.0.1[500]
  remote 'gwb' @ 10.0.0.2[500]
  AES_GCM_16-128/PRF_HMAC_SHA2_256/CURVE_25519
  established 12s ago
  net: #7, reqid 1, INSTALLED, TUNNEL, ESP:AES_GCM_16-128
    installed 3s ago
    in  c1ee1afb, 123456789012 bytes, 987654 packets,     1s ago
    out 00000abc,      0 bytes,     0 packets
    local  10.1.0.0/24
    remote 10.2.0.0/24
"""


def esp(spi: int, sequence: int) -> EspPacket:
    payload = spi.to_bytes(4, "big") + sequence.to_bytes(4, "big") + bytes(32)
    return EspPacket(IPv4Address("10.0.0.1"), IPv4Address("10.0.0.2"), payload)


def test_how_far_back_numbers_go() -> None:
    assert furthest_back([]) == 0
    assert furthest_back([esp(1, 1), esp(1, 2), esp(1, 1 << 27), esp(2, 1), esp(2, 2)]) == 0
    assert furthest_back([esp(1, 10), esp(1, 9), esp(1, 11)]) == 1
    assert furthest_back([esp(1, 1 << 27), esp(1, 20), esp(1, 1 << 28)]) == (1 << 27) - 20, (
        "the engine's after the kernel's"
    )


def test_what_left_a_ring_late_is_counted_by_packets() -> None:
    taken_over = [esp(1, 1 << 27), esp(1, 20), esp(1, 21), esp(1, 1 << 28), esp(2, 9), esp(2, 8)]
    assert stragglers([], 0) == 0
    assert stragglers(taken_over, 1024) == 2, "of one SA"
    assert stragglers([*taken_over, esp(2, 1 << 27), esp(2, 10)], 1024) == 2, "not of all together"
    assert stragglers(taken_over, 1 << 27) == 0


def test_charons_words_are_read() -> None:
    assert COUNTED.findall(LISTED) == [("c1ee1afb", "987654"), ("00000abc", "0")]
    found = _IKE.search(LISTED)
    assert found is not None
    assert found.group(1) == "3"


def test_a_death_in_words() -> None:
    said = str(Death("kill 1", dying=0.02, silent=0.003, lost=[1, 2], late=[0, 0]))
    assert "20 ms from kill to empty sockets, 3 ms from there to the kernel's first packet" in said
    assert "3 packets lost before that, 0 after" in said
