"""Packet sizes: what fits into an ESP tunnel."""

from __future__ import annotations

_IPV6_HEADER = 40
_UDP_HEADER = 8
_ESP_HEADER = 8
_IV = 8
_ICV = 16
_TRAILER = 2
_ALIGNMENT = 4

IPV4_HEADER = 20
"""Without options."""

GRE_HEADER = 4
"""Without key, checksum and sequence number (RFC 2784)."""

VXLAN_HEADERS = 30
"""UDP, VXLAN (RFC 7348) and the Ethernet header inside, without a VLAN tag."""

IPV6_MINIMUM_MTU = 1280
"""What every link that carries IPv6 takes (RFC 8200 §5)."""

UPLINK_MTU = 1500
"""What the veth pair to an engine takes, in bytes of IP packet: a longer one is lost there."""


def inner_mtu(link_mtu: int, version: int, *, encapsulated: bool) -> int:
    """The largest inner IP packet, in bytes, whose AEAD tunnel-mode ESP fits into ``link_mtu``.

    RFC 4303 §2: payload, padding, pad length and next header are aligned to four bytes; RFC 4106 and
    RFC 7634: IV of 8 and ICV of 16 bytes. ``version`` is the outer IP version.
    """
    outer = IPV4_HEADER if version == 4 else _IPV6_HEADER
    room = link_mtu - outer - (_UDP_HEADER if encapsulated else 0) - _ESP_HEADER - _IV - _ICV
    return room // _ALIGNMENT * _ALIGNMENT - _TRAILER
