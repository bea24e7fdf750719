"""How the kernel's copy of an SA is kept true while an engine carries it (DESIGN.md, invariant 4)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from ipsec_gw.model.ids import SaKey

UNLIMITED = (1 << 64) - 1
"""``XFRM_INF``."""


@dataclass(frozen=True, slots=True)
class Volume:
    """Packets, and bytes of inner IP packets."""

    packets: int
    octets: int

    def reaches(self, limit: Volume) -> bool:
        """Whether either limit is reached."""
        return self.packets >= limit.packets or self.octets >= limit.octets

    def plus(self, other: Volume) -> Volume:
        """Both together."""
        return Volume(self.packets + other.packets, self.octets + other.octets)

    def minus(self, other: Volume) -> Volume:
        """What is left, nothing at least."""
        return Volume(max(self.packets - other.packets, 0), max(self.octets - other.octets, 0))

    def at_most(self, other: Volume) -> Volume:
        """The smaller of both, each number for itself."""
        return Volume(min(self.packets, other.packets), min(self.octets, other.octets))


NOTHING = Volume(0, 0)
NO_LIMIT = Volume(UNLIMITED, UNLIMITED)


@dataclass(frozen=True, slots=True)
class SaState:
    """What of a kernel SA moves. ``words`` is the length of its bitmap in XFRMA_REPLAY_ESN_VAL, 0 if the SA has
    XFRMA_REPLAY_VAL: the other attribute is accepted and does nothing. ``window`` is in packets, 0 for no anti-replay.
    ``mark`` is XFRMA_MARK as the kernel has it, empty for none: it finds the SA only by it.
    """

    key: SaKey
    oseq: int
    seq: int
    window: int
    words: int
    used: Volume
    add_time: int
    use_time: int
    soft: Volume = NO_LIMIT
    hard: Volume = NO_LIMIT
    mark: bytes = b""


@dataclass(frozen=True, slots=True)
class Warming:
    """What is to be written: the volume and time of use, and the highest number received unless that is None."""

    state: SaState
    used: Volume
    use_time: int
    seq: int | None


class Expiry(StrEnum):
    """Of a volume limit that kernel and engine reached together."""

    SOFT = "soft"
    HARD = "hard"


def adopted(state: SaState, carried: Volume, own: Volume) -> Volume:
    """How much of what an engine carried an earlier daemon has put into the kernel's volume already, at most. ``own``
    is what the kernel itself has counted.
    """
    return state.used.minus(own).at_most(carried)


def warming(state: SaState, carried: Volume, told: Volume, top: int | None, now: int) -> Warming | None:
    """The write that makes the kernel's copy true, or None if nothing was carried since the last.

    ``carried`` is what the engine carried since it has the SA, ``told`` how much of it is in the kernel's volume.
    ``top`` is the highest number that the engine received, None for outbound SAs, whose number this never writes.
    """
    fresh = Volume(carried.packets - told.packets, max(carried.octets - told.octets, 0))
    if fresh.packets <= 0:
        return None
    seq = top if top is not None and state.window and top > state.seq else None
    used = Volume(state.used.packets + fresh.packets, state.used.octets + fresh.octets)
    return Warming(state, used, max(now, state.use_time), seq)


def expiry(warm: Warming) -> Expiry | None:
    """Whether a volume limit is reached: the kernel looks at its limits only when it handles a packet itself."""
    if warm.used.reaches(warm.state.hard):
        return Expiry.HARD
    return Expiry.SOFT if warm.used.reaches(warm.state.soft) else None
