"""Read a configuration and compile its firewall: what the data path has no room or no means for is an error of the file
as well, and is told with its line before anything is applied.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path as FilePath
from typing import Any

from ipsec_gw.config.load import DEFAULT_PATH, load
from ipsec_gw.config.model import Config
from ipsec_gw.config.positions import Path, lines_of
from ipsec_gw.config.problems import Report
from ipsec_gw.model.firewall import Ruleset
from xdp_steer.compile.errors import CompileError
from xdp_steer.compile.ids import Ids, assign, label
from xdp_steer.compile.ruleset import compile_ruleset
from xdp_steer.compile.schedule import active, next_change
from xdp_steer.flow_layout import NameKind

_SPAN = timedelta(days=8)
"""All that schedules ever bring, spans over midnight included."""

_RULES = {
    NameKind.POLICY: ("policies",),
    NameKind.SOURCE_NAT: ("nat", "source"),
    NameKind.DESTINATION_NAT: ("nat", "destination"),
    NameKind.STATIC_NAT: ("nat", "static"),
    NameKind.NPTV6: ("nat", "nptv6"),
    NameKind.NAT64: ("nat", "nat64"),
}


def load_compiled(path: FilePath | None) -> Config:
    """The configuration as :func:`ipsec_gw.config.load.load` reads it, proven to compile at every hour of the week.

    Raises InvalidConfig with a line for each error of the file, or for the first one that the compiler finds.
    """
    config = load(path)
    if config.firewall is not None:
        try:
            compile_always(config.firewall, datetime.now())
        except CompileError as error:
            _tell(path or DEFAULT_PATH, str(error))
    return config


def compile_always(ruleset: Ruleset, now: datetime) -> None:
    """Compile a ruleset without its interfaces, for every set of policies that schedules bring from ``now`` on.

    Raises CompileError.
    """
    ids = assign(Ids(), ruleset)
    always = replace(ruleset, policies=tuple(replace(policy, schedule=None) for policy in ruleset.policies))
    try:
        compile_ruleset(always, ids, {}, now=now)  # all at once is more than any hour brings
    except CompileError:
        if always == ruleset:
            raise
        for moment in _moments(ruleset, now):
            compile_ruleset(ruleset, ids, {}, now=moment)


def _moments(ruleset: Ruleset, now: datetime) -> Iterator[datetime]:
    """One moment for every set of policies that holds at some time."""
    seen = set()
    moment: datetime | None = now
    while moment is not None and moment < now + _SPAN:
        holding = tuple(active(policy.schedule, moment) for policy in ruleset.policies)
        if holding not in seen:
            seen.add(holding)
            yield moment
        moment = next_change(ruleset, moment)


def _tell(file: FilePath, text: str) -> None:
    """Raises InvalidConfig with the compiler's text at the rule that it names."""
    try:
        source = file.read_text(encoding="utf-8")
        raw, lines = tomllib.loads(source), lines_of(source)
    except (OSError, ValueError, RecursionError):  # no longer the file that was read
        raw, lines = {}, {}
    place = dict(_places(raw)).get(text.partition(":")[0], ())
    message, _, way_out = text.rpartition(" - ")
    report = Report(str(file), lines)
    report.add(place, message or text, way_out if message else "change it")
    report.give()


def _places(raw: Mapping[str, Any]) -> Iterator[tuple[str, Path]]:
    """What the compiler calls each rule, zone and pool of a file, and where that stands."""
    for kind, path in _RULES.items():
        rules: Any = raw
        for key in path:
            rules = rules.get(key, {})
        for index, rule in enumerate(rules):
            yield label(kind, rule["name"]), (*path, index)
    for name, one in raw.get("filters", {}).items():
        for index, term in enumerate(one["terms"]):
            yield label(NameKind.FILTER_TERM, f"{name}/{term['name']}"), ("filters", name, "terms", index)
    for zone in raw.get("zones", {}):
        yield label(NameKind.ZONE, zone), ("zones", zone)
        yield label(NameKind.HOST_INBOUND, zone), ("zones", zone, "host_inbound")
    for pool in raw.get("nat", {}).get("pools", {}):
        yield f"pool {pool}", ("nat", "pools", pool)
