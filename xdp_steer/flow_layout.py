"""The maps of the firewall: sizes, numbers shared with C, and ctypes mirrors of ``bpf/flow_maps.h``."""

from __future__ import annotations

import ctypes
from enum import IntEnum, IntFlag
from typing import Any

from xdp_steer import libbpf
from xdp_steer.layout import AddressLeaf, MapSpec, NothingLeaf, VerdictCountLeaf

MAX_TABLES = 4
MAX_ROWS = 2048
"""Rule rows of a table: a rule takes one per application term."""
MAX_WORDS = MAX_ROWS // 64
MAX_CLASSES = 4096
"""Classes of one dimension; zone pairs are ``from * 64 + to``."""
MAX_ZONES = 64
MAX_DIMENSIONS = 5
MAX_BANKS = 2
MAX_PORTS = 1024
MAX_NEAR_PORTS = 1024
"""Places of ports that are found without a hash, a power of two."""
MAX_POOLS = 64
MAX_TAGS = MAX_POOLS + 1
"""Tags of pools, their numbers from 1 on; 0 is none."""
MAX_PREFIXES = 65536
MAX_RULES = 8192
"""Rules with counters, over all tables. A rule keeps its number as long as it keeps its name."""
MAX_FRAGMENTS = 16384
MAX_TUNNEL_NETS = 65536
MAX_TUNNELS = 131_072
"""Policies over all lists of far networks."""
MAX_TUNNELS_OF_NET = 16
"""Policies that are tried for a far network."""
TUNNEL_NET_BITS = 160
TUNNEL_PORT_MAC = bytes.fromhex("02697073656d")
"""Ethernet address of the tunnels' port; the zone is in the last two octets of the source address."""
TUNNEL_PORT_ZONE_AT = 10
"""Offset of the zone in a frame to the tunnels' port."""
TRANSLATOR_MAC, TRANSLATOR_PORT_MAC = bytes.fromhex("02697073766e"), bytes.fromhex("026970736b6e")
"""Ethernet addresses of the pair of NAT: VPP's end, and the kernel's."""
TRANSLATOR_OUTSIDE = 100
"""VLAN tag on that pair of what is outside; each pool of VPP has one of its own, from 1 on."""
POOL_AUTO = 0x100
"""Beside the tag in ``pool.translator``: VPP has new flows only while ``pool_engines`` says so."""
TRANSLATOR_SIDE = 2 * MAX_TABLES
"""``prefix_key.side`` of the addresses that are VPP's; their class is the tag of their pool."""
TRANSLATOR_MTU = 1500
"""Of that pair, in bytes of IP; two bytes less than VPP's small buffers hold with their headers would do as well."""
MAX_SESSIONS = 2 * 262_144
"""Entries of the session table unless configured otherwise: one for each direction."""
MAX_TIMEOUTS = 8
SERVICE_CHUNK = 256
EVENT_RING_BYTES = 1 << 20
NAT_TRIES = 16
NAT_STEP = 40503
FRAGMENT_SECONDS = 30


class Table(IntEnum):
    """Rule tables."""

    POLICY = 0
    SNAT = 1
    DNAT = 2
    FILTER = 3
    """Terms of filters; the number of the filter stands in place of a zone pair."""


class Dimension(IntEnum):
    """What a row of a table is matched by."""

    ZONES = 0
    SOURCE = 1
    DESTINATION = 2
    SERVICE = 3
    SOURCE_PORT = 4


class ServiceKind(IntEnum):
    """Rows of ``services``: 65536 classes each, in chunks of 256."""

    TCP = 0
    UDP = 1
    ICMP = 2
    """Indexed by ``type << 8 | code``."""
    ICMP6 = 3
    OTHER = 4
    """Indexed by protocol."""
    TCP_SOURCE = 5
    UDP_SOURCE = 6


MAX_SERVICE_KINDS = 8


