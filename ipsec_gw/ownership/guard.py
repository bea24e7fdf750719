"""Who owns the sequence numbers of an outbound SA (DESIGN.md, invariant 3).

Claiming is safe at any time: first the TC egress guard is closed, so that nothing can leave under this key any
more; then the kernel is asked how many numbers it has given out. Those that the guard held back never reached
the wire, so the key is fresh exactly when nothing passed the guard and the kernel's count equals what it held.

From then on the kernel's number is a margin ahead of the engine's (invariant 4). Whoever takes the SA next finds it
there: the kernel, a daemon that knows nothing of an earlier life, or charon when it moves the SA to another address.

The kernel needs nobody to take over from an engine that has died: the guard opens by itself as soon as plaintext for
the engine finds no socket (:meth:`GuardMaps.engine_gone`). From that moment on the kernel's numbers are its own and are
not written any more; claims are undone before the guard is closed again.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from typing import Protocol

from ipsec_gw.engines.port import Counters
from ipsec_gw.errors import GoneError, IpsecGwError, UsedKeyError, XfrmError
from ipsec_gw.model.ids import IpAddress, SaKey
from ipsec_gw.model.objects import MAX_NAT_T_PORTS, Guard, GuardKey, ManagedObject
from ipsec_gw.model.snapshot import Snapshot, XfrmSa
from ipsec_gw.nat_t import further_ports
from ipsec_gw.ownership.waiting import EVERY_NUMBER

HAND_BACK_MARGIN = 1 << 26
"""More than an engine sends with one SA between two looks at its counters, also while its API does not answer or no
daemon runs: a minute at a million packets per second.
"""

KEPT_AHEAD = 2 * HAND_BACK_MARGIN
"""How far the kernel's number is raised above the engine's last known one. It is raised again when less than a margin
is left, so between two looks the engine never comes near.
"""

_LOOKS = 3
"""A packet between the kernel's numbering and the guard is counted by one and not yet by the other: look again."""


class GuardCount(Protocol):
    """Packets of one SA that the kernel sent: let through, and held back."""

    @property
    def passed(self) -> int:
        """Reached the wire."""

    @property
    def dropped(self) -> int:
        """Held back."""


class GuardMaps(Protocol):
    """The part of the steering that guards."""

    def claim(self, key: SaKey) -> None:
        """Hold back whatever the kernel sends with this SA."""

    def release(self, key: SaKey) -> None:
        """Let the kernel send with this SA."""

    def forget(self, key: SaKey) -> None:
        """The SA is gone."""

    def claimed(self) -> frozenset[SaKey]:
        """SAs that are held back."""

    def guard_counters(self) -> Mapping[SaKey, GuardCount]:
        """What was seen."""

    def guarded(self) -> frozenset[SaKey]:
        """SAs of which anything is kept."""

    def engine_gone(self) -> bool:
        """Whether the engine was seen gone: then the kernel sends with claimed SAs."""

    def set_engine_gone(self, gone: bool) -> None:
        """Say so, or take it back."""

    def set_local(self, addresses: frozenset[IpAddress]) -> None:
        """Whose ESP is looked at: by source address."""

    def nat_t_ports(self) -> frozenset[int]:
        """What was set last."""

    def set_nat_t_ports(self, ports: frozenset[int]) -> None:
        """Our UDP ports besides 4500 that ESP goes out by."""


class KernelSas(Protocol):
    """The part of the kernel's SA interface that ownership needs."""

    def sa(self, key: SaKey) -> XfrmSa | None:
        """One SA, None if it is gone."""

    def raise_oseq(self, key: SaKey, oseq: int) -> None:
        """Move its outbound number upwards."""


