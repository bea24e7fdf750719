"""The ``sessions`` map: batches of rows as numpy arrays, single entries and whole sessions as typed values.

A session has two entries of the same id, one for each direction. The key of the other one follows from what packets of
this one become.
"""

from __future__ import annotations

import ctypes
import errno
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ipsec_gw.model.ids import IpAddress
from xdp_steer import libbpf
from xdp_steer.flow_layout import FlowKeyLeaf, SessionFlag, SessionLeaf, State
from xdp_steer.layout import AddressLeaf

KEY = cast("np.dtype[np.void]", np.dtype(FlowKeyLeaf))
ROW = cast("np.dtype[np.void]", np.dtype(SessionLeaf))

ICMP, ICMP6 = 1, 58

_BATCH = 16384


@dataclass(frozen=True, slots=True)
class Flow:
    """One direction of a conversation. Ports in host order (of ICMP queries the identifier, twice).

    ``zone`` is where a packet comes from; of a translated flow, where it goes to.
    """

    source: IpAddress
    destination: IpAddress
    source_port: int
    destination_port: int
    protocol: int
    zone: int

    @classmethod
    def of(cls, leaf: FlowKeyLeaf) -> Flow:
        """The flow of a map key."""
        return _flow(leaf, leaf.protocol, leaf.zone)

    @classmethod
    def translated(cls, leaf: Any, key: FlowKeyLeaf) -> Flow:
        """What packets become, of a ``SessionLeaf`` or an ``EventLeaf``."""
        crosses = key.daddr.address().version != leaf.daddr.address().version
        return _flow(leaf, crossed(key.protocol) if crosses else key.protocol, leaf.out_zone)

    def leaf(self) -> FlowKeyLeaf:
        """The map key."""
        return FlowKeyLeaf(
            saddr=AddressLeaf.of(self.source),
            daddr=AddressLeaf.of(self.destination),
            sport=socket.htons(self.source_port),
            dport=socket.htons(self.destination_port),
            zone=self.zone,
            protocol=self.protocol,
        )

    def same_tuple(self, other: Flow) -> bool:
        """Equal but for the zone: nothing was translated."""
        mine = (self.source, self.destination, self.source_port, self.destination_port, self.protocol)
        return mine == (other.source, other.destination, other.source_port, other.destination_port, other.protocol)


def _flow(leaf: Any, protocol: int, zone: int) -> Flow:
    sport, dport = socket.ntohs(leaf.sport), socket.ntohs(leaf.dport)
    return Flow(leaf.saddr.address(), leaf.daddr.address(), sport, dport, protocol, zone)


@dataclass(frozen=True, slots=True)
class Traffic:
    """Packets, and their IP lengths summed up."""

    packets: int
    octets: int


NO_TRAFFIC = Traffic(0, 0)


@dataclass(frozen=True, slots=True)
class Session:
    """Both directions. ``flow`` is the first packet as it arrived, ``translated`` what it became.

    Times are CLOCK_MONOTONIC nanoseconds, ``last_seen_ns`` of the later direction; ``timeout`` is in seconds. ``rule``,
    ``snat_rule`` and ``dnat_rule`` are numbers of rules, 0 for none. ``reverse`` is zero if that entry is gone.
    """

    id: int
    flow: Flow
    translated: Flow
    state: State
    timeout: int
    created_ns: int
    last_seen_ns: int
    forward: Traffic
    reverse: Traffic
    rule: int
    snat_rule: int
    dnat_rule: int
    flags: SessionFlag

    @classmethod
    def of(cls, key: FlowKeyLeaf, forward: SessionLeaf, reverse: SessionLeaf | None) -> Session:
        """From the forward entry and, if there is one, the reverse entry."""
        back = Traffic(reverse.packets, reverse.octets) if reverse else Traffic(0, 0)
        return cls(
            id=forward.id,
            flow=Flow.of(key),
            translated=Flow.translated(forward, key),
            state=State(forward.state),
            timeout=forward.timeout,
            created_ns=forward.created_ns,
            last_seen_ns=max(forward.last_seen_ns, reverse.last_seen_ns if reverse else 0),
            forward=Traffic(forward.packets, forward.octets),
            reverse=back,
            rule=forward.rule,
            snat_rule=forward.snat_rule,
            dnat_rule=forward.dnat_rule,
            flags=SessionFlag(forward.flags),
        )


def partner_key(key: FlowKeyLeaf, row: SessionLeaf) -> FlowKeyLeaf:
    """The key of the other direction's entry."""
    protocol = crossed(key.protocol) if row.flags & SessionFlag.NAT64 else key.protocol
    return FlowKeyLeaf(
        saddr=row.daddr, daddr=row.saddr, sport=row.dport, dport=row.sport, zone=row.out_zone, protocol=protocol
    )


