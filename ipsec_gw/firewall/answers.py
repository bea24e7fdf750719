"""Which addresses this machine answers for on its links (ARP, neighbour discovery) although it does not hold them.

NAT owns the addresses of pools, of destination NAT and the outer ones of static NAT. Where they lie in a prefix that is
connected to an interface of the zone they belong to, neighbours ask for them on the link. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, collapse_addresses, ip_network, summarize_address_range
from typing import cast

from ipsec_gw.model.firewall import Nptv6, Pool, Ruleset, StaticNat, Translation
from ipsec_gw.model.ids import IpAddress, IpNetwork

MAX_IPV6_NEIGHBOURS = 1024
"""Addresses of IPv6 answered for on one interface: each is an entry, and may be a multicast group, of its own."""


@dataclass(frozen=True, slots=True)
class Owned:
    """Addresses that are NAT's towards a zone; None: towards every zone."""

    zone: str | None
    network: IpNetwork


@dataclass(frozen=True, slots=True)
class Answer:
    """An interface and addresses that are answered for there."""

    interface: str
    network: IpNetwork


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Addresses on a link that are not answered for, and why."""

    interface: str
    network: IpNetwork
    reason: str


@dataclass(frozen=True, slots=True)
class Answers:
    """What is answered for, without overlaps, and what is not."""

    given: frozenset[Answer] = frozenset()
    left_out: tuple[LeftOut, ...] = ()


def owned(ruleset: Ruleset) -> frozenset[Owned]:
    """The addresses that the NAT rules own: pools that a rule uses, destinations, outer ones of static NAT and NPTv6.

    Addresses that a rule leads to are hosts' own and not among them, also where another rule translates them.
    """
    prefixes: tuple[StaticNat | Nptv6, ...] = (*ruleset.static_nat, *ruleset.nptv6)
    found = {
        *_pooled(ruleset),
        *(Owned(rule.from_zone, rule.destination) for rule in ruleset.destination_nat),
        *(Owned(rule.zone, rule.external) for rule in prefixes),
    }
    hosts = [rule.to for rule in ruleset.destination_nat] + [rule.internal for rule in prefixes]
    return frozenset(Owned(one.zone, network) for one in found for network in _without(one.network, hosts))


def answers(ruleset: Ruleset, connected: Mapping[str, frozenset[IpNetwork]], taken: frozenset[IpAddress]) -> Answers:
    """What to answer for on the interfaces of zones.

    ``connected`` are the on-link prefixes of each interface; ``taken`` addresses that are somebody's: this machine's
    own and its next hops. Never answered for: those, the addresses of a network itself (network, broadcast,
    subnet-router anycast), a whole link, and more than MAX_IPV6_NEIGHBOURS of IPv6 on an interface.
    """
    ours = owned(ruleset)
    given: set[Answer] = set()
    left_out: list[LeftOut] = []
    for zone in ruleset.zones:
        for interface in zone.interfaces:
            links = connected.get(interface, frozenset())
            mine = [one.network for one in ours if one.zone in (None, zone.name)]
            whole = {link for link in links for network in mine if link.num_addresses > 1 and _covers(network, link)}
            left_out += [LeftOut(interface, link, _WHOLE_LINK) for link in sorted(whole, key=str)]
            on_link = [network for network in _collapse(mine) for link in links - whole if _covers(link, network)]
            kept, many = _few(_free(on_link, links, taken))
            given.update(Answer(interface, network) for network in kept)
            left_out += [LeftOut(interface, network, _TOO_MANY) for network in many]
    return Answers(frozenset(given), tuple(left_out))


_WHOLE_LINK = "a rule names the whole network of the link, hosts and routers included"
_TOO_MANY = f"an interface answers for {MAX_IPV6_NEIGHBOURS} addresses of IPv6 at most"


def _pooled(ruleset: Ruleset) -> Iterator[Owned]:
    pools = {pool.name: pool for pool in ruleset.pools}
    sources = [(rule.pool, rule.to_zone) for rule in ruleset.source_nat if rule.translation is Translation.POOL]
    for name, zone in (*sources, *((rule.pool, None) for rule in ruleset.nat64)):
        if name is None:
            continue
        pool = pools[name]
        for used in (pool, *([pools[pool.overflow]] if pool.overflow else [])):
            for network in _networks(used):
                yield Owned(zone, network)


def _networks(pool: Pool) -> Iterator[IpNetwork]:
    return cast(Iterator[IpNetwork], summarize_address_range(pool.first, pool.last))


def _covers(outer: IpNetwork, inner: IpNetwork) -> bool:
    return outer.version == inner.version and inner.subnet_of(outer)  # type: ignore[arg-type]


def _without(network: IpNetwork, holes: Iterable[IpNetwork]) -> list[IpNetwork]:
    """What is left of a network."""
    left = [network]
    for hole in holes:
        left = [part for whole in left for part in _minus(whole, hole)]
    return left


def _minus(network: IpNetwork, hole: IpNetwork) -> Iterable[IpNetwork]:
    if _covers(hole, network):
        return ()
    if not _covers(network, hole):
        return (network,)
    return cast(Iterable[IpNetwork], network.address_exclude(hole))  # type: ignore[arg-type]


def _free(networks: Iterable[IpNetwork], links: Iterable[IpNetwork], taken: frozenset[IpAddress]) -> list[IpNetwork]:
    """Without what is somebody's or the link's own."""
    holes = [ip_network(address) for link in links for address in _special(link)]
    holes += [ip_network(address) for address in sorted(taken, key=str)]
    return _collapse(part for network in networks for part in _without(network, holes))


def _special(link: IpNetwork) -> tuple[IpAddress, ...]:
    if link.prefixlen >= link.max_prefixlen - 1:  # RFC 3021, RFC 6164
        return ()
    return (link.network_address,) if link.version == 6 else (link.network_address, link.broadcast_address)


def _collapse(networks: Iterable[IpNetwork]) -> list[IpNetwork]:
    found = list(networks)
    return [
        *collapse_addresses(network for network in found if isinstance(network, IPv4Network)),
        *collapse_addresses(network for network in found if isinstance(network, IPv6Network)),
    ]


def _few(networks: Iterable[IpNetwork]) -> tuple[list[IpNetwork], list[IpNetwork]]:
    """All of IPv4, and the smaller networks of IPv6 as far as there is room; then the rest."""
    room = MAX_IPV6_NEIGHBOURS
    kept: list[IpNetwork] = []
    many: list[IpNetwork] = []
    for network in sorted(networks, key=lambda one: (one.version, one.num_addresses, one.network_address)):
        size = network.num_addresses if network.version == 6 else 0
        (kept if size <= room else many).append(network)
        room -= size if size <= room else 0
    return kept, many
