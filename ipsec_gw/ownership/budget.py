"""How much of a key's nonces is used up, by the two generators that may have worked with it."""

from __future__ import annotations

from dataclasses import dataclass

INVOCATIONS = 1 << 32
"""Of one key, with nonces drawn at random (NIST SP 800-38D, 8.3)."""

NONCES = 1 << 64
"""Values of the part of a nonce that goes with each packet (RFC 4106, 3: the IV)."""


@dataclass(frozen=True, slots=True)
class NonceBudget:
    """Packets that were sent with one key, by an engine and by the kernel.

    Neither repeats itself: VPP steps through a permutation of 64 bits, the kernel counts. Whether one ever meets the
    other is chance: with m and n packets m * n of the 2^64 pairs of nonces would have to be avoided.
    """

    engine: int
    kernel: int

    @property
    def share(self) -> float:
        """Of the packets that one key may protect, 0 to 1 and above."""
        return (self.engine + self.kernel) / INVOCATIONS

    @property
    def collision(self) -> float:
        """The probability, at most, that a nonce came twice."""
        return min(self.engine * self.kernel / NONCES, 1.0)
