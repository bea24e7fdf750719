"""The engine port: what every ESP engine offers, and nothing else is known of it.

An engine holds four kinds of objects (:data:`ipsec_gw.model.objects.EngineObject`). It is told to create,
update and delete them one by one, in an order that respects their references (SAs and next hops before the
tunnels that use them, and those before overlays; the other way round on the way down), and it can always say what it
holds.

Every implementation passes ``tests/contract``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ipsec_gw.model.algorithms import EspAlgorithm
from ipsec_gw.model.ids import EngineName, SaKey
from ipsec_gw.model.objects import EngineKey, EngineObject


@dataclass(frozen=True, slots=True)
class Link:
    """An Ethernet interface of the kernel: ``mac`` in colon notation, ``mtu`` in bytes."""

    name: str
    mac: str
    mtu: int


async def nothing() -> None:
    """For those who want nothing done."""


@dataclass(frozen=True, slots=True)
class EngineContext:
    """Where an engine works. All interfaces are in this process's network namespace and docked already.

    ``wan`` are the interfaces that ESP comes and goes by. ``up_kernel`` and ``up_engine`` are the two ends of the
    veth pair between kernel and engine: what the engine decrypts leaves by ``up_engine`` towards ``up_kernel``'s MAC,
    and plaintext to encrypt arrives on ``up_engine``. ``xsks_map`` gives the file descriptor of a docked interface's
    XSKMAP (owned by the caller), for engines that enter their sockets themselves. ``run_dir`` is the runtime directory.

    ``taking`` has to be awaited before an engine takes interfaces over that it did not hold: what an earlier life of it
    was given must not be steered or led to this one, which does not hold it. It may raise IpsecGwError.
    """

    run_dir: Path
    wan: tuple[Link, ...]
    up_kernel: Link
    up_engine: Link
    xsks_map: Callable[[str], int]
    taking: Callable[[], Awaitable[None]] = nothing


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an engine does right. Whatever lies outside stays in the kernel with a reason.

    ``note`` is a sentence for people (version, chosen crypto engine). ``gre`` tells that GRE between ESP and packets is
    done, ``vxlan`` that overlays are. ``steers`` is False only for the kernel engine: then nothing is claimed, steered
    or led.
    """

    algorithms: frozenset[EspAlgorithm]
    esn: bool
    udp_encap: bool
    max_replay_window: int
    steers: bool
    note: str
    gre: bool = False
    vxlan: bool = False


@dataclass(frozen=True, slots=True)
class Counters:
    """Traffic of one SA in its engine, since the SA was created: packets, and bytes of what ESP carries as the kernel
    counts it: IP packets, with their GRE headers.
    """

    packets: int
    octets: int


@dataclass(frozen=True, slots=True)
class Heard:
    """What an engine told at one moment: its counters, and the highest numbers that it received, where it tells them.

    ``numbers`` were read before ``counters``, so with what is counted later they never lead beyond the truth.
    """

    counters: Mapping[SaKey, Counters]
    numbers: Mapping[SaKey, int]


class Vitals(Protocol):
    """Signs of life of an engine that runs in a process of its own."""

    def on_end(self, ended: Callable[[], None]) -> None:
        """Call this once the process has ended."""

    async def ping(self) -> None:
        """Return when the engine has answered. Raises EngineUnavailable when it is gone."""

    def taken(self) -> int:
        """Packets that it took out of its sockets so far. Raises EngineError if that cannot be read."""

    def fence(self) -> bool:
        """Kill it, so that it never sends again. False if that is not for this gateway to do."""

    async def look(self) -> None:
        """Write down what the engine shows of itself, for the case of its death. Raises EngineError."""

    def evidence(self, why: str) -> str:
        """Keep what is left of an engine that has ended, without keys; blocks. Where it is, empty without any need."""

    def close(self) -> None:
        """Stop watching."""


class Engine(Protocol):
    """An ESP engine. All calls raise :class:`ipsec_gw.errors.EngineError` on refusal and change nothing then."""

    @property
    def name(self) -> EngineName:
        """Which engine this is."""

    @property
    def epoch(self) -> int:
        """Changes whenever the engine lost its objects (a restarted VPP): the caller re-plans everything."""

    async def open(self) -> Capabilities:
        """Connect, take the interfaces over and say what can be done. Raises EngineUnavailable."""

    async def close(self) -> None:
        """Let go without touching the objects that are in place (a soft engine ends with its process)."""

    async def retrieve(self) -> Mapping[EngineKey, EngineObject]:
        """What the engine really holds now, foreign objects left out."""

    async def create(self, obj: EngineObject) -> None:
        """Put one object in place. Raises EngineError if its key exists or a reference is missing."""

    async def update(self, obj: EngineObject) -> None:
        """Replace the object with the same key, without a gap in its traffic (a tunnel's SAs on rekey)."""

    async def delete(self, key: EngineKey) -> None:
        """Remove one object. Raises EngineError if it is unknown or still referenced."""

    async def counters(self) -> Mapping[SaKey, Counters]:
        """Traffic per SA."""

    async def numbers(self) -> Mapping[SaKey, int]:
        """The highest authentic sequence number of inbound SAs, of those for which it is known beyond counters.

        Raises EngineError or EngineUnavailable.
        """

    def last_counters(self) -> Mapping[SaKey, Counters]:
        """What the engine counted last, also when it is gone, without asking it. Nothing if that is not known."""

    async def vitals(self) -> Vitals | None:
        """How to watch the process that :meth:`open` reached; None for an engine that lives in this one.

        Raises EngineUnavailable.
        """
