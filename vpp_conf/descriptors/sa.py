"""ESP security associations (``vnet/ipsec/ipsec.api``)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from ipsec_gw.errors import EngineError
from ipsec_gw.model.algorithms import ALGORITHMS, SALT_BYTES, EspAlgorithm
from ipsec_gw.model.ids import IpAddress
from ipsec_gw.model.objects import UdpEncap
from ipsec_gw.model.secret import Secret
from vpp_conf.descriptors.base import Descriptor, from_address, to_address

USE_ESN = 0x01
USE_ANTI_REPLAY = 0x02
IS_TUNNEL = 0x04
UDP_ENCAP = 0x10
IS_INBOUND = 0x40
"""``vl_api_ipsec_sad_flags_t``."""

COPY_DSCP = 0x04
COPY_ECN = 0x08
DECAP_COPY_ECN = 0x10
"""``vl_api_tunnel_encap_decap_flags_t``.
DF is left clear outside: until path MTU messages about ESP are followed, the network may fragment."""

PROTOCOL_ESP = 50
ALL_SAS = 0xFFFFFFFF
SMALLEST_WINDOW = 64
KEEP_PORT = 0xFFFF
"""VPP's "no port": an SA cannot have it (``IPSEC_UDP_PORT_NONE``)."""
DEFAULT_PORT = 4500

CRYPTO_NUMBERS = {"AES_GCM_128": 7, "AES_GCM_192": 8, "AES_GCM_256": 9, "CHACHA20_POLY1305": 12}
"""``vl_api_ipsec_crypto_alg_t`` by :attr:`EspAlgorithm.vpp`."""


@dataclass(frozen=True, slots=True)
class SadEntry:
    """An SA of VPP. ``stat_index`` is its place in the stats vectors, given by VPP and reused after a delete.

    ``window`` is what VPP really uses: 0 for no anti-replay, else a power of two of at least 64. VPP knows no addresses
    of a ``transport`` SA: as retrieved it has unspecified ones.
    """

    sad_id: int
    spi: int
    inbound: bool
    source: IpAddress
    destination: IpAddress
    algorithm: EspAlgorithm
    secret: Secret
    salt: Secret
    esn: bool
    window: int
    encap: UdpEncap | None = None
    dscp: bool = True
    ecn: bool = True
    transport: bool = False
    stat_index: int = field(default=0, compare=False)


def real_window(asked: int) -> int:
    """The anti-replay window that VPP makes of the one asked for, in packets (``ipsec_sa.c``)."""
    return 0 if asked == 0 else max(SMALLEST_WINDOW, 1 << (asked - 1).bit_length())


class SaDescriptor(Descriptor[SadEntry]):
    """SAs. A ``sad_id`` must be fresh: VPP frees it only with the last reference to the SA."""

    kind = "sa"

    async def create(self, value: SadEntry) -> SadEntry:
        """Raises EngineError also for a key of the wrong length: VPP would lose a pool slot over it."""
        check_lengths(value)
        _check_ports(value)
        reply = await self._api.call("ipsec_sad_entry_add_v2", entry=_to_entry(value))
        return replace(value, stat_index=reply.stat_index)

    async def update(self, old: SadEntry, new: SadEntry) -> SadEntry:
        """Outer addresses and UDP ports can change, nothing else; VPP is not told addresses of a transport SA."""
        moved = replace(old, source=new.source, destination=new.destination, encap=new.encap)
        if moved != new or (old.encap is None) != (new.encap is None):
            raise EngineError(f"SA {old.spi:08x} is not changed in place - only its addresses and ports can move")
        _check_ports(new)
        await self._api.call(
            "ipsec_sad_entry_update",
            sad_id=old.sad_id,
            is_tun=not new.transport,
            tunnel=_tunnel(new),
            udp_src_port=new.encap.source_port if new.encap else KEEP_PORT,
            udp_dst_port=new.encap.destination_port if new.encap else KEEP_PORT,
        )
        return replace(new, stat_index=old.stat_index)

    async def delete(self, value: SadEntry) -> None:
        """VPP keeps an SA alive, and decrypting, while a tunnel still uses it: take it out there first."""
        await self._api.call("ipsec_sad_entry_del", id=value.sad_id)

    async def retrieve(self) -> tuple[SadEntry, ...]:
        """All ESP SAs whose algorithm the gateway knows, keys included."""
        details = await self._api.dump("ipsec_sa_v5_dump", sa_id=ALL_SAS)
        numbers = {CRYPTO_NUMBERS[algorithm.vpp]: algorithm for algorithm in ALGORITHMS}
        return tuple(
            SadEntry(
                sad_id=detail.entry.sad_id,
                spi=detail.entry.spi,
                inbound=bool(detail.entry.flags & IS_INBOUND),
                source=from_address(detail.entry.tunnel.src),
                destination=from_address(detail.entry.tunnel.dst),
                algorithm=numbers[detail.entry.crypto_algorithm],
                secret=Secret(bytes(detail.entry.crypto_key.data[: detail.entry.crypto_key.length])),
                # The dump swaps the bytes of the number that the add took as it is.
                salt=Secret(detail.entry.salt.to_bytes(SALT_BYTES, "little")),
                esn=bool(detail.entry.flags & USE_ESN),
                window=detail.entry.anti_replay_window_size if detail.entry.flags & USE_ANTI_REPLAY else 0,
                encap=(
                    UdpEncap(detail.entry.udp_src_port, detail.entry.udp_dst_port)
                    if detail.entry.flags & UDP_ENCAP
                    else None
                ),
                dscp=not _is_tunnel(detail) or bool(detail.entry.tunnel.encap_decap_flags & COPY_DSCP),
                ecn=not _is_tunnel(detail) or bool(detail.entry.tunnel.encap_decap_flags & COPY_ECN),
                transport=not _is_tunnel(detail),
                stat_index=detail.stat_index,
            )
            for detail in details
            if detail.entry.crypto_algorithm in numbers
        )


