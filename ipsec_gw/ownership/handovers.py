"""What the kernel itself has counted of SAs that an engine carries, written down in the runtime directory.

The kernel's volume of an SA is that and what the guardian has added of the engine's. A daemon that comes later can tell
the one from the other only by this: without it, what the kernel had counted before the engine got the SA would pass for
the engine's, and charon would never hear of as many packets that the engine did carry.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from ipsec_gw.model.ids import SaKey
from ipsec_gw.model.warmth import SaState, Volume

FILE = "handovers.jsonl"

SPARE = 1000
"""Lines that the file may have besides those that are needed, and as many as those: then it is written anew."""


@dataclass(frozen=True, slots=True)
class _Sa:
    """An SA, told from a later one that got the same SPI: ``born`` is Unix time, as the kernel has it."""

    key: SaKey
    born: int


class Handovers:
    """What is written down, a line for each SA and change. ``tell`` hears, once, that it cannot be.

    ``begun``: an earlier daemon has written down all SAs that it took note of, a line for each.
    """

    def __init__(self, run_dir: Path, tell: Callable[[str], None]) -> None:
        self._file = run_dir / FILE
        self._tell = tell
        self._failed = False
        self.begun = self._file.exists()
        self._known = dict(_read(self._file)) if self.begun else {}
        self._lines = len(self._known)

    def recall(self, state: SaState) -> Volume | None:
        """What the kernel itself has counted of an SA, as far as it is known."""
        return self._known.get(_named(state))

    def keep(self, counted: Iterable[tuple[SaState, Volume]], alive: Collection[SaState]) -> None:
        """Write down what has changed. ``alive`` are all SAs that there are: no others are kept for long."""
        fresh = {_named(state): volume for state, volume in counted}
        if not fresh:
            return
        self._known |= fresh
        self._lines += len(fresh)
        if self._lines > 2 * len(alive) + SPARE:
            self.only(alive)
        else:
            self._or_tell(lambda: _write(self._file, fresh, "a"))

    def only(self, alive: Iterable[SaState]) -> None:
        """Forget all but these, in the file as well, if there is one."""
        known = {_named(state) for state in alive}
        self._known = {sa: volume for sa, volume in self._known.items() if sa in known}
        if self._file.exists():
            self._or_tell(self._replace)

    def _replace(self) -> None:
        fresh = self._file.with_suffix(".new")
        _write(fresh, self._known, "w")
        fresh.replace(self._file)
        self._lines = len(self._known)

    def _or_tell(self, work: Callable[[], None]) -> None:
        try:
            work()
        except OSError as error:
            if not self._failed:
                self._tell(f"{self._file} cannot be written ({error.strerror}): charon counts less after a restart")
            self._failed = True


def _named(state: SaState) -> _Sa:
    return _Sa(state.key, state.add_time)


def _read(file: Path) -> Iterable[tuple[_Sa, Volume]]:
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            destination, spi, born, packets, octets = json.loads(line)
            yield _Sa(SaKey(ip_address(destination), int(spi)), int(born)), Volume(int(packets), int(octets))
        except (ValueError, TypeError):
            continue  # the last line of a daemon that was killed


def _write(file: Path, known: Mapping[_Sa, Volume], mode: str) -> None:
    with file.open(mode, encoding="utf-8") as opened:
        for sa, volume in known.items():
            fields = (str(sa.key.destination), sa.key.spi, sa.born, volume.packets, volume.octets)
            opened.write(json.dumps(fields) + "\n")


def forget(run_dir: Path) -> None:
    """Remove the file."""
    (run_dir / FILE).unlink(missing_ok=True)
