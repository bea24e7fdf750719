"""One rule of NAT64."""

from __future__ import annotations

from ipsec_gw.config.context import Context
from ipsec_gw.config.firewall import Nat64Shape
from ipsec_gw.config.pools import Pools
from ipsec_gw.config.positions import Path
from ipsec_gw.model.firewall import NAT64_LENGTHS, Nat64
from ipsec_gw.model.ids import IpNetwork


def nat64_rule(path: Path, shape: Nat64Shape, context: Context, pools: Pools) -> Nat64 | None:
    """The rule at ``path``; None if the report has an error."""
    zone = context.check_zone((*path, "from"), shape.from_zone)
    prefix = context.addresses.single((*path, "prefix"), shape.prefix)
    choice = shape.translate
    if choice is not None:
        place: Path = (*path, "translate", "pool")
        pool = pools.lookup(place, choice.pool)
        if pool is None:
            return None
        if pool.first.version != 4:
            context.report.add(place, f"pool {pool.name} is IPv6", "name a pool of IPv4: flows leave in IPv4")
            return None
        if pool.blocks is not None:
            message = f"pool {pool.name} has blocks of ports, which are for subscribers of IPv4"
            context.report.add(place, message, "name a pool without blocks")
            return None
    if prefix is None or not _check_prefix((*path, "prefix"), prefix, context) or not zone:
        return None
    return Nat64(shape.name, prefix, shape.from_zone, choice.pool if choice else None)


def _check_prefix(path: Path, prefix: IpNetwork, context: Context) -> bool:
    """An IPv4 address has its places behind prefixes of some lengths only (RFC 6052 2.2)."""
    *others, last = map(str, NAT64_LENGTHS)
    way_out = f"write a prefix of IPv6 with {', '.join(others)} or {last} bits"
    if prefix.version != 6:
        context.report.add(path, f"{prefix} is IPv4", way_out)
        return False
    if prefix.prefixlen not in NAT64_LENGTHS:
        context.report.add(path, f"{prefix} has {prefix.prefixlen} bits", way_out)
        return False
    if prefix.prefixlen == 96 and int(prefix.network_address) >> 56 & 0xFF:
        context.report.add(path, f"{prefix} has bits 64 to 71 set", "they must be zero (RFC 6052 2.2)")
        return False
    return True
