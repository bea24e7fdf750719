"""What is wrong with a configuration: collected until everything was looked at, then told together."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ipsec_gw.config.positions import Path
from ipsec_gw.errors import ConfigError

_BARE = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True)
class Problem:
    """One error: ``file`` and ``line`` (from 1), the ``path`` of the option, what is wrong and the way out.

    ``path`` is empty when the error is about the file. Elements of arrays are counted from 1: ``policies.2.source``.
    """

    file: str
    line: int
    path: str
    message: str
    way_out: str

    def __str__(self) -> str:
        path = f"{self.path}: " if self.path else ""
        return f"{self.file}:{self.line}: {path}{self.message} - {self.way_out}"


class InvalidConfig(ConfigError):
    """A configuration with errors; the text has one line for each of ``problems``."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


class Refused(ValueError):
    """A value that cannot be used: ``message`` and ``way_out``. The caller knows where it stands."""

    def __init__(self, message: str, way_out: str) -> None:
        super().__init__(message)
        self.message = message
        self.way_out = way_out


class Report:
    """Collects the problems of one file. ``lines`` are the lines of its paths."""

    def __init__(self, file: str, lines: Mapping[Path, int]) -> None:
        self._file = file
        self._lines = lines
        self._problems: dict[Problem, None] = {}  # a set that keeps the order

    def add(self, path: Path, message: str, way_out: str) -> None:
        """Remember a problem. ``path`` may lead deeper than the file goes: it is told as deep as it exists."""
        place = self._existing(path)
        texts = (_one_line(message), _one_line(way_out))
        self._problems[Problem(self._file, self._lines.get(place, 1), dotted(place), *texts)] = None

    def refuse(self, path: Path, refused: Refused) -> None:
        """Remember that the value at ``path`` was refused."""
        self.add(path, refused.message, refused.way_out)

    def line(self, path: Path) -> int:
        """Where ``path``, or what there is of it, stands."""
        return self._lines.get(self._existing(path), 1)

    def give(self) -> None:
        """Raises InvalidConfig with all problems in the order of the file, if there are any."""
        if self._problems:
            raise InvalidConfig(sorted(self._problems, key=lambda problem: problem.line))

    def _existing(self, path: Path) -> Path:
        while path and path not in self._lines:
            path = path[:-1]
        return path


def dotted(path: Path) -> str:
    """``policies.2.source``: keys quoted where TOML wants it, indices from 1."""
    return ".".join(str(part + 1) if isinstance(part, int) else _key(part) for part in path)


def _key(name: str) -> str:
    return name if _BARE.fullmatch(name) else json.dumps(name)


def _one_line(text: str) -> str:
    """What an operator wrote may hold line breaks and terminal controls: they are told, not done."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def one_of(names: Iterable[str]) -> str:
    """``a, b, c`` for a way out; ``none is defined`` of nothing."""
    return ", ".join(names) or "none is defined"
