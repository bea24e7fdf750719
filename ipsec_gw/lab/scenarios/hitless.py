"""Hitless: a little of failover, hang, daemon-kill and chaos, one after the other with one tunnel.

Where the lab needs a virtual machine, bringing it up takes longer than all of this.
"""

from __future__ import annotations

from ipsec_gw.lab.context import Lab
from ipsec_gw.lab.scenarios.chaos import disorder
from ipsec_gw.lab.scenarios.daemon_kill import daemon_kills
from ipsec_gw.lab.scenarios.failover import begin, finish, kills
from ipsec_gw.lab.scenarios.hang import stops

ROUNDS = 1
"""Of kills and stops each; of deaths of the daemon twice as many, for every second one is followed by a rekey."""


async def run(lab: Lab) -> None:
    """Play it; chaos goes on for ``minutes``."""
    rounds = lab.options.rounds or ROUNDS
    story, gateway, evidence = await begin(lab)
    await daemon_kills(story, gateway, evidence, 2 * rounds)
    await kills(story, gateway, evidence, rounds)
    await stops(story, gateway, evidence, rounds)
    await disorder(story, gateway, evidence, lab.options.minutes)
    await finish(story, gateway, evidence, lossy=True, flapped=True)
