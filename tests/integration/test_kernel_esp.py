"""Against a kernel that has ESP: bulk writes to its SAs, and the takeover of an engine's tunnel with no daemon at hand.

Where this kernel has no ESP, run it in one that has (`ipsec-gw lab` boots one).
"""

from __future__ import annotations

import os
import secrets
import socket
import struct
import subprocess
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from pyroute2 import AsyncIPRoute

from ipsec_gw.ike.aevent import StateSocket
from ipsec_gw.ike.xfrm import XfrmSocket
from ipsec_gw.lab.traffic import checksum
from ipsec_gw.model.ids import SaKey
from ipsec_gw.model.objects import Lead, Selector
from ipsec_gw.model.warmth import UNLIMITED, SaState, Volume, Warming
from ipsec_gw.ownership.guard import KEPT_AHEAD
from ipsec_gw.ownership.lead import LeadDriver
from ipsec_gw.ownership.uplink import ENGINE_END, raise_uplink
from tests.support.netns import ip, namespace
from xdp_steer.gateway import GuardCount, Role, Steering
from xdp_steer.xsk import XskSocket

pytestmark = [pytest.mark.root, pytest.mark.timeout(900)]

KEY = "0x" + "11" * 20
OUT = SaKey(ip_address("10.0.0.2"), 0x22)
SETTLE = 0.5


def add(source: str, destination: str, spi: int, words: str = "replay-window 32") -> None:
    aead = f"aead rfc4106(gcm(aes)) {KEY} 128"
    ip(f"xfrm state add src {source} dst {destination} proto esp spi {spi:#x} reqid 1 mode tunnel {aead} {words}")


@pytest.fixture(autouse=True)
def net() -> Iterator[None]:
    if os.geteuid() != 0:
        pytest.skip("needs root for network namespaces")
    with namespace(f"igwx-{secrets.token_hex(3)}"):
        try:
            add("10.0.0.1", "10.0.0.2", 0x22)
        except subprocess.CalledProcessError:
            pytest.skip("this kernel has no ESP")
        yield


def states(sas: StateSocket) -> dict[int, SaState]:
    return {state.key.spi: state for state in sas.states()}


def test_volumes_windows_and_extended_numbers_are_written() -> None:
    add("10.0.0.2", "10.0.0.1", 0x11)
    add("10.0.0.2", "10.0.0.1", 0x12, "replay-window 128 flag esn")
    add("10.0.0.1", "10.0.0.2", 0x23, "limit packet-soft 100")
    with StateSocket() as sas:
        before = states(sas)
        assert (before[0x23].soft.packets, before[0x22].soft.packets) == (100, UNLIMITED)
        high = (1 << 32) + 5
        assert (
            sas.write(
                [
                    Warming(before[0x22], Volume(7, 700), 1234567, None),
                    Warming(before[0x11], Volume(8, 800), 1234567, 4000),
                    Warming(before[0x12], Volume(9, 900), 1234567, high),
                ]
            )
            == 3
        )
        after = states(sas)
    assert [after[spi].used for spi in (0x22, 0x11, 0x12)] == [Volume(7, 700), Volume(8, 800), Volume(9, 900)]
    assert [after[spi].seq for spi in (0x22, 0x11, 0x12)] == [0, 4000, high]
    assert after[0x22].oseq == 0
    assert after[0x22].add_time == before[0x22].add_time
    assert after[0x22].use_time == 1234567
    assert after[0x23] == before[0x23]
    shown = subprocess.run(["ip", "-s", "xfrm", "state"], check=True, capture_output=True, text=True).stdout
    assert "seq-hi 0x1, seq 0x5" in shown


def test_an_sa_that_is_gone_is_no_error() -> None:
    with StateSocket() as sas:
        state = states(sas)[0x22]
        ip("xfrm state flush")
        assert sas.write([Warming(state, Volume(7, 700), 1, None)]) == 0


class Wan:
    """What the gateway sends: sequence numbers of ESP, and what is in clear."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003))
        self._socket.bind(("peer0", 0))

    def sent(self) -> list[int | str]:
        found: list[int | str] = []
        self._socket.settimeout(SETTLE)
        try:
            while True:
                frame = self._socket.recv(2048)
                if frame[12:14] == b"\x08\x00":
                    is_esp = frame[23] == socket.IPPROTO_ESP
                    found.append(struct.unpack_from(">I", frame, 38)[0] if is_esp else f"clear {frame[23]}")
        except TimeoutError:
            return found

    def close(self) -> None:
        self._socket.close()


def mac_of(interface: str) -> bytes:
    """Not from /sys, which shows the namespace that it was mounted in."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as listener:
        listener.bind((interface, 0))
        address: bytes = listener.getsockname()[4]
    return address


