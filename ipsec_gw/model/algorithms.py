"""The one table of ESP algorithms: kernel name, VPP number, key and salt lengths.

Sources: RFC 4106 (AES-GCM), RFC 7634 (ChaCha20-Poly1305), Linux ``net/xfrm/xfrm_algo.c`` for the
kernel's names, VPP ``ipsec_types.api`` (``vl_api_ipsec_crypto_alg_t``) for the numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

SALT_BYTES = 4
"""Both AEADs take the last four bytes of the kernel's key as salt (RFC 4106 §8.1, RFC 7634 §2)."""

ICV_BITS = 128
"""The only ICV length that VPP implements for these algorithms."""


@dataclass(frozen=True, slots=True)
class EspAlgorithm:
    """An ESP AEAD: ``name`` as swanctl prints it, ``kernel`` as XFRM names it.

    ``key_bytes`` excludes the salt. ``vpp`` is the suffix of ``IPSEC_API_CRYPTO_ALG_``.
    """

    name: str
    kernel: str
    key_bytes: int
    vpp: str


AES_GCM_128 = EspAlgorithm("AES_GCM_16-128", "rfc4106(gcm(aes))", 16, "AES_GCM_128")
AES_GCM_192 = EspAlgorithm("AES_GCM_16-192", "rfc4106(gcm(aes))", 24, "AES_GCM_192")
AES_GCM_256 = EspAlgorithm("AES_GCM_16-256", "rfc4106(gcm(aes))", 32, "AES_GCM_256")
CHACHA20_POLY1305 = EspAlgorithm("CHACHA20_POLY1305", "rfc7539esp(chacha20,poly1305)", 32, "CHACHA20_POLY1305")

ALGORITHMS = (AES_GCM_128, AES_GCM_192, AES_GCM_256, CHACHA20_POLY1305)


def find_aead(kernel_name: str, key_bytes: int, icv_bits: int) -> EspAlgorithm | None:
    """The algorithm that XFRM describes by name, key length (salt excluded) and ICV length, or None."""
    if icv_bits != ICV_BITS:
        return None
    for algorithm in ALGORITHMS:
        if (algorithm.kernel, algorithm.key_bytes) == (kernel_name, key_bytes):
            return algorithm
    return None
