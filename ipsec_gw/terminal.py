"""What people read: the console that all tables are printed on."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

PIPED_COLUMNS = 200  # a pipe has no width: rich takes 80 and breaks addresses that somebody greps for


def console() -> Console:
    """A console on stdout: as wide as the terminal or `COLUMNS`, wide enough for whole addresses in a pipe."""
    from rich.console import Console  # noqa: PLC0415 - scripts that ask for JSON do not wait for rich

    return Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else PIPED_COLUMNS)
