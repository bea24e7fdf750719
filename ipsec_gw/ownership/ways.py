"""The ways of packets that waited: packet sockets, to the engine's end of the veth pair and to the wire."""

from __future__ import annotations

import socket
import struct

_SOL_PACKET, _PACKET_QDISC_BYPASS = 263, 20
"""linux/if_packet.h. A packet that was judged before it was encrypted is not judged again on TC egress."""

_ETHERTYPE_VLAN = 0x8100
_ETHERTYPES = {4: 0x0800, 6: 0x86DD}


class PacketWays:
    """``interface`` is the kernel's end of the pair; MACs are in colon notation. ``mark`` is what the guard knows
    packets by that have waited. Raises OSError.
    """

    def __init__(self, interface: str, source_mac: str, engine_mac: str, mark: int) -> None:
        self._addresses = _mac(engine_mac) + _mac(source_mac)
        self._plain = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        for sender in (self._plain, self._raw):
            sender.setblocking(False)
        self._raw.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, struct.pack("=I", mark))
        self._plain.setsockopt(_SOL_PACKET, _PACKET_QDISC_BYPASS, 1)
        self._plain.bind((interface, 0))

    def to_engine(self, packet: bytes, vlan: int) -> None:
        """A clear IP packet into the pair, behind a VLAN ID or, for 0, without one. If there is no engine it comes back
        to the kernel, which encrypts it.
        """
        tag = struct.pack("!HH", _ETHERTYPE_VLAN, vlan) if vlan else b""
        self._plain.send(self._addresses + tag + _ETHERTYPES[packet[0] >> 4].to_bytes(2, "big") + packet)

    def to_wire(self, ifindex: int, frame: bytes) -> None:
        """An Ethernet frame out by an interface, past the programs on its TC egress, the guard among them."""
        self._raw.sendto(frame, (socket.if_indextoname(ifindex), 0))

    def close(self) -> None:
        """Give the sockets back."""
        self._plain.close()
        self._raw.close()


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))
