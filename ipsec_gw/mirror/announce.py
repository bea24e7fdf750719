"""Tells the neighbours on a link that an address is at this interface's MAC from now on.

Gratuitous ARP (RFC 5227 §3) and unsolicited neighbour advertisements (RFC 4861 §7.2.6): neighbours that knew the
address elsewhere follow at once, others take no notice.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import struct
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address

from ipsec_gw.model.ids import IpAddress, IpNetwork

MOST = 256
"""Addresses announced at once on an interface; others are asked for."""

_ETH_ARP, _ETH_IPV6, _ICMPV6, _ADVERTISEMENT = 0x0806, 0x86DD, 58, 136
_BROADCAST = b"\xff" * 6
_OVERRIDE = 1 << 29
_TARGET_LINK_LAYER = 2
_ALL_NODES, _ALL_NODES_MAC = IPv6Address("ff02::1"), bytes.fromhex("333300000001")


def announce(interface: str, mac: str, networks: Iterable[IpNetwork]) -> None:
    """Send one frame for each address, MOST at most. An interface that is down, or does not take them, is no error."""
    addresses = itertools.islice((address for network in networks for address in network), MOST)
    with contextlib.suppress(OSError), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
        sender.bind((interface, 0))
        for address in addresses:
            sender.send(frame(mac, address))


def frame(mac: str, address: IpAddress) -> bytes:
    """The Ethernet frame that announces an address."""
    ours = bytes.fromhex(mac.replace(":", ""))
    return _arp(ours, address) if isinstance(address, IPv4Address) else _advertisement(ours, address)


def _arp(mac: bytes, address: IPv4Address) -> bytes:
    """A request for the address itself."""
    header = struct.pack("!6s6sHHHBBH", _BROADCAST, mac, _ETH_ARP, 1, 0x0800, 6, 4, 1)
    return header + mac + address.packed + bytes(6) + address.packed


def _advertisement(mac: bytes, address: IPv6Address) -> bytes:
    body = struct.pack("!I16sBB6s", _OVERRIDE, address.packed, _TARGET_LINK_LAYER, 1, mac)
    ends = address.packed + _ALL_NODES.packed
    length = 4 + len(body)
    pseudo = ends + struct.pack("!II", length, _ICMPV6)
    checksum = _checksum(pseudo + struct.pack("!BBH", _ADVERTISEMENT, 0, 0) + body)
    return (
        struct.pack("!6s6sHIHBB", _ALL_NODES_MAC, mac, _ETH_IPV6, 6 << 28, length, _ICMPV6, 255)
        + ends
        + struct.pack("!BBH", _ADVERTISEMENT, 0, checksum)
        + body
    )


def _checksum(data: bytes) -> int:
    """RFC 1071, of an even number of octets."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
