"""Packets that can be told from all others, and what became of each: through a tunnel, in clear, or dropped."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import struct
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import TracebackType
from typing import Self

from ipsec_gw.lab.capture import Capture, esp_of, header
from ipsec_gw.lab.matrix.ends import LISTENERS, PLACES, End
from ipsec_gw.lab.netns import inside, set_sysctl
from ipsec_gw.lab.packets import ipv4
from ipsec_gw.lab.topology import Role, Topology
from ipsec_gw.lab.traffic import SO_RCVBUFFORCE, checksum, echo_request, echo_request6
from ipsec_gw.model.ids import IpAddress

MARK = b"ipsec-gw matrix "
"""In the payload of every probe, before its number."""
_NUMBER = struct.Struct(">Q")
_IPV6_HDRINCL = 36
_IP_MTU_DISCOVER, _IP_PMTUDISC_DONT = 10, 0
_RST = 0x04
_NO_ERROR = "255"
"""An ICMPv6 type that nobody sends (RFC 4443 2.1), for a list that must not be empty."""
_GRE_OF_NOTHING = b"\0\0\x88\xb5"
"""RFC 2784 §2, with the EtherType that is for experiments (IEEE 802): nobody unpacks it."""
_RECEIVE_BYTES = 4 << 20
QUIET_SECONDS, ROUND_SECONDS, POLL_SECONDS = 0.5, 6.0, 0.03
"""A round of probes ends when nothing has come for so long, or at the latest after the second."""


class Protocol(StrEnum):
    """What a probe is: a datagram, a segment (RST: nobody answers it), an echo request, a GRE packet of nothing."""

    UDP = "udp"
    TCP = "tcp"
    ICMP = "icmp"
    GRE = "gre"

    def number(self, version: int) -> int:
        """Its number in an IP header of that version."""
        if self is Protocol.ICMP:
            return socket.IPPROTO_ICMP if version == 4 else socket.IPPROTO_ICMPV6
        return {Protocol.UDP: socket.IPPROTO_UDP, Protocol.TCP: socket.IPPROTO_TCP, Protocol.GRE: socket.IPPROTO_GRE}[
            self
        ]


@dataclass(frozen=True, slots=True)
class Probe:
    """A packet from one end to another. ``size`` is of its payload in bytes, ``hops`` its TTL as it leaves its sender,
    ``tos`` its traffic class (DSCP and ECN).

    It may be fragmented. A forger's has the server's address for its source.
    """

    source: End
    destination: End
    protocol: Protocol = Protocol.UDP
    port: int = 5000
    source_port: int = 40000
    version: int = 4
    size: int = 64
    hops: int = 64
    tos: int = 0

    def __str__(self) -> str:
        what = [f"{self.source} -> {self.destination} {self.protocol}"]
        if self.protocol in (Protocol.UDP, Protocol.TCP):
            what.append(f"{self.source_port}>{self.port}")
        what += ["IPv6"] * (self.version == 6) + [f"{self.size} bytes"] * (self.size != 64)
        what += [f"{self.hops} hops"] * (self.hops != 64) + [f"traffic class {self.tos:#04x}"] * bool(self.tos)
        return " ".join(what)

    @property
    def ends(self) -> tuple[IpAddress, IpAddress]:
        """Source and destination address."""
        return PLACES[self.source].address(self.version), PLACES[self.destination].address(self.version)


class Fate(StrEnum):
    """What became of a packet. Leaked: dropped, but it was seen on the WAN in clear."""

    TUNNEL = "through the tunnel"
    CLEAR = "in clear"
    DROPPED = "dropped"
    LEAKED = "leaked and dropped"
    TWICE = "delivered twice"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of probes, one by one, and with which traffic classes: of probes as they arrived (IPv4), and of the
    ESP packets of each gateway.
    """

    fates: tuple[Fate, ...]
    classes: frozenset[str]


@dataclass
class _Seen:
    arrived: Counter[int] = field(default_factory=Counter)
    clear: set[int] = field(default_factory=set)
    classes: set[str] = field(default_factory=set)


