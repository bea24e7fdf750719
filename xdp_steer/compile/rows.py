"""What the maps of one bank hold, as plain values; :mod:`xdp_steer.compile.pack` makes bytes of them.

A set of rule rows is an int whose bit ``n`` stands for row ``n`` of the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ipsec_gw.model.ids import IpAddress, IpNetwork
from xdp_steer.filter_layout import PolicerKind
from xdp_steer.flow_layout import Dimension, PolicyAction, PortFlag, ServiceKind, Table, TableAny
from xdp_steer.screen_layout import Screen, ScreenFlag

Segments = tuple[tuple[int, int], ...]
"""Classes of 0 to 65535 as (first index, class), ascending from index 0: each holds until the next one."""


@dataclass(frozen=True, slots=True)
class PortInfo:
    """What the machine says about an interface of a zone.

    ``ifindex`` and ``vid`` are what a frame carries: for a VLAN device its parent and tag, else its own and 0.
    ``l3_ifindex`` is the device itself. ``ethernet`` is False where packets begin with the IP header, ``xfrm`` tells an
    XFRM interface. ``redirect``: it takes frames redirected by XDP. ``partial``: packets may come
    in with an unfinished L4 checksum. ``vlan``: it is a VLAN device.
    """

    ifindex: int
    l3_ifindex: int
    vid: int = 0
    address4: IpAddress | None = None
    address6: IpAddress | None = None
    redirect: bool = False
    partial: bool = False
    vlan: bool = False
    ethernet: bool = True
    xfrm: bool = False


@dataclass(frozen=True, slots=True)
class PortRow:
    """Of ``ports``."""

    info: PortInfo
    zone: int
    flags: PortFlag
    mss: int
    in_filter: int = 0
    out_filter: int = 0


@dataclass(frozen=True, slots=True)
class RuleRow:
    """Of ``rule_rows``; the fields are those of ``struct rule_row``, in host order, ``flags`` of RowFlag."""

    rule: int
    action: int
    flags: int = 0
    timeout: int = 0
    pool: int = 0
    prefixlen: int = 0
    to: IpAddress | None = None
    port: int = 0
    first_port: int = 0
    adjustment: int = 0


@dataclass(frozen=True, slots=True)
class PrefixRow:
    """Of ``prefixes``: addresses whose longest prefix it is belong to the class."""

    network: IpNetwork
    class_id: int


@dataclass(frozen=True, slots=True)
class PoolRow:
    """Of ``pools``; ``overflow`` is an index + 1, 0 for none. ``subscribers`` is the first one's address.

    ``translator`` is the tag by which VPP translates, with addresses of its own; 0: VPP does not. ``auto``: at times.
    """

    first: IpAddress
    addresses: int
    low: int
    high: int
    persistent: bool
    overflow: int
    block: int = 0
    subscribers: IpAddress | None = None
    translator: int = 0
    auto: bool = False


@dataclass(frozen=True, slots=True)
class ScreenRow:
    """Of ``screens``; ``window`` is in seconds."""

    wanted: frozenset[Screen]
    flags: ScreenFlag
    window: int = 1
    thresholds: Mapping[Screen, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TableRows:
    """A rule table: ``bits`` has the set of rows of every class, class 0 first."""

    rules: tuple[RuleRow, ...]
    bits: Mapping[Dimension, tuple[int, ...]]
    sources: tuple[PrefixRow, ...]
    destinations: tuple[PrefixRow, ...]
    services: Mapping[ServiceKind, Segments]
    unasked: TableAny

    @property
    def words(self) -> int:
        """64-bit words that hold the rules."""
        return -(-len(self.rules) // 64)


@dataclass(frozen=True, slots=True)
class FilterRow:
    """Of ``filter_rows``; ``policer`` is an index into those of the bank, None for none, ``mark`` a DSCP or None,
    ``mirror`` the index of an interface, 0 for none.
    """

    policer: int | None = None
    mark: int | None = None
    mirror: int = 0


@dataclass(frozen=True, slots=True)
class PolicerRow:
    """Of ``policers``: rates in bits per second, bursts in bytes; ``yellow`` and ``red`` are a DSCP, KEEP_DSCP or
    DISCARD_COLOUR.
    """

    number: int
    yellow_rule: int
    kind: PolicerKind
    aware: bool
    yellow: int
    red: int
    rate: int
    burst: int
    peak_rate: int = 0
    peak_burst: int = 0


@dataclass(frozen=True, slots=True)
class FilterRows:
    """What goes with the filters' table: ``classes`` are its sets of rows by DSCP, then by TCP flags; ``host`` is the
    number of the host filter.
    """

    rows: tuple[FilterRow, ...] = ()
    classes: tuple[int, ...] = ()
    policers: tuple[PolicerRow, ...] = ()
    host: int = 0


@dataclass(frozen=True, slots=True)
class Rows:
    """Everything that one bank holds. ``timeouts`` are seconds, indexed by :class:`xdp_steer.flow_layout.Timeout`;
    ``screens`` are by the number of the zone; ``translated`` are VPP's addresses, the tags of their pools the classes.
    """

    ports: tuple[PortRow, ...]
    tables: Mapping[Table, TableRows]
    pools: tuple[PoolRow, ...]
    timeouts: tuple[int, ...]
    default: PolicyAction
    screens: Mapping[int, ScreenRow] = field(default_factory=dict)
    filters: FilterRows = FilterRows()
    translated: tuple[PrefixRow, ...] = ()
