"""The shape of the firewall's tables in the file: options, types and ranges. References are resolved elsewhere."""

from __future__ import annotations

import re
from datetime import time
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainValidator

from ipsec_gw.config.limits import MAX_SECONDS, MAX_SESSIONS
from ipsec_gw.config.ports import protocol_of, span_of
from ipsec_gw.config.problems import Refused
from ipsec_gw.config.section import Section
from ipsec_gw.model.firewall import PoolEngine, Range, Sessions, Timeouts

DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")

_CLOCK = re.compile(r"(\d{1,2}):(\d{2})", re.ASCII)
_INTERFACE = re.compile(r"[^\s/:\[\]\x00-\x1f\x7f]{1,15}")


def listed(value: Any) -> Any:
    """One value is a list of one."""
    return value if isinstance(value, list) else [value]


def _port(value: Any) -> Range:
    return span_of(value)


def _pool_ports(value: Any) -> Range:
    return span_of(value, first=1)


def _pool_engine(value: Any) -> PoolEngine:
    try:
        return PoolEngine(value)
    except ValueError:
        raise Refused(f"{value!r} is no engine of a pool", 'write engine = "xdp", "vpp" or "auto"') from None


def _protocol(value: Any) -> int | None:
    return None if value == "any" else protocol_of(value)


def _interface(value: Any) -> str:
    if not isinstance(value, str) or not _INTERFACE.fullmatch(value) or value in {".", ".."}:
        raise Refused(
            f"{value!r} is no interface name", "write the kernel's name, at most 15 characters, as ip link has it"
        )
    return value


def _minutes(value: Any) -> int:
    """``"18:30"``, ``"24:00"`` or TOML's local time, in minutes since midnight."""
    if isinstance(value, time) and not value.second and not value.microsecond:
        return value.hour * 60 + value.minute
    found = _CLOCK.fullmatch(value) if isinstance(value, str) else None
    minutes = int(found[1]) * 60 + int(found[2]) if found and int(found[2]) < 60 else -1
    if not 0 <= minutes <= 24 * 60:
        raise Refused(f"{str(value)!r} is no time of day", 'write "00:00" to "24:00"')
    return minutes


def _day(value: Any) -> int:
    """Monday is 0; three letters will do."""
    wanted = value.lower() if isinstance(value, str) else ""
    for number, name in enumerate(DAYS):
        if wanted in {name, name[:3]}:
            return number
    raise Refused(f"{value!r} is no day of the week", f"write one of {', '.join(DAYS)}")


Interface = Annotated[str, PlainValidator(_interface)]
Listed = Annotated[list[str], BeforeValidator(listed), Field(min_length=1)]
Ports = Annotated[list[Annotated[Range, PlainValidator(_port)]], BeforeValidator(listed), Field(min_length=1)]
Protocol = Annotated[int | None, PlainValidator(_protocol)]
Minutes = Annotated[int, PlainValidator(_minutes)]
Seconds = Annotated[int, Field(ge=1, le=MAX_SECONDS)]
Percent = Annotated[int, Field(ge=1, le=100)]
Rate = Annotated[int, Field(ge=2, le=1_000_000_000)]
"""Of something, in a second."""
Octet = Annotated[int, Field(ge=0, le=255)]
ActionWord = Literal["permit", "deny", "reject"]


class FirewallShape(Section):
    """``[firewall]``: what happens to flows that no policy matches."""

    default_policy: ActionWord = "deny"


class ZoneShape(Section):
    """``[zones.NAME]``."""

    interfaces: list[Interface] = Field(default_factory=list)
    host_inbound: list[str] = Field(default_factory=list)
    syn_check: bool = True
    tcp_reset: bool = False
    tcp_mss: Annotated[int, Field(ge=64, le=65495)] | None = None
    tunnels: bool = False
    screen: str | None = None


class TermShape(Section):
    """One term of an application."""

    protocol: Protocol = None
    destination_port: Ports | None = None
    source_port: Ports | None = None
    icmp_type: Octet | None = None
    icmp_code: Octet | None = None
    timeout: Seconds | None = None


class ApplicationShape(TermShape):
    """``[applications.NAME]``: a term, or ``terms``, or ``members``."""

    terms: Annotated[list[TermShape], Field(min_length=1)] | None = None
    members: Listed | None = None


