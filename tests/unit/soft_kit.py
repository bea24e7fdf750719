"""Values and wires that the tests of the soft engine share."""

from __future__ import annotations

import itertools
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.ipsec import ESP, SecurityAssociation
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from ipsec_gw.engines.port import EngineContext, Link
from ipsec_gw.model.algorithms import AES_GCM_128, ALGORITHMS, CHACHA20_POLY1305, EspAlgorithm
from ipsec_gw.model.ids import Direction, SaKey, TunnelId
from ipsec_gw.model.objects import EngineSa, NextHop, Selector, Tunnel
from ipsec_gw.model.secret import Secret

LOCAL = ip_address("192.0.2.1")
PEER = ip_address("198.51.100.7")
LOCAL6 = ip_address("2001:db8::1")
PEER6 = ip_address("2001:db8:ffff::7")
GATEWAY_MAC = "02:00:00:00:00:99"
WAN = Link("wan0", "02:00:00:00:00:01", 1500)
UP_KERNEL = Link("ipsecgw-up", "02:00:00:00:00:02", 1500)
UP_ENGINE = Link("ipsecgw-vp", "02:00:00:00:00:03", 1500)
SELECTOR = Selector(source=ip_network("10.1.0.0/16"), destination=ip_network("10.2.0.0/16"))
SELECTOR6 = Selector(source=ip_network("fd01::/32"), destination=ip_network("fd02::/32"))
TUNNEL_ID = TunnelId(reqid=1, remote=PEER)
SCAPY_NAMES = {algorithm: "AES-GCM" for algorithm in ALGORITHMS} | {CHACHA20_POLY1305: "CHACHA20-POLY1305"}
FROM_PEER = IP(src="10.2.0.1", dst="10.1.0.1") / UDP() / b"hello"
TO_PEER = IP(src="10.1.0.1", dst="10.2.0.1") / UDP() / b"hello"

_serial = itertools.count(1)


def secret(length: int) -> Secret:
    """Key bytes that no other call gave out."""
    return Secret(next(_serial).to_bytes(4, "big") * (length // 4))


def sa(direction: Direction, spi: int, **changes: object) -> EngineSa:
    """An SA between LOCAL and PEER with a key of its own."""
    source, destination = (PEER, LOCAL) if direction is Direction.IN else (LOCAL, PEER)
    algorithm = changes.get("algorithm", AES_GCM_128)
    assert isinstance(algorithm, EspAlgorithm)
    plain = EngineSa(
        key=SaKey(destination, spi),
        direction=direction,
        source=source,
        algorithm=algorithm,
        secret=secret(algorithm.key_bytes),
        salt=secret(4),
        esn=False,
        replay_window=64,
    )
    return replace(plain, **changes)


def next_hop(**changes: object) -> NextHop:
    """PEER by GATEWAY_MAC on the WAN."""
    plain = NextHop(key=PEER, local=LOCAL, interface=WAN.name, gateway=ip_address("192.0.2.254"), mac=GATEWAY_MAC)
    return replace(plain, **changes)


def tunnel(inbound: Sequence[EngineSa], outbound: EngineSa, **changes: object) -> Tunnel:
    """A tunnel to PEER for SELECTOR."""
    plain = Tunnel(
        key=TUNNEL_ID,
        local=LOCAL,
        remote=PEER,
        inbound=tuple(one.key for one in inbound),
        outbound=outbound.key,
        selectors=(SELECTOR,),
    )
    return replace(plain, **changes)


def context(wan: Link = WAN) -> EngineContext:
    """A context with one WAN interface; its XSKMAPs are numbers that fakes write down."""
    return EngineContext(Path("/nonexistent"), (wan,), UP_KERNEL, UP_ENGINE, {wan.name: 101, UP_ENGINE.name: 102}.get)


def oracle(esp_sa: EngineSa) -> SecurityAssociation:
    """Scapy's idea of the same SA."""
    header = IP if esp_sa.source.version == 4 else IPv6
    return SecurityAssociation(
        ESP,
        spi=esp_sa.key.spi,
        crypt_algo=SCAPY_NAMES[esp_sa.algorithm],
        crypt_key=esp_sa.secret.reveal() + esp_sa.salt.reveal(),
        tunnel_header=header(src=str(esp_sa.source), dst=str(esp_sa.key.destination)),
        esn_en=esp_sa.esn,
    )


def wan_frame(packet: Packet) -> bytes:
    """What the WAN interface receives from its gateway."""
    return bytes(Ether(dst=WAN.mac, src=GATEWAY_MAC) / packet)


def up_frame(packet: Packet) -> bytes:
    """What the kernel sends into the veth pair."""
    return bytes(Ether(dst=UP_ENGINE.mac, src=UP_KERNEL.mac) / packet)


class WireSocket:
    """An AF_XDP socket's stand-in: a socketpair whose other end, :attr:`wire`, is the test's."""

    def __init__(self, interface: str = "wire", queue: int = 0, *, frame_size: int = 2048) -> None:
        self.interface, self.queue, self.frame_size = interface, queue, frame_size
        self._inside, self.wire = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._inside.setblocking(False)
        self.wire.settimeout(30)
        self.entered: list[int] = []
        self.closed = False

    def fileno(self) -> int:
        return self._inside.fileno()

    def enter(self, xsks_map_fd: int) -> None:
        self.entered.append(xsks_map_fd)

    def receive(self, budget: int = 64) -> list[bytes]:
        frames: list[bytes] = []
        while len(frames) < budget:
            try:
                frame = self._inside.recv(65536)
            except BlockingIOError:
                break
            if not frame:
                break
            frames.append(frame)
        return frames

    def send(self, frames: Sequence[bytes]) -> int:
        for frame in frames:
            self._inside.send(frame)
        return len(frames)

    def close(self) -> None:
        self.closed = True
        self._inside.close()


def await_that(condition: Callable[[], bool]) -> None:
    """Wait for another thread to make something true. Fails after a deadline that no healthy machine meets."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "did not come true"
        threading.Event().wait(0.001)
