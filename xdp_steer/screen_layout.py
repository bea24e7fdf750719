"""The maps of the screens: numbers shared with C, and ctypes mirrors of ``bpf/screen_maps.h``."""

from __future__ import annotations

import ctypes
from enum import IntEnum, IntFlag

from xdp_steer import libbpf
from xdp_steer.flow_layout import MAX_BANKS, MAX_ZONES
from xdp_steer.layout import AddressLeaf, MapSpec, VerdictCountLeaf

MAX_SCREENS = 32
"""Screens of a zone: bits of a word."""
MAX_SCREEN_WORDS = 65536
"""Addresses whose SYNs, ports or destinations are counted at a time."""
MAX_SCREEN_ITEMS = 131_072
"""Ports and destinations that are remembered of them."""
MAX_SESSION_COUNTS = 65536
"""Addresses whose sessions are counted."""
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
    SYN_FLOOD = 9
    ICMP_FLOOD = 10
    UDP_FLOOD = 11
    SYN_SOURCE = 12
    SYN_DESTINATION = 13
    PORT_SCAN = 14
    IP_SWEEP = 15
    SESSIONS_SOURCE = 16
    SESSIONS_DESTINATION = 17
    SYN_COOKIE = 18
    """No screen by itself: what a flood of SYNs is met with."""

    @property
    def label(self) -> str:
        """For tables and metrics: ``syn-fin``."""
        return self.name.lower().replace("_", "-")


AT_ARRIVAL = frozenset(screen for screen in Screen if screen <= Screen.SYN_DESTINATION)
"""For every packet that comes in."""
WITHOUT_SESSION = frozenset({Screen.PORT_SCAN, Screen.IP_SWEEP, Screen.SYN_COOKIE})
"""For packets that belong to no session."""
OF_SESSIONS = frozenset({Screen.SESSIONS_SOURCE, Screen.SESSIONS_DESTINATION})
"""For flows that are about to become one."""

Limited = frozenset[tuple[int, Screen]]
"""Zones, by number, with the limits (of OF_SESSIONS) that they have."""


class ScreenFlag(IntFlag):
    """Of a zone's screens."""

    ALARM_ONLY = 1
    """Hits are told and counted, and the packet goes on."""


class ScreenLeaf(ctypes.Structure):
    """``struct screen``."""

    _fields_ = (
        ("wanted", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("window", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
        ("thresholds", ctypes.c_uint32 * MAX_SCREENS),
    )


class ScreenKeyLeaf(ctypes.Structure):
    """``struct screen_key``."""

    _fields_ = (("addr", AddressLeaf), ("zone", ctypes.c_uint16), ("screen", ctypes.c_uint16))


class ScreenItemLeaf(ctypes.Structure):
    """``struct screen_item``."""

    _fields_ = (
        ("source", AddressLeaf),
        ("item", AddressLeaf),
        ("zone", ctypes.c_uint16),
        ("screen", ctypes.c_uint16),
    )


_INDEX = ctypes.c_uint32

SCREENS = MapSpec("screens", libbpf.MAP_ARRAY, _INDEX, ScreenLeaf, MAX_BANKS * MAX_ZONES)
SCREEN_COUNTS = MapSpec("screen_counts", libbpf.MAP_PERCPU_ARRAY, _INDEX, VerdictCountLeaf, MAX_ZONES * MAX_SCREENS)
SCREEN_TOLD = MapSpec("screen_told", libbpf.MAP_ARRAY, _INDEX, ctypes.c_uint64, MAX_ZONES * MAX_SCREENS)
SCREEN_FLOODS = MapSpec("screen_floods", libbpf.MAP_ARRAY, _INDEX, ctypes.c_uint64, MAX_ZONES * MAX_SCREENS)
SCREEN_WORDS = MapSpec("screen_words", libbpf.MAP_LRU_HASH, ScreenKeyLeaf, ctypes.c_uint64, MAX_SCREEN_WORDS)
SCREEN_ITEMS = MapSpec("screen_items", libbpf.MAP_LRU_HASH, ScreenItemLeaf, ctypes.c_uint64, MAX_SCREEN_ITEMS)
SESSION_COUNTS = MapSpec("session_counts", libbpf.MAP_LRU_HASH, ScreenKeyLeaf, ctypes.c_uint64, MAX_SESSION_COUNTS)

SCREEN_MAPS = (SCREENS, SCREEN_COUNTS, SCREEN_TOLD, SCREEN_FLOODS, SCREEN_WORDS, SCREEN_ITEMS, SESSION_COUNTS)


def count_index(zone: int, screen: Screen) -> int:
    """Index into ``screen_counts``."""
    return zone * MAX_SCREENS + screen


def c_defines() -> str:
    """The numbers that C shares with this module, as preprocessor lines."""
    lines = [f"#define SCREEN_{screen.name} {screen.value}" for screen in Screen]
    lines += [f"#define SCREEN_{flag.name} {flag.value}" for flag in ScreenFlag]
    lines += [f"#define {name} {globals()[name]}" for name in ("MAX_SCREENS", "SCREEN_EVENTS", "MAX_SCREEN_WORDS")]
    lines += [f"#define {name} {globals()[name]}" for name in ("MAX_SCREEN_ITEMS", "MAX_SESSION_COUNTS")]
    return "\n".join([*lines, ""])
