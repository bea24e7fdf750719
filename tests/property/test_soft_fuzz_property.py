"""Whatever arrives, the soft engine drops it or handles it; it never fails, and never emits what it should not."""

from __future__ import annotations

import contextlib
from ipaddress import ip_address, ip_network
from pathlib import Path

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether

from ipsec_gw.engines.port import EngineContext, Link
from ipsec_gw.engines.soft.drops import Dropped
from ipsec_gw.engines.soft.esp import EspPayload, EspTransform, strip_trailer
from ipsec_gw.engines.soft.store import Store
from ipsec_gw.model.algorithms import AES_GCM_128
from ipsec_gw.model.ids import Direction, SaKey, TunnelId
from ipsec_gw.model.objects import EngineSa, NextHop, Selector, Tunnel
from ipsec_gw.model.secret import Secret

LOCAL, PEER = ip_address("192.0.2.1"), ip_address("198.51.100.7")
MAC = "02:00:00:00:00:01"
SELECTOR = Selector(ip_network("10.1.0.0/16"), ip_network("10.2.0.0/16"))
SALT = Secret(b"salt")

# A machine that is busy elsewhere must not fail a test: neither examples nor their generation are held to a time.
untimed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def esp_sa(direction: Direction, spi: int) -> EngineSa:
    source, destination = (PEER, LOCAL) if direction is Direction.IN else (LOCAL, PEER)
    key = Secret(spi.to_bytes(16, "big"))
    return EngineSa(SaKey(destination, spi), direction, source, AES_GCM_128, key, SALT, esn=False, replay_window=64)


IN, OUT = esp_sa(Direction.IN, 0x1001), esp_sa(Direction.OUT, 0x2001)


def forwarding():
    context = EngineContext(
        Path("/nonexistent"), (Link("wan0", MAC, 1500),), Link("up", MAC, 1500), Link("vp", MAC, 1500), {}.__getitem__
    )
    store = Store(context, 3000)
    hop = NextHop(key=PEER, local=LOCAL, interface="wan0", gateway=PEER, mac=MAC)
    for obj in (IN, OUT, hop, Tunnel(TunnelId(1, PEER), LOCAL, PEER, (IN.key,), OUT.key, (SELECTOR,))):
        store.create(obj)
    return store.forwarding


FORWARDING = forwarding()
ETHERNET = bytes(12)
OUTER = bytes(Ether() / IP(src="198.51.100.7", dst="192.0.2.1", proto=50, len=20 + 60))
VALID_PLAIN = bytes(Ether() / IP(src="10.1.0.1", dst="10.2.0.1") / UDP() / b"data")


def sealed(plaintext: bytes, next_header: int, number: int) -> bytes:
    transform = EspTransform(0x1001, AES_GCM_128, IN.secret, SALT, esn=False)
    packet = transform.seal(number, bytes(8), EspPayload(next_header, plaintext))
    return bytes(Ether() / IP(src="198.51.100.7", dst="192.0.2.1", proto=50) / packet)


VALID_ESP = sealed(bytes(IP(src="10.2.0.1", dst="10.1.0.1") / UDP() / b"data"), 4, 1)


@st.composite
def frames(draw: st.DrawFn) -> bytes:
    """Noise, noise behind the right headers, and true frames cut, stretched or bent."""
    noise = draw(st.binary(max_size=200))
    start = draw(
        st.sampled_from([b"", ETHERNET + b"\x08\x00", ETHERNET + b"\x08\x00\x45", ETHERNET + b"\x86\xdd\x60", OUTER])
    )
    return start + noise


def bent(valid: bytes, position: int, value: int, cut: int) -> bytes:
    position %= len(valid)
    return (valid[:position] + bytes((valid[position] ^ value,)) + valid[position + 1 :])[: len(valid) - cut]


bends = st.tuples(st.integers(0, 4096), st.integers(1, 255), st.integers(0, 80))


@untimed
@given(frames())
@example(b"")
@example(OUTER + (0x1001).to_bytes(4, "big") + bytes(56))
def test_noise_from_the_wan_never_comes_out(frame):
    emitted = None
    with contextlib.suppress(Dropped):
        emitted = FORWARDING.decapsulate(frame)
    assert emitted is None


@untimed
@given(bends)
def test_a_bent_esp_packet_never_comes_out_changed(bend):
    """Bits of the Ethernet header do not matter; every other change must not get through."""
    emitted = None
    with contextlib.suppress(Dropped):
        emitted = forwarding().decapsulate(bent(VALID_ESP, *bend))
    if emitted is not None:
        assert emitted == forwarding().decapsulate(VALID_ESP)


@untimed
@given(frames())
def test_noise_from_the_kernel_never_comes_out_unless_it_fits_a_selector(frame):
    try:
        emitted = FORWARDING.encapsulate(frame)
    except Dropped:
        return
    inner = IP(frame[14:])
    assert ip_address(inner.src) in SELECTOR.source
    assert ip_address(inner.dst) in SELECTOR.destination
    assert [one.interface for one in emitted] == ["wan0"]


@untimed
@given(bends)
def test_bent_plaintext_comes_out_only_by_its_selector(bend):
    frame = bent(VALID_PLAIN, *bend)
    try:
        FORWARDING.encapsulate(frame)
    except Dropped:
        return
    inner = IP(frame[14:])
    assert ip_address(inner.src) in SELECTOR.source
    assert ip_address(inner.dst) in SELECTOR.destination


@untimed
@given(st.binary(max_size=120), st.integers(0, 255))
def test_authentic_nonsense_never_comes_out(plaintext, next_header):
    """A peer with the right key and a bug, or worse."""
    emitted = None
    with contextlib.suppress(Dropped):
        emitted = forwarding().decapsulate(sealed(plaintext, next_header, 1))
    assert emitted is None


@untimed
@given(st.binary(max_size=60), st.integers(0, 255), st.integers(0, 255))
def test_trailers_never_raise_but_dropped(data, padding_length, next_header):
    try:
        payload = strip_trailer(data + bytes((padding_length, next_header)))
    except Dropped:
        return
    assert payload.next_header == next_header
    assert len(payload.data) == len(data) - padding_length
