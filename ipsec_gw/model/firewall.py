"""The firewall as the operator wants it: zones, policies and NAT with every reference resolved.

Values only. ``config`` makes a :class:`Ruleset` out of the file, ``xdp_steer.compile`` turns it into map rows, and the
reference model of the tests decides packets by it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum, unique
from typing import TYPE_CHECKING

from ipsec_gw.model.ids import IpAddress, IpNetwork
from ipsec_gw.model.screens import Screens

if TYPE_CHECKING:
    from ipsec_gw.model.filters import Filter, FilterTerm, Policer

TUNNEL_INTERFACES = ("ipsecgw-up", "ipsecgw-kd")
"""Where packets of tunnels come out in clear: decrypted by an engine, and by the kernel."""

TRANSLATOR_PORT = "ipsecgw-kn"
"""The kernel's end of the veth pair by which VPP translates for pools."""

SELF = "self"
"""The zone that is this machine: what is delivered to it and what it sends."""

ANY_PORT = (0, 65535)

Range = tuple[int, int]
"""First and last, both included."""


@unique
class Action(StrEnum):
    """What a policy does with a new flow. ``reject`` answers with a TCP RST or an ICMP unreachable."""

    PERMIT = "permit"
    DENY = "deny"
    REJECT = "reject"


@dataclass(frozen=True, slots=True, order=True)
class Service:
    """One term of an application.

    ``protocol`` is an IP protocol number, None for all of them. ``destination`` are destination ports of TCP and
    UDP; of ICMP and ICMPv6 it is the range of ``type << 8 | code``. ``source`` are source ports. ``timeout`` in seconds
    replaces the idle timeout of established flows.
    """

    protocol: int | None = None
    destination: Range = ANY_PORT
    source: Range = ANY_PORT
    timeout: int | None = None


ANY_SERVICE = (Service(),)


@dataclass(frozen=True, slots=True)
class Zone:
    """Interfaces that are trusted alike. ``interfaces`` are kernel names (``eth0``, ``eth0.100`` for a VLAN).

    ``host_inbound`` is what may reach this machine from the zone without a policy. ``syn_check``: a TCP flow starts
    with a SYN. ``tcp_reset``: a TCP packet (but a SYN) that belongs to no flow is answered with RST. ``tcp_mss`` caps
    the MSS of flows from and to the zone, in bytes. ``tunnels``: what comes out of IPsec tunnels and goes into them is
    of this zone, whoever encrypts and decrypts. ``screen`` names the screens for what comes in from the zone.
    """

    name: str
    interfaces: tuple[str, ...] = ()
    host_inbound: tuple[Service, ...] = ()
    syn_check: bool = True
    tcp_reset: bool = False
    tcp_mss: int | None = None
    tunnels: bool = False
    screen: str | None = None

    @property
    def ports(self) -> tuple[str, ...]:
        """All interfaces, those of tunnels included."""
        return self.interfaces + (TUNNEL_INTERFACES if self.tunnels else ())


@dataclass(frozen=True, slots=True)
class Schedule:
    """When a policy holds: week days (0 is Monday, none means every day) and a daily span in minutes, local time; an
    end before the start is on the next day.
    """

    name: str
    days: frozenset[int] = frozenset()
    start: int = 0
    end: int = 24 * 60


@dataclass(frozen=True, slots=True)
class Policy:
    """One rule. Empty ``sources`` or ``destinations`` mean any; ``from_zone`` and ``to_zone`` None make it global.

    Destinations are matched after destination NAT, sources before source NAT.
    """

    name: str
    action: Action
    from_zone: str | None = None
    to_zone: str | None = None
    sources: tuple[IpNetwork, ...] = ()
    destinations: tuple[IpNetwork, ...] = ()
    services: tuple[Service, ...] = ANY_SERVICE
    log_open: bool = False
    log_close: bool = False
    schedule: Schedule | None = None


