"""The kernel engine: no acceleration. strongSwan and XFRM work as they always did, and nothing is claimed."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NoReturn

from ipsec_gw.engines.port import Capabilities, Counters, EngineContext
from ipsec_gw.errors import EngineError
from ipsec_gw.model.ids import EngineName, SaKey
from ipsec_gw.model.objects import EngineKey, EngineObject


class KernelEngine:
    """The engine port (:class:`ipsec_gw.engines.port.Engine`) of a gateway without an engine."""

    def __init__(self, context: EngineContext) -> None:
        self._context = context

    @property
    def name(self) -> EngineName:
        """``kernel``."""
        return EngineName.KERNEL

    @property
    def epoch(self) -> int:
        """Always 0: there is nothing to lose."""
        return 0

    async def open(self) -> Capabilities:
        """Takes no interface and offers no algorithm, so that every SA stays where it is."""
        return Capabilities(
            algorithms=frozenset(),
            esn=False,
            udp_encap=False,
            max_replay_window=0,
            steers=False,
            note="no acceleration: the kernel does all ESP",
        )

    async def close(self) -> None:
        """Nothing to let go of."""

    async def retrieve(self) -> Mapping[EngineKey, EngineObject]:
        """Always empty."""
        return MappingProxyType({})

    async def create(self, obj: EngineObject) -> None:
        """Raises EngineError."""
        self._refuse(obj.key)

    async def update(self, obj: EngineObject) -> None:
        """Raises EngineError."""
        self._refuse(obj.key)

    async def delete(self, key: EngineKey) -> None:
        """Raises EngineError."""
        self._refuse(key)

    async def counters(self) -> Mapping[SaKey, Counters]:
        """Always empty: the kernel counts for itself."""
        return MappingProxyType({})

    async def numbers(self) -> Mapping[SaKey, int]:
        """None is known."""
        return {}

    def last_counters(self) -> Mapping[SaKey, Counters]:
        """Always empty."""
        return MappingProxyType({})

    async def vitals(self) -> None:
        """The kernel needs no watching."""

    def _refuse(self, key: EngineKey) -> NoReturn:
        raise EngineError(f"{key}: the kernel engine holds nothing - leave it to XFRM, or configure another engine")
