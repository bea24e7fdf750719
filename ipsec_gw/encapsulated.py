"""Tunnels that have what a GRE or IPIP device sends, and nothing else: what routing sends out by it. Pure.

Between the gateways in transport mode, and in tunnel mode between whatever addresses the device has. On the wire GRE in
transport mode is ESP around a GRE header, and IPIP in transport mode is the same as tunnel mode; in tunnel mode a whole
packet of the device's is in ESP. An engine does what device and SA do together. The kernel keeps what a device does
beyond that, and SAs that others share; of tunnel mode, if it can, an engine does ESP then.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from ipaddress import ip_network

from ipsec_gw.lineages import Lineage, tunnel_of
from ipsec_gw.model.ids import Direction, IpAddress, IpNetwork, TunnelId
from ipsec_gw.model.objects import (
    ENCAPSULATIONS,
    DeviceHeader,
    HeaderCopies,
    InterfaceKind,
    Selector,
    XfrmInterface,
)
from ipsec_gw.model.sizes import GRE_HEADER, IPV4_HEADER
from ipsec_gw.model.snapshot import Encapsulator, Mode, PolicyDirection, Snapshot, XfrmPolicy

_KINDS = {protocol: kind for kind, protocol in ENCAPSULATIONS.items()}
_INSIDE = {
    kind: tuple(Selector(ip_network(net), ip_network(net)) for net in nets)
    for kind, nets in {InterfaceKind.GRE: ("0.0.0.0/0", "::/0"), InterfaceKind.IPIP: ("0.0.0.0/0",)}.items()
}
"""What such a device may send, as far as an engine takes it."""


def is_transport(lineage: Lineage) -> bool:
    """All of its SAs are in transport mode."""
    return all(sa.mode is Mode.TRANSPORT for sa in lineage.sas)


def selectors_of(lineage: Lineage, device: Encapsulator | None) -> tuple[Selector, ...]:
    """What an engine is to take into a tunnel, and to let out of it."""
    return lineage.selectors if device is None else _INSIDE[device.interface.kind]


def copies_of(device: Encapsulator, direction: Direction) -> HeaderCopies:
    """What passes between the headers in transport mode, where there is no other one outside: ECN always does (RFC
    6040, ``ip_tunnel.c``), DSCP outwards alone.
    """
    return HeaderCopies(dscp=device.dscp or direction is Direction.IN)


def header_of(lineage: Lineage, device: Encapsulator | None) -> DeviceHeader | None:
    """What an engine puts around a device's packets before tunnel mode; in transport mode the SA does that."""
    if device is None or device.local is None or device.remote is None or is_transport(lineage):
        return None
    return DeviceHeader(device.local, device.remote, is_gre(device), device.dscp)


def overhead_of(lineage: Lineage, device: Encapsulator | None) -> int:
    """Bytes of a device's own that stand in front of a packet inside ESP."""
    own_header = device is not None and not is_transport(lineage)
    return (IPV4_HEADER if own_header else 0) + (GRE_HEADER if is_gre(device) else 0)


def is_gre(device: Encapsulator | None) -> bool:
    """It is one, and of GRE."""
    return device is not None and device.interface.kind is InterfaceKind.GRE


def sent_by(device: Encapsulator) -> Selector | None:
    """All that it sends; None if it is for any peer, or has no address of its own."""
    if device.local is None or device.remote is None:
        return None
    return Selector(_host(device.local), _host(device.remote), device.protocol)


def awaits_policies(lineage: Lineage) -> bool:
    """Whether it is not known yet which device it is for: charon adds policies after SAs. In tunnel mode an engine's
    SAs are the same for all of them.
    """
    return is_transport(lineage) and not lineage.policies


