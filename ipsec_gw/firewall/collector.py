"""Ends sessions: looks through the session map from time to time, removes what is over, tells what became of it.

The reverse entry goes first and the forward entry decides: whoever removes that one, the datapath or this, reports
the session. So there is one report for each, and a reverse entry alone belongs to none.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import structlog

from ipsec_gw.firewall import ageing
from ipsec_gw.firewall.ageing import SECOND, Close, CloseReason, Counts, Filter
from ipsec_gw.model.firewall import Sessions
from xdp_steer.flow_layout import FlowKeyLeaf, SessionFlag, SessionLeaf
from xdp_steer.screen_layout import Limited
from xdp_steer.session_counts import SessionCounts
from xdp_steer.sessions import Batch, Session, SessionTable, partner_key

log = structlog.get_logger(__name__)

Sink = Callable[[Sequence[Close]], None]
Decide = Callable[[SessionLeaf, SessionLeaf | None], CloseReason | None]

_CHUNK = 1024


@dataclass(frozen=True, slots=True)
class Sweep:
    """What a sweep did. ``strays`` are reverse entries removed for want of a session; ``next_seconds`` is when the
    next one should be; ``took`` in seconds.
    """

    ended: Mapping[CloseReason, int]
    strays: int
    counts: Counts
    under_pressure: bool
    took: float
    next_seconds: float


class Collector:
    """Owns the ends of sessions. Methods may be called from several threads; one works at a time.

    ``sink`` gets every record, some at a time, in the thread of the caller. ``clock`` measures what a sweep takes.
    ``session_counts``, if given, are brought up to date by each look at the table while there are limits of sessions.
    The kernel's refusals are raised as OSError; what was removed by then has been reported.
    """

    def __init__(
        self,
        table: SessionTable,
        settings: Sessions,
        sink: Sink,
        clock: Callable[[], float] = time.perf_counter,
        session_counts: SessionCounts | None = None,
    ) -> None:
        self._table = table
        self._session_counts = session_counts
        self._settings = settings
        self._sink = sink
        self._clock = clock
        self._lock = threading.Lock()
        self._pending: list[Close] = []
        self._ended: Counter[CloseReason] = Counter()
        self._strays = 0
        self._suspects: ageing.Ids = np.empty(0, np.uint64)
        self._pressed = False
        self._counts = Counts(maximum=settings.maximum)
        self._swept_ns: int | None = None

    @property
    def counts(self) -> Counts:
        """As of the last sweep, less what was ended since."""
        return self._counts

    def configure(self, settings: Sessions, limited: Limited = frozenset()) -> None:
        """Other settings, from the next sweep on, and other limits of sessions, whose counts are true now."""
        with self._lock:
            self._settings = settings
            if self._session_counts is None:
                return
            self._session_counts.limited = limited
            if limited:
                for _ in self._batches():
                    pass
                self._write_counts()

    def sweep(self, now_ns: int) -> Sweep:
        """Look at every entry and end what is over at ``now_ns`` (CLOCK_MONOTONIC)."""
        with self._lock:
            started, before = self._clock(), self._counts
            self._ended, self._strays = Counter(), 0
            was_pressed = self._pressed
            next_ns = self._pass(now_ns)
            if self._pressed and not was_pressed:
                next_ns = self._pass(now_ns)
            took = self._clock() - started
            due = self._due(before, now_ns, next_ns)
            self._swept_ns = now_ns
            return Sweep(
                ended=dict(self._ended),
                strays=self._strays,
                counts=self._counts,
                under_pressure=self._pressed,
                took=took,
                next_seconds=ageing.interval(due, took, under_pressure=self._pressed),
            )

    def close(self, chosen: Filter, reason: CloseReason, now_ns: int) -> int:
        """End the sessions that the filter chooses, idle or not. Returns how many."""
        with self._lock:
            self._ended = Counter()
            try:
                for batch in self._batches():
                    wanted = np.flatnonzero(chosen(batch) & ~batch.is_reverse)
                    for index in wanted.tolist():
                        key, session = Batch.key(batch.keys, index), int(batch.rows["id"][index])
                        self._end(key, session, now_ns, lambda _row, _back: reason)
            finally:
                self._flush()
            self._write_counts()
            return self._ended.total()

    def _due(self, before: Counts, now_ns: int, next_ns: int | None) -> list[float]:
        """Seconds until something calls for the next sweep."""
        due = [] if next_ns is None else [(next_ns - now_ns) / SECOND]
        if self._suspects.size:
            due.append(ageing.SUSPECT_INTERVAL)
        if self._swept_ns is not None:
            elapsed = (now_ns - self._swept_ns) / SECOND
            full = ageing.seconds_to_high_water(before, self._counts, elapsed, self._settings)
            due += [] if full is None else [full]
        if self._limits is not None:
            due.append(ageing.RECOUNT_INTERVAL)
        return due

    @property
    def _limits(self) -> SessionCounts | None:
        """The counts of sessions, if there are limits that need them."""
        return self._session_counts if self._session_counts is not None and self._session_counts.limited else None

    def _batches(self) -> Iterator[Batch]:
        """Every entry, counted for the limits of sessions as it goes by."""
        limits = self._limits
        if limits is not None:
            limits.begin()
        for batch in self._table.batches():
            if limits is not None:
                limits.add(batch)
            yield batch

    def _write_counts(self) -> None:
        """After a whole pass, less what it ended."""
        if self._limits is not None:
            self._limits.write()

    def _pass(self, now_ns: int) -> int | None:
        """One look at the whole map. Returns when the next session is over."""
        cap = self._settings.early_ageout if self._pressed else ageing.NO_CAP
        columns = ageing.Columns(now_ns, cap, self._suspects)
        for batch in self._batches():
            columns.add(batch)
        found = columns.result()
        self._suspects = found.suspects
        self._counts = columns.counts(self._settings.maximum)

        def decide(row: SessionLeaf, back: SessionLeaf | None) -> CloseReason | None:
            return None if back is None else ageing.verdict(row, back, now_ns, cap)

        try:
            for index, session in enumerate(found.ended_ids.tolist()):
                self._end(Batch.key(found.ended, index), session, now_ns, decide)
            for index in range(len(found.suspected)):
                self._end_orphan(Batch.key(found.suspected, index), now_ns)
        finally:
            self._flush()
        self._write_counts()
        self._pressed = ageing.pressed(self._counts, self._pressed, self._settings)
        return found.next_ns

    def _end(self, key: FlowKeyLeaf, session: int, now_ns: int, decide: Decide) -> None:
        """Read both entries once more, and if it still holds, remove and report them."""
        row = self._table.get(key)
        if row is None or row.id != session:
            return
        back = self._table.partner(key, row)
        reason = decide(row, back)
        if reason is None:
            return
        if back is not None:
            back = self._table.take(partner_key(key, row), session) or back
        last = self._table.take(key, session)
        if last is not None:
            self._report(Close(Session.of(key, last, back), reason, now_ns))

    def _end_orphan(self, key: FlowKeyLeaf, now_ns: int) -> None:
        row = self._table.get(key)
        if row is None or not ageing.is_orphan(row, now_ns) or self._table.partner(key, row) is not None:
            return
        last = self._table.take(key, row.id)
        if last is None:
            return
        if last.flags & SessionFlag.REVERSE:
            self._strays += 1
        else:
            self._report(Close(Session.of(key, last, None), CloseReason.ORPHAN, now_ns))

    def _report(self, close: Close) -> None:
        self._ended[close.reason] += 1
        self._pending.append(close)
        if len(self._pending) >= _CHUNK:
            self._flush()

    def _flush(self) -> None:
        records, self._pending = self._pending, []
        if records:
            self._counts = self._counts.without(record.session for record in records)
            if self._limits is not None:
                self._limits.remove(record.session for record in records)
            self._sink(records)


async def run(
    collector: Collector,
    now: Callable[[], int] = time.monotonic_ns,
    wait: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Sweep for ever, in a thread of its own; ends when it is cancelled. A refused sweep is logged and tried again."""
    while True:
        try:
            rest = (await asyncio.to_thread(collector.sweep, now())).next_seconds
        except OSError as error:
            log.error("the session table cannot be swept", reason=error.strerror, again_in=ageing.MAX_INTERVAL)
            rest = ageing.MAX_INTERVAL
        await wait(rest)
