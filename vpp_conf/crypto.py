"""Which crypto engine does what in the running VPP. No API message tells, so its CLI is read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

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
SIMPLE_PAIR = re.compile(
    r"^(?P<name>[a-z0-9-]+)\s*enc\s*(?P<enc>.*?)(?:\s{2,}.*)?\n\s+dec\s*(?P<dec>.*?)(?:\s{2,}|$)", re.MULTILINE
)

HANDLER_NAMES = {
    AES_GCM_128: "aes-128-gcm",
    AES_GCM_192: "aes-192-gcm",
    AES_GCM_256: "aes-256-gcm",
    CHACHA20_POLY1305: "chacha20-poly1305",
}
"""ESP uses only the combined handlers ``NAME-icv16-aad8`` and, with ESN, ``NAME-icv16-aad12``."""


@dataclass(frozen=True, slots=True)
class SimpleHandler:
    """``engines`` are those that can both encrypt and decrypt, ``encrypts`` and ``decrypts`` name who does.

    Simple: on whole packets in one buffer each; packets over several buffers have handlers of their own.
    """

    engines: frozenset[str]
    encrypts: str | None
    decrypts: str | None


def parse_simple_handlers(text: str) -> Mapping[str, SimpleHandler]:
    """The simple handlers in ``show crypto handlers`` by VPP's names."""
    found = {}
    for pair in SIMPLE_PAIR.finditer(COLOURS.sub("", text)):
        able = [frozenset(name.rstrip("*") for name in pair[kind].split()) - {"-"} for kind in ("enc", "dec")]
        active = [star[1] if (star := ACTIVE.search(pair[kind])) else None for kind in ("enc", "dec")]
        found[pair["name"]] = SimpleHandler(able[0] & able[1], active[0], active[1])
    return found


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
