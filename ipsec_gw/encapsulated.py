"""Transport mode between gateways, for a GRE or IPIP device: what routing sends out by it is all the SA has. Pure.

On the wire GRE in transport mode is ESP around a GRE header, and IPIP in transport mode is the same as tunnel mode: an
engine does what device and SA do together. The kernel keeps what a device does beyond that, and SAs that others share.
"""

from __future__ import annotations

from collections import defaultdict
from ipaddress import ip_network

from ipsec_gw.lineages import Lineage
from ipsec_gw.model.ids import Direction, IpAddress, IpNetwork
from ipsec_gw.model.objects import ENCAPSULATIONS, HeaderCopies, InterfaceKind, Selector, XfrmInterface
from ipsec_gw.model.snapshot import Encapsulator, Mode, Snapshot

_LEFT = "transport mode is left to the kernel"
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
    """What passes between the headers: ECN always does (RFC 6040, ``ip_tunnel.c``), DSCP outwards alone."""
    return HeaderCopies(dscp=device.dscp or direction is Direction.IN)


def awaits_policies(lineage: Lineage) -> bool:
    """Whether it is not known yet which device it is for: charon adds policies after SAs."""
    return is_transport(lineage) and not lineage.policies


class Devices:
    """The GRE and IPIP devices of a snapshot."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._hops = snapshot.next_hops
        self._by_ends: dict[tuple[IpAddress | None, IpAddress | None], list[Encapsulator]] = defaultdict(list)
        self._by_vlan: dict[int, list[XfrmInterface]] = defaultdict(list)
        for device in snapshot.encapsulators:
            self._by_ends[device.local, device.remote].append(device)
        for interface in snapshot.tagged:
            self._by_vlan[interface.vlan].append(interface)

    def of(self, lineage: Lineage) -> Encapsulator | None:
        """The one that its policies are for; None for a tunnel without one, or while its policies are not known."""
        if not is_transport(lineage):
            return None
        protocols = {policy.upper for policy in lineage.policies}
        return next((one for one in self._between(lineage) if {one.protocol} == protocols), None)

    def awaited(self, lineage: Lineage) -> bool:
        """Whether it may be for a device, and nobody knows yet: charon adds policies after SAs."""
        return awaits_policies(lineage) and bool(self._between(lineage))

    def send(self, lineage: Lineage, protocol: int) -> bool:
        """Whether one of them sends packets of this protocol between the ends of a tunnel."""
        return any(device.protocol == protocol for device in self._between(lineage))

    def why_not(self, lineage: Lineage, device: Encapsulator) -> str:
        """Why an engine that does GRE cannot have what this device of its sends, empty if it can."""
        foreign = next((one.selector for one in lineage.policies if not _is_of_ends(one.selector, lineage)), None)
        if foreign is not None:
            return f"{_LEFT}: the selector {foreign} is not for {device} alone"
        rival, twin = self._rival(device), self._twin(device)
        hop = self._hops.get(lineage.key.remote)
        leaves = hop.interface if hop is not None else device.link
        checks = (
            (bool(device.oddity), f"{device} {device.oddity}"),
            (rival is not None, f"{rival} may send to {device.remote} with the SAs of {device}"),
            (
                bool(device.link) and leaves != device.link,
                f"{device} is bound to {device.link}, and packets to {device.remote} leave by {leaves}",
            ),
            (twin is not None, f"{device} and {twin} share the VLAN ID {device.interface.vlan}: make one of them anew"),
            (any(lineage.if_ids), f"its SAs have an if_id, and {device} is no XFRM interface"),
            (
                any(sa.encap is not None for sa in lineage.sas),
                "UDP encapsulation in transport mode is left to the kernel",
            ),
        )
        return next((reason for failed, reason in checks if failed), "")

    def _between(self, lineage: Lineage) -> list[Encapsulator]:
        return self._by_ends.get((lineage.local, lineage.key.remote), [])

    def _rival(self, device: Encapsulator) -> Encapsulator | None:
        """Another device whose packets, now or one day, the same policy protects."""
        ends = ((local, remote) for local in (device.local, None) for remote in (device.remote, None))
        others = (one for pair in ends for one in self._by_ends.get(pair, ()))
        return next((one for one in others if _may_send_as(one, device)), None)

    def _twin(self, device: Encapsulator) -> XfrmInterface | None:
        same = self._by_vlan[device.interface.vlan]
        return next((one for one in same if one.index != device.interface.index), None)


def _is_of_ends(selector: Selector, lineage: Lineage) -> bool:
    """It is for what a device sends from one end to the other, and for nothing else."""
    if selector.ported or selector.protocol not in _KINDS:
        return False
    return selector.networks == Selector(_host(lineage.local), _host(lineage.key.remote))


def _host(address: IpAddress) -> IpNetwork:
    return ip_network((address, address.max_prefixlen))


def _may_send_as(one: Encapsulator, device: Encapsulator) -> bool:
    return one.up and one.interface.index != device.interface.index and one.protocol == device.protocol
