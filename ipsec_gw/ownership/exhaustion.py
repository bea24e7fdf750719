"""Sequence numbers that run out: without ESN an SA has 2^32 of them (RFC 4303, 2.2.1), and sends none behind the last.

strongSwan rekeys by time, unless it is told to count packets. At the rates of an engine an hour is longer than the
numbers last: at 1.2 million packets per second they are used up. So the rate of every SA without ESN is measured, and
charon is asked for a rekey while there is time for it.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass

from ipsec_gw.engines.port import Counters
from ipsec_gw.model.ids import IpAddress, SaKey
from ipsec_gw.model.snapshot import XfrmSa
from ipsec_gw.ownership.guard import HAND_BACK_MARGIN

NUMBERS = 1 << 32
"""Of an SA without ESN."""

USABLE = NUMBERS - 4 * HAND_BACK_MARGIN
"""Those behind are left to the kernel, which goes on ahead of the engine's number when it takes over."""

NOTICE_SECONDS = 300.0
"""So long before the end charon is asked: a peer that does not answer is tried for almost three minutes."""


@dataclass(frozen=True, slots=True)
class _Look:
    packets: int
    at: float


class Exhaustion:
    """``ask`` asks for the rekey of an SA, with the peer of an inbound one; ``tell`` says so to people. ``clock`` is
    monotonic, in seconds.
    """

    def __init__(
        self, ask: Callable[[SaKey, IpAddress | None], None], tell: Callable[[str], None], clock: Callable[[], float]
    ) -> None:
        self._ask = ask
        self._tell = tell
        self._clock = clock
        self._looks: dict[SaKey, _Look] = {}
        self._asked: set[SaKey] = set()

    def look(self, carried: Mapping[SaKey, Counters], sas: Iterable[XfrmSa], ours: Container[IpAddress]) -> None:
        """``carried`` is what the engine has counted by now, ``sas`` are the kernel's, ``ours`` the addresses of this
        machine. Either direction counts.
        """
        now = self._clock()
        finite = {sa.key: sa.source if sa.key.destination in ours else None for sa in sas if not sa.replay.esn}
        looks = {key: _Look(counters.packets, now) for key, counters in carried.items() if key in finite}
        for key, look in looks.items():
            before = self._looks.get(key)
            if key not in self._asked and before is not None and look.at > before.at:
                self._judge(key, finite[key], look, (look.packets - before.packets) / (look.at - before.at))
        self._looks = looks
        self._asked &= looks.keys()

    def _judge(self, key: SaKey, source: IpAddress | None, look: _Look, rate: float) -> None:
        left = USABLE - look.packets
        if left > rate * NOTICE_SECONDS and left > 0:
            return
        self._asked.add(key)
        self._ask(key, source)
        self._tell(
            f"SA {key} has no ESN and has used {look.packets / NUMBERS:.0%} of its sequence numbers, at {rate:,.0f}"
            " packets per second: a rekey is asked for - ESN (esp_proposals with -esn) has no end"
        )
