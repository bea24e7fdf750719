"""What differs between two rulesets, as sentences."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from typing import Any

from ipsec_gw.model.filters import FilterTerm
from ipsec_gw.model.firewall import ANY_PORT, Blocks, Policy, Ruleset, Schedule, Service

_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 50: "esp", 51: "ah", 58: "icmp6", 132: "sctp"}
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_SECTIONS = (
    ("zone", "zones"),
    ("pool", "pools"),
    ("screens", "screens"),
    ("policy", "policies"),
    ("source nat", "source_nat"),
    ("destination nat", "destination_nat"),
    ("static nat", "static_nat"),
    ("nptv6", "nptv6"),
    ("nat64", "nat64"),
    ("policer", "policers"),
    ("filter", "filters"),
    ("filter term", "filter_terms"),
)
_UNORDERED = ("zone", "pool", "screens", "policer", "filter")


@dataclass(frozen=True, slots=True)
class Change:
    """One difference: ``kind`` and ``name`` (may be empty) of the object, and what happens to it."""

    kind: str
    name: str
    what: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}: {self.what}" if self.name else f"{self.kind}: {self.what}"


def plan(old: Ruleset | None, new: Ruleset) -> list[Change]:
    """What applying ``new`` over ``old`` (None: no firewall yet) changes; empty when they are the same."""
    before = old if old is not None else Ruleset()
    found: list[Change] = []
    for kind, section in _SECTIONS:
        found += _section(kind, getattr(before, section), getattr(new, section))
    if old is None:
        found.append(Change("default", "", _text(new.default)))
    elif old.default != new.default:
        found.append(Change("default", "", f"{_text(old.default)} -> {_text(new.default)}"))
    found += [Change("sessions", "", text) for text in _fields(before.sessions, new.sessions)]
    return found


def _section(kind: str, old: Sequence[Any], new: Sequence[Any]) -> Iterator[Change]:
    before = {item.name: item for item in old}
    after = {item.name: item for item in new}
    for name in before:
        if name not in after:
            yield Change(kind, name, "removed")
    moved = {} if kind in _UNORDERED else _moved(old, new)
    for name, item in after.items():
        if name not in before:
            yield Change(kind, name, "added")
            continue
        if name in moved:
            yield Change(kind, name, moved[name])
        if texts := list(_fields(before[name], item)):
            yield Change(kind, name, "changed: " + "; ".join(texts))


def _moved(old: Sequence[Any], new: Sequence[Any]) -> dict[str, str]:
    """Rules that stand elsewhere among those of the same zones or filter; the fewest that explain the new order."""
    found: dict[str, str] = {}
    for scope in dict.fromkeys(map(_scope, new)):
        places = {item.name: place for place, item in enumerate(old) if _scope(item) == scope}
        names = [item.name for item in new if _scope(item) == scope]
        kept = [name for name in names if name in places]
        still = _longest_ascending([places[name] for name in kept])
        for name in kept:
            if places[name] not in still:
                place = names.index(name)
                found[name] = f"moved behind {names[place - 1]}" if place else "moved to the front"
    return found


def _scope(rule: Any) -> tuple[Any, ...]:
    match rule:
        case Policy():
            return (rule.from_zone, rule.to_zone)
        case FilterTerm():
            return (rule.filter,)
    return ()


def _longest_ascending(numbers: Sequence[int]) -> set[int]:
    """A longest ascending subsequence of different numbers."""
    ends: list[int] = []  # the smallest end of a subsequence of each length
    before: dict[int, int | None] = {}
    for number in numbers:
        length = bisect_left(ends, number)
        before[number] = ends[length - 1] if length else None
        ends[length : length + 1] = [number]
    found: set[int] = set()
    last = ends[-1] if ends else None
    while last is not None:
        found.add(last)
        last = before[last]
    return found


def _fields(old: Any, new: Any) -> Iterator[str]:
    for field in fields(old):
        before, after = getattr(old, field.name), getattr(new, field.name)
        name = field.name.replace("_", " ")
        if before == after:
            continue
        if isinstance(before, tuple) and (before or after) and not _is_range(before):
            yield f"{name} {_members(before, after)}"
        elif is_dataclass(before) and type(before) is type(after) and not isinstance(before, Schedule):
            yield from _fields(before, after)
        else:
            yield f"{name} {_text(before)} -> {_text(after)}"


def _is_range(value: tuple[Any, ...]) -> bool:
    return bool(value) and isinstance(value[0], int)


def _members(old: tuple[Any, ...], new: tuple[Any, ...]) -> str:
    changes = [f"-{_text(item)}" for item in old if item not in new]
    changes += [f"+{_text(item)}" for item in new if item not in old]
    return " ".join(changes) or "in another order"


def _text(value: Any) -> str:
    match value:
        case None:
            text = "none"
        case bool():
            text = "yes" if value else "no"
        case Enum():
            text = str(value.value)
        case Service():
            text = _service(value)
        case Blocks():
            text = f"{value.size} ports for each of {value.subscribers}"
        case Schedule():
            text = _schedule(value)
        case (first, last):
            text = f"{first}-{last}"
        case _:
            text = str(value)
    return text


def _service(service: Service) -> str:
    text = "any" if service.protocol is None else _PROTOCOLS.get(service.protocol, str(service.protocol))
    for word, ports in (("", service.destination), ("from ", service.source)):
        if ports != ANY_PORT:
            text += f"/{word}{ports[0]}" + (f"-{ports[1]}" if ports[1] != ports[0] else "")
    return text if service.timeout is None else f"{text} ({service.timeout} s)"


def _schedule(schedule: Schedule) -> str:
    days = ",".join(_DAYS[day] for day in sorted(schedule.days)) or "daily"
    clock = "{:02}:{:02}".format
    return f"{days} {clock(*divmod(schedule.start, 60))}-{clock(*divmod(schedule.end, 60))}"
