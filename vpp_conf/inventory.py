"""What the gateway holds in a VPP, as asked for and as VPP has it."""

from __future__ import annotations

from dataclasses import dataclass, field

from ipsec_gw.model.ids import Direction, IpAddress, SaKey, TunnelId
from ipsec_gw.model.objects import EngineSa, HeaderCopies, NextHop, Overlay, OverlayKey, Tunnel
from vpp_conf.descriptors.classify import Diversion
from vpp_conf.descriptors.route import ENCAP_TABLE
from vpp_conf.descriptors.sa import SadEntry, real_window
from vpp_conf.gate_loops import WHOLE
from vpp_conf.gates import GateParts, is_gate_way
from vpp_conf.overlays import OverlayParts
from vpp_conf.records import SaRecord, TunnelRecord
from vpp_conf.sieve import Sift
from vpp_conf.tunnels import TunnelParts

FIRST_SAD_ID = 0x4000_0000
LAST_SAD_ID = 0x7FFF_FFFF
"""The gateway's own range: an SA with another ``sad_id`` is somebody else's."""


@dataclass(frozen=True, slots=True)
class HeldSa:
    """An SA as asked for, and what VPP made of it."""

    sa: EngineSa
    entry: SadEntry


@dataclass(frozen=True, slots=True)
class HeldTunnel:
    """A tunnel as asked for, and its parts in VPP."""

    tunnel: Tunnel
    parts: TunnelParts | GateParts

    @property
    def sending(self) -> GateParts | None:
        """What of it is behind the gates, of one that receives by an interface."""
        return self.parts.gate if isinstance(self.parts, TunnelParts) else None

    @property
    def record(self) -> TunnelRecord:
        """Where it is."""
        if isinstance(self.parts, GateParts):
            return TunnelRecord(self.tunnel, self.parts.way)
        door, outer, gate = self.parts.door, self.parts.outer, self.parts.gate
        return TunnelRecord(
            self.tunnel,
            self.parts.interface.sw_if_index,
            None if door is None else door.sw_if_index,
            None if outer is None else outer.sw_if_index,
            None if gate is None else gate.way,
        )


@dataclass(frozen=True, slots=True)
class HeldOverlay:
    """An overlay as asked for, and its parts in VPP."""

    overlay: Overlay
    parts: OverlayParts


@dataclass(slots=True)
class Inventory:
    """All objects of the gateway in one VPP. ``locals`` are the addresses ESP is received for, by interface."""

    sas: dict[SaKey, HeldSa] = field(default_factory=dict)
    hops: dict[IpAddress, NextHop] = field(default_factory=dict)
    tunnels: dict[TunnelId, HeldTunnel] = field(default_factory=dict)
    overlays: dict[OverlayKey, HeldOverlay] = field(default_factory=dict)
    locals: dict[IpAddress, int] = field(default_factory=dict)
    highest_sad_id: int = FIRST_SAD_ID

    def hold(self, held: HeldTunnel) -> None:
        """Add a tunnel, or put it in the place of the one with its key."""
        self.tunnels[held.tunnel.key] = held

    def drop(self, key: TunnelId) -> None:
        """Forget a tunnel; an unknown one is fine."""
        self.tunnels.pop(key, None)

    @property
    def unwrapped(self) -> frozenset[Sift]:
        """What overlays take of what comes out of the tunnels behind the gates."""
        return frozenset(held.parts.sift for held in self.overlays.values() if self.gated(held.overlay))

    def diversions(self, key: TunnelId) -> frozenset[Diversion]:
        """What overlays take of what comes out of a tunnel with an interface."""
        return frozenset(self.overlays[one].parts.diversion for one in self.over(key))

    def gated(self, overlay: Overlay) -> bool:
        """Whether one of its tunnels receives behind the gates."""
        return any(isinstance(held.parts, GateParts) for key, held in self.tunnels.items() if key in overlay.tunnels)

    def table_of(self, overlay: Overlay) -> int:
        """The FIB by which what an overlay sends gets into its tunnels: all is whole already."""
        return WHOLE if all(is_gate_way(self.tunnels[key].parts.way) for key in overlay.tunnels) else ENCAP_TABLE

    def at(self, way: int) -> TunnelId:
        """The tunnel of an IPsec interface, or of a number behind the gate. Raises KeyError if there is none."""
        for key, held in self.tunnels.items():
            if held.parts.way == way:
                return key
        raise KeyError(way)

    def over(self, key: TunnelId) -> list[OverlayKey]:
        """Overlays that need this tunnel."""
        return [one for one, held in self.overlays.items() if key in held.overlay.tunnels]

    def users(self, key: SaKey | IpAddress) -> list[TunnelId]:
        """Tunnels that need this SA or next hop."""
        return [
            tunnel_id
            for tunnel_id, held in self.tunnels.items()
            if key in (held.tunnel.outbound, held.tunnel.remote, *held.tunnel.inbound)
        ]


def engine_sa(entry: SadEntry, record: SaRecord) -> EngineSa:
    """The SA that this entry was made from, with what was asked for."""
    return EngineSa(
        key=SaKey(entry.destination, entry.spi),
        direction=Direction.IN if entry.inbound else Direction.OUT,
        source=entry.source,
        algorithm=entry.algorithm,
        secret=entry.secret,
        salt=entry.salt,
        esn=entry.esn,
        replay_window=record.window,
        encap=entry.encap,
        copies=HeaderCopies(entry.dscp, entry.ecn, record.df),
        transport=record.is_transport,
        gre=record.gre is not None,
    )


def sad_entry(sa: EngineSa, sad_id: int) -> SadEntry:
    """The entry to make for an SA."""
    return SadEntry(
        sad_id=sad_id,
        spi=sa.key.spi,
        inbound=sa.direction is Direction.IN,
        source=sa.source,
        destination=sa.key.destination,
        algorithm=sa.algorithm,
        secret=sa.secret,
        salt=sa.salt,
        esn=sa.esn,
        window=real_window(sa.replay_window),
        encap=sa.encap,
        dscp=sa.copies.dscp,
        ecn=sa.copies.ecn,
        transport=sa.transport or sa.gre,
    )
