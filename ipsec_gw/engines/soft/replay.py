"""The anti-replay window of RFC 4303 §3.4.3 and appendix A, for 32-bit and extended (64-bit) sequence numbers."""

from __future__ import annotations

from ipsec_gw.engines.soft.drops import Dropped, DropReason

SEQUENCE_SPACE = 1 << 32
"""A packet carries the low 32 bits of its number, whatever the SA counts with."""

_ESN_REACH = 1 << 31
"""How far behind the highest number a packet may lie when no window says so: half of what 32 bits can tell apart."""


class ReplayWindow:
    """What one inbound SA has received.

    ``size`` is in packets; 0 turns the check off. Call :meth:`check` before the integrity check and :meth:`accept`
    after it, with what `check` returned: a forged packet must not move the window.
    """

    __slots__ = ("_bitmap", "_esn", "_mask", "_size", "_top")

    def __init__(self, size: int, *, esn: bool) -> None:
        self._size = size
        self._esn = esn
        self._mask = (1 << size) - 1
        self._top = 0
        self._bitmap = 0  # bit i: number (top - i) was received

    @property
    def top(self) -> int:
        """The highest number accepted so far, 0 before the first packet."""
        return self._top

    def check(self, low: int) -> int:
        """The full number of a packet that carries ``low``.

        Raises Dropped (too_old, replayed) if it must not be received.
        """
        number = self._infer(low)
        if number <= 0:  # RFC 4303 §3.3.3: the first packet of an SA has number 1
            raise Dropped(DropReason.TOO_OLD)
        age = self._top - number
        if self._size == 0 or age < 0:
            return number
        if age >= self._size:
            raise Dropped(DropReason.TOO_OLD)
        if self._bitmap >> age & 1:
            raise Dropped(DropReason.REPLAYED)
        return number

    def accept(self, number: int) -> None:
        """Record the number of a packet that proved authentic."""
        advance = number - self._top
        if advance <= 0:
            self._bitmap = (self._bitmap | 1 << -advance) & self._mask if -advance < self._size else self._bitmap
            return
        # A jump past the window forgets everything; shifting by it could cost 2^32 bits of memory.
        kept = self._bitmap << advance if advance < self._size else 0
        self._bitmap = (kept | 1) & self._mask
        self._top = number

    def _infer(self, low: int) -> int:
        """Appendix A2.2 in one line: the smallest number that ends in ``low`` and is not left of the window."""
        if not self._esn:
            return low
        bottom = self._top - (self._size or _ESN_REACH) + 1
        return bottom + (low - bottom) % SEQUENCE_SPACE
