"""The ESP keys of both gateways, read straight from their kernels, for the oracle.

Deliberately not built on :mod:`ipsec_gw.ike`: an error there must not be able to hide itself. Layouts are those of
``linux/xfrm.h`` (``xfrm_usersa_info``, ``xfrm_algo_aead``).
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address

from ipsec_gw.errors import XfrmError
from ipsec_gw.lab.netns import inside
from ipsec_gw.model.ids import IpAddress
from ipsec_gw.model.secret import Secret

NETLINK_XFRM = 6
SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, XFRMNLGRP_SA = 270, 1, 3
NLMSG_ERROR, NLMSG_DONE = 2, 3
XFRM_MSG_NEWSA, XFRM_MSG_DELSA, XFRM_MSG_GETSA, XFRM_MSG_UPDSA = 0x10, 0x11, 0x12, 0x1A
NLM_F_REQUEST, NLM_F_DUMP = 0x1, 0x300
XFRMA_REPLAY_VAL, XFRMA_ALG_AEAD, XFRMA_REPLAY_ESN_VAL = 10, 18, 23
XFRM_STATE_ESN = 128
ALGORITHMS = frozenset((1, 2, 3, XFRMA_ALG_AEAD, 20))
"""XFRMA_ALG_AUTH, CRYPT, COMP, AEAD and AUTH_TRUNC."""

HEADER = struct.Struct("=IHHII")
USERSA_BYTES, DESTINATION, SPI, PROTOCOL, SOURCE, CURRENT, REQID, FAMILY, MODE, FLAGS = (
    224,
    56,
    72,
    76,
    80,
    160,
    208,
    212,
    214,
    216,
)
"""Offsets into ``xfrm_usersa_info``: the selector takes 56 bytes, then id, saddr, lft, curlft, stats, seq."""

XFRM_MODE_TRANSPORT = 0
RECEIVE_BYTES = 4 << 20
SALT_BYTES = 4


@dataclass(frozen=True, slots=True)
class KernelSa:
    """An ESP SA as a kernel holds it. ``aead`` is the kernel's name, ``salt`` the last four bytes of its key,
    ``received`` the highest sequence number that it has seen.
    """

    source: IpAddress
    destination: IpAddress
    spi: int
    reqid: int
    aead: str
    key: Secret
    salt: Secret
    octets: int
    packets: int
    esn: bool = False
    transport: bool = False
    received: int = 0


def messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and body of each netlink message in ``data``."""
    offset = 0
    while offset + HEADER.size <= len(data):
        length, kind, *_ = HEADER.unpack_from(data, offset)
        if length < HEADER.size:
            return
        yield kind, data[offset + HEADER.size : offset + length]
        offset += (length + 3) & ~3


def attributes(data: bytes) -> dict[int, bytes]:
    """Netlink attributes by type."""
    found: dict[int, bytes] = {}
    offset = 0
    while offset + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, offset)
        if length < 4:
            break
        found[kind & 0x3FFF] = data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found


def parse_sa(body: bytes) -> KernelSa | None:
    """The SA of a NEWSA or UPDSA, or None if it is not an ESP SA with an AEAD."""
    if len(body) < USERSA_BYTES or body[PROTOCOL] != socket.IPPROTO_ESP:
        return None
    (family,) = struct.unpack_from("=H", body, FAMILY)
    found = attributes(body[USERSA_BYTES:])
    aead = found.get(XFRMA_ALG_AEAD)
    if aead is None:
        return None
    length = 4 if family == socket.AF_INET else 16
    key_bits, _ = struct.unpack_from("=II", aead, 64)
    key = aead[72 : 72 + key_bits // 8]
    octets, packets = struct.unpack_from("=QQ", body, CURRENT)
    return KernelSa(
        source=ip_address(body[SOURCE : SOURCE + length]),
        destination=ip_address(body[DESTINATION : DESTINATION + length]),
        spi=struct.unpack_from(">I", body, SPI)[0],
        reqid=struct.unpack_from("=I", body, REQID)[0],
        aead=aead[:64].split(b"\0")[0].decode(),
        key=Secret(key[:-SALT_BYTES]),
        salt=Secret(key[-SALT_BYTES:]),
        octets=octets,
        packets=packets,
        esn=bool(body[FLAGS] & XFRM_STATE_ESN),
        transport=body[MODE] == XFRM_MODE_TRANSPORT,
        received=_received(found),
    )


def _received(found: dict[int, bytes]) -> int:
    """Of ``xfrm_replay_state_esn`` or ``xfrm_replay_state``."""
    if extended := found.get(XFRMA_REPLAY_ESN_VAL):
        _, _, low, _, high = struct.unpack_from("=5I", extended)
        return int(high << 32 | low)
    plain = found.get(XFRMA_REPLAY_VAL)
    return int(struct.unpack_from("=2I", plain)[1]) if plain else 0


def _open(namespace: str) -> socket.socket:
    with inside(namespace):
        opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_XFRM)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
    opened.bind((0, 0))
    return opened


