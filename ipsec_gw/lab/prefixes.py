"""What addresses become where a whole prefix is translated, as the RFCs say it: the lab's own reckoning. Pure."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, IPv6Network

WORD = 0xFFFF
HOST_BITS = 80
"""What a /48 leaves: a word for the subnet, and the interface identifier."""


def embedded(prefix: IPv6Network, address: IPv4Address) -> IPv6Address:
    """An IPv4 address behind a /96 (RFC 6052 2.2)."""
    if prefix.prefixlen != 96:
        raise ValueError(f"{prefix} is no /96")
    return IPv6Address(int(prefix.network_address) | int(address))


def nptv6(address: IPv6Address, internal: IPv6Network, external: IPv6Network) -> IPv6Address:
    """An address in ``internal`` as it is in ``external``, both /48 (RFC 6296 3.1, 3.4): the word behind the prefix
    takes up what the prefixes differ by in their one's complement sums.
    """
    if (internal.prefixlen, external.prefixlen) != (48, 48) or address not in internal:
        raise ValueError(f"{address} does not go from {internal} to {external}")
    host = int(address) & ((1 << HOST_BITS) - 1)
    subnet, identifier = host >> 64, host & ((1 << 64) - 1)
    subnet = (subnet + _sum(internal) - _sum(external)) % WORD
    return IPv6Address(int(external.network_address) | subnet << 64 | identifier)


def _sum(network: IPv6Network) -> int:
    packed = network.network_address.packed
    return sum(int.from_bytes(packed[place : place + 2], "big") for place in range(0, 16, 2)) % WORD
