"""Tunnels as the kernel shows them: SAs grouped by reqid and peer, with the outbound policies bound to them.

Everything here looks at all tunnels at once, and is indexed so that ten thousand of them take a second and not an hour.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import ip_network

from ipsec_gw.model.ids import Direction, IpAddress, SaKey, TunnelId
from ipsec_gw.model.objects import Selector
from ipsec_gw.model.prefixes import PrefixIndex
from ipsec_gw.model.snapshot import PolicyDirection, Snapshot, Template, XfrmMark, XfrmPolicy, XfrmSa

_ESP = 50


@dataclass(frozen=True, slots=True)
class Lineage:
    """A tunnel as the kernel shows it: its SAs by direction and its outbound policies that are bound to an SA."""

    key: TunnelId
    local: IpAddress
    inbound: tuple[XfrmSa, ...]
    outbound: tuple[XfrmSa, ...]
    policies: tuple[XfrmPolicy, ...]

    @property
    def sas(self) -> tuple[XfrmSa, ...]:
        """All of its SAs."""
        return self.inbound + self.outbound

    @property
    def locals(self) -> frozenset[IpAddress]:
        """Our ends of its SAs: one, or several while charon moves them, or beside another of the same networks."""
        return frozenset(sa.key.destination for sa in self.inbound) | frozenset(sa.source for sa in self.outbound)

    @property
    def selectors(self) -> tuple[Selector, ...]:
        """What its policies send into it."""
        return tuple(policy.selector for policy in self.policies)

    @property
    def if_ids(self) -> frozenset[int]:
        """Of its SAs and policies: those of XFRM interfaces, 0 for none. Of a tunnel without interface only 0."""
        return frozenset(sa.if_id for sa in self.sas) | frozenset(policy.if_id for policy in self.policies)

    @property
    def marks(self) -> frozenset[XfrmMark]:
        """Of its outbound SAs and policies, without those that have none: a VTI device gives them to its packets."""
        return frozenset(sa.mark for sa in self.outbound if sa.mark is not None) | frozenset(
            policy.mark for policy in self.policies if policy.mark is not None
        )

    @property
    def inbound_marks(self) -> frozenset[XfrmMark]:
        """Of its inbound SAs, without those that have none (the rule: ``mark_in_sa = no``)."""
        return frozenset(sa.mark for sa in self.inbound if sa.mark is not None)

    @property
    def routed(self) -> bool:
        """It has a sign of an interface that routing sends to: an if_id or a mark."""
        return any(self.if_ids) or bool(self.marks) or bool(self.inbound_marks)

    @property
    def current(self) -> SaKey | None:
        """The outbound SA that the policies use: the template's SPI is the switch on rekey. charon switches them one
        by one: once it has begun, the peer takes what the newest sends.
        """
        spis = {template.spi for policy in self.policies for template in policy.templates}
        if len(spis) == 1:
            return SaKey(self.key.remote, spis.pop())
        used = [sa.key for sa in self.outbound if sa.key.spi in spis]
        return used[-1] if used else None


class Ends:
    """Where ESP and IKE themselves go: from our ends to the peers."""

    def __init__(self, lineages: Iterable[Lineage]) -> None:
        self._by_remote = PrefixIndex((ip_network(one.key.remote), one) for one in lineages)

    def inside(self, policy: XfrmPolicy) -> Lineage | None:
        """A tunnel whose own packets would be among those of a policy, if anybody but XFRM goes by its addresses."""
        reached = self._by_remote.overlapping(policy.destination)
        return next((one for ones in reached for one in ones if any(end in policy.source for end in one.locals)), None)


def lineages_of(snapshot: Snapshot) -> list[Lineage]:
    """All tunnels that have an ESP SA, in a stable order."""
    groups: dict[TunnelId, list[tuple[Direction, XfrmSa]]] = defaultdict(list)
    for sa in snapshot.sas:
        if sa.protocol != _ESP:
            continue
        inbound = sa.key.destination in snapshot.local_addresses
        remote = sa.source if inbound else sa.key.destination
        groups[TunnelId(sa.reqid, remote)].append((Direction.IN if inbound else Direction.OUT, sa))
    bound = _bound(snapshot.policies)
    ordered = sorted(groups.items(), key=lambda item: str(item[0]))
    return [_lineage(key, members, bound.get(key, ())) for key, members in ordered]


def _lineage(key: TunnelId, members: list[tuple[Direction, XfrmSa]], policies: Sequence[XfrmPolicy]) -> Lineage:
    first_direction, first = members[0]
    return Lineage(
        key=key,
        local=first.key.destination if first_direction is Direction.IN else first.source,
        inbound=_oldest_first(sa for direction, sa in members if direction is Direction.IN),
        outbound=_oldest_first(sa for direction, sa in members if direction is Direction.OUT),
        policies=tuple(policies),
    )


def _oldest_first(sas: Iterable[XfrmSa]) -> tuple[XfrmSa, ...]:
    return tuple(sorted(sas, key=lambda sa: (sa.lifetime.add_time, sa.key.spi)))


def _bound(policies: Iterable[XfrmPolicy]) -> dict[TunnelId, list[XfrmPolicy]]:
    """Outbound policies by the tunnels that an SA binds them to; SPI 0 is a trap that waits for its first packet."""
    found: dict[TunnelId, list[XfrmPolicy]] = defaultdict(list)
    for policy in policies:
        if policy.direction is PolicyDirection.OUT and policy.allow:
            for key in dict.fromkeys(tunnel_of(template) for template in policy.templates if template.spi != 0):
                found[key].append(policy)
    return found


def tunnel_of(template: Template) -> TunnelId:
    """The tunnel that a template asks for."""
    return TunnelId(template.reqid, template.destination)
