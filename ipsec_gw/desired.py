"""What should be in place: a pure function of configuration, snapshot and engine capabilities.

The unit is the tunnel: one reqid towards one peer, with every SA of its lineage. Either all of it is described
to the engine or all of it stays in the kernel, with a sentence that says why (DESIGN.md, invariant 5).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from enum import StrEnum

from ipsec_gw.encapsulated import (
    Devices,
    awaits_policies,
    copies_of,
    header_of,
    is_gre,
    overhead_of,
    selectors_of,
)
from ipsec_gw.hosts import HostPolicies, Together, is_of_hosts
from ipsec_gw.lineages import Ends, Lineage, lineages_of
from ipsec_gw.model.algorithms import SALT_BYTES, EspAlgorithm
from ipsec_gw.model.choices import Choices
from ipsec_gw.model.ids import Direction, EngineName, IpNetwork, SaKey, TunnelId
from ipsec_gw.model.objects import (
    MAX_INBOUND,
    MAX_NAT_T_PORTS,
    NAT_T_PORT,
    USUAL_COPIES,
    EngineSa,
    EntryKey,
    Exempt,
    ExemptKey,
    Guard,
    GuardKey,
    HeaderCopies,
    Hosts,
    HostsLead,
    InterfaceEntry,
    InterfaceLead,
    Lead,
    ManagedObject,
    NextHop,
    ObjectKey,
    Selector,
    Steer,
    SteerKey,
    Tunnel,
    XfrmInterface,
)
from ipsec_gw.model.secret import Secret
from ipsec_gw.model.sizes import IPV6_MINIMUM_MTU, UPLINK_MTU, inner_mtu
from ipsec_gw.model.snapshot import Encapsulator, Mode, ResolvedHop, Snapshot, XfrmSa
from ipsec_gw.nat_t import further_ports, local_port, udp_peer
from ipsec_gw.precedence import Precedence, Share, share_of, why_not_routed
from ipsec_gw.routed import Routes, why_not_seen
from ipsec_gw.vxlans import Overlays, overlays_of


class Owner(StrEnum):
    """Who carries an SA: the engine, the kernel, or not decided yet."""

    ENGINE = "engine"
    KERNEL = "kernel"
    PENDING = "pending"


@dataclass(frozen=True, slots=True)
class EngineOffer:
    """The part of an engine's capabilities that decides eligibility.

    ``absent`` is empty while the engine can be used, else the reason why nothing is given to it. ``asleep`` is the same
    of an engine that is started when it is needed: it is told of SAs that nothing else keeps in the kernel.
    """

    name: EngineName
    algorithms: frozenset[EspAlgorithm]
    esn: bool
    udp_encap: bool
    max_replay_window: int
    gre: bool = False
    vxlan: bool = False
    absent: str = ""
    asleep: str = ""


MOVED = "moved to the kernel by `ipsec-gw fallback`: `ipsec-gw return` gives it back"


@dataclass(frozen=True, slots=True)
class Moved:
    """What the operator moved to the kernel for a while: everything, connections by name, tunnels."""

    everything: bool = False
    connections: frozenset[str] = frozenset()
    tunnels: frozenset[TunnelId] = frozenset()


@dataclass(frozen=True, slots=True)
class Settings:
    """The docked WAN interfaces, what the operator decided, and what is in the kernel for a while; whether there is a
    ``firewall``.
    """

    wan: frozenset[str] = frozenset()
    choices: Choices = field(default_factory=Choices)
    moved: Moved = field(default_factory=Moved)
    firewall: bool = False

    @property
    def by_name(self) -> bool:
        """True if the name of a connection can decide: then it has to be known before."""
        return self.choices.by_name or bool(self.moved.connections)


@dataclass(frozen=True, slots=True)
class SaVerdict:
    """The decision for one SA, for people: ``reason`` is empty only when the engine carries it."""

    sa: XfrmSa
    direction: Direction
    owner: Owner
    reason: str


@dataclass(frozen=True, slots=True)
class Desired:
    """The wanted objects by key, a verdict for every ESP SA of the kernel, and why the kernel itself does the work of
    VXLAN devices, and of GRE and IPIP devices over tunnel mode.
    """

    objects: Mapping[ObjectKey, ManagedObject] = field(default_factory=dict)
    verdicts: tuple[SaVerdict, ...] = ()
    kept_devices: Mapping[XfrmInterface, str] = field(default_factory=dict)


def desired(
    offer: EngineOffer, settings: Settings, snapshot: Snapshot, refused: Mapping[SaKey, str] | None = None
) -> Desired:
    """Decide. ``refused`` are SAs that must not go to the engine, each with its reason: outbound ones for good, inbound
    ones for as long as they are in it.
    """
    refused = refused or {}
    lineages = lineages_of(snapshot)
    precedence = Precedence(snapshot.policies, (vti.out_mark for vti in snapshot.vtis))
    devices = Devices(snapshot, "" if offer.gre else f"engine {offer.name} does not do GRE")
    routes = Routes(lineages, snapshot)
    together = Together(one for one in lineages if is_of_hosts(one) and devices.of(one) is None)
    kept = _kept(lineages, devices, routes, offer, settings, snapshot)
    shares = _shares(lineages, devices.tunnels(lineages, snapshot.policies), together, kept, precedence)
    objects: dict[ObjectKey, ManagedObject] = {}
    verdicts: list[SaVerdict] = []
    for lineage in lineages:
        device, share = devices.of(lineage), shares[lineage.key]
        held = (Owner.KERNEL, share.reason) if share.reason else _held(lineage, settings, snapshot, offer)
        if held is not None:
            verdicts += [_verdict(sa, lineage, *held) for sa in lineage.sas]
            continue
        interface = routes.of(lineage) if device is None else device.interface
        built = _build(lineage, device, interface, share, snapshot, refused)
        objects |= built
        verdicts += [_verdict(sa, lineage, *_owner(sa, lineage, built, refused)) for sa in lineage.sas]
    carried = {obj.key for obj in objects.values() if isinstance(obj, Tunnel)}
    ranked = _ranked(_levelled(objects), together.ranks(carried))
    overlays = _overlays(ranked, offer, settings, snapshot)
    wanted = _exempted(ranked, together.exempted(carried), snapshot)
    kept_devices = {**devices.why_kept(lineages), **overlays.kept}
    return Desired({**wanted, **overlays.objects}, tuple(verdicts), kept_devices)


def _overlays(
    carried: Mapping[ObjectKey, ManagedObject], offer: EngineOffer, settings: Settings, snapshot: Snapshot
) -> Overlays:
    """Of VXLAN devices. The firewall judges their packets as the gateway's own UDP, which an engine would hide."""
    checks = (
        (not offer.vxlan, f"engine {offer.name} does not do VXLAN"),
        (settings.firewall, "the firewall is to see its packets"),
    )
    unable = next((reason for failed, reason in checks if failed), "")
    return overlays_of(snapshot, carried, unable)


