"""Packets as they pass an interface: an AF_PACKET capture of our own, its frames, and pcap files of it."""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
import time
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from ipsec_gw.errors import IpsecGwError
from ipsec_gw.lab.netns import inside
from ipsec_gw.lab.oracle import EspPacket
from ipsec_gw.model.ids import IpAddress

ETH_P_ALL, ETH_P_IP = 0x0003, 0x0800
SO_RCVBUFFORCE, SO_TIMESTAMPNS = 33, 35
SOL_PACKET, PACKET_STATISTICS = 263, 6
PACKET_OUTGOING = 4
"""``linux/if_packet.h``: sent by this interface; all other types came in."""

ETHERNET_BYTES, IPV4_BYTES = 14, 20
IPV6_BYTES = 40
IPPROTO_ICMP, IPPROTO_TCP, IPPROTO_UDP, IPPROTO_ESP = 1, 6, 17, 50
UDP_BYTES, ESP_MINIMUM, PORT_NAT_T = 8, 8, 4500
RECEIVE_BYTES = 16 << 20
DRAIN_SECONDS = 0.1
"""Frames wait in the socket meanwhile: waking up for each of them costs too much under emulation."""

PCAP_NANOSECONDS, LINKTYPE_ETHERNET = 0xA1B23C4D, 1


@dataclass(frozen=True, slots=True)
class Frame:
    """An Ethernet frame: when (Unix time), on which interface, in which direction, what."""

    when: float
    interface: str
    outgoing: bool
    data: bytes

    @property
    def ipv4(self) -> bytes | None:
        """The IPv4 packet, trimmed to its own length (Ethernet pads short ones), or None."""
        data = self.data
        if len(data) < ETHERNET_BYTES + IPV4_BYTES or data[12:14] != b"\x08\x00" or data[14] >> 4 != 4:
            return None
        (length,) = struct.unpack_from(">H", data, ETHERNET_BYTES + 2)
        return data[ETHERNET_BYTES : ETHERNET_BYTES + length]

    @property
    def ipv6(self) -> bytes | None:
        """The IPv6 packet, trimmed to its own length, or None."""
        data = self.data
        if len(data) < ETHERNET_BYTES + IPV6_BYTES or data[12:14] != b"\x86\xdd" or data[14] >> 4 != 6:
            return None
        (length,) = struct.unpack_from(">H", data, ETHERNET_BYTES + 4)
        return data[ETHERNET_BYTES : ETHERNET_BYTES + IPV6_BYTES + length]

    @property
    def ip(self) -> bytes | None:
        """The IP packet of either version, or None."""
        return self.ipv4 or self.ipv6


@dataclass(frozen=True, slots=True)
class Header:
    """The parts of an IP header that the lab looks at; ``fragment`` is told of IPv4 alone."""

    source: IpAddress
    destination: IpAddress
    protocol: int
    header_bytes: int
    fragment: bool


def header(packet: bytes) -> Header:
    """Parse an IPv4 header (at least 20 bytes) or the fixed one of IPv6 (40)."""
    if packet[0] >> 4 == 6:
        return Header(ip_address(packet[8:24]), ip_address(packet[24:40]), packet[6], IPV6_BYTES, fragment=False)
    (offset_flags,) = struct.unpack_from(">H", packet, 6)
    return Header(
        source=ip_address(packet[12:16]),
        destination=ip_address(packet[16:20]),
        protocol=packet[9],
        header_bytes=(packet[0] & 0xF) * 4,
        fragment=bool(offset_flags & 0x3FFF),
    )


def esp_of(frame: Frame) -> EspPacket | None:
    """The ESP packet of a frame, bare or in UDP, or None for anything else and for fragments."""
    packet = frame.ip
    if packet is None:
        return None
    parsed = header(packet)
    if parsed.protocol not in (IPPROTO_ESP, IPPROTO_UDP) or parsed.fragment:
        return None
    payload = packet[parsed.header_bytes :]
    if parsed.protocol == IPPROTO_ESP:
        return EspPacket(parsed.source, parsed.destination, payload)
    return _esp_in_udp(parsed, payload)


