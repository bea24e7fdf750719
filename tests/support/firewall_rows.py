"""What the datapath does with compiled rows, in Python: classes, the AND of their bits, the first bit set."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from ipaddress import IPv6Address

from ipsec_gw.model.ids import IpAddress
from xdp_steer.compile.rows import PrefixRow, RuleRow, Segments, TableRows
from xdp_steer.flow_layout import MAX_ZONES, Dimension, ServiceKind, TableAny

KINDS = {6: ServiceKind.TCP, 17: ServiceKind.UDP, 1: ServiceKind.ICMP, 58: ServiceKind.ICMP6}
SOURCE_KINDS = {6: ServiceKind.TCP_SOURCE, 17: ServiceKind.UDP_SOURCE}


@dataclass(frozen=True)
class Flow:
    """What rules are matched by; ``code`` is the destination port, or type << 8 | code of ICMP."""

    src: IpAddress
    dst: IpAddress
    protocol: int
    code: int = 0
    sport: int = 0


def first_match(table: TableRows, from_zone: int, to_zone: int, flow: Flow) -> RuleRow | None:
    bits = table.bits[Dimension.ZONES][from_zone * MAX_ZONES + to_zone]
    kind = KINDS.get(flow.protocol, ServiceKind.OTHER)
    index = flow.protocol if kind is ServiceKind.OTHER else flow.code
    bits &= table.bits[Dimension.SERVICE][class_of(table.services[kind], index)]
    if not table.unasked & TableAny.SOURCE:
        bits &= table.bits[Dimension.SOURCE][longest_prefix(table.sources, flow.src)]
    if not table.unasked & TableAny.DESTINATION:
        bits &= table.bits[Dimension.DESTINATION][longest_prefix(table.destinations, flow.dst)]
    if not table.unasked & TableAny.SOURCE_PORT and flow.protocol in SOURCE_KINDS:
        segments = table.services[SOURCE_KINDS[flow.protocol]]
        bits &= table.bits[Dimension.SOURCE_PORT][class_of(segments, flow.sport)]
    first = (bits & -bits).bit_length() - 1
    return table.rules[first] if bits else None


def class_of(segments: Segments, index: int) -> int:
    return segments[bisect_right(segments, (index, 1 << 32)) - 1][1]


def longest_prefix(rows: tuple[PrefixRow, ...], address: IpAddress) -> int:
    """As the trie sees it: 128 bits, IPv4 v4-mapped."""
    wanted, found, length = mapped(address), 0, -1
    for row in rows:
        bits = row.network.prefixlen + (96 if row.network.version == 4 else 0)
        shift = 128 - bits
        if bits > length and wanted >> shift == mapped(row.network.network_address) >> shift:
            found, length = row.class_id, bits
    return found


def mapped(address: IpAddress) -> int:
    return int(address) if isinstance(address, IPv6Address) else 0xFFFF << 32 | int(address)