def _shares(
    lineages: Sequence[Lineage],
    of_devices: Set[TunnelId],
    together: Together,
    kept: Mapping[TunnelId, str],
    precedence: Precedence,
) -> dict[TunnelId, Share]:
    """What each tunnel has of its selectors, or why it stays in the kernel."""
    shares = {
        one.key: Share(reason=kept[one.key]) if kept[one.key] else share_of(one, precedence, kept, of_devices)
        for one in lineages
    }
    why = together.why_not({key: share.reason for key, share in shares.items()})
    return {key: replace(share, reason=why[key]) for key, share in shares.items()}


def _ranked(
    objects: Mapping[ObjectKey, ManagedObject], ranks: Mapping[TunnelId, int]
) -> dict[ObjectKey, ManagedObject]:
    return {
        key: replace(obj, rank=ranks[obj.key]) if isinstance(obj, Tunnel) and obj.key in ranks else obj
        for key, obj in objects.items()
    }


def _kept(
    lineages: Sequence[Lineage],
    devices: Devices,
    routes: Routes,
    offer: EngineOffer,
    settings: Settings,
    snapshot: Snapshot,
) -> dict[TunnelId, str]:
    """Why tunnels stay in the kernel whatever other tunnels there are; empty where nothing speaks for it."""
    further, hosts, ends = further_ports(snapshot), HostPolicies(snapshot, devices), Ends(lineages)
    kept: dict[TunnelId, str] = {}
    for lineage in lineages:
        names, device = _names(lineage, snapshot), devices.of(lineage)
        kept[lineage.key] = (
            offer.absent
            or settings.choices.keeps(names)
            or _why_moved(lineage, names, settings.moved)
            or _why_not_bundle(lineage)
            or _why_not_mode(lineage, devices, hosts)
            or _why_not_policies(lineage, devices, ends)
            or _why_not_path(lineage, settings, snapshot)
            or _why_not_led(lineage, device, snapshot)
            or routes.why_not(lineage)
            or _why_not_sas(lineage, offer)
            or _why_not_ports(lineage, further)
            or _why_not_seen(lineage, names, settings, snapshot)
            or _why_observed(lineage, names, settings, offer)
            or offer.asleep
        )
    return kept


