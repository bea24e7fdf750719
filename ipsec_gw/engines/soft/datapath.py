"""The loop: frames from the WAN are decrypted towards the kernel, frames from the kernel encrypted towards the peers.

One daemon thread waits for all sockets and an eventfd. Nothing that arrives on a wire ends it.
"""

from __future__ import annotations

import os
import select
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import structlog

from ipsec_gw.engines.soft.drops import DropCounter, Dropped, DropReason, Drops
from ipsec_gw.engines.soft.forwarding import Emission, Forwarding
from ipsec_gw.errors import EngineError, IpsecGwError

_log = structlog.get_logger(__name__)

BATCH = 64
"""Frames taken from a socket before the next one has its turn."""
_DRAIN_ROUNDS = 64
"""Batches counted as lost when the engine closes; more than a ring holds."""
_STOP_SECONDS = 5.0
"""A batch takes milliseconds: a thread that needs longer than this is stuck in a system call."""


class FrameSocket(Protocol):
    """What the loop needs of an AF_XDP socket (``xdp_steer.xsk.XskSocket`` has it)."""

    def fileno(self) -> int:
        """For poll."""

    def receive(self, budget: int = 64) -> list[bytes]:
        """Frames that wait, at most ``budget``; never blocks."""

    def send(self, frames: Sequence[bytes]) -> int:
        """Queue frames; returns how many were taken, in order."""

    def close(self) -> None:
        """Give the queue back."""


@dataclass(frozen=True, slots=True)
class _Source:
    """A socket and what is done with its frames, which is known by the forwarding state of the moment."""

    interface: str
    socket: FrameSocket
    process: Callable[[Forwarding, bytes], tuple[Emission, ...]]


class Datapath:
    """Moves frames between sockets by the :attr:`forwarding` state, which may be replaced at any time.

    ``wan`` and ``up`` map interface names to the sockets of their queues; what is sent goes by the first queue. The
    sockets are closed by :meth:`stop`.
    """

    def __init__(
        self,
        forwarding: Forwarding,
        wan: Mapping[str, Sequence[FrameSocket]],
        up: Mapping[str, Sequence[FrameSocket]],
        counter: DropCounter,
    ) -> None:
        self.forwarding = forwarding
        self._counter = counter
        self._senders = {name: sockets[0] for name, sockets in (*wan.items(), *up.items())}
        self._sources = {
            socket.fileno(): _Source(name, socket, process)
            for side, process in ((wan, Forwarding.decapsulate), (up, Forwarding.encapsulate))
            for name, sockets in side.items()
            for socket in sockets
        }
        self._poll = select.poll()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._stopping = False
        self._send_failed: set[str] = set()
        self._thread = threading.Thread(target=self._run, name="ipsecgw-soft", daemon=True)

    @property
    def drops(self) -> Drops:
        """What was dropped so far, by reason."""
        return self._counter.read()

    def start(self) -> None:
        """Begin to move frames."""
        self._poll.register(self._wake, select.POLLIN)
        for fd in self._sources:
            self._poll.register(fd, select.POLLIN)
        self._thread.start()

    def stop(self) -> None:
        """End the thread after the batch in hand, count what still waits as dropped, close the sockets.

        Blocks for a batch at most. Raises EngineError (and leaves the sockets alone) if the thread does not end.
        """
        self._stopping = True
        if self._thread.ident is not None:
            os.eventfd_write(self._wake, 1)
            self._thread.join(_STOP_SECONDS)
            if self._thread.is_alive():
                raise EngineError("soft engine: its thread does not end - restart the process")
        for source in self._sources.values():
            self._discard(source)
            source.socket.close()
        os.close(self._wake)

    def _run(self) -> None:
        while not self._stopping:
            try:
                for fd, events in self._poll.poll():
                    if fd != self._wake:
                        self._serve(self._sources[fd], events)
            except Exception as error:  # the thread must outlive whatever this is
                self._report("datapath error", error)

    def _serve(self, source: _Source, events: int) -> None:
        """One batch of one socket. A socket that failed would be ready forever: it is let go."""
        frames = self._receive(source) if events & select.POLLIN else None
        if frames is None:
            self._poll.unregister(source.socket.fileno())
            _log.error("socket failed, its queue is no longer served", engine="soft", interface=source.interface)
            return
        outgoing: defaultdict[str, list[bytes]] = defaultdict(list)
        forwarding = self.forwarding
        for frame in frames:
            for emission in self._process(source, forwarding, frame):
                outgoing[emission.interface].append(emission.frame)
        for interface, batch in outgoing.items():
            self._send(interface, batch)

    def _receive(self, source: _Source) -> list[bytes] | None:
        try:
            return source.socket.receive(BATCH)
        except Exception as error:  # of whatever kind: the socket will not get better
            self._report("receiving failed", error)
            return None

    def _process(self, source: _Source, forwarding: Forwarding, frame: bytes) -> tuple[Emission, ...]:
        try:
            return source.process(forwarding, frame)
        except Dropped as dropped:
            self._counter.add(dropped.reason)
        except Exception as error:  # a bug in here must cost one packet and not the gateway
            self._report("packet failed", error)
        return ()

    def _send(self, interface: str, frames: list[bytes]) -> None:
        """Hand a batch to an interface. The rest of a full ring is offered once more: the kernel just emptied it."""
        socket, sent = self._senders[interface], 0
        try:
            sent = socket.send(frames)
            if sent < len(frames):
                sent += socket.send(frames[sent:])
        except (IpsecGwError, OSError) as error:
            if interface not in self._send_failed:  # said once; the counter goes on
                self._send_failed.add(interface)
                _log.warning("sending failed", engine="soft", interface=interface, error=str(error))
        finally:
            self._counter.add(DropReason.TRANSMIT, len(frames) - sent)

    def _report(self, event: str, error: Exception) -> None:
        """Count an error of our own and say where it happened.

        Neither its text nor a traceback goes to the log, since both may hold packets or keys. Only the 1st, 2nd, 4th,
        8th, ... is logged: a bug met by every packet must not fill the disk.
        """
        total = self._counter.add(DropReason.INTERNAL)
        if total & (total - 1) == 0:
            _log.error(event, engine="soft", error=type(error).__name__, where=_place_of(error), count=total)

    def _discard(self, source: _Source) -> None:
        try:
            for _ in range(_DRAIN_ROUNDS):
                waiting = len(source.socket.receive(BATCH))
                if not waiting:
                    return
                self._counter.add(DropReason.CLOSING, waiting)
        except Exception as error:  # closing goes on: a socket left open would keep its queue
            self._report("draining failed", error)


def _place_of(error: Exception) -> str:
    """``file:line`` of the innermost frame."""
    traceback = error.__traceback__
    if traceback is None:
        return "unknown"
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    return f"{Path(traceback.tb_frame.f_code.co_filename).name}:{traceback.tb_lineno}"
