"""The objects that ipsec-gw keeps in place: what `desired` asks for and `plan` compares.

Each is a frozen value with a ``key``. Engines hold :class:`EngineSa`, :class:`NextHop` and
:class:`Tunnel`; the gateway itself holds :class:`Guard`, :class:`Steer` and :class:`Lead`.
"""

from __future__ import annotations

from dataclasses import dataclass

from ipsec_gw.model.algorithms import EspAlgorithm
from ipsec_gw.model.ids import Direction, IpAddress, IpNetwork, SaKey, TunnelId
from ipsec_gw.model.secret import Secret


@dataclass(frozen=True, slots=True)
class UdpEncap:
    """RFC 3948 encapsulation: both UDP ports as XFRMA_ENCAP has them (host order)."""

    source_port: int
    destination_port: int


@dataclass(frozen=True, slots=True)
class EngineSa:
    """An SA as an engine needs it.

    ``source`` and ``key.destination`` are the outer tunnel addresses. ``secret`` is the cipher key without
    the salt. ``replay_window`` is in packets, 0 for none; engines may round it up.
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


@dataclass(frozen=True, slots=True)
class Selector:
    """A traffic selector pair of whole subnets, as the outbound policy has it: source and destination."""

    source: IpNetwork
    destination: IpNetwork

    def __str__(self) -> str:
        return f"{self.source} === {self.destination}"


MAX_INBOUND = 4
"""Inbound SAs that one tunnel holds at a time (VPP's tunnel protection, ``ipsec_tun.h``)."""


@dataclass(frozen=True, slots=True)
class Tunnel:
    """A tunnel of an engine: decrypts what its ``inbound`` SAs bring, encrypts ``selectors`` with ``outbound``.

    ``inbound`` holds one to four keys (four: VPP's limit, kept by `desired`).
    """

    key: TunnelId
    local: IpAddress
    remote: IpAddress
    inbound: tuple[SaKey, ...]
    outbound: SaKey
    selectors: tuple[Selector, ...]


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
    ``mtu`` is what fits into the tunnel, in bytes of inner IP packet. Both depend on the destination alone.
    """

    key: Selector
    source_hint: IpAddress | None
    mtu: int


EngineObject = EngineSa | NextHop | Tunnel
GatewayObject = Guard | Steer | Lead
ManagedObject = EngineObject | GatewayObject
EngineKey = SaKey | IpAddress | TunnelId
ObjectKey = EngineKey | GuardKey | SteerKey | Selector
