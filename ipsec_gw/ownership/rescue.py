"""What the guard held back while an SA changed hands is sent after all, by whoever owns the SA then.

Between charon's switch to a new outbound SA and the moment that its plaintext is led to the engine, the kernel encrypts
packets with a key that it must not use. The guard drops them, and keeps their frames. They have not left, so nothing of
the key was used up: we have the key, open them, and give the packets to the engine, which encrypts them with numbers of
its own. If the kernel keeps the SA, its frames are sent as they are, past the guard again, which counts them then.

An SA that was taken from an engine is another thing: its numbers may have been used. Its frames are lost.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Protocol

from ipsec_gw.engines.soft.drops import Dropped, DropReason
from ipsec_gw.engines.soft.esp import EspTransform, parse_header, strip_trailer
from ipsec_gw.engines.soft.packets import (
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    PROTOCOL_ESP,
    PROTOCOL_IPIP,
    PROTOCOL_IPV6,
    PROTOCOL_UDP,
    parse_frame,
    parse_udp,
)
from ipsec_gw.errors import EngineError
from ipsec_gw.model.ids import SaKey
from ipsec_gw.model.objects import EngineSa

MOST_FRAMES = 4096
PATIENCE_SECONDS = 10.0
"""As long as frames are kept by the guard: what is not decided by then comes too late for anybody."""

_ETHERTYPES = {PROTOCOL_IPIP: ETHERTYPE_IPV4, PROTOCOL_IPV6: ETHERTYPE_IPV6}


class Way(Enum):
    """Where the packets of an outbound SA go now."""

    ENGINE = auto()
    KERNEL = auto()
    WAIT = auto()
    NOWHERE = auto()


class Held(Protocol):
    """A frame as the guard kept it."""

    @property
    def key(self) -> SaKey:
        """Its SA."""

    @property
    def ifindex(self) -> int:
        """The interface that it was to leave by."""

    @property
    def seen_ns(self) -> int:
        """CLOCK_MONOTONIC."""

    @property
    def frame(self) -> bytes:
        """From the Ethernet header on."""


class Senders(Protocol):
    """Ways to send. Both raise OSError."""

    def to_engine(self, ethertype: int, packet: bytes) -> None:
        """Give an IP packet to the engine as plaintext of an accelerated tunnel."""

    def to_wan(self, ifindex: int, frame: bytes) -> None:
        """Send a frame by an interface, past the guard."""


@dataclass(frozen=True, slots=True)
class Rescued:
    """Frames that were held back since the daemon's start, by what became of them. ``waiting`` are undecided."""

    by_engine: int = 0
    by_kernel: int = 0
    lost: int = 0
    waiting: int = 0


class Rescue:
    """``way`` tells where packets of an SA go, ``sa`` what the engine has of it. Oldest frames are lost first where too
    many wait. ``clock`` is CLOCK_MONOTONIC in seconds.
    """

    def __init__(
        self,
        way: Callable[[SaKey], Way],
        sa: Callable[[SaKey], EngineSa | None],
        senders: Senders,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._way = way
        self._sa = sa
        self._senders = senders
        self._clock = clock
        self._frames: deque[Held] = deque()
        self._done: Counter[Way] = Counter()

    @property
    def rescued(self) -> Rescued:
        """The figures now."""
        done = Rescued(self._done[Way.ENGINE], self._done[Way.KERNEL], self._done[Way.NOWHERE])
        return replace(done, waiting=len(self._frames))

    def take(self, frames: Iterable[Held]) -> None:
        """Frames that the guard kept, in their order, and a look."""
        for frame in frames:
            if len(self._frames) >= MOST_FRAMES:
                self._frames.popleft()
                self._done[Way.NOWHERE] += 1
            self._frames.append(frame)
        self.look()

    def look(self) -> None:
        """Send what is decided, and give up what is too old."""
        if not self._frames:
            return
        ways = {key: self._way(key) for key in {frame.key for frame in self._frames}}
        opened: dict[SaKey, EspTransform | None] = {}
        waiting: deque[Held] = deque()
        too_old = int((self._clock() - PATIENCE_SECONDS) * 1e9)
        for frame in self._frames:
            way = ways[frame.key] if frame.seen_ns >= too_old else Way.NOWHERE
            if way is Way.WAIT:
                waiting.append(frame)
                continue
            if way is Way.ENGINE and frame.key not in opened:
                opened[frame.key] = self._transform(frame.key)
            self._done[self._send(frame, way, opened.get(frame.key))] += 1
        self._frames = waiting

    def _transform(self, key: SaKey) -> EspTransform | None:
        sa = self._sa(key)
        if sa is None:
            return None
        try:
            return EspTransform(key.spi, sa.algorithm, sa.secret, sa.salt, esn=sa.esn)
        except EngineError:  # an OpenSSL without ChaCha20
            return None

    def _send(self, frame: Held, way: Way, transform: EspTransform | None) -> Way:
        """What became of it."""
        try:
            if way is Way.KERNEL:
                self._senders.to_wan(frame.ifindex, frame.frame)
                return way
            if way is Way.ENGINE and transform is not None:
                self._senders.to_engine(*_plaintext(frame.frame, transform))
                return way
        except (OSError, Dropped):
            pass
        return Way.NOWHERE


def _plaintext(frame: bytes, transform: EspTransform) -> tuple[int, bytes]:
    """EtherType and packet in an ESP frame. Raises Dropped, also for a fragment: only the whole can be opened.

    A newborn SA's number has not reached 2^32: the upper half of an extended one is 0.
    """
    packet = parse_frame(frame)
    esp = packet.payload
    if packet.protocol == PROTOCOL_UDP:
        esp = parse_udp(esp)
    elif packet.protocol != PROTOCOL_ESP:
        raise Dropped(DropReason.NOT_ESP)
    payload = strip_trailer(transform.open(parse_header(esp).sequence, esp))
    if payload.next_header not in _ETHERTYPES:
        raise Dropped(DropReason.NEXT_HEADER)
    return _ETHERTYPES[payload.next_header], payload.data
