"""What strongSwan and the kernel say at one moment."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from ipsec_gw.model.algorithms import SALT_BYTES, EspAlgorithm, find_aead
from ipsec_gw.model.ids import IpAddress, IpNetwork, SaKey
from ipsec_gw.model.objects import (
    ANY_PORT,
    ENCAPSULATIONS,
    USUAL_COPIES,
    HeaderCopies,
    PortMatch,
    Selector,
    UdpEncap,
    XfrmInterface,
)
from ipsec_gw.model.secret import Secret


class Mode(StrEnum):
    """IPsec mode as XFRM numbers it (``linux/xfrm.h``: 0, 1, 4; the rest is ``other``)."""

    TRANSPORT = "transport"
    TUNNEL = "tunnel"
    BEET = "beet"
    OTHER = "other"


_MODES = frozenset({Mode.TRANSPORT, Mode.TUNNEL})
_ESP = 50


class PolicyDirection(StrEnum):
    """Direction of an XFRM policy."""

    IN = "in"
    OUT = "out"
    FWD = "fwd"


@dataclass(frozen=True, slots=True)
class AeadKey:
    """XFRMA_ALG_AEAD: ``secret`` is the cipher key followed by the four salt bytes."""

    name: str
    secret: Secret
    icv_bits: int

    @property
    def known(self) -> EspAlgorithm | None:
        """The row of the algorithm table, None if it is none of ours."""
        return find_aead(self.name, len(self.secret) - SALT_BYTES, self.icv_bits)


@dataclass(frozen=True, slots=True)
class Replay:
    """Sequence state of a kernel SA: 64-bit numbers (high half 0 without ESN), window in packets.

    ``extended`` tells which attribute the SA has: XFRMA_REPLAY_ESN_VAL if true, else XFRMA_REPLAY_VAL.
    """

    oseq: int
    seq: int
    window: int
    esn: bool
    extended: bool


@dataclass(frozen=True, slots=True)
class Lifetime:
    """XFRM's ``xfrm_lifetime_cur``: bytes and packets carried, Unix times of installation and first use."""

    octets: int
    packets: int
    add_time: int
    use_time: int


XfrmMark = tuple[int, int]
"""Value and mask (``struct xfrm_mark``): for packets whose mark, masked, is the value."""


def has_mark(given: int, mark: XfrmMark) -> bool:
    """Whether a packet's mark is one that XFRM takes for this one."""
    wanted, mask = mark
    return given & mask == wanted


NO_ALGORITHM = "none"


@dataclass(frozen=True, slots=True)
class XfrmSa:
    """An SA of the kernel. ``aead`` is None for other algorithms, which ``algorithm`` names for people.

    ``extras`` are attributes and flags that an engine could not honour (names as in ``linux/xfrm.h`` without XFRMA_ or
    XFRM_STATE_).
    """

    key: SaKey
    source: IpAddress
    protocol: int
    mode: Mode
    reqid: int
    aead: AeadKey | None
    algorithm: str
    replay: Replay
    lifetime: Lifetime
    encap: UdpEncap | None = None
    mark: XfrmMark | None = None
    if_id: int = 0
    extras: frozenset[str] = frozenset()
    copies: HeaderCopies = USUAL_COPIES

    @property
    def larval(self) -> bool:
        """It is an SPI that charon has reserved, or an acquire that it was asked for: no SA yet."""
        return self.algorithm == NO_ALGORITHM


@dataclass(frozen=True, slots=True)
class Template:
    """A policy's template: outer addresses, SPI (0 while no SA is bound to it), reqid and mode. In transport mode the
    addresses are those of the policy, unspecified if it is for networks.
    """

    source: IpAddress
    destination: IpAddress
    spi: int
    protocol: int
    reqid: int
    mode: Mode


@dataclass(frozen=True, slots=True)
class XfrmPolicy:
    """A policy of the kernel. ``upper`` is a protocol, 0 for any. ``bound`` ones ask for an interface or a user too.

    Of those of one priority for the same two hosts XFRM tries the one with the lowest ``index`` first: the kernel
    numbers them as they come, and a change keeps place and number (``xfrm_policy_insert``).
    """

    direction: PolicyDirection
    source: IpNetwork
    destination: IpNetwork
    priority: int
    allow: bool
    templates: tuple[Template, ...]
    bound: bool = False
    upper: int = 0
    source_port: PortMatch = ANY_PORT
    destination_port: PortMatch = ANY_PORT
    mark: XfrmMark | None = None
    if_id: int = 0
    index: int = 0

    @property
    def transports(self) -> bool:
        """It asks for transport mode."""
        return any(template.mode is Mode.TRANSPORT for template in self.templates)

    @property
    def of_ends(self) -> bool:
        """It is for what the two ends of its SAs, of ESP, say to each other themselves, in transport or tunnel mode."""
        ends = self.source.network_address, self.destination.network_address
        return (
            all((one.source, one.destination) == ends and one.mode in _MODES for one in self.templates)
            and any(one.protocol == _ESP for one in self.templates)
            and self.selector.of_hosts
        )

    @property
    def selector(self) -> Selector:
        """What it is for."""
        return Selector(self.source, self.destination, self.upper, self.source_port, self.destination_port)


