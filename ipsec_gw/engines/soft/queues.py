"""How many queues an interface has, asked in this process's network namespace.

By ethtool's ioctl and not from /sys/class/net: sysfs shows the namespace in which it was mounted, which is another
one after setns(2).
"""

from __future__ import annotations

import array
import errno
import fcntl
import socket
import struct

from ipsec_gw.errors import EngineUnavailable

_SIOCETHTOOL = 0x8946  # linux/sockios.h
_ETHTOOL_GCHANNELS = 0x3C  # linux/ethtool.h
_CHANNELS = struct.Struct("=9I")  # struct ethtool_channels: command, four maxima, rx, tx, other, combined
_IFREQ = struct.Struct("16sP16x")  # struct ifreq: name, pointer to the command
_NAME_BYTES = 15


def rx_queues(interface: str) -> int:
    """Receive queues of an interface, 1 where its driver has no notion of them. Raises EngineUnavailable."""
    channels = array.array("B", _CHANNELS.pack(_ETHTOOL_GCHANNELS, *(0,) * 8))
    name = interface.encode()
    if len(name) > _NAME_BYTES:
        raise EngineUnavailable(f"interface {interface} does not exist - check `ip link`")
    request = _IFREQ.pack(name, channels.buffer_info()[0])
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            fcntl.ioctl(control, _SIOCETHTOOL, request)
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return 1
        raise EngineUnavailable(
            f"interface {interface}: the kernel does not tell its queues ({error.strerror}) - check `ip link`"
        ) from None
    counts: tuple[int, ...] = _CHANNELS.unpack(channels.tobytes())
    rx, _, _, combined = counts[5:]
    return max(1, rx + combined)
