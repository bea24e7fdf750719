"""Kernel settings of interfaces, and what they were before: names of empty directories beside the interface's pins.

A packet that source NAT has given an address of this machine comes in by another interface: the kernel must accept that
(``accept_local``) and not expect it elsewhere (``rp_filter`` loose, which is the larger number and so wins over
``all``).
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

TRANSLATED = {"accept_local": "1", "rp_filter": "2"}
"""For interfaces whose packets XDP translates before it passes them on."""

IPV6 = "ipv6:"
"""Before the names of settings of IPv6; the others are of IPv4."""
_NOTE = "sysctl:"


def change(interface: str, notes: Path, wanted: Mapping[str, str] = TRANSLATED) -> None:
    """Set them, and note what they were. Again is no error. Raises OSError."""
    before = noted(notes)
    for name, value in wanted.items():
        setting = _path(interface, name)
        if name not in before:
            (notes / f"{_NOTE}{name}={setting.read_text().strip()}").mkdir()
        setting.write_text(value)


def restore(interface: str, notes: Path) -> None:
    """Give them their old values back and forget these. An interface that is gone is no error."""
    for entry in list(notes.glob(f"{_NOTE}*")):
        name, value = entry.name.removeprefix(_NOTE).split("=")
        with contextlib.suppress(OSError):
            _path(interface, name).write_text(value)
        entry.rmdir()


def noted(notes: Path) -> frozenset[str]:
    """Names of the settings that were changed."""
    return frozenset(entry.name.removeprefix(_NOTE).split("=")[0] for entry in notes.glob(f"{_NOTE}*"))


def _path(interface: str, name: str) -> Path:
    family = "ipv6" if name.startswith(IPV6) else "ipv4"
    return Path(f"/proc/sys/net/{family}/conf/{interface}/{name.removeprefix(IPV6)}")
