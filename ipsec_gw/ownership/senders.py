"""Packet sockets by which held packets go on (packet(7))."""

from __future__ import annotations

import socket
from types import TracebackType

from ipsec_gw.engines.soft.packets import parse_mac

_SOL_PACKET, _PACKET_QDISC_BYPASS = 263, 20
"""``linux/socket.h``, ``linux/if_packet.h``; Python does not have them."""


class PacketSenders:
    """Into ``interface``, the kernel's end of the veth pair, towards the engine's end, and by interfaces of the WAN.

    What goes to the engine was judged before the kernel encrypted it: it passes no queueing and no filter again. What
    goes to the WAN passes both, and so the guard. Use it as a context manager.
    """

    def __init__(self, interface: str, own_mac: str, engine_mac: str) -> None:
        """Raises OSError."""
        self._header = parse_mac(engine_mac) + parse_mac(own_mac)
        self._engine = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        try:
            self._engine.setsockopt(_SOL_PACKET, _PACKET_QDISC_BYPASS, 1)
            self._engine.bind((interface, 0))
            self._wan = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        except BaseException:
            self._engine.close()
            raise

    def to_engine(self, ethertype: int, packet: bytes) -> None:
        """Give an IP packet to the engine as plaintext of an accelerated tunnel. Raises OSError."""
        self._engine.send(self._header + ethertype.to_bytes(2, "big") + packet)

    def to_wan(self, ifindex: int, frame: bytes) -> None:
        """Send a frame by an interface, past the guard. Raises OSError."""
        self._wan.sendto(frame, (socket.if_indextoname(ifindex), int.from_bytes(frame[12:14], "big")))

    def __enter__(self) -> PacketSenders:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._engine.close()
        self._wan.close()
