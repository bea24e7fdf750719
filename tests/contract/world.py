"""Two network namespaces: one with the engine under test, one where the test itself plays the peer gateway."""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from ipsec_gw.engines.port import EngineContext, Link
from xdp_steer import libbpf
from xdp_steer.dock import Role
from xdp_steer.gateway import Steering

CLONE_NEWNET = 0x40000000
XDP_FLAGS_DRV_MODE = 1 << 2
ETH_P_ALL = 3
SIOCGIFHWADDR = 0x8927
RECEIVE_SECONDS = 5.0
FRAME_BYTES = 65535
SOL_PACKET, PACKET_AUXDATA = 263, 8
TP_STATUS_VLAN_VALID = 1 << 4
AUXDATA = struct.Struct("=IIIHHHH")  # linux/if_packet.h: struct tpacket_auxdata
RECEIVE_BUFFER = 4 << 20

WAN = "wan0"
WAN_PEER = "wan0p"
UP_KERNEL = "ipsecgw-up"
UP_ENGINE = "ipsecgw-vp"
GATEWAY_MAC = "02:00:00:00:00:fe"

_libc = ctypes.CDLL(None, use_errno=True)
SOURCE = Path(__file__).with_name("steer_all.bpf.c")


def enter_namespace(path: str) -> None:
    """Move the calling thread (and what it starts) into a network namespace."""
    with Path(path).open() as namespace:
        if _libc.setns(namespace.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"setns {path}")


