"""Rows of the :class:`~vpp_conf.journal.Journal` as values, and back. No row ever holds a key."""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network
from typing import Any

from ipsec_gw.model.ids import IpAddress, SaKey, TunnelId
from ipsec_gw.model.objects import (
    DeviceHeader,
    EngineSa,
    InterfaceKind,
    NextHop,
    Overlay,
    OverlayKey,
    PortMatch,
    Selector,
    Tunnel,
    XfrmInterface,
)
from vpp_conf.journal import Row


@dataclass(frozen=True, slots=True)
class SaRecord:
    """Which ``sad_id`` an SA has, and what was asked for: the replay window, and whether DF is copied (it is not).

    ``source`` is that of an SA in transport mode, of which VPP knows no addresses; None in tunnel mode. Of one behind
    ``gre`` also whether its tunnel copies DSCP: VPP does not tell.
    """

    key: SaKey
    sad_id: int
    window: int
    df: bool = True
    source: IpAddress | None = None
    gre: GreRecord | None = None

    @property
    def is_transport(self) -> bool:
        """It is between hosts, and not behind GRE."""
        return self.source is not None and self.gre is None

    @classmethod
    def of(cls, sa: EngineSa, sad_id: int) -> SaRecord:
        """Of an SA with this number."""
        gre = GreRecord(sa.copies.dscp) if sa.gre else None
        source = sa.source if sa.transport or sa.gre else None
        return cls(sa.key, sad_id, sa.replay_window, sa.copies.df, source, gre)


@dataclass(frozen=True, slots=True)
class GreRecord:
    """Of an SA behind GRE: whether DSCP is copied."""

    dscp: bool


@dataclass(frozen=True, slots=True)
class TunnelRecord:
    """A tunnel and where it is in VPP: its interface or its number behind the gate, the VLAN subinterface of its XFRM
    interface or device, the IPsec interface of its outer tunnel, and the number behind the ``gate`` of one that sends
    there and receives by its interface.
    """

    tunnel: Tunnel
    sw_if_index: int
    door: int | None = None
    outer: int | None = None
    gate: int | None = None


@dataclass(frozen=True, slots=True)
class OverlayRecord:
    """An overlay and where it is in VPP: the ``sw_if_index`` of its VLAN subinterface and of its VXLAN tunnel."""

    overlay: Overlay
    vlan: int
    tunnel: int


def sa_row(record: SaRecord) -> Row:
    source = {} if record.source is None else {"source": str(record.source)}
    gre = {} if record.gre is None else {"gre": {"dscp": record.gre.dscp}}
    return {**_sa_key(record.key), "sad_id": record.sad_id, "window": record.window, "df": record.df, **source, **gre}


def read_sa(row: Row) -> SaRecord:
    source = ip_address(row["source"]) if "source" in row else None
    gre = GreRecord(row["gre"]["dscp"]) if "gre" in row else None
    return SaRecord(_read_sa_key(row), row["sad_id"], row["window"], row.get("df", True), source, gre)


def hop_row(hop: NextHop) -> Row:
    return {
        "peer": str(hop.key),
        "local": str(hop.local),
        "interface": hop.interface,
        "gateway": str(hop.gateway),
        "mac": hop.mac,
    }


def read_hop(row: Row) -> NextHop:
    return NextHop(
        ip_address(row["peer"]), ip_address(row["local"]), row["interface"], ip_address(row["gateway"]), row["mac"]
    )


def tunnel_row(record: TunnelRecord) -> Row:
    tunnel = record.tunnel
    return {
        "reqid": tunnel.key.reqid,
        "peer": str(tunnel.key.remote),
        "local": str(tunnel.local),
        "remote": str(tunnel.remote),
        "inbound": [_sa_key(key) for key in tunnel.inbound],
        "outbound": _sa_key(tunnel.outbound),
        "selectors": [_selector_row(selector) for selector in tunnel.selectors],
        "exceptions": [_selector_row(selector) for selector in tunnel.exceptions],
        "sw_if_index": record.sw_if_index,
        "hosts": tunnel.hosts,
        "rank": tunnel.rank,
        **_interface_row(record),
        **_header_row(record),
        **({} if record.gate is None else {"gate": record.gate}),
    }


