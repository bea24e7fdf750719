"""Why a packet left the pipeline or the guard: one numbered list for C, Python, metrics and logs.

The list is append-only: a number keeps its meaning for ever, a retired one stays as ``UNUSED_n``.
C gets it as text before the compile (:func:`c_defines`).
"""

from __future__ import annotations

from enum import IntEnum, unique

MAX_REASONS = 64
"""Entries of the counter map: room to grow without another map layout."""


@unique
class Reason(IntEnum):
    """A verdict of XDP (below 32, none of them drops) or of the guard on TC egress (32 and above)."""

    STEERED = 1
    """ESP of a steered SA, handed to its interface's dock."""
    NOT_IP = 2
    """No IPv4 or IPv6 under at most one VLAN tag (ARP, LLDP, QinQ): kernel."""
    TRUNCATED = 3
    """Too short or malformed for what it claims to be: kernel, which has counters of its own for it."""
    NOT_ESP = 4
    """Another protocol or port: kernel."""
    FRAGMENT = 5
    """An outer fragment, the first or a later one: kernel."""
    IKE = 6
    """UDP 500: charon."""
    IKE_NAT_T = 7
    """UDP 4500 with the non-ESP marker (RFC 3948 §2.2): charon."""
    KEEPALIVE = 8
    """UDP 4500 with the single octet 0xff (RFC 3948 §2.3): kernel."""
    UNKNOWN_SPI = 9
    """ESP of an SA that is not steered: kernel."""
    KERNEL_OWNED = 10
    """ESP of an SA whose steer entry says kernel."""
    ENGINE_OFF = 11
    """ESP of a steered SA while the engine flag is off: kernel."""
    NO_DOCK = 12
    """ESP of a steered SA that came in by an interface without a way to its dock: kernel. Expect 0."""
    TAGGED = 13
    """ESP of a steered SA inside a VLAN tag, which engines do not know: kernel."""
    IP_OPTIONS = 14
    """ESP of a steered SA behind IPv4 options: kernel."""
    IP6_EXTENSIONS = 15
    """ESP of a steered SA behind IPv6 extension headers: kernel."""

    GUARD_ENGINE = 32
    """The kernel sent ESP of an SA whose numbers the engine owns: dropped."""
    GUARD_KERNEL = 33
    """The kernel sent ESP of an SA that it owns: passed."""
    GUARD_HELD = 34
    """The kernel sent ESP of an SA that nobody decided on yet: dropped while the hold lasts."""
    GUARD_NEWBORN = 35
    """The same after the hold, or with no daemon alive: passed."""
    GUARD_FULL = 36
    """The same with no room to remember it: passed. Expect 0."""
    GUARD_TRANSIT = 37
    """ESP between others that this machine only forwards: passed, and nothing is remembered of it."""

    @property
    def label(self) -> str:
        """For metrics and tables: ``unknown-spi``."""
        return self.name.lower().replace("_", "-")


def c_defines() -> str:
    """The list as C preprocessor lines: ``#define REASON_IKE 6``."""
    lines = [f"#define REASON_{reason.name} {reason.value}" for reason in Reason]
    return "\n".join([*lines, f"#define MAX_REASONS {MAX_REASONS}", ""])
