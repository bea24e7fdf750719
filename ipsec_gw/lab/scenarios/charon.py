"""Charon: reload, lost-netlink, reauth, charon-restart, trap, esn and mobike, one after the other by the same gateways.

Where the lab needs a virtual machine, bringing it up takes longer than any of them.
"""

from __future__ import annotations

from ipsec_gw.errors import IpsecGwError
from ipsec_gw.lab.context import Lab
from ipsec_gw.lab.scenarios import charon_restart, esn, lost_netlink, mobike, reauth, reload, trap
from ipsec_gw.lab.scenarios.tale import Tale, tell

TALES = tuple(one.TALE for one in (reload, lost_netlink, reauth, charon_restart, trap, esn, mobike))


def chosen(wish: str) -> tuple[Tale, ...]:
    """All for "all", else those that are named, with commas between. Raises IpsecGwError naming what is unknown."""
    known = {tale.name: tale for tale in TALES}
    if wish == "all":
        return TALES
    names = [name.strip() for name in wish.split(",")]
    if unknown := [name for name in names if name not in known]:
        raise IpsecGwError(f"no tale {', '.join(unknown)} of charon - known: {', '.join(known)}")
    return tuple(known[name] for name in names)


async def run(lab: Lab) -> None:
    """Play it, or the ``cases`` of the options."""
    await tell(lab, *chosen(lab.options.cases))
