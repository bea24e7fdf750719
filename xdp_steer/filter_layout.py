"""The maps of filters and policers: numbers shared with C, and ctypes mirrors of ``bpf/filter_maps.h``."""

from __future__ import annotations

import ctypes
from enum import IntEnum

from xdp_steer import libbpf
from xdp_steer.flow_layout import FLOW_MAPS, MAX_BANKS, MAX_ROWS, MAX_RULES, BitRowLeaf
from xdp_steer.layout import MapSpec, NothingLeaf
from xdp_steer.screen_layout import SCREEN_MAPS

MAX_FILTERS = 64
"""One number less: 0 is none."""
MAX_POLICERS = 256
"""A power of two."""
MAX_FILTER_CLASSES = 512
FLAGS_CLASS = 128
"""First class of TCP flags, behind one for each of 64 DSCPs, of whole packets and of fragments."""
NO_FLAGS_CLASS = FLAGS_CLASS + 256
"""What has no TCP flags."""
KEEP_DSCP = 0xFF
DISCARD_COLOUR = 0xFE
COPY_OCTETS = 2048
"""Of a mirrored frame, a power of two; XDP on a page has no room for more than 3.5 of it."""
COPY_RING_BYTES = 4 << 20
POLICER_TICKS = 256
"""To a nanosecond: a byte at 100 Gbit/s takes 20."""
POLICER_SHIFT = 16
"""Bits behind the point of a byte's ticks."""


class FilterAction(IntEnum):
    """Of a row."""

    ACCEPT = 1
    DISCARD = 2
    REJECT = 3


class PolicerKind(IntEnum):
    """How many colours a policer tells apart, and by what."""

    TWO_COLOURS = 1
    ONE_RATE = 2
    """RFC 2697."""
    TWO_RATES = 3
    """RFC 2698."""


class FilterRowLeaf(ctypes.Structure):
    """``struct filter_row``."""

    _fields_ = (
        ("policer", ctypes.c_uint32),
        ("mirror", ctypes.c_uint32),
        ("mark", ctypes.c_uint8),
        ("reserved", ctypes.c_uint8 * 3),
    )


class CopyLeaf(ctypes.Structure):
    """``struct copy``."""

    _fields_ = (
        ("ifindex", ctypes.c_uint32),
        ("length", ctypes.c_uint32),
        ("frame", ctypes.c_uint8 * COPY_OCTETS),
    )


class PolicerLeaf(ctypes.Structure):
    """``struct policer``."""

    _fields_ = (
        ("number", ctypes.c_uint32),
        ("yellow_rule", ctypes.c_uint32),
        ("kind", ctypes.c_uint8),
        ("aware", ctypes.c_uint8),
        ("yellow", ctypes.c_uint8),
        ("red", ctypes.c_uint8),
        ("reserved", ctypes.c_uint32),
        ("cost", ctypes.c_uint64),
        ("burst", ctypes.c_uint64),
        ("peak_cost", ctypes.c_uint64),
        ("peak_burst", ctypes.c_uint64),
    )


class PolicerStateLeaf(ctypes.Structure):
    """``struct policer_state``."""

    _fields_ = (("full", ctypes.c_uint64), ("peak", ctypes.c_uint64))


_INDEX = ctypes.c_uint32

FILTER_BITS = MapSpec("filter_bits", libbpf.MAP_ARRAY, _INDEX, BitRowLeaf, MAX_BANKS * MAX_FILTER_CLASSES)
FILTER_ROWS = MapSpec("filter_rows", libbpf.MAP_ARRAY, _INDEX, FilterRowLeaf, MAX_BANKS * MAX_ROWS)
POLICERS = MapSpec("policers", libbpf.MAP_ARRAY, _INDEX, PolicerLeaf, MAX_BANKS * MAX_POLICERS)
POLICER_STATES = MapSpec("policer_states", libbpf.MAP_ARRAY, _INDEX, PolicerStateLeaf, MAX_RULES)
FILTER_TOLD = MapSpec("filter_told", libbpf.MAP_ARRAY, _INDEX, ctypes.c_uint64, MAX_RULES)

COPIES = MapSpec("copies", libbpf.MAP_RINGBUF, NothingLeaf, NothingLeaf, COPY_RING_BYTES)
COPIES_LOST = MapSpec("copies_lost", libbpf.MAP_PERCPU_ARRAY, _INDEX, ctypes.c_uint64, 1)

FILTER_MAPS = (FILTER_BITS, FILTER_ROWS, POLICERS, POLICER_STATES, FILTER_TOLD, COPIES, COPIES_LOST)
FIREWALL_MAPS = FLOW_MAPS + SCREEN_MAPS + FILTER_MAPS
"""Pinned beside :data:`xdp_steer.layout.MAPS`."""


def mark_class(dscp: int, *, fragment: bool) -> int:
    """The class of packets with a DSCP (0 to 63)."""
    return 2 * dscp + fragment


def cost_of(rate: int) -> int:
    """Ticks that a byte takes at a rate in bits per second, shifted by POLICER_SHIFT."""
    return (8_000_000_000 * POLICER_TICKS << POLICER_SHIFT) // rate


def burst_ticks(octets: int, rate: int) -> int:
    """Ticks that a burst takes at a rate in bits per second."""
    return octets * cost_of(rate) >> POLICER_SHIFT


def c_defines() -> str:
    """The numbers that C shares with this module, as preprocessor lines."""
    lines = [f"#define FILTER_{action.name} {action.value}" for action in FilterAction]
    lines += [f"#define POLICER_{kind.name} {kind.value}" for kind in PolicerKind]
    names = ("MAX_FILTER_CLASSES", "MAX_POLICERS", "KEEP_DSCP", "DISCARD_COLOUR", "POLICER_TICKS", "POLICER_SHIFT")
    lines += [f"#define {name} {globals()[name]}" for name in (*names, "COPY_OCTETS", "COPY_RING_BYTES")]
    return "\n".join([*lines, ""])
