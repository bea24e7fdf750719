"""How many queues an interface has, asked in this process's network namespace."""

from __future__ import annotations

import errno
import struct

from ipsec_gw.errors import EngineUnavailable
from ipsec_gw.mirror.ethtool import GCHANNELS, ethtool

_CHANNELS = struct.Struct("=9I")  # struct ethtool_channels: command, four maxima, rx, tx, other, combined
_NAME_BYTES = 15


def rx_queues(interface: str) -> int:
    """Receive queues of an interface, 1 where its driver has no notion of them. Raises EngineUnavailable."""
    if len(interface.encode()) > _NAME_BYTES:
        raise EngineUnavailable(f"interface {interface} does not exist - check `ip link`")
    try:
        channels = ethtool(interface, _CHANNELS.pack(GCHANNELS, *(0,) * 8))
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return 1
        raise EngineUnavailable(
            f"interface {interface}: the kernel does not tell its queues ({error.strerror}) - check `ip link`"
        ) from None
    counts: tuple[int, ...] = _CHANNELS.unpack(channels)
    rx, _, _, combined = counts[5:]
    return max(1, rx + combined)
