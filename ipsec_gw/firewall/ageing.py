"""Which sessions end, and why: decisions on rows of the session map, the time passed in.

All times are CLOCK_MONOTONIC nanoseconds. A session is idle for as long as its later direction is.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum, unique
from ipaddress import IPv4Address

import numpy as np
from numpy.typing import NDArray

from ipsec_gw.model.firewall import Sessions
from ipsec_gw.model.ids import IpAddress, IpNetwork
from xdp_steer.flow_layout import SessionFlag, SessionLeaf, State
from xdp_steer.layout import AddressLeaf
from xdp_steer.sessions import KEY, Batch, Session

SECOND = 1_000_000_000
GRACE_SECONDS = 2
"""A session stays that much longer than its timeout: the datapath, which takes it for ended already, goes first."""
ORPHAN_SECONDS = 5
"""An entry without its partner is not just being made or removed when it is older."""
MIN_INTERVAL = 1.0
MAX_INTERVAL = 30.0
SUSPECT_INTERVAL = 5.0
RECOUNT_INTERVAL = 10.0
"""While there are limits of sessions: what their counts were off by is put right."""
PRESSED_REST = 2.0
REST = 19.0
"""Rest after a sweep, as a multiple of what it took: 5 percent of one CPU at most, a third of one under pressure."""
NO_CAP = 1 << 32
"""Seconds: above every timeout."""

Ids = NDArray[np.uint64]


@unique
class CloseReason(StrEnum):
    """Why a session ended."""

    IDLE = "idle"
    TCP_FIN = "tcp-fin"
    TCP_RST = "tcp-rst"
    AGED_OUT = "aged-out"
    """Before its time, since the table was filling up."""
    POLICY_REMOVED = "policy-removed"
    CLEARED = "cleared"
    ORPHAN = "orphan"
    """Its reverse entry was missing."""


@dataclass(frozen=True, slots=True)
class Close:
    """The end of a session, with its last counters. There is exactly one for every session that the collector ends."""

    session: Session
    reason: CloseReason
    ended_ns: int

    @property
    def duration_ns(self) -> int:
        """From its first packet to its end, the idle time included."""
        return max(self.ended_ns - self.session.created_ns, 0)

    @property
    def logged(self) -> bool:
        """Whether its policy wants the end logged."""
        return SessionFlag.LOG_CLOSE in self.session.flags


@dataclass(frozen=True, slots=True)
class Counts:
    """Sessions in the table, all and by state and by ingress zone; ``maximum`` is how many there may be."""

    sessions: int = 0
    maximum: int = 0
    by_state: Mapping[State, int] = field(default_factory=dict)
    by_zone: Mapping[int, int] = field(default_factory=dict)

    @property
    def utilisation(self) -> float:
        """Percent of the maximum."""
        return 100 * self.sessions / self.maximum if self.maximum else 0.0

    def without(self, ended: Iterable[Session]) -> Counts:
        """What is left when these are gone."""
        gone = list(ended)
        states = Counter(self.by_state) - Counter(session.state for session in gone)
        zones = Counter(self.by_zone) - Counter(session.flow.zone for session in gone)
        return Counts(max(self.sessions - len(gone), 0), self.maximum, dict(states), dict(zones))


@dataclass(frozen=True, slots=True)
class Filter:
    """Chooses sessions by what everything given says; nothing given chooses all.

    ``zone`` is the one a session comes from or goes to, one of ``zones`` likewise; ``prefix`` and ``port`` are of
    either end, before or after translation, ``rules`` are numbers of policies and NAT rules of which the session has
    one. It began between ``after_ns`` and ``before_ns``; its id is one of ``ids``.
    """

    zone: int | None = None
    zones: frozenset[int] | None = None
    after_ns: int | None = None
    before_ns: int | None = None
    ids: frozenset[int] | None = None
    prefix: IpNetwork | None = None
    port: int | None = None
    protocol: int | None = None
    rules: frozenset[int] | None = None

    def __call__(self, batch: Batch) -> NDArray[np.bool_]:
        """Which entries it chooses: a :data:`xdp_steer.sessions.Predicate`."""
        keys, rows = batch.keys, batch.rows
        chosen = np.ones(len(keys), np.bool_)
        if self.zone is not None:
            chosen &= (keys["zone"] == self.zone) | (rows["out_zone"] == self.zone)
        if self.zones is not None:
            wanted = np.array(sorted(self.zones), np.uint16)
            chosen &= np.isin(keys["zone"], wanted) | np.isin(rows["out_zone"], wanted)
        if self.after_ns is not None:
            chosen &= rows["created_ns"] >= np.uint64(max(self.after_ns, 0))
        if self.before_ns is not None:
            chosen &= rows["created_ns"] <= np.uint64(max(self.before_ns, 0))
        if self.ids is not None:
            chosen &= np.isin(rows["id"], np.array(sorted(self.ids), np.uint64))
        if self.protocol is not None:
            chosen &= keys["protocol"] == self.protocol
        if self.port is not None:
            port = int.from_bytes(self.port.to_bytes(2, "big"), sys.byteorder)
            chosen &= np.logical_or.reduce([part[side] == port for part in (keys, rows) for side in ("sport", "dport")])
        if self.prefix is not None:
            inside = [_inside(part[side], self.prefix) for part in (keys, rows) for side in ("saddr", "daddr")]
            chosen &= np.logical_or.reduce(inside)
        if self.rules is not None:
            numbers = list(self.rules - {0})
            chosen &= np.logical_or.reduce(
                [np.isin(rows[name], numbers) for name in ("rule", "snat_rule", "dnat_rule")]
            )
        return chosen


def _inside(addresses: NDArray[np.void], prefix: IpNetwork) -> NDArray[np.bool_]:
    if prefix.version == 4:
        return _match(addresses, prefix.network_address, 96 + prefix.prefixlen)
    return _match(addresses, prefix.network_address, prefix.prefixlen) & ~_match(addresses, IPv4Address(0), 96)


def _match(addresses: NDArray[np.void], network: IpAddress, bits: int) -> NDArray[np.bool_]:
    mask = np.frombuffer(((1 << 128) - (1 << (128 - bits))).to_bytes(16, "big"), np.uint32)
    words = np.array(AddressLeaf.of(network).addr, np.uint32)
    found: NDArray[np.bool_] = ((addresses["addr"] & mask) == words).all(axis=1)
    return found


class Columns:
    """What one sweep keeps of each entry: its id and when it is over, and the keys of those that are."""

    def __init__(self, now_ns: int, cap: int, suspects: Ids) -> None:
        self._now, self._cap, self._suspects = now_ns, cap, suspects
        self._parts: dict[bool, list[tuple[Ids, Ids, NDArray[np.void]]]] = {False: [], True: []}
        self._suspect_keys = [np.empty(0, KEY)]
        self._states = np.zeros(256, np.int64)
        self._zones = np.zeros(1 << 16, np.int64)

    def add(self, batch: Batch) -> None:
        """Take what is needed of a batch."""
        limits = np.minimum(batch.rows["timeout"].astype(np.uint64), np.uint64(self._cap)) + np.uint64(GRACE_SECONDS)
        ends = batch.rows["last_seen_ns"] + limits * np.uint64(SECOND)
        ids = batch.rows["id"].copy()
        over = ends < self._now
        reverse = batch.is_reverse
        forward = ~reverse
        self._parts[False].append((ids[forward], ends[forward], batch.keys[over & forward]))
        self._parts[True].append((ids[reverse], ends[reverse], np.empty(0, KEY)))
        if self._suspects.size:
            self._suspect_keys.append(batch.keys[np.isin(ids, self._suspects)])
        self._states += np.bincount(batch.rows["state"][forward], minlength=256)
        zones = np.bincount(batch.keys["zone"][forward])
        self._zones[: len(zones)] += zones

    def _column(self, reverse: bool, column: int) -> Ids:
        return np.concatenate([np.empty(0, np.uint64), *(part[column] for part in self._parts[reverse])])

    def counts(self, maximum: int) -> Counts:
        """The sessions that were there."""
        return Counts(
            sessions=int(self._states.sum()),
            maximum=maximum,
            by_state={State(state): int(self._states[state]) for state in np.flatnonzero(self._states).tolist()},
            by_zone={zone: int(self._zones[zone]) for zone in np.flatnonzero(self._zones).tolist()},
        )

    def result(self) -> Findings:
        """Join both directions by id."""
        ids, ends = self._column(False, 0), self._column(False, 1)
        back_ids, back_ends = self._column(True, 0), self._column(True, 1)
        over = ends < self._now
        candidates = ids[over]
        keys = np.concatenate([np.empty(0, KEY), *(part[2] for part in self._parts[False])])
        back_over = back_ends < self._now
        ended = _member(candidates, back_ids[back_over])
        saved = ~back_over & _member(back_ids, candidates[~ended])
        nexts = np.concatenate([ends[~over], back_ends[saved]])
        return Findings(
            ended=keys[ended],
            ended_ids=candidates[ended],
            suspected=np.concatenate(self._suspect_keys),
            suspects=_unpaired(ids, back_ids),
            next_ns=int(nexts.min()) if nexts.size else None,
        )


@dataclass(frozen=True, slots=True)
class Findings:
    """What a sweep found.

    ``ended`` are keys of forward entries that are over in both directions, with their ``ended_ids``; ``suspected`` keys
    of entries that had no partner in the last sweep. ``suspects`` are ids seen in one direction only. ``next_ns`` is no
    later than when the next session is over, None if there is no other.
    """

    ended: NDArray[np.void]
    ended_ids: Ids
    suspected: NDArray[np.void]
    suspects: Ids
    next_ns: int | None


def _member(values: Ids, of: Ids) -> NDArray[np.bool_]:
    if not of.size or not values.size:
        return np.zeros(len(values), np.bool_)
    known = np.sort(of)
    found: NDArray[np.bool_] = known[np.minimum(np.searchsorted(known, values), len(known) - 1)] == values
    return found


def _unpaired(ids: Ids, back_ids: Ids) -> Ids:
    """Ids of one side only. Sorted by setxor1d: sums of ids that follow each other are too often the same."""
    return np.setxor1d(ids, back_ids)


def verdict(forward: SessionLeaf, reverse: SessionLeaf, now_ns: int, cap: int = NO_CAP) -> CloseReason | None:
    """Whether and why a session is over; ``cap`` (seconds) is the longest timeout under pressure."""
    idle = now_ns - max(forward.last_seen_ns, reverse.last_seen_ns)
    if idle <= (min(forward.timeout, cap) + GRACE_SECONDS) * SECOND:
        return None
    if forward.state == State.TIME_WAIT:
        return CloseReason.TCP_FIN
    if forward.state == State.CLOSED:
        return CloseReason.TCP_RST
    return CloseReason.IDLE if idle > (forward.timeout + GRACE_SECONDS) * SECOND else CloseReason.AGED_OUT


def is_orphan(row: SessionLeaf, now_ns: int) -> bool:
    """Whether an entry without partner is old enough not to get one."""
    return now_ns > int(row.created_ns) + ORPHAN_SECONDS * SECOND


def pressed(counts: Counts, before: bool, settings: Sessions) -> bool:
    """Whether early ageing is on: from above the high water mark until below the low one."""
    return bool(counts.utilisation >= settings.low_water if before else counts.utilisation > settings.high_water)


def seconds_to_high_water(before: Counts, after: Counts, elapsed: float, settings: Sessions) -> float | None:
    """When the table passes its high water mark if it goes on filling as in the ``elapsed`` seconds; None: never."""
    grown = after.utilisation - before.utilisation
    if grown <= 0 or elapsed <= 0:
        return None
    return max(settings.high_water - after.utilisation, 0.0) * elapsed / grown


def interval(due: Sequence[float], took: float, *, under_pressure: bool) -> float:
    """Seconds until the next sweep: the earliest of what is due (in seconds), but not at the expense of the CPU.

    ``took`` is what the last sweep took, in seconds.
    """
    wanted = MIN_INTERVAL if under_pressure else min([*due, MAX_INTERVAL])
    rest = took * (PRESSED_REST if under_pressure else REST)
    return min(max(wanted, rest, MIN_INTERVAL), MAX_INTERVAL)