@dataclass(frozen=True, slots=True)
class Blocks:
    """Deterministic NAT (RFC 7422): each of the ``subscribers`` (IPv4) has ``size`` ports of one address to itself.

    The blocks of an address go to subscribers one after the other, then those of the next address.
    """

    size: int
    subscribers: IpNetwork


@unique
class PoolEngine(StrEnum):
    """Who translates with the addresses of a pool."""

    XDP = "xdp"
    VPP = "vpp"
    AUTO = "auto"
    """VPP while much is asked of the pool, else XDP."""


@dataclass(frozen=True, slots=True)
class Moves:
    """When new flows of a pool change the engine. Rates are per second, packets those of both directions.

    To VPP when one rate reaches what promotes, or XDP's addresses have no port for a flow; back when both rates have
    been below what demotes for ``dwell`` seconds on end, so there are two moves in ``dwell`` seconds at most.
    """

    promote_flows: int = 10_000
    promote_packets: int = 300_000
    demote_flows: int = 5_000
    demote_packets: int = 150_000
    dwell: int = 300


RESERVED_SHARE = 8
"""Of so many addresses of a pool of VPP one is XDP's, at least one of all."""


@dataclass(frozen=True, slots=True)
class Pool:
    """Addresses to translate to, first and last included; with ``ports`` also the ports (and ICMP identifiers).

    ``persistent``: a source keeps its address. ``overflow`` names the pool that is asked when this one has no
    free port. With ``blocks`` neither is set, and what is no subscriber's is not translated but dropped.

    With another engine than XDP it is IPv4, has two addresses at least and all ports from 1024 on, neither overflow nor
    blocks, and the rules with it lead to one zone. VPP has the first addresses; the last ones are XDP's, for flows that
    begin while VPP is away or the pool is XDP's, and for what VPP does not translate. ``moves`` are those of AUTO.
    """

    name: str
    first: IpAddress
    last: IpAddress
    ports: Range = (1024, 65535)
    persistent: bool = False
    overflow: str | None = None
    blocks: Blocks | None = None
    engine: PoolEngine = PoolEngine.XDP
    moves: Moves = Moves()

    @property
    def reserved(self) -> int:
        """How many addresses at the end are XDP's; all of them if XDP translates."""
        count = int(self.last) - int(self.first) + 1
        return count if self.engine is PoolEngine.XDP else max(1, count // RESERVED_SHARE)

    @property
    def of_xdp(self) -> tuple[IpAddress, IpAddress]:
        """The first and the last address that XDP translates to."""
        return self.last - (self.reserved - 1), self.last

    @property
    def of_vpp(self) -> tuple[IpAddress, IpAddress] | None:
        """The first and the last address that VPP translates to; None if XDP has them all."""
        if self.engine is PoolEngine.XDP:
            return None
        return self.first, self.last - self.reserved

    @property
    def blocks_of_an_address(self) -> int:
        """How many subscribers share an address; 0 without blocks."""
        return (self.ports[1] - self.ports[0] + 1) // self.blocks.size if self.blocks else 0

    def block_of(self, subscriber: IpAddress) -> tuple[IpAddress, Range] | None:
        """The address and the ports of a subscriber; None if it is none, or there is no room for it."""
        if self.blocks is None or subscriber not in self.blocks.subscribers or not self.blocks_of_an_address:
            return None
        number = int(subscriber) - int(self.blocks.subscribers.network_address)
        address, block = divmod(number, self.blocks_of_an_address)
        low = self.ports[0] + block * self.blocks.size
        return (self.first + address, (low, low + self.blocks.size - 1)) if self.first + address <= self.last else None  # type: ignore[operator]


@unique
class Translation(StrEnum):
    """How a source NAT rule translates."""

    OFF = "off"
    INTERFACE = "interface"
    POOL = "pool"


@dataclass(frozen=True, slots=True)
class SourceNat:
    """Source NAT of new flows; the first rule that matches decides. Zones None mean any."""

    name: str
    translation: Translation
    from_zone: str | None = None
    to_zone: str | None = None
    sources: tuple[IpNetwork, ...] = ()
    destinations: tuple[IpNetwork, ...] = ()
    services: tuple[Service, ...] = ANY_SERVICE
    pool: str | None = None


@dataclass(frozen=True, slots=True)
class DestinationNat:
    """Destination NAT of new flows: ``destination`` (as it arrives) becomes the address at the same place of ``to``.

    Both prefixes have the same length. With ``to_port`` the first port of the service becomes that port and the others
    follow in step.
    """

    name: str
    destination: IpNetwork
    to: IpNetwork
    from_zone: str | None = None
    sources: tuple[IpNetwork, ...] = ()
    services: tuple[Service, ...] = ANY_SERVICE
    to_port: int | None = None


@dataclass(frozen=True, slots=True)
class StaticNat:
    """One to one, both ways, ports kept: ``external`` towards ``zone``, ``internal`` everywhere else."""

    name: str
    zone: str
    external: IpNetwork
    internal: IpNetwork


NPTV6_LONGEST = 64
"""Bits of a prefix: the interface identifier has to take up what a longer one than 48 bits changes in sums."""


@dataclass(frozen=True, slots=True)
class Nptv6:
    """Network prefix translation (RFC 6296) of IPv6: ``external`` towards ``zone``, ``internal`` everywhere else.

    Both have the same length, at most NPTV6_LONGEST bits. No checksum changes.
    """

    name: str
    zone: str
    external: IpNetwork
    internal: IpNetwork


NAT64_LENGTHS = (32, 40, 48, 56, 64, 96)
"""Bits of prefixes before an IPv4 address (RFC 6052 2.2)."""


@dataclass(frozen=True, slots=True)
class Nat64:
    """IPv6 clients reach IPv4 (RFC 6146): a flow to ``prefix`` goes on in IPv4, to the address behind the prefix.

    It comes from ``pool``, or (None) from the address of the interface that it leaves by. ``from_zone`` None means any.
    Policies are matched by the IPv6 source and the IPv4 destination.
    """

    name: str
    prefix: IpNetwork
    from_zone: str | None = None
    pool: str | None = None


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Idle seconds after which a session ends."""

    tcp_established: int = 1800
    tcp_opening: int = 30
    tcp_closing: int = 30
    tcp_time_wait: int = 120
    tcp_closed: int = 10
    udp: int = 60
    icmp: int = 30
    other: int = 60


@dataclass(frozen=True, slots=True)
class Sessions:
    """The session table: ``maximum`` sessions; between the water marks (percent) idle ones end after ``early_ageout``
    seconds.
    """

    maximum: int = 262_144
    timeouts: Timeouts = Timeouts()
    high_water: int = 90
    low_water: int = 75
    early_ageout: int = 20


@dataclass(frozen=True, slots=True)
class Ruleset:
    """The whole firewall. Rules are in the order in which they are tried.

    Policies of the zone pair come first, then global ones, then ``default``.
    """

    zones: tuple[Zone, ...] = ()
    policies: tuple[Policy, ...] = ()
    default: Action = Action.DENY
    pools: tuple[Pool, ...] = ()
    source_nat: tuple[SourceNat, ...] = ()
    destination_nat: tuple[DestinationNat, ...] = ()
    static_nat: tuple[StaticNat, ...] = ()
    sessions: Sessions = field(default_factory=Sessions)
    screens: tuple[Screens, ...] = ()
    nptv6: tuple[Nptv6, ...] = ()
    nat64: tuple[Nat64, ...] = ()
    filters: tuple[Filter, ...] = ()
    filter_terms: tuple[FilterTerm, ...] = ()
    policers: tuple[Policer, ...] = ()

    def zone_of_pool(self, name: str) -> str | None:
        """The zone that the rules with a pool lead to; None if there is no such rule, or the first one is for any."""
        return next((rule.to_zone for rule in self.source_nat if rule.pool == name), None)
