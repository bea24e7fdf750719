"""What the kernel knows of the network around the tunnels: addresses, outer next hops, charon's source hints."""

from __future__ import annotations

import contextlib
import socket
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any, NamedTuple, cast

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from ipsec_gw.errors import EnvironmentMissing
from ipsec_gw.ike.codec import family_of
from ipsec_gw.mirror.links import Interface, Links
from ipsec_gw.mirror.vxlan import elsewhere
from ipsec_gw.model.ids import IpAddress, IpNetwork
from ipsec_gw.model.snapshot import ResolvedHop, Vxlan

CHARON_TABLE = 220
"""strongSwan's ``charon.routing_table``: its routes carry the source address for locally generated packets."""

NUD_USABLE = 0x02 | 0x04 | 0x08 | 0x10 | 0x40 | 0x80
"""REACHABLE, STALE, DELAY, PROBE, NOARP, PERMANENT (``linux/neighbour.h``): states in which the MAC is known."""

_NUD_STALE = 0x04
_NTF_USE = 0x01
_MAIN_TABLE = 254


class _Route(NamedTuple):
    """The interface and the next hop; the path MTU that routers have told the kernel, or a route has, 0 for none."""

    link: int
    gateway: IpAddress
    mtu: int


class KernelView:
    """Reads routes, neighbours and addresses of this network namespace (rtnetlink)."""

    def __init__(self, route: AsyncIPRoute) -> None:
        self._route = route

    async def links(self) -> Links:
        """All links, as they are now."""
        return Links([link async for link in await self._route.get_links()])

    async def interfaces(self) -> dict[str, Interface]:
        """All interfaces by name."""
        return (await self.links()).interfaces()

    async def vxlans(self, links: Links) -> tuple[Vxlan, ...]:
        """Those of ``links``, with what their forwarding databases lead to besides."""
        devices = links.vxlans()
        others = await self._elsewhere({one.interface.index: one for one in devices}) if devices else {}
        return tuple(replace(one, elsewhere=tuple(sorted(others.get(one.interface.index, ())))) for one in devices)

    async def _elsewhere(self, devices: Mapping[int, Vxlan]) -> Mapping[int, set[str]]:
        """By the devices' indices."""
        found = defaultdict[int, set[str]](set)
        async for entry in await self._route.get_neighbours(family=socket.AF_BRIDGE):
            if (place := elsewhere(entry, devices)) is not None:
                index, words = place
                found[index].add(words)
        return found

    async def interface(self, name: str) -> Interface:
        """One interface. Raises EnvironmentMissing if there is none of that name."""
        found = await self.interfaces()
        if name not in found:
            raise EnvironmentMissing(f"interface {name} does not exist - `ip link` lists those that do")
        return found[name]

    async def addresses(self) -> frozenset[IpAddress]:
        """Local addresses."""
        return frozenset([address async for address, _ in self._addresses()])

    async def holders(self) -> dict[IpAddress, str]:
        """Local addresses and the name of the interface that holds each."""
        names = (await self.links()).names
        return {address: names.get(index, "?") async for address, index in self._addresses()}

    async def _addresses(self) -> AsyncIterator[tuple[IpAddress, int]]:
        async for message in await self._route.get_addr():
            text = message.get("local") or message.get("address")
            if text:
                yield ip_address(text), int(message.get("index"))

    async def default_interfaces(self) -> list[str]:
        """Names of the interfaces that default routes leave by, those of IPv4 first."""
        names = {index: name for index, name in (await self.links()).names.items() if name != "lo"}
        found: list[str] = []
        for family in (socket.AF_INET, socket.AF_INET6):
            async for message in await self._route.get_routes(family=family, table=_MAIN_TABLE):
                if message.get("dst_len") == 0 and message.get("oif") in names:
                    found.append(names[message.get("oif")])
        return found

    async def source_hints(self) -> dict[IpNetwork, IpAddress]:
        """Source addresses of charon's routes, by destination network."""
        hints: dict[IpNetwork, IpAddress] = {}
        async for message in await self._route.get_routes(table=CHARON_TABLE):
            source, destination = message.get("prefsrc"), message.get("dst")
            if source and destination:
                hints[ip_network(f"{destination}/{message.get('dst_len')}")] = ip_address(source)
        return hints

    async def next_hops(
        self, peers: Mapping[IpAddress, IpAddress | None], links: Links
    ) -> dict[IpAddress, ResolvedHop]:
        """How packets reach each peer by one of ``links``, from an address of ours: with several providers that decides
        (``ip rule``). Peers without a route or a known MAC are left out.

        For those whose MAC is not known the kernel is asked to resolve it: it is there at a later look. Nor does the
        kernel see that an engine uses a neighbour: it is told so, or the entry would stay stale and be collected.
        """
        if not peers:
            return {}
        by_index = {interface.index: interface for interface in links.interfaces().values()}
        macs = await self._macs()
        hops: dict[IpAddress, ResolvedHop] = {}
        for peer, source in sorted(peers.items(), key=lambda item: str(item[0])):
            found = await self._route_to(peer, source)
            if found is None or found.link not in by_index:
                continue
            link = by_index[found.link].link
            mac, stale = macs.get((found.link, found.gateway), ("", True))
            if stale:
                await self._use(found.link, found.gateway)
            if not mac:
                continue
            mtu = min(link.mtu, found.mtu or link.mtu)
            hops[peer] = ResolvedHop(interface=link.name, gateway=found.gateway, mac=mac, mtu=mtu, source=source)
        return hops

    async def _macs(self) -> dict[tuple[int, IpAddress], tuple[str, bool]]:
        """MACs that are known, each with whether nobody has confirmed it for a while."""
        found: dict[tuple[int, IpAddress], tuple[str, bool]] = {}
        async for message in await self._route.get_neighbours():
            mac = message.get("lladdr")
            state = int(message.get("state"))
            if mac and state & NUD_USABLE:
                place = int(message.get("ifindex")), ip_address(message.get("dst"))
                found[place] = str(mac), state == _NUD_STALE
        return found

    async def _route_to(self, peer: IpAddress, source: IpAddress | None) -> _Route | None:
        """As the kernel looks for the way of ESP: by both addresses (``xfrm_dst_lookup``)."""
        extra = {"src": str(source)} if source is not None else {}
        try:
            answers = cast(list[Any], await self._route.route("get", dst=str(peer), family=family_of(peer), **extra))
        except NetlinkError:
            return None  # no route: the reason is shown with the SA
        message = answers[0]
        gateway = message.get("gateway")
        mtu = (message.get("metrics") or {}).get("mtu")
        return _Route(int(message.get("oif")), ip_address(gateway) if gateway else peer, int(mtu or 0))

    async def _use(self, index: int, gateway: IpAddress) -> None:
        """As if a packet went there: the kernel resolves what it does not know and probes what is stale."""
        with contextlib.suppress(NetlinkError):  # the interface is down or has gone: then there is nothing to resolve
            await self._route.neigh("replace", dst=str(gateway), ifindex=index, flags=_NTF_USE, state=0)
