"""The veth pairs by which clear packets of tunnels come and go: between the kernel and the engine, and from the
kernel's own IPsec to the firewall; and the pair by which VPP translates.

``ipsecgw-up`` is the kernel's end: decrypted packets come out of it, plaintext to encrypt goes into it.
``ipsecgw-vp`` is the engine's end: an AF_XDP socket takes what arrives there. With no live socket the dock
passes packets on, they come back into the kernel by ``ipsecgw-vp`` and take XFRM's way.

What the kernel decrypts is led into ``ipsecgw-ki`` and comes out of ``ipsecgw-kd``, the tunnels' port, where the
pipeline sees it as it sees any packet.

By ``ipsecgw-vn`` and ``ipsecgw-kn`` the pipeline gives packets to VPP's NAT and gets them back.
"""

from __future__ import annotations

from pathlib import Path

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from ipsec_gw.errors import EnvironmentMissing
from ipsec_gw.mirror.ethtool import STSO, STXCSUM, turn_off
from ipsec_gw.mirror.kernel import KernelView
from ipsec_gw.mirror.links import Interface
from ipsec_gw.model.firewall import TRANSLATOR_PORT, TUNNEL_INTERFACES
from ipsec_gw.model.sizes import UPLINK_MTU
from xdp_steer.flow_layout import TRANSLATOR_MAC, TRANSLATOR_MTU, TRANSLATOR_PORT_MAC, TUNNEL_PORT_MAC

ENGINE_END = "ipsecgw-vp"
KERNEL_END, TUNNEL_PORT = TUNNEL_INTERFACES
TUNNEL_ENTRY = "ipsecgw-ki"
TRANSLATOR_END = "ipsecgw-vn"
_DUMMY, _TRANSLATOR_DUMMY, _SCOPE_HOST = "192.0.0.12", "192.0.0.13", 254
"""Of the IETF block 192.0.0.0/24 (RFC 6890): by an interface without any address a loose rp_filter lets nothing in
(fib_frontend.c). Not the gateway of the leads, which must be nobody's own."""
_TUNNEL_MTU = 3498
"""The longest that fits into a page with XDP's headroom: the kernel refuses more on a veth pair with XDP."""

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
    # The state that decrypted a packet is held against its policy before: here nothing is left of it.
    TUNNEL_PORT: {"disable_policy": 1, "rp_filter": 0, "accept_local": 1, "forwarding": 1},
    TUNNEL_ENTRY: {"rp_filter": 0},
    # What VPP has translated has addresses that lead elsewhere.
    TRANSLATOR_PORT: {"rp_filter": 0, "accept_local": 1, "forwarding": 1},
    TRANSLATOR_END: {"rp_filter": 0},
}
_NO_ADDRESS = {"addr_gen_mode": 1, "accept_ra": 0}
"""No address is made (1), and so nothing is solicited or announced either."""
_SYSCTLS6 = {
    KERNEL_END: {
        **_NO_ADDRESS,
        # Decrypted packets that are forwarded; for the rest see ownership.bypass.
        "disable_policy": 1,
        "ignore_routes_with_linkdown": 1,
        "forwarding": 1,
        "disable_ipv6": 0,
    },
    # Without an engine, packets come back into the kernel here.
    ENGINE_END: {**_NO_ADDRESS, "forwarding": 1, "disable_ipv6": 0},
    # Decrypted IPv6 is taken here.
    TUNNEL_PORT: {**_NO_ADDRESS, "disable_policy": 1, "forwarding": 1},
}


async def raise_uplink(route: AsyncIPRoute) -> tuple[Interface, Interface]:
    """Create the pair if it is not there, set it up and return (kernel end, engine end). Idempotent."""
    view = KernelView(route)
    try:
        if KERNEL_END not in await view.interfaces():
            peer = {"ifname": ENGINE_END, "mtu": UPLINK_MTU}
            await route.link("add", ifname=KERNEL_END, kind="veth", mtu=UPLINK_MTU, peer=peer)
        for name in (KERNEL_END, ENGINE_END):
            _apply_sysctls(name)
            # veth leaves checksums to a NIC that does not exist; an engine must see them filled in. TSO goes with them.
            turn_off(name, STXCSUM)
            interface = await view.interface(name)
            await route.link("set", index=interface.index, state="up", arp=False)
    except NetlinkError as error:
        raise EnvironmentMissing(f"the veth pair {KERNEL_END} cannot be made ({error}) - is veth loaded?") from None
    return await view.interface(KERNEL_END), await view.interface(ENGINE_END)


