"""The ESP transform: RFC 4303 with the AEADs of RFC 4106 (AES-GCM) and RFC 7634 (ChaCha20-Poly1305).

Pure: bytes in, bytes out, no state beyond the key. Sequence numbers, windows and IVs are the caller's.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from ipsec_gw.engines.soft.drops import Dropped, DropReason
from ipsec_gw.errors import EngineError
from ipsec_gw.model.algorithms import ALGORITHMS, CHACHA20_POLY1305, SALT_BYTES, EspAlgorithm
from ipsec_gw.model.secret import Secret

HEADER_BYTES = 8
"""SPI and sequence number (RFC 4303 §2)."""
IV_BYTES = 8
"""RFC 4106 §3.1, RFC 7634 §2."""
ICV_BYTES = 16
TRAILER_BYTES = 2
"""Pad length and next header."""
ALIGNMENT = 4
"""RFC 4303 §2.4: the ICV starts at a multiple of four bytes; both AEADs are stream ciphers and need no more."""
OVERHEAD_BYTES = HEADER_BYTES + IV_BYTES + TRAILER_BYTES + ICV_BYTES
"""What ESP adds to a packet, padding not counted."""

_HEADER = struct.Struct("!II")
_AAD_ESN = struct.Struct("!IQ")
_PADDING = bytes(range(1, 256))


@dataclass(frozen=True, slots=True)
class EspHeader:
    """The clear part of an ESP packet: ``sequence`` is the low 32 bits."""

    spi: int
    sequence: int


@dataclass(frozen=True, slots=True)
class EspPayload:
    """What an ESP packet carried; ``data`` may still end in TFC padding (RFC 4303 §2.7)."""

    next_header: int
    data: bytes


def parse_header(packet: bytes) -> EspHeader:
    """SPI and sequence number. Raises Dropped (malformed) if the packet cannot hold an empty ESP payload."""
    if len(packet) < OVERHEAD_BYTES:
        raise Dropped(DropReason.MALFORMED)
    return EspHeader(*_HEADER.unpack_from(packet))


def sealed_length(payload_length: int) -> int:
    """Bytes of the ESP packet that carries a payload of this length."""
    return payload_length + _padding_length(payload_length) + OVERHEAD_BYTES


def strip_trailer(plaintext: bytes) -> EspPayload:
    """Take padding and next header off an authentic plaintext. Raises Dropped (padding)."""
    padding_length, next_header = plaintext[-2:]
    end = len(plaintext) - TRAILER_BYTES - padding_length
    if end < 0 or plaintext[end:-TRAILER_BYTES] != _PADDING[:padding_length]:
        raise Dropped(DropReason.PADDING)
    return EspPayload(next_header, plaintext[:end])


class EspTransform:
    """Seals and opens the packets of one SA. Its ``repr`` shows nothing of the key.

    Raises EngineError if the key or the salt have the wrong length, or the local OpenSSL lacks the algorithm.
    """

    __slots__ = ("_aead", "_esn", "_salt", "_spi")

    def __init__(self, spi: int, algorithm: EspAlgorithm, secret: Secret, salt: Secret, *, esn: bool) -> None:
        self._spi = spi  # first: tracebacks ask even half-made objects for their repr
        _check_lengths(spi, algorithm, secret, salt)
        self._esn = esn
        try:
            # The one place where keys are revealed, and never in a local variable: tracebacks can show those.
            self._aead = (ChaCha20Poly1305 if algorithm == CHACHA20_POLY1305 else AESGCM)(secret.reveal())
        except UnsupportedAlgorithm:
            raise EngineError(
                f"SA {spi:08x}: OpenSSL here has no {algorithm.name} - leave this SA to the kernel"
            ) from None
        self._salt = salt.reveal()

    def __repr__(self) -> str:
        return f"EspTransform(spi={self._spi:08x})"

    def seal(self, sequence: int, iv: bytes, payload: EspPayload) -> bytes:
        """The ESP packet for a payload. ``sequence`` is the full number; ``iv`` must never repeat under this key."""
        padding_length = _padding_length(len(payload.data))
        trailer = _PADDING[:padding_length] + bytes((padding_length, payload.next_header))
        sealed = self._aead.encrypt(self._salt + iv, payload.data + trailer, self._aad(sequence))
        return _HEADER.pack(self._spi, sequence & 0xFFFFFFFF) + iv + sealed

    def open(self, sequence: int, packet: bytes) -> bytes:
        """The authentic plaintext, trailer included, of a packet whose full sequence number is known.

        Raises Dropped (authentication).
        """
        body = HEADER_BYTES + IV_BYTES
        try:
            return self._aead.decrypt(self._salt + packet[HEADER_BYTES:body], packet[body:], self._aad(sequence))
        except InvalidTag:
            raise Dropped(DropReason.AUTHENTICATION) from None

    def _aad(self, sequence: int) -> bytes:
        """RFC 4106 §5, RFC 7634 §2.1: with ESN all 64 bits are authenticated though 32 travel."""
        return (_AAD_ESN if self._esn else _HEADER).pack(self._spi, sequence)


def supported_algorithms() -> frozenset[EspAlgorithm]:
    """Those of our table that the local OpenSSL has (FIPS builds lack ChaCha20)."""
    return frozenset(algorithm for algorithm in ALGORITHMS if _is_supported(algorithm))


def _is_supported(algorithm: EspAlgorithm) -> bool:
    probe_key, probe_salt = Secret(bytes(algorithm.key_bytes)), Secret(bytes(SALT_BYTES))
    try:
        EspTransform(0, algorithm, probe_key, probe_salt, esn=False)
    except EngineError:
        return False
    return True


def _check_lengths(spi: int, algorithm: EspAlgorithm, secret: Secret, salt: Secret) -> None:
    for what, value, wanted in (("key", secret, algorithm.key_bytes), ("salt", salt, SALT_BYTES)):
        if len(value) != wanted:
            raise EngineError(
                f"SA {spi:08x}: {what} has {len(value)} bytes, {algorithm.name} takes {wanted} - check `ip xfrm state`"
            )


def _padding_length(payload_length: int) -> int:
    return -(payload_length + TRAILER_BYTES) % ALIGNMENT
