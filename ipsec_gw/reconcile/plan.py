"""From a difference to an ordered list of operations: pure, printable, and safe at every step.

The order is DESIGN.md's invariant 2, and holds for first birth, rekey and removal alike, because nothing is
taken away before its users are gone and nothing is used before it is there::

    1  stop leading plaintext, stop steering       (what goes away)
    2  drain                                       (packets already in the rings)
    3  guard outbound SAs                          (the kernel may not send with them any more)
    4  next hops, SAs                              (what comes)
    5  tunnels: create, or swap their SAs          (the one moment of a rekey)
    6  steer, lead                                 (what comes)
    7  tunnels, SAs, next hops, guards             (what goes away)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from ipsec_gw.model.ids import Direction
from ipsec_gw.model.objects import (
    EngineSa,
    Guard,
    GuardKey,
    Lead,
    ManagedObject,
    NextHop,
    ObjectKey,
    Steer,
    Tunnel,
)


class Action(StrEnum):
    """What an operation does. DRAIN waits until packets that were steered before have left the rings."""

    CREATE = "create"
    UPDATE = "update"
    DELETE = "delete"
    DRAIN = "drain"


@dataclass(frozen=True, slots=True)
class Op:
    """One step. ``obj`` is the new value (create, update) or the one in place (delete); None only to drain.

    ``needs`` are keys that must be in place for a create or update, and ``frees`` keys that must be gone for a delete:
    when an earlier step for one of them failed, this one is skipped.
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
        case Guard():
            return f"guard of {obj.key.sa}"
        case Steer():
            return f"steering of {obj.key.sa}"
        case Lead():
            return f"lead of {obj.key}"


def plan(desired: Mapping[ObjectKey, ManagedObject], in_place: Mapping[ObjectKey, ManagedObject]) -> tuple[Op, ...]:
    """The operations that turn ``in_place`` into ``desired``. Empty exactly when the two are equal."""
    coming = [Op(_action(v, in_place), v, needs=_needs(v, desired)) for v in desired.values() if _differs(v, in_place)]
    going = [
        Op(Action.DELETE, value, frees=_users(value, in_place)) for key, value in in_place.items() if key not in desired
    ]
    return tuple(_ordered(coming, going))


def _ordered(coming: list[Op], going: list[Op]) -> Iterator[Op]:
    yield from _of(going, Lead)
    unsteered = list(_of(going, Steer))
    yield from unsteered
    if unsteered:
        yield Op(Action.DRAIN, None)
    for kind in (Guard, NextHop, EngineSa, Tunnel, Steer, Lead):
        yield from _of(coming, kind)
    for kind in (Tunnel, EngineSa, NextHop, Guard):
        yield from _of(going, kind)


def _of(operations: list[Op], kind: type[ManagedObject]) -> Iterator[Op]:
    return (op for op in operations if isinstance(op.obj, kind))


def _differs(value: ManagedObject, in_place: Mapping[ObjectKey, ManagedObject]) -> bool:
    return in_place.get(value.key) != value


def _action(value: ManagedObject, in_place: Mapping[ObjectKey, ManagedObject]) -> Action:
    return Action.UPDATE if value.key in in_place else Action.CREATE


def _needs(value: ManagedObject, desired: Mapping[ObjectKey, ManagedObject]) -> frozenset[ObjectKey]:
    match value:
        case EngineSa() if value.direction is Direction.OUT:
            return frozenset({GuardKey(value.key)})
        case Tunnel():
            return frozenset({*value.inbound, value.outbound, value.remote})
        case Steer():
            return frozenset(t.key for t in _tunnels(desired) if value.key.sa in t.inbound)
        case Lead():
            return frozenset(t.key for t in _tunnels(desired) if value.key in t.selectors)
        case _:
            return frozenset()


def _users(value: ManagedObject, in_place: Mapping[ObjectKey, ManagedObject]) -> frozenset[ObjectKey]:
    """Keys of what uses this object and has to be gone, or updated, before it."""
    match value:
        case Guard():
            return frozenset({value.key.sa})
        case EngineSa():
            users = {t.key for t in _tunnels(in_place) if value.key == t.outbound or value.key in t.inbound}
            steers = {s.key for s in in_place.values() if isinstance(s, Steer) and s.key.sa == value.key}
            return frozenset(users | steers)
        case NextHop():
            return frozenset(t.key for t in _tunnels(in_place) if t.remote == value.key)
        case Tunnel():
            steers = {s.key for s in in_place.values() if isinstance(s, Steer) and s.key.sa in value.inbound}
            leads = {x.key for x in in_place.values() if isinstance(x, Lead) and x.key in value.selectors}
            return frozenset(steers | leads)
        case _:
            return frozenset()


def _tunnels(objects: Mapping[ObjectKey, ManagedObject]) -> Iterator[Tunnel]:
    return (obj for obj in objects.values() if isinstance(obj, Tunnel))
