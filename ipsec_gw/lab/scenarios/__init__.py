"""The scenarios of the lab, by name."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ipsec_gw.errors import IpsecGwError
from ipsec_gw.lab import topology
from ipsec_gw.lab.topology import Topology

if TYPE_CHECKING:
    from ipsec_gw.lab.context import Lab


@dataclass(frozen=True, slots=True)
class Scenario:
    """A named story with checks, on a topology of its own."""

    name: str
    summary: str
    topology: Callable[[str], Topology]
    run: Callable[[Lab], Awaitable[None]]


def scenarios() -> dict[str, Scenario]:
    """All of them, by name."""
    # Here and not above: scenarios import the lab, which imports this package.
    from ipsec_gw.lab.scenarios.site_to_site import run as run_site_to_site  # noqa: PLC0415

    known = (
        Scenario(
            "site-to-site",
            "two unmodified strongSwans, a tunnel, its traffic opened by an oracle, a rekey from each side",
            topology.site_to_site,
            run_site_to_site,
        ),
    )
    return {scenario.name: scenario for scenario in known}


def find(name: str) -> Scenario:
    """A scenario by name. Raises IpsecGwError naming those that exist."""
    known = scenarios()
    if name not in known:
        raise IpsecGwError(f"no scenario {name} - known: {', '.join(known)}")
    return known[name]