class Plaintext:
    """Local and forwarded packets of the tunnel."""

    def __init__(self) -> None:
        self._local = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._local.bind(("192.168.1.1", 0))
        self._host = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._host.bind(("host0", 0))
        self._ethernet = mac_of("lan0") + bytes.fromhex("020000000099") + b"\x08\x00"

    def send(self, number: int) -> None:
        self._local.sendto(b"local", ("192.168.2.9", 9))
        source, destination = ip_address("192.168.1.9").packed, ip_address("192.168.2.9").packed
        head = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 28, number, 0, 64, 17, 0, source, destination)
        head = head[:10] + struct.pack(">H", checksum(head)) + head[12:]
        self._host.send(self._ethernet + head + struct.pack(">HHHH", 1, 9, 8, 0))

    def close(self) -> None:
        self._local.close()
        self._host.close()


def build() -> None:
    """A WAN with a peer, a LAN with a host, and the outbound policy of a tunnel between them."""
    for name, other, address in (("wan0", "peer0", "10.0.0.1/24"), ("lan0", "host0", "192.168.1.1/24")):
        ip(f"link add {name} type veth peer name {other}")
        ip(f"addr add {address} dev {name}")
        ip(f"link set {name} up")
        ip(f"link set {other} up")
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    ip("neigh replace 10.0.0.2 lladdr 02:00:00:00:00:02 dev wan0 nud permanent")
    ip("route add default via 10.0.0.2")
    template = "tmpl src 10.0.0.1 dst 10.0.0.2 proto esp spi 0x22 reqid 1 mode tunnel"
    ip(f"xfrm policy add src 192.168.1.0/24 dst 192.168.2.0/24 dir out {template}")


async def plumb(steering: Steering) -> None:
    """As the gateway does it: veth pair, docks, rules, and the lead of one selector."""
    async with AsyncIPRoute() as route:
        kernel, engine = await raise_uplink(route)
        lead = LeadDriver(route, kernel_index=kernel.index, engine_name=ENGINE_END, engine_mac=engine.link.mac)
        steering.dock("wan0", Role.WAN)
        steering.dock(ENGINE_END, Role.TO_ENGINE)
        await lead.prepare()
        selector = Selector(ip_network("192.168.1.0/24"), ip_network("192.168.2.0/24"))
        await lead.create(Lead(selector, ip_address("192.168.1.1"), 1400))
    steering.set_local(frozenset({ip_address("10.0.0.1")}))


async def test_the_kernel_takes_a_tunnel_over_with_no_daemon_at_hand(tmp_path: Path) -> None:
    """Local and forwarded packets leave by the kernel, all of them, behind the number that it was kept at."""
    steering = Steering.open(Path("/sys/fs/bpf") / f"ipsec-gw-esp-{os.getpid()}", firewall=False)
    try:
        build()
        await plumb(steering)
        steering.claim(OUT)
        with XfrmSocket() as kernel:
            kernel.raise_oseq(OUT, KEPT_AHEAD)
        engine = XskSocket(ENGINE_END, frames=64)
        engine.enter(steering.xsks_map(ENGINE_END))
        steering.set_engine_gone(False)  # what a fresh interface says of itself found no socket
        wan, plain = Wan(), Plaintext()
        for number in range(3):
            plain.send(number)
        assert wan.sent() == [], "the engine has it"
        assert len(engine.receive()) == 6
        engine.close()
        for number in range(3):
            plain.send(number)
        first = KEPT_AHEAD + 1
        assert wan.sent() == list(range(first, first + 6))
        assert steering.guard_counters() == {OUT: GuardCount(passed=6, dropped=0)}
        assert steering.claimed() == {OUT}, "nobody decided anything"
        again = XskSocket(ENGINE_END, frames=64)
        again.enter(steering.xsks_map(ENGINE_END))
        plain.send(9)
        assert wan.sent() == [first + 6, first + 7], "nothing is an engine's until a daemon says so"
        assert again.receive() == []
        for closing in (again, wan, plain):
            closing.close()
    finally:
        steering.remove()
