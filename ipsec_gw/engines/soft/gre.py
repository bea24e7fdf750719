"""The GRE header between ESP and the packet inside (RFC 2784): four bytes, with no flag set. Pure."""

from __future__ import annotations

import struct

from ipsec_gw.engines.soft.drops import Dropped, DropReason
from ipsec_gw.engines.soft.esp import EspPayload
from ipsec_gw.engines.soft.packets import ETHERTYPE_IPV4, ETHERTYPE_IPV6, PROTOCOL_GRE, PROTOCOL_IPIP, PROTOCOL_IPV6

_HEADER = struct.Struct("!HH")
"""Flags and version, EtherType."""

_ETHERTYPES = {PROTOCOL_IPIP: ETHERTYPE_IPV4, PROTOCOL_IPV6: ETHERTYPE_IPV6}
_INSIDE = {ethertype: protocol for protocol, ethertype in _ETHERTYPES.items()}


def wrap(payload: EspPayload) -> EspPayload:
    """What tunnel mode would carry, behind a GRE header."""
    return EspPayload(PROTOCOL_GRE, _HEADER.pack(0, _ETHERTYPES[payload.next_header]) + payload.data)


def unwrap(payload: EspPayload) -> EspPayload:
    """What is behind the GRE header, as tunnel mode would carry it. Raises Dropped (next_header) for anything else, and
    for GRE with a key, a checksum or a sequence number.
    """
    if payload.next_header != PROTOCOL_GRE or len(payload.data) < _HEADER.size:
        raise Dropped(DropReason.NEXT_HEADER)
    flags, ethertype = _HEADER.unpack_from(payload.data)
    if flags or ethertype not in _INSIDE:
        raise Dropped(DropReason.NEXT_HEADER)
    return EspPayload(_INSIDE[ethertype], payload.data[_HEADER.size :])
