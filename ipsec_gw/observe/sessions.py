"""What `ipsec-gw show sessions` asks for, and the model that the daemon answers with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from ipaddress import ip_network
from itertools import islice
from typing import TYPE_CHECKING, Any

from ipsec_gw.errors import ConfigError

if TYPE_CHECKING:
    # The daemon has these loaded; the command would wait for numpy.
    from ipsec_gw.firewall.ageing import Counts
    from ipsec_gw.observe.flowlog import Decoder
    from xdp_steer.sessions import Flow, Session, SessionTable

QUESTION = "sessions"
DEFAULT_LIMIT = 100
_SECOND = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Query:
    """Which sessions are asked for: what everything given says, ``limit`` of them at most (0 for counts alone).

    ``zone`` is a name, ``prefix`` text, ``protocol`` an IP protocol number, all of them as in
    :class:`ipsec_gw.firewall.ageing.Filter`.
    """

    zone: str | None = None
    prefix: str | None = None
    port: int | None = None
    protocol: int | None = None
    limit: int = DEFAULT_LIMIT

    def question(self) -> str:
        """The line for the control socket."""
        return f"{QUESTION} {json.dumps(asdict(self))}"

    @classmethod
    def parse(cls, question: str) -> Query:
        """The question of a line, which may be the bare word. Raises ConfigError."""
        given = question.removeprefix(QUESTION).strip()
        try:
            return cls(**json.loads(given or "{}"))
        except (TypeError, ValueError) as error:
            raise ConfigError(f"'{question}' is no question about sessions ({error}) - ask with this version") from None


@dataclass(frozen=True, slots=True)
class TrafficView:
    """IP packets and their bytes."""

    packets: int
    bytes: int


@dataclass(frozen=True, slots=True)
class EndView:
    """Address and port (of ICMP queries the identifier)."""

    address: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"{host}:{self.port}" if self.port else self.address


@dataclass(frozen=True, slots=True)
class SessionView:
    """One session. ``natSource`` and ``natDestination`` are null where nothing was translated; times in seconds."""

    id: int
    state: str
    protocol: int
    fromZone: str  # noqa: N815 - JSON keys are camelCase
    toZone: str  # noqa: N815
    source: EndView
    destination: EndView
    natSource: EndView | None  # noqa: N815
    natDestination: EndView | None  # noqa: N815
    policy: str
    idle: float
    timeout: int
    age: float
    forward: TrafficView
    reverse: TrafficView


@dataclass(frozen=True, slots=True)
class SessionsView:
    """The answer: counts of the whole table as of the last sweep, and the sessions asked for.

    ``more`` tells that there are others which ``limit`` left out.
    """

    total: int
    maximum: int
    utilisation: float
    byState: dict[str, int]  # noqa: N815
    byZone: dict[str, int]  # noqa: N815
    sessions: tuple[SessionView, ...]
    more: bool

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``json``."""
        return asdict(self)


def session_view(session: Session, decoder: Decoder, now_ns: int) -> SessionView:
    """One row; ``now_ns`` is CLOCK_MONOTONIC."""
    flow, became = session.flow, session.translated
    source, destination = _ends(flow)
    new_source, new_destination = _ends(became)
    return SessionView(
        id=session.id,
        state=_label(session.state.name),
        protocol=flow.protocol,
        fromZone=decoder.zone(flow.zone),
        toZone=decoder.zone(became.zone),
        source=source,
        destination=destination,
        natSource=None if new_source == source else new_source,
        natDestination=None if new_destination == destination else new_destination,
        policy=decoder.policy(session.rule),
        idle=_seconds(now_ns - session.last_seen_ns),
        timeout=session.timeout,
        age=_seconds(now_ns - session.created_ns),
        forward=TrafficView(session.forward.packets, session.forward.octets),
        reverse=TrafficView(session.reverse.packets, session.reverse.octets),
    )


def _ends(flow: Flow) -> tuple[EndView, EndView]:
    ends = (flow.source, flow.source_port), (flow.destination, flow.destination_port)
    source, destination = (EndView(str(address), port) for address, port in ends)
    return source, destination


def sessions_view(
    table: SessionTable, counts: Counts, query: Query, decoder: Decoder, zones: Mapping[str, int], now_ns: int
) -> SessionsView:
    """What the daemon answers. ``zones`` are numbers by name. Raises ConfigError for a zone or prefix that is none."""
    from ipsec_gw.firewall.ageing import Filter  # noqa: PLC0415 - loads numpy

    if query.zone is not None and query.zone not in zones:
        raise ConfigError(f"no zone '{query.zone}' - there are {', '.join(sorted(zones))}")
    try:
        prefix = None if query.prefix is None else ip_network(query.prefix, strict=False)
    except ValueError as error:
        raise ConfigError(f"prefix '{query.prefix}': {error} - say 192.0.2.0/24, or 2001:db8::/32") from None
    zone = None if query.zone is None else zones[query.zone]
    chosen = Filter(zone=zone, prefix=prefix, port=query.port, protocol=query.protocol)
    found = list(islice(table.sessions(chosen), query.limit + 1)) if query.limit else []
    return SessionsView(
        total=counts.sessions,
        maximum=counts.maximum,
        utilisation=round(counts.utilisation, 1),
        byState={_label(state.name): number for state, number in counts.by_state.items()},
        byZone={decoder.zone(number): sessions for number, sessions in counts.by_zone.items()},
        sessions=tuple(session_view(session, decoder, now_ns) for session in found[: query.limit]),
        more=len(found) > query.limit,
    )


def _label(name: str) -> str:
    return name.lower().replace("_", "-")


def _seconds(nanoseconds: int) -> float:
    return round(max(nanoseconds, 0) / _SECOND, 3)