def _esp_in_udp(parsed: Header, datagram: bytes) -> EspPacket | None:
    """RFC 3948: one end has port 4500. A keepalive has one byte, and IKE begins with four zeros."""
    if len(datagram) < UDP_BYTES + ESP_MINIMUM:
        return None
    source, destination, length = struct.unpack_from(">HHH", datagram)
    payload = datagram[UDP_BYTES:length]
    if PORT_NAT_T not in (source, destination) or payload[:4] in (b"", bytes(4)):
        return None
    return EspPacket(parsed.source, parsed.destination, payload, (source, destination))


def without_hops(packet: bytes) -> bytes:
    """An IP packet with TTL (hop limit) and header checksum blanked: equal at both ends of a path."""
    if packet[0] >> 4 == 6:
        return packet[:7] + b"\0" + packet[8:]
    return packet[:8] + b"\0" + packet[9:10] + b"\0\0" + packet[12:]


class Capture:
    """What passes one interface, from :meth:`start` on. Read :attr:`frames` after :meth:`drain`."""

    def __init__(self, namespace: str, interface: str) -> None:
        self.interface = interface
        self.frames: list[Frame] = []
        self._lost = 0
        with inside(namespace):
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BYTES)
        self._socket.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        self._socket.setblocking(False)
        self._socket.bind((interface, ETH_P_ALL))

    def drain(self) -> int:
        """Take in what arrived; returns how many frames."""
        taken = 0
        while True:
            try:
                data, ancillary, _, address = self._socket.recvmsg(65535, 64)
            except BlockingIOError:
                return taken
            except OSError as error:
                if error.errno != errno.ENETDOWN:  # told once when the interface goes down; it may come up again
                    raise
                continue
            when = time.time()
            for level, kind, value in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, SO_TIMESTAMPNS):
                    seconds, nanoseconds = struct.unpack("=qq", value[:16])
                    when = seconds + nanoseconds / 1e9
            self.frames.append(Frame(when, self.interface, address[2] == PACKET_OUTGOING, data))
            taken += 1

    def lost(self) -> int:
        """Frames that the kernel could not hand over since the start."""
        # The counter is reset by reading (packet(7)).
        statistics = self._socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8)
        self._lost += struct.unpack("=II", statistics)[1]
        return self._lost

    def close(self) -> None:
        """Stop capturing; the frames stay."""
        self._socket.close()


class Captures:
    """Several captures that are drained together until cancelled."""

    def __init__(self, captures: Iterable[Capture]) -> None:
        self.captures = tuple(captures)

    async def keep_draining(self) -> None:
        """Run as a task."""
        while True:
            self.drain()
            await asyncio.sleep(DRAIN_SECONDS)

    def drain(self) -> int:
        """Drain all; returns how many frames came."""
        return sum(capture.drain() for capture in self.captures)

    def lost(self) -> int:
        """Frames lost by any of them."""
        return sum(capture.lost() for capture in self.captures)

    def close(self) -> None:
        """Close all."""
        for capture in self.captures:
            capture.close()


def write_pcap(path: Path, frames: Iterable[Frame]) -> int:
    """Write frames in the order of their times as a pcap file with nanoseconds; returns their number."""
    ordered = sorted(frames, key=lambda frame: frame.when)
    with path.open("wb") as file:
        file.write(struct.pack("=IHHiIII", PCAP_NANOSECONDS, 2, 4, 0, 0, 65535, LINKTYPE_ETHERNET))
        for frame in ordered:
            seconds = int(frame.when)
            nanoseconds = int((frame.when - seconds) * 1e9)
            file.write(struct.pack("=IIII", seconds, nanoseconds, len(frame.data), len(frame.data)) + frame.data)
    return len(ordered)


def read_pcap(path: Path) -> list[Frame]:
    """Read :func:`write_pcap` back. Raises IpsecGwError for other files."""
    data = path.read_bytes()
    if len(data) < 24 or struct.unpack_from("=I", data)[0] != PCAP_NANOSECONDS:
        raise IpsecGwError(f"{path} is not a pcap file of this machine with nanoseconds - write it with write_pcap")
    frames, offset = [], 24
    while offset + 16 <= len(data):
        seconds, nanoseconds, length, _ = struct.unpack_from("=IIII", data, offset)
        frames.append(Frame(seconds + nanoseconds / 1e9, "", False, data[offset + 16 : offset + 16 + length]))
        offset += 16 + length
    return frames
