"""Stateful fakes at the seams of the control plane."""

from __future__ import annotations

from collections.abc import Mapping

from ipsec_gw.engines.port import Capabilities, Counters, Vitals
from ipsec_gw.errors import EngineError, EngineUnavailable
from ipsec_gw.model.algorithms import ALGORITHMS
from ipsec_gw.model.ids import EngineName, SaKey
from ipsec_gw.model.objects import EngineKey, EngineObject, EngineSa, ManagedObject, NextHop, ObjectKey, Overlay, Tunnel
from ipsec_gw.model.snapshot import Snapshot


class FakeEngine:
    """Holds objects, refuses what the port's docstrings say, and breaks where ``broken`` or ``refuses`` tell."""

    name = EngineName.VPP

    def __init__(self) -> None:
        self.objects: dict[EngineKey, EngineObject] = {}
        self.sent: dict[SaKey, Counters] = {}
        self.epoch = 1
        self.broken = False
        self.refuses: set[ObjectKey] = set()
        self.calls: list[str] = []

    async def open(self) -> Capabilities:
        self._check()
        return Capabilities(frozenset(ALGORITHMS), True, True, 4096, True, "fake")

    async def close(self) -> None:
        pass

    async def retrieve(self) -> Mapping[EngineKey, EngineObject]:
        self._check()
        return dict(self.objects)

    async def create(self, obj: EngineObject) -> None:
        self._check(obj)
        if obj.key in self.objects:
            raise EngineError(f"{obj.key} exists")
        self._references(obj)
        self.objects[obj.key] = obj
        if isinstance(obj, EngineSa):
            self.sent[obj.key] = Counters(0, 0)

    async def update(self, obj: EngineObject) -> None:
        self._check(obj)
        self._references(obj)
        self.objects[obj.key] = obj

    async def delete(self, key: EngineKey) -> None:
        self._check()
        for other in self.objects.values():
            if isinstance(other, Tunnel) and key in {*other.inbound, other.outbound, other.remote}:
                raise EngineError(f"{key} is used by {other.key}")
        del self.objects[key]
        self.sent.pop(key, None)  # type: ignore[call-overload]

    async def counters(self) -> Mapping[SaKey, Counters]:
        self._check()
        return dict(self.sent)

    async def numbers(self) -> Mapping[SaKey, int]:
        return {}

    def last_counters(self) -> Mapping[SaKey, Counters]:
        return dict(self.sent)

    async def vitals(self) -> Vitals | None:
        return None

    def restart(self) -> None:
        """Lose everything, as a restarted VPP does."""
        self.objects.clear()
        self.sent.clear()
        self.epoch += 1

    def _check(self, obj: EngineObject | None = None) -> None:
        if self.broken:
            raise EngineUnavailable("API socket is gone")
        if obj is not None and obj.key in self.refuses:
            raise EngineError(f"{obj.key} refused")

    def _references(self, obj: EngineObject) -> None:
        if isinstance(obj, Tunnel) and not {*obj.inbound, obj.outbound, obj.remote} <= self.objects.keys():
            raise EngineError(f"{obj.key} refers to what is not there")
        assert isinstance(obj, EngineSa | NextHop | Tunnel | Overlay)


class FakeSource:
    """Hands out whatever snapshot the test put in."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.now = snapshot

    async def snapshot(self) -> Snapshot:
        return self.now


class FakeDriver:
    """Keeps objects of any kind; refuses the keys in ``refuses``."""

    def __init__(self) -> None:
        self.objects: dict[ObjectKey, ManagedObject] = {}
        self.refuses: set[ObjectKey] = set()
        self.renewed = 0

    async def retrieve(self) -> Mapping[ObjectKey, ManagedObject]:
        return dict(self.objects)

    def renew(self) -> None:
        self.renewed += 1

    async def create(self, obj: ManagedObject) -> None:
        if obj.key in self.refuses:
            raise EngineError(f"{obj.key} refused")
        assert obj.key not in self.objects
        self.objects[obj.key] = obj

    async def update(self, obj: ManagedObject) -> None:
        assert obj.key in self.objects
        self.objects[obj.key] = obj

    async def delete(self, obj: ManagedObject) -> None:
        del self.objects[obj.key]

    async def clear(self) -> None:
        self.objects.clear()
