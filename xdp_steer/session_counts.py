"""Sessions of each source and destination, counted over the whole table and written for the limits of the datapath."""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Iterable
from typing import cast

import numpy as np
from numpy.typing import NDArray

from xdp_steer import libbpf
from xdp_steer.screen_layout import OF_SESSIONS, SESSION_COUNTS, Limited, Screen, ScreenKeyLeaf
from xdp_steer.sessions import Batch, Session

_SIDES = {Screen.SESSIONS_SOURCE: "saddr", Screen.SESSIONS_DESTINATION: "daddr"}
_KEY = cast("np.dtype[np.void]", np.dtype(ScreenKeyLeaf))
_TEXT = np.dtype(f"S{_KEY.itemsize}")
"""The same bytes, which numpy sorts several times as fast as a structure. It takes NULs at the end for padding: keys of
one length are no more alike for that.
"""
_COUNT_BYTES = ctypes.sizeof(ctypes.c_uint64)

Keys = NDArray[np.bytes_]


class SessionCounts:
    """The map behind ``fd``, which stays the caller's. One recount at a time: :meth:`begin`, :meth:`add` of every
    batch, :meth:`remove` of what is ended, :meth:`write`.

    The datapath goes on counting meanwhile; what begins or ends between the look and the writing is counted wrongly
    until the next time. The kernel's refusals are raised as OSError.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._seen: list[Keys] = []
        self._ended: Counter[bytes] = Counter()
        self.limited: Limited = frozenset()

    def begin(self) -> None:
        """Forget what was counted."""
        self._seen, self._ended = [], Counter()

    def add(self, batch: Batch) -> None:
        """Count forward entries of zones with limits."""
        for screen in OF_SESSIONS:
            zones = [zone for zone, limit in self.limited if limit is screen]
            self._seen.append(_keys(batch.keys[~batch.is_reverse & np.isin(batch.keys["zone"], zones)], screen))

    def remove(self, ended: Iterable[Session]) -> None:
        """Sessions that were counted and are gone."""
        for session in ended:
            leaf = session.flow.leaf()
            for screen, side in _SIDES.items():
                if (leaf.zone, screen) in self.limited:
                    self._ended[bytes(ScreenKeyLeaf(getattr(leaf, side), leaf.zone, screen))] += 1

    def write(self) -> None:
        """Make these the counts, and forget addresses without sessions. Of more than there is room for, those with the
        most are written.
        """
        keys, counts = self._found()
        entries = libbpf.map_entries(self._fd, _KEY.itemsize, _COUNT_BYTES, SESSION_COUNTS.entries)
        gone = np.setdiff1d(np.array([key for key, _ in entries], _TEXT), keys)
        libbpf.map_delete_batch(self._fd, _as_c(gone), len(gone))
        values = (ctypes.c_uint64 * len(counts)).from_buffer_copy(counts.astype(np.uint64).tobytes())
        libbpf.map_update_batch(self._fd, _as_c(keys), values, len(keys))

    def _found(self) -> tuple[Keys, NDArray[np.int64]]:
        keys, counts = np.unique(np.concatenate([np.empty(0, _TEXT), *self._seen]), return_counts=True)
        ended = np.array(list(self._ended), _TEXT)
        known = np.isin(ended, keys)
        counts[np.searchsorted(keys, ended[known])] -= np.array(list(self._ended.values()), np.int64)[known]
        most = np.argsort(counts, kind="stable")[-SESSION_COUNTS.entries :]
        most = most[counts[most] > 0]  # those with the most are written last: a map that is full forgets the first
        return keys[most], counts[most]


def _keys(flows: NDArray[np.void], screen: Screen) -> Keys:
    keys = np.zeros(len(flows), _KEY)
    keys["addr"] = flows[_SIDES[screen]]
    keys["zone"] = flows["zone"]
    keys["screen"] = screen
    return keys.view(_TEXT)


def _as_c(keys: Keys) -> ctypes.Array[ScreenKeyLeaf]:
    return (ScreenKeyLeaf * len(keys)).from_buffer_copy(keys.tobytes())
