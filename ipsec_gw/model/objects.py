"""The objects that ipsec-gw keeps in place: what `desired` asks for and `plan` compares.

Each is a frozen value with a ``key``. Engines hold :class:`EngineSa`, :class:`NextHop`, :class:`Tunnel` and
:class:`Overlay`; the gateway itself holds :class:`Guard`, :class:`Steer`, :class:`Lead`, :class:`HostsLead`,
:class:`Exempt`, :class:`InterfaceEntry` and :class:`InterfaceLead`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from ipaddress import ip_network

from ipsec_gw.model.algorithms import EspAlgorithm
from ipsec_gw.model.ids import Direction, IpAddress, IpNetwork, SaKey, TunnelId
from ipsec_gw.model.secret import Secret


@dataclass(frozen=True, slots=True)
class UdpEncap:
    """RFC 3948 encapsulation: both UDP ports as XFRMA_ENCAP has them (host order)."""

    source_port: int
    destination_port: int


@dataclass(frozen=True, slots=True)
class HeaderCopies:
    """What passes between inner and outer header: DSCP and DF outwards, ECN both ways (charon's copy_dscp, copy_df and
    copy_ecn). An engine may leave DF clear outside, so that the network can fragment.
    """

    dscp: bool = True
    ecn: bool = True
    df: bool = True


USUAL_COPIES = HeaderCopies()
"""What charon asks for unless told otherwise."""


@dataclass(frozen=True, slots=True)
class EngineSa:
    """An SA as an engine needs it.

    ``source`` and ``key.destination`` are the outer addresses, of a ``transport`` SA those of its packets themselves
    (RFC 4303 §3.1.1), which has no second header and so the usual ``copies``. ``secret`` is the cipher key without the
    salt. ``replay_window`` is in packets, 0 for none; engines may round it up. With ``gre`` a GRE header (RFC 2784)
    stands between ESP and the packets inside, as a GRE device in transport mode has it; in tunnel mode the
    :class:`Tunnel` has that.
    """

    key: SaKey
    direction: Direction
    source: IpAddress
    algorithm: EspAlgorithm
    secret: Secret
    salt: Secret
    esn: bool
    replay_window: int
    encap: UdpEncap | None = None
    copies: HeaderCopies = USUAL_COPIES
    gre: bool = False
    transport: bool = False


@dataclass(frozen=True, slots=True)
class NextHop:
    """How the outer packets for ``key`` (the peer's address) leave: an interface and a resolved MAC.

    ``mac`` is in the usual colon notation. ``local`` is the address of our end of the tunnels.
    """

    key: IpAddress
    local: IpAddress
    interface: str
    gateway: IpAddress
    mac: str


_PORT_BITS = 16

PROTOCOLS_WITH_PORTS = frozenset({6, 17, 33, 132, 136})
"""TCP, UDP, DCCP, SCTP and UDP-Lite: those whose ports XFRM looks at (``decode_session4``)."""


@dataclass(frozen=True, slots=True, order=True)
class PortMatch:
    """A port and the bits of it that count; of ICMP the type is the source port and the code the destination port."""

    port: int = 0
    mask: int = 0

    @property
    def range(self) -> tuple[int, int] | None:
        """First and last port, None if they are not all that lie between."""
        free = ~self.mask & 0xFFFF
        return (self.port & self.mask, self.port | free) if free & (free + 1) == 0 else None

    def meets(self, other: PortMatch) -> bool:
        """Whether one port fits both."""
        return (self.port ^ other.port) & self.mask & other.mask == 0

    def covers(self, other: PortMatch) -> bool:
        """Whether all ports that fit the other one fit this one."""
        return self.mask & ~other.mask == 0 and self.meets(other)

    def __str__(self) -> str:
        if not self.mask:
            return "any"
        return str(self.port) if self.mask == 0xFFFF else f"{self.port}/{self.mask:#06x}"


ANY_PORT = PortMatch()


@dataclass(frozen=True, slots=True)
class Selector:
    """A traffic selector pair, as the outbound policy has it: source and destination, one protocol or any (0), and the
    ports of it that fit. Fragments have no ports.
    """

    source: IpNetwork
    destination: IpNetwork
    protocol: int = 0
    source_port: PortMatch = ANY_PORT
    destination_port: PortMatch = ANY_PORT

    @property
    def narrowed(self) -> bool:
        """More than the networks counts."""
        return bool(self.protocol or self.ported)

    @property
    def ported(self) -> bool:
        """Ports count."""
        return bool(self.source_port.mask or self.destination_port.mask)

    @property
    def of_hosts(self) -> bool:
        """It is for packets from one address to another."""
        return all(network.prefixlen == network.max_prefixlen for network in (self.source, self.destination))

    @property
    def networks(self) -> Selector:
        """The same for all protocols."""
        return Selector(self.source, self.destination)

    @property
    def reversed(self) -> Selector:
        """What comes in is the mirror image of what goes out."""
        return Selector(self.destination, self.source, self.protocol, self.destination_port, self.source_port)

    def meets(self, other: Selector) -> bool:
        """Whether a packet fits both."""
        return (
            self.networks_meet(other)
            and (not self.protocol or not other.protocol or self.protocol == other.protocol)
            and self.source_port.meets(other.source_port)
            and self.destination_port.meets(other.destination_port)
        )

    def covers(self, other: Selector) -> bool:
        """Whether it has all packets of one for the same networks."""
        return (
            self.networks == other.networks
            and self.protocol in {0, other.protocol}
            and self.source_port.covers(other.source_port)
            and self.destination_port.covers(other.destination_port)
        )

    def contains(self, other: Selector) -> bool:
        """Whether it has all packets of another one."""
        return (
            _lies_in(other.source, self.source)
            and _lies_in(other.destination, self.destination)
            and self.covers(replace(other, source=self.source, destination=self.destination))
        )

    def networks_meet(self, other: Selector) -> bool:
        """Whether the networks of both overlap."""
        return _overlap(self.source, other.source) and _overlap(self.destination, other.destination)

    def __str__(self) -> str:
        ends = f"{self.source} === {self.destination}"
        ports = f" ports {self.source_port} > {self.destination_port}" if self.ported else ""
        return f"{ends} protocol {self.protocol}{ports}" if self.narrowed else ends


def _overlap(one: IpNetwork, other: IpNetwork) -> bool:
    return one.version == other.version and one.overlaps(other)


def _lies_in(inner: IpNetwork, outer: IpNetwork) -> bool:
    return _overlap(inner, outer) and outer.prefixlen <= inner.prefixlen


MAX_INBOUND = 4
"""Inbound SAs that one tunnel holds at a time (VPP's tunnel protection, ``ipsec_tun.h``)."""


VLAN_IDS = 4094
"""The VLAN IDs that stand for something are 1 to this (IEEE 802.1Q)."""


class InterfaceKind(StrEnum):
    """Interfaces into which routing sends what a tunnel encrypts, as people call them."""

    XFRM = "XFRM interface"
    VTI = "VTI device"
    GRE = "GRE device"
    IPIP = "IPIP device"
    VXLAN = "VXLAN device"


OF_IPSEC_ALONE = frozenset({InterfaceKind.XFRM, InterfaceKind.VTI})
"""What XFRM decrypts, and nothing else, comes in by them, and their policies are for what goes out by them."""

ENCAPSULATIONS = {InterfaceKind.GRE: 47, InterfaceKind.IPIP: 4}
"""The protocol by which an outer IP header names what such a device has put into it."""


@dataclass(frozen=True, slots=True, order=True)
class XfrmInterface:
    """An XFRM interface or a VTI device of the kernel (route-based IPsec), a GRE or IPIP device whose packets alone an
    SA protects, or a VXLAN device; by its index, which has one kind for life. Also the key of its
    :class:`InterfaceLead`.
    """

    index: int
    name: str
    kind: InterfaceKind = field(default=InterfaceKind.XFRM, compare=False)

    @property
    def vlan(self) -> int:
        """The VLAN ID that stands for it between kernel and engine. Two whose indices are 4094 apart have the same."""
        return 1 + self.index % VLAN_IDS

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


@dataclass(frozen=True, slots=True, order=True)
class Hosts:
    """The two ends of SAs, which talk themselves; also the key of their :class:`HostsLead`."""

    local: IpAddress
    remote: IpAddress

    def __str__(self) -> str:
        return f"hosts {self.local} === {self.remote}"


@dataclass(frozen=True, slots=True)
class DeviceHeader:
    """The IPv4 header that a GRE or IPIP device puts around its packets, from ``local`` to ``remote``, and for ``gre``
    a GRE header (RFC 2784) between. It gets the ECN of the packet inside, and with ``dscp`` its DSCP too.
    """

    local: IpAddress
    remote: IpAddress
    gre: bool
    dscp: bool = False

    @property
    def protocol(self) -> int:
        """Of what follows it."""
        return ENCAPSULATIONS[InterfaceKind.GRE if self.gre else InterfaceKind.IPIP]


@dataclass(frozen=True, slots=True)
class Tunnel:
    """A tunnel of an engine: decrypts what its ``inbound`` SAs bring, encrypts ``selectors`` with ``outbound``.

    ``inbound`` holds one to four keys (four: VPP's limit, kept by `desired`). ``exceptions`` are what others have of
    its selectors, as outbound policies have them: what comes out of the tunnel and fits one, mirrored, is dropped.
    With an ``interface`` it encrypts what comes to the engine behind that one's VLAN ID, and gives back what it
    decrypts behind the same; of that, too, only what fits the selectors. With a ``header`` all of it is behind that
    inside ESP; what is behind it in pieces, or by a GRE header with options, it gives back untagged and as it is.
    ``hosts``: it is for what ``local`` and ``remote`` say to each other themselves, in transport or in tunnel mode, and
    encrypts whole packets of that. Of two that have packets in common, the one with the greater ``rank`` has those.
    """

    key: TunnelId
    local: IpAddress
    remote: IpAddress
    inbound: tuple[SaKey, ...]
    outbound: SaKey
    selectors: tuple[Selector, ...]
    exceptions: tuple[Selector, ...] = ()
    interface: XfrmInterface | None = None
    hosts: bool = False
    rank: int = 0
    header: DeviceHeader | None = None

    @property
    def leads(self) -> tuple[LeadKey, ...]:
        """Keys of what brings plaintext to it."""
        if self.hosts:
            return (Hosts(self.local, self.remote),)
        return self.selectors if self.interface is None else (self.interface,)


@dataclass(frozen=True, slots=True, order=True)
class OverlayKey:
    """Key of an :class:`Overlay`."""

    interface: XfrmInterface

    def __str__(self) -> str:
        return f"overlay of {self.interface}"


@dataclass(frozen=True, slots=True)
class Overlay:
    """A VXLAN device's work done by an engine (RFC 7348): what comes to it behind the device's VLAN ID is an Ethernet
    frame, which it puts into UDP from ``local`` to this ``port`` of ``remote`` with this ``vni``, from ports of its own
    choice; the ``tunnels``, which have no interface, encrypt that. Such UDP from ``remote`` that comes out of them is a
    frame that leaves behind the VLAN ID; all else that comes out is none of its business.
    """

    key: OverlayKey
    vni: int
    local: IpAddress
    remote: IpAddress
    port: int
    tunnels: frozenset[TunnelId]

    @property
    def vlan(self) -> int:
        """The VLAN ID that stands for the device."""
        return self.key.interface.vlan

    def fits(self, tunnel: Tunnel) -> bool:
        """Whether a tunnel is for packets between its two ends, all or some."""
        ends = Selector(ip_network(self.local), ip_network(self.remote))
        return tunnel.interface is None and any(selector.networks == ends for selector in tunnel.selectors)


@dataclass(frozen=True, slots=True)
class GuardKey:
    """Key of a :class:`Guard`: a type of its own, so that an SA and its guard never share a key."""

    sa: SaKey

    def __str__(self) -> str:
        return f"guard of {self.sa}"


@dataclass(frozen=True, slots=True)
class Guard:
    """The TC egress guard drops ESP of this SA that the kernel sends: the engine owns its numbers."""

    key: GuardKey


@dataclass(frozen=True, slots=True)
class SteerKey:
    """Key of a :class:`Steer`."""

    sa: SaKey

    def __str__(self) -> str:
        return f"steering of {self.sa}"


NAT_T_PORT = 4500
"""IANA's port for IKE and ESP behind NAT (RFC 3948); charon can be told to use another one (``port_nat_t``)."""

MAX_NAT_T_PORTS = 4
"""Local ports besides 4500 that are steered and guarded."""


@dataclass(frozen=True, slots=True)
class UdpPeer:
    """Where an SA's UDP-encapsulated packets come from: the peer's address, or its NAT's, and UDP port."""

    address: IpAddress
    port: int

    def __str__(self) -> str:
        return f"{self.address} port {self.port}"


@dataclass(frozen=True, slots=True)
class Steer:
    """XDP hands ESP with this destination and SPI to the engine, which holds it in a tunnel already.

    With a ``peer`` it takes ESP in UDP only, without one bare ESP only. What comes from elsewhere is noted: the peer's
    NAT may have moved it (:mod:`ipsec_gw.ownership.moves`).
    """

    key: SteerKey
    peer: UdpPeer | None = None


@dataclass(frozen=True, slots=True)
class Lead:
    """Policy routing that leads plaintext of a selector to the engine before XFRM sees it.

    ``source_hint`` is the source address that charon's own route gives to locally generated packets, or None;
    ``mtu`` is what fits into the tunnel, in bytes of inner IP packet, or, of what is led by ports, what the link takes.
    Both depend on the destination alone, and on whether there are ports.
    """

    key: Selector
    source_hint: IpAddress | None
    mtu: int


@dataclass(frozen=True, slots=True)
class ExemptKey:
    """Key of an :class:`Exempt`."""

    selector: Selector

    def __str__(self) -> str:
        return f"exemption of {self.selector}"


@dataclass(frozen=True, slots=True)
class Exempt:
    """What fits this selector goes XFRM's way although a lead covers it: a policy that XFRM tries first has it.

    ``unbound``: so do packets of this machine that have no source yet, as their route would give them one that fits.
    """

    key: ExemptKey
    unbound: bool


@dataclass(frozen=True, slots=True)
class EntryKey:
    """Key of an :class:`InterfaceEntry`."""

    interface: XfrmInterface

    def __str__(self) -> str:
        return f"entry by {self.interface}"


FRAMES = 0
"""In the place of IP versions: Ethernet frames, whatever is in them."""


@dataclass(frozen=True, slots=True)
class InterfaceEntry:
    """What the engine has decrypted and tagged with an interface's VLAN ID comes into the kernel by it, of these IP
    ``versions``, or as :data:`FRAMES`.
    """

    key: EntryKey
    versions: frozenset[int]


@dataclass(frozen=True, slots=True)
class InterfaceLead:
    """What routing sends out by an XFRM interface goes to the engine before XFRM sees it, as packets of ``mtu`` bytes
    at most, which fit into the tunnel, and of these IP ``versions`` alone. Of :data:`FRAMES`, which a bridge may have
    sent, those with longer packets or a VLAN tag are left to the kernel.
    """

    key: XfrmInterface
    mtu: int
    versions: frozenset[int]


@dataclass(frozen=True, slots=True)
class HostsLead:
    """What XFRM is to transform between two hosts, one of which is this machine, goes to the engine instead."""

    key: Hosts


LeadKey = Selector | XfrmInterface | Hosts
AnyLead = Lead | InterfaceLead | HostsLead
EngineObject = EngineSa | NextHop | Tunnel | Overlay
GatewayObject = Guard | Steer | AnyLead | Exempt | InterfaceEntry
ManagedObject = EngineObject | GatewayObject
EngineKey = SaKey | IpAddress | TunnelId | OverlayKey
ObjectKey = EngineKey | GuardKey | SteerKey | LeadKey | ExemptKey | EntryKey