@dataclass(frozen=True, slots=True)
class ChildName:
    """What vici calls the CHILD_SA that an SPI belongs to."""

    connection: str
    child: str
    ike_id: int
    child_id: int
    state: str


class ConfiguredChild(NamedTuple):
    """A child of a connection, as `swanctl.conf` names both."""

    connection: str
    child: str


@dataclass(frozen=True, slots=True)
class Encapsulator:
    """A GRE or IPIP device of the kernel: what is routed to it goes from ``local`` to ``remote``, None for any.

    ``dscp`` tells that the outer header gets the DSCP of the packet inside, ``up`` that it sends and receives. ``link``
    is the interface that it is bound to, empty for none. ``oddity`` is what no engine could do in its place, as a
    sentence without its subject, empty for nothing.
    """

    interface: XfrmInterface
    local: IpAddress | None
    remote: IpAddress | None
    dscp: bool = False
    up: bool = True
    link: str = ""
    oddity: str = ""

    @property
    def protocol(self) -> int:
        """Of its packets, in the outer IP header."""
        return ENCAPSULATIONS[self.interface.kind]

    def __str__(self) -> str:
        return str(self.interface)


@dataclass(frozen=True, slots=True)
class Vti:
    """A VTI device of the kernel, from ``local`` to ``remote``, None for any. Its keys are marks: XFRM looks for
    policies and SAs of what is routed to it with ``out_mark``, of what comes for it with ``in_mark``.
    """

    interface: XfrmInterface
    local: IpAddress | None
    remote: IpAddress | None
    in_mark: int
    out_mark: int


@dataclass(frozen=True, slots=True)
class Vxlan:
    """A VXLAN device of the kernel, which sends frames with its ``vni`` from ``local``, None for any, to a ``port`` of
    one ``remote``. ``elsewhere`` is what its forwarding database leads to besides, in words.

    ``up``, ``link`` and ``oddity`` as an :class:`Encapsulator` has them.
    """

    interface: XfrmInterface
    local: IpAddress | None
    remote: IpAddress
    port: int
    vni: int = 0
    up: bool = True
    link: str = ""
    oddity: str = ""
    elsewhere: tuple[str, ...] = ()

    def __str__(self) -> str:
        return str(self.interface)


@dataclass(frozen=True, slots=True)
class LeadLimits:
    """Why packets cannot be led past XFRM: any of IPv6, those of IPv6 that this machine sends itself, or those that it
    sends to the other end of an SA, in IPv4. Empty: they can.
    """

    all6: str = ""
    local6: str = ""
    hosts: str = ""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One consistent look: kernel SAs and policies, vici's names by SPI, local addresses, outer next hops.

    ``names`` is keyed by both SPIs of a CHILD_SA. ``sources`` are charon's source hints by remote network, ``limits``
    is what cannot be led. ``interfaces`` are the XFRM interfaces by if_id, ``vtis`` the VTI devices, ``encapsulators``
    the GRE and IPIP devices, ``vxlans`` the VXLAN devices, ``charon`` is strongSwan's version.
    """

    sas: tuple[XfrmSa, ...] = ()
    policies: tuple[XfrmPolicy, ...] = ()
    names: dict[int, ChildName] = field(default_factory=dict)
    local_addresses: frozenset[IpAddress] = frozenset()
    next_hops: dict[IpAddress, ResolvedHop] = field(default_factory=dict)
    sources: dict[IpNetwork, IpAddress] = field(default_factory=dict)
    limits: LeadLimits = LeadLimits()
    interfaces: dict[int, XfrmInterface] = field(default_factory=dict)
    vtis: tuple[Vti, ...] = ()
    encapsulators: tuple[Encapsulator, ...] = ()
    vxlans: tuple[Vxlan, ...] = ()
    charon: str = ""

    @property
    def tagged(self) -> tuple[XfrmInterface, ...]:
        """All interfaces that a VLAN ID may have to stand for."""
        vtis, encapsulators = (one.interface for one in self.vtis), (one.interface for one in self.encapsulators)
        return (*self.interfaces.values(), *vtis, *encapsulators)


@dataclass(frozen=True, slots=True)
class ResolvedHop:
    """The kernel's answer to "how do packets reach this peer": interface, next hop, its MAC, path MTU as far as it is
    known. ``source`` is the address of ours that was asked for, None for any.
    """

    interface: str
    gateway: IpAddress
    mac: str
    mtu: int
    source: IpAddress | None = None
