"""XDP and TC programs against arbitrary packets: IKE's way stays free, nothing is dropped that is not claimed ESP."""

from __future__ import annotations

import os
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from ipsec_gw.model.ids import SaKey
from xdp_steer.gateway import Steering
from xdp_steer.prog_run import XdpAction, prog_run

KNOWN = SaKey(ip_address("10.0.0.1"), 0x1001)


@pytest.fixture(scope="module")
def steering() -> Iterator[Steering]:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    pins = Path(f"/sys/fs/bpf/ipsec-gw-fuzz-{os.getpid()}")
    opened = Steering.open(pins)
    opened.set_engine(True)
    opened.steer(KNOWN)
    yield opened
    opened.remove()


HEADERS = st.sampled_from(
    [
        b"",
        bytes(Ether(dst="02:00:00:00:00:01", src="02:00:00:00:00:02", type=0x0800)),
        bytes(Ether(dst="02:00:00:00:00:01", src="02:00:00:00:00:02", type=0x86DD)),
        bytes(Ether(dst="02:00:00:00:00:01", src="02:00:00:00:00:02", type=0x8100)),
        bytes(Ether(dst="02:00:00:00:00:01", src="02:00:00:00:00:02") / IP(dst="10.0.0.1", proto=50)),
        bytes(Ether(dst="02:00:00:00:00:01", src="02:00:00:00:00:02") / IP(dst="10.0.0.1") / UDP(dport=4500)),
    ]
)


@given(HEADERS, st.binary(min_size=14, max_size=200))
def test_any_packet_goes_to_the_kernel_unless_it_is_steered(steering: Steering, header: bytes, rest: bytes) -> None:
    packet = header + rest
    result = prog_run(steering.pipeline_fd, packet)
    # Loopback, where test runs happen, has no dock: also what would be steered ends in the kernel there.
    assert result.retval == XdpAction.PASS
    assert result.packet == packet, "the pipeline changes nothing"


@given(st.binary(min_size=0, max_size=100), st.sampled_from([(500, b""), (4500, b"\0\0\0\0")]))
def test_ike_reaches_charon_whatever_it_carries(steering: Steering, body: bytes, port: tuple[int, bytes]) -> None:
    number, marker = port
    packet = Ether(dst="02:00:00:00:00:01") / IP(dst="10.0.0.1") / UDP(sport=4500, dport=number) / Raw(marker + body)
    assert prog_run(steering.pipeline_fd, bytes(packet)).retval == XdpAction.PASS