def _exempted(
    objects: dict[ObjectKey, ManagedObject], further: Iterable[Selector], snapshot: Snapshot
) -> dict[ObjectKey, ManagedObject]:
    """With an exemption for every exception that is not led itself, and for ``further`` ones."""
    tunnels = [obj for obj in objects.values() if isinstance(obj, Tunnel)]
    wanted: dict[Selector, bool] = dict.fromkeys(further, False)
    for tunnel in tunnels:
        hints = [snapshot.sources.get(selector.destination) for selector in tunnel.selectors]
        for selector in (one for one in tunnel.exceptions if one not in objects):
            unbound = any(hint is not None and hint in selector.source for hint in hints)
            wanted[selector] = wanted.get(selector, False) or unbound
    # They share the rule for packets without a source with those that differ in nothing but their source.
    shared = {replace(selector, source=selector.destination) for selector, unbound in wanted.items() if unbound}
    exempted = [Exempt(ExemptKey(one), replace(one, source=one.destination) in shared) for one in wanted]
    return objects | {one.key: one for one in exempted}


def needs_engine(offer: EngineOffer, settings: Settings, snapshot: Snapshot) -> bool:
    """Whether there is an SA for the engine, whether it is there or not."""
    there = replace(offer, absent="", asleep="")
    return any(isinstance(obj, EngineSa) for obj in desired(there, settings, snapshot).objects.values())


def _levelled(objects: Mapping[ObjectKey, ManagedObject]) -> dict[ObjectKey, ManagedObject]:
    """Leads to one destination share its route, by ports or not, and so its MTU: the smallest holds."""
    smallest: dict[tuple[IpNetwork, bool], int] = {}
    for obj in objects.values():
        if isinstance(obj, Lead):
            shared = obj.key.destination, obj.key.ported
            smallest[shared] = min(obj.mtu, smallest.get(shared, obj.mtu))
    return {
        key: replace(obj, mtu=smallest[obj.key.destination, obj.key.ported]) if isinstance(obj, Lead) else obj
        for key, obj in objects.items()
    }


def _names(lineage: Lineage, snapshot: Snapshot) -> frozenset[str]:
    """The connections that its SAs belong to, as far as charon has told."""
    return frozenset(snapshot.names[sa.key.spi].connection for sa in lineage.sas if sa.key.spi in snapshot.names)


def _why_moved(lineage: Lineage, names: frozenset[str], moved: Moved) -> str:
    away = moved.everything or lineage.key in moved.tunnels or names & moved.connections
    return MOVED if away else ""


def _why_not_seen(lineage: Lineage, names: frozenset[str], settings: Settings, snapshot: Snapshot) -> str:
    if names & settings.choices.accelerated or (settings.by_name and not names):  # not known yet
        return ""
    return why_not_seen(lineage, snapshot, names)


def _why_observed(lineage: Lineage, names: frozenset[str], settings: Settings, offer: EngineOffer) -> str:
    if settings.by_name and not names:
        return ""  # not known yet
    observed = settings.choices.observes(names, lineage.key.remote)
    return f"engine {offer.name} could carry it, but {observed}" if observed else ""


