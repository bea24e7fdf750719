"""The ethtool ioctl (``linux/ethtool.h``), in the network namespace of the calling thread.

Not /sys/class/net: sysfs shows the namespace in which it was mounted, which is another one after setns(2).
"""

from __future__ import annotations

import ctypes
import fcntl
import socket
import struct

STXCSUM, STSO, SGSO, GCHANNELS = 0x17, 0x1F, 0x24, 0x3C
"""Commands: set transmit checksum, TCP segmentation and generic segmentation; get channels."""

_SIOCETHTOOL = 0x8946  # linux/sockios.h
_IFREQ = struct.Struct("16sP16x")  # struct ifreq: name, pointer to the command


def ethtool(interface: str, command: bytes) -> bytes:
    """Give the kernel a command structure and return it as the kernel left it. Raises OSError."""
    buffer = ctypes.create_string_buffer(command, len(command))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SIOCETHTOOL, _IFREQ.pack(interface.encode(), ctypes.addressof(buffer)))
    return buffer.raw


def turn_off(interface: str, *features: int) -> None:
    """Switch features off (``struct ethtool_value``). Raises OSError."""
    for feature in features:
        ethtool(interface, struct.pack("=II", feature, 0))
