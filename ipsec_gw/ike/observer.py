"""The joined snapshot: kernel SAs and policies, vici's names, and the network around them, at one moment."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence, Set
from typing import Protocol

from pyroute2.netlink.exceptions import NetlinkError

from ipsec_gw.errors import EnvironmentMissing, IkeError
from ipsec_gw.ike.xfrm import XfrmMonitor, XfrmSocket
from ipsec_gw.mirror.kernel import KernelView
from ipsec_gw.mirror.links import Links
from ipsec_gw.model.ids import IpAddress
from ipsec_gw.model.objects import Selector
from ipsec_gw.model.snapshot import (
    ChildName,
    LeadLimits,
    Mode,
    PolicyDirection,
    ResolvedHop,
    Snapshot,
    XfrmPolicy,
    XfrmSa,
)

_DUMP_TRIES = 5

_SETTLE_SECONDS = 0.1
"""charon moves an SA by deleting it and adding it again, within milliseconds (``update_sa`` of its kernel-netlink
plugin): what has just vanished may be about to come back. It moves them one by one, so one direction is there.
"""


class NameSource(Protocol):
    """Where CHILD_SA names come from, and the version of who gives them."""

    @property
    def version(self) -> str:
        """Charon's, empty while it is not known."""

    async def child_names(self) -> dict[int, ChildName]:
        """Names by SPI. Raises IkeError if charon cannot be asked."""


class Observer:
    """Takes snapshots. Without vici the last known names are used and decisions go on. ``watch`` is told of the
    peers and of the ways to them.

    ``names_decide`` tells that decisions depend on names (some connections are kept in the kernel): then charon is
    asked first. Otherwise it is asked beside, and ``named`` is called when new names are known: an SA is decided
    on while charon is still busy with the exchange that made it. ``limits`` tells what cannot be led, and sees to it
    that nothing else is among that.
    """

    limits: Callable[[Sequence[XfrmPolicy]], LeadLimits] = staticmethod(lambda _policies: LeadLimits())

    def __init__(
        self,
        kernel: XfrmSocket,
        monitor: XfrmMonitor,
        view: KernelView,
        names: NameSource,
        watch: Callable[[frozenset[IpAddress], Mapping[IpAddress, ResolvedHop]], None] = lambda _peers, _hops: None,
        *,
        names_decide: bool,
        named: Callable[[], None],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.names_decide = names_decide
        self._named = named
        self._asking: asyncio.Task[None] | None = None
        self._kernel = kernel
        self._monitor = monitor
        self._view = view
        self._source = names
        self._watch = watch
        self._names: dict[int, ChildName] = {}
        self._sleep = sleep
        self._spis: frozenset[tuple[int, int]] = frozenset()

    async def snapshot(self) -> Snapshot:
        """One look. Dumps are repeated while the kernel changes under them, a few times at most."""
        sas, policies = await self._steady_dump()
        if self._half_gone(sas):
            await self._sleep(_SETTLE_SECONDS)
            sas, policies = await self._steady_dump()
        self._spis = _spis(sas)
        await self._see_to_names(sas)
        try:
            return await self._join(sas, policies)
        except (NetlinkError, OSError) as error:
            raise EnvironmentMissing(
                f"the kernel's addresses, routes and neighbours cannot be read ({error}) - see `ip addr` and `dmesg`"
            ) from None

    def _half_gone(self, sas: list[XfrmSa]) -> bool:
        """Whether an SA has vanished that leaves its tunnel with one direction: a tunnel that was replaced has both,
        and one that was deleted has none.
        """
        left = defaultdict[int, set[IpAddress]](set)
        for sa in sas:
            left[sa.reqid].add(sa.key.destination)
        return any(len(left[reqid]) == 1 for reqid, _ in self._spis - _spis(sas))

    async def _steady_dump(self) -> tuple[list[XfrmSa], list[XfrmPolicy]]:
        """A dump that nothing has changed under, or what several of them have seen together."""
        seen: dict[tuple[PolicyDirection, int, Selector], XfrmPolicy] = {}
        for _ in range(_DUMP_TRIES):
            before = self._monitor.changes
            sas, policies = await asyncio.to_thread(self._dump)
            self._monitor.drain()
            if self._monitor.changes == before:
                return sas, policies
            # A policy that is changed during a dump moves to where the dump has been already, and is not in it. One
            # too many does no harm: what has changed is looked at again.
            seen |= {(policy.direction, policy.index, policy.selector): policy for policy in policies}
        return sas, sorted(seen.values(), key=lambda policy: policy.index)

    async def _join(self, sas: list[XfrmSa], policies: list[XfrmPolicy]) -> Snapshot:
        addresses = await self._view.addresses()
        ends = _ends(sas, addresses)
        peers = frozenset(ends)
        self._watch(peers, {})  # first: what changes while the ways are read must not be lost
        if_ids, marks, devices = _any_if_id(sas, policies), _any_mark(sas, policies), _any_device(sas, policies)
        # One dump for all of it: a thousand interfaces take half a second.
        links = await self._view.links() if peers or if_ids or marks or devices else Links(())
        hops = await self._view.next_hops(ends, links)
        self._watch(peers, hops)
        return Snapshot(
            sas=tuple(sas),
            policies=tuple(policies),
            names=dict(self._names),
            local_addresses=addresses,
            next_hops=hops,
            sources=await self._view.source_hints(),
            limits=self.limits(policies),
            interfaces=links.xfrm_interfaces() if if_ids else {},
            vtis=links.vtis() if marks else (),
            encapsulators=links.encapsulators() if devices else (),
            vxlans=await self._view.vxlans(links) if devices else (),
            charon=self._source.version,
        )

    def _dump(self) -> tuple[list[XfrmSa], list[XfrmPolicy]]:
        policies = self._kernel.policies()  # policies first: the SAs that they point to exist already
        return [sa for sa in self._kernel.sas() if not sa.larval], policies

    async def _see_to_names(self, sas: list[XfrmSa]) -> None:
        """Ask charon only when there is an SA without a name: its list is the slowest part of a snapshot."""
        spis = {sa.key.spi for sa in sas}
        if spis <= self._names.keys():
            self._names = {spi: name for spi, name in self._names.items() if spi in spis}
        elif self.names_decide:
            await self._learn_names()
        elif self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._learn_names(), name="names from charon")

    async def _learn_names(self) -> None:
        try:
            names = await self._source.child_names()
        except IkeError:
            return  # the vici watcher reports and reconnects
        if names.items() <= self._names.items():
            return
        self._names |= names
        self._named()