class Range:
    """Sends probes and says what became of them. Sockets of every kind are open at every end meanwhile."""

    _numbers = itertools.count(1)

    def __init__(self, topology: Topology) -> None:
        self._topology = topology
        self._stack = contextlib.ExitStack()
        self._ears: list[tuple[Role, socket.socket]] = []
        self._wan: list[Capture] = []

    def __enter__(self) -> Self:
        for role in LISTENERS:
            self._answer_always(role)
            self._ears += [(role, ear) for ear in self._listen(role)]
        self._wan = [Capture(self._topology.namespace(Role.WAN), name) for name in ("to-a", "to-b")]
        for capture in self._wan:
            self._stack.callback(capture.close)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _answer_always(self, role: Role) -> None:
        """A raw socket is no listener: the kernel answers probes with ICMP errors, whose ESP is seen as well. As many
        as its limits allow would depend on the machine's speed.
        """
        namespace = self._topology.namespace(role)
        set_sysctl(namespace, "net/ipv4/icmp_ratemask", "0")
        set_sysctl(namespace, "net/ipv6/icmp/ratemask", _NO_ERROR)

    def _listen(self, role: Role) -> list[socket.socket]:
        """A raw socket hears what has passed the kernel's policies for packets to itself (``raw_rcv``)."""
        ears = []
        with inside(self._topology.namespace(role)):
            for family, version in ((socket.AF_INET, 4), (socket.AF_INET6, 6)):
                for protocol in Protocol:
                    ear = self._stack.enter_context(socket.socket(family, socket.SOCK_RAW, protocol.number(version)))
                    ear.setblocking(False)
                    ear.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, _RECEIVE_BYTES)
                    ears.append(ear)
        return ears

    async def outcome(self, probes: Sequence[Probe]) -> Outcome:
        """Send all of them at once; what did not arrive has a second chance, as neighbours may have to be asked for."""
        seen = _Seen()
        first = await self._round(probes, seen)
        missing = [n for n, fate in enumerate(first) if fate in (Fate.DROPPED, Fate.LEAKED)]
        second = await self._round([probes[n] for n in missing], seen)
        for n, fate in zip(missing, second, strict=True):
            if fate is not Fate.DROPPED:
                first[n] = fate
        return Outcome(tuple(first), frozenset(seen.classes))

    async def _round(self, probes: Sequence[Probe], seen: _Seen) -> list[Fate]:
        self._drain(_Seen(), {})
        numbered = {next(self._numbers): probe for probe in probes}
        for number, probe in numbered.items():
            self._send(probe, number)
            self._drain(seen, numbered)
        await self._quiet(seen, numbered)
        return [_fate(number, seen) for number in numbered]

    async def _quiet(self, seen: _Seen, numbered: dict[int, Probe]) -> None:
        end = time.monotonic() + ROUND_SECONDS
        still, count = time.monotonic(), -1
        while time.monotonic() < end and time.monotonic() - still < QUIET_SECONDS:
            self._drain(seen, numbered)
            if count != (now := seen.arrived.total() + len(seen.clear)):
                still, count = time.monotonic(), now
            await asyncio.sleep(POLL_SECONDS)

    def _drain(self, seen: _Seen, numbered: dict[int, Probe]) -> None:
        for role, ear in self._ears:
            with contextlib.suppress(BlockingIOError):
                while True:
                    data = ear.recv(65535)
                    number = 0 if ear.family == socket.AF_INET and _is_of_device(data) else _number_in(data)
                    if number in numbered and PLACES[numbered[number].destination].role is role:
                        seen.arrived[number] += 1
                        if numbered[number].version == 4 and numbered[number].tos:  # the header is told in IPv4 alone
                            seen.classes.add(f"{numbered[number]} arrives with {data[1]:#04x}")
        for capture in self._wan:
            capture.drain()
            for frame in capture.frames:
                packet = frame.ip
                if packet and numbered and (esp := esp_of(frame)) is not None:
                    seen.classes.add(f"ESP of {esp.source} has {_traffic_class(packet):#04x}")
                number = _number_in(packet) if packet else 0
                if packet and number in numbered:
                    parsed = header(packet)
                    if (parsed.source, parsed.destination) == numbered[number].ends:
                        seen.clear.add(number)
            capture.frames.clear()

    def _send(self, probe: Probe, number: int) -> None:
        payload = (MARK + _NUMBER.pack(number)).ljust(probe.size, b"\0")
        with inside(self._topology.namespace(PLACES[probe.source].role)), contextlib.suppress(OSError):
            # What its own host refuses to send (a policy without an SA, no route) has been dropped.
            if probe.source is End.FORGER:
                _forge(probe, payload)
            else:
                _send_plainly(probe, payload)


