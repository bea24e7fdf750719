"""The ethtool ioctl (``linux/ethtool.h``), in the network namespace of the calling thread.

Not /sys/class/net: sysfs shows the namespace in which it was mounted, which is another one after setns(2).
"""

from __future__ import annotations

import ctypes
import fcntl
import socket
import struct

GDRVINFO, STXCSUM, SSG, STSO, SGSO, GCHANNELS = 0x03, 0x17, 0x19, 0x1F, 0x24, 0x3C
"""Commands: get driver; set transmit checksum, scatter-gather, TCP and generic segmentation; get channels."""

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


_DRVINFO = struct.Struct("=I32s32s32s32s64x")  # struct ethtool_drvinfo: command, driver, version, firmware, bus


def has_device(interface: str) -> bool:
    """Whether there is a device on a bus behind an interface (hardware, virtio), and not software alone (veth, tun)."""
    try:
        answer = ethtool(interface, _DRVINFO.pack(GDRVINFO, b"", b"", b"", b""))
    except OSError:
        return False
    bus: bytes = _DRVINFO.unpack(answer)[4]
    return bool(bus.rstrip(b"\0"))
