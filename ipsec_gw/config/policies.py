"""Policies: references resolved, and rules that could never decide anything refused."""

from __future__ import annotations

from ipsec_gw.config.context import Context, Names, Shadows, check_families, elements
from ipsec_gw.config.firewall import PolicyShape
from ipsec_gw.config.positions import Path
from ipsec_gw.config.problems import dotted
from ipsec_gw.model.firewall import SELF, Action, Policy, Schedule


def resolve_policies(raw: object, context: Context) -> tuple[Policy, ...]:
    """``[[policies]]`` in the order of the file; what is wrong goes to the report."""
    names, shadows = Names(context.report), Shadows(context.report)
    policies = []
    for path, shape in elements(PolicyShape, raw, ("policies",), context.report):
        fresh = names.check(path, shape.name)
        policy = _policy(path, shape, context)
        if policy is not None and fresh:
            shadows.check_policy(path, policy)
            policies.append(policy)
    return tuple(policies)


def _policy(path: Path, shape: PolicyShape, context: Context) -> Policy | None:
    zones = _check_zones(path, shape, context)
    log = _check_log(path, shape, context)
    schedule_ok, schedule = _schedule(path, shape, context)
    sources = context.addresses.lookup((*path, "source"), shape.source)
    destinations = context.addresses.lookup((*path, "destination"), shape.destination)
    services = context.applications.lookup((*path, "application"), shape.application)
    if sources is None or destinations is None or services is None:
        return None
    families = check_families(context.report, path, sources, destinations, services, crossing=context.crossing)
    if not (zones and log and schedule_ok and families):
        return None
    return Policy(
        name=shape.name,
        action=Action(shape.action),
        from_zone=shape.from_zone,
        to_zone=shape.to_zone,
        sources=sources,
        destinations=destinations,
        services=services,
        log_open="open" in shape.log,
        log_close="close" in shape.log,
        schedule=schedule,
    )


def _check_zones(path: Path, shape: PolicyShape, context: Context) -> bool:
    """Two zones, or none for a global policy."""
    known = context.check_zone((*path, "from"), shape.from_zone, self_allowed=True)
    known &= context.check_zone((*path, "to"), shape.to_zone, self_allowed=True)
    if (shape.from_zone is None) != (shape.to_zone is None):
        given = "to" if shape.from_zone is None else "from"
        message = f"names only one zone ({given})"
        context.report.add((*path, given), message, "give from and to, or neither for a global policy")
        return False
    if shape.from_zone == shape.to_zone == SELF:
        context.report.add((*path, "to"), "from self to self passes no interface", "name a zone")
        return False
    return known


def _check_log(path: Path, shape: PolicyShape, context: Context) -> bool:
    """A flow that is not permitted has no session whose end could be told."""
    if "close" in shape.log and shape.action != "permit":
        place = (*path, "log", shape.log.index("close"))
        context.report.add(place, f"a policy that says {shape.action} has no sessions to close", 'write log = ["open"]')
        return False
    return True


def _schedule(path: Path, shape: PolicyShape, context: Context) -> tuple[bool, Schedule | None]:
    name = shape.schedule
    if name is None or name in context.schedules:
        return True, context.schedules[name] if name else None
    if name not in context.schedule_names:
        context.report.add((*path, "schedule"), f"unknown schedule {name!r}", f"define [{dotted(('schedules', name))}]")
    return False, None
