"""The maps of the screens: numbers shared with C, and ctypes mirrors of ``bpf/screen_maps.h``."""

from __future__ import annotations

import ctypes
from enum import IntEnum, IntFlag

from xdp_steer import libbpf
from xdp_steer.flow_layout import FLOW_MAPS, MAX_BANKS, MAX_ZONES
from xdp_steer.layout import MapSpec, VerdictCountLeaf

MAX_SCREENS = 32
"""Screens of a zone: bits of a word."""
SCREEN_EVENTS = 10
"""Events per second that a screen of a zone may make."""


class Screen(IntEnum):
    """What a screen looks for, in the order in which they are tried; the reason of a drop is that many behind
    ``Reason.SCREEN_LAND``. Append-only.
    """

    LAND = 0
    SYN_FIN = 1
    NO_FLAG = 2
    FIN_NO_ACK = 3
    WINNUKE = 4
    SYN_FRAGMENT = 5
    TEAR_DROP = 6
    SOURCE_ROUTE = 7
    PING_OF_DEATH = 8

    @property
    def label(self) -> str:
        """For tables and metrics: ``syn-fin``."""
        return self.name.lower().replace("_", "-")


class ScreenFlag(IntFlag):
    """Of a zone's screens."""

    ALARM_ONLY = 1
    """Hits are told and counted, and the packet goes on."""


class ScreenLeaf(ctypes.Structure):
    """``struct screen``."""

    _fields_ = (("wanted", ctypes.c_uint32), ("flags", ctypes.c_uint32))


_INDEX = ctypes.c_uint32

SCREENS = MapSpec("screens", libbpf.MAP_ARRAY, _INDEX, ScreenLeaf, MAX_BANKS * MAX_ZONES)
SCREEN_COUNTS = MapSpec("screen_counts", libbpf.MAP_PERCPU_ARRAY, _INDEX, VerdictCountLeaf, MAX_ZONES * MAX_SCREENS)
SCREEN_TOLD = MapSpec("screen_told", libbpf.MAP_ARRAY, _INDEX, ctypes.c_uint64, MAX_ZONES * MAX_SCREENS)

SCREEN_MAPS = (SCREENS, SCREEN_COUNTS, SCREEN_TOLD)
FIREWALL_MAPS = FLOW_MAPS + SCREEN_MAPS
"""Pinned beside :data:`xdp_steer.layout.MAPS`."""


def count_index(zone: int, screen: Screen) -> int:
    """Index into ``screen_counts``."""
    return zone * MAX_SCREENS + screen


def c_defines() -> str:
    """The numbers that C shares with this module, as preprocessor lines."""
    lines = [f"#define SCREEN_{screen.name} {screen.value}" for screen in Screen]
    lines += [f"#define SCREEN_{flag.name} {flag.value}" for flag in ScreenFlag]
    lines += [f"#define {name} {globals()[name]}" for name in ("MAX_SCREENS", "SCREEN_EVENTS")]
    return "\n".join([*lines, ""])
