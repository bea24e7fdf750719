"""From a difference to an ordered list of operations: pure, printable, and safe at every step.

The order is DESIGN.md's invariant 2, and holds for first birth, rekey and removal alike, because nothing is
taken away before its users are gone and nothing is used before it is there::

    0  exempt from leading                         (what comes)
       tunnels: swap the outbound SA, with its guard, where inbound ones go as well
    1  stop leading plaintext, stop steering       (what goes away)
    2  drain                                       (packets already in the rings)
    3  overlays, tunnels                           (what goes away, and may be in the way of what comes)
    4  open interfaces, guard outbound SAs         (the kernel may not send with them any more)
    5  next hops, SAs                              (what comes)
    6  tunnels: create, or swap their SAs          (the one moment of a rekey)
       overlays                                    (what comes)
    7  steer, lead                                 (what comes)
    8  exemptions, SAs, next hops, guards,
       interfaces                                  (what goes away)

An overlay that is to be another one goes and comes anew, and what leads to it with it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from types import UnionType

from ipsec_gw.model.ids import Direction
from ipsec_gw.model.objects import (
    AnyLead,
    EngineSa,
    EntryKey,
    Exempt,
    ExemptKey,
    Guard,
    GuardKey,
    HostsLead,
    InterfaceEntry,
    InterfaceLead,
    Lead,
    ManagedObject,
    NextHop,
    ObjectKey,
    Overlay,
    Selector,
    Steer,
    SteerKey,
    Tunnel,
)

_NONE: frozenset[ObjectKey] = frozenset()


class Action(StrEnum):
    """What an operation does. DRAIN waits until packets that were steered or led before have left the rings."""

    CREATE = "create"
    UPDATE = "update"
    DELETE = "delete"
    DRAIN = "drain"


@dataclass(frozen=True, slots=True)
class Op:
    """One step. ``obj`` is the new value (create, update) or the one in place (delete); None only to drain.

    ``needs`` are keys that must be in place for a create or update, and ``frees`` keys that must be gone before a
    delete or an update: when an earlier step for one of them failed, this one is skipped.
    """

    action: Action
    obj: ManagedObject | None
    needs: frozenset[ObjectKey] = frozenset()
    frees: frozenset[ObjectKey] = frozenset()

    def __str__(self) -> str:
        if self.obj is None:
            return str(self.action)
        return f"{self.action} {describe(self.obj)}"


def describe(obj: ManagedObject) -> str:
    """An object in a few words, without any key material."""
    match obj:
        case EngineSa():
            return f"SA {obj.direction} {obj.key} {obj.algorithm.name}"
        case NextHop():
            return f"next hop of {obj.key} via {obj.gateway} dev {obj.interface}"
        case Tunnel():
            inbound = ", ".join(f"{key.spi:08x}" for key in obj.inbound)
            return f"tunnel {obj.key} in [{inbound}] out {obj.outbound.spi:08x}"
        case Lead() | InterfaceLead() | HostsLead():
            return f"lead of {obj.key}"
        case Guard() | Steer() | Exempt() | InterfaceEntry() | Overlay():
            return str(obj.key)


def plan(desired: Mapping[ObjectKey, ManagedObject], in_place: Mapping[ObjectKey, ManagedObject]) -> tuple[Op, ...]:
    """The operations that turn ``in_place`` into ``desired``. Empty exactly when the two are equal."""
    before, after = _Users(in_place), _Users(desired)
    shaken = _shaken(desired, in_place, before, after)
    # Leads whose tunnel is not known, because its engine is out of reach: it may be alive, with any of the SAs.
    orphans = frozenset(
        k for k, v in in_place.items() if isinstance(v, AnyLead) and k not in desired and not before.of(k)
    )
    # What is steered to such a tunnel may come out of it by any interface, until it is known, or steered no more.
    strays = frozenset(
        key
        for k, v in in_place.items()
        if isinstance(v, Steer) and not before.of(v.key.sa)
        for key in (k, *after.of(v.key.sa))
    )
    alone = {Guard: orphans, InterfaceEntry: strays}
    coming = [
        Op(
            Action.UPDATE if key in in_place and key not in shaken else Action.CREATE,
            value,
            needs=_needs(value, after),
            frees=_makes_way(value, desired, in_place, before),
        )
        for key, value in desired.items()
        if in_place.get(key) != value or key in shaken
    ]
    going = [
        Op(
            Action.DELETE,
            value,
            frees=_frees(value, before, after, in_place) | alone.get(type(value), _NONE),
        )
        for key, value in in_place.items()
        if key not in desired or key in shaken
    ]
    return tuple(_ordered(coming, going, _swaps(coming, in_place)))


def _swaps(coming: list[Op], in_place: Mapping[ObjectKey, ManagedObject]) -> dict[ObjectKey, Op]:
    """Tunnels whose outbound SA must not wait for the drain of inbound ones that go with it: the peer may have deleted
    it already (RFC 7296 §2.8.1: of two simultaneous rekeys one is deleted at once).
    """
    swaps: dict[ObjectKey, Op] = {}
    for op in coming:
        old = in_place.get(op.obj.key) if isinstance(op.obj, Tunnel) and op.action is Action.UPDATE else None
        if not isinstance(old, Tunnel) or not isinstance(op.obj, Tunnel) or old.outbound == op.obj.outbound:
            continue
        if not set(old.inbound) <= set(op.obj.inbound):
            outbound = op.obj.outbound
            needs: frozenset[ObjectKey] = frozenset({outbound, GuardKey(outbound)})
            swaps[old.key] = Op(Action.UPDATE, replace(old, outbound=outbound), needs=needs)
    return swaps


def _shaken(
    desired: Mapping[ObjectKey, ManagedObject],
    in_place: Mapping[ObjectKey, ManagedObject],
    before: _Users,
    after: _Users,
) -> frozenset[ObjectKey]:
    """What brings packets to a tunnel and stays, while the tunnel goes and another one comes (the peer has moved). It
    is not taken from one that stays with it. And overlays that change, with what brings frames to them.
    """
    staying: dict[ObjectKey, ObjectKey] = {}
    for key, value in in_place.items():
        if isinstance(value, Steer | AnyLead) and key in desired:
            staying[key] = value.key.sa if isinstance(value, Steer) else key
    changed = {k: v for k, v in in_place.items() if isinstance(v, Overlay) and desired.get(k, v) != v}
    return frozenset(
        key
        for key, used in staying.items()
        if before.of(used) != after.of(used) and before.of(used).isdisjoint(after.of(used))
    ) | frozenset(key for overlay in changed.values() for key in (overlay.key, *_brings(overlay, staying)))


class _Users:
    """Which tunnels use an SA, the next hop to a peer, or a selector; and which overlays a tunnel or an interface."""

    def __init__(self, objects: Mapping[ObjectKey, ManagedObject]) -> None:
        self._users: dict[ObjectKey, list[Tunnel | Overlay]] = defaultdict(list)
        self._tunnels = [obj for obj in objects.values() if isinstance(obj, Tunnel)]
        self._by_selector: dict[Selector, list[Tunnel]] | None = None
        for tunnel in self._tunnels:
            for key in {*tunnel.inbound, tunnel.outbound, tunnel.remote, *tunnel.leads, *_entries(tunnel)}:
                self._users[key].append(tunnel)
        for overlay in (obj for obj in objects.values() if isinstance(obj, Overlay)):
            interface = overlay.key.interface
            used: list[ObjectKey] = [*overlay.tunnels, interface, EntryKey(interface)]
            for one in used:
                self._users[one].append(overlay)

    def of(self, key: ObjectKey) -> frozenset[ObjectKey]:
        """The tunnels, or overlays."""
        return frozenset(user.key for user in self._users.get(key, ()))

    def exemptions(self, key: ObjectKey) -> frozenset[ObjectKey]:
        """What may have to be exempted from the tunnels."""
        return frozenset(ExemptKey(one) for tunnel in self._tunnels_of(key) for one in tunnel.exceptions)

    def takers(self, selector: Selector) -> frozenset[ObjectKey]:
        """Those that encrypt what fits a selector, and with what brings it to them."""
        return frozenset(key for tunnel in self._takers().get(selector, ()) for key in (tunnel.key, *tunnel.leads))

    def _takers(self) -> Mapping[Selector, list[Tunnel]]:
        if self._by_selector is None:
            self._by_selector = defaultdict(list)
            for tunnel in self._tunnels:
                for selector in tunnel.selectors:
                    self._by_selector[selector].append(tunnel)
        return self._by_selector

    def guards(self, key: ObjectKey) -> frozenset[ObjectKey]:
        """The guards of the SAs that the tunnels send with."""
        return frozenset(GuardKey(tunnel.outbound) for tunnel in self._tunnels_of(key))

    def _tunnels_of(self, key: ObjectKey) -> Iterator[Tunnel]:
        return (user for user in self._users.get(key, ()) if isinstance(user, Tunnel))


def _ordered(coming: list[Op], going: list[Op], swaps: Mapping[ObjectKey, Op]) -> Iterator[Op]:
    yield from _of(coming, Exempt)
    sooner = frozenset[ObjectKey]().union(*(swap.needs for swap in swaps.values()))
    yield from (op for op in _of(coming, Guard) if op.obj is not None and op.obj.key in sooner)
    yield from (op for op in _of(coming, EngineSa) if op.obj is not None and op.obj.key in sooner)
    yield from swaps.values()
    coming = [_after(swaps, op) for op in coming if op.obj is not None and op.obj.key not in sooner]
    yield from _of(going, AnyLead)
    unsteered, overlays = list(_of(going, Steer)), list(_of(going, Overlay))
    yield from unsteered
    if unsteered or overlays:
        yield Op(Action.DRAIN, None)
    yield from overlays
    yield from _of(going, Tunnel)
    for kind in (InterfaceEntry, Guard, NextHop, EngineSa, Tunnel, Overlay, Steer, AnyLead):
        yield from _of(coming, kind)
    yield from _of(going, Exempt)
    for kind in (EngineSa, NextHop, Guard, InterfaceEntry):
        yield from _of(going, kind)


def _after(swaps: Mapping[ObjectKey, Op], op: Op) -> Op:
    """It waits for the swap of the same tunnel."""
    return replace(op, needs=op.needs | {op.obj.key}) if op.obj is not None and op.obj.key in swaps else op


def _of(operations: list[Op], kind: type[ManagedObject] | UnionType) -> Iterator[Op]:
    return (op for op in operations if isinstance(op.obj, kind))


def _needs(value: ManagedObject, users: _Users) -> frozenset[ObjectKey]:
    match value:
        case EngineSa() if value.direction is Direction.OUT:
            return frozenset({GuardKey(value.key)})
        case Tunnel():
            guard = GuardKey(value.outbound)
            return frozenset({*value.inbound, value.outbound, value.remote, guard, *_entries(value)})
        case Overlay():
            return frozenset({*value.tunnels, EntryKey(value.key.interface)})
        case Steer():
            return users.of(value.key.sa)
        case Lead() | InterfaceLead() | HostsLead():
            return users.of(value.key) | users.guards(value.key) | users.exemptions(value.key)
        case _:
            return frozenset()


def _makes_way(
    value: ManagedObject,
    desired: Mapping[ObjectKey, ManagedObject],
    in_place: Mapping[ObjectKey, ManagedObject],
    before: _Users,
) -> frozenset[ObjectKey]:
    """Of a tunnel: what brings packets to it by an SA or selector that its new value lacks, overlays that go or change,
    and the tunnels that go and have what it takes over. Of an overlay: what it was before.
    """
    if isinstance(value, Overlay):
        return frozenset({value.key} & in_place.keys())
    if not isinstance(value, Tunnel):
        return _NONE
    overlays = frozenset(key for key in before.of(value.key) if desired.get(key) != in_place[key])
    old = in_place.get(value.key)
    lacking = _brings(old, in_place) - _brings(value, in_place) if isinstance(old, Tunnel) else _NONE
    taken: tuple[ObjectKey, ...] = (*value.inbound, *value.leads)
    holders = _NONE.union(*map(before.of, taken))
    # Not "- desired.keys()": that looks at every one of them.
    return lacking | overlays | frozenset(key for key in holders if key not in desired)


def _brings(user: Tunnel | Overlay, in_place: Container[ObjectKey]) -> frozenset[ObjectKey]:
    """What is there of what brings packets to it."""
    users: tuple[ObjectKey, ...] = (user.key.interface,) if isinstance(user, Overlay) else _sources(user)
    return frozenset(key for key in users if key in in_place)


def _sources(tunnel: Tunnel) -> tuple[ObjectKey, ...]:
    return (*map(SteerKey, tunnel.inbound), *tunnel.leads)


def _entries(tunnel: Tunnel) -> tuple[EntryKey, ...]:
    return () if tunnel.interface is None else (EntryKey(tunnel.interface),)


def _frees(
    value: ManagedObject, tunnels: _Users, after: _Users, in_place: Mapping[ObjectKey, ManagedObject]
) -> frozenset[ObjectKey]:
    """Keys of what uses this object and has to be gone, or updated, before it; of an exemption, those of the tunnels
    that are to have what it keeps from others.
    """
    match value:
        case Exempt():
            return after.takers(value.key.selector)
        case Guard():
            return frozenset({value.key.sa})
        case EngineSa():
            return tunnels.of(value.key) | ({SteerKey(value.key)} & in_place.keys())
        case NextHop() | InterfaceEntry():
            return tunnels.of(value.key)
        case Tunnel() | Overlay():
            return _brings(value, in_place) | tunnels.of(value.key)
        case _:
            return frozenset()
