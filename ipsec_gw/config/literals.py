"""Addresses, prefixes and ranges as they are written in the file."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    collapse_addresses,
    ip_address,
    ip_network,
    summarize_address_range,
)

from ipsec_gw.config.problems import Refused
from ipsec_gw.model.ids import IpAddress, IpNetwork

_FORMS = 'write an address, a prefix ("192.0.2.0/24") or a range ("192.0.2.1-192.0.2.9")'
_MAPPED = IPv6Network("::ffff:0:0/96")


def is_literal(text: str) -> bool:
    """Was this meant as an address, a prefix or a range, rightly or wrongly written?"""
    head = text.strip().split("-")[0].split("/")[0]
    return ":" in head or head.replace(".", "").isdigit()


def prefixes_of(text: str) -> tuple[IpNetwork, ...]:
    """An address, a prefix or a range as the fewest prefixes that cover exactly it. Raises Refused."""
    if "-" in text:
        first, last = range_of(text)
        if isinstance(first, IPv4Address) and isinstance(last, IPv4Address):
            return tuple(summarize_address_range(first, last))
        if isinstance(first, IPv6Address) and isinstance(last, IPv6Address):
            return tuple(summarize_address_range(first, last))
    return (prefix_of(text),)


def prefix_of(text: str) -> IpNetwork:
    """An address or a prefix without host bits. Raises Refused."""
    host, slash, length = text.strip().partition("/")
    try:
        address = ip_address(host)
        if slash and not (length.isascii() and length.isdigit()):
            raise ValueError(length)
        prefix = ip_network(text.strip(), strict=False)
    except ValueError:
        raise Refused(f"{text!r} is no address", _FORMS) from None
    _check_plain(address)
    if prefix.network_address != address:
        raise Refused(f"{text} has host bits", f"write {prefix}, or {address} for the one host")
    return prefix


def range_of(text: str) -> tuple[IpAddress, IpAddress]:
    """First and last address of ``a-b``. Raises Refused."""
    first, last = (_address(part, text) for part in text.split("-", 1))
    if first.version != last.version:
        raise Refused(f"{text} mixes IPv4 and IPv6", "write both ends in one family")
    if int(first) > int(last):
        raise Refused(f"range {text} is reversed", f'write "{last}-{first}"')
    return first, last


def span_of_addresses(text: str) -> tuple[IpAddress, IpAddress]:
    """First and last address of a range, a prefix or one address. Raises Refused."""
    if "-" in text:
        return range_of(text)
    prefix = prefix_of(text)
    return prefix.network_address, prefix.broadcast_address


def collapsed(prefixes: Iterable[IpNetwork]) -> tuple[IpNetwork, ...]:
    """The same addresses in as few prefixes as can be: IPv4 before IPv6, each in order."""
    found = list(prefixes)
    four = collapse_addresses(prefix for prefix in found if isinstance(prefix, IPv4Network))
    six = collapse_addresses(prefix for prefix in found if isinstance(prefix, IPv6Network))
    return (*four, *six)


def without(wanted: tuple[IpNetwork, ...], unwanted: tuple[IpNetwork, ...]) -> tuple[IpNetwork, ...]:
    """The addresses of ``wanted`` (of none: all there are) that are not of ``unwanted``."""
    left: list[IpNetwork] = list(wanted) or [IPv4Network("0.0.0.0/0"), IPv6Network("::/0")]
    for network in unwanted:
        left = [part for whole in left for part in _minus(whole, network)]
    return collapsed(left)


def _minus(whole: IpNetwork, part: IpNetwork) -> Iterable[IpNetwork]:
    if isinstance(whole, IPv4Network) and isinstance(part, IPv4Network):
        return () if whole.subnet_of(part) else whole.address_exclude(part) if part.subnet_of(whole) else (whole,)
    if isinstance(whole, IPv6Network) and isinstance(part, IPv6Network):
        return () if whole.subnet_of(part) else whole.address_exclude(part) if part.subnet_of(whole) else (whole,)
    return (whole,)


def _address(part: str, whole: str) -> IpAddress:
    try:
        address = ip_address(part.strip())
    except ValueError:
        raise Refused(f"{whole!r} is no range of addresses", _FORMS) from None
    _check_plain(address)
    return address


def _check_plain(address: IpAddress) -> None:
    if isinstance(address, IPv6Address):
        if address.scope_id:
            raise Refused(f"{address} has a scope", f"leave %{address.scope_id} out: zones tell interfaces apart")
        if address in _MAPPED:
            raise Refused(f"{address} is an IPv4-mapped address", f"write {address.ipv4_mapped}")
