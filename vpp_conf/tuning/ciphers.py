"""What tune measures: the AEADs that the gateway accelerates, and AES-CBC with SHA-256 beside them. Pure.

CBC is left to the kernel (VPP 26.02 and later draw a single random byte for an IV): it is measured for those who ask
what another cipher would cost, and for a VPP that gets it right one day.
"""

from __future__ import annotations

from dataclasses import dataclass

from ipsec_gw.model.algorithms import ALGORITHMS
from vpp_conf.crypto import HANDLER_NAMES
from vpp_conf.descriptors.sa import CRYPTO_NUMBERS

SHA_256_128 = 4
"""``IPSEC_API_INTEG_ALG_SHA_256_128`` (RFC 4868)."""

SHA_256_BYTES = 32


@dataclass(frozen=True, slots=True)
class Cipher:
    """``name`` is VPP's plain name; ``crypto`` and ``integrity`` are numbers of the API, 0 without one."""

    name: str
    crypto: int
    key_bytes: int
    integrity: int = 0
    integrity_bytes: int = 0


AEAD_CIPHERS = tuple(Cipher(HANDLER_NAMES[one], CRYPTO_NUMBERS[one.vpp], one.key_bytes) for one in ALGORITHMS)
CBC_CIPHERS = (
    Cipher("aes-128-cbc-sha2-256", 1, 16, SHA_256_128, SHA_256_BYTES),
    Cipher("aes-256-cbc-sha2-256", 3, 32, SHA_256_128, SHA_256_BYTES),
)
CIPHERS = (*AEAD_CIPHERS, *CBC_CIPHERS)