def _is_tunnel(detail: Any) -> bool:
    return bool(detail.entry.flags & IS_TUNNEL)


def check_lengths(value: SadEntry) -> None:
    """Raises EngineError if key or salt do not have the algorithm's length."""
    if len(value.secret) != value.algorithm.key_bytes:
        raise EngineError(
            f"SA {value.spi:08x}: key has {len(value.secret)} bytes, {value.algorithm.name} takes "
            f"{value.algorithm.key_bytes}"
        )
    if len(value.salt) != SALT_BYTES:
        raise EngineError(f"SA {value.spi:08x}: salt has {len(value.salt)} bytes, {SALT_BYTES} are needed")


def _check_ports(value: SadEntry) -> None:
    """Raises EngineError for UDP ports that VPP would take for others."""
    for port in (value.encap.source_port, value.encap.destination_port) if value.encap else ():
        if port in {0, KEEP_PORT}:
            raise EngineError(f"SA {value.spi:08x}: VPP has no UDP port {port} - leave it to the kernel")


def _to_entry(value: SadEntry) -> dict[str, object]:
    flags = 0 if value.transport else IS_TUNNEL
    flags |= IS_INBOUND if value.inbound else 0
    flags |= USE_ESN if value.esn else 0
    flags |= USE_ANTI_REPLAY if value.window else 0
    flags |= UDP_ENCAP if value.encap else 0
    return {
        "sad_id": value.sad_id,
        "spi": value.spi,
        "protocol": PROTOCOL_ESP,
        "crypto_algorithm": CRYPTO_NUMBERS[value.algorithm.vpp],
        "crypto_key": {"length": len(value.secret), "data": value.secret.reveal()},
        "integrity_algorithm": 0,
        "integrity_key": {"length": 0, "data": b""},
        "flags": flags,
        "tunnel": _tunnel(value),
        "salt": int.from_bytes(value.salt.reveal(), "big"),
        "udp_src_port": value.encap.source_port if value.encap else DEFAULT_PORT,
        "udp_dst_port": value.encap.destination_port if value.encap else DEFAULT_PORT,
        "anti_replay_window_size": value.window or SMALLEST_WINDOW,
    }


def _tunnel(value: SadEntry) -> dict[str, object]:
    copied = (COPY_DSCP if value.dscp else 0) | (COPY_ECN | DECAP_COPY_ECN if value.ecn else 0)
    return outer_tunnel(value.source, value.destination, copied)


def outer_tunnel(
    source: IpAddress, destination: IpAddress, copied: int = COPY_DSCP | COPY_ECN | DECAP_COPY_ECN
) -> dict[str, object]:
    """``vl_api_tunnel_t`` in the outer table; ``copied`` are flags of what goes from header to header."""
    return {
        "instance": 0xFFFFFFFF,
        "src": to_address(source),
        "dst": to_address(destination),
        "sw_if_index": 0xFFFFFFFF,
        "table_id": 0,
        "encap_decap_flags": copied,
        "mode": 0,
        "flags": 0,
        "dscp": 0,
        "hop_limit": 0,
    }
