"""What others have of a tunnel's selectors, as XFRM decides it: the policy that it tries first has the packet. Pure.

A policy without a template (pass, drop), or of a tunnel that stays in the kernel, is an exception: its packets go
XFRM's way. One of a tunnel that an engine may carry has to be one that an engine can tell apart, by networks alone: a
network inside ours. Between two that it cannot tell apart, the one that XFRM tries first keeps its packets, and the
other tunnel stays in the kernel, whether the first one is up or not: nothing moves when it comes and goes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass

from ipsec_gw.lineages import Lineage, tunnel_of
from ipsec_gw.model.ids import IpNetwork, TunnelId
from ipsec_gw.model.objects import PROTOCOLS_WITH_PORTS, Selector
from ipsec_gw.model.prefixes import PrefixIndex
from ipsec_gw.model.snapshot import Mode, PolicyDirection, XfrmMark, XfrmPolicy, has_mark

_SIX = 6

MAX_EXCEPTIONS = 64
"""Of one tunnel: each is a routing rule that every packet may have to be compared with."""


class Precedence:
    """The outbound policies in the order in which they were made, to find those that XFRM would try before another.

    ``marks`` are those that VTI devices give to their packets. What has another mark is a packet like any other here.
    """

    def __init__(self, policies: Iterable[XfrmPolicy], marks: Iterable[int] = ()) -> None:
        given = frozenset(marks)
        groups: dict[_Way, list[tuple[int, XfrmPolicy]]] = defaultdict(list)
        for place, policy in enumerate(p for p in policies if p.direction is PolicyDirection.OUT):
            groups[_way_of(policy, given)].append((place, policy))
        self._places = {policy: (place, group) for group, entries in groups.items() for place, policy in entries}
        self._groups = {group: _Group(entries) for group, entries in groups.items()}

    def rivals(self, policy: XfrmPolicy, key: TunnelId) -> list[XfrmPolicy]:
        """Policies of others whose networks overlap and that XFRM does not try after ``policy`` of tunnel ``key``; in
        the order of their making. Of equal priority are those among them that have packets in common with it, as it is
        not known which comes first, and of the others those that were made before.
        """
        place, group = self._places[policy]
        candidates = self._groups[group].overlapping(policy)
        found = [entry for entries in candidates for entry in entries if _is_rival(entry[1], policy, key)]
        return [
            other
            for where, other in sorted(found, key=lambda entry: entry[0])
            if where < place or other.priority < policy.priority or other.selector.meets(policy.selector)
        ]


_Way = tuple[int, XfrmMark | None]
"""What tells policies for the packets of an interface from those for packets of another one, or of none."""


def _way_of(policy: XfrmPolicy, marks: Set[int]) -> _Way:
    of_device = policy.mark is not None and any(has_mark(mark, policy.mark) for mark in marks)
    return policy.if_id, policy.mark if of_device else None


class _Group:
    """Policies for the packets of one interface, or of none, with their places in that order."""

    def __init__(self, entries: list[tuple[int, XfrmPolicy]]) -> None:
        self._by_source = PrefixIndex((entry[1].source, entry) for entry in entries)
        self._by_destination = PrefixIndex((entry[1].destination, entry) for entry in entries)

    def overlapping(self, policy: XfrmPolicy) -> Iterable[list[tuple[int, XfrmPolicy]]]:
        """By the side of the selector that tells more of them apart."""
        if self._by_source.breadth(policy.source) < self._by_destination.breadth(policy.destination):
            return self._by_source.overlapping(policy.source)
        return self._by_destination.overlapping(policy.destination)


def _is_rival(other: XfrmPolicy, policy: XfrmPolicy, key: TunnelId) -> bool:
    return (
        other.priority <= policy.priority
        and all(tunnel_of(template) != key for template in other.templates)
        and other.selector.networks_meet(policy.selector)
    )


@dataclass(frozen=True, slots=True)
class Share:
    """What others have of a tunnel's selectors, or why the tunnel cannot do without it."""

    exceptions: tuple[Selector, ...] = ()
    reason: str = ""


_NO_TUNNELS: frozenset[TunnelId] = frozenset()