def read_tunnel(row: Row) -> TunnelRecord:
    tunnel = Tunnel(
        key=TunnelId(row["reqid"], ip_address(row["peer"])),
        local=ip_address(row["local"]),
        remote=ip_address(row["remote"]),
        inbound=tuple(_read_sa_key(key) for key in row["inbound"]),
        outbound=_read_sa_key(row["outbound"]),
        selectors=tuple(map(_read_selector, row["selectors"])),
        exceptions=tuple(map(_read_selector, row.get("exceptions", ()))),  # older versions wrote none
        interface=_read_interface(row["interface"]) if "interface" in row else None,
        hosts=row.get("hosts", False),
        rank=row.get("rank", 0),
        header=_read_header(row["header"]) if "header" in row else None,
    )
    return TunnelRecord(tunnel, row["sw_if_index"], row.get("door"), row.get("outer"), row.get("gate"))


def overlay_row(record: OverlayRecord) -> Row:
    overlay = record.overlay
    return {
        "interface": _interface(overlay.key.interface),
        "vni": overlay.vni,
        "local": str(overlay.local),
        "remote": str(overlay.remote),
        "port": overlay.port,
        "tunnels": [[key.reqid, str(key.remote)] for key in sorted(overlay.tunnels)],
        "vlan": record.vlan,
        "tunnel": record.tunnel,
    }


def read_overlay(row: Row) -> OverlayRecord:
    overlay = Overlay(
        key=OverlayKey(_read_interface(row["interface"])),
        vni=row["vni"],
        local=ip_address(row["local"]),
        remote=ip_address(row["remote"]),
        port=row["port"],
        tunnels=frozenset(TunnelId(reqid, ip_address(remote)) for reqid, remote in row["tunnels"]),
    )
    return OverlayRecord(overlay, row["vlan"], row["tunnel"])


def _interface_row(record: TunnelRecord) -> Row:
    interface = record.tunnel.interface
    if interface is None:
        return {}
    return {"interface": _interface(interface), "door": record.door}


def _header_row(record: TunnelRecord) -> Row:
    header = record.tunnel.header
    if header is None:
        return {}
    return {"header": [str(header.local), str(header.remote), header.gre, header.dscp], "outer": record.outer}


def _read_header(row: list[Any]) -> DeviceHeader:
    return DeviceHeader(ip_address(row[0]), ip_address(row[1]), gre=row[2], dscp=row[3])


def _interface(interface: XfrmInterface) -> list[Any]:
    return [interface.index, interface.name, interface.kind.name]


def _read_interface(row: list[Any]) -> XfrmInterface:
    """Older versions knew XFRM interfaces alone, and wrote no kind."""
    return XfrmInterface(row[0], row[1], *(InterfaceKind[kind] for kind in row[2:]))


def _selector_row(selector: Selector) -> list[Any]:
    """Both networks, the protocol, and both ports with their masks."""
    ports = [selector.source_port.port, selector.source_port.mask]
    ports += [selector.destination_port.port, selector.destination_port.mask]
    return [str(selector.source), str(selector.destination), selector.protocol, *ports]


def _read_selector(row: list[Any]) -> Selector:
    networks = Selector(ip_network(row[0]), ip_network(row[1]))
    if len(row) == 2:  # of an older version
        return networks
    protocol, *ports = row[2:]
    return replace(
        networks, protocol=protocol, source_port=PortMatch(*ports[:2]), destination_port=PortMatch(*ports[2:])
    )


def _sa_key(key: SaKey) -> Row:
    return {"destination": str(key.destination), "spi": key.spi}


def _read_sa_key(row: Row) -> SaKey:
    return SaKey(ip_address(row["destination"]), row["spi"])
