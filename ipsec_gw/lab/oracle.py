"""An ESP receiver of our own: what the wire really carried, said by neither kernel nor engine.

RFC 4303 (ESP), RFC 4106 (AES-GCM), RFC 7634 (ChaCha20-Poly1305), both modes, around GRE, IPIP and VXLAN too, sequence
numbers of 32 and of 64 bits.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from ipsec_gw.errors import IpsecGwError
from ipsec_gw.lab.kernel_sas import KernelSa
from ipsec_gw.model.ids import IpAddress

IPPROTO_IPIP, IPPROTO_IPV6, IPPROTO_GRE = 4, 41, 47
TUNNELLED = frozenset({IPPROTO_IPIP, IPPROTO_IPV6, IPPROTO_GRE})
"""Next headers before an IP packet: in tunnel mode, and in transport mode around what a device sends."""

PLAIN_GRE = {bytes.fromhex("00000800"): IPPROTO_IPIP, bytes.fromhex("000086dd"): IPPROTO_IPV6}
"""GRE headers without key, checksum and number (RFC 2784), and what is behind them as tunnel mode would call it."""

IPPROTO_UDP, VXLAN_PORT, VXLAN_HEADERS = 17, 4789, 30
"""Around an IPv4 packet (RFC 7348): UDP, VXLAN and Ethernet."""
VNI_GIVEN, IPV4 = b"\x08", b"\x08\0"

PIECE = 0x3FFF
"""More fragments, or an offset (RFC 791)."""

HIGH = (0, 1)
"""Upper halves of extended sequence numbers that are tried; no lab goes further."""

IV_BYTES, ICV_BYTES, ESP_HEADER_BYTES = 8, 16, 8

CIPHERS: dict[str, Callable[[bytes], AESGCM | ChaCha20Poly1305]] = {
    "rfc4106(gcm(aes))": AESGCM,
    "rfc7539esp(chacha20,poly1305)": ChaCha20Poly1305,
}


class NotGenuine(IpsecGwError):
    """A packet that a correct peer would not have sent: bad tag, padding, or not a tunnel packet."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A decrypted ESP packet: sequence number, its upper half alone, IV and the inner IP packet."""

    sequence: int
    iv: bytes
    inner: bytes
    high: int = 0


@dataclass(frozen=True, slots=True)
class EspPacket:
    """ESP as the WAN saw it: outer addresses and the ESP payload; in UDP (RFC 3948) its ports, source first. ``high``
    is the upper half of an extended sequence number, which the wire does not tell (RFC 4303 §2.2.1).
    """

    source: IpAddress
    destination: IpAddress
    payload: bytes
    ports: tuple[int, int] | None = None
    high: int = 0

    @property
    def spi(self) -> int:
        """Host order."""
        return int.from_bytes(self.payload[:4], "big")

    @property
    def sequence(self) -> int:
        """The 32 bits on the wire, above them those that are known besides."""
        return self.high << 32 | int.from_bytes(self.payload[4:8], "big")

    @property
    def iv(self) -> bytes:
        """The explicit nonce."""
        return self.payload[8:16]


class Oracle:
    """Opens packets with keys that the kernels gave. Ciphers are kept: a run opens thousands with a handful."""

    def __init__(self) -> None:
        self._ciphers: dict[tuple[str, int], AESGCM | ChaCha20Poly1305] = {}

    def open(self, packet: EspPacket, sa: KernelSa) -> Opened:
        """Decrypt and verify one packet of ``sa``. Raises NotGenuine naming the packet."""
        name = f"ESP {packet.destination}/{packet.spi:08x} seq {packet.sequence}"
        if len(packet.payload) < ESP_HEADER_BYTES + IV_BYTES + ICV_BYTES + 2:
            raise NotGenuine(f"{name}: {len(packet.payload)} bytes are too short")
        nonce, spi, number = sa.salt.reveal() + packet.iv, packet.payload[:4], packet.payload[4:8]
        for high in HIGH if sa.esn else (0,):
            above = high.to_bytes(4, "big") if sa.esn else b""
            try:
                plain = self._cipher(sa).decrypt(nonce, packet.payload[16:], spi + above + number)
            except InvalidTag:
                continue
            inner = _transport_mode(packet, plain, name) if sa.transport else _of_device(strip_trailer(plain, name))
            return Opened(high << 32 | packet.sequence, packet.iv, inner, high)
        raise NotGenuine(f"{name}: the tag does not verify")

    def _cipher(self, sa: KernelSa) -> AESGCM | ChaCha20Poly1305:
        index = (str(sa.destination), sa.spi)
        if index not in self._ciphers:
            if sa.aead not in CIPHERS:
                raise NotGenuine(f"{sa.destination}/{sa.spi:08x}: no oracle for {sa.aead}")
            self._ciphers[index] = CIPHERS[sa.aead](sa.key.reveal())
        return self._ciphers[index]