async def raise_tunnel_port(route: AsyncIPRoute) -> tuple[int, int]:
    """Create the pair of the kernel's own IPsec if it is not there; returns the indices of (entry, port)."""
    view = KernelView(route)
    try:
        if TUNNEL_PORT not in await view.interfaces():
            port = {"ifname": TUNNEL_PORT, "address": TUNNEL_PORT_MAC.hex(":"), "mtu": _TUNNEL_MTU}
            await route.link("add", ifname=TUNNEL_ENTRY, kind="veth", mtu=_TUNNEL_MTU, peer=port)
            for name in (TUNNEL_ENTRY, TUNNEL_PORT):
                _apply_sysctls(name)
                turn_off(name, STXCSUM, STSO)  # merged packets are taken apart before XDP sees them
                interface = await view.interface(name)
                await route.link("set", index=interface.index, state="up", arp=False)
            await route.addr("add", index=interface.index, address=_DUMMY, prefixlen=32, scope=_SCOPE_HOST)
    except NetlinkError as error:
        raise EnvironmentMissing(f"the veth pair {TUNNEL_PORT} cannot be made ({error}) - is veth loaded?") from None
    found = await view.interfaces()
    return found[TUNNEL_ENTRY].index, found[TUNNEL_PORT].index


async def raise_translator(route: AsyncIPRoute) -> int:
    """Create the pair of VPP's NAT if it is not there; returns the index of the kernel's end."""
    view = KernelView(route)
    try:
        if TRANSLATOR_PORT not in await view.interfaces():
            end = {"ifname": TRANSLATOR_END, "address": TRANSLATOR_MAC.hex(":"), "mtu": TRANSLATOR_MTU}
            mac = TRANSLATOR_PORT_MAC.hex(":")
            await route.link("add", ifname=TRANSLATOR_PORT, kind="veth", address=mac, mtu=TRANSLATOR_MTU, peer=end)
            for name in (TRANSLATOR_END, TRANSLATOR_PORT):
                _apply_sysctls(name)
                turn_off(name, STXCSUM, STSO)
                interface = await view.interface(name)
                await route.link("set", index=interface.index, state="up", arp=False)
            await route.addr("add", index=interface.index, address=_TRANSLATOR_DUMMY, prefixlen=32, scope=_SCOPE_HOST)
    except NetlinkError as error:
        raise EnvironmentMissing(
            f"the veth pair {TRANSLATOR_PORT} cannot be made ({error}) - is veth loaded?"
        ) from None
    return (await view.interfaces())[TRANSLATOR_PORT].index


async def remove_translator(route: AsyncIPRoute) -> None:
    """Remove the pair of VPP's NAT, if it is there."""
    for index in await route.link_lookup(ifname=TRANSLATOR_PORT):
        await route.link("del", index=index)


async def remove_tunnel_port(route: AsyncIPRoute) -> None:
    """Remove the pair of the kernel's own IPsec, if it is there."""
    for index in await route.link_lookup(ifname=TUNNEL_PORT):
        await route.link("del", index=index)


async def remove_uplink(route: AsyncIPRoute) -> None:
    """Remove the engine's pair, if it is there."""
    for index in await route.link_lookup(ifname=KERNEL_END):
        await route.link("del", index=index)


def _apply_sysctls(name: str) -> None:
    for setting, value in _SYSCTLS[name].items():
        Path(f"/proc/sys/net/ipv4/conf/{name}/{setting}").write_text(f"{value}\n")
    here = Path(f"/proc/sys/net/ipv6/conf/{name}")
    if here.exists():
        for setting, value in _SYSCTLS6.get(name, {"disable_ipv6": 1}).items():
            _set(here / setting, f"{value}\n")


def _set(file: Path, text: str) -> None:
    """Linux 6.1 has been seen to set an IPv6 value (ignore_routes_with_linkdown) and to say EINVAL all the same."""
    try:
        file.write_text(text)
    except OSError:
        if file.read_text() != text:
            raise
