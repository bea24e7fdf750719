"""The objects of the soft engine and the rules by which they may change. Knows nothing of sockets.

Every method either does all of what it says or raises EngineError and does nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from ipsec_gw.engines.port import Counters, EngineContext
from ipsec_gw.engines.soft.device_header import Wrapping
from ipsec_gw.engines.soft.forwarding import Forwarding, InboundPath, Match, OutboundPath, Port, WireKey
from ipsec_gw.engines.soft.packets import parse_mac, vlan_tag
from ipsec_gw.engines.soft.reassembly import Reassembly
from ipsec_gw.engines.soft.sa import InboundSa, LiveSa, OutboundSa
from ipsec_gw.engines.soft.vxlan import VxlanPath
from ipsec_gw.errors import EngineError, UsedKeyError
from ipsec_gw.model.ids import Direction, IpAddress, SaKey
from ipsec_gw.model.objects import MAX_INBOUND, EngineKey, EngineObject, EngineSa, NextHop, Overlay, OverlayKey, Tunnel

MAX_REPLAY_WINDOW = 4096
"""Packets; what the kernel allows (``XFRMA_REPLAY_ESN_MAX``)."""


class Store:
    """SAs, next hops, tunnels and overlays, and the forwarding state that follows from them."""

    def __init__(self, context: EngineContext, largest_packet: int) -> None:
        """``largest_packet`` bounds the MTUs of the interfaces, in bytes of IP packet."""
        self._wan = {
            link.name: Port(link.name, parse_mac(link.mac), min(link.mtu, largest_packet)) for link in context.wan
        }
        self._up = Port(
            context.up_engine.name,
            parse_mac(context.up_kernel.mac) + parse_mac(context.up_engine.mac),
            min(context.up_engine.mtu, largest_packet),
        )
        self._objects: dict[EngineKey, EngineObject] = {}
        self._inbound: dict[SaKey, InboundSa] = {}
        self._outbound: dict[SaKey, OutboundSa] = {}
        self._keys: dict[int, SaKey] = {}
        self._begun = Reassembly()
        self._forwarding = Forwarding.build({}, ())

    @property
    def objects(self) -> Mapping[EngineKey, EngineObject]:
        """What is in place, as a value of its own."""
        return MappingProxyType(self._objects.copy())

    @property
    def forwarding(self) -> Forwarding:
        """What the datapath is to work by."""
        return self._forwarding

    @property
    def counters(self) -> Mapping[SaKey, Counters]:
        """Traffic per SA."""
        living: dict[SaKey, LiveSa] = {**self._inbound, **self._outbound}
        return MappingProxyType({key: sa.counters for key, sa in living.items()})

    @property
    def numbers(self) -> Mapping[SaKey, int]:
        """The highest sequence number that each inbound SA accepted."""
        return MappingProxyType({key: sa.top for key, sa in self._inbound.items()})

    def create(self, obj: EngineObject) -> None:
        """Add an object. Raises EngineError, UsedKeyError."""
        if obj.key in self._objects:
            raise EngineError(f"{_name(obj.key)} exists already - update it, or delete it first")
        match obj:
            case EngineSa():
                self._create_sa(obj)
            case NextHop():
                self._check_next_hop(obj)
                self._put(obj)
            case Tunnel():
                self._check_tunnel(obj)
                self._put(obj)
            case Overlay():
                self._check_overlay(obj)
                self._put(obj)

    def update(self, obj: EngineObject) -> None:
        """Replace the object with the same key. Raises EngineError."""
        present = self._objects.get(obj.key)
        if present is None:
            raise EngineError(f"{_name(obj.key)} does not exist - create it first")
        match obj:
            case EngineSa():
                self._check_same_sa(present, obj)
            case NextHop():
                self._check_next_hop(obj)
            case Tunnel():
                self._check_tunnel(obj)
            case Overlay():
                self._check_overlay(obj)
        self._put(obj)

    def delete(self, key: EngineKey) -> None:
        """Take an object away. Raises EngineError."""
        if key not in self._objects:
            raise EngineError(f"{_name(key)} does not exist - nothing to delete")
        for tunnel in self._tunnels():
            if key in (*tunnel.inbound, tunnel.outbound, tunnel.remote):
                raise EngineError(f"{_name(key)} is used by {_name(tunnel.key)} - delete or update the tunnel first")
        for overlay in self._overlays():
            if key in overlay.tunnels:
                raise EngineError(f"{_name(key)} is used by {overlay.key} - delete the overlay first")
        del self._objects[key]
        if isinstance(key, SaKey):
            self._forget_sa(key)
        self._rebuild()

    def _create_sa(self, sa: EngineSa) -> None:
        _check_encapsulation(sa)
        if not 0 <= sa.replay_window <= MAX_REPLAY_WINDOW:
            raise EngineError(
                f"{_name(sa.key)}: replay window {sa.replay_window} is impossible - use at most {MAX_REPLAY_WINDOW}"
            )
        if sa.source.version != sa.key.destination.version:
            raise EngineError(f"{_name(sa.key)}: source {sa.source} is of another family - check `ip xfrm state`")
        if sa.direction is Direction.IN:
            self._inbound[sa.key] = InboundSa(sa)
        else:
            fingerprint = _fingerprint(sa)
            if fingerprint in self._keys:
                raise UsedKeyError(
                    f"{_name(sa.key)} has the key of {_name(self._keys[fingerprint])}, and a key sends once - rekey"
                )
            self._outbound[sa.key] = OutboundSa(sa)
            self._keys[fingerprint] = sa.key
        self._put(sa)

    def _forget_sa(self, key: SaKey) -> None:
        """Drop the living SA. A key that encrypted stays known (as a hash) and is refused ever after."""
        self._inbound.pop(key, None)
        gone = self._outbound.pop(key, None)
        if gone is not None and not gone.used:
            self._keys = {fingerprint: owner for fingerprint, owner in self._keys.items() if owner != key}

    def _check_same_sa(self, present: EngineObject, sa: EngineSa) -> None:
        """Only outer source and UDP ports may move (MOBIKE, NAT): all else belongs to the key and its numbers."""
        _check_encapsulation(sa)
        if (
            not isinstance(present, EngineSa)
            or replace(present, source=sa.source, encap=sa.encap) != sa
            or (present.encap is None) != (sa.encap is None)
        ):
            raise EngineError(
                f"{_name(sa.key)}: only the source and the UDP ports of an SA can change - delete it and create a"
                " new one"
            )
        if sa.source.version != sa.key.destination.version:
            raise EngineError(f"{_name(sa.key)}: source {sa.source} is of another family - check `ip xfrm state`")

    def _check_next_hop(self, hop: NextHop) -> None:
        if hop.interface not in self._wan:
            raise EngineError(f"{_name(hop.key)}: {hop.interface} is no WAN interface of this gateway - configure it")
        try:
            parse_mac(hop.mac)
        except ValueError as error:
            raise EngineError(f"{_name(hop.key)}: {error} - check `ip neigh`") from None

    def _check_tunnel(self, tunnel: Tunnel) -> None:
        name = _name(tunnel.key)
        if not 1 <= len(set(tunnel.inbound)) == len(tunnel.inbound) <= MAX_INBOUND:
            raise EngineError(f"{name} has {len(tunnel.inbound)} inbound SAs - use one to {MAX_INBOUND} different ones")
        for key in tunnel.inbound:
            self._check_reference(name, key, self._inbound, Direction.IN, tunnel.local)
        self._check_reference(name, tunnel.outbound, self._outbound, Direction.OUT, tunnel.remote)
        if not isinstance(self._objects.get(tunnel.remote), NextHop):
            raise EngineError(f"{name}: there is no next hop to {tunnel.remote} - create it first")
        if tunnel.header is not None and (tunnel.interface is None or self._keeps_headers(tunnel.outbound)):
            raise EngineError(f"{name}: a device's header is of tunnel mode with an interface - check its SAs")
        gre = {sa.gre for key in (*tunnel.inbound, tunnel.outbound) if isinstance(sa := self._objects[key], EngineSa)}
        if len(gre) > 1 or (True in gre and tunnel.interface is None):
            raise EngineError(f"{name}: GRE is of all SAs of a tunnel with an interface - check its SAs")
        others = [other for other in self._tunnels() if other.key != tunnel.key]
        if holder := self._holder(tunnel.key, _vlan(tunnel)):
            raise EngineError(f"{name}: {tunnel.interface} is that of {holder} - delete that first")
        if len({self._transports(key) for key in (*tunnel.inbound, tunnel.outbound)}) > 1:
            raise EngineError(f"{name} has SAs of both modes - leave it to the kernel")
        taken = {key for other in others for key in other.inbound}
        for key in tunnel.inbound:
            if key in taken:
                # Two tunnels would mean two sets of selectors for one SA, and invariant 8 knows one.
                raise EngineError(f"{name}: {_name(key)} belongs to another tunnel - delete that tunnel first")

    def _check_overlay(self, overlay: Overlay) -> None:
        if holder := self._holder(overlay.key, overlay.vlan):
            raise EngineError(f"{overlay.key} has the VLAN ID of {holder} - delete that first")
        if overlay.local.version != 4 or overlay.remote.version != 4:
            raise EngineError(f"{overlay.key} is over IPv6 - leave it to the kernel")
        if not overlay.tunnels:
            raise EngineError(f"{overlay.key} has no tunnel - leave it to the kernel")
        for key in overlay.tunnels:
            tunnel = self._objects.get(key)
            if not isinstance(tunnel, Tunnel):
                raise EngineError(f"{overlay.key}: there is no {_name(key)} - create it first")
            if not overlay.fits(tunnel):
                raise EngineError(f"{overlay.key}: {_name(key)} is not for its two ends - leave it to the kernel")

    def _holder(self, key: EngineKey, vlan: int) -> str:
        """What else has a VLAN ID, empty for nothing."""
        found = [_name(one.key) for one in self._tunnels() if vlan and _vlan(one) == vlan and one.key != key]
        found += [str(one.key) for one in self._overlays() if one.vlan == vlan and one.key != key]
        return next(iter(found), "")

    def _transports(self, key: SaKey) -> bool:
        sa = self._objects[key]
        assert isinstance(sa, EngineSa)
        return sa.transport

    def _keeps_headers(self, key: SaKey) -> bool:
        sa = self._objects[key]
        assert isinstance(sa, EngineSa)
        return sa.transport or sa.gre

    def _check_reference(
        self, name: str, key: SaKey, living: Mapping[SaKey, LiveSa], direction: Direction, destination: IpAddress
    ) -> None:
        if key not in living:
            raise EngineError(f"{name}: there is no {direction}bound {_name(key)} - create it first")
        if key.destination != destination:
            raise EngineError(f"{name}: {_name(key)} does not lead to {destination} - check the tunnel's addresses")

    def _put(self, obj: EngineObject) -> None:
        self._objects[obj.key] = obj
        self._rebuild()

    def _tunnels(self) -> list[Tunnel]:
        return [obj for obj in self._objects.values() if isinstance(obj, Tunnel)]

    def _overlays(self) -> list[Overlay]:
        return [obj for obj in self._objects.values() if isinstance(obj, Overlay)]

    def _rebuild(self) -> None:
        inbound: dict[WireKey, InboundPath] = {}
        outbound: list[OutboundPath] = []
        overlays = [(overlay.tunnels, VxlanPath.of(overlay)) for overlay in self._overlays()]
        for tunnel in self._tunnels():
            over = tuple(path for tunnels, path in overlays if tunnel.key in tunnels)
            matches = tuple(map(Match.inbound, tunnel.selectors))
            exceptions = tuple(map(Match.inbound, tunnel.exceptions))
            up = replace(self._up, addresses=self._up.addresses + vlan_tag(_vlan(tunnel)))
            for key in tunnel.inbound:
                sa = self._objects[key]
                assert isinstance(sa, EngineSa)
                path = InboundPath(
                    self._inbound[key],
                    matches,
                    up,
                    encapsulated=sa.encap is not None,
                    exceptions=exceptions,
                    copies=sa.copies,
                    gre=sa.gre,
                    transport=sa.transport,
                    wrapping=_wrapping(tunnel),
                    overlays=over,
                )
                inbound[key.destination.packed, key.spi] = path
            outbound.extend(self._outbound_paths(tunnel))
        self._forwarding = Forwarding.build(inbound, outbound, self._begun, (path for _, path in overlays))

    def _outbound_paths(self, tunnel: Tunnel) -> list[OutboundPath]:
        sa, hop = self._objects[tunnel.outbound], self._objects[tunnel.remote]
        assert isinstance(sa, EngineSa)
        assert isinstance(hop, NextHop)
        leave = self._wan[hop.interface]
        port = replace(leave, addresses=parse_mac(hop.mac) + leave.addresses)
        return [
            OutboundPath(
                match=Match.outbound(selector),
                sa=self._outbound[tunnel.outbound],
                source=sa.source.packed,
                destination=sa.key.destination.packed,
                port=port,
                encap=sa.encap,
                copies=sa.copies,
                vlan=_vlan(tunnel),
                gre=sa.gre,
                transport=sa.transport,
                rank=tunnel.rank,
                wrapping=_wrapping(tunnel),
                whole=tunnel.hosts or sa.transport,
            )
            for selector in tunnel.selectors
        ]


def _vlan(tunnel: Tunnel) -> int:
    return 0 if tunnel.interface is None else tunnel.interface.vlan


def _wrapping(tunnel: Tunnel) -> Wrapping | None:
    return None if tunnel.header is None else Wrapping.of(tunnel.header)


def _check_encapsulation(sa: EngineSa) -> None:
    """Raises EngineError for encapsulation that is not RFC 3948's over IPv4: a UDP port of 0, or IPv6, whose UDP must
    have a checksum (RFC 8200 §8.1); and for GRE inside it, or over IPv6.
    """
    if sa.gre and (sa.encap is not None or sa.key.destination.version != 4):
        raise EngineError(f"{_name(sa.key)} carries GRE in UDP or over IPv6 - leave it to the kernel")
    if sa.encap is not None and sa.key.destination.version != 4:
        raise EngineError(f"{_name(sa.key)} is encapsulated in UDP over IPv6 - leave it to the kernel")
    if sa.encap is not None and 0 in {sa.encap.source_port, sa.encap.destination_port}:
        raise EngineError(f"{_name(sa.key)} is encapsulated in UDP with port 0 - leave it to the kernel")


def _fingerprint(sa: EngineSa) -> int:
    """What tells keys apart without keeping them: Python's keyed 64-bit hash. A collision refuses, which is safe."""
    return hash((sa.algorithm.name, sa.secret, sa.salt))


def _name(key: EngineKey) -> str:
    """An object as errors call it."""
    if isinstance(key, SaKey):
        return f"SA {key}"
    if isinstance(key, OverlayKey):
        return str(key)
    return f"next hop {key}" if isinstance(key, IpAddress) else f"tunnel {key}"
