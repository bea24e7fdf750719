"""VXLAN devices for which an engine does VXLAN as well as ESP: which, over which tunnels, and why not others. Pure.

A device's packets are UDP between its two ends, which an engine encrypts whoever has made them: the gateways' own
(:mod:`ipsec_gw.hosts`), or in tunnel mode of other addresses of theirs. So that goes on beside: what the kernel still
puts into VXLAN itself, as it does all of what is said no to here, and frames that are too long or have a VLAN tag, is
encrypted as ever.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_network

from ipsec_gw.model.ids import IpNetwork
from ipsec_gw.model.objects import (
    FRAMES,
    EngineSa,
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
from ipsec_gw.model.sizes import IPV4_HEADER, UPLINK_MTU, VXLAN_HEADERS, inner_mtu
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


def overlays_of(snapshot: Snapshot, carried: Mapping[ObjectKey, ManagedObject], unable: str = "") -> Overlays:
    """``carried`` is what the engine has; ``unable`` is why it can do VXLAN for no device, empty if it can."""
    lookup = _Lookup(snapshot, carried)
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

    def __init__(self, snapshot: Snapshot, carried: Mapping[ObjectKey, ManagedObject]) -> None:
        self._hops = snapshot.next_hops
        self._carried = carried
        self._tunnels = _by_ends(obj for obj in carried.values() if isinstance(obj, Tunnel))
        self._by_vlan: dict[int, list[XfrmInterface]] = defaultdict(list)
        self._by_wire: dict[object, list[Vxlan]] = defaultdict(list)
        for interface in (*snapshot.tagged, *(one.interface for one in snapshot.vxlans)):
            self._by_vlan[interface.vlan].append(interface)
        for one in snapshot.vxlans:
            self._by_wire[_on_the_wire(one)].append(one)

    def why_not_here(self, device: Vxlan) -> str:
        """What other interfaces have against it."""
        peer = next((tunnel.remote for tunnel in self._beside(device)), device.remote)
        hop = self._hops.get(peer)
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
        sends, receives = _over(beside, sent_by(device)), _over(beside, taken_by(device))
        assert device.local is not None
        assert sends is not None
        assert receives is not None
        frames = frozenset({FRAMES})
        return (
            Overlay(
                OverlayKey(interface),
                device.vni,
                device.local,
                device.remote,
                device.port,
                frozenset({sends.key, receives.key}),
            ),
            InterfaceEntry(EntryKey(interface), frames),
            InterfaceLead(interface, self._mtu(sends), frames),
        )

    def _beside(self, device: Vxlan) -> Sequence[Tunnel]:
        """The tunnels for its two ends."""
        return self._tunnels.get(sent_by(device).networks, ())

    def _mtu(self, tunnel: Tunnel) -> int:
        """What fits into the tunnel, in bytes of IP packet in a frame."""
        sa = self._carried[tunnel.outbound]
        assert isinstance(sa, EngineSa)
        fits = inner_mtu(self._hops[tunnel.remote].mtu, tunnel.remote.version, encapsulated=sa.encap is not None)
        return min(fits - VXLAN_HEADERS - (0 if sa.transport else IPV4_HEADER), UPLINK_MTU)


def _by_ends(tunnels: Iterable[Tunnel]) -> Mapping[Selector, Sequence[Tunnel]]:
    """Those that any packet between two hosts may go into, first those that have it first."""
    found: dict[Selector, list[Tunnel]] = defaultdict(list)
    for tunnel in sorted((one for one in tunnels if one.interface is None), key=lambda one: -one.rank):
        for networks in {selector.networks for selector in tunnel.selectors if selector.of_hosts}:
            found[networks].append(tunnel)
    return found


def _over(tunnels: Iterable[Tunnel], wanted: Selector) -> Tunnel | None:
    """One that takes all of it, the first of those that have packets in common."""
    return next((one for one in tunnels if any(selector.covers(wanted) for selector in one.selectors)), None)


def _on_the_wire(device: Vxlan) -> object:
    return device.vni, device.local, device.remote, device.port