class TableAny(IntFlag):
    """No row of the table asks for that dimension."""

    SOURCE = 1
    DESTINATION = 2
    SOURCE_PORT = 4


class PolicyAction(IntEnum):
    """Of a policy row."""

    PERMIT = 1
    DENY = 2
    REJECT = 3


class Nat(IntEnum):
    """Of a translation row."""

    OFF = 1
    INTERFACE = 2
    POOL = 3
    PREFIX = 4
    NPTV6 = 5
    NAT64 = 6
    REFUSE = 7
    """Dropped: an address that NAT64 may not translate."""


class RowFlag(IntFlag):
    """Of a rule row."""

    LOG_OPEN = 1
    LOG_CLOSE = 2
    INTERFACE = 4
    """Of NAT64: the address of the egress port, and no pool."""


class PortFlag(IntFlag):
    """Of a port."""

    SYN_CHECK = 1
    TCP_RESET = 2
    PARTIAL = 4
    """Packets may come in with an unfinished L4 checksum (veth, tap, generic XDP)."""
    REDIRECT = 8
    """The interface takes redirected frames."""
    TUNNEL = 16
    """Clear packets of IPsec tunnels come and go by it."""
    DECRYPTED = 32
    """The end of the source address names the row, by zone (0: this one)."""
    XFRM = 64
    """An XFRM interface: the kernel has held its packets against policies of its own."""
    SCREEN = 128
    """Its zone has screens for what arrives."""
    SCREEN_UDP = 256
    """... which count UDP."""
    SCREEN_ICMP = 512
    """... which count ICMP."""
    SCREEN_NEW = 1024
    """Its zone has screens for what belongs to no session."""
    SESSION_LIMIT = 2048
    """Its zone limits sessions."""
    FILTER = 4096
    """A filter looks at what arrives."""
    HOST_FILTER = 8192
    """A filter looks at what is for this machine."""
    TRANSLATED = 16384
    """VPP's NAT sends by it."""
    POOLS = 32768
    """Its zone is the one that flows of a pool of VPP lead to."""


class TunnelSide(IntEnum):
    """Direction of policies."""

    OUT = 0
    IN = 1


class TunnelAction(IntEnum):
    """What a policy asks for."""

    PROTECT = 1
    CLEAR = 2


class SessionFlag(IntFlag):
    """Of one direction of a session."""

    REVERSE = 1
    NAT = 2
    LOG_CLOSE = 4
    TO_SELF = 8
    ACKED = 16
    FIN = 32
    NAT64 = 64
    """Its packets become such of the other family."""
    TRANSLATOR = 128
    """VPP translates its packets."""


class State(IntEnum):
    """Of a session. Other protocols than TCP are ESTABLISHED from the start."""

    OPENING = 1
    ANSWERED = 2
    ESTABLISHED = 3
    CLOSING = 4
    TIME_WAIT = 5
    CLOSED = 6


class Timeout(IntEnum):
    """Indices of ``ruleset.timeouts``."""

    TCP_ESTABLISHED = 0
    TCP_OPENING = 1
    TCP_CLOSING = 2
    TCP_TIME_WAIT = 3
    TCP_CLOSED = 4
    UDP = 5
    ICMP = 6
    OTHER = 7


class EventKind(IntEnum):
    """Of an event."""

    OPEN = 1
    DENY = 2
    CLOSE = 3
    """A session that the datapath replaced or removed itself; the collector reports all others."""
    SCREEN = 4
    """A screen dropped a packet."""
    ALARM = 5
    """A screen that only gives alarm was hit; what became of the packet is another matter."""
    FILTER = 6
    """A packet matched a term of a filter; the reason is 0 if it went on."""


