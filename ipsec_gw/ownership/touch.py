"""Policies' times of use, for a charon that goes by them (strongSwan before 5.9.10).

That charon closes a CHILD_SA for `inactivity` by the later of two times: when one of its policies was last asked about
a packet that comes in, and about one that goes out. What an engine carries asks neither. Nothing writes these times but
the kernel, when it looks a policy up (``xfrm_lookup``), and it does that for a socket that is connected, before
anything is sent: connecting one, by the WAN itself and not by the leads, makes the outbound policy as new.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Collection, Iterable, Mapping

from ipsec_gw.model.ids import IpAddress, IpNetwork, SaKey, TunnelId
from ipsec_gw.model.objects import NextHop, ObjectKey, Selector, Tunnel

REST_SECONDS = 5.0
"""Between two times for one tunnel: `inactivity` is in seconds, and hardly ever less than a minute."""

_IPV6_TRANSPARENT = 75
"""linux/in6.h."""

_DISCARD = 9
_ANYWHERE = {4: "198.51.100.1", 6: "2001:db8::1"}
"""For documentation (RFC 5737, RFC 3849): any address will do where a selector is "any"."""

Connect = Callable[[IpAddress, IpAddress, str], None]


class Toucher:
    """Does so for tunnels that have carried packets. ``clock`` is monotonic, in seconds."""

    def __init__(self, connect: Connect | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._connect = connect or connect_once
        self._clock = clock
        self._touched: dict[TunnelId, float] = {}

    def touch(self, moved: Collection[SaKey], objects: Mapping[ObjectKey, object], nat: Collection[SaKey]) -> None:
        """``moved`` are SAs that have carried something, ``objects`` what the engine is to have. Of tunnels through a
        NAT, whose outbound SAs are ``nat``, only packets that go out count: for others, charon sends keepalives. The
        policies of an XFRM interface are asked by nobody but itself.
        """
        now = self._clock()
        tunnels = [one for one in objects.values() if isinstance(one, Tunnel) and _has_moved(one, moved, nat)]
        for tunnel in tunnels:
            hop = objects.get(tunnel.remote)
            if isinstance(hop, NextHop) and tunnel.selectors and now >= self._touched.get(tunnel.key, 0) + REST_SECONDS:
                self._touched[tunnel.key] = now
                ends = _ends(tunnel.selectors)
                with contextlib.suppress(OSError):  # no route now: nothing goes out that way either
                    self._connect(*ends, hop.interface)
        self._touched = {key: at for key, at in self._touched.items() if now < at + REST_SECONDS}


def connect_once(source: IpAddress, destination: IpAddress, interface: str) -> None:
    """Connect a UDP socket, whosever ``source`` is, and close it. Nothing is sent. Raises OSError."""
    family = socket.AF_INET if source.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as asking:
        if source.version == 4:
            asking.setsockopt(socket.IPPROTO_IP, socket.IP_TRANSPARENT, 1)
        else:
            asking.setsockopt(socket.IPPROTO_IPV6, _IPV6_TRANSPARENT, 1)
        asking.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
        asking.bind((str(source), 0))
        asking.connect((str(destination), _DISCARD))


def _has_moved(tunnel: Tunnel, moved: Collection[SaKey], nat: Collection[SaKey]) -> bool:
    if tunnel.interface is not None:
        return False
    if tunnel.outbound in moved:
        return True
    return tunnel.outbound not in nat and any(key in moved for key in tunnel.inbound)


def _ends(selectors: Iterable[Selector]) -> tuple[IpAddress, IpAddress]:
    """Addresses of the first one: charon takes the latest time of all."""
    selector = next(iter(selectors))
    return _one_of(selector.source), _one_of(selector.destination)


def _one_of(network: IpNetwork) -> IpAddress:
    if network.prefixlen == 0:
        return type(network.network_address)(_ANYWHERE[network.version])
    return network.network_address + (1 if network.num_addresses > 2 else 0)
