"""What the engine put into VPP and VPP's dumps do not tell: an append-only file of JSON lines, without keys.

VPP knows neither the TunnelId nor the source half of a selector nor the replay window that was asked for. After
a restart of the daemon the journal gives them back; every line of it is checked against VPP's dumps and counts
for nothing without them. The first line names the VPP process it belongs to.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import structlog

Row = dict[str, Any]
"""One JSON object: a file format, read and written only by :mod:`ipsec_gw.engines.vpp`'s codec."""

COMPACT_FACTOR = 4
COMPACT_FLOOR = 256

log = structlog.get_logger()


class Journal:
    """Rows by (kind, id). Mode 0600: it names peers, if no keys."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: dict[tuple[str, str], Row] = {}
        self._epoch = 0
        self._lines = 0
        self._whole = True
        """The file has all rows."""

    def load(self, epoch: int) -> None:
        """Read what was written for this VPP process; start empty if it was for another one."""
        self._epoch, self._rows = epoch, {}
        lines = list(self._read_lines())
        if lines and lines[0].get("epoch") == epoch:
            for line in lines[1:]:
                self._apply(line)
        self._rewrite()

    def rows(self, kind: str) -> list[Row]:
        """All rows of one kind."""
        return [row for (row_kind, _), row in self._rows.items() if row_kind == kind]

    def put(self, kind: str, identity: str, row: Row) -> None:
        """Add or replace one row."""
        self._append({"kind": kind, "id": identity, "row": row})

    def remove(self, kind: str, identity: str) -> None:
        """Forget one row; unknown ones are fine."""
        self._append({"kind": kind, "id": identity, "row": None})

    def _append(self, line: Row) -> None:
        self._apply(line)
        self._lines += 1
        if not self._whole or self._lines > COMPACT_FLOOR + COMPACT_FACTOR * len(self._rows):
            self._rewrite()
            return
        with self._writing(), self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def _apply(self, line: Row) -> None:
        identity = (str(line["kind"]), str(line["id"]))
        if line["row"] is None:
            self._rows.pop(identity, None)
        else:
            self._rows[identity] = line["row"]

    def _rewrite(self) -> None:
        lines: list[Row] = [{"epoch": self._epoch}]
        lines += [{"kind": kind, "id": identity, "row": row} for (kind, identity), row in self._rows.items()]
        fresh = self._path.with_suffix(".new")
        with self._writing():
            fresh.touch(mode=0o600)
            fresh.write_text("".join(json.dumps(line) + "\n" for line in lines))
            fresh.replace(self._path)
        self._lines = len(lines)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """What cannot be written is missed by another daemon alone. All of it is written with the next row."""
        try:
            yield
        except OSError as error:
            self._whole = False
            log.warning(
                "the journal cannot be written, another daemon would begin anew - see `df`",
                path=str(self._path),
                reason=error.strerror,
            )
        else:
            self._whole = True

    def _read_lines(self) -> Iterator[Row]:
        """The file's lines up to the first that is not whole (a crash in the middle of a write)."""
        if not self._path.exists():
            return
        for text in self._path.read_text().splitlines():
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                return
            yield line
