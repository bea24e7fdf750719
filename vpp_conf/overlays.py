"""An overlay as VPP sees it: a VXLAN tunnel, cross-connected with a VLAN of the veth pair, over other tunnels.

::

    frames   up.VLAN, tag off -> VXLAN tunnel: UDP -> table WHOLE -> gate OUT: SPD, encrypts -> outer table -> WAN
    ESP      gate IN: SPD, decrypts -> gate IN: sieve, by VNI -> VXLAN tunnel: frames -> up.VLAN, tag on

So it is over the gates, where all of transport mode is (:mod:`vpp_conf.gates`). Of a tunnel with an interface the
interface's own check has the rule of the sieve (:class:`Diversion`), and UDP goes by the encap table, unless the tunnel
sends by the gates. Either way what it sends is encrypted as what the kernel sends itself. Of what comes out of tunnels
it is given what has its very headers; all else goes on to the kernel. VPP finds a tunnel by the FIB table too that a
packet is in, so a rule names that.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass

from ipsec_gw.model.objects import Overlay
from vpp_conf.api import VppApi
from vpp_conf.descriptors.classify import FRAGMENT_MASK, VECTOR_BYTES, VERSIONS, Diversion
from vpp_conf.descriptors.interface import UP_FLAG, tag
from vpp_conf.descriptors.subif import SubInterface, SubInterfaceDescriptor
from vpp_conf.descriptors.vxlan import MESSAGE, VxlanTunnel, VxlanTunnelDescriptor
from vpp_conf.descriptors.xconnect import CrossConnect, CrossConnectDescriptor, pop_tag, popping
from vpp_conf.links import Links
from vpp_conf.sieve import Mask, Sift, Stage

OVERLAY_TAG = "ipsec-gw overlay"
"""Owner's tag of their sub-interfaces."""

_UDP = 17
_IPV4_BYTES, _UDP_BYTES, _VXLAN_BYTES = 20, 8, 8
_VECTORS = 3
"""As many hold all these headers."""

_FIRST_BYTE = 0x45
"""IPv4 without options."""

_FLAG_I = b"\x08\0\0\0"
"""The VNI is valid; VPP takes no other bits, and the kernel sees to what has some."""


@dataclass(frozen=True, slots=True)
class OverlayParts:
    """The VPP objects of an overlay; ``sift`` is what the gate's sieve has for it, if it is over the gates."""

    vlan: SubInterface
    tunnel: VxlanTunnel
    sift: Sift

    @property
    def diversion(self) -> Diversion:
        """What the check of a tunnel's interface has for it."""
        sift = self.sift
        return Diversion(sift.mask.octets, sift.match, sift.following, sift.advance, sift.table)

    @property
    def connection(self) -> CrossConnect:
        """From the veth pair to the tunnel."""
        return CrossConnect(self.vlan.sw_if_index, self.tunnel.sw_if_index)


@dataclass(frozen=True, slots=True)
class Found:
    """What VPP holds of overlays, whoever made the cross connects."""

    vlans: tuple[SubInterface, ...]
    tunnels: tuple[VxlanTunnel, ...]
    connections: frozenset[CrossConnect]
    popping: frozenset[int]

    def has(self, parts: OverlayParts) -> bool:
        """All of it."""
        return (
            (parts.vlan, parts.vlan.sw_if_index) in {(one, one.sw_if_index) for one in self.vlans}
            and (parts.tunnel, parts.tunnel.sw_if_index) in {(one, one.sw_if_index) for one in self.tunnels}
            and {parts.connection, parts.connection.reversed} <= self.connections
            and parts.vlan.sw_if_index in self.popping
        )


