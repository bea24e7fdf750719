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
from collections.abc import Callable, Collection, Mapping

from ipsec_gw.model.ids import IpAddress, IpNetwork, SaKey, TunnelId
from ipsec_gw.model.objects import ENCAPSULATIONS, OF_IPSEC_ALONE, NextHop, ObjectKey, Tunnel

REST_SECONDS = 5.0
"""Between two times for one tunnel: `inactivity` is in seconds, and hardly ever less than a minute."""

_IPV6_TRANSPARENT = 75
"""linux/in6.h."""

_DISCARD = 9
_ANYWHERE = {4: "198.51.100.1", 6: "2001:db8::1"}
"""For documentation (RFC 5737, RFC 3849): any address will do where a selector is "any"."""

Connect = Callable[[IpAddress, IpAddress, str, int], None]


class Toucher:
    """Does so for tunnels that have carried packets. ``clock`` is monotonic, in seconds."""

    def __init__(self, connect: Connect | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._connect = connect or connect_once
        self._clock = clock
        self._touched: dict[TunnelId, float] = {}
        self._pending: frozenset[SaKey] = frozenset()

    def touch(self, moved: Collection[SaKey], objects: Mapping[ObjectKey, object], nat: Collection[SaKey]) -> None:
        """``moved`` are SAs that have carried something, ``objects`` what the engine is to have; as long as that is
        nothing, and until a tunnel's time has come, they are remembered. Of tunnels through a
        NAT, whose outbound SAs are ``nat``, only packets that go out count: for others, charon sends keepalives. The
        policies of an XFRM interface or VTI device are asked by nobody but itself; of a GRE or IPIP device they are
        about its own packets.
        """
        now = self._clock()
        self._touched = {key: at for key, at in self._touched.items() if now < at + REST_SECONDS}
        self._pending |= frozenset(moved)
        if not objects:
            return
        tunnels = [one for one in objects.values() if isinstance(one, Tunnel) and _has_moved(one, self._pending, nat)]
        early = [tunnel for tunnel in tunnels if tunnel.key in self._touched]
        self._pending &= frozenset(key for tunnel in early for key in (tunnel.outbound, *tunnel.inbound))
        for tunnel in tunnels:
            hop = objects.get(tunnel.remote)
            if isinstance(hop, NextHop) and tunnel.selectors and tunnel.key not in self._touched:
                self._touched[tunnel.key] = now
                source, destination, protocol = _packet_of(tunnel)
                with contextlib.suppress(OSError):  # no route now: nothing goes out that way either
                    self._connect(source, destination, hop.interface, protocol)


def connect_once(source: IpAddress, destination: IpAddress, interface: str, protocol: int) -> None:
    """Connect a socket, of UDP or a raw one, whosever ``source`` is, and close it. Nothing is sent. Raises OSError."""
    family = socket.AF_INET if source.version == 4 else socket.AF_INET6
    kind = socket.SOCK_DGRAM if protocol == socket.IPPROTO_UDP else socket.SOCK_RAW
    with socket.socket(family, kind, protocol) as asking:
        if source.version == 4:
            asking.setsockopt(socket.IPPROTO_IP, socket.IP_TRANSPARENT, 1)
        else:
            asking.setsockopt(socket.IPPROTO_IPV6, _IPV6_TRANSPARENT, 1)
        asking.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
        asking.bind((str(source), 0))
        asking.connect((str(destination), _DISCARD))


def _has_moved(tunnel: Tunnel, moved: Collection[SaKey], nat: Collection[SaKey]) -> bool:
    if tunnel.interface is not None and tunnel.interface.kind in OF_IPSEC_ALONE:
        return False
    if tunnel.outbound in moved:
        return True
    return tunnel.outbound not in nat and any(key in moved for key in tunnel.inbound)


def _packet_of(tunnel: Tunnel) -> tuple[IpAddress, IpAddress, int]:
    """Source, destination and protocol of one that a policy is for, the first: charon takes the latest time of all."""
    if tunnel.header is not None:
        return tunnel.header.local, tunnel.header.remote, tunnel.header.protocol
    if tunnel.interface is not None:
        return tunnel.local, tunnel.remote, ENCAPSULATIONS[tunnel.interface.kind]
    selector = next(iter(tunnel.selectors))
    return _one_of(selector.source), _one_of(selector.destination), socket.IPPROTO_UDP


def _one_of(network: IpNetwork) -> IpAddress:
    if network.prefixlen == 0:
        return type(network.network_address)(_ANYWHERE[network.version])
    return network.network_address + (1 if network.num_addresses > 2 else 0)
