"""The firewall's log: what happened to flows as values, as structured lines in the manner of RT_FLOW, and as JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum, unique
from typing import Any

from ipsec_gw.firewall.ageing import SECOND, Close, CloseReason
from ipsec_gw.model.firewall import SELF
from xdp_steer.events import Event
from xdp_steer.flow_layout import EventKind, State
from xdp_steer.reasons import Reason
from xdp_steer.sessions import Flow, Traffic

Names = Mapping[int, str] | Callable[[int], str | None]
"""Names by number; what has none is shown as ``#7``."""

SD_ID = "ipsec-gw@32473"
"""Of structured lines (RFC 5424 §6.3.2). 32473 is the enterprise number for examples (RFC 5612)."""

_NONE = "N/A"
_DEFAULT = "default"
_REASON_TEXT = {
    CloseReason.IDLE.value: "idle Timeout",
    CloseReason.TCP_FIN.value: "TCP FIN",
    CloseReason.TCP_RST.value: "TCP RST",
    CloseReason.AGED_OUT.value: "aged out",
}


@unique
class Kind(StrEnum):
    """What happened."""

    CREATE = "create"
    CLOSE = "close"
    DENY = "deny"
    SCREEN = "screen"
    ALARM = "alarm"
    FILTER = "filter"


_KINDS = {
    EventKind.OPEN: Kind.CREATE,
    EventKind.DENY: Kind.DENY,
    EventKind.CLOSE: Kind.CLOSE,
    EventKind.SCREEN: Kind.SCREEN,
    EventKind.ALARM: Kind.ALARM,
    EventKind.FILTER: Kind.FILTER,
}


@dataclass(frozen=True, slots=True)
class FlowRecord:
    """One line of the log, names in place of numbers.

    ``translated`` is None when nothing was translated (and for what was denied). ``policy`` is ``default`` if no rule
    decided, of a FILTER the term. ``reason`` is empty for CREATE, and of a FILTER if the packet went on. Counters and
    ``seconds`` are of a CLOSE.
    """

    kind: Kind
    time: datetime
    session: int
    flow: Flow
    translated: Flow | None
    from_zone: str
    to_zone: str
    policy: str
    source_rule: str | None = None
    destination_rule: str | None = None
    reason: str = ""
    client: Traffic | None = None
    server: Traffic | None = None
    seconds: int | None = None


@dataclass(frozen=True, slots=True)
class Decoder:
    """Makes records. ``offset_ns`` is CLOCK_REALTIME less CLOCK_MONOTONIC; zone 0 is always ``self``."""

    zones: Names
    rules: Names
    offset_ns: int

    def event(self, event: Event) -> FlowRecord:
        """Of something that the datapath reports."""
        kind = _KINDS[event.kind]
        return FlowRecord(
            kind=kind,
            time=self._time(event.time_ns),
            session=event.session,
            flow=event.flow,
            translated=_if_translated(event.flow, event.translated) if kind in (Kind.CREATE, Kind.CLOSE) else None,
            from_zone=self.zone(event.flow.zone),
            to_zone=self.zone(event.translated.zone),
            policy=self.policy(event.rule),
            reason="" if kind is Kind.CREATE else _reason(event),
            **(self._ending(event) if kind is Kind.CLOSE else {}),
        )

    def _ending(self, event: Event) -> dict[str, Any]:
        return {
            "source_rule": self._rule(event.source_rule),
            "destination_rule": self._rule(event.destination_rule),
            "client": event.forward,
            "server": event.reverse,
            "seconds": max(event.time_ns - event.created_ns, 0) // SECOND,
        }

    def close(self, close: Close) -> FlowRecord:
        """Of a session that the collector ended; whether it is to be logged is :attr:`Close.logged`."""
        session = close.session
        return FlowRecord(
            kind=Kind.CLOSE,
            time=self._time(close.ended_ns),
            session=session.id,
            flow=session.flow,
            translated=_if_translated(session.flow, session.translated),
            from_zone=self.zone(session.flow.zone),
            to_zone=self.zone(session.translated.zone),
            policy=self.policy(session.rule),
            source_rule=self._rule(session.snat_rule),
            destination_rule=self._rule(session.dnat_rule),
            reason=close.reason,
            client=session.forward,
            server=session.reverse,
            seconds=close.duration_ns // SECOND,
        )

    def _time(self, monotonic_ns: int) -> datetime:
        return datetime.fromtimestamp((monotonic_ns + self.offset_ns) / SECOND, UTC)

    def zone(self, number: int) -> str:
        """The name of a zone."""
        return SELF if number == 0 else name_of(self.zones, number)

    def policy(self, number: int) -> str:
        """The name of a policy, ``default`` for 0."""
        return name_of(self.rules, number) if number else _DEFAULT

    def _rule(self, number: int) -> str | None:
        return name_of(self.rules, number) if number else None


def name_of(names: Names, number: int) -> str:
    """The name, or ``#number`` if there is none."""
    found = names.get(number) if isinstance(names, Mapping) else names(number)
    return f"#{number}" if found is None else found


def _if_translated(flow: Flow, translated: Flow) -> Flow | None:
    return None if flow.same_tuple(translated) else translated


