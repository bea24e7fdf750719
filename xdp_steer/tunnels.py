"""The maps of IPsec policies: written so that a packet sees a far network's former policies or its new ones."""

from __future__ import annotations

import ctypes
import socket
from collections.abc import Iterable, Mapping
from ipaddress import IPv6Address

from ipsec_gw.model.ids import IpAddress, IpNetwork
from xdp_steer import libbpf
from xdp_steer.compile.tunnels import FarNet, TunnelRow
from xdp_steer.flow_layout import MAX_TUNNELS, TUNNEL_NETS, TUNNELS, TunnelKeyLeaf, TunnelLeaf, TunnelNetLeaf
from xdp_steer.layout import AddressLeaf
from xdp_steer.tables import refused

_SIDE_BITS = 32
_V4_BITS = 96


class TunnelTable:
    """Writes both maps. This process is the only writer; descriptors stay the caller's."""

    def __init__(self, maps: Mapping[str, int]) -> None:
        self._nets = maps[TUNNEL_NETS.name]
        self._tunnels = maps[TUNNELS.name]
        self._numbers: dict[FarNet, int] = {}
        self._lists: dict[FarNet, tuple[TunnelRow, ...]] = {}
        self._next = 1

    def replace(self, lists: Mapping[FarNet, tuple[TunnelRow, ...]]) -> bool:
        """Make these lists hold; False if they do already. Raises SteeringError when the kernel refuses a write."""
        if self._lists == dict(lists):
            return False
        changed = {far: rows for far, rows in lists.items() if self._lists.get(far) != rows}
        kept = {number for far, number in self._numbers.items() if far in lists and far not in changed}
        stale = self._entries(kept)
        gone = [key for key in self._keys() if bytes(key) not in {bytes(net_leaf(far)) for far in lists}]
        for far, rows in changed.items():
            self._numbers[far] = self._write(far, rows)
        with refused("removal of IPsec policies"):
            for key in gone:
                libbpf.map_delete(self._nets, key)
            libbpf.wait_for_programs()  # packets in flight may still go through a former list
            for entry in stale:
                libbpf.map_delete(self._tunnels, entry)
        self._numbers = {far: number for far, number in self._numbers.items() if far in lists}
        self._lists = dict(lists)
        return True

    def _write(self, far: FarNet, rows: Iterable[TunnelRow]) -> int:
        """A new list under a number that no list has, then the far network that leads to it."""
        number = self._free_number()
        with refused(f"IPsec policies of {far[1]}"):
            for n, row in enumerate(rows):
                libbpf.map_update(self._tunnels, TunnelKeyLeaf(number, n), tunnel_leaf(row))
            libbpf.map_update(self._nets, net_leaf(far), ctypes.c_uint32(number))
        return number

    def _free_number(self) -> int:
        taken = set(self._numbers.values())
        while self._next in taken:
            self._next = self._next % (2 * MAX_TUNNELS) + 1
        number, self._next = self._next, self._next % (2 * MAX_TUNNELS) + 1
        return number

    def _keys(self) -> list[TunnelNetLeaf]:
        return list(libbpf.map_keys(self._nets, TunnelNetLeaf))

    def _entries(self, kept: set[int]) -> list[TunnelKeyLeaf]:
        """All entries but those of the lists that stay. A former life's numbers are passed over from here on."""
        found = [key for key in libbpf.map_keys(self._tunnels, TunnelKeyLeaf) if key.list not in kept]
        if not self._numbers and found:
            self._next = max(key.list for key in found) % (2 * MAX_TUNNELS) + 1
        return found


def net_leaf(far: FarNet) -> TunnelNetLeaf:
    """The key of a far network."""
    side, network = far
    return TunnelNetLeaf(_SIDE_BITS + _mapped_bits(network), side, AddressLeaf.of(network.network_address))


def tunnel_leaf(row: TunnelRow) -> TunnelLeaf:
    """A policy as C has it."""
    near = row.near.network_address
    ports = [socket.htons(part) for match in (row.near_port, row.far_port) for part in (match.port, match.mask)]
    return TunnelLeaf(AddressLeaf.of(near), _mask(row.near), *ports, row.reqid, 0, row.protocol, row.action)


def _mapped_bits(network: IpNetwork) -> int:
    return network.prefixlen + (_V4_BITS if network.version == 4 else 0)


def _mask(network: IpNetwork) -> AddressLeaf:
    bits = _mapped_bits(network)
    mask: IpAddress = IPv6Address(((1 << bits) - 1) << (128 - bits))
    return AddressLeaf((ctypes.c_uint32 * 4).from_buffer_copy(mask.packed))
