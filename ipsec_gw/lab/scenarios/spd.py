"""Spd: with ``policy_mode = "spd"`` the tunnel is policies of VPP's: rekeys, deaths of the daemon and of VPP."""

from __future__ import annotations

from ipsec_gw.lab.context import Lab
from ipsec_gw.lab.gateway import PLAIN
from ipsec_gw.lab.scenarios.daemon_kill import daemon_kills
from ipsec_gw.lab.scenarios.failover import begin, finish, kills
from ipsec_gw.lab.scenarios.site_to_site import bracketed_exchange, rekey_under_traffic

CONFIG = f'{PLAIN}policy_mode = "spd"\n'
TOLD = "what comes out of a tunnel is held to the selectors of all of them"

DAEMON_KILLS, VPP_KILLS = 2, 1


async def run(lab: Lab) -> None:
    """Play it."""
    story, gateway, evidence = await begin(lab, config=CONFIG)
    note = (await gateway.status()).note
    lab.check("the status says what policies cannot tell apart", TOLD in note, TOLD, note)
    await bracketed_exchange(story, "payload exchange")
    await rekey_under_traffic(story, evidence)
    await daemon_kills(story, gateway, evidence, lab.options.rounds or DAEMON_KILLS)
    await kills(story, gateway, evidence, VPP_KILLS)
    await bracketed_exchange(story, "payload exchange after all that")
    await finish(story, gateway, evidence, lossy=True)
