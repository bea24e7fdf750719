"""Packets that the guard has held back go on their way as soon as it is known who owns their SA.

At the birth of a tunnel, on the way back to an engine and on the way from it, the kernel encrypts for a moment packets
that it must not send. None of their numbers has reached the wire, so each packet may still go either way, and exactly
one: if the engine carries the SA, it is opened and its plaintext takes the way of led packets; if the kernel keeps the
SA, it leaves as it is, past the guard, which counts it.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import structlog

from ipsec_gw.engines.soft.device_header import Wrapping
from ipsec_gw.engines.soft.drops import Dropped, DropReason
from ipsec_gw.engines.soft.esp import EspTransform, parse_header, strip_trailer
from ipsec_gw.engines.soft.gre import unwrap
from ipsec_gw.engines.soft.packets import parse_ipv4, with_payload
from ipsec_gw.errors import EngineError, IpsecGwError
from ipsec_gw.model.ids import Direction, SaKey
from ipsec_gw.model.objects import AnyLead, DeviceHeader, EngineSa, ManagedObject, ObjectKey, Steer, Tunnel
from ipsec_gw.model.sizes import GRE_HEADER
from ipsec_gw.model.warmth import NOTHING, Volume

DECISION_SECONDS = 10.0
"""How much longer a packet may wait than the guard holds an SA back that nobody decides on."""

EVERY_NUMBER = (1 << 32) - 1
"""The last sequence number: none of what waits is above it."""

MOST = 8192
"""Packets that wait at a time, of 2 KiB at most."""

IPPROTO_IPIP, IPPROTO_IPV6, IPPROTO_GRE = 4, 41, 47
"""Next headers of ESP in tunnel mode, which those of an IPIP device look like, and before what a GRE device sends."""

_IPV4_HEADER, _IPV6_HEADER = 20, 40

log = structlog.get_logger()


class Waiting(Protocol):
    """A packet that the guard has held back; see :class:`xdp_steer.waiting.WaitingPacket`."""

    @property
    def key(self) -> SaKey:
        """The outbound SA that it was encrypted with."""

    @property
    def seen_ns(self) -> int:
        """CLOCK_MONOTONIC."""

    @property
    def ifindex(self) -> int:
        """The interface that it was to leave by."""

    @property
    def l3(self) -> int:
        """Where its IP header begins; 0: it has no Ethernet header."""

    @property
    def esp(self) -> int:
        """Where ESP begins."""

    @property
    def frame(self) -> bytes:
        """All of it."""


class Ways(Protocol):
    """Where packets can go. Both raise OSError for one that is not taken."""

    def to_engine(self, packet: bytes, vlan: int) -> None:
        """A clear IP packet, by the way that leads lead; ``vlan`` stands for an XFRM interface, 0 for none."""

    def to_wire(self, ifindex: int, frame: bytes) -> None:
        """An Ethernet frame, out by an interface, past its guard."""


@dataclass(slots=True)
class Passage:
    """Packets that went to the engine, to the wire, and nowhere, so far."""

    to_engine: int = 0
    to_wire: int = 0
    lost: int = 0


class WaitingRoom:
    """``is_released`` tells whether the kernel may send with an SA, ``is_claimed`` whether an engine may; ``carried``
    gives the outbound SA of a tunnel that the engine has whole, leads included, and None for any other.

    ``forsaken`` is called with a claimed SA for which neither has come about in time: the kernel encrypts with it by a
    policy that names no SA, and so no engine knows what belongs to it.

    ``hold`` are the seconds for which the guard holds an SA back that nobody decides on: then the kernel sends with it,
    and so does what has waited. Of a claimed one packets wait for DECISION_SECONDS more. ``clock_ns`` is
    CLOCK_MONOTONIC.
    """

    def __init__(
        self,
        ways: Ways,
        *,
        is_released: Callable[[SaKey], bool],
        is_claimed: Callable[[SaKey], bool],
        carried: Callable[[SaKey], Carried | None],
        tell: Callable[[str], None],
        forsaken: Callable[[SaKey], None],
        hold: float,
        clock_ns: Callable[[], int] = lambda: time.clock_gettime_ns(time.CLOCK_MONOTONIC),
    ) -> None:
        self._ways = ways
        self._is_released = is_released
        self._is_claimed = is_claimed
        self._carried = carried
        self._tell = tell
        self._forsaken = forsaken
        self._clock_ns = clock_ns
        self._hold_ns = int(hold * 1e9)
        self._patience_ns = int((hold + DECISION_SECONDS) * 1e9)
        self._waiting: dict[SaKey, deque[Waiting]] = defaultdict(deque)
        self._floors: dict[SaKey, int] = {}
        self._missed: set[SaKey] = set()
        self._count = 0
        self._through: dict[SaKey, Volume] = {}
        self._lossy: set[SaKey] = set()
        self.passage = Passage()

    def add(self, packets: Iterable[Waiting]) -> None:
        """Let packets wait; those that find no room are lost. Then :meth:`settle`."""
        for packet in packets:
            if self._count == MOST:
                self.passage.lost += 1
                continue
            self._waiting[packet.key].append(packet)
            self._count += 1
        self.settle()

    def through(self, key: SaKey) -> Volume:
        """What waited and went on its way in the end, of an outbound SA; octets of what went to the engine alone."""
        return self._through.get(key, NOTHING)

    def forget(self, alive: Container[SaKey]) -> None:
        """Forget SAs that are gone. What waits of one leaves: no engine can get it, and the peer may still take it.
        ``alive`` may be older than an SA whose packets wait already, so it takes two of them.
        """
        self._through = {key: volume for key, volume in self._through.items() if key in alive}
        self._lossy = {key for key in self._lossy if key in alive}
        gone = {key for key in self._waiting if key not in alive}
        for key in gone & self._missed:
            if self._is_nobodys(key):
                self.send(key)
        self._missed = gone & self._waiting.keys()

    def settle(self) -> None:
        """Send what can be sent, and give up what has waited for too long."""
        oldest = self._clock_ns() - self._patience_ns
        self._floors = {key: above for key, above in self._floors.items() if self._may_send(key, unknown=True)}
        for key in list(self._waiting):
            packets = self._waiting.pop(key)
            self._count -= len(packets)
            self._decide(key, packets)
            self._give_up(key, packets, oldest)
            if packets:
                self._waiting[key] = packets
                self._count += len(packets)

    def send(self, key: SaKey, above: int = 0) -> None:
        """The kernel is about to get an SA: what waits of it leaves first. Numbers up to ``above`` are an engine's:
        what has one of them is lost, now and later.
        """
        packets = self._waiting.pop(key, deque())
        if above:
            self._floors[key] = above
        self._count -= len(packets)
        while packets:
            self._to_wire(packets.popleft())

    def _give_up(self, key: SaKey, packets: deque[Waiting], oldest: int) -> None:
        if packets and packets[0].seen_ns < oldest:
            self._forsaken(key)
        while packets and packets[0].seen_ns < oldest:
            self._lose(packets.popleft(), "it waited for too long")

    def _decide(self, key: SaKey, packets: deque[Waiting]) -> None:
        """Send all of them if their way is known."""
        carried = self._carried(key)
        if carried is not None:
            transform = self._transform(carried.sa)
            while packets:
                self._to_engine(transform, packets.popleft(), carried)
        elif self._may_send(key) or self._held_no_more(key, packets):
            while packets:
                self._to_wire(packets.popleft())

    def _held_no_more(self, key: SaKey, packets: deque[Waiting]) -> bool:
        """Nobody has decided in time, most likely because the SA came and went faster than anybody looked."""
        return bool(packets) and packets[0].seen_ns < self._clock_ns() - self._hold_ns and self._is_nobodys(key)

    def _is_nobodys(self, key: SaKey) -> bool:
        try:
            return not self._is_claimed(key)
        except IpsecGwError:
            return False  # :meth:`_may_send` has told

    def _transform(self, sa: EngineSa) -> EspTransform | None:
        try:
            return EspTransform(sa.key.spi, sa.algorithm, sa.secret, sa.salt, esn=sa.esn)
        except EngineError as error:
            self._tell(f"what was held back of SA {sa.key} is lost, it cannot be opened: {error}")
            return None

    def _may_send(self, key: SaKey, *, unknown: bool = False) -> bool:
        try:
            return self._is_released(key)
        except IpsecGwError as error:
            self._tell(f"it is not known who owns SA {key}, what was held back of it waits: {error}")
            return unknown

    def _to_engine(self, transform: EspTransform | None, packet: Waiting, carried: Carried) -> None:
        try:
            if transform is None:
                raise Dropped(DropReason.AUTHENTICATION)
            header = packet.frame[packet.l3 : packet.esp] if carried.sa.transport else b""
            inner = opened(transform, packet.frame[packet.esp :], header)
            self._ways.to_engine(carried.unwrapped(inner), carried.vlan)
        except (Dropped, OSError) as error:
            self._lose(packet, str(error))
        else:
            self.passage.to_engine += 1
            octets = len(inner) - len(header) + (GRE_HEADER if carried.sa.gre else 0)
            self._through[packet.key] = self.through(packet.key).plus(Volume(1, octets))

    def _to_wire(self, packet: Waiting) -> None:
        try:
            if packet.l3 == 0:
                raise OSError("its interface has no Ethernet")
            if _number(packet) <= self._floors.get(packet.key, 0):
                raise OSError("an engine may have used its number")
            self._ways.to_wire(packet.ifindex, packet.frame)
        except OSError as error:
            self._lose(packet, str(error))
        else:
            self.passage.to_wire += 1
            self._through[packet.key] = self.through(packet.key).plus(Volume(1, 0))

    def _lose(self, packet: Waiting, why: str) -> None:
        self.passage.lost += 1
        if packet.key not in self._lossy:
            self._lossy.add(packet.key)
            log.info("a packet that waited is lost, more may follow", sa=str(packet.key), reason=why)


def _number(packet: Waiting) -> int:
    """Its sequence number. The upper half of an ESN is taken for zero, as in :func:`opened`."""
    return int.from_bytes(packet.frame[packet.esp + 4 : packet.esp + 8], "big")


def opened(transform: EspTransform, esp: bytes, header: bytes = b"") -> bytes:
    """The IP packet inside ESP that this kernel made. Raises Dropped if there is none. Of transport mode it is behind
    the IPv4 ``header`` that ESP has.

    The upper half of an ESN is taken for zero: an SA that changes hands is younger than 2^32 packets.
    """
    payload = strip_trailer(transform.open(parse_header(esp).sequence, esp))
    if header:
        # Alone it would be shorter than it says.
        outer = parse_ipv4(header + bytes(int.from_bytes(header[2:4], "big") - len(header)))
        return with_payload(outer, payload.next_header, payload.data)
    if payload.next_header == IPPROTO_GRE:
        payload = unwrap(payload)
    version = payload.data[0] >> 4 if payload.data else 0
    if payload.next_header == IPPROTO_IPIP and version == 4 and len(payload.data) >= _IPV4_HEADER:
        return payload.data[: int.from_bytes(payload.data[2:4], "big")]
    if payload.next_header == IPPROTO_IPV6 and version == 6 and len(payload.data) >= _IPV6_HEADER:
        return payload.data[: _IPV6_HEADER + int.from_bytes(payload.data[4:6], "big")]
    raise Dropped(DropReason.NEXT_HEADER)


@dataclass(frozen=True, slots=True)
class Carried:
    """An outbound SA that the engine has, and the VLAN ID that its plaintext needs on the way there, 0 for none; with
    the ``header`` of a device that the kernel has put around it, and the engine is to.
    """

    sa: EngineSa
    vlan: int
    header: DeviceHeader | None = None

    def unwrapped(self, packet: bytes) -> bytes:
        """What the engine takes of a packet. Raises Dropped for what is not the device's, or a piece of a packet."""
        if self.header is None:
            return packet
        wrapping, whole = Wrapping.of(self.header), parse_ipv4(packet)
        inside = wrapping.unwrap(whole) if wrapping.sends(whole) else None
        if inside is None:
            raise Dropped(DropReason.NEXT_HEADER)
        return inside.data


