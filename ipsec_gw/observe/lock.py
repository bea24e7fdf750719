"""One daemon per runtime directory: a lock that the kernel drops when its holder ends, however it ends."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from ipsec_gw.errors import IpsecGwError


def _path(run_dir: Path) -> Path:
    return run_dir / "lock"


@contextlib.contextmanager
def hold(run_dir: Path) -> Iterator[None]:
    """Hold the lock, from before anything is touched. Raises IpsecGwError if another process does."""
    run_dir.mkdir(mode=0o750, parents=True, exist_ok=True)
    with _path(run_dir).open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise IpsecGwError(
                f"a daemon runs already on {run_dir} - stop it first, or use another --run-dir and --pins"
            ) from None
        yield


def held(run_dir: Path) -> bool:
    """True while a daemon holds the lock, also one that does not answer yet or any more."""
    try:
        with hold(run_dir):
            return False
    except IpsecGwError:
        return True


def remove(run_dir: Path) -> None:
    """Remove the lock file, and the runtime directory if nothing else is in it."""
    _path(run_dir).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # VPP's files are its own to remove
        run_dir.rmdir()
