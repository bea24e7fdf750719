"""From the tables of a file to a Ruleset: every reference resolved, every rule checked."""

from __future__ import annotations

from collections.abc import Mapping

from ipsec_gw.config.addresses import ADDRESSES, AddressBook
from ipsec_gw.config.applications import APPLICATIONS, Applications
from ipsec_gw.config.context import Context, tables
from ipsec_gw.config.filters import FILTERS, resolve_filters
from ipsec_gw.config.firewall import FirewallShape, ScheduleShape, SessionsShape
from ipsec_gw.config.names import check_name
from ipsec_gw.config.nat import Nat, resolve_nat
from ipsec_gw.config.policers import POLICERS, Policers
from ipsec_gw.config.policies import resolve_policies
from ipsec_gw.config.positions import Path
from ipsec_gw.config.problems import Refused, Report
from ipsec_gw.config.screens import SCREENS, Profiles
from ipsec_gw.config.section import read
from ipsec_gw.config.zones import resolve_zones
from ipsec_gw.model.firewall import Action, Ruleset, Schedule, Sessions, Timeouts

TABLES = (
    "zones",
    ADDRESSES,
    APPLICATIONS,
    "schedules",
    "policies",
    "firewall",
    "nat",
    "sessions",
    SCREENS,
    FILTERS,
    POLICERS,
)
"""The top level of the firewall's part of a file."""


def resolve_firewall(raw: Mapping[str, object], wan: tuple[str, ...], report: Report) -> Ruleset | None:
    """The firewall of the file ``raw``; None without zones. ``wan`` are the interfaces that it names as the WAN.

    Every error goes to ``report``, and then the result is not to be used.
    """
    given = [name for name in TABLES if name in raw]
    if not given:
        return None
    if not raw.get("zones"):
        way_out = "add [zones.NAME] with interfaces, or remove it"
        report.add((given[0],), "has no effect: there are no zones, and so no firewall", way_out)
    addresses = AddressBook(tables(raw.get(ADDRESSES, {}), (ADDRESSES,), report), report)
    applications = Applications(tables(raw.get(APPLICATIONS, {}), (APPLICATIONS,), report), report)
    profiles = Profiles(raw.get(SCREENS, {}), report)
    raw_zones = tables(raw.get("zones", {}), ("zones",), report)
    raw_schedules = tables(raw.get("schedules", {}), ("schedules",), report)
    raw_nat = raw.get("nat")
    context = Context(
        report=report,
        addresses=addresses,
        applications=applications,
        zones=resolve_zones(raw_zones, applications, profiles, wan, report),
        zone_names=frozenset(raw_zones),
        schedules=_schedules(raw_schedules, report),
        schedule_names=frozenset(raw_schedules),
        crossing=isinstance(raw_nat, Mapping) and bool(raw_nat.get("nat64")),
    )
    return _ruleset(raw, context, profiles)


def _ruleset(raw: Mapping[str, object], context: Context, profiles: Profiles) -> Ruleset:
    report = context.report
    policies = resolve_policies(raw["policies"], context) if "policies" in raw else ()
    nat = resolve_nat(raw["nat"], context) if "nat" in raw else Nat()
    policers = Policers(raw.get(POLICERS, {}), report)
    filters, terms = resolve_filters(raw.get(FILTERS, {}), context, policers)
    options = read(FirewallShape, raw.get("firewall", {}), ("firewall",), report) or FirewallShape()
    return Ruleset(
        zones=context.zones,
        policies=policies,
        default=Action(options.default_policy),
        pools=nat.pools,
        source_nat=nat.source,
        destination_nat=nat.destination,
        static_nat=nat.static,
        nptv6=nat.nptv6,
        nat64=nat.nat64,
        sessions=_sessions(raw.get("sessions", {}), report),
        screens=profiles.found,
        filters=filters,
        filter_terms=terms,
        policers=policers.found,
    )


def _schedules(raw: Mapping[str, object], report: Report) -> dict[str, Schedule]:
    found = {}
    for name, value in raw.items():
        path: Path = ("schedules", name)
        try:
            check_name(name)
        except Refused as refused:
            report.refuse(path, refused)
            continue
        shape = read(ScheduleShape, value, path, report)
        if shape is None or not _some_time(shape, path, report):
            continue
        found[name] = Schedule(name, frozenset(shape.days or ()), shape.start, shape.end)
    return found


def _some_time(shape: ScheduleShape, path: Path, report: Report) -> bool:
    """Is there a minute between start and end? With the end before the start it runs into the day after."""
    if shape.start == shape.end:
        option = "end" if "end" in shape.model_fields_set else "start"
        report.add((*path, option), "never holds: start and end are the same", "leave both out for the whole day")
    return shape.start != shape.end


def _sessions(raw: object, report: Report) -> Sessions:
    path: Path = ("sessions",)
    shape = read(SessionsShape, raw, path, report)
    if shape is None:
        return Sessions()
    if shape.low_water >= shape.high_water:
        option = "low_water" if "low_water" in shape.model_fields_set else "high_water"
        message = f"low_water {shape.low_water} is not below high_water {shape.high_water}"
        report.add((*path, option), message, "early ageing starts at high_water and ends at low_water: leave room")
    timeouts = Timeouts(**shape.timeouts.model_dump())
    return Sessions(shape.maximum, timeouts, shape.high_water, shape.low_water, shape.early_ageout)