_ENDS = {State.TIME_WAIT: CloseReason.TCP_FIN, State.CLOSED: CloseReason.TCP_RST, 0: CloseReason.IDLE}


def _reason(event: Event) -> str:
    if event.kind is EventKind.CLOSE and event.reason in _ENDS:
        return _ENDS[event.reason]
    if event.kind is EventKind.FILTER and not event.reason:
        return ""
    try:
        return Reason(event.reason).label
    except ValueError:
        return f"#{event.reason}"


def structured(record: FlowRecord) -> str:
    """``RT_FLOW_SESSION_CLOSE [ipsec-gw@32473 reason="TCP FIN" source-address="192.0.2.7" ...]``.

    One line; names and order of the fields are those that parsers of RT_FLOW know.
    """
    fields = _FIELDS[record.kind](record)
    said = " ".join(f'{name}="{_escape(str(value))}"' for name, value in fields.items())
    return f"RT_FLOW_{_TAGS.get(record.kind, f'SESSION_{record.kind.name}')} [{SD_ID} {said}]"


def _escape(text: str) -> str:
    """RFC 5424 §6.3.3; control characters, which would break the line, become spaces."""
    printable = "".join(char if char.isprintable() else " " for char in text)
    return printable.replace("\\", "\\\\").replace('"', '\\"').replace("]", "\\]")


def _ends(flow: Flow, prefix: str = "") -> dict[str, Any]:
    return {
        f"{prefix}source-address": flow.source,
        f"{prefix}source-port": flow.source_port,
        f"{prefix}destination-address": flow.destination,
        f"{prefix}destination-port": flow.destination_port,
    }


def _who(record: FlowRecord) -> dict[str, Any]:
    return {
        "protocol-id": record.flow.protocol,
        "policy-name": record.policy,
        "source-zone-name": record.from_zone,
        "destination-zone-name": record.to_zone,
        "session-id": record.session,
    }


def _create_fields(record: FlowRecord) -> dict[str, Any]:
    nat = _ends(record.translated or record.flow, "nat-")
    rules = {"src-nat-rule-name": record.source_rule or _NONE, "dst-nat-rule-name": record.destination_rule or _NONE}
    return {**_ends(record.flow), "service-name": "None", **nat, **rules, **_who(record)}


def _close_fields(record: FlowRecord) -> dict[str, Any]:
    reason = {"reason": _REASON_TEXT.get(record.reason, record.reason.replace("-", " "))}
    return {**reason, **_create_fields(record), **_counters(record)}


def _counters(record: FlowRecord) -> dict[str, Any]:
    if record.client is None or record.server is None or record.seconds is None:
        return {}
    return {
        "packets-from-client": record.client.packets,
        "bytes-from-client": record.client.octets,
        "packets-from-server": record.server.packets,
        "bytes-from-server": record.server.octets,
        "elapsed-time": record.seconds,
    }


def _deny_fields(record: FlowRecord) -> dict[str, Any]:
    return {**_ends(record.flow), "service-name": "None", **_who(record), "reason": record.reason.replace("-", " ")}


def _screen_fields(record: FlowRecord) -> dict[str, Any]:
    zone = {"protocol-id": record.flow.protocol, "source-zone-name": record.from_zone}
    return {"screen": record.reason.removeprefix("screen-"), **_ends(record.flow), **zone}


def _filter_fields(record: FlowRecord) -> dict[str, Any]:
    zone = {"protocol-id": record.flow.protocol, "source-zone-name": record.from_zone}
    action = record.reason.replace("-", " ") or "accept"
    return {"filter": record.policy, "action": action, **_ends(record.flow), **zone}


_TAGS = {Kind.SCREEN: "SCREEN_DROP", Kind.ALARM: "SCREEN_ALARM", Kind.FILTER: "FILTER_LOG"}
_FIELDS = {
    Kind.CREATE: _create_fields,
    Kind.CLOSE: _close_fields,
    Kind.DENY: _deny_fields,
    Kind.SCREEN: _screen_fields,
    Kind.ALARM: _screen_fields,
    Kind.FILTER: _filter_fields,
}


def to_json(record: FlowRecord) -> dict[str, Any]:
    """Plain values for ``json``; what is not known is null."""
    return {
        "time": record.time.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "event": record.kind.value,
        "session": record.session,
        "reason": str(record.reason) or None,
        **_flow_json(record.flow),
        "protocol": record.flow.protocol,
        "nat": _flow_json(record.translated) if record.translated else None,
        "fromZone": record.from_zone,
        "toZone": record.to_zone,
        "policy": record.policy,
        "sourceNatRule": record.source_rule,
        "destinationNatRule": record.destination_rule,
        "client": _traffic_json(record.client),
        "server": _traffic_json(record.server),
        "seconds": record.seconds,
    }


def _flow_json(flow: Flow) -> dict[str, Any]:
    return {
        "source": str(flow.source),
        "sourcePort": flow.source_port,
        "destination": str(flow.destination),
        "destinationPort": flow.destination_port,
    }


def _traffic_json(traffic: Traffic | None) -> dict[str, int] | None:
    return {"packets": traffic.packets, "bytes": traffic.octets} if traffic else None
