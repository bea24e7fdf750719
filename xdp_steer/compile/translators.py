"""Pools that VPP translates with: which tag each has, which addresses are VPP's, and which zone its flows lead to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, summarize_address_range

from ipsec_gw.model.firewall import Ruleset
from xdp_steer.compile.errors import CompileError
from xdp_steer.compile.rows import PrefixRow


@dataclass(frozen=True, slots=True)
class Translator:
    """A pool of VPP that a rule uses: its ``tag`` on the pair between kernel and VPP, VPP's addresses, the zone."""

    pool: str
    tag: int
    first: IPv4Address
    last: IPv4Address
    zone: str


def translators_of(ruleset: Ruleset) -> tuple[Translator, ...]:
    """In the order of the pools. One without rules is left out. Raises CompileError for a pool that leads anywhere."""
    found = []
    for number, pool in enumerate(ruleset.pools, 1):
        if pool.of_vpp is None or all(rule.pool != pool.name for rule in ruleset.source_nat):
            continue
        (first, last), zone = pool.of_vpp, ruleset.zone_of_pool(pool.name)
        if zone is None or not isinstance(first, IPv4Address) or not isinstance(last, IPv4Address):
            raise CompileError(f"pool {pool.name}: VPP translates IPv4 into one zone - add to = the zone to its rules")
        found.append(Translator(pool.name, number, first, last, zone))
    return tuple(found)


def translated_rows(translators: Iterable[Translator]) -> Iterator[PrefixRow]:
    """VPP's addresses as prefixes, with the tags of their pools."""
    for one in translators:
        for network in summarize_address_range(one.first, one.last):
            yield PrefixRow(network, one.tag)
