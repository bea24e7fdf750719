"""Kernel settings of interfaces whose packets XDP translates before it passes them on, and what they were before.

A packet that source NAT has given an address of this machine comes in by another interface: the kernel must accept that
(``accept_local``) and not expect it elsewhere (``rp_filter`` loose, which is the larger number and so wins over
``all``). The old values are kept as names of empty directories beside the dock's pins.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

_WANTED = {"accept_local": "1", "rp_filter": "2"}
_NOTE = "sysctl:"


def relax(interface: str, notes: Path) -> None:
    """Set them, and note what they were. Again is no error. Raises OSError."""
    noted = {entry.name.removeprefix(_NOTE).split("=")[0] for entry in notes.glob(f"{_NOTE}*")}
    for name, value in _WANTED.items():
        setting = _path(interface, name)
        if name not in noted:
            (notes / f"{_NOTE}{name}={setting.read_text().strip()}").mkdir()
        setting.write_text(value)


def restore(interface: str, notes: Path) -> None:
    """Give them their old values back and forget these. An interface that is gone is no error."""
    for entry in list(notes.glob(f"{_NOTE}*")):
        name, value = entry.name.removeprefix(_NOTE).split("=")
        with contextlib.suppress(OSError):
            _path(interface, name).write_text(value)
        entry.rmdir()


def _path(interface: str, name: str) -> Path:
    return Path(f"/proc/sys/net/ipv4/conf/{interface}/{name}")
