"""Transport mode between gateways, for a GRE or IPIP device: what routing sends out by it is all the SA has. Pure.

On the wire GRE in transport mode is ESP around a GRE header, and IPIP in transport mode is the same as tunnel mode: an
engine does what device and SA do together. The kernel keeps what a device does beyond that, and SAs that others share.
"""

from __future__ import annotations

from ipaddress import ip_network

from ipsec_gw.lineages import Lineage
from ipsec_gw.model.ids import IpAddress, IpNetwork
from ipsec_gw.model.objects import ENCAPSULATIONS, HeaderCopies, InterfaceKind, Selector
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


def device_of(lineage: Lineage, snapshot: Snapshot) -> Encapsulator | None:
    """The device that its policies are for; None for a tunnel without one, or while its policies are not known."""
    if not is_transport(lineage):
        return None
    protocols = {policy.upper for policy in lineage.policies}
    return next((one for one in _between(lineage, snapshot) if {one.protocol} == protocols), None)


def selectors_of(lineage: Lineage, device: Encapsulator | None) -> tuple[Selector, ...]:
    """What an engine is to take into a tunnel, and to let out of it."""
    return lineage.selectors if device is None else _INSIDE[device.interface.kind]


def copies_of(device: Encapsulator) -> HeaderCopies:
    """What passes between the headers: ECN always does (RFC 6040, ``ip_tunnel.c``)."""
    return HeaderCopies(dscp=device.dscp)


def awaits_policies(lineage: Lineage) -> bool:
    """Whether it is not known yet which device it is for: charon adds policies after SAs."""
    return is_transport(lineage) and not lineage.policies


def why_not_encapsulated(lineage: Lineage, snapshot: Snapshot, *, gre: bool) -> str:
    """Why an engine cannot have SAs in transport mode, empty if it can. ``gre`` tells whether it does GRE."""
    if not lineage.policies:
        return "" if _between(lineage, snapshot) else _LEFT
    other = next((policy.selector for policy in lineage.policies if not _is_of_ends(policy.selector, lineage)), None)
    if other is not None:
        return _why_not_for(other, lineage, snapshot)
    device = device_of(lineage, snapshot)
    if device is None:
        kind = _KINDS[lineage.policies[0].upper]
        return f"{_LEFT}: no {kind} from {lineage.local} to {lineage.key.remote} is here"
    rival = next((one for one in snapshot.encapsulators if _may_send_as(one, device)), None)
    hop = snapshot.next_hops.get(lineage.key.remote)
    twins = [one.interface for one in snapshot.encapsulators if one.interface.index != device.interface.index]
    twin = next((t for t in (*twins, *snapshot.interfaces.values()) if t.vlan == device.interface.vlan), None)
    checks = (
        (bool(device.oddity), f"{device} {device.oddity}"),
        (rival is not None, f"{rival} may send to {device.remote} with the SAs of {device}"),
        (
            bool(device.link) and hop is not None and hop.interface != device.link,
            f"{device} is bound to {device.link}, and packets to {device.remote} leave by {hop and hop.interface}",
        ),
        (twin is not None, f"{device} and {twin} share the VLAN ID {device.interface.vlan}: make one of them anew"),
        (any(lineage.if_ids), f"its SAs have an if_id, and {device} is no XFRM interface"),
        (any(sa.encap is not None for sa in lineage.sas), "UDP encapsulation in transport mode is left to the kernel"),
        (device.interface.kind is InterfaceKind.GRE and not gre, "this engine does not do GRE"),
    )
    return next((reason for failed, reason in checks if failed), "")


def _between(lineage: Lineage, snapshot: Snapshot) -> list[Encapsulator]:
    ends = lineage.local, lineage.key.remote
    return [one for one in snapshot.encapsulators if (one.local, one.remote) == ends]


def _is_of_ends(selector: Selector, lineage: Lineage) -> bool:
    """It is for what a device sends from one end to the other, and for nothing else."""
    if selector.ported or selector.protocol not in _KINDS:
        return False
    return selector.networks == Selector(_host(lineage.local), _host(lineage.key.remote))


def _host(address: IpAddress) -> IpNetwork:
    return ip_network((address, address.max_prefixlen))


def _why_not_for(selector: Selector, lineage: Lineage, snapshot: Snapshot) -> str:
    devices = _between(lineage, snapshot)
    if not devices or selector.protocol:
        return _LEFT
    names = " or ".join(map(str, devices))
    return f"{_LEFT}: the selector {selector} is not for {names} alone, and all that fits it shares the SA"


def _may_send_as(one: Encapsulator, device: Encapsulator) -> bool:
    """Another device whose packets, now or one day, the same policy protects."""
    return (
        one.up
        and one.interface.index != device.interface.index
        and one.protocol == device.protocol
        and one.local in {None, device.local}
        and one.remote in {None, device.remote}
    )
