"""Sessions of each source and destination, counted over the whole table and written for the limits of the datapath."""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Collection, Iterable
from typing import cast

import numpy as np
from numpy.typing import NDArray

from xdp_steer import libbpf
from xdp_steer.screen_layout import OF_SESSIONS, SESSION_COUNTS, Screen, ScreenKeyLeaf
from xdp_steer.sessions import Batch, Session

Limited = frozenset[tuple[int, Screen]]
"""Zones, by number, with the limits (of OF_SESSIONS) that they have."""

_SIDES = {Screen.SESSIONS_SOURCE: "saddr", Screen.SESSIONS_DESTINATION: "daddr"}
_KEY = cast("np.dtype[np.void]", np.dtype(ScreenKeyLeaf))


class SessionCounts:
    """The map behind ``fd``, which stays the caller's. One recount at a time: :meth:`begin`, :meth:`add` of every
    batch, :meth:`remove` of what is ended, :meth:`write`.

    The datapath goes on counting meanwhile; what begins or ends between the look and the writing is counted wrongly
    until the next time. The kernel's refusals are raised as OSError.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._found: Counter[bytes] = Counter()
        self.limited: Limited = frozenset()

    def begin(self) -> None:
        """Forget what was counted."""
        self._found = Counter()

    def add(self, batch: Batch) -> None:
        """Count forward entries of zones with limits."""
        for screen in OF_SESSIONS:
            zones = [zone for zone, limit in self.limited if limit is screen]
            chosen = batch.keys[~batch.is_reverse & np.isin(batch.keys["zone"], zones)]
            keys, counts = np.unique(_keys(chosen, screen).view(f"V{_KEY.itemsize}"), return_counts=True)
            for key, count in zip(keys, counts.tolist(), strict=True):
                self._found[key.tobytes()] += count

    def remove(self, ended: Iterable[Session]) -> None:
        """Sessions that were counted and are gone."""
        for session in ended:
            leaf = session.flow.leaf()
            for screen, side in _SIDES.items():
                if (leaf.zone, screen) in self.limited:
                    self._found[bytes(ScreenKeyLeaf(getattr(leaf, side), leaf.zone, screen))] -= 1

    def write(self) -> None:
        """Make these the counts, and forget addresses without sessions."""
        found = {key: count for key, count in self._found.items() if count > 0}
        entries = libbpf.map_entries(self._fd, _KEY.itemsize, ctypes.sizeof(ctypes.c_uint64), SESSION_COUNTS.entries)
        gone = [key for key, _ in entries if key not in found]
        libbpf.map_delete_batch(self._fd, _as_c(gone), len(gone))
        counts = (ctypes.c_uint64 * len(found))(*found.values())
        libbpf.map_update_batch(self._fd, _as_c(found), counts, len(found))


def _keys(flows: NDArray[np.void], screen: Screen) -> NDArray[np.void]:
    keys = np.zeros(len(flows), _KEY)
    keys["addr"] = flows[_SIDES[screen]]
    keys["zone"] = flows["zone"]
    keys["screen"] = screen
    return keys


def _as_c(keys: Collection[bytes]) -> ctypes.Array[ScreenKeyLeaf]:
    return (ScreenKeyLeaf * len(keys)).from_buffer_copy(b"".join(keys))
