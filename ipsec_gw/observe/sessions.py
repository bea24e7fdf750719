"""What `ipsec-gw show sessions` and `clear sessions` ask for, and the model that the daemon answers with."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from ipaddress import IPv4Address, ip_network
from itertools import islice
from typing import TYPE_CHECKING, Any

from ipsec_gw.errors import ConfigError
from ipsec_gw.model.firewall import PoolEngine
from xdp_steer.flow_layout import SessionFlag

if TYPE_CHECKING:
    # The daemon has these loaded; the command would wait for numpy.
    from ipsec_gw.firewall.ageing import Counts, Filter
    from ipsec_gw.firewall.pools import Translated
    from ipsec_gw.firewall.talkers import Talker
    from ipsec_gw.observe.carriers import Carrier, Carriers
    from ipsec_gw.observe.flowlog import Decoder
    from xdp_steer.sessions import Flow, Session, SessionTable

QUESTION, CLEAR = "sessions", "clear-sessions"
ENGINES = ("xdp", "vpp", "soft", "kernel", "pending")
"""What may carry a session: XDP alone, or whoever has the outbound SA of its tunnel."""
DEFAULT_LIMIT = 100
_SECOND = 1_000_000_000
_ICMP = 1


@dataclass(frozen=True, slots=True)
class Query:
    """Which sessions are asked for: what everything given says, ``limit`` of them at most (0 for counts alone).

    ``zone`` is a name, ``prefix`` text, ``protocol`` an IP protocol number, all of them as in
    :class:`ipsec_gw.firewall.ageing.Filter`. ``engine`` is one of ENGINES. They began at least ``older`` and at most
    ``younger`` seconds ago. ``top`` asks for that many addresses that talk most, ``by`` bytes, packets or sessions.
    """

    zone: str | None = None
    prefix: str | None = None
    port: int | None = None
    protocol: int | None = None
    engine: str | None = None
    older: float | None = None
    younger: float | None = None
    limit: int = DEFAULT_LIMIT
    top: int = 0
    by: str = "bytes"

    def question(self, word: str = QUESTION) -> str:
        """The line for the control socket."""
        return f"{word} {json.dumps(asdict(self))}"

    @property
    def chooses_all(self) -> bool:
        """Whether it leaves no session out."""
        return self == Query(limit=self.limit, top=self.top, by=self.by)

    @classmethod
    def parse(cls, question: str) -> Query:
        """The question of a line, which may be the bare word. Raises ConfigError."""
        given = question.partition(" ")[2].strip()
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
    """One session. ``natSource`` and ``natDestination`` are null where nothing was translated; times in seconds.

    ``engine`` is one of ENGINES; ``tunnel`` (connection/child) and ``spi`` (outbound, hexadecimal) are empty for a
    session that goes into none. ``translator`` is ``vpp`` where VPP translates, with a ``natSource`` that VPP tells.
    """

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
    engine: str
    tunnel: str
    spi: str
    translator: str
    idle: float
    timeout: int
    age: float
    forward: TrafficView
    reverse: TrafficView


@dataclass(frozen=True, slots=True)
class TalkerView:
    """An address that began sessions of those asked for, and what these carried both ways."""

    address: str
    sessions: int
    packets: int
    bytes: int


@dataclass(frozen=True, slots=True)
class SessionsView:
    """The answer: counts of the whole table as of the last sweep, and the sessions asked for.

    ``more`` tells that there are others which ``limit`` left out. ``talkers`` is empty unless they were asked for.
    """

    total: int
    maximum: int
    utilisation: float
    byState: dict[str, int]  # noqa: N815
    byZone: dict[str, int]  # noqa: N815
    sessions: tuple[SessionView, ...]
    more: bool
    talkers: tuple[TalkerView, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``json``."""
        return asdict(self)


def session_view(session: Session, carrier: Carrier | None, decoder: Decoder, now_ns: int) -> SessionView:
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
        engine=carrier.engine if carrier else ENGINES[0],
        tunnel=carrier.tunnel if carrier else "",
        spi=carrier.spi if carrier else "",
        translator=PoolEngine.VPP.value if session.flags & SessionFlag.TRANSLATOR else "",
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
    table: SessionTable,
    counts: Counts,
    query: Query,
    decoder: Decoder,
    zones: Mapping[str, int],
    carriers: Carriers,
    now_ns: int,
) -> SessionsView:
    """What the daemon answers. ``zones`` are numbers by name. Raises ConfigError for what cannot be asked."""
    chosen = chosen_by(query, zones, carriers, now_ns)
    found = list(islice(carried(table, chosen, query, carriers), query.limit + 1)) if query.limit else []
    return SessionsView(
        total=counts.sessions,
        maximum=counts.maximum,
        utilisation=round(counts.utilisation, 1),
        byState={_label(state.name): number for state, number in counts.by_state.items()},
        byZone={decoder.zone(number): sessions for number, sessions in counts.by_zone.items()},
        sessions=tuple(session_view(*each, decoder, now_ns) for each in found[: query.limit]),
        more=len(found) > query.limit,
        talkers=tuple(_talkers(table, chosen, query, carriers)) if query.top else (),
    )


