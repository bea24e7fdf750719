"""One rule of destination NAT, static NAT or NPTv6: a prefix becomes another one of the same length."""

from __future__ import annotations

from ipsec_gw.config.context import Context, check_families
from ipsec_gw.config.firewall import DestinationNatShape, Nptv6Shape, StaticNatShape
from ipsec_gw.config.ports import TCP, UDP, merged
from ipsec_gw.config.positions import Path
from ipsec_gw.config.problems import Report
from ipsec_gw.model.firewall import ANY_PORT, NPTV6_LONGEST, DestinationNat, Nptv6, Service, StaticNat
from ipsec_gw.model.ids import IpNetwork


def destination_rule(path: Path, shape: DestinationNatShape, context: Context) -> DestinationNat | None:
    """The rule at ``path``; None if the report has an error."""
    zone = context.check_zone((*path, "from"), shape.from_zone)
    destination = context.addresses.single((*path, "destination"), shape.destination)
    target = context.addresses.single((*path, "to"), shape.to)
    sources = context.addresses.lookup((*path, "source"), shape.source)
    services = _services(path, shape, context)
    port = services is not None and _check_to_port((*path, "to_port"), shape.to_port, services, context.report)
    if destination is None or target is None or sources is None or services is None:
        return None
    alike = _check_alike((*path, "to"), destination, target, context.report)
    families = check_families(context.report, path, sources, (destination,), services)
    if not (zone and port and alike and families):
        return None
    return DestinationNat(shape.name, destination, target, shape.from_zone, sources, services, shape.to_port)


def static_rule(path: Path, shape: StaticNatShape, context: Context) -> StaticNat | None:
    """The rule at ``path``; None if the report has an error."""
    zone = context.check_zone((*path, "zone"), shape.zone)
    external = context.addresses.single((*path, "external"), shape.external)
    internal = context.addresses.single((*path, "internal"), shape.internal)
    if external is None or internal is None:
        return None
    if not _check_alike((*path, "internal"), external, internal, context.report) or not zone:
        return None
    return StaticNat(shape.name, shape.zone, external, internal)


def nptv6_rule(path: Path, shape: Nptv6Shape, context: Context) -> Nptv6 | None:
    """The rule at ``path``; None if the report has an error."""
    prefixes = static_rule(path, shape, context)
    if prefixes is None:
        return None
    network = prefixes.external
    if network.version != 6:
        context.report.add((*path, "external"), f"{network} is IPv4", "NPTv6 is for IPv6: use [[nat.static]] for IPv4")
        return None
    if network.prefixlen > NPTV6_LONGEST:
        message = f"{network} is longer than {NPTV6_LONGEST} bits"
        way_out = f"write prefixes of at most /{NPTV6_LONGEST}, or use [[nat.static]]"
        context.report.add((*path, "external"), message, way_out)
        return None
    return Nptv6(shape.name, shape.zone, network, prefixes.internal)


def _check_alike(path: Path, arrives: IpNetwork, becomes: IpNetwork, report: Report) -> bool:
    """Each address has its counterpart at the same place of the other prefix."""
    if arrives.version != becomes.version:
        message = f"{arrives} is IPv{arrives.version}, {becomes} is IPv{becomes.version}"
        report.add(path, message, "NAT stays within a family: write addresses of one")
        return False
    if arrives.prefixlen != becomes.prefixlen:
        message = f"the prefix lengths of {arrives} and {becomes} differ"
        report.add(path, message, f"write a prefix with /{arrives.prefixlen}")
        return False
    return True


def _services(path: Path, shape: DestinationNatShape, context: Context) -> tuple[Service, ...] | None:
    """Of ``application``, or of ``protocol`` and ``port``."""
    own = shape.model_fields_set & {"protocol", "port"}
    if not own:
        return context.applications.lookup((*path, "application"), shape.application)
    if shape.application is not None:
        message = f"application stands beside {' and '.join(sorted(own))}"
        context.report.add((*path, "application"), message, "give an application, or protocol and port")
        return None
    if shape.port is not None and shape.protocol not in (TCP, UDP):
        context.report.add((*path, "port"), "ports are matched of tcp and udp only", "set protocol to tcp or udp")
        return None
    spans = merged(shape.port) if shape.port is not None else (ANY_PORT,)
    return tuple(Service(shape.protocol, span) for span in spans)


def _check_to_port(path: Path, to_port: int | None, services: tuple[Service, ...], report: Report) -> bool:
    """The first port of a service becomes ``to_port`` and the others follow: one range for each protocol, and room."""
    if to_port is None:
        return True
    if any(service.protocol not in (TCP, UDP) for service in services):
        report.add(path, "only tcp and udp have ports", "match them by application, or by protocol and port")
        return False
    spans = {(service.protocol, service.destination) for service in services}
    if len(spans) > len({protocol for protocol, _span in spans}):
        report.add(path, "several ranges of ports would become the same", "make a rule for each range")
        return False
    for _protocol, (low, high) in sorted(spans, key=str):
        if to_port + high - low > 65535:
            message = f"ports {low}-{high} would become {to_port}-{to_port + high - low}"
            report.add(path, message, "match fewer ports, or write a lower to_port")
            return False
    return True
