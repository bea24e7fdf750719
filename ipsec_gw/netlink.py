"""Raw netlink, below what pyroute2 decodes: framing of datagrams, ears for notifications (``linux/netlink.h``)."""

from __future__ import annotations

import errno
import socket
import struct
import sys
from collections.abc import Iterable, Iterator

NETLINK_ROUTE, NETLINK_XFRM, NETLINK_NETFILTER = 0, 6, 12
NLM_F_REQUEST, NLM_F_ACK, NLM_F_REPLACE, NLM_F_DUMP = 0x1, 0x4, 0x100, 0x300
NLMSG_ERROR, NLMSG_DONE = 2, 3
HEADER = struct.Struct("=IHHII")
"""``struct nlmsghdr``: length, type, flags, sequence number, port."""

RECEIVE_BYTES = 1 << 18
EAR_BYTES = 8 << 20
"""Of notifications that wait, as charon's own ``receive_buffer_size``: a burst of thousands must not overflow it."""

RTNLGRP_LINK, RTNLGRP_NEIGH = 1, 3
RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV4_RULE = 5, 7, 8
RTNLGRP_IPV6_IFADDR, RTNLGRP_IPV6_ROUTE, RTNLGRP_IPV6_RULE = 9, 11, 19
"""``enum rtnetlink_groups`` (``linux/rtnetlink.h``)."""

_MAX_ERRNO = 4095  # linux/err.h
_ATTRIBUTE = struct.Struct("=HH")
_SOL_NETLINK, _ADD_MEMBERSHIP, _SO_RCVBUFFORCE = 270, 1, 33


def messages(datagram: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Type, sequence number and bytes, header included, of each message. Raises ValueError at one that is not whole."""
    offset = 0
    while offset < len(datagram):
        if offset + HEADER.size > len(datagram):
            raise ValueError(f"{len(datagram) - offset} bytes of a header")
        length, kind, _, sequence, _ = HEADER.unpack_from(datagram, offset)
        if length < HEADER.size or offset + length > len(datagram):
            raise ValueError(f"a message of {length} bytes")
        yield kind, sequence, datagram[offset : offset + length]
        offset += _aligned(length)


def attributes(raw: bytes) -> Iterator[tuple[int, bytes]]:
    """Type, with its flags, and payload of each attribute. Raises ValueError at one that is not whole."""
    offset = 0
    while offset < len(raw):
        if offset + _ATTRIBUTE.size > len(raw):
            raise ValueError(f"{len(raw) - offset} bytes of an attribute")
        length, kind = _ATTRIBUTE.unpack_from(raw, offset)
        if length < _ATTRIBUTE.size or offset + length > len(raw):
            raise ValueError(f"an attribute of {length} bytes")
        yield kind, raw[offset + _ATTRIBUTE.size : offset + length]
        offset += _aligned(length)


def attribute(kind: int, payload: bytes) -> bytes:
    """An attribute as it is sent, padded."""
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(payload), kind) + payload + bytes(-len(payload) % 4)


def error_code(message: bytes) -> int:
    """The errno of an error or of the end of a dump, 0 for success. Raises ValueError if there is none."""
    code = -int.from_bytes(message[HEADER.size : HEADER.size + 4], sys.byteorder, signed=True)
    if len(message) < HEADER.size + 4 or not 0 <= code <= _MAX_ERRNO:
        raise ValueError(f"an error {code} in {len(message)} bytes")
    return code


class Ear:
    """Notifications of some groups of a protocol, for ``loop.add_reader``. ``overruns`` counts what was lost."""

    def __init__(self, protocol: int, groups: Iterable[int]) -> None:
        self.overruns = 0
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        self._socket = socket.socket(socket.AF_NETLINK, kind, protocol)
        self._socket.bind((0, 0))
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, EAR_BYTES)
        for group in groups:
            self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)

    def fileno(self) -> int:
        """Readable while there are notifications."""
        return self._socket.fileno()

    def datagrams(self) -> Iterator[bytes | None]:
        """Whatever is queued; None for what was lost."""
        while True:
            try:
                yield self._socket.recv(RECEIVE_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self.overruns += 1
                yield None

    def close(self) -> None:
        """Hear nothing more."""
        self._socket.close()


def _aligned(length: int) -> int:
    return (length + 3) & ~3