def _fate(number: int, seen: _Seen) -> Fate:
    if seen.arrived[number] > 1:
        return Fate.TWICE
    if seen.arrived[number]:
        return Fate.CLEAR if number in seen.clear else Fate.TUNNEL
    return Fate.LEAKED if number in seen.clear else Fate.DROPPED


def _is_of_device(packet: bytes) -> bool:
    """An IPv4 packet that a GRE device has sent: what is inside is heard where it comes out."""
    start = (packet[0] & 0xF) * 4
    return packet[9] == socket.IPPROTO_GRE and packet[start : start + len(_GRE_OF_NOTHING)] != _GRE_OF_NOTHING


def _number_in(data: bytes) -> int:
    at = data.find(MARK)
    if at < 0 or len(data) < at + len(MARK) + _NUMBER.size:
        return 0
    (number,) = _NUMBER.unpack_from(data, at + len(MARK))
    return int(number)


def _traffic_class(packet: bytes) -> int:
    return packet[1] if packet[0] >> 4 == 4 else (packet[0] & 0xF) << 4 | packet[1] >> 4


def _send_plainly(probe: Probe, payload: bytes) -> None:
    family = socket.AF_INET if probe.version == 4 else socket.AF_INET6
    kind = socket.SOCK_DGRAM if probe.protocol is Protocol.UDP else socket.SOCK_RAW
    source, destination = probe.ends
    with socket.socket(family, kind, probe.protocol.number(probe.version)) as sender:
        if probe.version == 4:
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, probe.hops)
            sender.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_DONT)
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, probe.tos)
        else:
            sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, probe.hops)
            sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, probe.tos)
        udp = probe.protocol is Protocol.UDP
        sender.bind((str(source), probe.source_port if udp else 0))
        sender.sendto(payload if udp else _message(probe, payload), (str(destination), probe.port if udp else 0))


def _message(probe: Probe, payload: bytes) -> bytes:
    """What follows the IP header."""
    match probe.protocol:
        case Protocol.ICMP:
            return (echo_request if probe.version == 4 else echo_request6)(probe.source_port, probe.port, payload)
        case Protocol.TCP:
            ports = struct.pack(">HHIIBBH", probe.source_port, probe.port, 1, 1, 0x50, _RST, 0)
            return _summed(probe, ports + bytes(4) + payload, 16)
        case Protocol.UDP:
            ports = struct.pack(">HHHH", probe.source_port, probe.port, 8 + len(payload), 0)
            return _summed(probe, ports + payload, 6)
        case Protocol.GRE:
            return _GRE_OF_NOTHING + payload


def _summed(probe: Probe, bare: bytes, at: int) -> bytes:
    """With the checksum at its place (RFC 793, RFC 768; its pseudo header sums up alike in both IP versions)."""
    source, destination = probe.ends
    pseudo = source.packed + destination.packed + struct.pack(">HH", probe.protocol.number(probe.version), len(bare))
    return bare[:at] + struct.pack(">H", checksum(pseudo + bare)) + bare[at + 2 :]


def _forge(probe: Probe, payload: bytes) -> None:
    source, destination = probe.ends
    message = _message(probe, payload)
    number = probe.protocol.number(probe.version)
    if probe.version == 4:
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as sender:
            sender.sendto(ipv4(source, destination, number, message, 0), (str(destination), 0))
        return
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW) as sender:
        sender.setsockopt(socket.IPPROTO_IPV6, _IPV6_HDRINCL, 1)
        head = struct.pack(">IHBB", 6 << 28, len(message), number, 64)
        sender.sendto(head + source.packed + destination.packed + message, (str(destination), 0, 0, 0))
