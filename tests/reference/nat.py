"""What a new flow becomes: destination NAT, static NAT, source NAT and its choice of addresses and ports."""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_network

from ipsec_gw.model.firewall import Nat64, Pool, PoolEngine, Ruleset, SourceNat, Translation
from tests.reference.fib import key_bytes
from tests.reference.nat64 import extract
from tests.reference.packets import ICMP6, TCP, UDP, Key, is_martian
from tests.reference.rules import Asked, Ids, Port, Prefix, matches_any, matching_service
from xdp_steer.flow_layout import FlowKeyLeaf, flow_hash, source_hash
from xdp_steer.layout import AddressLeaf
from xdp_steer.reasons import Reason

TRIES = 16
STEP = 40503
WORD = 0xFFFFFFFF
LINK_LOCAL, WELL_KNOWN = ip_network("fe80::/10"), ip_network("64:ff9b::/96")
NOT_GLOBAL = tuple(
    ip_network(text)
    for text in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
        *("192.0.0.0/24", "192.0.2.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24"),
        "240.0.0.0/4",
    )
)
"""What the well-known prefix is not for (RFC 6052, 3.1; RFC 6890)."""
ALL_ONES = 0xFFFF
INTERFACE_PORTS = (1024, 65535)


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a flow really goes. ``rule`` 0: nobody translated it. ``nat64``: into IPv4, by that rule."""

    address: bytes
    port: int
    rule: int = 0
    nat64: Nat64 | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """One candidate for what a flow's source becomes."""

    address: bytes
    port: int


@dataclass(frozen=True, slots=True)
class SourceChoice:
    """What source NAT does: ``candidates`` in the order of trial. ``translates``: a rule, and not one that says off.
    ``tag`` is that of a pool that has addresses of VPP's, 0: none. ``vpp``: VPP translates.
    """

    candidates: tuple[Source, ...]
    rule: int = 0
    translates: bool = False
    tag: int = 0
    vpp: bool = False


class NoAddress(Exception):
    """Interface NAT, and the interface has no address of the family."""


