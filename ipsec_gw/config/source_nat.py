"""One rule of source NAT."""

from __future__ import annotations

from ipsec_gw.config.context import Context, address_families, check_families, service_families
from ipsec_gw.config.firewall import PoolChoice, SourceNatShape
from ipsec_gw.config.pools import Pools
from ipsec_gw.config.positions import Path
from ipsec_gw.model.firewall import Pool, SourceNat, Translation
from ipsec_gw.model.ids import IpNetwork


def source_rule(path: Path, shape: SourceNatShape, context: Context, pools: Pools) -> SourceNat | None:
    """The rule at ``path``; None if the report has an error."""
    zones = context.check_zone((*path, "from"), shape.from_zone)
    zones &= context.check_zone((*path, "to"), shape.to_zone)
    choice = shape.translate
    pool_path: Path = (*path, "translate", "pool")
    pool = pools.lookup(pool_path, choice.pool) if isinstance(choice, PoolChoice) else None
    sources = context.addresses.lookup((*path, "source"), shape.source)
    destinations = context.addresses.lookup((*path, "destination"), shape.destination)
    services = context.applications.lookup((*path, "application"), shape.application)
    if sources is None or destinations is None or services is None:
        return None
    if not check_families(context.report, path, sources, destinations, services):
        return None
    families = address_families(sources) & address_families(destinations) & service_families(services)
    if isinstance(choice, PoolChoice):
        if (
            pool is None
            or not _check_family(pool_path, pool, families, context)
            or not _check_subscribers(path, pool, sources, context)
        ):
            return None
    elif choice == "interface" and not _check_interfaces(path, shape.to_zone, context):
        return None
    if not zones:
        return None
    return SourceNat(
        name=shape.name,
        translation=Translation.POOL if isinstance(choice, PoolChoice) else Translation(choice),
        from_zone=shape.from_zone,
        to_zone=shape.to_zone,
        sources=sources,
        destinations=destinations,
        services=services,
        pool=choice.pool if isinstance(choice, PoolChoice) else None,
    )


def _check_family(path: Path, pool: Pool, families: frozenset[int], context: Context) -> bool:
    """A pool translates packets of its own family."""
    version = pool.first.version
    if version in families:
        return True
    message = f"translates nothing: pool {pool.name} is IPv{version}, what the rule matches is IPv{10 - version}"
    context.report.add(path, message, f"name a pool of IPv{10 - version} or match IPv{version}")
    return False


def _check_subscribers(path: Path, pool: Pool, sources: tuple[IpNetwork, ...], context: Context) -> bool:
    """A pool with blocks translates its subscribers alone: others would be dropped."""
    if pool.blocks is None:
        return True
    ours = pool.blocks.subscribers
    if sources and all(source.version == 4 and source.subnet_of(ours) for source in sources):  # type: ignore[arg-type]
        return True
    message = f"pool {pool.name} has blocks for {ours} only"
    context.report.add((*path, "source"), message, f'write source = "{ours}", or a part of it')
    return False


def _check_interfaces(path: Path, name: str | None, context: Context) -> bool:
    """Interface NAT takes the address of the interface that the flow leaves by, which is another zone's for tunnels."""
    if any(zone.name == name and not zone.interfaces and not zone.tunnels for zone in context.zones):
        message = f"translates nothing: zone {name} has no interfaces"
        context.report.add((*path, "translate"), message, f"add interfaces to [zones.{name}]")
        return False
    return True