class Stage(IntEnum):
    """Slots of the ``stages`` program array."""

    FLOW = 0
    NEW = 1
    POLICY = 2
    CREATE = 3
    FORWARD = 4
    ICMP_ERROR = 5
    ANSWER = 6
    FRAGMENT = 7
    SCREEN = 8
    SCREEN_NEW = 9
    SESSION_LIMIT = 10
    NAT64_TO_IPV4 = 11
    NAT64_TO_IPV6 = 12
    NAT64_ERROR = 13
    FILTER = 14
    HOST_FILTER = 15
    COOKIE = 16
    TUNNEL_NAT = 17
    TRANSLATE = 18
    TRANSLATED = 19


class EgressStage(IntEnum):
    """Slots of the ``egress_stages`` program array."""

    NEW = 0
    FILTER = 1


MAX_EGRESS_STAGES = 8
MAX_STAGES = 32

_ADDRESS = AddressLeaf


class PortKeyLeaf(ctypes.Structure):
    """``struct port_key``."""

    _fields_ = (("ifindex", ctypes.c_uint32), ("vid", ctypes.c_uint16), ("bank", ctypes.c_uint16))


class PortLeaf(ctypes.Structure):
    """``struct port``."""

    _fields_ = (
        ("l3_ifindex", ctypes.c_uint32),
        ("zone", ctypes.c_uint16),
        ("flags", ctypes.c_uint16),
        ("mss", ctypes.c_uint16),
        ("in_filter", ctypes.c_uint8),
        ("out_filter", ctypes.c_uint8),
        ("addr4", _ADDRESS),
        ("addr6", _ADDRESS),
    )


class NearPortLeaf(ctypes.Structure):
    """``struct near_port``."""

    _fields_ = (
        ("ifindex", ctypes.c_uint32),
        ("vid", ctypes.c_uint16),
        ("reserved", ctypes.c_uint16),
        ("port", PortLeaf),
    )


class VlanPortLeaf(ctypes.Structure):
    """``struct vlan_port``."""

    _fields_ = (("ifindex", ctypes.c_uint32), ("vid", ctypes.c_uint16), ("reserved", ctypes.c_uint16))


class RuleTableLeaf(ctypes.Structure):
    """``struct rule_table``."""

    _fields_ = (("words", ctypes.c_uint32), ("flags", ctypes.c_uint32))


class RulesetLeaf(ctypes.Structure):
    """``struct ruleset``."""

    _fields_ = (
        ("tables", RuleTableLeaf * MAX_TABLES),
        ("timeouts", ctypes.c_uint32 * MAX_TIMEOUTS),
        ("default_action", ctypes.c_uint32),
        ("host_filter", ctypes.c_uint32),
    )


class PrefixKeyLeaf(ctypes.Structure):
    """``struct prefix_key``; ``prefixlen`` is 32 more than the (v4-mapped) prefix length of the address."""

    _fields_ = (
        ("prefixlen", ctypes.c_uint32),
        ("bank", ctypes.c_uint16),
        ("side", ctypes.c_uint16),
        ("addr", _ADDRESS),
    )


class ServiceRowLeaf(ctypes.Structure):
    """``struct service_row``."""

    _fields_ = (("classes", ctypes.c_uint16 * SERVICE_CHUNK),)


class BitRowLeaf(ctypes.Structure):
    """``struct bit_row``: bit ``n`` is bit ``n % 64`` of word ``n // 64``."""

    _fields_ = (("words", ctypes.c_uint64 * MAX_WORDS),)