class NotForNat64(Exception):
    """A flow that NAT64 does not translate."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.name)
        self.reason = reason


class Unmappable(Exception):
    """NPTv6, and no word of the address can take up the difference of the prefixes."""


def destination_nat(ruleset: Ruleset, ids: Ids, from_zone: str, asked: Asked, dport: int) -> Destination:
    """The first rule that matches, then static NAT, NPTv6, NAT64. Raises Unmappable and NotForNat64."""
    for rule in ruleset.destination_nat:
        prefix = Prefix.of(rule.destination)
        if rule.from_zone not in (None, from_zone) or not prefix.holds(asked.dst):
            continue
        service = matching_service(rule.services, asked)
        if service is None or not matches_any(rule.sources, asked.src):
            continue
        port = dport
        if rule.to_port is not None and asked.protocol in (TCP, UDP):
            port = (rule.to_port + dport - service.destination[0]) & 0xFFFF
        address = prefix.translate(asked.dst, Prefix.of(rule.to))
        return Destination(address, port, ids.rule("destination-nat", rule.name))
    for static in ruleset.static_nat:
        external = Prefix.of(static.external)
        if static.zone == from_zone and external.holds(asked.dst):
            address = external.translate(asked.dst, Prefix.of(static.internal))
            return Destination(address, dport, ids.rule("static-nat", static.name))
    for nptv6 in ruleset.nptv6:
        external = Prefix.of(nptv6.external)
        if nptv6.zone == from_zone and external.holds(asked.dst):
            address = neutral(asked.dst, external, Prefix.of(nptv6.internal))
            return Destination(address, dport, ids.rule("nptv6", nptv6.name))
    for nat64 in ruleset.nat64:
        prefix = Prefix.of(nat64.prefix)
        if nat64.from_zone in (None, from_zone) and prefix.holds(asked.dst):
            return _into_ipv4(nat64, prefix, asked, dport, ids.rule("nat64", nat64.name))
    return Destination(asked.dst, dport)


def _into_ipv4(nat64: Nat64, prefix: Prefix, asked: Asked, dport: int, rule: int) -> Destination:
    address = extract(asked.dst, prefix.bits)
    private = any(Prefix.of(network).holds(address) for network in NOT_GLOBAL)
    if prefix.holds(asked.src) or Prefix.of(LINK_LOCAL).holds(asked.src):
        raise NotForNat64(Reason.NAT64_ADDRESS)
    if nat64.prefix == WELL_KNOWN and private:
        raise NotForNat64(Reason.NAT64_ADDRESS)
    if asked.protocol not in (TCP, UDP, ICMP6):
        raise NotForNat64(Reason.NAT64_PROTOCOL)
    if is_martian(address):
        raise NotForNat64(Reason.NAT64_ADDRESS)
    return Destination(address, dport, rule, nat64)


def neutral(address: bytes, prefix: Prefix, to: Prefix) -> bytes:
    """RFC 6296, 3.4 to 3.7: the address with another prefix and the same sum of 16-bit words. Raises Unmappable."""
    words = list(struct.unpack("!8H", prefix.translate(address, to)))
    candidates = [3] if prefix.bits <= 48 else [4, 5, 6, 7]
    chosen = next((word for word in candidates if words[word] != ALL_ONES), None)
    if chosen is None:
        raise Unmappable
    for amount in (*_words(prefix), *(~word & ALL_ONES for word in _words(to))):
        total = words[chosen] + amount
        words[chosen] = total - ALL_ONES if total > ALL_ONES else total
    if words[chosen] == ALL_ONES:
        words[chosen] = 0
    return struct.pack("!8H", *words)


def _words(prefix: Prefix) -> tuple[int, ...]:
    return struct.unpack("!8H", prefix.first.to_bytes(16))


def nat64_source(ruleset: Ruleset, nat64: Nat64, key: Key, has_ports: bool, egress: Port, seed: int) -> SourceChoice:
    """Of a flow into IPv4. Raises NoAddress."""
    if nat64.pool is not None:
        return SourceChoice(tuple(_from_pools(ruleset, nat64.pool, key, has_ports, seed)), 0, True)
    if egress.addr4 == bytes(16):
        raise NoAddress
    candidates = (Source(egress.addr4, port) for port in ports(key, INTERFACE_PORTS, has_ports, seed))
    return SourceChoice(tuple(candidates), 0, True)


def source_nat(
    ruleset: Ruleset,
    ids: Ids,
    zones: tuple[str, str],
    asked: Asked,
    original: Key,
    has_ports: bool,
    egress: Port,
    seed: int,
    *,
    vpp: bool = False,
    at_times: bool = False,
) -> SourceChoice:
    """``vpp``: VPP translates such a flow, if a pool of its own is chosen; ``at_times``: also one that is so at times.

    ``asked`` has the original source and the translated destination. Raises NoAddress and Unmappable."""
    from_zone, to_zone = zones
    for static in ruleset.static_nat:
        internal = Prefix.of(static.internal)
        if static.zone == to_zone and internal.holds(asked.src):
            address = internal.translate(asked.src, Prefix.of(static.external))
            return SourceChoice((Source(address, original.sport),), ids.rule("static-nat", static.name), True)
    for nptv6 in ruleset.nptv6:
        internal = Prefix.of(nptv6.internal)
        if nptv6.zone == to_zone and internal.holds(asked.src):
            address = neutral(asked.src, internal, Prefix.of(nptv6.external))
            return SourceChoice((Source(address, original.sport),), ids.rule("nptv6", nptv6.name), True)
    for rule in ruleset.source_nat:
        if not _applies(ruleset, rule, from_zone, to_zone, asked):
            continue
        number = ids.rule("source-nat", rule.name)
        if rule.translation is Translation.OFF:
            return SourceChoice((Source(original.src, original.sport),), number)
        if rule.translation is Translation.INTERFACE:
            address = egress.addr4 if asked.family == 4 else egress.addr6
            if address == bytes(16):
                raise NoAddress
            candidates = (Source(address, port) for port in ports(original, INTERFACE_PORTS, has_ports, seed))
            return SourceChoice(tuple(candidates), number, True)
        return _of_pool(ruleset, rule, number, original, has_ports, seed, vpp=vpp, at_times=at_times)
    return SourceChoice((Source(original.src, original.sport),))


def _of_pool(
    ruleset: Ruleset, rule: SourceNat, number: int, key: Key, has_ports: bool, seed: int, *, vpp: bool, at_times: bool
) -> SourceChoice:
    tag = 0
    if _pool(ruleset, rule.pool).engine is not PoolEngine.XDP:
        tag = 1 + [pool.name for pool in ruleset.pools].index(str(rule.pool))
    if vpp and tag and (at_times or _pool(ruleset, rule.pool).engine is PoolEngine.VPP):
        return SourceChoice((Source(key.src, key.sport),), number, tag=tag, vpp=True)
    return SourceChoice(tuple(_from_pools(ruleset, rule.pool, key, has_ports, seed)), number, True, tag)


def _applies(ruleset: Ruleset, rule: SourceNat, from_zone: str, to_zone: str, asked: Asked) -> bool:
    if rule.from_zone not in (None, from_zone) or rule.to_zone not in (None, to_zone):
        return False
    if rule.translation is Translation.POOL and _pool(ruleset, rule.pool).first.version != asked.family:
        return False
    return (
        matches_any(rule.sources, asked.src)
        and matches_any(rule.destinations, asked.dst)
        and matching_service(rule.services, asked) is not None
    )


def _pool(ruleset: Ruleset, name: str | None) -> Pool:
    return next(pool for pool in ruleset.pools if pool.name == name)


def _from_pools(ruleset: Ruleset, name: str | None, key: Key, has_ports: bool, seed: int) -> Iterator[Source]:
    """Of the pool, then of the one that it overflows into (whose own overflow nobody asks)."""
    pool = _pool(ruleset, name)
    if pool.blocks is not None:
        yield from _from_block(pool, key, has_ports, seed)
        return
    for each in (pool, *([_pool(ruleset, pool.overflow)] if pool.overflow else [])):
        address = pool_address(each, key, seed)
        for port in ports(key, each.ports, has_ports, seed):
            yield Source(address, port)


def _from_block(pool: Pool, key: Key, has_ports: bool, seed: int) -> Iterator[Source]:
    """Of the ports that are the subscriber's own; none if it is no subscriber."""
    assert pool.blocks is not None
    number = int.from_bytes(key.src[12:]) - int(pool.blocks.subscribers.network_address)
    of_an_address = (pool.ports[1] - pool.ports[0] + 1) // pool.blocks.size
    if number < 0 or not of_an_address or number // of_an_address > int(pool.last) - int(pool.first):
        return
    low = pool.ports[0] + number % of_an_address * pool.blocks.size
    for port in ports(key, (low, low + pool.blocks.size - 1), has_ports, seed):
        yield Source(key_bytes(pool.first + number // of_an_address), port)


def pool_address(pool: Pool, key: Key, seed: int) -> bytes:
    """Which address of a pool a flow gets."""
    first, last = pool.of_xdp
    addresses = int(last) - int(first) + 1
    index = (hash_of_source(key.src, seed) if pool.persistent else hash_of(key, seed)) % addresses
    return key_bytes(first + index)


def ports(key: Key, span: tuple[int, int], has_ports: bool, seed: int) -> tuple[int, ...]:
    """The ports to try, at most sixteen: the flow's own if it lies in the range, then those of the hash."""
    if not has_ports:
        return (0,)
    low, high = span
    first = hash_of(key, seed)
    hashed = [low + ((first + i * STEP) & WORD) % (high - low + 1) for i in range(TRIES)]
    if low <= key.sport <= high:
        hashed = [key.sport, *hashed[: TRIES - 1]]
    return tuple(hashed)


def hash_of(key: Key, seed: int) -> int:
    """flow_layout.flow_hash of a key."""
    leaf = FlowKeyLeaf(
        saddr=_leaf(key.src),
        daddr=_leaf(key.dst),
        sport=socket.htons(key.sport),
        dport=socket.htons(key.dport),
        protocol=key.protocol,
    )
    return flow_hash(leaf, seed)


def hash_of_source(address: bytes, seed: int) -> int:
    return source_hash(_leaf(address), seed)


def _leaf(address: bytes) -> AddressLeaf:
    return AddressLeaf((ctypes.c_uint32 * 4).from_buffer_copy(address))