def _spis(sas: list[XfrmSa]) -> frozenset[tuple[int, int]]:
    """What an SA keeps when its peer moves: the SPI, and the tunnel's reqid keeps equal ones apart."""
    return frozenset((sa.reqid, sa.key.spi) for sa in sas)


def _ends(sas: Iterable[XfrmSa], addresses: Set[IpAddress]) -> dict[IpAddress, IpAddress | None]:
    """The peers, each with the address of ours that packets to it come from: the first one if there are several, and
    none if it is no address of ours any more.
    """
    found: dict[IpAddress, set[IpAddress]] = defaultdict(set)
    for sa in sas:
        if sa.key.destination not in addresses:
            found[sa.key.destination].add(sa.source)
    return {peer: min(filter(addresses.__contains__, ours), key=str, default=None) for peer, ours in found.items()}


def _any_if_id(sas: Iterable[XfrmSa], policies: Iterable[XfrmPolicy]) -> bool:
    return any(sa.if_id for sa in sas) or any(policy.if_id for policy in policies)


def _any_device(sas: Iterable[XfrmSa], policies: Iterable[XfrmPolicy]) -> bool:
    """Whether a GRE, IPIP or VXLAN device may send by them: they are for what is between two hosts."""
    between_hosts = any(policy.templates and policy.selector.of_hosts for policy in policies)
    return between_hosts or any(sa.mode is Mode.TRANSPORT for sa in sas)


def _any_mark(sas: Iterable[XfrmSa], policies: Iterable[XfrmPolicy]) -> bool:
    return any(sa.mark for sa in sas) or any(policy.mark for policy in policies)
