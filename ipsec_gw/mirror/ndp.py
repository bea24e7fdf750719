"""Settings of an interface that answers for addresses it does not hold, in the network namespace of the caller."""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from pathlib import Path

_NET = Path("/proc/sys/net")


def is_on(interface: str) -> bool:
    """Whether neighbour proxies of IPv6 are looked at there."""
    return any(_number(f"ipv6/conf/{name}/proxy_ndp") for name in ("all", interface))


def switch_on(interface: str) -> None:
    """Look at them, and answer at once: the delay is for proxies that the owner may be faster than.

    An interface that is gone is no error. Raises OSError.
    """
    with contextlib.suppress(FileNotFoundError):
        (_NET / f"ipv6/neigh/{interface}/proxy_delay").write_text("0")
        (_NET / f"ipv6/conf/{interface}/proxy_ndp").write_text("1")


def switch_off(interface: str) -> None:
    """Undo that; the delay is the default again. An interface that is gone is no error."""
    default = _NET / "ipv6/neigh/default/proxy_delay"  # not in every namespace: the loopback's is the default there
    delay = default if default.exists() else _NET / "ipv6/neigh/lo/proxy_delay"
    with contextlib.suppress(OSError):
        (_NET / f"ipv6/conf/{interface}/proxy_ndp").write_text("0")
        (_NET / f"ipv6/neigh/{interface}/proxy_delay").write_text(delay.read_text())


def obstacles(interface: str, versions: Collection[int]) -> list[str]:
    """Settings of the operator's with which the kernel does not answer, as ``name = value``."""
    found = []
    ignore = max(_number(f"ipv4/conf/{name}/arp_ignore") for name in ("all", interface))
    if 4 in versions and ignore:
        found.append(f"net.ipv4.conf.{interface}.arp_ignore = {ignore}")
    if 6 in versions and not _number(f"ipv6/conf/{interface}/forwarding"):
        found.append(f"net.ipv6.conf.{interface}.forwarding = 0")
    return found


def _number(setting: str) -> int:
    """Zero if there is no such interface, or no IPv6 on it."""
    try:
        return int((_NET / setting).read_text())
    except OSError:
        return 0
