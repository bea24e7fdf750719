"""What the operator decided about tunnels in the configuration: who carries which (`accelerate`, `mode`, `canary`), and
what they are in VPP (`policy_mode`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from enum import StrEnum
from hashlib import blake2b

from ipsec_gw.model.ids import IpAddress


class PolicyMode(StrEnum):
    """What a tunnel without an XFRM interface is in VPP: ``auto`` an IPsec interface, ``spd`` entries of a security
    policy database.
    """

    AUTO = "auto"
    SPD = "spd"


WHOLE = 100
"""A canary share is in percent of the peers."""


@dataclass(frozen=True, slots=True)
class Choices:
    """Connections by the name that swanctl.conf gives them.

    ``kept`` stay in the kernel, ``observed`` are decided on without being carried, ``accelerated`` are carried whatever
    ``observe`` (the same for all others) and ``canary`` (0 to 100 percent of the peers) say.
    """

    kept: frozenset[str] = frozenset()
    observed: frozenset[str] = frozenset()
    accelerated: frozenset[str] = frozenset()
    observe: bool = False
    canary: int = WHOLE

    @property
    def by_name(self) -> bool:
        """True if the name of a connection can decide: then it has to be known before."""
        return bool(self.kept or self.observed or self.accelerated)

    def keeps(self, connections: Iterable[str]) -> str:
        """Why SAs of these connections stay in the kernel whatever they are, or an empty string."""
        kept = next((name for name in connections if name in self.kept), None)
        return f"connection '{kept}' is set to accelerate = false" if kept is not None else ""

    def observes(self, connections: frozenset[str], peer: IpAddress) -> str:
        """Why a tunnel that could be carried is not, or an empty string."""
        observed = next((name for name in sorted(connections) if name in self.observed), None)
        if observed is not None:
            return f"connection '{observed}' is set to mode = \"observe\""
        if connections & self.accelerated:
            return ""
        if self.observe:
            return 'the gateway is set to mode = "observe"'
        if share_of(peer) >= self.canary:
            return f"its peer is not among the canary = {self.canary} percent"
        return ""

    def without_observing(self) -> Choices:
        """The same, with everything carried that nothing but observing and the canary share holds back."""
        return Choices(kept=self.kept)

    def changes(self, wanted: Choices) -> tuple[str, ...]:
        """What another set of choices changes, in words."""
        told = []
        for field in fields(self):
            old, new = getattr(self, field.name), getattr(wanted, field.name)
            if isinstance(old, frozenset):
                told += [f"connection '{name}': {_WORDS[field.name][0]}" for name in sorted(new - old)]
                told += [f"connection '{name}': {_WORDS[field.name][1]}" for name in sorted(old - new)]
        if self.observe is not wanted.observe:
            told.append(f'gateway: mode = "{"observe" if wanted.observe else "accelerate"}"')
        if self.canary != wanted.canary:
            told.append(f"gateway: canary = {wanted.canary} (was {self.canary})")
        return tuple(told)


_WORDS = {
    "kept": ("stays in the kernel", "may be accelerated"),
    "observed": ("is observed", "is no longer observed by itself"),
    "accelerated": ("is accelerated whatever holds for the gateway", "follows what holds for the gateway"),
}


def share_of(peer: IpAddress) -> int:
    """Where a peer lies in the canary's order, 0 to 99: always the same, and a larger share holds a smaller one."""
    return int.from_bytes(blake2b(peer.packed, digest_size=4).digest(), "big") % WHOLE