def had_alone(in_place: Mapping[ObjectKey, ManagedObject]) -> frozenset[SaKey]:
    """SAs that bring no packet to the kernel any more: inbound ones that are steered, and the outbound ones of tunnels
    with all of their leads.
    """
    steered = {value.key.sa for value in in_place.values() if isinstance(value, Steer)}
    led = {value.outbound for value in in_place.values() if isinstance(value, Tunnel) and _led(value, in_place)}
    return frozenset(steered | led)


def _led(tunnel: Tunnel, in_place: Mapping[ObjectKey, ManagedObject]) -> bool:
    return all(isinstance(in_place.get(lead), AnyLead) for lead in tunnel.leads)


def carried(
    key: SaKey, in_place: Mapping[ObjectKey, ManagedObject], wanted: Mapping[ObjectKey, ManagedObject]
) -> Carried | None:
    """The outbound SA of a tunnel that is in place with all of its leads, as it is ``wanted``: with its key."""
    tunnel = next((o for o in in_place.values() if isinstance(o, Tunnel) and o.outbound == key), None)
    if tunnel is None or not _led(tunnel, in_place):
        return None
    sa = wanted.get(key)
    if not isinstance(sa, EngineSa) or sa.direction is not Direction.OUT:
        return None
    return Carried(sa, 0 if tunnel.interface is None else tunnel.interface.vlan, tunnel.header)
