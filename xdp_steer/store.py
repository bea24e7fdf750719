"""Where compiled programs are kept between boots: a file for each source, headers and compiler.

Only root may write there: what is loaded from it decides what the gateway lets through.
"""

from __future__ import annotations

import hashlib
import os
import stat
from contextlib import suppress
from pathlib import Path

import structlog

from xdp_steer.bytecode import Bytecode

DIRECTORY = Path("/var/cache/ipsec-gw")
KEPT = 8
"""Files: with and without the firewall, of this version and of those before."""
_SUFFIX = ".programs"
_FOREIGN_WRITE = stat.S_IWGRP | stat.S_IWOTH

log = structlog.get_logger(__name__)


class Store:
    """Compiled programs by what they were compiled from. Nothing here is needed: what is lost is compiled again."""

    def __init__(self, directory: Path, *made_of: str) -> None:
        """``made_of`` is everything that the result of a compile depends on."""
        self._directory = directory
        name = hashlib.sha256("\0".join(made_of).encode()).hexdigest()
        self._path = directory / (name + _SUFFIX)

    def get(self) -> Bytecode | None:
        """What was put, if it is whole and nobody else can have written it."""
        try:
            for path in (self._directory, self._path):
                found = path.stat(follow_symlinks=False)
                if found.st_uid != os.geteuid() or found.st_mode & _FOREIGN_WRITE:
                    log.warning("compiled programs that others can write are not used", path=str(path))
                    return None
            bytecode = Bytecode.from_text(self._path.read_text())
            os.utime(self._path)  # what is used is kept
            return bytecode
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            log.warning("compiled programs are not used", path=str(self._path), error=str(error))
            return None

    def put(self, bytecode: Bytecode) -> None:
        """Keep it, and the few that were used last; where nothing can be written it is left out."""
        new = self._path.with_suffix(f".{os.getpid()}")
        try:
            self._directory.mkdir(mode=0o755, parents=True, exist_ok=True)
            with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                file.write(bytecode.to_text())
                file.flush()
                os.fsync(file.fileno())
            new.rename(self._path)
        except OSError as error:
            log.warning("compiled programs are not kept", path=str(self._path), error=error.strerror)
            return
        with suppress(OSError):  # another process tidies up as well
            by_age = sorted(self._directory.glob(f"*{_SUFFIX}"), key=lambda path: path.stat().st_mtime, reverse=True)
            for path in by_age[KEPT:]:
                path.unlink()
