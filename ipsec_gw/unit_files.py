"""Units in a folder of systemd's: whose they are, written whole or not at all, removed if they are ours."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from pathlib import Path

from ipsec_gw.errors import EnvironmentMissing, IpsecGwError
from ipsec_gw.units import MARKER

FOLDER = Path("etc/systemd/system")
"""Of the administrator's units, below the root directory (``systemd.unit(5)``)."""

_MODE = 0o644


class Owner(Enum):
    """Whose file a unit is. A symbolic link (an alias, a masked unit) is never ours."""

    NOBODY = "not installed"
    OURS = "installed by ipsec-gw"
    FOREIGN = "not written by ipsec-gw"


def owner(path: Path) -> Owner:
    """Whose the file is. Raises EnvironmentMissing if it cannot be read."""
    if not os.path.lexists(path):
        return Owner.NOBODY
    if path.is_symlink() or not path.is_file():
        return Owner.FOREIGN
    with _access(path):
        return Owner.OURS if path.read_bytes().startswith(MARKER.encode()) else Owner.FOREIGN


def enabled(folder: Path, name: str) -> bool:
    """True if a target wants or requires the unit, which is how ``systemctl enable`` leaves it."""
    return any(os.path.lexists(link) for kind in ("wants", "requires") for link in _links(folder, kind, name))


def refuse_foreign(folder: Path, names: Iterable[str]) -> None:
    """Raises IpsecGwError, naming them, if units of these names are somebody else's."""
    foreign = [str(folder / name) for name in names if owner(folder / name) is Owner.FOREIGN]
    if foreign:
        raise IpsecGwError(f"not written by ipsec-gw: {', '.join(foreign)} - move it away to install the unit")


def install(folder: Path, units: Mapping[str, str]) -> tuple[Path, ...]:
    """Write the units whose text is another by now, and return their paths.

    All are written beside their places before the first is put there: if one cannot be written, every unit stays as it
    was. Raises IpsecGwError if one of them is somebody else's, EnvironmentMissing if the folder cannot be written.
    """
    refuse_foreign(folder, units)
    changed = {folder / name: text for name, text in units.items() if not _holds(folder / name, text)}
    staged = {path: path.with_name(f".{path.name}.{os.getpid()}") for path in changed}
    with _access(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for path in staged:
            path.parent.mkdir(exist_ok=True)
        try:
            for path, beside in staged.items():
                _write(beside, changed[path])
            for path, beside in staged.items():
                beside.replace(path)
        finally:
            for beside in staged.values():
                beside.unlink(missing_ok=True)
    return tuple(changed)


def removable(folder: Path, names: Iterable[str]) -> tuple[Path, ...]:
    """Those units that are ours.

    Raises IpsecGwError if one of them is enabled: its links would stay and lead nowhere.
    """
    ours = tuple(folder / name for name in names if owner(folder / name) is Owner.OURS)
    held = [path.name for path in ours if enabled(folder, path.name)]
    if held:
        raise IpsecGwError(f"still enabled: {', '.join(held)} - first `systemctl disable --now {' '.join(held)}`")
    return ours


def remove(folder: Path, names: Iterable[str]) -> tuple[Path, ...]:
    """Remove what is :func:`removable`, and return it. Raises EnvironmentMissing if the folder cannot be written."""
    ours = removable(folder, names)
    with _access(folder):
        for path in ours:
            path.unlink()
    return ours


@contextmanager
def _access(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        way_out = "run it as root" if isinstance(error, PermissionError) else "look at that place"
        raise EnvironmentMissing(f"{error.filename or path}: {error.strerror or error} - {way_out}") from error


def _holds(path: Path, text: str) -> bool:
    return owner(path) is Owner.OURS and path.read_text(errors="replace") == text


def _write(path: Path, text: str) -> None:
    """On the disk before it gets its name: a unit must not be empty after a power failure."""
    with path.open("w") as file:
        os.fchmod(file.fileno(), _MODE)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _links(folder: Path, kind: str, name: str) -> Iterator[Path]:
    return (wanted / name for wanted in folder.glob(f"*.{kind}"))