def _held(lineage: Lineage, settings: Settings, snapshot: Snapshot, offer: EngineOffer) -> tuple[Owner, str] | None:
    """Why a tunnel that the engine could carry is not given to it yet.

    What is still to be learned is no reason to give it to the kernel: used there, its key would be lost for the engine.
    """
    if settings.by_name and not _names(lineage, snapshot):
        return Owner.PENDING, "charon has not told yet which connection it belongs to"
    if lineage.key.remote not in snapshot.next_hops:
        return Owner.PENDING, f"the kernel has no resolved next hop towards {lineage.key.remote} yet"
    if awaits_policies(lineage):
        return Owner.PENDING, _UNFINISHED
    return None


_UNFINISHED = "waits for the rest of its CHILD_SA"


def _why_not_bundle(lineage: Lineage) -> str:
    """ESP is in transport mode inside IPComp, so that is asked first."""
    bundled = any(len(policy.templates) != 1 for policy in lineage.policies)
    return "the policy has several templates (IPComp or AH bundle)" if bundled else ""


def _why_not_mode(lineage: Lineage, devices: Devices, hosts: HostPolicies) -> str:
    modes = {sa.mode for sa in lineage.sas}
    if len(modes) > 1:
        return f"it has SAs of several modes ({', '.join(sorted(modes))})"
    if not modes <= {Mode.TUNNEL, Mode.TRANSPORT}:
        return f"{modes.pop()} mode is left to the kernel"
    device = devices.of(lineage)
    if device is not None:
        return devices.why_not(lineage, device)
    return hosts.why_not(lineage) if is_of_hosts(lineage) and not devices.awaited(lineage) else ""


def _why_not_policies(lineage: Lineage, devices: Devices, ends: Ends) -> str:
    by_networks = not (lineage.routed or is_of_hosts(lineage) or devices.of(lineage) is not None)
    for policy in lineage.policies:
        if policy.bound:
            return f"the policy for {policy.selector} is limited to an interface or a user"
        if by_networks and (unrouted := why_not_routed(policy.selector)):
            return unrouted
        inside = ends.inside(policy) if by_networks else None
        if inside is not None and inside.key == lineage.key:
            return "the selectors include the tunnel's own end points, and are not for those alone"
        if inside is not None:
            return f"the selectors include the end points of the tunnel to {inside.key.remote}"
    return ""


def _why_not_path(lineage: Lineage, settings: Settings, snapshot: Snapshot) -> str:
    if lineage.local not in snapshot.local_addresses:
        return f"{lineage.local} is not an address of this machine"
    if len(lineage.locals) > 1:
        return f"its SAs have several addresses of this machine ({', '.join(sorted(map(str, lineage.locals)))})"
    hop = snapshot.next_hops.get(lineage.key.remote)
    if hop is not None and hop.source not in {None, lineage.local}:
        return f"other tunnels to {lineage.key.remote} begin at {hop.source}, and engines have one beginning for a peer"
    if hop is not None and hop.interface not in settings.wan:
        return f"packets to {lineage.key.remote} leave by {hop.interface}, which is not a docked WAN interface"
    return ""


def _why_not_led(lineage: Lineage, device: Encapsulator | None, snapshot: Snapshot) -> str:
    """IPv6 is not led past XFRM as easily as IPv4, and it has a smallest MTU (RFC 8200 §5)."""
    sources = [one.source for one in selectors_of(lineage, device) if one.source.version == 6]
    if not sources:
        return ""
    routed = lineage.routed or device is not None
    if snapshot.limits.all6 and not routed:
        return snapshot.limits.all6
    if (
        snapshot.limits.local6
        and not routed
        and any(address in source for source in sources for address in snapshot.local_addresses)
    ):
        return snapshot.limits.local6
    hop = snapshot.next_hops.get(lineage.key.remote)
    mtu = _mtu(lineage, hop, device) if hop is not None else IPV6_MINIMUM_MTU
    if mtu < IPV6_MINIMUM_MTU:
        return f"its path leaves {mtu} bytes for a packet inside, and IPv6 needs {IPV6_MINIMUM_MTU}"
    return ""


