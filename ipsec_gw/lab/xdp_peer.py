"""An XDP program that passes everything: a veth takes what XDP at its peer sends only with a program of its own."""

from __future__ import annotations

import ctypes
import os
import platform
import socket
import struct

from ipsec_gw.errors import EnvironmentMissing
from ipsec_gw.lab.netns import inside

SYS_BPF = {"x86_64": 321, "aarch64": 280}
BPF_PROG_LOAD, BPF_LINK_CREATE, BPF_PROG_TYPE_XDP, BPF_XDP, XDP_FLAGS_DRV_MODE = 5, 28, 6, 37, 4
"""``linux/bpf.h``, ``linux/if_link.h``."""

INSTRUCTIONS = struct.pack("=BBhiBBhi", 0xB7, 0, 0, 2, 0x95, 0, 0, 0)
"""``r0 = XDP_PASS; exit``"""

ATTRIBUTE_BYTES = 128
_libc = ctypes.CDLL(None, use_errno=True)


def pass_all(namespace: str, interface: str) -> int:
    """Attach the program. It stays until the descriptor that is returned is closed. Raises EnvironmentMissing."""
    code, words = ctypes.create_string_buffer(INSTRUCTIONS), ctypes.create_string_buffer(b"GPL")
    load = struct.pack("=IIQQ", BPF_PROG_TYPE_XDP, 2, ctypes.addressof(code), ctypes.addressof(words))
    program = _bpf(BPF_PROG_LOAD, load, interface)
    try:
        with inside(namespace):
            link = struct.pack("=IIII", program, socket.if_nametoindex(interface), BPF_XDP, XDP_FLAGS_DRV_MODE)
            return _bpf(BPF_LINK_CREATE, link, interface)
    finally:
        os.close(program)


def _bpf(command: int, attribute: bytes, interface: str) -> int:
    buffer = ctypes.create_string_buffer(attribute, ATTRIBUTE_BYTES)
    number = SYS_BPF.get(platform.machine())
    if number is None:
        raise EnvironmentMissing(f"the number of bpf(2) on {platform.machine()} is unknown - use x86_64 or aarch64")
    done: int = _libc.syscall(number, command, buffer, ATTRIBUTE_BYTES)
    if done < 0:
        said = os.strerror(ctypes.get_errno())
        raise EnvironmentMissing(f"{interface}: no XDP program can be attached: {said} - run as root")
    return done