def sources_of(answer: Mapping[str, Any]) -> frozenset[IPv4Address]:
    """Sources of the sessions of an answer that VPP translates."""
    return frozenset(IPv4Address(row["source"]["address"]) for row in answer["sessions"] if row["translator"])


def with_translations(answer: Mapping[str, Any], found: Iterable[Translated]) -> dict[str, Any]:
    """The same answer, with what VPP makes of sources."""
    known = {
        (one.protocol, *one.inside, one.far[0], 0 if one.protocol == _ICMP else one.far[1]): one.outside
        for one in found
    }

    def joined(row: dict[str, Any]) -> dict[str, Any]:
        if not row["translator"]:
            return row
        source, far = row["source"], row["natDestination"] or row["destination"]
        port = 0 if row["protocol"] == _ICMP else far["port"]  # an identifier, which is the source's
        place = row["protocol"], IPv4Address(source["address"]), source["port"], IPv4Address(far["address"]), port
        end = known.get(place)
        return row if end is None else {**row, "natSource": asdict(EndView(str(end[0]), end[1]))}

    return {**answer, "sessions": [joined(row) for row in answer["sessions"]]}


def chosen_by(query: Query, zones: Mapping[str, int], carriers: Carriers, now_ns: int) -> Filter:
    """A query as a filter, all but its engine; ``now_ns`` is CLOCK_MONOTONIC. Raises ConfigError."""
    from ipsec_gw.firewall.ageing import Filter  # noqa: PLC0415 - loads numpy

    if query.zone is not None and query.zone not in zones:
        raise ConfigError(f"no zone '{query.zone}' - there are {', '.join(sorted(zones))}")
    if query.engine not in {None, *ENGINES}:
        raise ConfigError(f"no engine '{query.engine}' - say one of {', '.join(ENGINES)}")
    try:
        prefix = None if query.prefix is None else ip_network(query.prefix, strict=False)
    except ValueError as error:
        raise ConfigError(f"prefix '{query.prefix}': {error} - say 192.0.2.0/24, or 2001:db8::/32") from None
    return Filter(
        zone=None if query.zone is None else zones[query.zone],
        zones=None if query.engine in {None, ENGINES[0]} else carriers.zones,
        prefix=prefix,
        port=query.port,
        protocol=query.protocol,
        before_ns=None if query.older is None else now_ns - int(query.older * _SECOND),
        after_ns=None if query.younger is None else now_ns - int(query.younger * _SECOND),
    )


def carried(
    table: SessionTable, chosen: Filter, query: Query, carriers: Carriers
) -> Iterator[tuple[Session, Carrier | None]]:
    """The sessions that a query is about, each with what carries it, in no order."""
    for session in table.sessions(chosen):
        carrier = carriers.of(session)
        if query.engine is None or query.engine == (carrier.engine if carrier else ENGINES[0]):
            yield session, carrier


def by_engine(table: SessionTable, chosen: Filter, query: Query, carriers: Carriers) -> Filter:
    """The filter with the query's engine in it."""
    if query.engine is None:
        return chosen
    ids = frozenset(session.id for session, _ in carried(table, chosen, query, carriers))
    return replace(chosen, ids=ids)


def _talkers(table: SessionTable, chosen: Filter, query: Query, carriers: Carriers) -> Iterator[TalkerView]:
    from ipsec_gw.firewall.talkers import TalkersBy, top_talkers  # noqa: PLC0415 - loads numpy

    if query.by not in set(TalkersBy):
        raise ConfigError(f"talkers by '{query.by}' - say one of {', '.join(TalkersBy)}")
    for talker in top_talkers(table, by_engine(table, chosen, query, carriers), TalkersBy(query.by), query.top):
        yield _talker_view(talker)


def _talker_view(talker: Talker) -> TalkerView:
    return TalkerView(str(talker.address), talker.sessions, talker.packets, talker.octets)


def _label(name: str) -> str:
    return name.lower().replace("_", "-")


def _seconds(nanoseconds: int) -> float:
    return round(max(nanoseconds, 0) / _SECOND, 3)
