"""Where everything stands in a TOML text: the line of each table, key, and element of an array.

``tomllib`` says what a text means, but not where. This scanner says where and relies on ``tomllib`` having accepted
the text before; of other texts it makes nothing useful.
"""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_right

Path = tuple[str | int, ...]
"""Keys, and indices (from 0) of arrays and arrays of tables, from the root down."""

_BLANK = re.compile(r"(?:[ \t\n]|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_KEY = re.compile(r"""[A-Za-z0-9_-]+|"(?:[^"\\\n]|\\.)*"|'[^'\n]*'""")
_STRING = re.compile(
    r"""\"{3}(?:[^\\]|\\.)*?"{3,5}|'{3}.*?'{3,5}|"(?:[^"\\\n]|\\.)*"|'[^'\n]*'""",
    re.DOTALL,
)
_SCALAR = re.compile(r"[^,\]}#\n]+")


def lines_of(text: str) -> dict[Path, int]:
    """The line (from 1) of every path in ``text``, which is valid TOML. A table that is only implied has the line of
    the first header or key that implies it. Raises RecursionError for arrays nested hundreds deep.
    """
    return _Scanner(text.replace("\r\n", "\n")).scan()


class _Scanner:
    """One pass over a text."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._breaks = [found.start() for found in re.finditer("\n", text)]
        self._lengths: dict[Path, int] = {}  # arrays of tables so far
        self._lines: dict[Path, int] = {(): 1}

    def scan(self) -> dict[Path, int]:
        """All lines."""
        table: Path = ()
        while self._skip(_BLANK) < len(self._text):
            if self._next("[["):
                table = self._element_header()
            elif self._next("["):
                table = self._absolute(self._key())
                self._lines[table] = self._line()
                self._expect("]")
            else:
                self._pair(table)
        return self._lines

    def _element_header(self) -> Path:
        """``[[a.b]]``: one more element of that array."""
        *outer, name = self._key()
        array = (*self._absolute(outer), name)
        index = self._lengths.get(array, 0)
        self._lengths[array] = index + 1
        self._note((*array, index))
        self._expect("]]")
        return (*array, index)

    def _absolute(self, keys: list[str]) -> Path:
        """The path of a header: the last element of each array of tables on the way."""
        path: Path = ()
        for key in keys:
            path = (*path, key)
            if path in self._lengths:
                path = (*path, self._lengths[path] - 1)
        return self._note(path)

    def _pair(self, table: Path) -> None:
        path = self._note((*table, *self._key()))
        self._expect("=")
        self._value(path)

    def _value(self, path: Path) -> None:
        if self._next("["):
            self._array(path)
        elif self._next("{"):
            self._inline_table(path)
        elif not self._matched(_STRING):
            self._matched(_SCALAR)

    def _array(self, path: Path) -> None:
        index = 0
        while self._skip(_BLANK) < len(self._text) and not self._next("]"):
            self._value(self._note((*path, index)))
            index += 1
            self._skip(_BLANK)
            self._next(",")

    def _inline_table(self, path: Path) -> None:
        while self._skip(_BLANK) < len(self._text) and not self._next("}"):
            self._pair(path)
            self._skip(_BLANK)
            self._next(",")

    def _key(self) -> list[str]:
        """A dotted key, its quoted parts decoded."""
        parts = []
        while True:
            self._skip(_SPACE)
            raw = self._matched(_KEY)
            parts.append(tomllib.loads(f"k = {raw}")["k"] if raw[:1] in {'"', "'"} else raw)
            self._skip(_SPACE)
            if not raw or not self._next("."):
                return parts

    def _note(self, path: Path) -> Path:
        for depth in range(1, len(path) + 1):
            self._lines.setdefault(path[:depth], self._line())
        return path

    def _line(self) -> int:
        return bisect_right(self._breaks, self._at - 1) + 1

    def _skip(self, pattern: re.Pattern[str]) -> int:
        self._matched(pattern)
        return self._at

    def _matched(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self._text, self._at)
        if found is None:
            return ""
        self._at = found.end()
        return found[0]

    def _next(self, mark: str) -> bool:
        """Take ``mark`` if it is what comes."""
        found = self._text.startswith(mark, self._at)
        if found:
            self._at += len(mark)
        return found

    def _expect(self, mark: str) -> None:
        self._skip(_SPACE)
        self._next(mark)
        self._skip(_SPACE)