def share_of(
    lineage: Lineage,
    precedence: Precedence,
    kept: Mapping[TunnelId, str],
    of_devices: Set[TunnelId] = _NO_TUNNELS,
) -> Share:
    """What is left to others. ``kept`` are the tunnels that stay in the kernel whatever their policies are, which is
    said by a reason that is not empty. ``of_devices`` are those that have what a device sends: no routing rule takes
    that from them, and their selectors are those of the device's own packets.
    """
    exceptions: dict[Selector, None] = {}
    of_device = lineage.key in of_devices
    for policy in lineage.policies:
        for other in precedence.rivals(policy, lineage.key):
            if not of_device and _is_beside(other, policy):
                continue
            carriable = not of_device and _carriable(other, kept, of_devices)
            if carriable and not _told_apart(other.selector, policy.selector):
                return Share(reason=_covers(other))
            if not other.selector.meets(policy.selector):
                continue
            if (
                of_device
                or not _can_be_excepted(other, lineage)
                or _takes_from_others(other, lineage, precedence, kept, of_devices)
            ):
                return Share(reason=_covers(other))
            exceptions[other.selector] = None
            if len(exceptions) > MAX_EXCEPTIONS:
                return Share(reason=f"other policies cover more than {MAX_EXCEPTIONS} parts of its selectors")
    return Share(tuple(exceptions))


def _is_beside(other: XfrmPolicy, policy: XfrmPolicy) -> bool:
    """Both are for what the same two ends say to each other: :class:`ipsec_gw.hosts.Together` sees to them."""
    return other.of_ends and policy.of_ends and other.selector.networks == policy.selector.networks


def _carriable(policy: XfrmPolicy, kept: Mapping[TunnelId, str], of_devices: Set[TunnelId]) -> bool:
    """It is of a tunnel that an engine may have, now or once it is up, by a selector of its own: what the ends say to
    each other is not found by that.
    """
    return not policy.of_ends and any(
        template.mode is not Mode.TRANSPORT and key not in of_devices and not kept.get(key, "")
        for template in policy.templates
        for key in (tunnel_of(template),)
    )


def _takes_from_others(
    other: XfrmPolicy,
    lineage: Lineage,
    precedence: Precedence,
    kept: Mapping[TunnelId, str],
    of_devices: Set[TunnelId],
) -> bool:
    """Whether a third tunnel has packets of the exception: what is exempted from one tunnel is exempted from all."""
    return any(
        _carriable(third, kept, of_devices) and third.selector.meets(other.selector)
        for third in precedence.rivals(other, lineage.key)
        if third is not other and not _tunnels_of(third) & _tunnels_of(other)
    )


def _tunnels_of(policy: XfrmPolicy) -> set[TunnelId]:
    return {tunnel_of(template) for template in policy.templates}


def _told_apart(inner: Selector, outer: Selector) -> bool:
    """Whether an engine that looks for the longest prefix finds ``inner`` first, and for all of its packets."""
    return (
        not inner.narrowed
        and inner.networks != outer.networks
        and _inside(inner.source, outer.source)
        and _inside(inner.destination, outer.destination)
    )


def _can_be_excepted(other: XfrmPolicy, lineage: Lineage) -> bool:
    """An exception holds for all of the tunnel's policies, and a routing rule has to find its packets."""
    first = [p for p in lineage.policies if p.priority < other.priority and p.selector.meets(other.selector)]
    return not (other.bound or other.mark or other.if_id or why_not_routed(other.selector) or first)


def _covers(other: XfrmPolicy) -> str:
    return f"another policy ({other.selector}) covers part of its selector"


def why_not_routed(selector: Selector) -> str:
    """Why no routing rule, or no engine, can have a selector's packets alone; empty if they can."""
    if selector.narrowed and selector.source.version == _SIX:
        # Extension headers and fragments stand before them.
        return f"the selector {selector} is limited to a protocol, which is not looked for in IPv6"
    if selector.ported and selector.protocol not in PROTOCOLS_WITH_PORTS:
        return f"the selector {selector} is limited to messages that routing rules do not tell apart"
    if selector.source_port.range is None or selector.destination_port.range is None:
        return f"the selector {selector} has ports that are no range"
    return ""


def _inside(inner: IpNetwork, outer: IpNetwork) -> bool:
    return inner.version == outer.version and outer.prefixlen <= inner.prefixlen and inner.overlaps(outer)