class Devices:
    """The GRE and IPIP devices of a snapshot. ``no_gre`` is why an engine can do GRE for none, empty if it can."""

    def __init__(self, snapshot: Snapshot, no_gre: str = "") -> None:
        self._hops = snapshot.next_hops
        self._no_gre = no_gre
        self._by_ends: dict[tuple[IpAddress | None, IpAddress | None], list[Encapsulator]] = defaultdict(list)
        self._by_vlan: dict[int, list[XfrmInterface]] = defaultdict(list)
        for device in snapshot.encapsulators:
            self._by_ends[device.local, device.remote].append(device)
        for interface in snapshot.tagged:
            self._by_vlan[interface.vlan].append(interface)

    def of(self, lineage: Lineage) -> Encapsulator | None:
        """The one that its policies are for; None for a tunnel without one, or while its policies are not known. In
        tunnel mode one that an engine cannot have is none: its packets are like others to it.
        """
        device = self.sender(lineage)
        if device is None or is_transport(lineage):
            return device
        return None if self.why_not(lineage, device) else device

    def sender(self, lineage: Lineage) -> Encapsulator | None:
        """The one that its policies are for, whether an engine can have that or not."""
        if lineage.routed and not is_transport(lineage):
            return None
        protocols = {policy.upper for policy in lineage.policies}
        return next((one for one in self._between(lineage) if {one.protocol} == protocols), None)

    def awaited(self, lineage: Lineage) -> bool:
        """Whether it may be for a device, and nobody knows yet: charon adds policies after SAs."""
        return awaits_policies(lineage) and bool(self._between(lineage))

    def send(self, lineage: Lineage, policy: XfrmPolicy) -> bool:
        """Whether what this policy is for, between the ends of a tunnel, is what one of them sends: in tunnel mode if
        an engine can have that one.
        """
        return any(
            device.protocol == policy.upper
            and (policy.transports or not self._why_not_here(device, lineage.key.remote))
            for device in self._between(lineage)
        )

    def tunnels(self, lineages: Iterable[Lineage], policies: Iterable[XfrmPolicy]) -> frozenset[TunnelId]:
        """The tunnels that have a device's packets and no others, those that are not up yet as well."""
        standing = {one.key for one in lineages if self.of(one) is not None}
        return frozenset(standing | {key for policy in policies for key in self._trapped(policy)})

    def why_kept(self, lineages: Iterable[Lineage]) -> Mapping[XfrmInterface, str]:
        """Why the kernel does their work where the SAs are in tunnel mode, and for nothing else."""
        senders = ((one, self.sender(one)) for one in lineages if not is_transport(one))
        found = {device.interface: self.why_not(one, device) for one, device in senders if device is not None}
        return {interface: reason for interface, reason in found.items() if reason}

    def why_not(self, lineage: Lineage, device: Encapsulator) -> str:
        """Why an engine cannot have what this device of its sends, empty if it can."""
        whole = sent_by(device)
        foreign = next((one.selector for one in lineage.policies if one.selector != whole), None)
        if foreign is not None:
            left = "transport mode is left to the kernel: " if is_transport(lineage) else ""
            return f"{left}the selector {foreign} is not for {device} alone"
        checks = (
            (any(lineage.if_ids), f"its SAs have an if_id, and {device} is no XFRM interface"),
            (
                is_transport(lineage) and any(sa.encap is not None for sa in lineage.sas),
                "UDP encapsulation in transport mode is left to the kernel",
            ),
        )
        return self._why_not_here(device, lineage.key.remote) or next(
            (reason for failed, reason in checks if failed), ""
        )

    def _why_not_here(self, device: Encapsulator, peer: IpAddress) -> str:
        """What the device itself and others have against it; ``peer`` is the other end of its SAs."""
        rival, twin = self._rival(device), self._twin(device)
        hop = self._hops.get(peer)
        leaves = hop.interface if hop is not None else device.link
        checks = (
            (bool(device.oddity), f"{device} {device.oddity}"),
            (rival is not None, f"{rival} may send to {device.remote} with the SAs of {device}"),
            (
                bool(device.link) and leaves != device.link,
                f"{device} is bound to {device.link}, and packets to {device.remote} leave by {leaves}",
            ),
            (twin is not None, f"{device} and {twin} share the VLAN ID {device.interface.vlan}: make one of them anew"),
            (is_gre(device) and bool(self._no_gre), self._no_gre),
        )
        return next((reason for failed, reason in checks if failed), "")

    def _between(self, lineage: Lineage) -> list[Encapsulator]:
        if is_transport(lineage):
            return self._by_ends.get((lineage.local, lineage.key.remote), [])
        networks = {policy.selector.networks for policy in lineage.policies}
        return self._of_hosts(networks.pop()) if len(networks) == 1 else []

    def _of_hosts(self, networks: Selector) -> list[Encapsulator]:
        if not networks.of_hosts:
            return []
        return self._by_ends.get((networks.source.network_address, networks.destination.network_address), [])

    def _trapped(self, policy: XfrmPolicy) -> Iterable[TunnelId]:
        """The tunnels in tunnel mode that a policy waits for, if that is to be for a device that an engine can have."""
        if policy.direction is not PolicyDirection.OUT or policy.upper not in _KINDS:
            return ()
        return (
            tunnel_of(template)
            for template in policy.templates
            if template.mode is Mode.TUNNEL and template.spi == 0
            for device in self._of_hosts(policy.selector.networks)
            if sent_by(device) == policy.selector and not self._why_not_here(device, template.destination)
        )

    def _rival(self, device: Encapsulator) -> Encapsulator | None:
        """Another device whose packets, now or one day, the same policy protects."""
        ends = ((local, remote) for local in (device.local, None) for remote in (device.remote, None))
        others = (one for pair in ends for one in self._by_ends.get(pair, ()))
        return next((one for one in others if _may_send_as(one, device)), None)

    def _twin(self, device: Encapsulator) -> XfrmInterface | None:
        same = self._by_vlan[device.interface.vlan]
        return next((one for one in same if one.index != device.interface.index), None)


def _host(address: IpAddress) -> IpNetwork:
    return ip_network((address, address.max_prefixlen))


def _may_send_as(one: Encapsulator, device: Encapsulator) -> bool:
    return one.up and one.interface.index != device.interface.index and one.protocol == device.protocol