class RuleRowLeaf(ctypes.Structure):
    """``struct rule_row``; the two ports and the adjustment are in network order."""

    _fields_ = (
        ("rule", ctypes.c_uint32),
        ("action", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("timeout", ctypes.c_uint32),
        ("pool", ctypes.c_uint32),
        ("prefixlen", ctypes.c_uint32),
        ("to", _ADDRESS),
        ("port", ctypes.c_uint16),
        ("first_port", ctypes.c_uint16),
        ("adjustment", ctypes.c_uint16),
        ("reserved", ctypes.c_uint16),
    )


class PoolLeaf(ctypes.Structure):
    """``struct pool``; low and high in host order, subscribers in network order."""

    _fields_ = (
        ("first", _ADDRESS),
        ("addresses", ctypes.c_uint32),
        ("low", ctypes.c_uint16),
        ("high", ctypes.c_uint16),
        ("persistent", ctypes.c_uint16),
        ("translator", ctypes.c_uint16),
        ("overflow", ctypes.c_uint32),
        ("block", ctypes.c_uint32),
        ("subscribers", ctypes.c_uint32),
    )


class PoolCountLeaf(ctypes.Structure):
    """``struct pool_count``."""

    _fields_ = (("flows", ctypes.c_uint64), ("packets", ctypes.c_uint64), ("refused", ctypes.c_uint64))


class TunnelNetLeaf(ctypes.Structure):
    """``struct tunnel_net``; ``prefixlen`` is 32 more than the (v4-mapped) prefix length of the address."""

    _fields_ = (("prefixlen", ctypes.c_uint32), ("side", ctypes.c_uint32), ("far", _ADDRESS))


class TunnelKeyLeaf(ctypes.Structure):
    """``struct tunnel_key``."""

    _fields_ = (("list", ctypes.c_uint32), ("n", ctypes.c_uint32))


class TunnelLeaf(ctypes.Structure):
    """``struct tunnel``; ports and their masks in network order."""

    _fields_ = (
        ("near", _ADDRESS),
        ("mask", _ADDRESS),
        ("near_port", ctypes.c_uint16),
        ("near_port_mask", ctypes.c_uint16),
        ("far_port", ctypes.c_uint16),
        ("far_port_mask", ctypes.c_uint16),
        ("reqid", ctypes.c_uint32),
        ("zone", ctypes.c_uint16),
        ("protocol", ctypes.c_uint8),
        ("action", ctypes.c_uint8),
    )


class FlowKeyLeaf(ctypes.Structure):
    """``struct flow_key``; ports in network order."""

    _fields_ = (
        ("saddr", _ADDRESS),
        ("daddr", _ADDRESS),
        ("sport", ctypes.c_uint16),
        ("dport", ctypes.c_uint16),
        ("zone", ctypes.c_uint16),
        ("protocol", ctypes.c_uint8),
        ("reserved", ctypes.c_uint8),
    )


class SessionLeaf(ctypes.Structure):
    """``struct session``."""

    _fields_ = (
        ("last_seen_ns", ctypes.c_uint64),
        ("own_packets", ctypes.c_uint64),
        ("own_octets", ctypes.c_uint64),
        ("timeout", ctypes.c_uint32),
        ("ack", ctypes.c_uint32),
        ("flags", ctypes.c_uint16),
        ("state", ctypes.c_uint8),
        ("embedded", ctypes.c_uint8),
        ("out_zone", ctypes.c_uint16),
        ("mss", ctypes.c_uint16),
        ("fib_generation", ctypes.c_uint32),
        ("out_ifindex", ctypes.c_uint32),
        ("out_vid", ctypes.c_uint16),
        ("mtu", ctypes.c_uint16),
        ("dmac", ctypes.c_uint8 * 6),
        ("smac", ctypes.c_uint8 * 6),
        ("fib_ns", ctypes.c_uint64),
        ("owner", ctypes.c_uint64),
        ("saddr", _ADDRESS),
        ("daddr", _ADDRESS),
        ("sport", ctypes.c_uint16),
        ("dport", ctypes.c_uint16),
        ("app_timeout", ctypes.c_uint32),
        ("rule", ctypes.c_uint32),
        ("snat_rule", ctypes.c_uint32),
        ("dnat_rule", ctypes.c_uint32),
        ("address_change", ctypes.c_uint16),
        ("l4_change", ctypes.c_uint16),
        ("id", ctypes.c_uint64),
        ("created_ns", ctypes.c_uint64),
        ("far_packets", ctypes.c_uint64),
        ("far_octets", ctypes.c_uint64),
    )

    @property
    def packets(self) -> int:
        """Of all CPUs."""
        return int(self.own_packets) + int(self.far_packets)

    @property
    def octets(self) -> int:
        """IP lengths, of all CPUs."""
        return int(self.own_octets) + int(self.far_octets)


class FragmentKeyLeaf(ctypes.Structure):
    """``struct fragment_key``."""

    _fields_ = (
        ("saddr", _ADDRESS),
        ("daddr", _ADDRESS),
        ("id", ctypes.c_uint32),
        ("zone", ctypes.c_uint16),
        ("protocol", ctypes.c_uint8),
        ("reserved", ctypes.c_uint8),
    )


class FragmentLeaf(ctypes.Structure):
    """``struct fragment``."""

    _fields_ = (("key", FlowKeyLeaf), ("seen_ns", ctypes.c_uint64))


class EventLeaf(ctypes.Structure):
    """``struct event``."""

    _fields_ = (
        ("time_ns", ctypes.c_uint64),
        ("session", ctypes.c_uint64),
        ("key", FlowKeyLeaf),
        ("saddr", _ADDRESS),
        ("daddr", _ADDRESS),
        ("sport", ctypes.c_uint16),
        ("dport", ctypes.c_uint16),
        ("out_zone", ctypes.c_uint16),
        ("kind", ctypes.c_uint16),
        ("rule", ctypes.c_uint32),
        ("reason", ctypes.c_uint32),
        ("snat_rule", ctypes.c_uint32),
        ("dnat_rule", ctypes.c_uint32),
        ("created_ns", ctypes.c_uint64),
        ("packets", ctypes.c_uint64),
        ("octets", ctypes.c_uint64),
        ("back_packets", ctypes.c_uint64),
        ("back_octets", ctypes.c_uint64),
    )


class NameKind(IntEnum):
    """What a number belongs to. Zones are numbered on their own, all kinds of rules together."""

    ZONE = 1
    POLICY = 2
    HOST_INBOUND = 3
    """Named by the zone."""
    SOURCE_NAT = 4
    DESTINATION_NAT = 5
    STATIC_NAT = 6
    NPTV6 = 7
    NAT64 = 8
    FILTER_TERM = 9
    """Named ``filter/term``."""
    POLICER = 10
    """Its counter is of what is beyond all its rates."""
    POLICER_YELLOW = 11
    """The counter of a policer with three colours for the one between."""


NAME_BYTES = 64


class NameKeyLeaf(ctypes.Structure):
    """Of ``names``, which only user space uses."""

    _fields_ = (("kind", ctypes.c_uint16), ("id", ctypes.c_uint16))


class NameLeaf(ctypes.Structure):
    """UTF-8, ends with a zero byte."""

    _fields_ = (("name", ctypes.c_char * NAME_BYTES),)


_INDEX = ctypes.c_uint32
_BANKED = MAX_BANKS * MAX_TABLES

PORTS = MapSpec("ports", libbpf.MAP_HASH, PortKeyLeaf, PortLeaf, MAX_PORTS * MAX_BANKS)
NEAR_PORTS = MapSpec("near_ports", libbpf.MAP_ARRAY, _INDEX, NearPortLeaf, MAX_BANKS * MAX_NEAR_PORTS)
VLAN_PORTS = MapSpec("vlan_ports", libbpf.MAP_HASH, ctypes.c_uint32, VlanPortLeaf, MAX_PORTS)
RULESETS = MapSpec("rulesets", libbpf.MAP_ARRAY, _INDEX, RulesetLeaf, MAX_BANKS)
PREFIXES = MapSpec(
    "prefixes",
    libbpf.MAP_LPM_TRIE,
    PrefixKeyLeaf,
    ctypes.c_uint32,
    MAX_PREFIXES * MAX_BANKS,
    flags=libbpf.BPF_F_NO_PREALLOC,
)
TUNNEL_NETS = MapSpec(
    "tunnel_nets",
    libbpf.MAP_LPM_TRIE,
    TunnelNetLeaf,
    ctypes.c_uint32,
    MAX_TUNNEL_NETS,
    flags=libbpf.BPF_F_NO_PREALLOC,
)
TUNNELS = MapSpec("tunnels", libbpf.MAP_HASH, TunnelKeyLeaf, TunnelLeaf, MAX_TUNNELS, flags=libbpf.BPF_F_NO_PREALLOC)
SERVICES = MapSpec(
    "services", libbpf.MAP_ARRAY, _INDEX, ServiceRowLeaf, _BANKED * MAX_SERVICE_KINDS * (65536 // SERVICE_CHUNK)
)
RULE_BITS = MapSpec("rule_bits", libbpf.MAP_ARRAY, _INDEX, BitRowLeaf, _BANKED * MAX_DIMENSIONS * MAX_CLASSES)
RULE_ROWS = MapSpec("rule_rows", libbpf.MAP_ARRAY, _INDEX, RuleRowLeaf, _BANKED * MAX_ROWS)
POOLS = MapSpec("pools", libbpf.MAP_ARRAY, _INDEX, PoolLeaf, MAX_BANKS * MAX_POOLS)
POOL_ENGINES = MapSpec("pool_engines", libbpf.MAP_ARRAY, _INDEX, ctypes.c_uint32, MAX_TAGS)
"""By tag, of pools that are VPP's at times: not 0 while VPP has their new flows. Written by user space alone."""
POOL_COUNTS = MapSpec("pool_counts", libbpf.MAP_PERCPU_ARRAY, _INDEX, PoolCountLeaf, MAX_TAGS)
RULE_COUNTS = MapSpec("rule_counts", libbpf.MAP_PERCPU_ARRAY, _INDEX, VerdictCountLeaf, MAX_RULES)
SESSIONS = MapSpec(
    "sessions",
    libbpf.MAP_HASH,
    FlowKeyLeaf,
    SessionLeaf,
    MAX_SESSIONS,
    resizable=True,
)
FRAGMENTS = MapSpec("fragments", libbpf.MAP_LRU_HASH, FragmentKeyLeaf, FragmentLeaf, MAX_FRAGMENTS)
NAMES = MapSpec("names", libbpf.MAP_HASH, NameKeyLeaf, NameLeaf, MAX_RULES * 2)
EVENTS = MapSpec("events", libbpf.MAP_RINGBUF, NothingLeaf, NothingLeaf, EVENT_RING_BYTES)
EVENTS_LOST = MapSpec("events_lost", libbpf.MAP_PERCPU_ARRAY, _INDEX, ctypes.c_uint64, 1)

FLOW_MAPS = (
    PORTS,
    NEAR_PORTS,
    VLAN_PORTS,
    RULESETS,
    PREFIXES,
    TUNNEL_NETS,
    TUNNELS,
    SERVICES,
    RULE_BITS,
    RULE_ROWS,
    POOLS,
    POOL_ENGINES,
    POOL_COUNTS,
    RULE_COUNTS,
    SESSIONS,
    FRAGMENTS,
    NAMES,
    EVENTS,
    EVENTS_LOST,
)
"""All of these, :data:`xdp_steer.filter_layout.FIREWALL_MAPS` has more."""


def service_index(bank: int, table: Table, kind: ServiceKind, chunk: int) -> int:
    """Index into ``services`` of one chunk of 256 classes."""
    return ((bank * MAX_TABLES + table) * MAX_SERVICE_KINDS + kind) * (65536 // SERVICE_CHUNK) + chunk


def bits_index(bank: int, table: Table, dimension: Dimension, class_id: int) -> int:
    """Index into ``rule_bits`` of the row of a class."""
    return ((bank * MAX_TABLES + table) * MAX_DIMENSIONS + dimension) * MAX_CLASSES + class_id


def row_index(bank: int, table: Table, row: int) -> int:
    """Index into ``rule_rows``."""
    return (bank * MAX_TABLES + table) * MAX_ROWS + row


def pool_index(bank: int, pool: int) -> int:
    """Index into ``pools``."""
    return bank * MAX_POOLS + pool


def side(table: Table, *, destination: bool) -> int:
    """``prefix_key.side``."""
    return table * 2 + destination


_MASK = 0xFFFFFFFF


def mix32(state: int, word: int) -> int:
    """One round of MurmurHash3 (32 bits)."""
    word = (word * 0xCC9E2D51) & _MASK
    word = ((word << 15) | (word >> 17)) & _MASK
    word = (word * 0x1B873593) & _MASK
    state ^= word
    state = ((state << 13) | (state >> 19)) & _MASK
    return (state * 5 + 0xE6546B64) & _MASK


def finish32(state: int) -> int:
    """MurmurHash3's finalizer."""
    state ^= state >> 16
    state = (state * 0x85EBCA6B) & _MASK
    state ^= state >> 13
    state = (state * 0xC2B2AE35) & _MASK
    return state ^ (state >> 16)


def hash_words(seed: int, words: tuple[int, ...]) -> int:
    """The hash behind NAT's choice of address and port, over native 32-bit words."""
    state = seed
    for word in words:
        state = mix32(state, word)
    return finish32(state)


def flow_hash(key: FlowKeyLeaf, seed: int) -> int:
    """Of source, destination, ports (as they lie in memory: ``sport | dport << 16``) and protocol."""
    words = (*key.saddr.addr, *key.daddr.addr, key.sport | key.dport << 16, key.protocol)
    return hash_words(seed, words)


def source_hash(address: AddressLeaf, seed: int) -> int:
    """What a persistent pool chooses the address by."""
    return hash_words(seed, tuple(address.addr))


def c_defines() -> str:
    """The numbers that C shares with this module, as preprocessor lines."""
    prefixes: dict[str, Any] = {
        "TABLE": Table,
        "DIM": Dimension,
        "SERVICE": ServiceKind,
        "TABLE_ANY": TableAny,
        "ACTION": PolicyAction,
        "NAT": Nat,
        "ROW": RowFlag,
        "PORT": PortFlag,
        "TUNNEL": TunnelSide,
        "SESSION": SessionFlag,
        "STATE": State,
        "TIMEOUT": Timeout,
        "EVENT": EventKind,
        "STAGE": Stage,
        "EGRESS_STAGE": EgressStage,
    }
    lines = [f"#define {prefix}_{item.name} {item.value}" for prefix, kind in prefixes.items() for item in kind]
    lines += [f"#define TUNNEL_{action.name} {action.value}" for action in TunnelAction]
    lines += [f"#define {name} {globals()[name]}" for name in ("TUNNEL_NET_BITS", "TUNNEL_PORT_ZONE_AT")]
    lines += [f"#define TUNNEL_PORT_MAC {{ {', '.join(map(str, TUNNEL_PORT_MAC))}, 2 }}"]
    for name in ("TRANSLATOR_MAC", "TRANSLATOR_PORT_MAC"):
        lines.append(f"#define {name} {{ {', '.join(map(str, globals()[name]))} }}")
    lines += [
        f"#define {name} {globals()[name]}"
        for name in ("TRANSLATOR_OUTSIDE", "TRANSLATOR_SIDE", "TRANSLATOR_MTU", "POOL_AUTO")
    ]
    lines += [f"#define {name} {value}" for name, value in globals().items() if name.startswith("MAX_")]
    lines += [f"#define {name} {globals()[name]}" for name in ("SERVICE_CHUNK", "NAT_TRIES", "NAT_STEP")]
    lines += [f"#define {name} {globals()[name]}" for name in ("FRAGMENT_SECONDS", "EVENT_RING_BYTES")]
    lines += [f"#define MAX_SERVICE_ROWS {SERVICES.entries}", f"#define MAX_BIT_ROWS {RULE_BITS.entries}"]
    return "\n".join([*lines, ""])
