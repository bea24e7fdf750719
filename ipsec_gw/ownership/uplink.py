"""The veth pair between the kernel and the engine.

``ipsecgw-up`` is the kernel's end: decrypted packets come out of it, plaintext to encrypt goes into it.
``ipsecgw-vp`` is the engine's end: an AF_XDP socket takes what arrives there. With no live socket the dock
passes packets on, they come back into the kernel by ``ipsecgw-vp`` and take XFRM's way.
"""

from __future__ import annotations

from pathlib import Path

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from ipsec_gw.errors import EnvironmentMissing
from ipsec_gw.mirror.ethtool import STXCSUM, turn_off
from ipsec_gw.mirror.kernel import Interface, KernelView

KERNEL_END = "ipsecgw-up"
ENGINE_END = "ipsecgw-vp"

_SYSCTLS = {
    KERNEL_END: {
        # XFRM must not encrypt what the engine is about to encrypt, nor ask decrypted packets for an SA.
        "disable_xfrm": 1,
        "disable_policy": 1,
        "rp_filter": 0,
        "accept_local": 1,
        # Without carrier the route must vanish, or it would be a black hole (measured).
        "ignore_routes_with_linkdown": 1,
    },
    ENGINE_END: {"rp_filter": 0, "accept_local": 1, "forwarding": 1},
}


async def raise_uplink(route: AsyncIPRoute) -> tuple[Interface, Interface]:
    """Create the pair if it is not there, set it up and return (kernel end, engine end). Idempotent."""
    view = KernelView(route)
    try:
        if KERNEL_END not in await view.interfaces():
            await route.link("add", ifname=KERNEL_END, kind="veth", peer={"ifname": ENGINE_END})
        for name in (KERNEL_END, ENGINE_END):
            _apply_sysctls(name)
            # veth leaves checksums to a NIC that does not exist; an engine must see them filled in. TSO goes with them.
            turn_off(name, STXCSUM)
            interface = await view.interface(name)
            await route.link("set", index=interface.index, state="up", arp=False)
    except NetlinkError as error:
        raise EnvironmentMissing(f"the veth pair {KERNEL_END} cannot be made ({error}) - is veth loaded?") from None
    return await view.interface(KERNEL_END), await view.interface(ENGINE_END)


async def remove_uplink(route: AsyncIPRoute) -> None:
    """Remove the pair, if it is there."""
    for index in await route.link_lookup(ifname=KERNEL_END):
        await route.link("del", index=index)


def _apply_sysctls(name: str) -> None:
    for setting, value in _SYSCTLS[name].items():
        Path(f"/proc/sys/net/ipv4/conf/{name}/{setting}").write_text(f"{value}\n")
    quiet = Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6")
    if quiet.exists():
        quiet.write_text("1\n")