class GuardDriver:
    """Claims outbound SAs for the engine and hands them back to the kernel.

    ``sent`` tells what the engine sent with an SA in this life of the engine, if it is known. ``refuse`` is called
    with every SA whose key must not be given to an engine any more, and why, ``tell`` with troubles that no caller
    hears of, ``before_release`` with SAs that are claimed no more, for the kernel gets them or they are gone: what was
    held back of them goes first, if its number is above the one that goes with it.
    """

    def __init__(
        self,
        maps: GuardMaps,
        kernel: KernelSas,
        *,
        sent: Callable[[SaKey], Counters | None],
        refuse: Callable[[SaKey, str], None],
        tell: Callable[[str], None] = lambda _trouble: None,
    ) -> None:
        self._maps = maps
        self._kernel = kernel
        self._sent = sent
        self._refuse = refuse
        self._tell = tell
        self.before_release: Callable[[SaKey, int], None] = lambda _key, _above: None
        self._missed: frozenset[SaKey] = frozenset()
        self._released: frozenset[SaKey] = frozenset()
        self._written: dict[SaKey, int] = {}

    def keep_ahead(self, carried: Mapping[SaKey, Counters]) -> None:
        """Raise the kernel's numbers before the engine comes near. ``carried`` was told by an engine that is alive.

        Only of SAs that are claimed, and not once the engine was seen gone, so never after the kernel took one over.
        """
        try:
            if self._maps.engine_gone():
                return
            claimed = self._maps.claimed() & carried.keys()
        except IpsecGwError as error:
            self._tell(f"the kernel's numbers are not kept ahead of the engine's: {error}")
            return
        self._written = {key: number for key, number in self._written.items() if key in claimed}
        for key in claimed:
            if self._written.get(key, 0) - carried[key].packets < HAND_BACK_MARGIN:
                self._keep_one_ahead(key, carried[key].packets)

    def _keep_one_ahead(self, key: SaKey, sent: int) -> None:
        try:
            number = self._number(key)
            if number < sent:
                self._tell(
                    f"the engine passed the kernel's number of SA {key} while nobody looked for too long: had it died"
                    " then, numbers would have come twice"
                )
            if number - sent < HAND_BACK_MARGIN:
                number = self._raise(key, number, sent + KEPT_AHEAD)
        except IpsecGwError as error:  # the others must not wait for it
            if not _is_gone(error):  # by a rekey; if charon is just moving it, the next look sees to it
                self._tell(f"the kernel's number of SA {key} is not kept ahead of the engine's: {error}")
        else:
            self._written[key] = number

    def _raise(self, key: SaKey, number: int, target: int) -> int:
        """Upwards, and by a margin at least: more than the kernel sends between the look at its number and the write,
        should it take over just then. The number from then on is returned.
        """
        if number >= target:
            return number
        raised = max(target, number + HAND_BACK_MARGIN)
        self._kernel.raise_oseq(key, raised)
        return raised

    def follow(self, snapshot: Snapshot, kept: frozenset[SaKey]) -> None:
        """Keep up with our addresses and ports, let the kernel send with what it keeps, forget SAs that are gone.

        ``kept`` are outbound SAs that stay in the kernel: nobody waits for the hold of newborn SPIs to end. What is
        claimed is not among the released, it is handed back by :meth:`delete`. Forgotten is only after two
        looks: an SA may be seen by the guard just before it is seen by a snapshot.
        """
        self._maps.set_local(snapshot.local_addresses)
        for sa in snapshot.sas:
            if sa.replay.oseq < self._written.get(sa.key, 0):
                del self._written[sa.key]  # charon made it anew and left the number behind: raise it at the next look
        claimed = self._maps.claimed()
        self._follow_ports(snapshot, claimed)
        for key in kept - claimed - self._released:
            self._release(key)
        self._released = kept - claimed
        dead = self._maps.guarded() - claimed - {sa.key for sa in snapshot.sas}
        for key in dead & self._missed:
            self._maps.forget(key)
        self._missed = dead

    def _follow_ports(self, snapshot: Snapshot, claimed: frozenset[SaKey]) -> None:
        """A claimed SA that is not there may come back (charon moves it): its port is not given up before its claim."""
        present, ports = self._maps.nat_t_ports(), further_ports(snapshot)
        if claimed - {sa.key for sa in snapshot.sas}:
            ports = frozenset([*ports, *sorted(present - ports)][:MAX_NAT_T_PORTS])
        if ports != present:
            self._maps.set_nat_t_ports(ports)

    async def begin(self) -> None:
        """An engine has its sockets: what the kernel took over from the one before stays the kernel's, and the guard
        holds again for all that is claimed from now on.
        """
        if not self._maps.engine_gone():
            return
        for key in self._maps.claimed():
            await self.delete(Guard(GuardKey(key)))
        self._maps.set_engine_gone(False)

    async def retrieve(self) -> Mapping[GuardKey, Guard]:
        """The SAs that are claimed now."""
        return {GuardKey(key): Guard(GuardKey(key)) for key in self._maps.claimed()}

    async def create(self, obj: ManagedObject) -> None:
        """Claim an SA. Raises UsedKeyError, and leaves it to the kernel, if its key was used already, and GoneError."""
        key = _sa_key(obj)
        if self._maps.engine_gone():
            raise IpsecGwError(
                f"outbound SA {key} stays in the kernel: the engine is gone - it is given to the next one"
            )
        try:
            self._maps.claim(key)
            escaped = self._escaped(key)
            if escaped == 0:
                self._kernel.raise_oseq(key, self._number(key) + KEPT_AHEAD)
                return
        except IpsecGwError as error:
            if _is_gone(error):
                self._maps.forget(key)
                raise GoneError(str(error)) from None
            self._release(key)
            raise
        self._release(key)
        reason = f"the kernel has sent {escaped} packets with its key: a rekey brings a fresh one"
        if escaped >= HAND_BACK_MARGIN:
            reason = "its key may have been used by an engine before: a rekey brings a fresh one"
        self._refuse(key, reason)
        raise UsedKeyError(f"outbound SA {key} stays in the kernel: {reason}")

    def _escaped(self, key: SaKey) -> int:
        """How many sequence numbers may have reached the wire: given out by the kernel and not held back."""
        escaped = 0
        for _ in range(_LOOKS):
            count = self._maps.guard_counters().get(key)
            passed, held = (count.passed, count.dropped) if count else (0, 0)
            escaped = max(passed, self._number(key) - held, 0)
            if escaped == 0:
                break
        return escaped

    def _number(self, key: SaKey) -> int:
        """The last one that the kernel gave out."""
        sa = self._kernel.sa(key)
        if sa is None:
            raise GoneError(f"SA {key} is gone from the kernel - nothing needs to be done")
        return sa.replay.oseq

    async def update(self, obj: ManagedObject) -> None:
        """A guard has nothing to change."""

    async def delete(self, obj: ManagedObject) -> None:
        """Forget an SA that is gone; hand one that lives on back to the kernel, behind the engine's last number."""
        key = _sa_key(obj)
        sa = self._kernel.sa(key)
        if sa is None:
            self.before_release(key, EVERY_NUMBER)  # unclaimed it would leave, and the engine may have used its numbers
            self._maps.forget(key)
            return
        if key not in self._maps.claimed():
            return  # an engine that began meanwhile found it taken over, and it was released then
        sent, above = self._sent(key), 0
        if sent is None or sent.packets:
            # What the engine sent without telling is less than a margin above what the kernel was raised to.
            above = (sent.packets if sent else sa.replay.oseq) + HAND_BACK_MARGIN
            if not self._sends_already(sa, sent):
                self._raise(key, sa.replay.oseq, above)
            self._refuse(key, "its key was used by the engine before: a rekey brings a fresh one")
        self._release(key, above)

    def _release(self, key: SaKey, above: int = 0) -> None:
        self.before_release(key, above)
        self._maps.release(key)

    def _sends_already(self, sa: XfrmSa, sent: Counters | None) -> bool:
        """The kernel took over by itself, ahead of all that the engine sent: its number is its own. One that it was not
        kept ahead is moved a whole margin, more than it sends between a look at it and the write.
        """
        return self._maps.engine_gone() and (sent is None or sa.replay.oseq > sent.packets)


def _sa_key(obj: ManagedObject) -> SaKey:
    if not isinstance(obj, Guard):
        raise TypeError(f"{obj!r} is not a guard")
    return obj.key.sa


def _is_gone(error: IpsecGwError) -> bool:
    """The SA that a call was about does not exist any more."""
    return isinstance(error, GoneError) or (isinstance(error, XfrmError) and error.errno == errno.ESRCH)