def _mtu(lineage: Lineage, hop: ResolvedHop, device: Encapsulator | None) -> int:
    """What fits into the tunnel, in bytes of inner IP packet."""
    newest = lineage.sas[-1] if not lineage.inbound else lineage.inbound[-1]
    fits = inner_mtu(hop.mtu, lineage.key.remote.version, encapsulated=newest.encap is not None)
    return min(fits - overhead_of(lineage, device), UPLINK_MTU)


def _why_not_sas(lineage: Lineage, offer: EngineOffer) -> str:
    return next((reason for sa in lineage.sas if (reason := _why_not_sa(sa, offer))), "")


def _why_not_sa(sa: XfrmSa, offer: EngineOffer) -> str:
    """The table of what the engine cannot do right, in the order that helps the reader most."""
    algorithm = sa.aead.known if sa.aead else None
    checks = (
        (sa.aead is not None and sa.aead.secret.is_zero(), "the kernel hides its keys (lockdown=confidentiality)"),
        (algorithm is None, f"algorithm {sa.algorithm} is left to the kernel"),
        (algorithm not in offer.algorithms, f"engine {offer.name} does not have {sa.algorithm}"),
        (sa.replay.esn and not offer.esn, f"engine {offer.name} does not do ESN"),
        (sa.encap is not None and not offer.udp_encap, f"engine {offer.name} does not do UDP encapsulation"),
        (sa.encap is not None and sa.key.destination.version != 4, "UDP encapsulation over IPv6 is left to the kernel"),
        (
            sa.encap is not None and 0 in {sa.encap.source_port, sa.encap.destination_port},
            "an encapsulation that is not ESP in UDP is left to the kernel",
        ),
        (sa.replay.window > offer.max_replay_window, f"replay window {sa.replay.window} is too large"),
        (bool(sa.extras), f"the SA has {', '.join(sorted(sa.extras))}, which no engine honours"),
    )
    return next((reason for failed, reason in checks if failed), "")


def _why_not_ports(lineage: Lineage, further: frozenset[int]) -> str:
    for sa in lineage.sas:
        port = local_port(sa, inbound=sa in lineage.inbound)
        if port not in {0, NAT_T_PORT, *further}:
            return f"its UDP port {port} is one too many: {MAX_NAT_T_PORTS} are steered besides {NAT_T_PORT}"
    return ""


def _build(
    lineage: Lineage,
    device: Encapsulator | None,
    interface: XfrmInterface | None,
    share: Share,
    snapshot: Snapshot,
    refused: Mapping[SaKey, str],
) -> dict[ObjectKey, ManagedObject]:
    """The objects of an eligible tunnel: as many of them as can exist at this moment of its life.

    A successor of a refused outbound SA is claimed and installed before the kernel's policy switches to it. With no
    inbound SA in the engine there is no tunnel, and nothing is claimed that only a tunnel could use.
    """
    inbound = _takeable(lineage.inbound, refused)[-MAX_INBOUND:]
    outbound = _takeable(lineage.outbound, refused) if inbound or not lineage.inbound else ()
    hop = snapshot.next_hops[lineage.key.remote]
    objects: list[ManagedObject] = [
        NextHop(lineage.key.remote, lineage.local, hop.interface, hop.gateway, hop.mac),
        *(_engine_sa(sa, Direction.IN, device) for sa in inbound),
        *(_engine_sa(sa, Direction.OUT, device) for sa in outbound),
        *(Guard(GuardKey(sa.key)) for sa in outbound),
    ]
    current = lineage.current
    if current in {sa.key for sa in outbound} and current is not None and inbound:
        keys = tuple(sa.key for sa in inbound)
        tunnel = Tunnel(
            lineage.key,
            lineage.local,
            lineage.key.remote,
            keys,
            current,
            selectors_of(lineage, device),
            share.exceptions,
            interface,
            is_of_hosts(lineage) and device is None,
            header=header_of(lineage, device),
        )
        objects += [tunnel, *(Steer(SteerKey(sa.key), udp_peer(sa)) for sa in inbound)]
        objects += _leads(tunnel, snapshot, _mtu(lineage, hop, device), min(hop.mtu, UPLINK_MTU))
    return {obj.key: obj for obj in objects}


