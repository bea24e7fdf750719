"""`lab up`: the site-to-site network with both strongSwans, left running to be played with by hand."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from ipsec_gw.lab import netns, session
from ipsec_gw.lab.kernel import TOOLS, need_root
from ipsec_gw.lab.process import need_tools
from ipsec_gw.lab.session import Session
from ipsec_gw.lab.sites import site_of
from ipsec_gw.lab.strongswan import CHILD, Swan
from ipsec_gw.lab.topology import HOST, Role, Topology, site_to_site


@dataclass(frozen=True, slots=True)
class Playground:
    """A network that was left running."""

    session: Session
    topology: Topology
    vici: dict[Role, str]


async def up(proposal: str) -> Playground:
    """Build it and leave it running until `lab down`. Raises what the steps raise, and leaves nothing behind then."""
    need_root()
    need_tools(TOOLS)
    tag = session.new_tag()
    topology = site_to_site(tag)
    mine = session.begin(tag, topology.namespaces)
    try:
        await netns.build(topology)
        vici = {}
        for role in (Role.GATEWAY_A, Role.GATEWAY_B):
            swan = await Swan.start(site_of(topology, role, proposal), mine.run_dir / role, outlive=True)
            await swan.load()
            vici[role] = swan.files.vici
        session.keep(mine)
    except BaseException:
        await session.end(mine)
        raise
    return Playground(mine, topology, vici)


def hints(ground: Playground) -> str:
    """What to type next."""
    topology, mine = ground.topology, ground.session
    enter = {role: f"nsenter --net=/run/netns/{topology.namespace(role)}" for role in topology.roles}
    server = topology.address(Role.SERVER, HOST)
    gateway = f"{sys.executable} -m ipsec_gw.cli.main --run-dir {mine.gateway_dir} --pins {mine.pins}"
    return "\n".join(
        (
            f"client - gateway A - WAN - gateway B - server are up as {mine.tag}-*",
            f"  accelerate A:   {enter[Role.GATEWAY_A]} {gateway} run --engine soft "
            f"--vici {ground.vici[Role.GATEWAY_A]}",
            f"  tunnel up:      swanctl --initiate --child {CHILD} --uri {ground.vici[Role.GATEWAY_A]}",
            f"  traffic:        {enter[Role.CLIENT]} ping {server}",
            f"  watch the WAN:  {enter[Role.WAN]} tcpdump -ni br0",
            "  remove all:     ipsec-gw lab down",
        )
    )