def crossed(protocol: int) -> int:
    """NAT64: the number of a protocol in the other family."""
    return {ICMP: ICMP6, ICMP6: ICMP}.get(protocol, protocol)


@dataclass(frozen=True, slots=True)
class Batch:
    """Entries of the map: ``keys`` (fields of ``FlowKeyLeaf``) and ``rows`` (of ``SessionLeaf``), equally long.

    The arrays are overwritten by the next batch: copy what is to stay.
    """

    keys: NDArray[np.void]
    rows: NDArray[np.void]

    @property
    def is_reverse(self) -> NDArray[np.bool_]:
        """Which entries are of the reverse direction."""
        found: NDArray[np.bool_] = (self.rows["flags"] & SessionFlag.REVERSE) != 0
        return found

    @staticmethod
    def key(keys: NDArray[np.void], index: int) -> FlowKeyLeaf:
        """One element of ``keys`` as a map key."""
        return FlowKeyLeaf.from_buffer_copy(keys[index].tobytes())


Predicate = Callable[[Batch], NDArray[np.bool_]]
"""Chooses entries of a batch."""


class SessionTable:
    """The map behind ``fd``, which stays the caller's. The kernel's refusals are raised as OSError."""

    def __init__(self, fd: int, batch: int = _BATCH) -> None:
        self._fd = fd
        self._batch = batch

    def batches(self) -> Iterator[Batch]:
        """Every entry that is there all the time, once; of those that come and go meanwhile, some."""
        size, token, first, done = self._batch, ctypes.c_uint32(), True, False
        keys, rows = np.empty(size, KEY), np.empty(size, ROW)
        while not done:
            try:
                count, done = libbpf.map_lookup_batch(self._fd, token, *_as_c(keys, rows), first=first)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                size *= 2  # a hash bucket must fit whole
                keys, rows = np.empty(size, KEY), np.empty(size, ROW)
                continue
            first = False
            yield Batch(keys[:count], rows[:count])

    def get(self, key: FlowKeyLeaf) -> SessionLeaf | None:
        """One entry, None if there is none."""
        try:
            return libbpf.map_lookup(self._fd, key, SessionLeaf())
        except FileNotFoundError:
            return None

    def partner(self, key: FlowKeyLeaf, row: SessionLeaf) -> SessionLeaf | None:
        """The other direction's entry, None if there is none of the same session."""
        other = self.get(partner_key(key, row))
        return other if other is not None and other.id == row.id else None

    def take(self, key: FlowKeyLeaf, session: int) -> SessionLeaf | None:
        """Remove an entry of that session: what it held in the end, None if somebody else removed it first."""
        try:
            row = libbpf.map_take(self._fd, key, SessionLeaf())
        except FileNotFoundError:
            return None
        if row.id == session:
            return row
        self.insert(key, row)  # the datapath put a new session in its place since we looked
        return None

    def insert(self, key: FlowKeyLeaf, row: SessionLeaf) -> bool:
        """Write a new entry; False, and nothing written, if there is one with that key."""
        try:
            libbpf.map_update(self._fd, key, row, libbpf.MAP_NOEXIST)
        except FileExistsError:
            return False
        return True

    def fill(self, keys: NDArray[np.void], rows: NDArray[np.void]) -> None:
        """Write many entries, in place of what was there."""
        libbpf.map_update_batch(
            self._fd, *_as_c(np.require(keys, KEY, ("C", "W")), np.require(rows, ROW, ("C", "W"))), len(keys)
        )

    def sessions(self, predicate: Predicate | None = None) -> Iterator[Session]:
        """Sessions whose forward entry the predicate chooses, in no order."""
        for batch in self.batches():
            chosen = ~batch.is_reverse
            if predicate is not None:
                chosen &= predicate(batch)
            for index in np.flatnonzero(chosen).tolist():
                key = Batch.key(batch.keys, index)
                row = SessionLeaf.from_buffer_copy(batch.rows[index].tobytes())
                yield Session.of(key, row, self.partner(key, row))


def _as_c(
    keys: NDArray[np.void], rows: NDArray[np.void]
) -> tuple[ctypes.Array[FlowKeyLeaf], ctypes.Array[SessionLeaf]]:
    """The same memory as ctypes arrays."""
    return (FlowKeyLeaf * len(keys)).from_buffer(keys.data), (SessionLeaf * len(rows)).from_buffer(rows.data)
