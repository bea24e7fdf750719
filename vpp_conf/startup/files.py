"""Reading small kernel files below a root directory, so that a recorded tree can stand for a machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vpp_conf.startup.cpu_lists import cpu_list


@dataclass(frozen=True, slots=True)
class Files:
    """``/proc`` and ``/sys`` below ``root``. What does not exist or cannot be read is None: kernels differ."""

    root: Path

    def text(self, path: str) -> str | None:
        """The content without white space around it."""
        try:
            return (self.root / path).read_text(errors="replace").strip()
        except OSError:
            return None

    def number(self, path: str) -> int | None:
        """A decimal or 0x-prefixed number."""
        try:
            return int(self.text(path) or "", 0)
        except ValueError:
            return None

    def cpu_list(self, path: str) -> frozenset[int]:
        """A list of CPUs, empty if the file is."""
        return cpu_list(self.text(path) or "")

    def names(self, path: str, prefix: str = "") -> tuple[str, ...]:
        """What a folder holds, sorted."""
        try:
            return tuple(sorted(entry.name for entry in (self.root / path).iterdir() if entry.name.startswith(prefix)))
        except OSError:
            return ()

    def target(self, path: str) -> str | None:
        """The last part of what a symbolic link points to."""
        try:
            return (self.root / path).readlink().name
        except OSError:
            return None

    def exists(self, path: str) -> bool:
        """A file, folder or link is there."""
        return (self.root / path).exists()
