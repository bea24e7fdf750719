"""The joined snapshot: kernel SAs and policies, vici's names, and the network around them, at one moment."""

from __future__ import annotations

import asyncio
from typing import Protocol

from ipsec_gw.errors import IkeError
from ipsec_gw.ike.xfrm import XfrmMonitor, XfrmSocket
from ipsec_gw.mirror.kernel import KernelView
from ipsec_gw.model.snapshot import ChildName, Snapshot, XfrmPolicy, XfrmSa

_DUMP_TRIES = 5


class NameSource(Protocol):
    """Where CHILD_SA names come from."""

    async def child_names(self) -> dict[int, ChildName]:
        """Names by SPI. Raises IkeError if charon cannot be asked."""


class Observer:
    """Takes snapshots. Names are a convenience: without vici the last known ones are used and decisions go on."""

    def __init__(self, kernel: XfrmSocket, monitor: XfrmMonitor, view: KernelView, names: NameSource) -> None:
        self._kernel = kernel
        self._monitor = monitor
        self._view = view
        self._source = names
        self._names: dict[int, ChildName] = {}

    async def snapshot(self) -> Snapshot:
        """One look. Dumps are repeated while the kernel changes under them, a few times at most."""
        for _ in range(_DUMP_TRIES):
            before = self._monitor.changes
            sas, policies = await asyncio.to_thread(self._dump)
            self._monitor.drain()
            if self._monitor.changes == before:
                break
        await self._learn_names(sas)
        addresses = await self._view.addresses()
        peers = {sa.key.destination for sa in sas if sa.key.destination not in addresses}
        return Snapshot(
            sas=tuple(sas),
            policies=tuple(policies),
            names=dict(self._names),
            local_addresses=frozenset(addresses),
            next_hops=await self._view.next_hops(peers),
            sources=await self._view.source_hints(),
        )

    def _dump(self) -> tuple[list[XfrmSa], list[XfrmPolicy]]:
        policies = self._kernel.policies()  # policies first: the SAs that they point to exist already
        return self._kernel.sas(), policies

    async def _learn_names(self, sas: list[XfrmSa]) -> None:
        """Ask charon only when there is an SA without a name: its list is the slowest part of a snapshot."""
        spis = {sa.key.spi for sa in sas}
        if spis <= self._names.keys():
            self._names = {spi: name for spi, name in self._names.items() if spi in spis}
            return
        try:
            names = await self._source.child_names()
        except IkeError:
            return  # the vici watcher reports and reconnects
        self._names |= names
