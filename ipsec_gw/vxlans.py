"""VXLAN devices for which an engine does VXLAN as well as ESP: which, over which tunnels, and why not others. Pure.

A device's packets are the gateway's own UDP, which an engine encrypts whoever has made them (:mod:`ipsec_gw.hosts`). So
that goes on beside: what the kernel still puts into VXLAN itself, as it does all of what is said no to here, and frames
that are too long or have a VLAN tag, is encrypted as ever.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_network

from ipsec_gw.model.ids import IpNetwork
from ipsec_gw.model.objects import (
    FRAMES,
    EntryKey,
    InterfaceEntry,
    InterfaceLead,
    ManagedObject,
    ObjectKey,
    Overlay,
    OverlayKey,
    PortMatch,
    Selector,
    Tunnel,
    XfrmInterface,
)
from ipsec_gw.model.sizes import UPLINK_MTU, VXLAN_HEADERS, inner_mtu
from ipsec_gw.model.snapshot import Snapshot, Vxlan

_UDP, _ONE_PORT = 17, 0xFFFF
_ANYWHERE = ip_network("0.0.0.0/0")


@dataclass(frozen=True, slots=True)
class Overlays:
    """The objects of devices whose frames an engine takes, and why the kernel does VXLAN for the others, whose packets
    an engine may encrypt all the same.
    """

    objects: Mapping[ObjectKey, ManagedObject] = field(default_factory=dict)
    kept: Mapping[XfrmInterface, str] = field(default_factory=dict)


def overlays_of(snapshot: Snapshot, tunnels: Iterable[Tunnel], unable: str = "") -> Overlays:
    """``tunnels`` are those that the engine has; ``unable`` is why it can do VXLAN for no device, empty if it can."""
    lookup = _Lookup(snapshot, tunnels)
    objects: dict[ObjectKey, ManagedObject] = {}
    kept: dict[XfrmInterface, str] = {}
    for device in snapshot.vxlans:
        reason = unable or _why_not_device(device) or lookup.why_not_here(device) or lookup.why_not_over(device)
        if reason:
            kept[device.interface] = reason
        else:
            objects |= {obj.key: obj for obj in lookup.build(device)}
    return Overlays(objects, kept)


def sent_by(device: Vxlan, anywhere: IpNetwork = _ANYWHERE) -> Selector:
    """All that a device may send, from whatever port; without an address of its own, from ``anywhere``."""
    source = anywhere if device.local is None else ip_network(device.local)
    return Selector(source, ip_network(device.remote), _UDP, destination_port=PortMatch(device.port, _ONE_PORT))


def taken_by(device: Vxlan) -> Selector:
    """All that it may receive, as an outbound policy has it."""
    sent = sent_by(device)
    return Selector(sent.source, sent.destination, _UDP, source_port=sent.destination_port)


def _why_not_device(device: Vxlan) -> str:
    checks = (
        (device.remote.version != 4, "VXLAN over IPv6 is left to it"),
        (device.local is None, "the device has no address of its own (local)"),
        (not device.up, "the device is down"),
        (bool(device.oddity), f"the device {device.oddity}"),
        (bool(device.elsewhere), f"its forwarding database leads to {', '.join(device.elsewhere)}, too"),
    )
    return next((reason for failed, reason in checks if failed), "")


class _Lookup:
    """What there is beside a device."""

    def __init__(self, snapshot: Snapshot, tunnels: Iterable[Tunnel]) -> None:
        self._hops = snapshot.next_hops
        self._tunnels = sorted((one for one in tunnels if one.hosts), key=lambda one: -one.rank)
        self._by_vlan: dict[int, list[XfrmInterface]] = defaultdict(list)
        self._by_wire: dict[object, list[Vxlan]] = defaultdict(list)
        for interface in (*snapshot.tagged, *(one.interface for one in snapshot.vxlans)):
            self._by_vlan[interface.vlan].append(interface)
        for one in snapshot.vxlans:
            self._by_wire[_on_the_wire(one)].append(one)

    def why_not_here(self, device: Vxlan) -> str:
        """What other interfaces have against it."""
        hop = self._hops.get(device.remote)
        if device.link and hop is not None and hop.interface != device.link:
            return f"the device is bound to {device.link}, and packets to {device.remote} leave by {hop.interface}"
        others = [one for one in self._by_vlan[device.interface.vlan] if one.index != device.interface.index]
        if others:
            return f"the device and {others[0]} share the VLAN ID {device.interface.vlan}: make one of them anew"
        twins = [one for one in self._by_wire[_on_the_wire(device)] if one.interface.index != device.interface.index]
        return f"the device and {twins[0]} have the same VNI and peer" if twins else ""

    def why_not_over(self, device: Vxlan) -> str:
        """What speaks against the tunnels of its two ends."""
        sent, taken, beside = sent_by(device), taken_by(device), self._beside(device)
        exceptions = [one for tunnel in beside for one in tunnel.exceptions if one.meets(sent) or one.meets(taken)]
        if exceptions:
            return f"another policy ({exceptions[0]}) has some of what it sends or receives"
        for what, selector in (("sends", sent), ("receives", taken)):
            if _over(beside, selector) is None:
                return f"the engine has no SAs for all that the device {what} ({selector})"
        return ""

    def build(self, device: Vxlan) -> Sequence[ManagedObject]:
        """What an eligible one asks for."""
        beside, interface = self._beside(device), device.interface
        over = (_over(beside, sent_by(device)), _over(beside, taken_by(device)))
        assert device.local is not None
        frames = frozenset({FRAMES})
        return (
            Overlay(
                OverlayKey(interface),
                device.vni,
                device.local,
                device.remote,
                device.port,
                frozenset(tunnel.key for tunnel in over if tunnel is not None),
            ),
            InterfaceEntry(EntryKey(interface), frames),
            InterfaceLead(interface, self._mtu(device), frames),
        )

    def _beside(self, device: Vxlan) -> list[Tunnel]:
        return [one for one in self._tunnels if (one.local, one.remote) == (device.local, device.remote)]

    def _mtu(self, device: Vxlan) -> int:
        """What fits into the tunnel, in bytes of IP packet in a frame."""
        fits = inner_mtu(self._hops[device.remote].mtu, device.remote.version, encapsulated=False)
        return min(fits - VXLAN_HEADERS, UPLINK_MTU)


def _over(tunnels: Iterable[Tunnel], wanted: Selector) -> Tunnel | None:
    """One that takes all of it, the first of those that have packets in common."""
    return next((one for one in tunnels if any(selector.covers(wanted) for selector in one.selectors)), None)


def _on_the_wire(device: Vxlan) -> object:
    return device.vni, device.local, device.remote, device.port