def dump(namespace: str) -> tuple[KernelSa, ...]:
    """The ESP SAs with an AEAD that the kernel holds now. Raises XfrmError."""
    return tuple(sa for body in bodies(namespace) if (sa := parse_sa(body)) is not None)


@dataclass(frozen=True, slots=True)
class Claim:
    """What is known of any SA, of whatever protocol and cipher."""

    destination: IpAddress
    spi: int
    reqid: int
    esp: bool
    transforms: bool


def claims(namespace: str) -> tuple[Claim, ...]:
    """All SAs that the kernel holds now; without transforms are those whose SPI is only allocated. Raises XfrmError."""
    return tuple(_claim(body) for body in bodies(namespace) if len(body) >= USERSA_BYTES)


def _claim(body: bytes) -> Claim:
    (family,) = struct.unpack_from("=H", body, FAMILY)
    return Claim(
        destination=ip_address(body[DESTINATION : DESTINATION + (4 if family == socket.AF_INET else 16)]),
        spi=struct.unpack_from(">I", body, SPI)[0],
        reqid=struct.unpack_from("=I", body, REQID)[0],
        esp=body[PROTOCOL] == socket.IPPROTO_ESP,
        transforms=bool(ALGORITHMS & attributes(body[USERSA_BYTES:]).keys()),
    )


def bodies(namespace: str) -> tuple[bytes, ...]:
    """Each SA that the kernel holds, as ``xfrm_usersa_info`` with its attributes. Raises XfrmError."""
    with _open(namespace) as link:
        link.settimeout(10.0)
        link.send(HEADER.pack(HEADER.size, XFRM_MSG_GETSA, NLM_F_REQUEST | NLM_F_DUMP, 1, 0))
        found: list[bytes] = []
        while True:
            for kind, body in messages(link.recv(1 << 18)):
                if kind == NLMSG_DONE:
                    return tuple(found)
                if kind == NLMSG_ERROR:
                    code = -struct.unpack_from("=i", body)[0]
                    raise XfrmError(f"{namespace}: SA dump refused: {os.strerror(code)}", code)
                found.append(body)


class SaDiary:
    """Every SA that the kernel of a namespace had since :meth:`open`: rekeys delete keys that a capture still needs."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._link = _open(namespace)
        self._link.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, XFRMNLGRP_SA)
        self._link.setblocking(False)
        self._seen: dict[tuple[IpAddress, int], KernelSa] = {}

    def close(self) -> None:
        """Stop listening."""
        self._link.close()

    def drain(self) -> None:
        """Take in what the kernel told since last time. Raises XfrmError if some of it was lost."""
        while True:
            try:
                data = self._link.recv(1 << 18)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    raise XfrmError(
                        f"{self._namespace}: SA messages lost - the run proves nothing", errno.ENOBUFS
                    ) from error
                raise
            for kind, body in messages(data):
                if kind in (XFRM_MSG_NEWSA, XFRM_MSG_UPDSA):
                    self._note(parse_sa(body))

    def _note(self, sa: KernelSa | None) -> None:
        if sa is not None:
            self._seen[sa.destination, sa.spi] = sa

    def all(self) -> dict[tuple[IpAddress, int], KernelSa]:
        """By destination and SPI, everything seen so far."""
        self.drain()
        return dict(self._seen)
