"""Events of the datapath out of its ring buffer: sessions opened and closed there, packets denied."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass

from xdp_steer import libbpf
from xdp_steer.flow_layout import EventKind, EventLeaf
from xdp_steer.sessions import NO_TRAFFIC, Flow, Traffic

_EVENT_BYTES = ctypes.sizeof(EventLeaf)


@dataclass(frozen=True, slots=True)
class Event:
    """What the datapath reports. ``time_ns`` is CLOCK_MONOTONIC, ``session`` 0 for a packet of none.

    ``flow`` is the first packet of the session, or the denied one; ``translated`` what it became, or was about to.
    ``rule`` is 0 if no rule decided; ``reason`` is a number of :class:`xdp_steer.reasons.Reason` or 0, of a CLOSE a
    :class:`xdp_steer.flow_layout.State` (TIME_WAIT, CLOSED) or 0 for an idle session. What follows is of a CLOSE alone.
    """

    kind: EventKind
    time_ns: int
    session: int
    flow: Flow
    translated: Flow
    rule: int
    reason: int
    source_rule: int = 0
    destination_rule: int = 0
    created_ns: int = 0
    forward: Traffic = NO_TRAFFIC
    reverse: Traffic = NO_TRAFFIC

    @classmethod
    def of(cls, raw: bytes) -> Event:
        """Decode one record. Raises ValueError for another length or an unknown kind."""
        if len(raw) != _EVENT_BYTES:
            raise ValueError(f"an event of {len(raw)} bytes, expected {_EVENT_BYTES}")
        leaf = EventLeaf.from_buffer_copy(raw)
        return cls(
            kind=EventKind(leaf.kind),
            time_ns=leaf.time_ns,
            session=leaf.session,
            flow=Flow.of(leaf.key),
            translated=Flow.translated(leaf, leaf.key),
            rule=leaf.rule,
            reason=leaf.reason,
            source_rule=leaf.snat_rule,
            destination_rule=leaf.dnat_rule,
            created_ns=leaf.created_ns,
            forward=Traffic(leaf.packets, leaf.octets),
            reverse=Traffic(leaf.back_packets, leaf.back_octets),
        )


@dataclass(frozen=True, slots=True)
class Drained:
    """One reading: ``events`` in their order; ``lost`` since the last reading, for the ring was full; ``malformed``
    records that could not be decoded (the datapath is of another version).
    """

    events: tuple[Event, ...]
    lost: int
    malformed: int


def lost_events(fd: int) -> int:
    """How many events the datapath could not put into its full ring since its maps were made: the counter map ``fd``,
    over all CPUs.
    """
    counts = (ctypes.c_uint64 * libbpf.possible_cpus())()
    libbpf.map_lookup(fd, ctypes.c_uint32(0), counts)
    return sum(counts)


class EventReader:
    """Reads the ring buffer map behind ``fd``, which stays the caller's; nobody else may read it meanwhile.

    For asyncio: ``loop.add_reader(reader, callback)``; it stays readable until everything is read. ``lost`` returns how
    many events the datapath could not put into the ring since it was loaded. Raises OSError if the map is no ring.
    """

    def __init__(self, fd: int, lost: Callable[[], int] = lambda: 0) -> None:
        self._ring = libbpf.RingBuffer(fd)
        self._lost = lost
        self._lost_before = lost()

    def fileno(self) -> int:
        """Readable while there are events."""
        return self._ring.fileno()

    def read(self, limit: int = 4096) -> Drained:
        """Up to ``limit`` records; never waits."""
        events: list[Event] = []
        malformed = 0
        for raw in self._ring.consume(limit):
            try:
                events.append(Event.of(raw))
            except ValueError:
                malformed += 1
        return Drained(tuple(events), self._newly_lost(), malformed)

    def _newly_lost(self) -> int:
        now = self._lost()
        before, self._lost_before = self._lost_before, now
        return now - before if now >= before else now  # a reloaded datapath counts from 0

    def close(self) -> None:
        """Give the ring back. What was not read stays in it."""
        self._ring.close()