@contextmanager
def inside(path: str) -> Iterator[None]:
    """Be in a network namespace for a while."""
    with Path("/proc/thread-self/ns/net").open() as home:
        enter_namespace(path)
        try:
            yield
        finally:
            if _libc.setns(home.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns back")


class Wire:
    """One end of a wire, by AF_PACKET. Opened in the current namespace, usable from any."""

    def __init__(self, interface: str) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        self._socket.bind((interface, 0))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        self._socket.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
        self.mac = _mac(interface)

    def send(self, packet: Packet, destination: str) -> None:
        """Send an IP packet to a MAC."""
        self.send_raw(bytes(Ether(src=self.mac, dst=destination) / packet))

    def send_raw(self, frame: bytes) -> None:
        """Send a whole frame."""
        self._socket.send(frame)

    def receive(self, wanted: Callable[[Ether], bool], seconds: float = RECEIVE_SECONDS) -> Ether:
        """The next frame that is wanted; others are let go. Fails when the deadline passes."""
        deadline = time.monotonic() + seconds
        seen: list[str] = []
        while (left := deadline - time.monotonic()) > 0:
            if not select.select([self._socket], [], [], left)[0]:
                break
            data, told, _, address = self._socket.recvmsg(FRAME_BYTES, socket.CMSG_SPACE(AUXDATA.size))
            if address[2] == socket.PACKET_OUTGOING:
                continue
            frame = Ether(_tagged(data, told))
            if wanted(frame):
                return frame
            seen.append(frame.summary())
        raise AssertionError(f"nothing that was wanted arrived within {seconds} s; seen: {seen}")

    def flush(self) -> None:
        """Forget what has arrived so far."""
        while select.select([self._socket], [], [], 0)[0]:
            self._socket.recv(FRAME_BYTES)

    def close(self) -> None:
        self._socket.close()


class World:
    """The namespaces, the wires and the docks. ``enter`` is done by the fixture: the test runs in the gateway's."""

    def __init__(self, run_dir: Path, name: str, pins: Path | None = None) -> None:
        """With ``pins`` the docks are the product's own Steering, else the suite's stand-in."""
        self._pins = pins
        self._undo = ExitStack()
        self.gateway = f"ct-{name}-{os.getpid()}-gw"
        self.peer = f"ct-{name}-{os.getpid()}-peer"
        self.run_dir = run_dir
        self._maps: dict[str, int] = {}
        self.takings = 0

    async def _count_taking(self) -> None:
        self.takings += 1

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            self._build(undo)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def _build(self, undo: ExitStack) -> None:
        for namespace in (self.gateway, self.peer):
            _ip("netns", "add", namespace)
            undo.callback(_ip, "netns", "del", namespace)
            with inside(f"/run/netns/{namespace}"):
                Path("/proc/sys/net/ipv6/conf/default/disable_ipv6").write_text("1")
                Path("/proc/sys/net/ipv6/conf/all/disable_ipv6").write_text("1")
        _ip("link", "add", WAN, "netns", self.gateway, "type", "veth", "peer", "name", WAN_PEER, "netns", self.peer)
        _ip("-n", self.gateway, "link", "add", UP_KERNEL, "type", "veth", "peer", "name", UP_ENGINE)
        for namespace, interface in (
            (self.gateway, WAN),
            (self.peer, WAN_PEER),
            (self.gateway, UP_KERNEL),
            (self.gateway, UP_ENGINE),
        ):
            _ip("-n", namespace, "link", "set", interface, "arp", "off", "up")
        with inside(f"/run/netns/{self.peer}"):
            self.wan = Wire(WAN_PEER)
            undo.callback(self.wan.close)
        undo.enter_context(inside(f"/run/netns/{self.gateway}"))
        self.up = Wire(UP_KERNEL)
        undo.callback(self.up.close)
        if self._pins is None:
            for interface, everything in ((WAN, False), (UP_ENGINE, True)):
                self._dock(interface, everything, undo)
        else:
            self._steer(self._pins, undo)
        self.context = EngineContext(
            run_dir=self.run_dir,
            wan=(_link(WAN),),
            up_kernel=_link(UP_KERNEL),
            up_engine=_link(UP_ENGINE),
            xsks_map=lambda name: self._maps[name],
            taking=self._count_taking,
        )

    def _dock(self, interface: str, everything: bool, undo: ExitStack) -> None:
        compiled = self.run_dir / f"steer-{interface}.bpf.o"
        include = f"-I/usr/include/{os.uname().machine}-linux-gnu"
        options = ["-DSTEER_ALL"] if everything else []
        command = ["clang", "-O2", "-g", "-target", "bpf", include, *options, "-c", str(SOURCE), "-o", str(compiled)]
        subprocess.run(command, check=True)
        program = libbpf.BpfObject(compiled, {})
        undo.callback(program.close)
        link = libbpf.link_xdp(program.program("xsk_def_prog"), socket.if_nametoindex(interface), XDP_FLAGS_DRV_MODE)
        undo.callback(os.close, link)
        self._maps[interface] = program.map("xsks_map")

    def _steer(self, pins: Path, undo: ExitStack) -> None:
        self.steering = Steering.open(pins)
        undo.callback(self.steering.remove)
        for interface, role in ((WAN, Role.WAN), (UP_ENGINE, Role.TO_ENGINE)):
            self.steering.dock(interface, role)
            self._maps[interface] = self.steering.xsks_map(interface)
        self.steering.set_engine(True)

    def to_engine_wan(self, packet: Packet) -> None:
        """Let a packet arrive on the gateway's WAN."""
        self.wan.send(packet, self.context.wan[0].mac)

    def to_engine_up(self, packet: Packet) -> None:
        """Let the kernel send a packet into the veth pair, towards the engine."""
        self.up.send(packet, self.context.up_engine.mac)

    def plaintext(self, wanted: Callable[[IP], bool]) -> Ether:
        """What the engine decrypted and gave to the kernel."""
        return self.up.receive(lambda frame: IP in frame and wanted(frame[IP]))

    def ciphertext(self, spi: int) -> Ether:
        """What the engine encrypted with this SPI and sent to the peer."""
        return self.wan.receive(lambda frame: UDP not in frame and _spi(frame.payload) == spi)

    def datagram(self, spi: int) -> Ether:
        """The same, encrypted into UDP."""
        return self.wan.receive(lambda frame: UDP in frame and _spi(frame[UDP]) == spi)


def _tagged(data: bytes, told: list[tuple[int, int, bytes]]) -> bytes:
    """The frame as it was on the wire: the kernel keeps its VLAN tag beside it."""
    for level, kind, value in told:
        if (level, kind) == (SOL_PACKET, PACKET_AUXDATA):
            status, _, _, _, _, tag, protocol = AUXDATA.unpack(value[: AUXDATA.size])
            if status & TP_STATUS_VLAN_VALID:
                return data[:12] + struct.pack("!HH", protocol, tag) + data[12:]
    return data


def _spi(packet: Packet) -> int | None:
    """The SPI of an ESP packet, bare or what follows a UDP header, None for any other."""
    if UDP not in packet and packet.fields.get("proto", packet.fields.get("nh")) != 50:
        return None
    return int.from_bytes(bytes(packet.payload)[:4], "big")


def _link(interface: str) -> Link:
    return Link(interface, _mac(interface), 1500)


def _mac(interface: str) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = fcntl.ioctl(any_socket, SIOCGIFHWADDR, interface.encode().ljust(256, b"\0"))
    return request[18:24].hex(":")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)
