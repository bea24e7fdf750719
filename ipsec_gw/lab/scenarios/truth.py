"""Counter truth: what charon says of an SA is what the wire carried, whoever did the work."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Collection, Mapping

from ipsec_gw.lab.context import Lab
from ipsec_gw.lab.gateway import GatewayUnderTest, GuardCount
from ipsec_gw.lab.kernel_sas import dump
from ipsec_gw.lab.netns import xfrm_errors
from ipsec_gw.lab.strongswan import Swan
from ipsec_gw.lab.topology import WAN, Role

SYNC_SECONDS = 1.5
"""The guardian's interval of a second, and its work."""

SYNC_TRIES = 6
COUNTED = re.compile(r"^\s+(?:in|out)\s+([0-9a-f]{8})\b.*?(\d+) packets", re.MULTILINE)
EARLY = "XfrmAcquireError"
"""The kernel's counter of packets that come for an SA of which it has the SPI alone, allocated by charon."""

NEVER = GuardCount(0, 0)
TOLD = "charon counts what the wire carried"


async def counter_truth(
    lab: Lab,
    swan: Swan,
    gateway: GatewayUnderTest | None,
    carried: Counter[str],
    *,
    sent_by: Collection[str] | None = None,
    name: str = TOLD,
) -> None:
    """Call at a quiet moment. ``carried`` are the packets on the wire by SA, of the whole run. Judged are the SAs that
    live; where packets are lost between wire and receiver, only those with a source address among ``sent_by``.

    What the guard held back for good, the kernel had counted, and no wire has seen it. What came for an SA before the
    kernel had it, nobody counted but the wire: the peer sends as soon as it has the SA itself.
    """
    with lab.step("counters of charon"):
        local = lab.topology.addresses(Role.GATEWAY_A, WAN)
        unknown = xfrm_errors(swan.site.namespace).get(EARLY, 0)
        guard = (await gateway.status_now()).guard if gateway else {}
        wanted, early = {}, set[int]()
        for sa in dump(swan.site.namespace):
            if sent_by is not None and str(sa.source) not in sent_by:
                continue
            key = f"{sa.destination}/{sa.spi:08x}"
            count = guard.get(key, NEVER)
            wanted[sa.spi] = carried[key] + count.dropped - count.waited
            early |= {sa.spi} if sa.destination in local else set()
        said, before = await _counted(swan, wanted), dict[int, int]()
        for _ in range(SYNC_TRIES):
            if said == wanted or (said == before and _true(said, wanted, early, unknown)):
                break
            await asyncio.sleep(SYNC_SECONDS)
            said, before = await _counted(swan, wanted), said
    less = f", of {len(early)} inbound SAs up to {unknown} less" if unknown else ""
    lab.check(name, bool(wanted) and _true(said, wanted, early, unknown), f"{wanted}{less}", said)


def _true(said: Mapping[int, int], wanted: Mapping[int, int], early: Collection[int], unknown: int) -> bool:
    """Whether all is told, but for ``unknown`` packets at most that came too early for SAs that are ``early``."""
    missing = {spi: count - said.get(spi, 0) for spi, count in wanted.items()}
    return said.keys() == wanted.keys() and all(
        0 <= missing[spi] <= (unknown if spi in early else 0) for spi in missing
    )


async def _counted(swan: Swan, wanted: Collection[int]) -> dict[int, int]:
    """Packets by SPI, as `swanctl --list-sas` prints them."""
    found = COUNTED.findall(await swan.swanctl("--list-sas"))
    return {int(spi, 16): int(count) for spi, count in found if int(spi, 16) in wanted}
