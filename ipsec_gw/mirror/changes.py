"""Notices that the way to a peer may have changed: rtnetlink tells of links, addresses, routes, neighbours.

Like those of XFRM they only mark things dirty (DESIGN.md, invariant 9). A router that takes a full table changes
thousands of routes a second, and neighbours change their state all the time: what does not touch a peer of ours is
told by a few bytes of the message, and is not worth a look at everything.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network

from ipsec_gw import netlink
from ipsec_gw.mirror.kernel import CHARON_TABLE, NUD_USABLE
from ipsec_gw.model.ids import IpAddress
from ipsec_gw.model.snapshot import ResolvedHop
from ipsec_gw.netlink import HEADER, NETLINK_ROUTE, Ear, attributes, messages

_GROUPS = (
    *(netlink.RTNLGRP_LINK, netlink.RTNLGRP_NEIGH),
    *(netlink.RTNLGRP_IPV4_IFADDR, netlink.RTNLGRP_IPV4_ROUTE, netlink.RTNLGRP_IPV4_RULE),
    *(netlink.RTNLGRP_IPV6_IFADDR, netlink.RTNLGRP_IPV6_ROUTE, netlink.RTNLGRP_IPV6_RULE),
)
_NEW_ROUTE, _DEL_ROUTE, _NEW_NEIGHBOUR, _DEL_NEIGHBOUR = 24, 25, 28, 29
_ROUTE = struct.Struct("=8BI")
"""``struct rtmsg``: family, dst_len, src_len, tos, table, protocol, scope, type, flags."""

_NEIGHBOUR = struct.Struct("=BBHiHBB")
"""``struct ndmsg``: family, two pads, ifindex, state, flags, type."""

_DST, _LLADDR = 1, 2
"""RTA_DST and NDA_DST; NDA_LLADDR."""

_ADDRESS_BYTES = {socket.AF_INET: 4, socket.AF_INET6: 16}


@dataclass(frozen=True, slots=True)
class Concern:
    """The peers, and how each is reached as far as that is known."""

    peers: frozenset[IpAddress] = frozenset()
    hops: Mapping[IpAddress, ResolvedHop] = field(default_factory=dict)

    def touched_by(self, datagram: bytes) -> bool:
        """Whether any message of it may change the way to a peer. One that cannot be read may."""
        try:
            return any(self._touched(kind, raw[HEADER.size :]) for kind, _, raw in messages(datagram))
        except (struct.error, ValueError):
            return True

    def _touched(self, kind: int, body: bytes) -> bool:
        if kind in {_NEW_ROUTE, _DEL_ROUTE}:
            return self._by_route(body)
        if kind in {_NEW_NEIGHBOUR, _DEL_NEIGHBOUR}:
            return self._by_neighbour(kind, body)
        return True  # links, addresses and rules change seldom

    def _by_route(self, body: bytes) -> bool:
        family, length, _, _, table, *_ = _ROUTE.unpack_from(body)
        if table == CHARON_TABLE:
            return True  # the source address of local packets
        size = _ADDRESS_BYTES.get(family)
        if size is None:
            return False  # multicast and MPLS
        raw = dict(attributes(body[_ROUTE.size :])).get(_DST, bytes(size))
        network = ip_network((raw, length), strict=False)
        return any(peer.version == network.version and peer in network for peer in self.peers)

    def _by_neighbour(self, kind: int, body: bytes) -> bool:
        family, _, _, _, state, *_ = _NEIGHBOUR.unpack_from(body)
        if family not in _ADDRESS_BYTES:
            return False  # the forwarding table of a bridge
        found = dict(attributes(body[_NEIGHBOUR.size :]))
        usable = kind == _NEW_NEIGHBOUR and bool(state & NUD_USABLE)
        mac = found.get(_LLADDR, b"").hex(":") if usable else ""
        address = ip_address(found[_DST]) if _DST in found else None
        known = [hop.mac for hop in self.hops.values() if hop.gateway == address]
        if known:
            return any(one != mac for one in known)
        return usable and len(self.hops) < len(self.peers)  # it may be the one that a peer waits for


class NetworkMonitor(Ear):
    """Hears rtnetlink and calls ``changed`` if something touches ``concern``. ``overruns`` counts lost messages; a lost
    one may have been about anything.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        super().__init__(NETLINK_ROUTE, _GROUPS)
        self._changed = changed
        self.concern = Concern()

    def watch(self, peers: Iterable[IpAddress], hops: Mapping[IpAddress, ResolvedHop]) -> None:
        """What matters from now on."""
        self.concern = Concern(frozenset(peers), hops)

    def drain(self) -> None:
        """Read whatever is queued; call ``changed`` once if any of it matters."""
        touched = False
        for datagram in self.datagrams():
            touched = touched or datagram is None or self.concern.touched_by(datagram)
        if touched:
            self._changed()
