"""A network namespace for the calling thread."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CLONE_NEWNET = 0x40000000

_libc = ctypes.CDLL(None, use_errno=True)


def enter_namespace(fd: int) -> None:
    if _libc.setns(fd, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def ip(command: str) -> None:
    subprocess.run(["ip", *command.split()], check=True, capture_output=True)


@contextmanager
def namespace(name: str) -> Iterator[None]:
    """A fresh network namespace for the calling thread, removed afterwards."""
    home = os.open("/proc/self/ns/net", os.O_RDONLY)
    ip(f"netns add {name}")
    try:
        inside = os.open(f"/run/netns/{name}", os.O_RDONLY)
        enter_namespace(inside)
        os.close(inside)
        Path("/proc/sys/net/ipv6/conf/default/disable_ipv6").write_text("1")  # no router solicitations between ours
        yield
    finally:
        enter_namespace(home)
        os.close(home)
        ip(f"netns del {name}")