class ScheduleShape(Section):
    """``[schedules.NAME]``: local time."""

    days: Annotated[list[Annotated[int, PlainValidator(_day)]], Field(min_length=1)] | None = None
    start: Minutes = 0
    end: Minutes = 24 * 60


class PolicyShape(Section):
    """``[[policies]]``."""

    name: str
    action: ActionWord
    from_zone: str | None = Field(default=None, alias="from")
    to_zone: str | None = Field(default=None, alias="to")
    source: Listed | None = None
    destination: Listed | None = None
    application: Listed | None = None
    log: list[Literal["open", "close"]] = Field(default_factory=list)
    schedule: str | None = None


class PoolShape(Section):
    """``[nat.pools.NAME]``."""

    addresses: str
    ports: Annotated[Range, PlainValidator(_pool_ports)] = (1024, 65535)
    persistent: bool = False
    overflow: str | None = None
    engine: Annotated[PoolEngine, PlainValidator(_pool_engine)] = PoolEngine.XDP
    block: Annotated[int, Field(ge=1, le=65535)] | None = None
    subscribers: str | None = None
    promote_flows: Rate | None = None
    promote_packets: Rate | None = None
    demote_flows: Rate | None = None
    demote_packets: Rate | None = None
    dwell: Seconds | None = None


class PoolChoice(Section):
    """``{pool = "NAME"}``."""

    pool: str


def _translation(value: Any) -> str | PoolChoice:
    if isinstance(value, dict):
        return PoolChoice.model_validate(value)
    if value in ("interface", "off"):
        return str(value)
    raise Refused(f"{value!r} is no translation", 'write "interface", "off" or {pool = "NAME"}')


class SourceNatShape(Section):
    """``[[nat.source]]``."""

    name: str
    translate: Annotated[str | PoolChoice, PlainValidator(_translation)]
    from_zone: str | None = Field(default=None, alias="from")
    to_zone: str | None = Field(default=None, alias="to")
    source: Listed | None = None
    destination: Listed | None = None
    application: Listed | None = None


class DestinationNatShape(Section):
    """``[[nat.destination]]``."""

    name: str
    destination: str
    to: str
    from_zone: str | None = Field(default=None, alias="from")
    source: Listed | None = None
    application: Listed | None = None
    protocol: Protocol = None
    port: Ports | None = None
    to_port: Annotated[int, Field(ge=1, le=65535)] | None = None


class StaticNatShape(Section):
    """``[[nat.static]]``."""

    name: str
    zone: str
    external: str
    internal: str


class Nptv6Shape(StaticNatShape):
    """``[[nat.nptv6]]``."""


def _nat64_source(value: Any) -> PoolChoice | None:
    if value == "interface":
        return None
    chosen = _translation(value)
    if isinstance(chosen, PoolChoice):
        return chosen
    raise Refused(f"{value!r} gives no IPv4 address", 'write "interface" or {pool = "NAME"}')


class Nat64Shape(Section):
    """``[[nat.nat64]]``."""

    name: str
    translate: Annotated[PoolChoice | None, PlainValidator(_nat64_source)]
    prefix: str = "64:ff9b::/96"
    from_zone: str | None = Field(default=None, alias="from")


_TIMES = Timeouts()
_TABLE = Sessions()


class TimeoutsShape(Section):
    """``[sessions.timeouts]``, in seconds."""

    tcp_established: Seconds = _TIMES.tcp_established
    tcp_opening: Seconds = _TIMES.tcp_opening
    tcp_closing: Seconds = _TIMES.tcp_closing
    tcp_time_wait: Seconds = _TIMES.tcp_time_wait
    tcp_closed: Seconds = _TIMES.tcp_closed
    udp: Seconds = _TIMES.udp
    icmp: Seconds = _TIMES.icmp
    other: Seconds = _TIMES.other


class SessionsShape(Section):
    """``[sessions]``."""

    maximum: Annotated[int, Field(ge=64, le=MAX_SESSIONS)] = _TABLE.maximum
    timeouts: TimeoutsShape = TimeoutsShape()
    high_water: Percent = _TABLE.high_water
    low_water: Percent = _TABLE.low_water
    early_ageout: Seconds = _TABLE.early_ageout