def _transport_mode(packet: EspPacket, plain: bytes, name: str) -> bytes:
    """What a device or a host has sent."""
    if plain[-1] in TUNNELLED:
        return strip_trailer(plain, name)
    found = _of_vxlan(_unpadded(plain, name)) if plain[-1] == IPPROTO_UDP else b""
    return found or _transported(packet, plain, name)


def _of_device(packet: bytes) -> bytes:
    """What a device has put into an IPv4 packet of its own, before tunnel mode protected that; or the packet."""
    header_bytes = (packet[0] & 0x0F) * 4
    if packet[0] >> 4 != 4 or int.from_bytes(packet[6:8], "big") & PIECE:
        return packet
    protocol, payload = packet[9], packet[header_bytes:]
    if protocol == IPPROTO_GRE and payload[:4] in PLAIN_GRE:
        return payload[4:]
    if protocol == IPPROTO_IPIP:
        return payload
    return (_of_vxlan(payload) if protocol == IPPROTO_UDP else b"") or packet


def _of_vxlan(payload: bytes) -> bytes:
    """The IPv4 packet in UDP that a VXLAN device sends, empty if it is something else (ARP)."""
    to_device = int.from_bytes(payload[2:4], "big") == VXLAN_PORT
    is_ip = payload[8:9] == VNI_GIVEN and payload[VXLAN_HEADERS - 2 : VXLAN_HEADERS] == IPV4
    return payload[VXLAN_HEADERS:] if to_device and is_ip else b""


def _transported(packet: EspPacket, plain: bytes, name: str) -> bytes:
    """What was protected in transport mode, behind a bare IPv4 header of its addresses and protocol."""
    payload = _unpadded(plain, name)
    lengths = struct.pack(">BBHIBBH", 0x45, 0, 20 + len(payload), 0, 64, plain[-1], 0)
    return lengths + packet.source.packed + packet.destination.packed + payload


def _unpadded(plain: bytes, name: str) -> bytes:
    padding = plain[-2]
    if len(plain) < padding + 2 or plain[-2 - padding : -2] != bytes(range(1, padding + 1)):
        raise NotGenuine(f"{name}: padding is not 1, 2, 3, ...")
    return plain[: len(plain) - 2 - padding]


def strip_trailer(plain: bytes, name: str) -> bytes:
    """Check and remove RFC 4303 §2.4 padding and the next header, and a GRE header (transport mode). Raises
    NotGenuine.
    """
    following = plain[-1]
    if following not in TUNNELLED:
        raise NotGenuine(f"{name}: next header {following} is not IP in a tunnel")
    inner = _unpadded(plain, name)
    if following == IPPROTO_GRE:
        if inner[:4] not in PLAIN_GRE:
            raise NotGenuine(f"{name}: the GRE header is not a plain one")
        following, inner = PLAIN_GRE[inner[:4]], inner[4:]
    if following == IPPROTO_IPV6:
        if len(inner) < 40 or inner[0] >> 4 != 6 or struct.unpack_from(">H", inner, 4)[0] != len(inner) - 40:
            raise NotGenuine(f"{name}: the inner packet is not IPv6 of its own length")
        return inner
    if len(inner) < 20 or inner[0] >> 4 != 4 or struct.unpack_from(">H", inner, 2)[0] != len(inner):
        raise NotGenuine(f"{name}: the inner packet is not IPv4 of its own length")
    return inner
