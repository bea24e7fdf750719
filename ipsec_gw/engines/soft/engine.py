"""The soft engine: the engine port by a Python thread on AF_XDP sockets.

A reference for laboratories and tests on machines without VPP. It is exact, and slow: tens of thousands of packets
per second. Its objects live in this process and end with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Protocol

import cryptography
import structlog

from ipsec_gw.engines.port import Capabilities, Counters, EngineContext, Link
from ipsec_gw.engines.soft.datapath import Datapath, FrameSocket
from ipsec_gw.engines.soft.drops import DropCounter, Drops
from ipsec_gw.engines.soft.esp import supported_algorithms
from ipsec_gw.engines.soft.queues import rx_queues
from ipsec_gw.engines.soft.store import MAX_REPLAY_WINDOW, Store
from ipsec_gw.errors import EngineError, EngineUnavailable, IpsecGwError
from ipsec_gw.model.ids import EngineName, SaKey
from ipsec_gw.model.objects import EngineKey, EngineObject
from xdp_steer.xsk import XskSocket

_log = structlog.get_logger(__name__)

_FRAME_BYTES = 2048
_LARGE_FRAME_BYTES = 4096
"""The two frame sizes of AF_XDP (linux/if_xdp.h: 2048 up to the page size)."""
_HEADROOM_BYTES = 256
"""XDP_PACKET_HEADROOM: what the kernel keeps free in front of a received packet."""
_ETHERNET_BYTES = 18
"""Ethernet header and one VLAN tag."""
_LARGEST_PACKET = _LARGE_FRAME_BYTES - _HEADROOM_BYTES - _ETHERNET_BYTES


class SteeredSocket(FrameSocket, Protocol):
    """A socket that an XSKMAP can lead to."""

    def enter(self, xsks_map_fd: int) -> None:
        """Put the socket into an XSKMAP at its queue."""


class OpenSocket(Protocol):
    """Opens a socket on a queue of an interface."""

    def __call__(self, interface: str, queue: int, *, frame_size: int) -> SteeredSocket:
        """Raises IpsecGwError or OSError if it cannot be had."""


class SoftEngine:
    """The engine port (:class:`ipsec_gw.engines.port.Engine`) in Python.

    ``open_socket`` and ``count_queues`` are seams for tests.
    """

    def __init__(
        self,
        context: EngineContext,
        *,
        open_socket: OpenSocket = XskSocket,
        count_queues: Callable[[str], int] = rx_queues,
    ) -> None:
        self._context = context
        self._open_socket = open_socket
        self._count_queues = count_queues
        self._epoch = time.time_ns()  # another process has lost these objects: its epoch differs
        self._store = Store(context, _LARGEST_PACKET)
        self._drops = DropCounter()
        self._datapath: Datapath | None = None

    @property
    def name(self) -> EngineName:
        """``soft``."""
        return EngineName.SOFT

    @property
    def epoch(self) -> int:
        """The same for the life of this object."""
        return self._epoch

    def drops(self) -> Drops:
        """What the datapath dropped since this object was made, by reason."""
        return self._drops.read()

    async def open(self) -> Capabilities:
        """Open sockets, start the thread, then let the docks steer to it. Raises EngineUnavailable."""
        if self._datapath is not None:
            raise EngineError("the soft engine is open already - close it first")
        with contextlib.ExitStack() as undo:
            try:
                sockets = {link.name: self._open_sockets(link, undo) for link in self._links()}
            except (IpsecGwError, OSError) as error:
                raise EngineUnavailable(f"the soft engine cannot take its interfaces: {error}") from error
            datapath = self._datapath_of(sockets)
            datapath.start()
            undo.pop_all()
            undo.callback(datapath.stop)  # which closes the sockets, too
            try:
                await self._context.taking()
                self._enter(sockets)
            except (IpsecGwError, OSError) as error:
                raise EngineUnavailable(f"the soft engine cannot enter a dock: {error}") from error
            undo.pop_all()
        self._datapath = datapath
        _log.info("engine open", engine="soft", interfaces=list(sockets))
        return self._capabilities()

    async def close(self) -> None:
        """End the thread and the sockets: the docks pass packets to the kernel again. Objects stay in memory."""
        datapath, self._datapath = self._datapath, None
        if datapath is not None:
            await asyncio.to_thread(datapath.stop)
            _log.info("engine closed", engine="soft", dropped=self.drops().total)

    async def retrieve(self) -> Mapping[EngineKey, EngineObject]:
        """What the engine holds."""
        return self._store.objects

    async def create(self, obj: EngineObject) -> None:
        """Put one object in place. Raises EngineError; UsedKeyError for an outbound key that was here before."""
        self._change(lambda: self._store.create(obj))

    async def update(self, obj: EngineObject) -> None:
        """Replace an object: a packet meets either the old state or the new one. Raises EngineError.

        Of an SA only the outer source and the UDP ports can change; counters and sequence numbers go on.
        """
        self._change(lambda: self._store.update(obj))

    async def delete(self, key: EngineKey) -> None:
        """Remove one object. Raises EngineError if it is unknown or a tunnel uses it."""
        self._change(lambda: self._store.delete(key))

    async def counters(self) -> Mapping[SaKey, Counters]:
        """Traffic per SA. Inbound: authentic packets, also those that the selectors then refused."""
        return self._store.counters

    async def numbers(self) -> Mapping[SaKey, int]:
        """The tops of the replay windows."""
        return self._store.numbers

    def last_counters(self) -> Mapping[SaKey, Counters]:
        """The same: it does not end before this object."""
        return self._store.counters

    async def vitals(self) -> None:
        """It lives and dies with this process."""

    def _change(self, change: Callable[[], None]) -> None:
        if self._datapath is None:
            raise EngineError("the soft engine is not open - open it first")
        change()
        self._datapath.forwarding = self._store.forwarding

    def _links(self) -> tuple[Link, ...]:
        return (*self._context.wan, self._context.up_engine)

    def _open_sockets(self, link: Link, undo: contextlib.ExitStack) -> list[SteeredSocket]:
        small = link.mtu + _ETHERNET_BYTES + _HEADROOM_BYTES <= _FRAME_BYTES
        sockets = []
        for queue in range(self._count_queues(link.name)):
            socket = self._open_socket(link.name, queue, frame_size=_FRAME_BYTES if small else _LARGE_FRAME_BYTES)
            undo.callback(socket.close)
            sockets.append(socket)
        return sockets

    def _datapath_of(self, sockets: Mapping[str, list[SteeredSocket]]) -> Datapath:
        up = self._context.up_engine.name
        wan = {name: opened for name, opened in sockets.items() if name != up}
        return Datapath(self._store.forwarding, wan, {up: sockets[up]}, self._drops)

    def _enter(self, sockets: Mapping[str, list[SteeredSocket]]) -> None:
        for name, opened in sockets.items():
            descriptor = self._context.xsks_map(name)
            for socket in opened:
                socket.enter(descriptor)

    def _capabilities(self) -> Capabilities:
        return Capabilities(
            algorithms=supported_algorithms(),
            esn=True,
            udp_encap=True,
            max_replay_window=MAX_REPLAY_WINDOW,
            steers=True,
            note=f"reference engine in Python with cryptography {cryptography.__version__}, for laboratories",
            gre=True,
            vxlan=True,
        )
