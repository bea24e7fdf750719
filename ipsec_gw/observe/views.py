"""What `ipsec-gw show` shows: one model, rendered as tables for people and as JSON for scripts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ipsec_gw.desired import Owner, SaVerdict
from ipsec_gw.engines.port import Counters
from ipsec_gw.model.ids import Direction, EngineName, SaKey
from ipsec_gw.model.snapshot import ChildName
from ipsec_gw.model.warmth import NOTHING, Volume
from ipsec_gw.ownership.budget import NonceBudget
from ipsec_gw.reconcile.record import Record


@dataclass(frozen=True, slots=True)
class NonceView:
    """Packets sent with an outbound SA's key by engine and kernel; ``share`` of the 2^32 that one key may protect, and
    how probable it is, at most, that both used one nonce (``collision``).
    """

    engine: int
    kernel: int
    share: float
    collision: float


@dataclass(frozen=True, slots=True)
class Carried:
    """What the engine carried of an SA: in all, and what of it is not in the kernel's counters yet. ``passed`` is what
    the kernel sent past the guard.
    """

    total: Counters
    untold: Volume
    passed: int


@dataclass(frozen=True, slots=True)
class SaView:
    """One SA. ``packets`` and ``bytes`` (of inner IP packets) are what engine and kernel carried together; ``nonces``
    is None for inbound SAs.
    """

    connection: str
    child: str
    direction: str
    spi: str
    source: str
    destination: str
    algorithm: str
    engine: str
    state: str
    reason: str
    packets: int
    bytes: int
    nonces: NonceView | None


@dataclass(frozen=True, slots=True)
class EngineView:
    """The engine in use: ``note`` tells version and crypto engine, ``absent`` why it cannot be used, if so. ``life`` is
    about an engine that runs only while it is needed, empty for others.
    """

    name: str
    note: str
    absent: str
    life: str = ""


@dataclass(frozen=True, slots=True)
class SteerView:
    """Packets of one SA at XDP: handed to the engine, and passed to the kernel although it is known."""

    sa: str
    toEngine: int  # noqa: N815 - JSON keys are camelCase
    toKernel: int  # noqa: N815


@dataclass(frozen=True, slots=True)
class GuardView:
    """Packets of one outbound SA that the kernel sent: let through, and held back. ``waited`` are those of the latter
    that went on their way in the end, to the engine or as they were.
    """

    sa: str
    passed: int
    dropped: int
    waited: int


@dataclass(frozen=True, slots=True)
class DockView:
    """Packets that an interface's dock was to hand over: to a live socket, and to the kernel for want of one."""

    interface: str
    toEngine: int  # noqa: N815
    fellToKernel: int  # noqa: N815


@dataclass(frozen=True, slots=True)
class GuardianView:
    """The last time that the kernel's copies of what the engine carries were brought up to it: SAs that the engine
    has, those that had moved, and seconds of a processor that it took. ``takenOver``: the engine was seen gone, and the
    kernel sends with its SAs.
    """

    carried: int
    written: int
    seconds: float
    takenOver: bool  # noqa: N815


@dataclass(frozen=True, slots=True)
class StatusView:
    """The daemon at a glance. ``overlays`` says who does what of devices that put packets into others, and of ESP.
    ``verdicts`` are packets at XDP and TC egress by the reason's label, as ``unknown-spi``; zeros are in it as well.
    ``malformedMessages`` came from the kernel's XFRM or from charon and could not be read.
    """

    version: str
    strongswan: str
    engine: EngineView
    inSync: bool  # noqa: N815
    wan: tuple[str, ...]
    tunnels: int
    overlays: tuple[str, ...]
    steer: tuple[SteerView, ...]
    guard: tuple[GuardView, ...]
    docks: tuple[DockView, ...]
    verdicts: Mapping[str, int]
    guardian: GuardianView | None
    netlinkOverruns: int  # noqa: N815
    malformedMessages: int  # noqa: N815

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``json``."""
        return asdict(self)


_NOTHING = Carried(Counters(0, 0), NOTHING, 0)


def owner_name(owner: Owner, engine: EngineName) -> str:
    """Who has an SA, as people and scripts read it."""
    return {Owner.ENGINE: str(engine), Owner.KERNEL: "kernel", Owner.PENDING: "pending"}[owner]


def sa_view(
    verdict: SaVerdict, names: Mapping[int, ChildName], engine: EngineName, carried: Mapping[SaKey, Carried]
) -> SaView:
    """One row of `show sas`."""
    sa = verdict.sa
    known = sa.aead.known if sa.aead else None
    name = names.get(sa.key.spi)
    by_engine = carried.get(sa.key, _NOTHING)
    return SaView(
        connection=name.connection if name else "",
        child=name.child if name else "",
        direction=str(verdict.direction),
        spi=f"{sa.key.spi:08x}",
        source=str(sa.source),
        destination=str(sa.key.destination),
        algorithm=known.name if known else sa.algorithm,
        engine=str(engine) if verdict.owner is Owner.ENGINE else "kernel",
        state=owner_name(verdict.owner, engine),
        reason=verdict.reason,
        packets=sa.lifetime.packets + by_engine.untold.packets,
        bytes=sa.lifetime.octets + by_engine.untold.octets,
        nonces=_nonces(by_engine) if verdict.direction is Direction.OUT else None,
    )


def _nonces(carried: Carried) -> NonceView:
    budget = NonceBudget(carried.total.packets, carried.passed)
    return NonceView(budget.engine, budget.kernel, budget.share, budget.collision)


def record_view(record: Record) -> dict[str, Any]:
    """One record of the history: its operations in words, never their values, or a trouble without any."""
    return {
        "at": record.at,
        "seconds": record.seconds,
        "trouble": record.trouble,
        "times": record.times,
        "steps": [{"op": str(s.op), "outcome": str(s.outcome), "detail": s.detail} for s in record.steps],
    }