class OverlayBuilder:
    """Makes and removes what belongs to overlays, but for the rules of the sieve: those are the gates' to keep."""

    def __init__(self, api: VppApi, links: Links) -> None:
        self._api = api
        self._links = links
        self._arc: int | None = None
        self.vlans = SubInterfaceDescriptor(api, OVERLAY_TAG)
        self.tunnels = VxlanTunnelDescriptor(api)
        self.connections = CrossConnectDescriptor(api)

    @property
    def able(self) -> bool:
        """Whether this VPP has the plugin."""
        return self._api.knows(MESSAGE)

    async def parts(self, overlay: Overlay, vlan: int, tunnel: int, table: int) -> OverlayParts:
        """What an overlay consists of, with these ``sw_if_index``, that sends by this FIB ``table``."""
        return OverlayParts(
            SubInterface(self._links.up, overlay.vlan, vlan),
            VxlanTunnel(
                overlay.vlan, overlay.vni, overlay.local, overlay.remote, overlay.port, table, sw_if_index=tunnel
            ),
            await self._sift(overlay, table),
        )

    async def open(self, overlay: Overlay, table: int) -> OverlayParts:
        """Frames pass at once, those of the kernel. The VLAN comes up last: nothing passes with its tag on."""
        async with AsyncExitStack() as undo:
            wanted = await self.parts(overlay, 0, 0, table)
            tunnel = await self.tunnels.create(wanted.tunnel)
            undo.push_async_callback(self.tunnels.delete, tunnel)
            vlan = await self.vlans.create(wanted.vlan)
            undo.push_async_callback(self.vlans.delete, vlan)
            await tag(self._api, vlan.sw_if_index, OVERLAY_TAG)
            made = await self.parts(overlay, vlan.sw_if_index, tunnel.sw_if_index, table)
            for way in (made.connection, made.connection.reversed):
                await self.connections.create(way)
                undo.push_async_callback(self.connections.delete, way)
            await pop_tag(self._api, vlan.sw_if_index)
            await self._api.call("sw_interface_set_flags", sw_if_index=vlan.sw_if_index, flags=UP_FLAG)
            undo.pop_all()
            return made

    async def close(self, parts: OverlayParts) -> None:
        """No rule of the sieve may lead to it any more."""
        await self.connections.delete(parts.connection)
        await self.connections.delete(parts.connection.reversed)
        await self.vlans.delete(parts.vlan)
        await self.tunnels.delete(parts.tunnel)

    async def find(self, *, recorded: bool) -> Found:
        """Look at everything, once for all overlays. With none recorded and no tunnel there is nothing else of one
        either: the tunnel is made first, and goes last.
        """
        tunnels = await self.tunnels.retrieve()
        if not tunnels and not recorded:
            return Found((), (), frozenset(), frozenset())
        connections = frozenset(await self.connections.retrieve())
        return Found(await self.vlans.retrieve(), tunnels, connections, await popping(self._api))

    async def sweep(self, found: Found, kept: tuple[OverlayParts, ...]) -> None:
        """Remove what is none of those, however far it got."""
        vlans, tunnels = {one.vlan for one in kept}, {one.tunnel for one in kept}
        gone_vlans = [one for one in found.vlans if one not in vlans]
        gone_tunnels = [one for one in found.tunnels if one not in tunnels]
        ours = {one.sw_if_index for one in gone_vlans} | {one.sw_if_index for one in gone_tunnels}
        for way in found.connections:
            if way.rx in ours:
                await self.connections.delete(way)
        for vlan in gone_vlans:
            await self.vlans.delete(vlan)
        for tunnel in gone_tunnels:
            await self.tunnels.delete(tunnel)

    async def _sift(self, overlay: Overlay, table: int) -> Sift:
        if self._arc is None:
            reply = await self._api.call("add_node_next", node_name="ip4-inacl", next_name="vxlan4-input")
            self._arc = int(reply.next_index)
        return Sift(
            VERSIONS[0],
            Mask(Stage.OVERLAY, OVERLAY_MASK),
            _match(overlay),
            self._arc,
            advance=_IPV4_BYTES + _UDP_BYTES,
            table=table,
        )


def _headers(first: int, fragment: bytes, protocol: int, addresses: bytes, port: bytes, vxlan: bytes) -> bytes:
    """As the classifier sees IPv4, UDP and VXLAN, with what is left out as zeros."""
    seen = bytearray(_VECTORS * VECTOR_BYTES)
    seen[0] = first
    seen[6:8] = fragment
    seen[9] = protocol
    seen[12:20] = addresses
    seen[22:24] = port
    seen[28 : 28 + _VXLAN_BYTES] = vxlan
    return bytes(seen)


OVERLAY_MASK = _headers(0xFF, FRAGMENT_MASK, 0xFF, b"\xff" * 8, b"\xff\xff", b"\xff" * _VXLAN_BYTES)
"""What rules of overlays look at, and no other rules."""


def _match(overlay: Overlay) -> bytes:
    addresses = overlay.remote.packed + overlay.local.packed
    vxlan = _FLAG_I + overlay.vni.to_bytes(3, "big") + b"\0"
    return _headers(_FIRST_BYTE, bytes(2), _UDP, addresses, overlay.port.to_bytes(2, "big"), vxlan)