def _leads(tunnel: Tunnel, snapshot: Snapshot, mtu: int, whole: int) -> Sequence[ManagedObject]:
    """What brings plaintext to a tunnel, and back from it. What is led by ports comes as it is, up to the link's MTU:
    its fragments would have no ports, neither here nor for the peer. An engine takes ESP apart if need be.
    """
    if tunnel.hosts:
        return [HostsLead(Hosts(tunnel.local, tunnel.remote))]
    if tunnel.interface is None:
        hints = snapshot.sources
        return [Lead(s, hints.get(s.destination), whole if s.ported else mtu) for s in tunnel.selectors]
    versions = frozenset(selector.source.version for selector in tunnel.selectors)
    return [InterfaceEntry(EntryKey(tunnel.interface), versions), InterfaceLead(tunnel.interface, mtu, versions)]


def _takeable(sas: tuple[XfrmSa, ...], refused: Mapping[SaKey, str]) -> tuple[XfrmSa, ...]:
    return tuple(sa for sa in sas if sa.key not in refused)


def _copies(sa: XfrmSa, direction: Direction, device: Encapsulator | None) -> HeaderCopies:
    if sa.mode is not Mode.TRANSPORT:
        return sa.copies
    return USUAL_COPIES if device is None else copies_of(device, direction)


def _engine_sa(sa: XfrmSa, direction: Direction, device: Encapsulator | None) -> EngineSa:
    algorithm = sa.aead.known if sa.aead else None
    if sa.aead is None or algorithm is None:
        raise ValueError(f"SA {sa.key} was found eligible without an AEAD")
    material = sa.aead.secret.reveal()
    return EngineSa(
        key=sa.key,
        direction=direction,
        source=sa.source,
        algorithm=algorithm,
        secret=Secret(material[:-SALT_BYTES]),
        salt=Secret(material[-SALT_BYTES:]),
        esn=sa.replay.esn,
        replay_window=sa.replay.window,
        encap=sa.encap,
        copies=_copies(sa, direction, device),
        transport=sa.mode is Mode.TRANSPORT and device is None,
        gre=sa.mode is Mode.TRANSPORT and is_gre(device),
    )


def _owner(
    sa: XfrmSa, lineage: Lineage, built: Mapping[ObjectKey, ManagedObject], refused: Mapping[SaKey, str]
) -> tuple[Owner, str]:
    if sa.key in refused:
        return Owner.KERNEL, refused[sa.key]
    tunnel = built.get(lineage.key)
    if not isinstance(tunnel, Tunnel):
        claimed = sa in lineage.outbound and sa.key in built
        return (Owner.PENDING, _UNFINISHED) if claimed else _owner_without_tunnel(lineage, refused)
    if sa.key == tunnel.outbound or sa.key in tunnel.inbound:
        return Owner.ENGINE, ""
    if sa in lineage.inbound:
        return Owner.KERNEL, f"the tunnel has more than {MAX_INBOUND} inbound SAs at a time"
    return Owner.PENDING, "is not the outbound SA in use"


def _owner_without_tunnel(lineage: Lineage, refused: Mapping[SaKey, str]) -> tuple[Owner, str]:
    if (current := lineage.current) and current in refused:
        return Owner.KERNEL, f"the outbound SA of its tunnel is in the kernel: {refused[current]}"
    if lineage.inbound and not _takeable(lineage.inbound, refused):
        return Owner.KERNEL, f"the inbound SA of its tunnel is in the kernel: {refused[lineage.inbound[-1].key]}"
    return Owner.PENDING, _UNFINISHED


def _verdict(sa: XfrmSa, lineage: Lineage, owner: Owner, reason: str) -> SaVerdict:
    return SaVerdict(sa, Direction.IN if sa in lineage.inbound else Direction.OUT, owner, reason)
