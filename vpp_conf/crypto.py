"""Which crypto engine does what in the running VPP. No API message tells, so its CLI is read."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ipsec_gw.model.algorithms import (
    AES_GCM_128,
    AES_GCM_192,
    AES_GCM_256,
    ALGORITHMS,
    CHACHA20_POLY1305,
    EspAlgorithm,
)
from vpp_conf.api import VppApi

COLOURS = re.compile(r"\x1b\[[0-9;]*m")
ROW = re.compile(r"^(?P<name>[a-z0-9-]+-icv16-aad(?:8|12))\s*enc\s*(?P<simple>.*?)(?:\s{2,}|$)", re.MULTILINE)
ACTIVE = re.compile(r"(\S+)\*")

HANDLER_NAMES = {
    AES_GCM_128: "aes-128-gcm",
    AES_GCM_192: "aes-192-gcm",
    AES_GCM_256: "aes-256-gcm",
    CHACHA20_POLY1305: "chacha20-poly1305",
}
"""ESP uses only the combined handlers ``NAME-icv16-aad8`` and, with ESN, ``NAME-icv16-aad12``."""


async def crypto_handlers(api: VppApi) -> Mapping[EspAlgorithm, str]:
    """The engine that encrypts each algorithm, with and without ESN; algorithms without one are left out."""
    return parse_handlers(await api.cli("show crypto handlers"))


def parse_handlers(text: str) -> Mapping[EspAlgorithm, str]:
    """Read ``show crypto handlers``: the active engine of a row carries a star."""
    active = {
        row["name"]: star[1] for row in ROW.finditer(COLOURS.sub("", text)) if (star := ACTIVE.search(row["simple"]))
    }
    return {
        algorithm: active[f"{HANDLER_NAMES[algorithm]}-icv16-aad8"]
        for algorithm in ALGORITHMS
        if all(f"{HANDLER_NAMES[algorithm]}-icv16-aad{aad}" in active for aad in (8, 12))
    }
